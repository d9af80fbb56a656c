"""The private names of Keras and TensorFlow that this repository needs, and what is done where a version lacks one.

Seen in Keras 3.6 to 3.15 and TensorFlow 2.17 to 2.21.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random import seed_generator
from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.saving_lib import H5IOStore
from keras.src.utils.naming import to_snake_case
from tensorflow.python.client import device_lib
from tensorflow.python.eager import context, execute

# Since Keras 3.14 the saving walk also visits containers within containers.
VISITS_NESTED_CONTAINERS = hasattr(saving_lib, "_container_path_present")

# Methods that `fit_hooks` replaces. A version without one of them raises AttributeError when a hook is registered.
EPOCH_LOGS = "_get_metrics_result_or_logs"  # of a model: logs of the last batch -> logs of an epoch or of a validation
APPLY_GRADIENTS = "_backend_apply_gradients"  # of an optimizer, on each replica: clips, accumulates and updates
ALL_REDUCE = "_all_reduce_sum_gradients"  # of an optimizer, on each replica: sums over the replicas

# Attributes of every Keras layer that hold no state. An unknown one costs the time of a visit.
BOOKKEEPING = frozenset(
    ("_build_shapes_dict", "_call_has_context_arg", "_inbound_nodes", "_outbound_nodes", "_tracked", "call_signature_parameters")
)


def saved_children(saveable: KerasSaveable) -> Iterator[tuple[str, Any]]:
    """Yields the attributes that Keras's saving walk visits, in its order.

    `saving_lib._walk_saveable` does the same, but Keras 3.15 makes a reference layer for each call of it, since it looks for
    its cache under another name than it stores it under.
    """
    kind = saveable._obj_type()
    skipped = _skipped_attributes(kind)
    if kind in ("Sequential", "Functional"):
        yield "layers", saveable.layers
    for name in sorted(dir(saveable), key=lambda name: f"~{name}" if name.startswith("_") else name):
        if name.startswith("__") or name in skipped:
            continue
        try:
            child = getattr(saveable, name)
        except Exception:  # a property that raises; Keras passes over it too
            continue
        yield name, child


@functools.cache
def _skipped_attributes(kind: str) -> frozenset[str]:
    return frozenset(saving_lib.get_attr_skipset(kind))


def child_names(container: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yields the saveables and containers in a container, named as in Keras's files: `dense`, `dense_1`, `container`."""
    seen: dict[str, int] = {}
    for child in container.values() if isinstance(container, dict) else container:
        if isinstance(child, KerasSaveable):
            name = to_snake_case(type(child).__name__)
        elif isinstance(child, (list, dict, tuple)) and VISITS_NESTED_CONTAINERS:
            name = "container"
        else:
            continue
        number = seen[name] = seen.get(name, -1) + 1
        yield f"{name}_{number}" if number else name, child


def load_state(model: keras.Model, store: H5IOStore) -> dict[str, Exception]:
    """Loads Keras's part of a file into a model and returns the error of each object that could not be loaded, by its name."""
    failed: set[int] = set()
    errors: dict[int, tuple[Any, Exception]] = {}
    saving_lib._load_state(model, store, None, "", visited_saveables=set(), failed_saveables=failed, error_msgs=errors)
    return {str(getattr(saveable, "name", saveable)): error for saveable, error in errors.values()} if failed else {}


def model_archive_json(model: keras.Model) -> dict[str, str]:
    """Returns the JSON members of the model's `.keras` archive: file name -> text."""
    config, metadata = saving_lib._serialize_model_as_json(model)
    return {saving_lib._METADATA_FILENAME: metadata, saving_lib._CONFIG_FILENAME: config}


def read_variables(handles: Sequence[Any], types: Sequence[int]) -> list[tf.Tensor]:
    """Reads variables of one device with one operation; one call for each variable takes ten times as long.

    Args:
        handles: resource handles of the variables.
        types: their dtypes, as TensorFlow's enum.
    """
    attributes = ("N", len(handles), "dtypes", types)
    return execute.execute(b"_ReadVariablesOp", len(handles), inputs=handles, attrs=attributes, ctx=context.context())


def global_seed_generator() -> keras.random.SeedGenerator | None:
    """Returns the generator that Keras draws from where no seed is given; None before the first such draw."""
    return global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)


def make_global_seed_generator() -> keras.random.SeedGenerator:
    """Returns the same generator, and makes it where it does not exist yet."""
    return seed_generator.global_seed_generator()


def memory_limits() -> dict[str, int]:
    """Returns the bytes that TensorFlow's allocator may take on each GPU: `"/gpu:0"` -> bytes."""
    gpus = [device for device in device_lib.list_local_devices() if device.device_type == "GPU"]
    return {f"/gpu:{device.name.rpartition(':')[2]}": device.memory_limit for device in gpus}


def native_variable(variable: keras.Variable | tf.Variable) -> tf.Variable:
    """Returns TensorFlow's variable; `keras.Variable.value` may return a cast of it."""
    return variable._value if isinstance(variable, keras.Variable) else variable


def array_view(tensor: tf.Tensor) -> np.ndarray:
    """Returns a writable view of a tensor's memory on the CPU, a copy of it from another device; `numpy()` always copies."""
    return tensor._numpy()


