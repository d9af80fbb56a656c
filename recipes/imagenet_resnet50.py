"""ResNet-50 on ImageNet, as Goyal et al. 2017 train it, https://arxiv.org/abs/1706.02677.

    python -m recipes.imagenet_resnet50 --data /data/imagenet --mixed-precision bfloat16    # all GPUs of a machine
    python -m recipes.imagenet_resnet50 --synthetic-data --epochs 1                         # how fast a machine is
    python -m recipes.imagenet_resnet50 --data digits --image-size 32 --global-batch-size 64 --epochs 12 --warmup-epochs 1 \
        --learning-rate 0.2 --crop-area 0.5 --schedule cosine                               # small pictures, on a laptop
    sbatch -N 4 --gpus-per-node=8 --time=24:00:00 slurm/horovod.sbatch -m recipes.imagenet_resnet50 \
        --data /data/imagenet --global-batch-size 8192 --mixed-precision bfloat16

`--data` is a folder with ImageNet as TFRecord files: `train-00000-of-01024`, `validation-00000-of-00128`, features
`image/encoded` (JPEG; other formats too) and `image/class/label` (int64, from 1).

Measured, on digits (the third command): validation accuracy 0.95 after 264 batches, 6.4 minutes of CPU time in all.
Published, on ImageNet (Goyal et al., Table 1): top-1 error 23.60 % with a global batch of 256 on 8 GPUs, and 23.74 % with 8192 on
256 GPUs in one hour; without label smoothing. Nothing of this recipe was run on ImageNet.
"""

import argparse
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks import InputError
from callbacks.ranks import ranks
from recipes import digits_as_imagenet
from recipes.common.arguments import parse, positive, recipe_parser
from recipes.common.data import Arrays, Prepare, Source, batches_per_epoch, training_data, validation_data
from recipes.common.data.tfrecords import naming_bad_records, open_tfrecords
from recipes.common.distribution import get_distribution
from recipes.common.learning_rate import cosine_learning_rate, scaled_learning_rate
from recipes.common.run import run, training_callbacks

CLASSES = 1000
MOMENTUM = 0.9  # Nesterov's (Goyal et al., section 5.1)
WEIGHT_DECAY = 1e-4  # of kernels, not of biases and of BatchNorm (the same place)
LABEL_SMOOTHING = 0.1  # Szegedy et al. 2016, https://arxiv.org/abs/1512.00567
BATCH_NORM_MOMENTUM = 0.9  # an epoch may have 156 batches: statistics have to follow faster than with 0.99

DROPS = (30 / 90, 60 / 90, 80 / 90)  # parts of the training after which the rate is divided by ten (Goyal et al.)
WARMUP_STAIRS = 25  # equal steps of the rate, where the schedule is one of steps

CROP_AREA = 0.08  # the smallest part of a picture, in training (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842)
CROP_ASPECT = (3 / 4, 4 / 3)  # width to height
CENTRAL_PART = 224 / 256  # of the shorter side, in validation

KEEP_LAST = 3  # checkpoints, of 205 MB each

MEAN = (123.675, 116.28, 103.53)  # of ImageNet's red, green and blue, 0 to 255
DEVIATION = (58.395, 57.12, 57.375)


def build_model(image_size: int, classes: int) -> keras.Model:
    """ResNet-50 from images `[n, image_size, image_size, 3]`, uint8, to logits `[n, classes]`, float32.

    `keras.applications` has the network of He et al. 2015. It is copied layer by layer with what Goyal et al. changed.
    """
    shape = (image_size, image_size, 3)
    images = keras.Input(shape, dtype="uint8")  # a quarter of the memory of floats, and of the way to a GPU
    normalized = keras.layers.Normalization(mean=MEAN, variance=np.square(DEVIATION))(images)
    with keras.StatelessScope(initialize_variables=False):  # the copy gets the weights
        logits = keras.applications.ResNet50(
            weights=None, input_tensor=normalized, input_shape=shape, classes=classes, classifier_activation=None
        ).output
    return keras.models.clone_model(keras.Model(images, logits, name="resnet50"), clone_function=as_in_goyal)


