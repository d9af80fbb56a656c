"""ResNet-50 on pictures: augmentation, weight decay, learning rate, corrupt pictures, and exact restarts."""

import base64

import keras
import numpy as np
import pytest
import tensorflow as tf
from bare_ranks import run_ranks
from compare import arrays, assert_same_weights
from processes import USER_ENVIRONMENT, copy_until, run_program

from callbacks import Counts, InputError, counters_of
from recipes.common.data import BadSample, training_data
from recipes.common.data.tfrecords import naming_bad_records, open_tfrecords
from recipes.common.distribution import Distribution
from recipes.common.learning_rate import scaled_learning_rate
from recipes.digits_as_imagenet import example, write
from recipes.imagenet_resnet50 import SCHEDULES, as_in_goyal, augment, build_model, center, crop, parse_args

SINGLE = Distribution("single", ("/cpu:0",))
SIZES = {"image_size": 32, "classes": 10}

# 8 x 8, CMYK, like some of ImageNet's pictures.
CMYK = """
/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAbEhQXFBEbFxYXHhwbIChCKyglJShROj0wQmBVZWRfVV1baniZgWpxkHNbXYW1hpCeo6utq2eAvMm6pseZqKuk/8AAFAgA
CAAIBEMRAE0RAFkRAEsRAP/EABQAAQAAAAAAAAAAAAAAAAAAAAP/xAAWEAADAAAAAAAAAAAAAAAAAAAAFWL/2gAOBEMATQBZAEsAAD8AR7Yj2xHtiPbP/9k=
"""


