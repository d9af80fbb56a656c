"""The agent: the process that owns the ranks of a node, and outlives a launcher that is killed.

The agent is the parent of the ranks and, as a subreaper, adopts every orphaned process that they started, so no process escapes it.
It starts ranks, reads their output, reports exits and stalls in the order in which they happen, and executes the launcher's orders.
When the launcher is gone, the agent ends all processes and exits. If the agent is killed, the kernel kills the ranks (parent-death
signal) and the keeper kills the rest.
"""

import functools
import os
import selectors
import signal
import socket
import time
import traceback

from launch import console, exit_codes, keeper, processes, stalls, world
from launch.config import LaunchConfig
from launch.connection import Connection
from launch.messages import AttemptEnded, EndRanks, NodeLost, Notice, RankExited, RankStalled, SendSignal, Start
from launch.output import Stream, Terminal
from launch.rank import Rank

KILL_AFTER = 3.0  # seconds from TERM to KILL
SWEEP = 0.02  # seconds between two checks of processes that are about to end
WAITS_FOR_HANDLER = (signal.SIGUSR1, signal.SIGUSR2)  # they would kill a rank that has no handler yet


def start_agent(config: LaunchConfig) -> tuple[Connection, int]:
    """Forks the agent and its keeper. Call this function before the launcher starts threads.

    Returns:
        The connection to the agent, and the process id of the keeper, which is also the process group of both.
    """
    processes.become_subreaper()
    ours, theirs = socket.socketpair()
    keeper_pid = keeper.fork_under_keeper()
    if keeper_pid:
        theirs.close()
        return Connection(ours), keeper_pid
    connection = Connection(theirs)
    try:
        ours.close()
        processes.become_subreaper()
        Agent(config, connection).run()
    except OSError as error:
        processes.send(processes.descendants(os.getpid()), signal.SIGKILL)
        connection.send(NodeLost(f"its ranks cannot be run: {error.strerror or error}"))
    except BaseException:
        processes.send(processes.descendants(os.getpid()), signal.SIGKILL)
        console.show(traceback.format_exc())
    finally:
        os._exit(exit_codes.DONE)