def as_in_goyal(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A new layer like this one of `keras.applications.ResNet50`, with the details of Goyal et al., section 5.1.

    Weight decay is a part of the loss here, as there: momentum and learning rate act on it. The decay of Keras's optimizers is
    decoupled from the gradient (Loshchilov and Hutter 2019), another method, and what is excluded from it is lost when a model
    is saved. So `loss` and `val_loss` contain it, 0.9 at the beginning.
    """
    config, name = layer.get_config(), layer.name
    decay = keras.regularizers.L2(WEIGHT_DECAY / 2)  # the gradient of WEIGHT_DECAY / 2 w^2 is WEIGHT_DECAY w
    if isinstance(layer, keras.layers.Conv2D):
        config |= {"kernel_initializer": "he_normal", "kernel_regularizer": decay, "use_bias": False}  # BatchNorm has a bias
        if name in ("conv3_block1_1_conv", "conv4_block1_1_conv", "conv5_block1_1_conv"):
            config["strides"] = 1  # the 3 x 3 convolution that follows has the stride of 2
        if name in ("conv3_block1_2_conv", "conv4_block1_2_conv", "conv5_block1_2_conv"):
            config["strides"] = 2
    elif isinstance(layer, keras.layers.BatchNormalization):
        config["momentum"] = BATCH_NORM_MOMENTUM
        if name.endswith("_3_bn"):
            config["gamma_initializer"] = "zeros"  # each block begins as the identity
    elif isinstance(layer, keras.layers.Dense):
        config |= {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.01), "kernel_regularizer": decay}
        config["dtype"] = "float32"  # logits in full precision also under --mixed-precision
    return type(layer).from_config(config)


def step_learning_rate(
    start: float, peak: float, *, warmup_batches: int, batches: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The rate of Goyal et al.: a warm-up, then a tenth after each of 30, 60 and 80 of 90 epochs, or the same parts of others.

    The warm-up is a staircase, because Keras has no schedule of its own with another warm-up before steps, and only Keras's own
    load without this repository.

    Args:
        start: the rate before the first stair.
        peak: the rate after the last one.
        warmup_batches: batches until the peak is reached.
        batches: of the whole training.
    """
    stairs = min(WARMUP_STAIRS, warmup_batches) if start < peak else 0
    rises = [-(-warmup_batches * stair // stairs) for stair in range(1, stairs + 1)]  # the batches after which the rate changes
    drops = [round(batches * part) for part in DROPS]

    def rate(batch):
        climbed = sum(batch >= rise for rise in rises) / stairs if stairs else 1.0
        return (start + (peak - start) * climbed) * 0.1 ** sum(batch >= drop for drop in drops)

    changes = sorted({*rises, *drops} - {0})
    return keras.optimizers.schedules.PiecewiseConstantDecay([batch - 1 for batch in changes], [rate(b) for b in (0, *changes)])


SCHEDULES = {"step": step_learning_rate, "cosine": cosine_learning_rate}


def read(record: tf.Tensor, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The file of a picture, a string, and its label, float32 `[classes]`: 1 for its class.

    Raises:
        InvalidArgumentError: if the record is not one of the layout, or the label not one of the classes.
    """
    features = tf.io.parse_single_example(
        record,
        {"image/encoded": tf.io.FixedLenFeature([], tf.string), "image/class/label": tf.io.FixedLenFeature([], tf.int64)},
    )
    label = features["image/class/label"]
    in_range = tf.logical_and(label >= 1, label <= classes)
    with tf.control_dependencies([tf.debugging.Assert(in_range, [f"image/class/label is 1 to {classes}. Received:", label])]):
        return features["image/encoded"], tf.one_hot(label - 1, classes)


def cut_out(picture: tf.Tensor, choose: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A part of a picture, uint8 `[height, width, 3]`; of a JPEG file, no more than that part is decoded.

    Args:
        picture: a JPEG, PNG, GIF or BMP file, grey, RGB, or CMYK: ImageNet has a PNG and some CMYK among its JPEGs.
        choose: called with height, width and 3, int32 `[3]`, gives top, left, height and width of the part.
    """

    def of_jpeg():
        return tf.io.decode_and_crop_jpeg(picture, choose(tf.io.extract_jpeg_shape(picture)), channels=3)

    def of_another():
        whole = tf.io.decode_image(picture, channels=3, expand_animations=False)
        top, left, height, width = tf.unstack(choose(tf.shape(whole)))
        return whole[top : top + height, left : left + width]

    return tf.cond(tf.io.is_jpeg(picture), of_jpeg, of_another)


def resized(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """An image as the model takes it, uint8 `[image_size, image_size, 3]`."""
    image = tf.round(tf.image.resize(image, [image_size, image_size]))  # bilinear, within 0 to 255
    return tf.ensure_shape(tf.cast(image, tf.uint8), [image_size, image_size, 3])


def augment(
    record: tf.Tensor, seed: tf.Tensor, *, image_size: int, classes: int, crop_area: float = CROP_AREA
) -> tuple[tf.Tensor, tf.Tensor]:
    """For training: a random part of random shape (Szegedy et al. 2015), flipped in one of two cases.

    Args:
        record: a string, as in the data set's files.
        seed: int64 `[2]`; nothing else is random.
        image_size: side of the image.
        classes: how many there are.
        crop_area: the smallest part, of 1.

    Returns:
        Image, uint8 `[image_size, image_size, 3]`, and label, float32 `[classes]`.
    """
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))

    def choose(shape):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),  # no object to keep
            crop_seed,
            aspect_ratio_range=CROP_ASPECT,
            area_range=(crop_area, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], size[:2]], axis=0)

    picture, label = read(record, classes)
    image = tf.image.stateless_random_flip_left_right(cut_out(picture, choose), flip_seed)
    return resized(image, image_size), label


