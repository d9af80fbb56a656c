"""Numbers of operations, counted by hand, and the curves of utilization, memory and single losses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small import BATCH, BATCHES, arrays, fit, small_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, InputError
from callbacks.curves.device_usage import peak_tflops
from callbacks.curves.flops import graph_flops, model_flops_of


def forward_flops(model, *shape, dtype="float32"):
    function = tf.function(lambda x: model(x, training=False), autograph=False)
    return graph_flops(function.get_concrete_function(tf.TensorSpec(shape, dtype)).graph)


def layers(*of, shape):
    return keras.Sequential([keras.Input(shape), *of])


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (keras.layers.Dense(7), [5], 2 * 5 * 7),
        (keras.layers.Dense(7), [3, 5], 2 * 3 * 5 * 7),
        (keras.layers.EinsumDense("abc,cd->abd", [None, 7]), [3, 5], 2 * 3 * 5 * 7),
        (keras.layers.Conv2D(4, 3, padding="same"), [8, 8, 2], 2 * 8 * 8 * 4 * 3 * 3 * 2),
        (keras.layers.DepthwiseConv2D(3, padding="same"), [8, 8, 2], 2 * 8 * 8 * 2 * 3 * 3),
        (keras.layers.Conv2DTranspose(4, 3, strides=2, padding="same"), [8, 8, 2], 2 * 8 * 8 * 2 * 3 * 3 * 4),
        (keras.layers.Conv2D(4, 3, groups=2), [8, 8, 2], None),  # a custom function
        (keras.layers.LSTM(4), [3, 5], None),  # a loop
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_operations_of_a_layer(layer, shape, expected):
    assert forward_flops(layers(layer, shape=shape), 1, *shape) == expected


def test_attention_counts_projections_and_both_products():
    tokens, width, heads = 6, 8, 2
    x = keras.Input([tokens, width])
    model = keras.Model(x, keras.layers.MultiHeadAttention(heads, width // heads)(x, x))
    assert forward_flops(model, 1, tokens, width) == 2 * (4 * tokens * width * width + 2 * tokens * tokens * width)


def test_resnet_50_has_the_number_of_operations_in_its_paper():
    model = keras.applications.ResNet50(weights=None)
    assert forward_flops(model, 1, 224, 224, 3) / 2 == pytest.approx(3.86e9, rel=0.01)  # multiplications with additions


def curve(directory, tag):
    reader = EventAccumulator(str(directory / "batches")).Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def test_utilization_is_what_the_model_computes_for_the_samples_that_pass(tmp_path):
    model = small_model()
    fit(model, GlobalStepTensorBoard(tmp_path, update_freq=5, write_graph=False, peak_tflops=1e-9))
    assert model_flops_of(model).per_sample() == 3 * 2 * 6
    found, speed = curve(tmp_path, "device/model_flops_utilization"), curve(tmp_path, "throughput/samples_per_second_per_replica")
    assert [step for step, _ in found] == [5, 10]
    assert [value for _, value in found] == pytest.approx([36 * value / 1e3 for _, value in speed], rel=1e-5)
    assert all(0.01 < value < 1000 for _, value in curve(tmp_path, "host/memory_gigabytes"))


@pytest.mark.parametrize(
    "device, dtype, peak",
    [
        ("NVIDIA H200", "bfloat16", 989),
        ("NVIDIA H100 80GB HBM3", "float32", 494),
        ("NVIDIA H100 PCIe", "float16", 756),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("NVIDIA GeForce GTX 1080", "float32", None),
    ],
)
def test_peaks_by_the_device_name_of_tensorflow(device, dtype, peak):
    assert peak_tflops(device, dtype) == peak


def test_a_peak_is_above_zero(tmp_path):
    with pytest.raises(InputError, match=r"peak_tflops.*Received: 0"):
        GlobalStepTensorBoard(tmp_path, peak_tflops=0)


def test_the_loss_of_a_batch_alone_is_that_of_keras(tmp_path):
    """Also after a restart in the middle of an epoch."""
    alone, inputs = [], arrays()
    model = small_model()
    for _ in range(2):
        for i in range(BATCHES):
            x, y = (part[i * BATCH : (i + 1) * BATCH] for part in inputs)
            alone.append(float(model.train_on_batch(x, y)))
            model.reset_metrics()
    for epochs, stop in ((1, 7), (2, None)):
        keras.utils.set_random_seed(0)
        board = GlobalStepTensorBoard(tmp_path / "events", update_freq=1, write_graph=False)
        checkpoint = GlobalStepCheckpoint(tmp_path / "{batch}.weights.h5", save_freq=1, resume=True)
        fit(small_model(), board, checkpoint, epochs=epochs, shuffle=False)
        if stop:
            for path in tmp_path.glob("*.weights.h5"):
                if int(path.name.partition(".")[0]) > stop:
                    path.unlink()
    found = curve(tmp_path / "events", "batch_loss_alone")
    assert [step for step, _ in found] == list(range(1, 2 * BATCHES + 1))
    np.testing.assert_allclose([value for _, value in found], alone, rtol=1e-4)
