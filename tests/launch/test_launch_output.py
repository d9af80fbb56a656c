"""The output of ranks: complete lines on the terminal, everything in the logs, and no rank that waits."""

import contextlib
import os
import pty
import re
import subprocess

import pytest
from launching import PATIENCE, program, sh, wait_for


def test_lines_are_complete_and_have_the_rank_as_prefix(launch):
    run = launch("--nproc-per-node", "4", *program("pieces_of_lines.py"))
    code, out, _ = run.finish()
    assert code == 0
    expected = "".join("x" * (n % 300) + f"y{n}\n" for n in range(2000)) + "no end"
    for rank in range(4):
        assert run.log(rank) == expected
        assert [line[4:] for line in out.splitlines() if line.startswith(f"[{rank}] ")] == expected.splitlines()
    assert len(out.splitlines()) == 4 * 2001


def test_nothing_that_a_rank_wrote_before_it_was_killed_is_lost(launch):
    run = launch(*program("killed_after_lines.py"))
    code, out, _ = run.finish()
    assert code == 137
    assert run.log(0) == "".join(f"line {n}\n" for n in range(3000))
    assert len(out.splitlines()) == 3000


def test_only_selected_ranks_are_shown_and_all_are_logged(launch):
    run = launch("--nproc-per-node", "3", "--local_ranks_filter", "0,2", "--log-dir", "kept/here", *sh("echo hello"))
    assert sorted(run.finish()[1].splitlines()) == ["[0] hello", "[2] hello"]
    assert (run.cwd / "kept" / "here" / "rank-1.log").read_text() == "hello\n"


def test_only_the_progress_bar_of_the_chief_is_shown(launch):
    bar = r"printf 'begin\n'; for n in 1 2 3; do printf '\b\b\b\r%d/3 bar' $n; done; printf '\r3/3 done\nend\r\n'"
    run = launch("--nproc-per-node", "2", *sh(bar))
    out = run.finish()[1].splitlines()
    assert [line for line in out if line.startswith("[0]")] == ["[0] begin", "[0] 3/3 done", "[0] end"]
    assert [line for line in out if line.startswith("[1]")] == ["[1] begin", "[1] end"]
    (path,) = run.cwd.rglob("rank-1.log")
    assert path.read_bytes().count(b"\r") == 5


def test_on_a_terminal_ranks_have_colors_and_the_progress_bar_moves(launch):
    ours, theirs = pty.openpty()
    step = r"printf '\r%d/3 bar' $n; while [ ! -e seen-$n ]; do sleep 0.01; done"
    run = launch(
        "--nproc-per-node", "2", *sh(f"[ $RANK = 1 ] && exec echo other; for n in 1 2 3; do {step}; done; echo"), stdout=theirs
    )
    seen = ""
    for n in (1, 2, 3):
        while f"\r\x1b[K\x1b[36m[0]\x1b[0m {n}/3 bar" not in seen:
            seen += os.read(ours, 1 << 16).decode()
        (run.cwd / f"seen-{n}").touch()
    os.close(theirs)
    assert run.process.wait(PATIENCE) == 0
    with contextlib.suppress(OSError):  # like at the end of a terminal
        while True:
            seen += os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\x1b[32m[1]\x1b[0m other" in seen


@pytest.mark.parametrize("reads", [True, False])
def test_a_flood_from_8_ranks_is_kept_and_does_not_wait_for_the_terminal(launch, reads):
    """Each rank writes 20 MB; without a reader, lines for the terminal are left out, and a message says so."""
    run = launch("--nproc-per-node", "8", *program("flood.py", 200), stdout=subprocess.PIPE)
    if not reads:
        wait_for(lambda: len(list(run.cwd.glob("took-*"))) == 8, "the ranks, which must not wait for a reader")
    code, out, _ = run.finish()
    assert code == 0
    for rank in range(8):
        (path,) = run.cwd.rglob(f"rank-{rank}.log")
        assert path.stat().st_size == 200 * 100_000
    assert all(re.fullmatch(r"\[\d\] \d{6} z{92}|\[launch\] \d+ lines are only in the logs.*", line) for line in out.splitlines())
    assert reads or "lines are only in the logs" in out


def test_a_full_log_does_not_end_the_run(launch, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-1.log").write_bytes(bytes(1 << 20))
    limit = ("bash", "-c", 'ulimit -f 1024; exec "$@"', "bash")  # 1 MiB
    command = sh("for n in 1 2 3; do echo $n; sleep 0.1; done")
    code, out, err = launch("--nproc-per-node", "2", "--log-dir", "logs", *command, prefix=limit).finish()
    assert code == 0
    assert sorted(out.splitlines()) == [f"[{rank}] {n}" for rank in range(2) for n in (1, 2, 3)]
    assert err.count("File too large") == 1 and "rank-1.log is incomplete" in err
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "1\n2\n3\n"


@pytest.mark.parametrize("exists", [True, False])
def test_a_log_is_never_written_through_a_link(launch, tmp_path, exists):
    """Another user may create a link in a directory that both can write to."""
    victim = tmp_path / "victim"
    if exists:
        victim.write_text("of another program")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-0.log").symlink_to(victim)
    code, out, err = launch("--log-dir", "logs", *sh("echo there")).finish()
    assert (code, out) == (0, "[0] there\n")
    assert "logs/rank-0.log is incomplete: it is a symbolic link. The run continues." in err
    assert victim.read_text() == "of another program" if exists else not victim.exists()


def test_a_log_that_cannot_be_opened_is_named_with_the_cause(launch, tmp_path):
    os.mkfifo(tmp_path / "rank-0.log")
    code, out, err = launch("--log-dir", tmp_path, *sh("echo there")).finish()
    assert code == 0 and "there" in out
    assert f"{tmp_path}/rank-0.log is incomplete: No such device or address. The run continues." in err


def test_a_closed_pipe_on_stdout_does_not_end_the_run(launch):
    run = launch(*sh("for n in 1 2 3 4 5; do echo $n; sleep 0.1; done; touch done"))
    run.process.stdout.readline()
    run.process.stdout.close()
    assert run.process.wait(PATIENCE) == 0
    assert run.log(0) == "1\n2\n3\n4\n5\n" and (run.cwd / "done").exists()


@pytest.mark.slow
def test_64_ranks_start_on_any_machine(launch):
    run = launch("--nproc-per-node", "64", *sh("echo $RANK of $WORLD_SIZE"))
    code, out, _ = run.finish()
    assert code == 0
    assert sorted(out.splitlines()) == sorted(f"[{rank}] {rank} of 64" for rank in range(64))
    assert run.none_left()
