"""Trains a recipe in ranks, profiles ranks 1 and 3, and prints how many event files each rank has opened.

python tests/programs/count_event_files.py FLAGS...
"""

import functools
import sys

import tensorflow as tf

from recipes.common.run import tensorboard
from recipes.mnist import main

opened: list[tuple] = []


def noting(make):
    def note(*args, **options):
        opened.append(args)
        return make(*args, **options)

    return note


if __name__ == "__main__":
    tensorboard.GlobalStepTensorBoard = functools.partial(  # type: ignore[assignment, misc]
        tensorboard.GlobalStepTensorBoard, profile_ranks=(1, 3)
    )
    tf.summary.create_file_writer = noting(tf.summary.create_file_writer)
    tf.io.TFRecordWriter = noting(tf.io.TFRecordWriter)
    main(sys.argv[1:])
    print("opened", len(opened))
