"""What XLA compiles of a training.

Keras compiles its train step as a whole, or not at all: not over several replicas, whose collectives XLA cannot compile, and not
under TensorFlow's deterministic operations. Here it compiles forward and backward of each replica. Collectives, clipping,
accumulation, optimizer and metrics stay outside. The gradients are those without XLA, to rounding, but for Dropout: its seeds advance
as without XLA, and XLA makes other numbers of the same random bits, of all types but float16.

The private names are those in Keras's own train step, in Keras 3.5 to 3.15.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from callbacks.fit_hooks import fit_hooks_of
from callbacks.keras_private import layers_of
from recipes.common.distribution.replicas import Distribution

ON_GPUS = "not measured on a GPU"
_MAX_POOLING = (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)


class JitCompile(keras.callbacks.Callback):
    """Has XLA compile what `--jit-compile` asks for. It has to stand before callbacks that ask for `model.jit_compile`.

    Args:
        choice: `auto`, `on` or `off`.
        distribution: the replicas.

    Attributes:
        compiles: what XLA compiles, or why nothing, for a reader; empty where there is nothing to say.
    """

    def __init__(self, choice: str, distribution: Distribution):
        super().__init__()
        self.compiles = ""
        self._choice = choice
        self._is_alone = distribution.strategy is None and distribution.ranks is None
        self._on_gpus = distribution.devices[0].startswith("/gpu")

    def on_train_begin(self, logs=None):
        whole = self._compiles_whole_step()
        obstacle = _obstacle(self.model) if self._choice == "on" and not whole else ""
        in_part = self._choice == "on" and not whole and not obstacle
        fit_hooks_of(self.model).train_with(compiled_train_step(self.model) if in_part else None)
        if whole:
            self.compiles = "the train step"
        elif in_part:
            self.compiles = "forward and backward on each replica" + (f" ({ON_GPUS})" if self._on_gpus else "")
        elif obstacle:
            self.compiles = f"off: {obstacle}"
        elif self._choice == "auto" and self._on_gpus and not self._is_alone:
            self.compiles = f"off on several replicas ({ON_GPUS}); --jit-compile on switches it on"
        else:
            self.compiles = ""

    def _compiles_whole_step(self) -> bool:
        """Has Keras compile the train step of the only replica, or not; returns whether it does."""
        model, before = self.model, self.model.jit_compile
        with warnings.catch_warnings(action="ignore"):  # of Keras, where it cannot
            model.jit_compile = self._is_alone and (self._choice == "on" or (self._choice == "auto" and before))
        if model.jit_compile != before:
            fit_hooks_of(model).trace_again()
        return model.jit_compile


def compiled_train_step(model: keras.Model) -> Callable[[Any], dict[str, Any]]:
    """Returns a train step that does what Keras's own does, with forward and backward compiled by XLA.

    Args:
        model: a model that is built and has Keras's train step. XLA has to know all its operations.
    """

    def forward_and_backward(x, y, sample_weight):
        with tf.GradientTape() as tape:
            y_pred = model(x, training=True) if model._call_has_training_arg else model(x)
            loss = model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_weights)
        # Dense here already: the optimizers of a `Distribution` make them dense, and XLA can do it on the way.
        return y_pred, loss, [grad if grad is None else tf.convert_to_tensor(grad) for grad in gradients]

    def train_step(data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        # Made in each trace: a replica reads variables of its own.
        compiled = tf.function(forward_and_backward, jit_compile=True, autograph=False)
        y_pred, loss, gradients = compiled(x, y, sample_weight)
        samples = tf.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]
        model._loss_tracker.update_state(_unscaled(loss), sample_weight=samples)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
        return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    return train_step


def _unscaled(loss: tf.Tensor) -> tf.Tensor:
    """The loss that is logged: older versions of Keras log it divided by the number of replicas."""
    unscale = getattr(importlib.import_module("keras.src.losses.loss"), "unscale_loss_for_distribution", None)
    return unscale(loss) if unscale else loss


def _obstacle(model: keras.Model) -> str:
    """Why forward and backward of a model cannot be compiled; empty if they can."""
    if not fit_hooks_of(model).has_keras_train_step:
        return f"{type(model).__name__} has a train_step of its own, and only Keras's can be compiled in part"
    if model.run_eagerly:
        return "the model runs eagerly"
    deterministic = importlib.import_module("tensorflow.python.framework.config").is_op_determinism_enabled()
    for layer in layers_of(model):
        if deterministic and isinstance(layer, _MAX_POOLING):
            return f"XLA has no deterministic gradient of {layer.path}; --no-deterministic lets it be compiled"
        if not layer.supports_jit:
            return f"XLA cannot compile {layer.path}"
        if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized:
            return f"{layer.path} sums over the replicas in its forward pass"
    return ""
