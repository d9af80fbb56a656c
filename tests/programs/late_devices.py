"""Runs the recipe, and fails if TensorFlow creates a tensor before the recipe selects its devices.

python tests/programs/late_devices.py FLAGS...
"""

import sys

import tensorflow as tf

from recipes import mnist
from recipes.common.distribution import setup

devices = setup._devices


def choose(*args):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()])  # an error once there was a tensor
    return devices(*args)


if __name__ == "__main__":
    setup._devices = choose
    mnist.main(sys.argv[1:])
