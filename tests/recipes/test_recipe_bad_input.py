"""Bad input ends with one clear line and exit code 2, and does not touch saved files."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from compare import assert_same_weights
from processes import run_program

from callbacks import InputError
from recipes.common import distribution
from recipes.mnist import load, parse_args


def refused(argv):
    """Returns the errors for wrong flags."""
    with pytest.raises(InputError) as raised:
        parse_args([str(word) for word in argv])
    return str(raised.value)


def npz(path, **changes):
    images, labels = np.zeros((4, 28, 28), "uint8"), np.arange(4)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


@pytest.mark.parametrize("template", ["model_{batch}.h5", "model_{batch}", "model_{batch}.weights.h5.bak"])
def test_the_error_for_a_wrong_suffix_names_the_valid_ones(template):
    said = refused(["--checkpoint", template])
    assert ".weights.h5" in said and ".keras" in said and template in said


@pytest.mark.parametrize("template", ["a_{batch.weights.h5", "a_{batch.real}.weights.h5", "a_{0}.keras", "a_{batch:q}.keras"])
def test_a_template_that_is_not_a_plain_file_name_is_refused(template):
    assert template in refused(["--checkpoint", template])


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--global-batch-size", "0"], "above 0"),
        (["--epochs", "-1"], "above 0"),
        (["--learning-rate", "0"], "above 0"),
        (["--learning-rate", "nan"], "above 0"),
        (["--save-freq", "often"], "--save-freq"),
        (["--strategy", "sideways"], "mirrored"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--seed", "-1"], "--seed: must not be below 0"),
        (["--seed", "4294967296"], "--seed: must be at most 4294967295"),
        (["--epochs", "9" * 30], "must be at most 2147483647"),
        (["--virtual-devices", "1000000000"], "must be at most 256"),
        (["--learning-rate", "1e300"], "must be at most"),
        (["--warmup-epochs", "1e30"], "must be at most"),
        (["--workdir", "runs/\udcff"], r"--workdir must be UTF-8. Received: b'runs/\xff'"),
        (["--data", "\udcff.npz"], "--data must be UTF-8"),
    ],
)
def test_a_flag_out_of_range_is_one_line(flags, words):
    said = refused(flags)
    assert words in said
    assert "\n" not in said


def test_a_global_batch_that_the_replicas_cannot_share_is_refused_with_the_nearest_sizes():
    with pytest.raises(InputError, match=r"66.*4 replicas.*Use 64 or 68"):
        distribution.check_global_batch(66, 4)
    distribution.check_global_batch(64, 4)


def test_virtual_devices_are_refused_on_a_machine_with_gpus(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"] if kind == "GPU" else ["cpu"])
    with pytest.raises(InputError, match="this machine has GPUs"):
        distribution.get_distribution(parse_args(["--virtual-devices", "2"]))


def test_the_summary_names_the_gpus(monkeypatch):
    config = tf.config
    monkeypatch.setattr(config, "get_visible_devices", lambda kind: ["first", "second"] if kind == "GPU" else [])
    monkeypatch.setattr(config.experimental, "get_device_details", lambda gpu: {"device_name": f"NVIDIA {gpu}"})
    used = distribution.Distribution("mirrored", ("/gpu:0", "/gpu:1"))
    assert used.hardware == "/gpu:0 (NVIDIA first), /gpu:1 (NVIDIA second)"


def test_data_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"There is no file.*nowhere"):
        load(str(tmp_path / "nowhere.npz"))


def test_a_fifo_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="fifo is not a regular file"):
        load(str(tmp_path / "fifo"))
    assert "fifo is not a regular file" in refused(["--workdir", tmp_path / "run", "--resume", tmp_path / "fifo"])


def test_a_file_that_is_not_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(InputError, match=r"text\.npz is not an npz file with x_train"):
        load(str(tmp_path / "text.npz"))


@pytest.mark.parametrize(
    "changes",
    [
        {"x_train": np.zeros((4, 784), "uint8")},
        {"x_train": np.zeros((4, 0, 28), "uint8"), "x_test": np.zeros((4, 0, 28), "uint8")},
        {"x_train": np.zeros((4, 1, 1), "uint8"), "x_test": np.zeros((4, 1, 1), "uint8")},
        {"x_train": np.zeros((4, 28, 28), "float32")},
        {"y_train": np.arange(3)},
        {"y_train": np.array([0, 1, 2, 10])},
        {"x_test": np.zeros((4, 8, 8), "uint8")},
        {"y_test": np.zeros((4, 10))},
        {"x_test": None},
        {"y_train": np.array([{}, {}, {}, {}], dtype=object)},
    ],
)
def test_an_npz_file_with_another_layout_is_refused(tmp_path, changes):
    with pytest.raises(InputError, match="x_train, x_test uint8"):
        load(npz(tmp_path / "data.npz", **changes))


def test_an_npz_file_with_the_right_layout_is_read(tmp_path):
    train, validation = load(npz(tmp_path / "data.npz", x_train=np.full((4, 28, 28), 255, "uint8")))
    assert train.x.shape == (4, 28, 28, 1) and train.x.dtype == "float32" and train.x.max() == 1
    assert validation.y.dtype == "int64"


@pytest.mark.slow
def test_a_user_error_ends_with_one_line_and_code_2(recipe, tmp_path):
    """One real run, then errors that only a separate process shows."""
    workdir = tmp_path / "run"
    flags = ["--epochs", 1, "--model", "mlp", "--workdir", workdir]
    assert recipe(*flags).finish()[0] == 0
    before = {path: path.read_bytes() for path in (workdir / "checkpoints").iterdir()}
    (tmp_path / "file").write_text("")
    wrong = {
        "--model cannot change when a run resumes. Received: cnn; the checkpoint was saved with mlp.": [
            "--epochs",
            1,
            "--model",
            "cnn",
            "--workdir",
            workdir,
        ],
        "--resume never": [*flags, "--resume", "never"],
        # in a separate directory, because two runs on one template would be refused
        "Cannot resume from": ["--workdir", tmp_path / "other", "--resume", tmp_path / "none.weights.h5"],
        "needs a template with a counter": [*flags, "--checkpoint", tmp_path / "last.keras", "--keep-last", 2],
        "Use 63 or 66": [*flags, "--strategy", "mirrored", "--virtual-devices", 3],
        "{batch} {epoch} {samples} {step} {replicas} {accuracy} {loss} {val_accuracy} {val_loss}": [
            *flags,
            "--checkpoint",
            tmp_path / "unknown" / "a_{bach}.weights.h5",
        ],
        "cannot be written to": ["--workdir", tmp_path / "file" / "run"],
        "trains on one device": [*flags, "--strategy", "single", "--virtual-devices", 2],
        "There is no file": [*flags, "--data", tmp_path / "none.npz"],
    }
    lines = [json.dumps([str(flag) for flag in argv]) for argv in wrong.values()]
    done = run_program("refused_runs.py", input="\n".join(lines))
    assert done.returncode == 0, done.stderr
    for words, answer in zip(wrong, done.stdout.splitlines(), strict=True):
        code, out, errors = json.loads(answer)
        assert code == 2, (words, out, errors)
        assert words in errors and errors.startswith("error: ") and errors.count("\n") == 1, (words, errors)
    assert {path: path.read_bytes() for path in (workdir / "checkpoints").iterdir()} == before


@pytest.mark.slow
def test_a_run_does_not_resume_from_an_older_checkpoint_among_later_ones(recipe, tmp_path):
    flags = ["--epochs", 2, "--model", "mlp", "--save-freq", "epoch", "--workdir", tmp_path]
    assert recipe(*flags).finish()[0] == 0
    older = tmp_path / "checkpoints" / "model_batch_at_00022.weights.h5"
    with pytest.raises(InputError, match=r"would overwrite later checkpoints.*00044.*another --workdir"):
        parse_args(["--workdir", str(tmp_path), "--resume", str(older)])
    elsewhere = parse_args(["--workdir", str(tmp_path / "other"), "--resume", str(older)])
    assert elsewhere.resume_from == os.fspath(older)


@pytest.mark.slow
def test_keras_settings_of_the_user_do_not_affect_recipes(recipe, tmp_path):
    (tmp_path / "keras.json").write_text(
        '{"backend": "jax", "floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first"}'
    )
    flags = ["--epochs", 1, "--data", "digits", "--workdir"]
    of_user = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax"}
    other = recipe(*flags, tmp_path / "other", env=of_user, imports=True)
    plain = recipe(*flags, tmp_path / "plain")
    results = [process.finish() for process in (other, plain)]
    assert [code for code, _, _ in results] == [0, 0], results
    assert_same_weights(*(tmp_path / run / "checkpoints" / "model_batch_at_00022.weights.h5" for run in ("other", "plain")))
