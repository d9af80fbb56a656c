"""Real file systems that are shut down during training (FS_IOC_SHUTDOWN): nothing reaches their disk after that, as in a power cut.

`test_crash_states.py` tests other states after a cut.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from compare import assert_same_weights
from cut_run import BATCHES, EPOCHS, KEPT, TEMPLATE, Cut, train
from processes import PROGRAM_ENVIRONMENT, PROGRAMS

CUTS = 8


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """The last checkpoint of an uninterrupted training."""
    directory = tmp_path_factory.mktemp("uncut")
    assert train(directory)
    return directory / TEMPLATE.format(batch=EPOCHS * BATCHES)


@pytest.mark.slow
@pytest.mark.parametrize("make", [["mkfs.ext4", "-q"], ["mkfs.xfs", "-q"]], ids=["ext4", "xfs"])
def test_a_disk_with_repeated_power_cuts_loses_no_committed_checkpoint(uncut, tmp_path, make):
    image, directory = tmp_path / "image", tmp_path / "disk"
    directory.mkdir()
    with open(image, "wb") as file:
        file.truncate(320 << 20)  # sparse; xfs takes no less than 300 MB
    may_skip = not os.environ.get("CI")
    if may_skip and (os.geteuid() or not shutil.which(make[0])):
        pytest.skip(f"needs root and {make[0]}")
    subprocess.run([*make, image], check=True)
    command = ["unshare", "--mount", sys.executable, PROGRAMS / "cut_run.py", image, directory, str(CUTS), "0"]
    done = subprocess.run(command, env=PROGRAM_ENVIRONMENT, capture_output=True, text=True)
    if may_skip and "mount: " in done.stderr and "CalledProcessError" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{CUTS} cuts, {found['places']}, {found['commits']} commits")
    last = [TEMPLATE.format(batch=EPOCHS * BATCHES - i) for i in reversed(range(KEPT))]
    assert found["left"] == [os.path.basename(each) for each in last]
    assert set(found["places"]) == set(Cut.PLACES)
    assert found["commits"] > CUTS / 2  # how many come before the cuts at any moment depends on the machine
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)
    try:
        assert_same_weights(uncut, directory / last[-1])
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
