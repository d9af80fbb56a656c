"""Output of the launcher never harms the run: the terminal may be closed, full, stopped, or not read."""

import contextlib
import os
import signal

import pytest
from launching import PATIENCE, python, sh
from processes import run_program

from launch import console

SAVES = (
    'trap "sleep 0.2; touch saved-$RANK; exit 143" TERM; setsid -f sleep 1000; echo $$ > pid-$RANK; while :; do sleep 0.05; done'
)


@contextlib.contextmanager
def no_reader():
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextlib.contextmanager
def stands_still():
    """A full pipe whose reader does not read."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


@contextlib.contextmanager
def full_disk():
    with open("/dev/full", "wb", buffering=0) as file:
        yield file.fileno()


TERMINALS = {"without a reader": no_reader, "on a full disk": full_disk, "closed": None}


@contextlib.contextmanager
def started(launch, terminal, *command):
    """Starts a launcher with this standard output and standard error."""
    if terminal == "closed":
        yield launch("--nproc-per-node", 2, *command, prefix=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"))
    else:
        with TERMINALS[terminal]() as descriptor:
            yield launch("--nproc-per-node", 2, *command, stdout=descriptor, stderr=descriptor)


@pytest.mark.parametrize("terminal", TERMINALS)
def test_ranks_save_and_end_without_a_usable_terminal(launch, terminal):
    with started(launch, terminal, *sh(SAVES)) as run:
        assert run.pid("pid-0") and run.pid("pid-1")
        os.kill(run.process.pid, signal.SIGKILL)  # which the agent reports
        assert run.none_left()
    assert all((run.cwd / f"saved-{rank}").exists() for rank in range(2))


@pytest.mark.parametrize("terminal", TERMINALS)
def test_the_exit_code_is_right_without_a_usable_terminal(launch, terminal):
    fails = "echo words; [ $RANK = 1 ] || exec sleep 1000; setsid -f sleep 1000; exit 7"
    with started(launch, terminal, "--max-restarts", 1, *sh(fails)) as run:
        assert run.process.wait(PATIENCE) == 7
        assert run.none_left()


@pytest.mark.parametrize("flags", [["--help"], ["--dry-run", "x.py"], ["--nproc-per-node", "0"]])
def test_output_that_nobody_reads_does_not_change_the_exit_code(launch, tmp_path, flags):
    (tmp_path / "x.py").touch()
    with no_reader() as descriptor:
        assert launch(*flags, stdout=descriptor, stderr=descriptor).process.wait(PATIENCE) == (2 if "0" in flags else 0)


def test_the_launcher_waits_only_once_for_a_blocked_terminal(monkeypatch):
    waited = []

    class Poll:
        def register(self, descriptor, events):
            pass

        def poll(self, milliseconds):
            waited.append(milliseconds)
            return []

    monkeypatch.setattr(console.select, "poll", Poll)
    monkeypatch.setattr(console, "_stuck", set())
    for _ in range(3):
        console.say("something")
    assert waited == [5000, 0, 0]


def test_writing_to_a_full_pipe_does_not_raise(monkeypatch):
    monkeypatch.setattr(console, "PATIENCE", 0.001)
    monkeypatch.setattr(console, "_stuck", set())
    with stands_still() as descriptor:
        console.show("something", descriptor)


ATTACK = r"\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m \x1bPq#0\x1b\\ \x1b7\x9b1A\x08\x00\u202eleft\x1b]8;;http://x"


def test_escape_sequences_in_the_last_lines_of_a_rank_do_not_reach_the_terminal(launch):
    run = launch(
        "--local-ranks-filter", "0", *python(f"print('{ATTACK}\\ntail'); raise SystemExit(3)"), env={"PYTHONIOENCODING": "utf8"}
    )
    code, _, err = run.finish()
    assert code == 3
    assert "    red" in err and "    tail" in err
    assert err.isascii() and all(character.isprintable() or character == "\n" for character in err)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nlines", "plain\ttext\nlines"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;never ended\nnext line", "\nnext line"),
        ("\x1b", ""),
        ("\x9b2Jcleared", "cleared"),
        ("bell\x07 back\x08 return\r", "bell back return"),
        ("中 é", "中 é"),
    ],
)
def test_only_text_is_printable(text, shown):
    assert console.printable(text) == shown


def test_closed_standard_descriptors_are_opened_before_a_socket_gets_their_number():
    assert run_program("closed_descriptors.py").returncode == 0