class Agent:
    """The event loop of the agent.

    Args:
        config: the command of the ranks, and which output to log and to show.
        connection: the connection to the launcher.
    """

    def __init__(self, config: LaunchConfig, connection: Connection):
        self._config, self._launcher = config, connection
        self._terminal = Terminal()
        self._ranks: list[Rank] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ, self._handle_orders)
        # Slurm signals every process of a step, so ranks ignore a warning, like the launcher, until they install a handler.
        self._ignored = [int(number) for number in WAITS_FOR_HANDLER if signal.getsignal(number) == signal.SIG_IGN]
        woken = _wake_up_at_exits()
        self._selector.register(woken, selectors.EVENT_READ, functools.partial(woken.recv, 4096))
        self._stalls: stalls.StallDetector | None = None
        self._interval = config.monitor_interval
        self._kill_at: float | None = None
        self._ends_leftovers = False
        self._out_of_memory_before = 0  # processes that the kernel had killed when the attempt began

    def run(self) -> None:
        """Runs attempts until the launcher is gone."""
        while self._ranks or not self._launcher.closed:
            # epoll reports events, including exits through pidfds, in the order in which they happened. After SIGCONT, `select` may
            # return none although some have happened.
            for key, _ in self._selector.select(self._timeout()) or self._selector.select(0):
                if key.data:
                    key.data()
            if self._ranks:
                self._check(time.monotonic())
            self._terminal.flush()
            self._watch_terminal()

    def _timeout(self):
        if self._ranks and (self._kill_at is not None or not self._running_ranks()):
            return SWEEP
        if self._ranks and (self._stalls or any(rank.pending for rank in self._running_ranks())):
            return min(self._interval, stalls.LONGEST_PAUSE)
        return None

    def _watch_terminal(self):
        watched = self._terminal.descriptor in self._selector.get_map()
        if self._terminal.waiting and not watched:
            self._selector.register(self._terminal.descriptor, selectors.EVENT_WRITE, None)
        elif watched and not self._terminal.waiting:
            self._selector.unregister(self._terminal.descriptor)

    def _running_ranks(self):
        return [rank for rank in self._ranks if rank.exit_code is None]

    # Orders of the launcher.

    def _handle_orders(self):
        for order in self._launcher.receive():
            match order:
                case Start():
                    self._start(order)
                case SendSignal(number):
                    self._send_signal(number)
                case EndRanks(number):
                    self._end(number)
        if self._launcher.closed:
            self._selector.unregister(self._launcher)
            if self._running_ranks():
                self._end(signal.SIGTERM)
                console.say("the launcher is gone: ending its ranks")

    def _start(self, order):
        self._kill_at, self._ends_leftovers = None, False
        self._interval = order.interval
        self._stalls = self._stall_detector(order)
        self._out_of_memory_before = processes.out_of_memory_kills()
        base = {name: value for name, value in os.environ.items() if name != world.SECRET}
        folder = log_dir(self._config, order.world.run_id)
        for local, number in enumerate(order.world.ranks(self._config.node)):
            shown = self._config.shown is None or local in self._config.shown
            stream = Stream(number, os.path.join(folder, f"rank-{number}.log"), self._terminal if shown else None)
            environment = base | world.environment_of(order.world, number, threads=self._config.threads(local), already=os.environ)
            cores = self._config.cores[local] if self._config.cores else None
            rank = Rank(number, self._config.command, environment, stream, self._ignored, cores)
            self._ranks.append(rank)
            self._selector.register(stream.reader, selectors.EVENT_READ, functools.partial(self._read, rank))
            if rank.pidfd is not None:
                self._selector.register(rank.pidfd, selectors.EVENT_READ, functools.partial(self._reap, rank.pid))

    def _stall_detector(self, order):
        """Returns a detector, unless no other rank waits for a stopped one and the user has set no `--stall-timeout`."""
        stopped_timeout = stalls.STOPPED if order.world.world_size > 1 else None
        if not (order.stall_timeout or stopped_timeout):
            return None
        return stalls.StallDetector(order.stall_timeout, stopped_timeout, time.monotonic())

    def _send_signal(self, number):
        for rank in self._running_ranks():
            if number in WAITS_FOR_HANDLER:
                rank.pending.add(number)
                rank.deliver_pending()
            else:
                processes.send([rank.pid], number)

    def _end(self, number):
        if not self._ranks:
            return
        first, now = self._kill_at is None, time.monotonic()
        self._kill_at = now if number == signal.SIGKILL else self._kill_at or now + KILL_AFTER
        if first or number == signal.SIGKILL:
            groups = [rank.pid for rank in self._running_ranks()]
            if number == signal.SIGABRT:
                processes.forbid_core_dumps(groups)
            processes.send_to_groups(groups, number)

    # Events of the ranks.

    def _read(self, rank):
        if rank.stream.read() == 0:
            self._selector.unregister(rank.stream.reader)
        self._warn(rank)

    def _warn(self, rank):
        if warning := rank.stream.warning():
            self._launcher.send(Notice(warning))

    def _reap(self, which=-1):
        """Reaps one process, or all that have ended. Returns whether children are left."""
        try:
            while True:
                pid, status = os.waitpid(which, os.WNOHANG)
                if not pid:
                    return True
                for rank in self._ranks:
                    if rank.pid == pid and rank.exit_code is None:
                        self._report_exit(rank, os.waitstatus_to_exitcode(status))
                if which != -1:
                    return True
        except ChildProcessError:
            return False

    def _report_exit(self, rank, code):
        rank.exit_code = code
        rank.stream.drain()
        if rank.pidfd is not None:
            self._selector.unregister(rank.pidfd)
            os.close(rank.pidfd)
        out_of_memory = code == -signal.SIGKILL and processes.out_of_memory_kills() > self._out_of_memory_before
        tail = rank.stream.tail.decode(errors="replace") if code else ""
        self._launcher.send(RankExited(rank.record, out_of_memory, tail))

    # Periodic work.

    def _check(self, now):
        children_left = self._reap()
        living = self._running_ranks()
        if not living and not children_left:
            self._finish()
        elif not living and not self._ends_leftovers:
            self._ends_leftovers = True
            self._kill_at = self._kill_at or now + KILL_AFTER
            left_behind = processes.descendants(os.getpid())
            processes.send(left_behind, signal.SIGTERM)
            processes.send(left_behind, signal.SIGCONT)
        elif self._kill_at is not None and now >= self._kill_at:
            processes.send(processes.descendants(os.getpid()), signal.SIGKILL)
        elif self._kill_at is None and living:
            for rank in living:
                rank.deliver_pending()
            if self._stalls and (stall := self._stalls.look(living, now)):
                self._stalls = None  # report a stall once
                self._launcher.send(RankStalled(stall.rank.number, stall.rank.batch, stall.stopped, stall.seconds))

    def _finish(self):
        """Reports the end of the attempt. All descendants have ended, so the pipes contain the last output."""
        for rank in self._ranks:
            rank.stream.drain()
            self._warn(rank)
            if rank.stream.reader in self._selector.get_map():
                self._selector.unregister(rank.stream.reader)
        records = tuple(rank.record for rank in self._ranks)
        for rank in self._ranks:
            rank.close()
        self._ranks = []
        self._terminal.finish()
        self._launcher.send(AttemptEnded(records))


def log_dir(config: LaunchConfig, run_id: str) -> str:
    """Returns the directory of the ranks' logs."""
    return config.log_dir or os.path.join("runs", "logs", run_id)


def _wake_up_at_exits():
    """Returns a socket that becomes readable when a child ends. The launcher handles all other signals.

    The agent catches the other signals and does not ignore them: ranks would inherit that, and a shell cannot trap ignored signals.
    """
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    for number in (*processes.FORWARDED, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, _nothing)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _nothing)
    signal.set_wakeup_fd(waker.detach(), warn_on_full_buffer=False)
    return woken


def _nothing(number, frame):
    pass
