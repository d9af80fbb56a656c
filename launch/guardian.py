"""The process that owns the ranks of a node, and outlives a launcher that is killed.

It is the parent of the ranks and, as a subreaper, of whatever their children leave behind, so nothing escapes it. It starts
ranks, takes their output, reports exits and stalls in the order in which they happen, and does as the launcher says. When the
launcher is gone it ends everything, and then itself. If it is killed, the kernel kills the ranks (parent-death signal), and the
launcher, a subreaper too, the rest.

    launcher -> guardian: start, signal, end                guardian -> launcher: exit, stall, warning, over
"""

import functools
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from typing import Any

from launch import processes, world
from launch.messages import Link
from launch.output import Stream, Terminal

KILL_AFTER = 3.0  # seconds from TERM to KILL
SWEEP = 0.02  # seconds between two looks at processes that are about to end
WAITS_FOR_HANDLER = (signal.SIGUSR1, signal.SIGUSR2)  # they would kill a rank that is still importing


def start_guardian() -> tuple[Link, int]:
    """Forks the guardian. To be called before the launcher has threads.

    Returns:
        The connection to it, and its process id.
    """
    processes.become_subreaper()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return Link(ours), pid
    try:
        ours.close()
        os.setsid()  # what is sent to the launcher's process group, or typed on its terminal, is not for the guardian
        processes.become_subreaper()
        Guardian(Link(theirs)).run()
    except BaseException:
        traceback.print_exc()
        processes.send(processes.descendants(os.getpid()), signal.SIGKILL)
    finally:
        os._exit(0)


class Rank:
    """A rank that was started: its process, its output, and its channel for progress.

    Args:
        number: the rank.
        command, environment: what it executes, and with what.
        stream: where its output goes.
        ignored: signals that it ignores until it has a handler.
    """

    def __init__(self, number: int, command: list[str], environment: dict[str, str], stream: Stream, ignored: list[int]):
        self.number = number
        self.stream = stream
        self.held: set[int] = set()  # signals that it gets when it has a handler for them
        self.story: dict[str, Any] | None = None  # how it ended
        self._progress = os.memfd_create("progress")
        channel = {world.PROGRESS: f"/proc/{os.getpid()}/fd/{self._progress}"}
        self.pid = processes.spawn(command, environment | channel, stream.writer, ignored)
        os.close(stream.writer)
        self.pidfd = processes.open_pidfd(self.pid)
        self.alive_at = time.monotonic()
        self._seen = self._signs_of_life()

    @property
    def batch(self) -> int | None:
        """The last batch that it reported."""
        return world.read_progress(self._progress)[0]

    def moved(self) -> bool:
        """It reported a batch since the last call; or, as long as it never did, it wrote something."""
        before, self._seen = self._seen, self._signs_of_life()
        return before != self._seen

    def _signs_of_life(self):
        batch, raw = world.read_progress(self._progress)
        return self.stream.bytes if batch is None else raw

    def close(self) -> None:
        """Closes its output and its channel."""
        self.stream.close()
        os.close(self._progress)


