"""File systems without locks, like some of NFS, Lustre and BeeGFS: `no_locks.c` makes each lock fail."""

import shutil

import numpy as np
import pytest
from compare import arrays
from processes import PROGRAM_ENVIRONMENT, run_program
from small import fit, names, small_model

from callbacks import GlobalStepCheckpoint, latest_checkpoint

SUFFIXES = (".weights.h5", ".keras")


@pytest.mark.slow
def test_on_file_systems_without_locks_saving_resuming_listing_and_verifying_work(compiled, tmp_path):
    """`flock` fails like on NFS, Lustre and BeeGFS, where HDF5 opens no file."""
    whole, runs = tmp_path / "whole", []
    fit(
        small_model(), *(GlobalStepCheckpoint(f"{whole}/b{{batch:02d}}{suffix}", save_freq=5) for suffix in SUFFIXES), shuffle=False
    )
    for number in (37, 95, 524):
        for suffix in SUFFIXES:
            run = tmp_path / f"{number}{suffix}"
            run.mkdir()
            shutil.copy(whole / f"b05{suffix}", run)
            runs.append((run, number, suffix))
    environment = {**PROGRAM_ENVIRONMENT, "LD_PRELOAD": str(compiled("no_locks"))}
    done = run_program("without_locks.py", *(",".join(map(str, run)) for run in runs), env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for run, _, suffix in runs:
        assert names(run) == [f"b05{suffix}", f"b10{suffix}"]
        assert latest_checkpoint(run).batch == 10
        found, expected = arrays(run / f"b10{suffix}"), arrays(whole / f"b10{suffix}")
        assert found.keys() == expected.keys()
        for name, (dtype, _, content) in found.items():
            one, other = np.frombuffer(content, dtype), np.frombuffer(expected[name][2], dtype)
            np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=name)
    verified = [line for line in done.stdout.splitlines() if line.startswith("2 files")]
    assert len(verified) == 6 and not any("damaged" in line or "corrupt" in line for line in verified)
