"""TFRecord files in the seekable order, compared with `TFRecordDataset`, `interleave` and a parallel `map` over the same files.

Both decode and augment like `recipes.imagenet_resnet50`, with op determinism: small digits, and noise with the spectrum of
photographs in the size of ImageNet's pictures. Measures pictures per second, and CPU time per picture, which other load affects
less. The plain pipeline reads the files in order. Both crop the same part of the same picture, because large parts take longer to
decode.
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
from recipes.common.data.tfrecords import open_tfrecords
from recipes.common.distribution import Distribution
from recipes.imagenet_resnet50 import augment

ROUNDS = 7
BATCH = 32
HEIGHT, WIDTH = 375, 500  # the size of most ImageNet pictures
PHOTOS, SHARDS = 512, 8
QUALITY = 80  # of JPEG, of 100
EPOCHS = {"digits": 4, "photos": 1}  # of a round, so that it takes about a second
IMAGE_SIZE = {"digits": 32, "photos": 224}


def write_photos(directory: Path) -> None:
    """Writes pictures that compress like photographs, about 80 kB each."""
    random = np.random.default_rng(0)
    directory.mkdir()
    for shard in range(SHARDS):
        with tf.io.TFRecordWriter(str(directory / f"train-{shard:05d}-of-{SHARDS:05d}")) as file:
            for number in range(PHOTOS // SHARDS):
                photo = _photo(random)
                file.write(digits_as_imagenet.example(tf.io.encode_jpeg(photo, quality=QUALITY).numpy(), 1 + number))


def _photo(random):
    """Uint8 `[height, width, 3]`: amplitudes fall as 1 / frequency, as in natural images (Field 1987)."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, np.newaxis], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal((3, HEIGHT, WIDTH))) / frequency
    grey = np.fft.irfft2(spectrum, s=(HEIGHT, WIDTH))
    return np.clip(128 + 50 * grey / grey.std(), 0, 255).astype("uint8").transpose(1, 2, 0)


def round_of(datasets: list[tf.data.Dataset]) -> tuple[float, float]:
    """Returns wall and CPU seconds per picture, over some epochs."""
    wall, cpu = time.perf_counter(), time.process_time()
    batches = sum(1 for dataset in datasets for _ in dataset)
    return (time.perf_counter() - wall) / batches / BATCH, (time.process_time() - cpu) / batches / BATCH


def measure(kind: str, directory: str) -> list[tuple[float, float, float, float]]:
    """Returns wall and CPU seconds per picture of the plain pipeline and of ours, which take turns."""
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)

    def prepare(record, seed):
        seed = tf.stack([0, tf.strings.length(record)])  # does not depend on the order
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
    """Prints the medians, and the median ratios."""
    print("TFRecord files          pictures/s                CPU us per picture")
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
