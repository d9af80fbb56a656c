"""ResNet-50 on ImageNet, as Goyal et al. 2017 train it, https://arxiv.org/abs/1706.02677.

    python -m recipes.imagenet_resnet50 --data /data/imagenet --mixed-precision bfloat16    # all GPUs of a machine
    python -m recipes.imagenet_resnet50 --synthetic-data --epochs 1                         # measures the speed of a machine
    python -m recipes.imagenet_resnet50 --data digits --image-size 32 --global-batch-size 64 --epochs 12 --warmup-epochs 1 \
        --learning-rate 0.2 --crop-area 0.5 --schedule cosine                               # small pictures, on a CPU
    sbatch -N 4 --gpus-per-node=8 --time=24:00:00 slurm/horovod.sbatch -m recipes.imagenet_resnet50 \
        --data /data/imagenet --global-batch-size 8192 --mixed-precision bfloat16

`--data` is a folder with ImageNet as TFRecord files: `train-00000-of-01024`, `validation-00000-of-00128`, with the features
`image/encoded` (JPEG or another format) and `image/class/label` (int64, from 1).

Measured on the digits (third command): validation accuracy 0.95 after 264 batches, 6.4 minutes of CPU time in total.
Published for ImageNet (Goyal et al., Table 1): top-1 error 23.60 % with a global batch of 256 on 8 GPUs, and 23.74 % with 8192 on
256 GPUs in one hour, without label smoothing. This recipe was not run on ImageNet.
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
WEIGHT_DECAY = 1e-4  # of kernels, but not of biases and BatchNorm (Goyal et al., section 5.1)
LABEL_SMOOTHING = 0.1  # Szegedy et al. 2016, https://arxiv.org/abs/1512.00567
BATCH_NORM_MOMENTUM = 0.9  # an epoch may have 156 batches, too few for Keras's 0.99

DROPS = (30 / 90, 60 / 90, 80 / 90)  # fractions of the training after which the rate is divided by ten (Goyal et al.)
WARMUP_STAIRS = 25  # equal steps of the warm-up in the step schedule

CROP_AREA = 0.08  # the smallest crop in training, as a fraction (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842)
CROP_ASPECT = (3 / 4, 4 / 3)  # width to height
CENTRAL_PART = 224 / 256  # of the shorter side, for validation

KEEP_LAST = 3  # checkpoints, of 205 MB each

MEAN = (123.675, 116.28, 103.53)  # of ImageNet's red, green and blue, 0 to 255
DEVIATION = (58.395, 57.12, 57.375)


def build_model(image_size: int, classes: int) -> keras.Model:
    """Returns ResNet-50 from images `[n, image_size, image_size, 3]`, uint8, to logits `[n, classes]`, float32.

    Clones the network of He et al. 2015 from `keras.applications`, layer by layer, with the changes of Goyal et al.
    """
    shape = (image_size, image_size, 3)
    images = keras.Input(shape, dtype="uint8")  # a quarter of the memory and of the transfer to a GPU
    normalized = keras.layers.Normalization(mean=MEAN, variance=np.square(DEVIATION))(images)
    with keras.StatelessScope(initialize_variables=False):  # only the clone needs weights
        logits = keras.applications.ResNet50(
            weights=None, input_tensor=normalized, input_shape=shape, classes=classes, classifier_activation=None
        ).output
    return keras.models.clone_model(keras.Model(images, logits, name="resnet50"), clone_function=as_in_goyal)


def as_in_goyal(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns a copy of a layer of `keras.applications.ResNet50` with the changes of Goyal et al., section 5.1.

    As in Goyal et al., weight decay is part of the loss, so momentum and learning rate act on it. The weight decay of Keras's
    optimizers is another method, decoupled from the gradient (Loshchilov and Hutter 2019), and its exclusions are lost when a model
    is saved. So `loss` and `val_loss` contain the decay, 0.9 at the beginning.
    """
    config, name = layer.get_config(), layer.name
    decay = keras.regularizers.L2(WEIGHT_DECAY / 2)  # the gradient of WEIGHT_DECAY / 2 w^2 is WEIGHT_DECAY w
    if isinstance(layer, keras.layers.Conv2D):
        config |= {"kernel_initializer": "he_normal", "kernel_regularizer": decay, "use_bias": False}  # BatchNorm follows
        if name in ("conv3_block1_1_conv", "conv4_block1_1_conv", "conv5_block1_1_conv"):
            config["strides"] = 1  # the following 3 x 3 convolution has stride 2
        if name in ("conv3_block1_2_conv", "conv4_block1_2_conv", "conv5_block1_2_conv"):
            config["strides"] = 2
    elif isinstance(layer, keras.layers.BatchNormalization):
        config["momentum"] = BATCH_NORM_MOMENTUM
        if name.endswith("_3_bn"):
            config["gamma_initializer"] = "zeros"  # each block begins as the identity
    elif isinstance(layer, keras.layers.Dense):
        config |= {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.01), "kernel_regularizer": decay}
        config["dtype"] = keras.config.floatx()  # float32 also with --mixed-precision
    return type(layer).from_config(config)


