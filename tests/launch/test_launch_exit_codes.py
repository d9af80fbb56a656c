"""One table defines the exit codes; code that cannot import it agrees with it."""

import io
import re
import tokenize

import pytest
from launching import ROOT, program, sh

from callbacks import preemption
from launch import exit_codes
from launch.command_line.arguments import parse

TABLE = ROOT / "launch" / "exit_codes.py"
OF_SIGNALS = {exit_codes.REQUEUE, exit_codes.INTERRUPTED, exit_codes.TERMINATED}


def test_no_other_code_contains_the_numbers():
    found = []
    for path in [path for folder in ("callbacks", "launch", "recipes") for path in (ROOT / folder).rglob("*.py")]:
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        numbers = [token for token in tokens if token.type == tokenize.NUMBER and token.string in map(str, OF_SIGNALS)]
        found += [path] if numbers else []
    assert found == [TABLE]


def test_the_batch_script_repeats_three_codes_in_one_line():
    script = (ROOT / "slurm" / "job.sh").read_text()
    named = dict(re.findall(r"exit_(\w+)=(\d+)", script))
    assert named == {"bad_input": "2", "requeue": "75", "terminated": "143"}
    assert len(re.findall(r"\b(?:75|130|143)\b", script)) == 2


def test_callbacks_which_import_nothing_of_the_launcher_agree_with_the_table():
    assert preemption.CODES == exit_codes.AFTER_SIGNAL


def test_the_docstring_and_the_help_name_every_code(capsys):
    codes = {value for name, value in vars(exit_codes).items() if isinstance(value, int) and name.isupper()}
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", exit_codes.__doc__, re.MULTILINE)}
    assert documented == codes
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    shown = capsys.readouterr().out
    assert all(re.search(rf"\b{code}\b", shown) for code in OF_SIGNALS)


VICTIM = exit_codes.ANOTHER_RANK_FAILED


def test_the_rank_that_failed_first_is_reported_even_if_its_victim_exits_first(launch):
    code, _, err = launch("--nproc-per-node", "2", *program("victim_first.py")).finish()
    assert code == 1 and err.startswith("rank 1 on ") and "    ValueError: the cause" in err


def test_where_all_ranks_only_lost_each_other_the_first_one_is_reported(launch):
    first = "echo $$ > new; mv new first"
    then = "while [ ! -e first ] || kill -0 $(cat first); do sleep 0.01; done"  # until the agent has noticed the end of rank 1
    run = launch("--nproc-per-node", "2", *sh(f"if [ $RANK = 1 ]; then {first}; else {then}; fi 2>/dev/null; exit {VICTIM}"))
    code, _, err = run.finish()
    assert code == VICTIM and err.startswith("rank 1 on ")


def test_a_lost_rank_is_a_failure_that_restarts_the_run(launch):
    run = launch("--max-restarts", "1", *sh(f"[ $LAUNCH_RESTARTS = 1 ] || exit {VICTIM}"))
    assert run.finish()[0] == 0
