"""Stock Keras loads checkpoints in a process that does not import this repository."""

import numpy as np
import pytest
from load_checkpoints import build
from processes import USER_ENVIRONMENT, run_program

from callbacks import GlobalStepCheckpoint

pytestmark = pytest.mark.versions

TEMPLATES = "model-batch-{batch}.weights.h5", "model_batch_at_{batch:05d}.keras"


def trained(directory, template, where):
    """Returns the path of the last checkpoint of a training, and the predictions of its model."""
    with where.scope():
        model = build()
        model.compile("adam", "mse")
    x = np.random.default_rng(0).random((64, 8)).astype("float32")
    model.fit(x, x[:, :3], batch_size=8, epochs=1, verbose=0, callbacks=[GlobalStepCheckpoint(directory / template, save_freq=4)])
    saved = sorted(path.name for path in directory.iterdir())
    assert saved == [template.format(batch=batch) for batch in (4, 8)]
    return directory / saved[1], model.predict(np.ones((1, 8)), verbose=0)


@pytest.mark.slow
def test_each_file_loads_with_stock_keras_in_another_process(tmp_path, strategy):
    cases = [(template, replicas) for template in TEMPLATES for replicas in (1, 2)]
    ends = [trained(tmp_path / str(i), template, strategy(replicas)) for i, (template, replicas) in enumerate(cases)]
    predictions = [tmp_path / f"{i}.npy" for i in range(len(ends))]
    paths = [path for (checkpoint, _), prediction in zip(ends, predictions, strict=True) for path in (checkpoint, prediction)]
    done = run_program("load_checkpoints.py", *paths, cwd="/", env=USER_ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    for (path, expected), prediction in zip(ends, predictions, strict=True):
        np.testing.assert_allclose(np.load(prediction), expected, rtol=1e-5, err_msg=str(path))