def symbolic_build(model: keras.Model, element_spec: Any) -> None:
    """Builds a model, its metrics and its losses without data.

    Args:
        model: a compiled model with Keras's own train step.
        element_spec: of a batch of its data.
    """
    batch = tf.nest.map_structure(lambda spec: keras.KerasTensor(tuple(spec.shape), spec.dtype.name), element_spec)
    model._symbolic_build(data_batch=batch)


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Sets the epoch, 0-based, with which the running `fit` begins, in `on_train_begin`; None leaves it to `fit`'s argument."""
    model._initial_epoch = epoch


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """Returns the model and all layers in it."""
    return model._flatten_layers()


class FitData:
    """The training data of a running `fit`. It lives as long as the `fit`.

    Args:
        epoch_iterator: Keras's iterator over the epochs, the same through one `fit`.
        make: called wherever Keras would make an iterator of `dataset`; each epoch takes one, and may drop others.
    """

    def __init__(self, epoch_iterator: Any, make: Callable[[], Any]):
        self.dataset = epoch_iterator._distributed_dataset
        self._epoch_iterator = weakref.ref(epoch_iterator)
        epoch_iterator._distributed_dataset = _Iterable(self, make)

    @property
    def epoch_iterator(self) -> Any:
        """Keras's iterator over the epochs."""
        return self._epoch_iterator()

    @property
    def length(self) -> int | None:
        """Batches that an iterator has; None if unknown."""
        return self.epoch_iterator.data_adapter.num_batches

    @property
    def takes_steps(self) -> bool:
        """Whether an epoch has a number of steps of its own, so that several may share an iterator."""
        return bool(self.epoch_iterator.steps_per_epoch)

    @property
    def continues(self) -> bool:
        """Whether the next epoch goes on with the iterator of the last one, as with `steps_per_epoch`."""
        return self.takes_steps and self.epoch_iterator._current_iterator is not None

    def count_as_seen(self, batches: int) -> None:
        """Counts further batches as drawn from the iterator, of which Keras may know the length."""
        self.epoch_iterator._steps_seen += batches

    @property
    def py_dataset(self) -> keras.utils.PyDataset | None:
        """The `PyDataset` that the data comes from."""
        return getattr(self.epoch_iterator.data_adapter, "py_dataset", None)

    @property
    def shuffles_by_python(self) -> bool:
        """Whether Keras shuffles the batches of a `PyDataset`, with the generator of Python's `random`."""
        return self.py_dataset is not None and bool(self.epoch_iterator.data_adapter.shuffle)


class _Iterable:
    def __init__(self, data: FitData, make: Callable[[], Any]):
        self._data, self._make = data, make

    def __iter__(self):
        return self._make()


def undistributed(dataset: Any) -> Any:
    """Returns the dataset that a strategy distributes."""
    return getattr(dataset, "_original_dataset", dataset)


def inputs_of(dataset: tf.data.Dataset) -> list[tf.data.Dataset]:
    """Returns the datasets that a step of a pipeline reads from."""
    return dataset._inputs()


def graphs_of(dataset: tf.data.Dataset) -> list[tf.Graph]:
    """Returns the graphs of the functions that a step of a pipeline calls."""
    return [function.function.graph for function in dataset._functions()]


def seeds_of(dataset: tf.data.Dataset) -> list[int] | None:
    """Returns the two seeds of a shuffle, both 0 if it takes others each time; None for a step without."""
    if not hasattr(dataset, "_seed2"):
        return None
    return [int(keras.ops.convert_to_numpy(seed)) for seed in (dataset._seed, dataset._seed2)]


def is_anew_for_each_iterator(dataset: tf.data.Dataset) -> bool:
    """Whether each iterator of a step with seeds has another order than the one before."""
    return bool(getattr(dataset, "_reshuffle_each_iteration", False) or getattr(dataset, "_rerandomize", False))


def batches_of_validation(model: keras.Model) -> int | None:
    """Returns how many batches the validation of the running `fit` has; None if unknown, or in an `evaluate` outside `fit`."""
    validation = getattr(model, "_eval_epoch_iterator", None)
    return validation and validation.num_batches


def updated_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Returns the variables that an optimizer was built for."""
    return getattr(optimizer, "_trainable_variables", [])


def constant_learning_rate(optimizer: keras.optimizers.Optimizer) -> keras.Variable | None:
    """Returns the variable that holds the learning rate; None under a schedule."""
    rate = getattr(optimizer, "_learning_rate", None)
    return rate if isinstance(rate, keras.Variable) else None


def accumulated_gradients(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """Returns the sums of the gradients of some variables since the last update."""
    return [optimizer._accumulated_gradients[optimizer._get_variable_index(variable)] for variable in variables]


def accumulate_gradients(
    optimizer: keras.optimizers.Optimizer, grads: Sequence[tf.Tensor], accumulated: Sequence[keras.Variable]
) -> None:
    """Adds gradients to their sums."""
    optimizer._backend_increment_gradient_accumulators(grads, accumulated)


def is_update_due(optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
    """Returns whether this batch is the last of an accumulation, before it is counted in `iterations`."""
    return tf.equal((tf.convert_to_tensor(optimizer._iterations) + 1) % optimizer.gradient_accumulation_steps, 0)


def update_and_reset(
    optimizer: keras.optimizers.Optimizer, grads: Sequence[tf.Tensor], variables: Sequence[keras.Variable]
) -> None:
    """Clips gradients, updates variables with them, and resets the accumulated gradients."""
    grads = optimizer._clip_gradients(grads)
    optimizer._apply_weight_decay(variables)
    optimizer._backend_update_step(grads, variables, optimizer.learning_rate)
    optimizer._backend_reset_gradient_accumulators()
