"""However a rank or the launcher dies, all processes end and the report says why."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from launching import PATIENCE, program, sh, wait_for

SLEEP = "echo $$ > pid-$RANK; exec sleep 1000"


def started(run, count):
    return [run.pid(f"pid-{rank}") for rank in range(count)]


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_rank_that_fails_ends_the_others_and_is_reported(launch):
    run = launch("--nproc-per-node", "3", *program("failing_rank.py"))
    code, _, err = run.finish()
    assert code == 1
    first, *rest = err.splitlines()
    assert first == f"rank 1 on {os.uname().nodename}: exit code 1"
    assert "    Traceback (most recent call last):" in rest and "    ValueError: boom" in rest
    assert "rank-1.log" in err and "ranks 0 2 on" in err and "killed by SIGTERM" in err
    assert "ValueError: boom" in run.log(1)
    assert run.none_left()


def test_a_rank_that_is_killed_is_named_with_its_signal(launch):
    run = launch("--nproc-per-node", "3", *sh(SLEEP))
    os.kill(started(run, 3)[2], signal.SIGKILL)
    code, _, err = run.finish()
    assert code == 137
    assert err.splitlines()[0] == f"rank 2 on {os.uname().nodename}: killed by SIGKILL"
    assert run.none_left()


def test_the_rank_that_failed_first_is_named_and_not_the_lowest_rank(launch):
    """The launcher is stopped while two ranks fail, so that it notices both at once."""
    run = launch("--nproc-per-node", "2", *sh("echo $$ > pid-$RANK; while [ ! -e fail-$RANK ]; do sleep 0.01; done; exit 4$RANK"))
    ranks = started(run, 2)
    agent = run.agent()
    os.kill(agent, signal.SIGSTOP)
    for rank in (1, 0):
        (run.cwd / f"fail-{rank}").touch()
        wait_for(lambda rank=rank: state(ranks[rank]) == "Z", "its end")
    os.kill(agent, signal.SIGCONT)
    code, _, err = run.finish()
    assert code == 41 and "rank 1 on" in err.splitlines()[0]


def test_a_rank_that_ignores_term_is_killed_after_the_grace_period(launch):
    fails = "while [ ! -s pid-1 ]; do sleep 0.01; done; exit 5"
    script = f'[ $RANK = 0 ] && {{ {fails}; }}; trap "" TERM; echo $$ > pid-$RANK; while :; do sleep 1; done'
    run = launch("--nproc-per-node", "2", *sh(script))
    code, _, err = run.finish()
    assert code == 5
    assert "killed by SIGKILL" in err
    assert run.none_left()


@pytest.mark.parametrize("whom", ["launcher", "its process group", "agent", "launcher and agent"])
def test_nothing_is_left_when_the_launcher_is_killed(launch, whom):
    """Ranks, their children, and a daemon in its own session end."""
    run = launch("--nproc-per-node", "2", *sh("sleep 1000 & setsid -f sleep 1000; echo $$ > pid-$RANK; sleep 1000"))
    started(run, 2)
    wait_for(lambda: len(run.processes()) >= 9, "all processes")
    if whom == "launcher":
        os.kill(run.process.pid, signal.SIGKILL)
    elif whom == "its process group":
        os.killpg(run.process.pid, signal.SIGKILL)
    elif whom == "launcher and agent":
        agent = run.agent()
        for pid in (run.process.pid, agent):  # only the keeper is left
            os.kill(pid, signal.SIGKILL)
    else:
        os.kill(run.agent(), signal.SIGKILL)
        code, _, err = run.finish()
        assert code == 1 and "the process that owned its ranks was killed" in err
    assert run.none_left()


def test_children_that_a_shell_started_before_it_became_the_launcher_are_not_killed(launch):
    before = ("sh", "-c", 'sh -c "echo \\$\\$ > before; sleep 1000; true" & exec "$@"', "sh")
    run = launch(*sh("while [ ! -s before ]; do sleep 0.01; done; exit 3"), prefix=before, stdout=None)
    assert run.process.wait(PATIENCE) == 3
    assert state(run.pid("before")) == "S"


@pytest.mark.parametrize("killed", ["keeper", "keeper and agent"])
def test_nothing_is_left_when_the_keeper_is_killed_too(launch, killed):
    run = launch("--nproc-per-node", "2", *sh("setsid -f sleep 1000; echo $$ > pid-$RANK; sleep 1000"))
    started(run, 2)
    agent, keeper = run.agent(), next(pid for pid, command in run.processes().items() if "import keeper" in command)
    os.kill(keeper, signal.SIGKILL)
    os.kill(*((agent, signal.SIGKILL) if "agent" in killed else (run.process.pid, signal.SIGTERM)))
    assert run.finish()[0] == (1 if "agent" in killed else 143)
    assert run.none_left()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_agent_continues_when_the_ranks_must_end(launch, told):
    saves = 'trap "touch saved-$RANK; exit 143" TERM; echo $$ > pid-$RANK; while :; do sleep 0.05; done'
    run = launch("--nproc-per-node", "2", *sh(saves))
    started(run, 2)
    os.kill(run.agent(), signal.SIGSTOP)
    os.kill(run.process.pid, told)  # the keeper notices that the launcher was killed
    assert run.process.wait(PATIENCE) == (143 if told == signal.SIGTERM else -9)
    assert run.none_left()
    assert all((run.cwd / f"saved-{rank}").exists() for rank in range(2))


def test_ranks_may_save_and_print_after_the_launcher_was_killed(launch):
    saves = 'trap "sleep 0.2; echo saved; touch saved-$RANK; exit 143" TERM; echo $$ > pid-$RANK; while :; do sleep 0.05; done'
    run = launch("--nproc-per-node", "2", *sh(saves))
    started(run, 2)
    os.kill(run.process.pid, signal.SIGKILL)
    assert run.none_left()
    for rank in range(2):
        assert (run.cwd / f"saved-{rank}").exists() and run.log(rank).endswith("saved\n")


def test_killing_the_process_group_of_a_rank_does_not_kill_the_launcher(launch):
    run = launch("--nproc-per-node", "2", *sh(SLEEP))
    os.killpg(started(run, 2)[1], signal.SIGKILL)
    code, _, err = run.finish()
    assert code == 137 and "rank 1 on" in err.splitlines()[0]
    assert run.none_left()


@pytest.mark.parametrize("code", [0, 7])
def test_the_launcher_does_not_wait_for_a_daemon_that_holds_stdout(launch, code):
    run = launch(
        *sh(f"setsid -f sh -c 'echo $$ > daemon; exec sleep 1000'; while [ ! -s daemon ]; do sleep 0.01; done; exit {code}")
    )
    assert run.finish()[0] == code
    assert run.none_left()


def test_a_grandchild_that_ignores_term_is_killed(launch):
    run = launch(
        *sh(
            "setsid -f sh -c 'trap \"\" TERM; echo > daemon; while :; do sleep 1; done'; while [ ! -e daemon ]; do sleep 0.01; done"
        )
    )
    assert run.finish()[0] == 0
    assert run.none_left()


def test_a_rank_that_closes_its_output_continues(launch):
    run = launch(*sh("echo before; exec >&- 2>&-; sleep 0.3; touch after"))
    assert run.finish()[:2] == (0, "[0] before\n")
    assert (run.cwd / "after").exists()


def test_a_stopped_rank_ends_the_run_with_the_stacks_of_all(launch):
    run = launch("--nproc-per-node", "3", "--stall-timeout", "4", *program("stalling_rank.py"))
    os.kill(started(run, 3)[1], signal.SIGSTOP)
    for rank in (0, 2):  # they wait for the stopped one
        (run.cwd / f"stall-{rank}").touch()
    code, _, err = run.finish()
    assert code == 1
    assert err.splitlines()[0] == f"rank 1 on {os.uname().nodename}: was stopped (SIGSTOP) for 4 s"
    for rank, where in enumerate(("waits_for_ever", "trains", "waits_for_ever")):
        assert f"in {where}" in run.log(rank)
    assert "in trains" in err and "last batch  3" in err
    assert run.none_left()


def test_the_rank_that_stalls_is_named_and_an_active_one_is_not(launch):
    run = launch("--nproc-per-node", "2", "--stall-timeout", "4", *program("stalling_rank.py"))
    started(run, 2)
    (run.cwd / "stall-1").touch()
    began = time.monotonic()
    code, _, err = run.finish()
    assert code == 1 and time.monotonic() - began > 3  # and not at once
    assert err.splitlines()[0] == f"rank 1 on {os.uname().nodename}: made no progress for 4 s"
    assert "last batch  3" in err


@pytest.mark.slow
def test_ranks_that_report_no_progress_are_active_while_one_of_them_prints(launch):
    speaks = "if [ $RANK = 0 ]; then for n in 1 2 3 4 5 6 7 8 9 10; do sleep 0.5; echo $n; done; else sleep 5; fi"
    assert launch("--nproc-per-node", "2", "--stall-timeout", "4", *sh(speaks)).finish()[0] == 0


@pytest.fixture
def small_memory():
    """A control group with 30 MB of memory. Yields the file for its processes."""
    old = Path("/sys/fs/cgroup/memory")
    group = (old if old.is_dir() else Path("/sys/fs/cgroup")) / f"launch-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")).write_text("30000000")
    except OSError as error:
        pytest.skip(f"a control group with little memory cannot be made: {error}")
    yield group / "cgroup.procs"
    wait_for(lambda: not (group / "cgroup.procs").read_text(), "the end of its processes")
    group.rmdir()


def test_a_rank_that_the_out_of_memory_killer_has_killed_is_recognized(launch, small_memory):
    fills = f"echo $$ > {small_memory}; exec {sys.executable} -S -c 'x = [bytes([n]) * 10_000_000 for n in range(1, 100)]'"
    run = launch("--nproc-per-node", "2", *sh(f"[ $RANK = 0 ] && exec sleep 1000; {fills}"))
    code, _, err = run.finish()
    assert code == 137
    assert err.splitlines()[0] == f"rank 1 on {os.uname().nodename}: killed by SIGKILL; out of memory?"


def test_ranks_end_with_both_the_launcher_and_its_agent(launch):
    """Only the kernel can end the ranks."""
    run = launch("--nproc-per-node", "2", *sh(SLEEP))
    started(run, 2)
    os.kill(run.process.pid, signal.SIGSTOP)
    os.kill(run.agent(), signal.SIGKILL)
    assert run.none_left()
