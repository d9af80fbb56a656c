"""TFRecord files in the seekable order against `TFRecordDataset`, `interleave` and a parallel `map` over the same files.

Both decode and augment as `recipes.imagenet_resnet50` does, under op determinism as recipes run: small digits, and parts of
scikit-learn's two photographs of the size of ImageNet's pictures. Pictures per second, and the CPU time of each, which tells more
on a machine that does other things too. The plain pipeline reads in the order of the files. Both cut the same part out of the same
picture, since large parts take longer to decode.
"""

import statistics
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.own_process import in_own_process
from recipes import digits_as_imagenet
from recipes.common.data import training_data
from recipes.common.distribution import Distribution
from recipes.common.tfrecords import open_tfrecords
from recipes.imagenet_resnet50 import augment

ROUNDS = 7
BATCH = 32
HEIGHT, WIDTH = 375, 500  # of most of ImageNet's pictures
PHOTOS, SHARDS = 512, 8
EPOCHS = {"digits": 4, "photos": 1}  # of a round, so that it takes about a second
IMAGE_SIZE = {"digits": 32, "photos": 224}


def write_photos(directory: Path) -> None:
    """Parts of photographs as JPEG files, about 80 kB each."""
    from sklearn.datasets import load_sample_images

    images, random = load_sample_images().images, np.random.default_rng(0)
    directory.mkdir()
    for shard in range(SHARDS):
        with tf.io.TFRecordWriter(str(directory / f"train-{shard:05d}-of-{SHARDS:05d}")) as file:
            for number in range(PHOTOS // SHARDS):
                image = images[number % 2]
                top, left = (random.integers(0, room + 1) for room in np.subtract(image.shape[:2], (HEIGHT, WIDTH)))
                part = image[top : top + HEIGHT, left : left + WIDTH]
                file.write(digits_as_imagenet.example(tf.io.encode_jpeg(part, quality=95).numpy(), 1 + number))


def round_of(datasets: list[tf.data.Dataset]) -> tuple[float, float]:
    """Wall and CPU seconds for each picture, over some epochs."""
    wall, cpu = time.perf_counter(), time.process_time()
    batches = sum(1 for dataset in datasets for _ in dataset)
    return (time.perf_counter() - wall) / batches / BATCH, (time.process_time() - cpu) / batches / BATCH


def measure(kind: str, directory: str) -> list[tuple[float, float, float, float]]:
    """Wall and CPU seconds for each picture, of the plain pipeline and ours, in rounds that alternate."""
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)

    def prepare(record, seed):
        seed = tf.stack([0, tf.strings.length(record)])  # in place of one that depends on the order
        return augment(record, tf.cast(seed, tf.int64), image_size=IMAGE_SIZE[kind], classes=1000)

    names = sorted(str(path) for path in Path(directory).glob("train-*"))

    plain = tf.data.Dataset.from_tensor_slices(names)
    plain = plain.interleave(tf.data.TFRecordDataset, cycle_length=len(names), num_parallel_calls=tf.data.AUTOTUNE)
    plain = plain.map(lambda record: prepare(record, None), num_parallel_calls=tf.data.AUTOTUNE)
    plain = plain.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

    records = open_tfrecords(directory, "train", lambda record: None)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    single = Distribution("single", ("/cpu:0",))
    ours = training_data(records, model, single, global_batch_size=BATCH, seed=0, prepare=prepare).get_tf_dataset()

    pair = [[dataset] * EPOCHS[kind] for dataset in (plain, ours)]
    for datasets in pair:
        round_of(datasets)
    return [(*round_of(pair[0]), *round_of(pair[1])) for _ in range(ROUNDS)]


def main() -> None:
    """Prints the medians, and those of the rounds' ratios."""
    print("TFRecord files          pictures/s                CPU us a picture")
    print("                     plain     ours   ratio      plain     ours   plain/ours")
    with tempfile.TemporaryDirectory() as folder:
        digits_as_imagenet.write(Path(folder, "digits"))
        write_photos(Path(folder, "photos"))
        for kind in EPOCHS:
            rounds = in_own_process(measure, kind, str(Path(folder, kind)))
            wall, cpu, our_wall, our_cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(a / b for a, _, b, _ in rounds)
            cpu_ratio = statistics.median(a / b for _, a, _, b in rounds)
            print(f"{kind:<16}{1 / wall:>10.0f}{1 / our_wall:>9.0f}{ratio:>8.2f}", end="")
            print(f"{cpu * 1e6:>11.0f}{our_cpu * 1e6:>9.0f}{cpu_ratio:>13.2f}")


if __name__ == "__main__":
    main()
