"""Small TFRecord files, whose records begin with their numbers."""

import os

import tensorflow as tf

from recipes.common.data.tfrecords import open_tfrecords

COUNTS = (3, 1, 5)  # records of each shard


def record(number, size=20):
    return f"{number:04d}".encode() + os.urandom(size)


def write_shard(path, records):
    with tf.io.TFRecordWriter(str(path)) as file:
        for each in records:
            file.write(each)


def write_shards(directory, counts=COUNTS, split="train", size=20):
    """Writes shards whose records begin with their numbers. Returns all records in order."""
    numbers = iter(range(sum(counts)))
    written = [[record(next(numbers), size) for _ in range(count)] for count in counts]
    for shard, records in enumerate(written):
        write_shard(directory / f"{split}-{shard:05d}-of-{len(counts):05d}", records)
    return [each for records in written for each in records]


def use(record):
    """Raises an error for a record that begins with `bad`."""
    tf.debugging.Assert(not tf.strings.regex_full_match(record, "(?s)bad.*"), ["it begins with bad"])


def opened(directory, split="train"):
    return open_tfrecords(str(directory), split, use)
