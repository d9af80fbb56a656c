"""What XLA compiles of a training: the whole train step, or only the forward and backward pass of each replica.

Keras compiles its train step as a whole or not at all. It leaves it uncompiled on several replicas, because XLA cannot compile
their collectives, and with TensorFlow's deterministic operations. There, only the forward and backward pass is compiled here.
Collectives, clipping, accumulation, optimizer and metrics stay outside. Random numbers are those that an uncompiled training draws.

Sources: Keras's choice is `model_supports_jit` in keras/src/trainers/trainer.py. NVIDIA's ELECTRA trains with XLA and Horovod:
auto-clustering compiles what lies between the collectives,
https://github.com/NVIDIA/DeepLearningExamples/blob/master/TensorFlow2/LanguageModeling/ELECTRA/run_pretraining.py.
"""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from callbacks.model.attached import attach, attached
from callbacks.model.fit_hooks import fit_hooks_of
from callbacks.model.keras_private import forward, is_op_determinism_enabled, layers_of, log_loss
from recipes.common.distribution.replicas import Distribution
from recipes.common.distribution.xla_random import numbers_of_kernels

_NOT_MEASURED = "not measured on a GPU"
_MAX_POOLING = (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)


class JitCompile(keras.callbacks.Callback):
    """Compiles what `--jit-compile` requests. It must come before all callbacks that read `model.jit_compile`.

    Args:
        choice: `auto`, `on` or `off`.
        distribution: the replicas.

    Attributes:
        compiles: what XLA compiles, or why it compiles nothing, as a text for the summary; empty if there is nothing to say.
    """

    def __init__(self, choice: str, distribution: Distribution):
        super().__init__()
        self.compiles = ""
        self._choice = choice
        self._is_single = distribution.strategy is None and distribution.ranks is None
        self._on_gpus = distribution.devices[0].startswith("/gpu")

    def on_train_begin(self, logs=None):
        hooks, train_step = fit_hooks_of(self.model), None
        label = f" ({_NOT_MEASURED})" if self._on_gpus else ""
        compiles_all = self._compile_all()
        obstacle = _obstacle(self.model) if self._choice == "on" and not compiles_all else ""
        if compiles_all:
            train_step = _compiled_steps_of(self.model).whole
            self.compiles = f"the train step{label}"
        elif obstacle:
            self.compiles = f"off: {obstacle}"
        elif self._choice == "on":
            train_step = _compiled_steps_of(self.model).in_part
            self.compiles = f"forward and backward on each replica{label}"
        elif self._choice == "auto" and self._on_gpus and not self._is_single:
            self.compiles = f"off on several replicas ({_NOT_MEASURED}); --jit-compile on turns it on"
        else:
            self.compiles = ""
        hooks.train_with(train_step)

    def _compile_all(self) -> bool:
        """Turns Keras's own compilation on or off; returns whether it is on."""
        model, before = self.model, self.model.jit_compile
        with warnings.catch_warnings(action="ignore"):  # Keras warns if it leaves the compilation off
            model.jit_compile = self._is_single and (self._choice == "on" or (self._choice == "auto" and before))
        if model.jit_compile != before:
            fit_hooks_of(model).trace_again()
        return model.jit_compile


class _CompiledSteps:
    """The compiled train steps of a model. A second `fit` with the same step is neither traced nor compiled again.

    Attributes:
        whole: the model's own train step, for Keras to compile.
        in_part: a train step of which only the forward and backward pass is compiled.
    """

    def __init__(self, model: keras.Model):
        self.whole = numbers_of_kernels()(fit_hooks_of(model).model_train_step)
        self.in_part = compiled_train_step(model)


def _compiled_steps_of(model: keras.Model) -> _CompiledSteps:
    return attached(model, _CompiledSteps) or attach(model, _CompiledSteps(model))


def compiled_train_step(model: keras.Model) -> Callable[[Any], dict[str, Any]]:
    """Returns a train step that does what Keras's own does, but compiles the forward and backward pass with XLA.

    Args:
        model: a built model with Keras's own train step, whose operations XLA supports.
    """

    @numbers_of_kernels()
    def forward_and_backward(x, y, sample_weight):
        with tf.GradientTape() as tape:
            y_pred, loss = forward(model, x, y, sample_weight)
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_weights)
        # The optimizers of a `Distribution` need dense gradients. XLA can merge the conversion with the backward pass.
        return y_pred, loss, [grad if grad is None else tf.convert_to_tensor(grad) for grad in gradients]

    def train_step(data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        # A new function for each trace, because each replica reads variables of its own.
        compiled = tf.function(forward_and_backward, jit_compile=True, autograph=False)
        y_pred, loss, gradients = compiled(x, y, sample_weight)
        log_loss(model, loss, tf.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0])
        model.optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
        return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    return train_step


def _obstacle(model: keras.Model) -> str:
    """Returns why the forward and backward pass of a model cannot be compiled; empty if it can."""
    if not fit_hooks_of(model).has_keras_train_step:
        return f"{type(model).__name__} has its own train_step, and only Keras's can be compiled in part"
    if model.run_eagerly:
        return "the model runs eagerly"
    for layer in layers_of(model):
        if not layer.supports_jit:
            return f"XLA cannot compile {layer.name}"
        if isinstance(layer, _MAX_POOLING) and is_op_determinism_enabled():
            return f"XLA has no deterministic gradient of {layer.name}; --no-deterministic allows it"
        if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized:
            return f"{layer.name} sums over the replicas in its forward pass"
    return ""
