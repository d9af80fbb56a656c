"""Checkpoints are files of Keras: stock Keras loads them in a process that never imports this repository."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from callbacks import GlobalStepCheckpoint

LOAD = """
import sys, warnings
import keras, numpy as np
path, probe = sys.argv[1:]
warnings.simplefilter("error")
if path.endswith(".keras"):
    model = keras.models.load_model(path)
else:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.BatchNormalization(),
                              keras.layers.Dropout(0.5), keras.layers.Dense(3)])
    model.load_weights(path)
assert "callbacks" not in sys.modules
np.save(probe, model.predict(np.ones((1, 8)), verbose=0))
"""


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("template", ["model-batch-{batch}.weights.h5", "model_batch_at_{batch:05d}.keras"])
def test_each_file_loads_with_stock_keras_in_another_process(tmp_path, strategy, template, replicas):
    where = strategy(replicas)
    with where.scope():
        layers = keras.layers
        model = keras.Sequential(
            [keras.Input((8,)), layers.Dense(16), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3)]
        )
        model.compile("adam", "mse")
    x = np.random.default_rng(0).random((64, 8)).astype("float32")
    model.fit(x, x[:, :3], batch_size=8, epochs=1, verbose=0, callbacks=[GlobalStepCheckpoint(tmp_path / template, save_freq=4)])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [template.format(batch=batch) for batch in (4, 8)]
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / names[1]), str(tmp_path / "probe.npy")], check=True, cwd="/")
    np.testing.assert_allclose(np.load(tmp_path / "probe.npy"), model.predict(np.ones((1, 8)), verbose=0), rtol=1e-5)
