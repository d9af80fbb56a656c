"""`--jit-compile`: what XLA compiles, what a line says of it, and restarts of a compiled training."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from bare_ranks import run_ranks
from compare import assert_same_rest, assert_same_weights
from compiled import BATCH, BATCHES, PART, WHOLE, Trained, classes, cpus, random
from processes import copy_until
from token_streams import VOCABULARY, token_file

from launch.exit_codes import BAD_INPUT
from recipes.common.distribution import Distribution
from recipes.common.distribution.compiled_step import JitCompile
from recipes.common.run import run


class Opaque(keras.layers.Layer):
    """Calls Python in its forward pass, which XLA cannot compile."""

    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(lambda x: x, [x], x.dtype), x.shape)


class OwnStep(keras.Model):
    def train_step(self, data):
        return super().train_step(data)


class Unsupported(keras.layers.Dense):
    def __init__(self, units):
        super().__init__(units)
        self.supports_jit = False


def small(*layers, kind=keras.Model):
    x = keras.Input((6,))
    return lambda: (kind(x, keras.Sequential([*layers, keras.layers.Dense(3)])(x)), keras.optimizers.SGD(0.1),
                    keras.losses.SparseCategoricalCrossentropy(from_logits=True), random(6), classes(3))  # fmt: skip


@pytest.mark.parametrize("replicas", [1, 2])
def test_xla_compiles_the_forward_pass(replicas):
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        Trained(small(Opaque()), cpus(replicas), "on")


def test_an_operation_that_xla_cannot_compile_ends_the_run_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        run(lambda: Trained(small(Opaque()), cpus(1), "on"))
    assert ended.value.code == BAD_INPUT
    errors = capsys.readouterr().err
    assert errors.startswith("error: XLA cannot compile this training. Use --jit-compile off. ") and errors.count("\n") == 1


@pytest.mark.parametrize("replicas, choice", [(1, "auto"), (1, "off"), pytest.param(2, "auto", marks=pytest.mark.slow)])
def test_nothing_is_compiled_on_cpus_unless_asked_for(replicas, choice):
    trained = Trained(small(Opaque()), cpus(replicas), choice)
    assert not trained.model.jit_compile and trained.compiles == ""


@pytest.mark.parametrize(
    "make, compiled, why",
    [
        (small(kind=OwnStep), {}, "OwnStep has its own train_step, and only Keras's can be compiled in part"),
        (small(), {"run_eagerly": True}, "the model runs eagerly"),
        (small(Unsupported(2)), {}, "XLA cannot compile unsupported"),
        (small(keras.layers.Reshape([2, 3]), keras.layers.MaxPooling1D(), keras.layers.Flatten()), {}, "no deterministic gradient"),
        (small(keras.layers.BatchNormalization(synchronized=True)), {}, "batch_normalization sums over the replicas"),
    ],
    ids=["own step", "eager", "a layer", "max pooling", "synchronized"],
)
def test_a_line_says_what_is_not_compiled(make, compiled, why):
    trained = Trained(make, cpus(1), "on", **compiled)
    assert trained.compiles.startswith("off: ") and why in trained.compiles
    assert trained.counts.batch == 2 * BATCHES


@pytest.mark.parametrize(
    "where, choice, said",
    [
        (Distribution("horovod", ("/gpu:0",), ranks=object()), "auto", "off on several replicas (not measured on a GPU); "),
        (
            Distribution("horovod", ("/gpu:0",), ranks=object()),
            "on",
            "forward and backward on each replica (not measured on a GPU)",
        ),
        (Distribution("single", ("/gpu:0",)), "auto", ""),
    ],
)
def test_what_was_not_measured_is_labelled(where, choice, said):
    jit_compile = JitCompile(choice, where)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    jit_compile.set_model(model)
    jit_compile.on_train_begin()
    assert jit_compile.compiles.startswith(said) and bool(jit_compile.compiles) == bool(said)


def test_a_second_fit_follows_its_own_flag():
    where = cpus(1)
    model = Trained(small(Opaque()), where, "off").model

    def fit(choice):
        model.fit(random(6), classes(3), batch_size=BATCH, verbose=0, callbacks=[JitCompile(choice, where)])

    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        fit("on")
    fit("off")


class CountsTraces(keras.layers.Layer):
    traces = 0

    def call(self, x):
        self.traces += 1
        return x


@pytest.mark.parametrize("replicas, compiles", [(1, WHOLE), (2, PART)])
def test_a_second_fit_is_neither_traced_nor_compiled_again(no_determinism, replicas, compiles):
    """As in Keras, whose train function lasts until the next `compile`."""
    where, counts = cpus(replicas), CountsTraces()
    model = Trained(small(counts), where, "on").model
    jit_compile, traces = JitCompile("on", where), counts.traces
    model.fit(random(6), classes(3), batch_size=BATCH, verbose=0, callbacks=[jit_compile, *where.callbacks()])
    assert (jit_compile.compiles, counts.traces) == (compiles, traces)


# Restarts


def checkpoint(workdir, batch):
    return workdir / "checkpoints" / f"model_batch_at_{batch:05d}.weights.h5"


@pytest.mark.slow
@pytest.mark.parametrize("replicas, compiles", [(1, WHOLE), (2, PART)])
def test_a_compiled_run_resumes_bit_exactly(recipe, tmp_path, replicas, compiles):
    def train(workdir):
        flags = ["--epochs", 2, "--no-deterministic", "--jit-compile", "on", "--virtual-devices", replicas, "--save-freq", 12]
        code, out, errors = recipe(*flags, "--workdir", workdir).finish()
        assert code == 0, errors
        assert re.search(rf"^jit-compile  {compiles}$", out, re.MULTILINE), out
        return out

    out = resume_to_the_same_end(train, tmp_path, 12, 44)
    assert "batch 12, epoch 1" in out and "trained on   44 batches, 2816 samples, 44 steps" in out, out


@pytest.mark.slow
def test_two_compiled_ranks_resume_bit_exactly(tmp_path):
    """A language model with deterministic operations, from a checkpoint between two of the three batches of an update."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 324)
    data, _ = (token_file(tmp_path / name, tokens) for name in ("train.bin", "val.bin"))
    command = ["-m", "tests.programs.small_networks", "recipes.transformer_lm", "--data", data, "--vocabulary-size", VOCABULARY]
    command += ["--strategy", "multiworker", "--context", 4, "--global-batch-size", 4, "--epochs", 2, "--epochs-per-pass", 1]
    command += ["--sample-tokens", 0, "--save-freq", 4, "--gradient-accumulation-steps", 3, "--keep-last", "all"]
    command += ["--deterministic", "--jit-compile", "on", "--workdir"]

    def train(workdir):
        (code, out, errors), (code_of_other, _, errors_of_other) = run_ranks(2, *command, workdir, engine="multiworker")
        assert (code, code_of_other) == (0, 0), errors + errors_of_other
        assert f"jit-compile  {PART}\n" in out, out
        return out

    out = resume_to_the_same_end(train, tmp_path, 4, 40)
    assert "batch 4, " in out and "trained on   40 batches, 160 samples, 13 steps" in out, out


def resume_to_the_same_end(train, directory, batch, last):
    """Trains to the end, and again from the checkpoint of `batch`, and compares both ends. Returns the output of the second run."""
    whole, resumed = directory / "whole", directory / "resumed"
    train(whole)
    copy_until(whole, resumed, batch)
    out = train(resumed)
    ends = [checkpoint(run, last) for run in (whole, resumed)]
    assert_same_weights(*ends)
    assert_same_rest(*ends)
    return out
