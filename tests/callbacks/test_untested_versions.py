"""An untested version causes one warning at import; missing private names cost only time."""

import json
import tomllib

import pytest
from processes import ROOT, run_program

from callbacks import versions


@pytest.mark.parametrize("tensorflow, keras", [("2.17.0", "3.5.0"), ("2.21.0", "3.15.1"), ("2.19.1", "3.10.0")])
def test_a_tested_version_causes_no_warning(caplog, tensorflow, keras):
    versions.warn_if_untested(tensorflow, keras)
    assert not caplog.messages


@pytest.mark.parametrize(
    "tensorflow, keras", [("2.16.2", "3.5.0"), ("2.22.0-rc1", "3.15.1"), ("2.21.0", "3.16.0.dev0"), ("2.21.0", "4.0")]
)
def test_an_untested_version_is_named_with_the_tested_ones(caplog, tensorflow, keras):
    versions.warn_if_untested(tensorflow, keras)
    (line,) = caplog.messages
    assert line == (
        f"callbacks: TensorFlow {tensorflow} with Keras {keras} is not tested. "
        "Tested: TensorFlow 2.17 to 2.21 with Keras 3.5 to 3.15, in pairs of their time."
    )


@pytest.mark.slow
def test_an_import_warns_once():
    done = run_program("import_under_versions.py", "2.99.0", "3.99.0")
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "not tested" in line or "callbacks" in line] == [
        "callbacks: TensorFlow 2.99.0 with Keras 3.99.0 is not tested. "
        "Tested: TensorFlow 2.17 to 2.21 with Keras 3.5 to 3.15, in pairs of their time."
    ]


def test_the_range_equals_that_of_the_package():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, ((major, first), (_, last)) in {"tensorflow": versions.TENSORFLOW, "keras": versions.KERAS}.items():
        assert f"{name}>={major}.{first},<{major}.{last + 1}" in wanted


@pytest.mark.slow
def test_missing_private_names_cost_only_time(tmp_path):
    done = run_program("without_private_names.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}