class Guardian:
    """The guardian's loop.

    Args:
        link: to the launcher.
    """

    def __init__(self, link: Link):
        self._link = link
        self._terminal = Terminal()
        self._ranks: list[Rank] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(link, selectors.EVENT_READ, self._obey)
        # Slurm signals every process of a step. A launcher that was started deaf to warnings starts ranks that are, at first.
        self._ignored = [int(number) for number in WAITS_FOR_HANDLER if signal.getsignal(number) == signal.SIG_IGN]
        woken = _wake_up_at_exits()
        self._selector.register(woken, selectors.EVENT_READ, functools.partial(woken.recv, 4096))
        self._kill_at: float | None = None
        self._told_to_leave = False

    def run(self) -> None:
        """Serves life after life, until the launcher is gone."""
        while self._ranks or not self._link.closed:
            # In the order in which it happened, which is how epoll tells it: exits too, through their pidfds.
            for key, _ in self._selector.select(self._timeout()):
                if key.data:
                    key.data()
            if self._ranks:
                self._tick(time.monotonic())
            self._terminal.flush()
            self._watch_terminal()

    def _timeout(self):
        if self._ranks and (self._kill_at is not None or not self._living()):
            return SWEEP
        if self._ranks and (self._stall_timeout or any(rank.held for rank in self._living())):
            return self._interval
        return None

    def _watch_terminal(self):
        watched = self._terminal.descriptor in self._selector.get_map()
        if self._terminal.waiting and not watched:
            self._selector.register(self._terminal.descriptor, selectors.EVENT_WRITE, None)
        elif watched and not self._terminal.waiting:
            self._selector.unregister(self._terminal.descriptor)

    def _living(self):
        return [rank for rank in self._ranks if rank.story is None]

    # What the launcher says.

    def _obey(self):
        for message in self._link.receive():
            action = message.pop("do")
            if action == "start":
                self._start(**message)
            elif action == "signal":
                self._forward(**message)
            elif action == "end":
                self._end(**message)
        if self._link.closed:
            self._selector.unregister(self._link)
            if self._living():
                print("[launch] the launcher is gone: its ranks are ended", file=sys.stderr, flush=True)
                self._end(signal.SIGTERM)

    def _start(self, ranks, stall_timeout, interval):
        self._kill_at, self._told_to_leave = None, False
        self._stall_timeout, self._interval = stall_timeout, interval
        self._activity = time.monotonic()
        self._out_of_memory_before = processes.out_of_memory_kills()
        base = {name: value for name, value in os.environ.items() if name != world.SECRET}
        for each in ranks:
            stream = Stream(each["rank"], each["log"], self._terminal if each["shown"] else None)
            rank = Rank(each["rank"], each["command"], base | each["environment"], stream, self._ignored)
            self._ranks.append(rank)
            self._selector.register(stream.reader, selectors.EVENT_READ, functools.partial(self._read, rank))
            if rank.pidfd is not None:
                self._selector.register(rank.pidfd, selectors.EVENT_READ, functools.partial(self._reap, rank.pid))

    def _forward(self, number):
        for rank in self._living():
            if number in WAITS_FOR_HANDLER:
                rank.held.add(number)
            else:
                processes.send([rank.pid], number)

    def _end(self, number):
        if not self._ranks:
            return
        first, now = self._kill_at is None, time.monotonic()
        self._kill_at = now if number == signal.SIGKILL else self._kill_at or now + KILL_AFTER
        if first or number == signal.SIGKILL:
            groups = [rank.pid for rank in self._living()]
            if number == signal.SIGABRT:
                processes.forbid_core_dumps(groups)
            processes.send_to_groups(groups, number)

    # What the ranks do.

    def _read(self, rank):
        if rank.stream.read() == 0:
            self._selector.unregister(rank.stream.reader)
        if warning := rank.stream.warning():
            self._link.send({"event": "warning", "text": warning})

    def _reap(self, which=-1):
        """Takes the exit of one process, or of all that ended. Returns whether there are children left."""
        try:
            while True:
                pid, status = os.waitpid(which, os.WNOHANG)
                if not pid:
                    return True
                for rank in self._ranks:
                    if rank.pid == pid and rank.story is None:
                        self._tell(rank, os.waitstatus_to_exitcode(status))
                if which != -1:
                    return True
        except ChildProcessError:
            return False

    def _tell(self, rank, code):
        rank.stream.drain()
        if rank.pidfd is not None:
            self._selector.unregister(rank.pidfd)
            os.close(rank.pidfd)
        out_of_memory = code == -signal.SIGKILL and processes.out_of_memory_kills() > self._out_of_memory_before
        rank.story = {
            "rank": rank.number,
            "code": code,
            "batch": rank.batch,
            "out_of_memory": out_of_memory,
            "log": rank.stream.log.path,
            "tail": rank.stream.tail.decode(errors="replace") if code else "",
        }
        self._link.send({"event": "exit", **rank.story})

    # What time brings.

    def _tick(self, now):
        children_left = self._reap()
        living = self._living()
        if not living and not children_left:
            self._over()
        elif not living and not self._told_to_leave:
            self._told_to_leave = True
            self._kill_at = self._kill_at or now + KILL_AFTER
            left_behind = processes.descendants(os.getpid())
            processes.send(left_behind, signal.SIGTERM)
            processes.send(left_behind, signal.SIGCONT)
        elif self._kill_at is not None and now >= self._kill_at:
            processes.send(processes.descendants(os.getpid()), signal.SIGKILL)
        elif self._kill_at is None and living:
            self._deliver_held(living)
            if self._stall_timeout:
                self._look_for_a_stall(living, now)

    def _deliver_held(self, living):
        for rank in living:
            for number in [number for number in rank.held if processes.catches(rank.pid, number)]:
                rank.held.remove(number)
                processes.send([rank.pid], number)

    def _look_for_a_stall(self, living, now):
        """A rank that never reported a batch lives as long as any rank of its node does, unless it was stopped: many are silent."""
        for rank in living:
            if rank.moved():
                rank.alive_at = self._activity = now
        for rank in living:
            if rank.batch is None and not processes.is_stopped(rank.pid):
                rank.alive_at = max(rank.alive_at, self._activity)
        stalled = [rank for rank in living if now - rank.alive_at > self._stall_timeout]
        if stalled:
            self._stall_timeout = None  # told once
            # Ranks wait for each other, so most are victims: the cause was stopped, or is behind, or was the first to be silent.
            culprit = min(stalled, key=lambda rank: (not processes.is_stopped(rank.pid), rank.batch or 0, rank.alive_at))
            stopped = processes.is_stopped(culprit.pid)
            self._link.send({"event": "stall", "rank": culprit.number, "batch": culprit.batch, "stopped": stopped})

    def _over(self):
        """Everything below this process is dead: what is left in the pipes is all there will be."""
        stories = []
        for rank in self._ranks:
            rank.stream.drain()
            if rank.stream.reader in self._selector.get_map():
                self._selector.unregister(rank.stream.reader)
            rank.close()
            story = {name: value for name, value in (rank.story or {}).items() if name != "tail"}
            stories.append({**story, "lost": rank.stream.log.lost})
        self._ranks = []
        self._terminal.finish()
        self._link.send({"event": "over", "stories": stories})


def _wake_up_at_exits():
    """What wakes the guardian at the end of a child. Other signals are the launcher's to deal with.

    They are caught, not ignored: a rank would inherit that, and a shell could then not trap them.
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