def center(record: tf.Tensor, seed: tf.Tensor, *, image_size: int, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """For validation: the square in the middle of the picture, 7/8 of its shorter side. As `augment`, and nothing random.

    The same as resizing the shorter side to 256 and cutting out 224, where `image_size` is 224.
    """

    def choose(shape):
        side = tf.cast(tf.round(CENTRAL_PART * tf.cast(tf.reduce_min(shape[:2]), tf.float32)), tf.int32)
        return tf.concat([(shape[:2] - side) // 2, [side, side]], axis=0)

    picture, label = read(record, classes)
    return resized(cut_out(picture, choose), image_size), label


@dataclass(frozen=True)
class Data:
    """What is trained and validated on.

    Args:
        train, validation: the samples.
        augment, center: what the model gets of each; None for samples that are ready.
        use: raises an error of TensorFlow for a record that cannot be used.
        classes: how many there are.
    """

    train: Source
    validation: Source
    augment: Prepare | None
    center: Prepare | None
    use: Callable[[bytes], Any]
    classes: int


def load(args: argparse.Namespace) -> Data:
    """The data set that the flags name. A collective of all ranks.

    Raises:
        InputError: if there is no such data, or it has another layout.
    """
    classes = args.classes or (10 if args.data == "digits" else CLASSES)
    sizes = {"image_size": args.image_size, "classes": classes}
    augmented = functools.partial(augment, crop_area=args.crop_area, **sizes)
    centered = functools.partial(center, **sizes)
    use = functools.partial(centered, seed=None)
    if args.synthetic_data:
        arrays = _synthetic(args.synthetic_data, args.image_size, classes)
        return Data(arrays, arrays, None, None, use, classes)
    directory = args.data
    if directory == "digits":
        directory = os.path.join(args.workdir, "digits")
        ranks().on_chief(functools.partial(_write_digits, directory))
    train, validation = (open_tfrecords(directory, split, use) for split in ("train", "validation"))
    return Data(train, validation, augmented, centered, use, classes)


def _synthetic(count: int, image_size: int, classes: int) -> Arrays:
    """Random images and labels."""
    random = np.random.default_rng(0)
    try:
        images = random.integers(0, 256, (count, image_size, image_size, 3), np.uint8)
        labels = np.zeros((count, classes), "float32")
    except (MemoryError, ValueError) as error:  # ValueError: more than can be addressed
        raise InputError(f"--synthetic-data {count} does not fit into memory: {error}") from None
    labels[np.arange(count), random.integers(0, classes, count)] = 1
    return Arrays(images, labels)


def _write_digits(directory: str) -> None:
    if not os.path.exists(directory):
        digits_as_imagenet.write(directory)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of all recipes, and this one's own."""
    parser = recipe_parser(
        "imagenet_resnet50",
        "Train ResNet-50 on ImageNet.",
        epochs=90,
        global_batch_size=256,
        learning_rate=0.1,
        base_batch_size=256,
        warmup_epochs=5,
        save_freq="auto",
        keep_last=KEEP_LAST,
    )
    parser.add_argument("--data", metavar="DIR|digits", help="DIR: TFRecord files; digits: those of recipes.digits_as_imagenet")
    parser.add_argument(
        "--classes", type=positive(int, most=1 << 20), metavar="N", help=f"labels are 1 to N (default: {CLASSES}; 10 for digits)"
    )
    parser.add_argument(
        "--image-size", type=positive(int, most=1 << 13), default=224, metavar="N", help="side of the images, 32 or more"
    )
    parser.add_argument(
        "--crop-area", type=positive(float), default=CROP_AREA, metavar="X", help="the smallest part of a picture in training, of 1"
    )
    parser.add_argument(
        "--synthetic-data",
        type=positive(int),
        nargs="?",
        const=512,
        metavar="N",
        help="N random images (512) in place of --data, to measure a machine",
    )
    parser.add_argument("--schedule", choices=SCHEDULES, default="step", help="how the learning rate goes down")
    args = parse(parser, argv)
    if (args.data is None) == (args.synthetic_data is None):
        raise InputError("Give --data DIR, --data digits, or --synthetic-data: one of them.")
    if args.crop_area > 1:
        raise InputError(f"--crop-area is a part of the picture, up to 1. Received: {args.crop_area}")
    if args.image_size < 32:
        raise InputError(f"ResNet-50 halves images five times. --image-size has to be 32 or more. Received: {args.image_size}")
    return args


def main(argv: Sequence[str] | None = None) -> keras.Model:
    """Trains, and returns the trained model."""
    args = parse_args(argv)
    distribution = get_distribution(args)
    data = load(args)
    per_epoch = batches_per_epoch(data.train, args.global_batch_size)
    start, peak = scaled_learning_rate(args.learning_rate, args.global_batch_size, args.base_batch_size)
    learning_rate = SCHEDULES[args.schedule](
        start, peak, warmup_batches=round(args.warmup_epochs * per_epoch), batches=args.epochs * per_epoch
    )
    with distribution.scope():
        model = build_model(args.image_size, data.classes)
        model.compile(
            optimizer=distribution.optimizer(keras.optimizers.SGD(learning_rate, momentum=MOMENTUM, nesterov=True)),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING),
            metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(5, name="top5")],
            steps_per_execution=args.steps_per_execution,
        )
        model.optimizer.build(model.trainable_variables)  # here, since `fit` would trace its step twice for it
    size = {"global_batch_size": args.global_batch_size}
    batches = training_data(data.train, model, distribution, seed=args.seed, prepare=data.augment, **size)
    with naming_bad_records(data.train, data.validation, use=data.use):
        model.fit(
            batches,
            validation_data=validation_data(data.validation, distribution, prepare=data.center, **size),
            epochs=args.epochs,
            verbose=0,
            callbacks=training_callbacks(args, distribution, batches),
        )
    return model


if __name__ == "__main__":
    run(main)
