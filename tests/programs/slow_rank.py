"""Trains the recipe in ranks; rank 1 takes 200 ms longer for each batch.

python tests/programs/slow_rank.py FLAGS...
"""

import sys
import time

import tensorflow as tf

from callbacks.ranks import ranks
from recipes import mnist

build_model = mnist.build_model


def wait(x):
    time.sleep(0.2 if ranks().rank == 1 else 0)
    return x


def with_a_slow_layer(*args):
    model = build_model(*args)
    call = model.call
    model.call = lambda x, *args, **kwargs: call(tf.ensure_shape(tf.numpy_function(wait, [x], x.dtype), x.shape), *args, **kwargs)
    return model


if __name__ == "__main__":
    mnist.build_model = with_a_slow_layer
    mnist.main(sys.argv[1:])
