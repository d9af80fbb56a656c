"""Writes the included digits in the file layout of ImageNet: a small data set for `recipes.imagenet_resnet50`.

    python -m recipes.digits_as_imagenet runs/digits                                     # 1 MB, in two seconds
    python -m recipes.imagenet_resnet50 --data runs/digits --classes 10 --image-size 32  # the same as --data digits

The pictures are gray 64 x 64 JPEG files: handwritten digits of 8 x 8 with enlarged pixels. Every fifth is for validation. To write
your own pictures, create records with `example`.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from callbacks import InputError
from callbacks.disk.folders import flush_folder, make_folder
from recipes.common.arguments import Parser
from recipes.common.data.digits import BRIGHTEST, load_digits
from recipes.common.run import run

SHARDS = {"train": 8, "validation": 2}
ENLARGED = 8  # factor
QUALITY = 90  # of JPEG, up to 100


def example(picture: bytes, label: int) -> bytes:
    """Returns a record in the format of ImageNet.

    Args:
        picture: the bytes of a JPEG file.
        label: the class, from 1.
    """
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(directory: str | Path) -> None:
    """Writes `train-00000-of-00008` to `validation-00001-of-00002` into a new folder, which appears when it is complete.

    Raises:
        InputError: if the folder is not empty or cannot be written.
    """
    splits = dict(zip(SHARDS, load_digits(), strict=True))
    try:
        temporary = Path(f"{os.fspath(directory)}.{os.getpid()}")
        make_folder(temporary)
        try:
            for split, (images, labels) in splits.items():
                records = [
                    example(tf.io.encode_jpeg(picture, quality=QUALITY).numpy(), int(label) + 1)
                    for picture, label in zip(_pictures(images), labels, strict=True)
                ]
                for shard in range(SHARDS[split]):
                    path = temporary / f"{split}-{shard:05d}-of-{SHARDS[split]:05d}"
                    with tf.io.TFRecordWriter(str(path)) as file:
                        for record in records[shard :: SHARDS[split]]:
                            file.write(record)
                    _flush(path)
            flush_folder(temporary)
            temporary.replace(directory)
            flush_folder(temporary.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, tf.errors.OpError) as error:  # OpError: a full disk
        reason = error.strerror if isinstance(error, OSError) else error.message
        raise InputError(f"DIR must be a new folder. {directory} cannot be created: {reason}") from None


def _flush(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _pictures(images):
    grey = (images * 255 / BRIGHTEST).astype(np.uint8)
    return grey.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)[..., np.newaxis]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the folder given on the command line."""
    parser = Parser(prog="python -m recipes.digits_as_imagenet", description="Write the digits as TFRecord files.")
    parser.add_argument("directory", metavar="DIR", help="a new folder")
    write(parser.parse_args(argv).directory)


if __name__ == "__main__":
    run(main)
