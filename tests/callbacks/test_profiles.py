"""A profile covers the global batches and ranks that were requested."""

import pytest
from small import fit, small_model

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, InputError


@pytest.mark.parametrize("batches", [4, (4, 6)])
def test_a_profile_covers_the_requested_global_batches(tmp_path, batches):
    for epochs, begins in ((1, True), (2, False), (3, False)):
        board = GlobalStepTensorBoard(tmp_path / "events", write_graph=False, profile_batch=batches)
        fit(small_model(), GlobalStepCheckpoint(tmp_path / "{batch}.weights.h5", resume=True), board, batches=3, epochs=epochs)
        profiles = list((tmp_path / "events").rglob("*.xplane.pb"))
        assert len(profiles) == (0 if begins else 1)
    name = "batch_00004_to_00004" if batches == 4 else "batch_00004_to_00006"
    assert profiles == [tmp_path / "events/batches/plugins/profile" / name / "rank-0.xplane.pb"]
    assert profiles[0].stat().st_size > 1000


@pytest.mark.parametrize("wrong", [(1,), (0, -1), ("0",)])
def test_a_rank_that_the_run_does_not_have_cannot_be_profiled(tmp_path, wrong):
    board = GlobalStepTensorBoard(tmp_path, profile_batch=2, profile_ranks=wrong)
    with pytest.raises(InputError, match=r"profile_ranks must be ranks of this run, 0 to 0.*Received"):
        fit(small_model(), board)
    assert list(tmp_path.iterdir()) == []