def picture(seed, height=40, width=50, channels=3):
    """Returns a smooth image, uint8 `[height, width, channels]`."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, channels))
    return tf.cast(tf.image.resize(small, [height, width]), tf.uint8)


def jpeg(seed, **options):
    return tf.io.encode_jpeg(picture(seed, **options)).numpy()


def write_pictures(directory, records, split="train", shards=2):
    directory.mkdir(exist_ok=True)
    for shard in range(shards):
        with tf.io.TFRecordWriter(str(directory / f"{split}-{shard:05d}-of-{shards:05d}")) as file:
            for record in records[shard::shards]:
                file.write(record)


@pytest.fixture
def pictures(tmp_path):
    """A folder of 24 pictures for training and 8 for validation."""
    directory = tmp_path / "pictures"
    write_pictures(directory, [example(jpeg(i), 1 + i % 10) for i in range(24)])
    write_pictures(directory, [example(jpeg(i), 1 + i % 10) for i in range(24, 32)], "validation")
    return directory


def use(record):
    return center(record, None, **SIZES)


def augmented(record, seed):
    return augment(record, seed, **SIZES)


# What is random


def test_the_augmentation_of_a_picture_depends_only_on_its_seed():
    record = example(jpeg(0), 3)
    images = [augmented(record, tf.constant(seed, tf.int64))[0].numpy() for seed in ([0, 0], [0, 1], [1, 0], [0, 0])]
    np.testing.assert_array_equal(images[0], images[3])
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_about_half_of_the_pictures_are_flipped_and_all_crops_are_within_them():
    """The picture has a red gradient from left to right, and a green gradient from top to bottom."""
    red, green = np.meshgrid(np.arange(200), np.arange(100))
    image = np.stack([red, green, np.zeros_like(red)], axis=-1).astype("uint8")
    record = example(tf.io.encode_png(image).numpy(), 1)
    flipped, widths = 0, []
    seeds = tf.data.Dataset.range(100).map(lambda number: augmented(record, tf.stack([number, 0]))[0])
    for image in seeds.as_numpy_iterator():
        image = image.astype(int)
        flipped += image[0, 0, 0] > image[0, -1, 0]
        assert image[0, 0, 1] < image[-1, 0, 1] and image[..., 2].max() == 0
        widths.append(np.ptp(image[..., 0]))
    assert 30 < flipped < 70
    assert np.ptp(widths) > 60


def test_a_run_resumed_in_the_middle_of_an_epoch_gets_the_same_crops(pictures):
    records = open_tfrecords(str(pictures), "train", use)
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("sgd", "mse")
    data = training_data(records, model, SINGLE, global_batch_size=4, seed=3, prepare=augmented)
    epochs = []
    for counts in (
        Counts(batch=6, epoch=2, samples=24),
        Counts(batch=10, epoch=2, samples=40, batches_in_epoch=4, samples_in_epoch=16),
    ):
        counters_of(model).resume(counts)
        counters_of(model).begin_epoch(1)
        data.on_epoch_begin()
        epochs.append([[part.numpy() for part in batch] for batch in data.get_tf_dataset()])
    uninterrupted, rest = epochs
    assert len(uninterrupted) == 6 and len(rest) == 2
    for expected, found in zip(uninterrupted[4:], rest, strict=True):
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)


# Pictures of all kinds


def test_only_the_crop_of_a_jpeg_is_decoded_and_equals_the_crop_of_the_picture():
    encoded = jpeg(1)
    found = crop(tf.constant(encoded), lambda shape: tf.constant([3, 5, 20, 30]))
    np.testing.assert_array_equal(found, tf.io.decode_jpeg(encoded)[3:23, 5:35])


@pytest.mark.parametrize(
    "encoded",
    [
        jpeg(2, channels=1),
        tf.io.encode_png(picture(3)).numpy(),
        tf.io.encode_png(picture(3, channels=1)).numpy(),
        base64.b64decode(CMYK),
        jpeg(4, height=1, width=1),
        jpeg(5, height=3, width=700),
    ],
    ids=["grey", "png", "grey png", "cmyk", "one pixel", "a line"],
)
def test_pictures_of_all_formats_become_images_of_one_format(encoded):
    for image, label in (use(example(encoded, 10)), augmented(example(encoded, 10), tf.constant([1, 2], tf.int64))):
        assert image.shape == (32, 32, 3) and image.dtype == tf.uint8
        assert label.numpy().tolist() == [0.0] * 9 + [1.0]


def test_validation_crops_the_central_square():
    image = np.zeros((64, 128, 3), np.uint8)
    image[4:60, 36:92] = 255  # 7/8 of 64
    found, _ = center(example(tf.io.encode_png(image).numpy(), 1), None, image_size=56, classes=10)
    assert found.numpy().min() == 255


# The network


@pytest.fixture(scope="module")
def resnet():
    return build_model(32, 1000)


def test_the_network_is_that_of_goyal_et_al(resnet):
    weights = sum(int(np.prod(v.shape)) for v in resnet.trainable_variables)
    assert weights == 25_557_032  # as the ResNet-50 of torchvision, which has the stride in the same place
    strided = [layer.name for layer in resnet.layers if isinstance(layer, keras.layers.Conv2D) and layer.strides == (2, 2)]
    blocks = [f"conv{stage}_block1_{conv}_conv" for stage in (3, 4, 5) for conv in (2, 0)]
    assert sorted(strided) == sorted(["conv1_conv", *blocks])
    zero = [v.path for v in resnet.trainable_variables if v.name == "gamma" and not np.any(v.numpy())]
    assert len(zero) == 16 and all("_3_bn" in path for path in zero)
    assert {layer.momentum for layer in resnet.layers if isinstance(layer, keras.layers.BatchNormalization)} == {0.9}


def test_kernels_decay_and_biases_and_batchnorm_do_not(resnet):
    """The gradient of a decayed weight is 1e-4 of the weight."""
    with tf.GradientTape() as tape:
        decay = tf.add_n(resnet.losses)
    gradients = tape.gradient(decay, [v.value for v in resnet.trainable_variables])
    for variable, gradient in zip(resnet.trainable_variables, gradients, strict=True):
        assert (gradient is not None) == (variable.name == "kernel"), variable.path
        if gradient is not None:
            np.testing.assert_allclose(gradient, 1e-4 * variable.numpy(), rtol=1e-5, atol=1e-12)


def test_logits_are_float32_with_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    layers = [keras.layers.Dense(10, name="predictions"), keras.layers.Conv2D(8, 1, name="conv1_conv")]
    dense, conv = (as_in_goyal(layer) for layer in layers)
    assert (dense.compute_dtype, conv.compute_dtype) == ("float32", "bfloat16")


# The learning rate


def rates(batches, *flags, of_epoch=100):
    args = parse_args(["--synthetic-data", *map(str, flags)])
    start, peak = scaled_learning_rate(args.learning_rate, args.global_batch_size, args.base_batch_size)
    warmup_batches = round(args.warmup_epochs * of_epoch)
    schedule = SCHEDULES[args.schedule](start, peak, warmup_batches=warmup_batches, batches=args.epochs * of_epoch)
    assert type(schedule).__module__.startswith("keras.")
    return [float(schedule(batch)) for batch in batches]


@pytest.mark.parametrize(
    "flags, batches, expected",
    [
        ([], [0, 2999, 3000, 5999, 6000, 7999, 8000, 8999], [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4]),
        (  # 32 times the rate, after a warm-up over 500 batches in 25 stairs
            ["--global-batch-size", 8192],
            [0, 19, 20, 39, 40, 480, 499, 500, 2999, 3000],
            [0.1, 0.1, 0.224, 0.224, 0.348, 3.076, 3.076, 3.2, 3.2, 0.32],
        ),
        (["--epochs", 9, "--warmup-epochs", 0], [0, 299, 300, 600, 800], [0.1, 0.1, 0.01, 1e-3, 1e-4]),
        (["--global-batch-size", 128, "--warmup-epochs", 0], [0, 8999], [0.05, 5e-5]),
        (["--global-batch-size", 128], [0, 499, 500], [0.05, 0.05, 0.05]),  # it never begins above the peak
        (
            ["--schedule", "cosine", "--global-batch-size", 512],
            [0, 250, 500, 500 + 4250, 9000],
            [0.1, 0.15, 0.2, 0.1, 0.0],
        ),
        (["--schedule", "cosine", "--warmup-epochs", 0], [0, 4500, 9000], [0.1, 0.05, 0.0]),
    ],
)
def test_the_learning_rate_at_each_batch(flags, batches, expected):
    np.testing.assert_allclose(rates(batches, *flags), expected, rtol=1e-5, atol=1e-9)


def test_a_warm_up_of_fewer_batches_than_stairs_rises_with_each_batch():
    np.testing.assert_allclose(
        rates(range(5), "--global-batch-size", 512, "--warmup-epochs", 4, of_epoch=1), [0.1, 0.125, 0.15, 0.175, 0.2], rtol=1e-5
    )


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "Give one of --data DIR, --data digits and --synthetic-data"),
        (["--data", "digits", "--synthetic-data"], "one of --data DIR"),
        (["--data", "digits", "--image-size", "31"], "must be at least 32"),
        (["--data", "digits", "--crop-area", "1.5"], "must be at most 1"),
        (["--data", "digits", "--schedule", "linear"], "cosine"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, words):
    with pytest.raises(InputError) as raised:
        parse_args(flags)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def features(**values):
    kinds = {bytes: lambda v: {"bytes_list": {"value": [v]}}, int: lambda v: {"int64_list": {"value": [v]}}}
    feature = {name.replace("__", "/"): tf.train.Feature(**kinds[type(value)](value)) for name, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


BAD = [
    (example(jpeg(0)[:-200], 1), "Invalid JPEG data or crop window"),
    (example(b"no picture", 1), "Unknown image file format"),
    (example(b"", 1), "Unknown image file format|Input is empty"),
    (example(jpeg(0), 0), r"image/class/label must be 1 to 10. Received:.*\[?0\]?"),
    (example(jpeg(0), 11), r"image/class/label must be 1 to 10. Received:.*11"),
    (features(image__encoded=jpeg(0)), r"image/class/label \(data type: int64\) is required"),
    (features(image__class__label=1, image=jpeg(0)), r"image/encoded \(data type: string\) is required"),
    (features(image__encoded=jpeg(0), image__class__label=b"one"), "Data types don't match"),
    (b"no example", "Could not parse example"),
]


@pytest.mark.parametrize("bad, words", BAD, ids=[words.split()[0] for _, words in BAD])
def test_an_unusable_first_record_is_named_before_training(tmp_path, bad, words):
    write_pictures(tmp_path, [example(jpeg(0), 1), bad])
    with pytest.raises(InputError, match=rf"train-00001-of-00002, record 0 \(counted from 0\): .*({words})") as raised:
        open_tfrecords(str(tmp_path), "train", use)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bad, words", [BAD[0], BAD[4], BAD[8]], ids=["picture", "label", "record"])
def test_a_later_unusable_record_is_named_when_it_is_read(tmp_path, bad, words):
    write_pictures(tmp_path, [example(jpeg(0), 1)] * 5 + [bad] + [example(jpeg(0), 1)] * 6)
    records = open_tfrecords(str(tmp_path), "train", use)
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    data = training_data(records, model, SINGLE, global_batch_size=4, seed=3, prepare=augmented)
    data.on_epoch_begin()
    with (
        pytest.raises(BadSample, match=rf"train-00001-of-00002, record 2 \(counted from 0\): .*({words})") as raised,
        naming_bad_records(records, use=use),
    ):
        list(data.get_tf_dataset())
    assert "\n" not in str(raised.value)


def test_digits_do_not_overwrite_anything(tmp_path):
    write(tmp_path / "digits")
    records = open_tfrecords(str(tmp_path / "digits"), "train", use)
    assert len(records) == 1437
    with pytest.raises(InputError, match="cannot be created: Directory not empty"):
        write(tmp_path / "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


# Real processes, with two epochs of six batches. Most have one block in each stage of the network.

SMALL = ["--classes", 10, "--image-size", 32, "--global-batch-size", 4, "--warmup-epochs", 1, "--epochs", 2]
RECIPE, FEW_BLOCKS = "recipes.imagenet_resnet50", "tests.programs.small_networks"


def name(batch):
    return f"model_batch_at_{batch:05d}.weights.h5"


@pytest.mark.slow
def test_a_corrupt_picture_ends_training_with_one_line_that_names_it(recipe, tmp_path, pictures):
    write_pictures(pictures, [example(jpeg(i), 1 + i) for i in range(4)] + [example(b"no picture", 1)] * 20)
    run = recipe(RECIPE, *SMALL, "--data", pictures, "--workdir", tmp_path / "run", module=FEW_BLOCKS)
    code, _, errors = run.finish()
    assert code == 1, errors
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert "train-0000" in errors and "Unknown image file format" in errors


@pytest.mark.slow
def test_resnet_50_trains_and_stock_keras_loads_the_whole_model(recipe, tmp_path, pictures):
    """After one epoch of two batches."""
    flags = [*SMALL, "--epochs", 1, "--global-batch-size", 12, "--data", pictures, "--workdir", tmp_path]
    code, _, errors = recipe(*flags, "--checkpoint", tmp_path / "model_{batch}.keras", module=RECIPE).finish()
    assert code == 0, errors
    loaded = run_program("load_resnet.py", tmp_path / "model_2.keras", cwd="/", env=USER_ENVIRONMENT)
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.slow
def test_two_replicas_resume_bit_exactly_from_a_whole_model(recipe, tmp_path, pictures):
    """From the middle of the first epoch."""
    command = [RECIPE, *SMALL, "--data", pictures, "--virtual-devices", 2, "--save-freq", 4]

    def train(run):
        flags = ["--checkpoint", tmp_path / run / "model_{batch:05d}.keras", "--workdir", tmp_path / run]
        code, out, errors = recipe(*command, *flags, module=FEW_BLOCKS).finish()
        assert code == 0, errors
        return out

    train("uninterrupted")
    copy_until(tmp_path / "uninterrupted", tmp_path / "resumed", 4)
    assert "model_00004.keras: batch 4, epoch 1" in train("resumed")
    whole, resumed = (arrays(tmp_path / run / "model_00012.keras") for run in ("uninterrupted", "resumed"))
    assert whole == resumed


@pytest.mark.slow
def test_ranks_resume_bit_exactly(tmp_path, pictures):
    """From the middle of the first epoch; each rank has its own statistics."""
    command = ["-m", FEW_BLOCKS, RECIPE, *SMALL, "--data", pictures, "--strategy", "multiworker", "--save-freq", 4, "--workdir"]

    def train(run):
        results = run_ranks(2, *command, tmp_path / run, engine="multiworker")
        for code, _, errors in results:
            assert code == 0, errors
        return results[0][1]

    train("uninterrupted")
    copy_until(tmp_path / "uninterrupted", tmp_path / "resumed", 4)
    assert f"{name(4)}: batch 4, epoch 1" in train("resumed")
    assert_same_weights(*(tmp_path / run / "checkpoints" / name(12) for run in ("uninterrupted", "resumed")))