def step_learning_rate(
    start: float, peak: float, *, warmup_batches: int, batches: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule of Goyal et al.: a warm-up, then a division by ten after 30, 60 and 80 of 90 epochs (scaled to others).

    The warm-up is a staircase, because Keras has no schedule with a linear warm-up before steps, and a custom schedule would keep
    saved models from loading without this repository.

    Args:
        start: the rate before the first stair.
        peak: the rate after the last stair.
        warmup_batches: batches until the peak.
        batches: batches in the whole training.
    """
    stairs = min(WARMUP_STAIRS, warmup_batches) if start < peak else 0
    rises = [-(-warmup_batches * stair // stairs) for stair in range(1, stairs + 1)]  # batches after which the rate changes
    drops = [round(batches * part) for part in DROPS]

    def rate(batch):
        climbed = sum(batch >= rise for rise in rises) / stairs if stairs else 1.0
        return (start + (peak - start) * climbed) * 0.1 ** sum(batch >= drop for drop in drops)

    changes = sorted({*rises, *drops} - {0})
    return keras.optimizers.schedules.PiecewiseConstantDecay([batch - 1 for batch in changes], [rate(b) for b in (0, *changes)])


SCHEDULES = {"step": step_learning_rate, "cosine": cosine_learning_rate}


def read(record: tf.Tensor, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the encoded picture of a record, a string, and its label, float32 `[classes]`, one-hot.

    Raises:
        InvalidArgumentError: if the record has another format, or if its label is not a class.
    """
    features = tf.io.parse_single_example(
        record,
        {"image/encoded": tf.io.FixedLenFeature([], tf.string), "image/class/label": tf.io.FixedLenFeature([], tf.int64)},
    )
    label = features["image/class/label"]
    in_range = tf.logical_and(label >= 1, label <= classes)
    with tf.control_dependencies([tf.debugging.Assert(in_range, [f"image/class/label must be 1 to {classes}. Received:", label])]):
        return features["image/encoded"], tf.one_hot(label - 1, classes)


def crop(picture: tf.Tensor, choose: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Returns a crop of a picture, uint8 `[height, width, 3]`. Decodes only the crop of a JPEG file.

    Args:
        picture: a JPEG, PNG, GIF or BMP file; gray, RGB or CMYK. ImageNet contains a PNG file and some CMYK files.
        choose: returns top, left, height and width of the crop, from height, width and 3, int32 `[3]`.
    """

    def of_jpeg():
        return tf.io.decode_and_crop_jpeg(picture, choose(tf.io.extract_jpeg_shape(picture)), channels=3)

    def of_another():
        image = tf.io.decode_image(picture, channels=3, expand_animations=False)
        top, left, height, width = tf.unstack(choose(tf.shape(image)))
        return image[top : top + height, left : left + width]

    return tf.cond(tf.io.is_jpeg(picture), of_jpeg, of_another)


def resized(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Returns an image resized for the model, uint8 `[image_size, image_size, 3]`."""
    image = tf.round(tf.image.resize(image, [image_size, image_size]))  # bilinear, within 0 to 255
    return tf.ensure_shape(tf.cast(image, tf.uint8), [image_size, image_size, 3])


def augment(
    record: tf.Tensor, seed: tf.Tensor, *, image_size: int, classes: int, crop_area: float = CROP_AREA
) -> tuple[tf.Tensor, tf.Tensor]:
    """Prepares a record for training: a random crop of random shape (Szegedy et al. 2015), flipped with probability 1/2.

    Args:
        record: a record of the data set, a string.
        seed: int64 `[2]`; the only source of randomness.
        image_size: the side of the image.
        classes: the number of classes.
        crop_area: the smallest crop, as a fraction of the picture.

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
    image = tf.image.stateless_random_flip_left_right(crop(picture, choose), flip_seed)
    return resized(image, image_size), label


def center(record: tf.Tensor, seed: tf.Tensor, *, image_size: int, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Prepares a record for validation: a square crop from the center, 7/8 of the shorter side. Arguments as in `augment`.

    With an `image_size` of 224, this equals resizing the shorter side to 256 and cropping 224.
    """

    def choose(shape):
        side = tf.cast(tf.round(CENTRAL_PART * tf.cast(tf.reduce_min(shape[:2]), tf.float32)), tf.int32)
        return tf.concat([(shape[:2] - side) // 2, [side, side]], axis=0)

    picture, label = read(record, classes)
    return resized(crop(picture, choose), image_size), label


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Args:
        train, validation: the samples.
        augment, center: prepare a sample for training and for validation; None if samples need no preparation.
        use: raises an error of TensorFlow for a record that cannot be used.
        classes: the number of classes.
    """

    train: Source
    validation: Source
    augment: Prepare | None
    center: Prepare | None
    use: Callable[[bytes], Any]
    classes: int


def load(args: argparse.Namespace) -> Data:
    """Opens the data set given by the flags. A collective of all ranks.

    Raises:
        InputError: if the data does not exist, or has another format.
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
    """Returns random images and labels."""
    random = np.random.default_rng(0)
    try:
        images = random.integers(0, 256, (count, image_size, image_size, 3), np.uint8)
        labels = np.zeros((count, classes), "float32")
    except (MemoryError, ValueError) as error:  # ValueError: more than the address space
        raise InputError(f"--synthetic-data {count} does not fit into memory: {error}") from None
    labels[np.arange(count), random.integers(0, classes, count)] = 1
    return Arrays(images, labels)


def _write_digits(directory: str) -> None:
    if not os.path.exists(directory):
        digits_as_imagenet.write(directory)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the flags of all recipes, and of this recipe."""
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
    parser.add_argument("--data", metavar="DIR|digits", help="DIR: folder of TFRecord files; digits: the included digits")
    parser.add_argument(
        "--classes", type=positive(int, most=1 << 20), metavar="N", help=f"labels are 1 to N (default: {CLASSES}; 10 for digits)"
    )
    parser.add_argument(
        "--image-size", type=positive(int, most=1 << 13), default=224, metavar="N", help="side of the images, at least 32"
    )
    parser.add_argument(
        "--crop-area", type=positive(float), default=CROP_AREA, metavar="X", help="smallest crop in training, as a fraction"
    )
    parser.add_argument(
        "--synthetic-data",
        type=positive(int),
        nargs="?",
        const=512,
        metavar="N",
        help="N random images (512) instead of --data, to measure the speed of a machine",
    )
    parser.add_argument("--schedule", choices=SCHEDULES, default="step", help="decay of the learning rate")
    args = parse(parser, argv)
    if (args.data is None) == (args.synthetic_data is None):
        raise InputError("Give one of --data DIR, --data digits and --synthetic-data.")
    if args.crop_area > 1:
        raise InputError(f"--crop-area must be at most 1, the whole picture. Received: {args.crop_area}")
    if args.image_size < 32:
        raise InputError(f"--image-size must be at least 32: ResNet-50 halves images five times. Received: {args.image_size}")
    return args


def main(argv: Sequence[str] | None = None) -> keras.Model:
    """Trains a model and returns it."""
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
        model.optimizer.build(model.trainable_variables)  # otherwise, `fit` traces the train step twice
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
