"""Memory of a snapshot: each value is stored once, in our own memory or where training has left it."""

import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from callbacks.model import callback_state
from callbacks.state import state
from callbacks.state.host_memory import HostMemory
from callbacks.state.snapshot import SnapshotPlan

WIDE = 256  # a kernel of 64 pages


@pytest.fixture
def snapshot():
    """Takes a snapshot of a model with two kernels of 256 kB, and lets training overwrite one of them."""
    model = keras.Sequential([keras.Input((WIDE,)), keras.layers.Dense(WIDE), keras.layers.Dense(WIDE)])
    model.compile("sgd", "mse")
    model.fit(np.ones((2, WIDE)), np.ones((2, WIDE)), verbose=0)
    taken = state.take(model, SnapshotPlan(model, False), callback_state.gather([], "on_train_batch_end"), {}, {})
    before = [variable.numpy() for variable in model.trainable_variables]
    model.layers[1].kernel.assign_add(tf.ones((WIDE, WIDE)))
    return taken, before


def kernels(snapshot):
    found = (group.values["0"] for group in snapshot.groups if "0" in group.values)
    return [value for value in found if tuple(value.shape) == (WIDE, WIDE)]


def test_a_value_that_training_has_written_stays_where_it_is_and_the_others_are_copied(snapshot):
    taken, before = snapshot
    taken.fetch(HostMemory())
    first, second = kernels(taken)
    assert isinstance(first, np.ndarray) and isinstance(second, tf.Tensor)
    np.testing.assert_array_equal(first, before[0])
    np.testing.assert_array_equal(second, before[2])


def test_values_that_were_written_are_released(snapshot):
    taken, _ = snapshot
    memory = HostMemory()
    taken.fetch(memory)
    left = [weakref.ref(value) for value in kernels(taken) if isinstance(value, tf.Tensor)]
    taken.release(memory)
    assert len(left) == 1 and left[0]() is None


def test_pages_of_a_value_that_is_elsewhere_go_back_to_the_system():
    memory = HostMemory()
    memory.begin(1 << 24)
    memory.copy(np.ones(1 << 24, "uint8"), 0)
    resident = resident_bytes()
    memory.give_back(0, 1 << 24)
    assert resident - resident_bytes() > 1 << 23


def test_memory_that_a_snapshot_needs_is_not_prepared():
    memory = HostMemory()
    memory.want()
    before = resident_bytes()
    memory.provide(1 << 26)
    assert resident_bytes() - before < 1 << 25


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
