"""Counts the floating-point operations that training on one sample needs, in the graph of the model.

The count includes the matrix products and convolutions of the forward pass, two operations for each multiplication and addition. It
leaves out everything else (activations, norms, embedding lookups), as is usual. Attention counts in full, causal or not. Training
needs three times as many, since the backward pass computes gradients of inputs and of weights [1, 2]. Operations that are repeated
to save memory do not count again, so the result belongs to the model and not to the implementation.

[1] Kaplan et al. 2020, section 2.1, https://arxiv.org/abs/2001.08361
[2] Chowdhery et al. 2022 (PaLM), appendix B: model FLOPs utilization, https://arxiv.org/abs/2204.02311
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from callbacks.attached import attach, attached
from callbacks.fit_hooks import fit_hooks_of

FORWARD_AND_BACKWARD = 3
_CALLS = ("While", "StatelessWhile", "If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall")


class ModelFlops:
    """Counts the operations of one model. `model_flops_of(model)` makes it, before the first batch."""

    def __init__(self, model: keras.Model):
        self._model = model
        self._inputs: Any = None
        self._per_sample: float | None = None
        self._is_counted = False
        fit_hooks_of(model).around_train_step(self._note_inputs)

    def per_sample(self) -> float | None:
        """Returns the operations for training on one sample; None before the first batch, or if they cannot be counted.

        They cannot be counted if a shape is unknown, or the graph has loops (recurrent layers) or calls functions (grouped
        convolutions). The first call traces the model once.
        """
        if not self._is_counted and self._inputs is not None:
            self._is_counted = True
            forward = _forward_flops(self._model, self._inputs)
            self._per_sample = None if forward is None else FORWARD_AND_BACKWARD * forward
        return self._per_sample

    def _note_inputs(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        self._inputs = tf.nest.map_structure(lambda each: tf.TensorSpec([1, *each.shape[1:]], each.dtype), inputs)
        return train_step(data)


def model_flops_of(model: keras.Model) -> ModelFlops:
    """Returns the counts of a model, the same object each time."""
    return attached(model, ModelFlops) or attach(model, ModelFlops(model))


def _forward_flops(model: keras.Model, inputs: Any) -> float | None:
    if not all(spec.shape.is_fully_defined() for spec in tf.nest.flatten(inputs)):
        return None
    forward = tf.function(lambda batch: model(batch, training=False), autograph=False)
    return graph_flops(forward.get_concrete_function(inputs).graph)


def graph_flops(graph: tf.Graph) -> float | None:
    """Returns the operations of a graph's matrix products and convolutions; None if a shape is unknown or functions are called."""
    total = 0.0
    for op in graph.get_operations():
        if op.type in _CALLS:
            return None
        if op.type not in _COUNTS:
            continue
        shapes = [tensor.shape for tensor in (*op.inputs, *op.outputs)]
        if not all(shape.is_fully_defined() for shape in shapes):
            return None
        total += 2.0 * _COUNTS[op.type](op, [shape.as_list() for shape in shapes])
    return total


def _matrix_product(op, shapes):
    left, _, result = shapes
    is_transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    return math.prod(result) * left[-2 if is_transposed else -1]


def _einsum(op, shapes):
    """Returns the product of the sizes of all labels."""
    operands = op.get_attr("equation").decode().replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for labels, shape in zip(operands, shapes, strict=False):
        before, dots, after = labels.partition("...")
        named = [*zip(before, shape, strict=False), *zip(reversed(after), reversed(shape), strict=False)]
        if dots:
            named.append(("...", math.prod(shape[len(before) : len(shape) - len(after)])))
        for label, size in named:
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _convolution(op, shapes):
    _, kernel, result = shapes  # [height, width, input channels of a group, output channels]
    return math.prod(result) * math.prod(kernel[:-1])


def _depthwise_convolution(op, shapes):
    _, kernel, result = shapes
    return math.prod(result) * math.prod(kernel[:2])


def _transposed_convolution(op, shapes):
    _, kernel, values, _ = shapes  # each value is spread over a kernel of [height, width, output channels]
    return math.prod(values) * math.prod(kernel[:-1])


_COUNTS: dict[str, Callable[[tf.Operation, list[list[int]]], int]] = {
    "MatMul": _matrix_product,
    "BatchMatMul": _matrix_product,
    "BatchMatMulV2": _matrix_product,
    "BatchMatMulV3": _matrix_product,
    "Einsum": _einsum,
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _depthwise_convolution,
    "Conv2DBackpropInput": _transposed_convolution,
    "Conv3DBackpropInputV2": _transposed_convolution,
}
