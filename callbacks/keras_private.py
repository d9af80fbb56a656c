"""The private names of Keras and TensorFlow that this repository needs, and what is done where a version lacks one.

Seen in Keras 3.5 to 3.15 and TensorFlow 2.17 to 2.21. Where a name is missing, the public way is taken, which is slower: Keras
writes and reads its part of a file itself, variables are read one by one, the first batch is traced once more. What has no
public way is refused in one line when training begins.
"""

import functools
import importlib
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks import versions
from callbacks.errors import InputError

versions.say_if_untested(tf.__version__, keras.__version__)  # first: a name that nobody has thought of may be missing below


def _find(module: str, *names: str) -> Any:
    """Returns what a private module has under the first of these names that it knows; None where it knows none."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        return None
    return next((getattr(found, name) for name in names if hasattr(found, name)), None)


_SAVING = "keras.src.saving.saving_lib"
_skipset = _find(_SAVING, "get_attr_skipset", "get_attr_skiplist")
_save_state = _find(_SAVING, "_save_state")
_load_state = _find(_SAVING, "_load_state")
_model_as_json = _find(_SAVING, "_serialize_model_as_json")
_saveable = _find("keras.src.saving.keras_saveable", "KerasSaveable")
_keras_store = _find(_SAVING, "H5IOStore")
_get_global = _find("keras.src.backend.common.global_state", "get_global_attribute")
_make_global_seeds = _find("keras.src.random.seed_generator", "global_seed_generator")
_GLOBAL_SEEDS = _find("keras.src.random.seed_generator", "GLOBAL_SEED_GENERATOR") or "global_seed_generator"
_unscale_loss = _find("keras.src.losses.loss", "unscale_loss_for_distribution")
_is_deterministic = _find("tensorflow.python.framework.config", "is_op_determinism_enabled")
_list_devices = _find("tensorflow.python.client.device_lib", "list_local_devices")
_execute = _find("tensorflow.python.eager.execute", "execute")
_context = _find("tensorflow.python.eager.context", "context")

# All variables of Keras. In Keras 3.5 and 3.6, those of layers are not instances of `keras.Variable`.
KerasVariable = _find("keras.src.backend.common.variables", "KerasVariable", "Variable") or keras.Variable

# Everything that Keras saves.
KerasSaveable = _saveable or (keras.Layer, keras.optimizers.Optimizer, keras.metrics.Metric, keras.losses.Loss)

# Whether Keras's walk over a model is known, so that what it would write can be read from the model itself.
KNOWS_WALK = None not in (_skipset, _save_state) and hasattr(_saveable, "_obj_type")

# The containers in which the walk looks for more: in most versions before 3.15 sets too.
CONTAINERS = tuple(each for each in (list, dict, tuple, set) if KNOWS_WALK and each.__name__ in _save_state.__code__.co_names)
# Some versions (3.12.4, 3.15) also visit containers within containers.
_VISITS_NESTED_CONTAINERS = _find(_SAVING, "_container_path_present") is not None

# Methods that `fit_hooks` replaces.
EPOCH_LOGS = "_get_metrics_result_or_logs"  # of a model: logs of the last batch -> logs of an epoch or of a validation
APPLY_GRADIENTS = "_backend_apply_gradients"  # of an optimizer, on each replica: clips, accumulates and updates
ALL_REDUCE = "_all_reduce_sum_gradients"  # of an optimizer, on each replica: sums over the replicas

# Attributes of every Keras layer that hold no state. An unknown one costs the time of a visit.
BOOKKEEPING = frozenset(
    ("_build_shapes_dict", "_call_has_context_arg", "_inbound_nodes", "_outbound_nodes", "_tracked", "call_signature_parameters")
)


def needed(owner: keras.Model | keras.optimizers.Optimizer, name: str) -> Any:
    """Returns a private attribute that nothing public stands in for.

    Raises:
        InputError: if this version of Keras has none of that name.
    """
    if not hasattr(owner, name):
        raise InputError(
            f"Keras {keras.__version__} has no {type(owner).__name__}.{name}, which is needed here. Install {versions.TESTED}."
        )
    return getattr(owner, name)


def saved_children(saveable: Any) -> Iterator[tuple[str, Any]]:
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
    return frozenset(_skipset(kind))


def child_names(container: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yields the saveables and containers in a container, named as in Keras's files: `dense`, `dense_1`, `container`."""
    seen: dict[str, int] = {}
    for child in container.values() if isinstance(container, dict) else container:
        if isinstance(child, KerasSaveable):
            name = _to_snake_case(type(child).__name__)
        elif isinstance(child, CONTAINERS) and _VISITS_NESTED_CONTAINERS:
            name = "container"
        else:
            continue
        number = seen[name] = seen.get(name, -1) + 1
        yield f"{name}_{number}" if number else name, child


def _to_snake_case(name: str) -> str:
    """As Keras names groups: `Conv2D` -> `conv2d`, `LayerNormalization` -> `layer_normalization`."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def as_store(reader: type) -> type:
    """Returns a class that does what another one does, and that Keras takes for its own store of weights.

    Args:
        reader: has `get(path)`, which returns the values of an object by their names, and `has_path(path)`.
    """
    return reader if _keras_store is None else type(reader.__name__, (reader, _keras_store), {})


def load_state(model: keras.Model, store: Any, skip: Iterable[Any] = ()) -> dict[str, Exception] | None:
    """Loads Keras's part of a file into a model.

    Args:
        model: a model that has its variables.
        store: of a class that `as_store` returned.
        skip: objects of the model that stay as they are.

    Returns:
        The error of each object that could not be loaded, by its name. None if nothing was loaded, since this version of Keras
        does not do that.
    """
    if None in (_load_state, _keras_store):
        return None
    failed: set[int] = set()
    errors: dict[int, tuple[Any, Exception]] = {}
    visited = {id(each) for each in skip}
    _load_state(model, store, None, "", visited_saveables=visited, failed_saveables=failed, error_msgs=errors)
    return {str(getattr(saveable, "name", saveable)): error for saveable, error in errors.values()} if failed else {}


def model_archive_json(model: keras.Model) -> dict[str, str] | None:
    """Returns the JSON members of the model's `.keras` archive: file name -> text. None if this version does not tell."""
    if _model_as_json is None:
        return None
    config, metadata = _model_as_json(model)
    return {"metadata.json": metadata, "config.json": config}


def read_variables(handles: Sequence[Any], types: Sequence[int]) -> list[tf.Tensor]:
    """Reads variables of one device, with one operation where that is known: a call for each takes ten times as long.

    Args:
        handles: resource handles of the variables.
        types: their dtypes, as TensorFlow's enum.
    """
    if None in (_execute, _context):
        return [tf.raw_ops.ReadVariableOp(resource=handle, dtype=of) for handle, of in zip(handles, types, strict=True)]
    attributes = ("N", len(handles), "dtypes", types)
    return _execute(b"_ReadVariablesOp", len(handles), inputs=handles, attrs=attributes, ctx=_context())


def global_seed_generator() -> keras.random.SeedGenerator | None:
    """Returns the generator that Keras draws from where no seed is given; None before the first such draw."""
    return _get_global and _get_global(_GLOBAL_SEEDS)


def make_global_seed_generator() -> None:
    """Makes the same generator where it does not exist yet."""
    if _make_global_seeds is not None:
        _make_global_seeds()


def memory_limits() -> dict[str, int]:
    """Returns the bytes that TensorFlow's allocator may take on each GPU, as far as they are known: `"/gpu:0"` -> bytes."""
    gpus = [device for device in (_list_devices or list)() if device.device_type == "GPU"]
    return {f"/gpu:{device.name.rpartition(':')[2]}": device.memory_limit for device in gpus}


def native_variable(variable: keras.Variable | tf.Variable) -> tf.Variable:
    """Returns TensorFlow's variable; `keras.Variable.value` may return a cast of it."""
    if not isinstance(variable, KerasVariable):
        return variable
    return variable._value if hasattr(variable, "_value") else variable.value


def array_view(tensor: tf.Tensor) -> np.ndarray:
    """Returns a writable view of a tensor's memory on the CPU, a copy of it from another device; `numpy()` always copies."""
    return tensor._numpy()


def can_build_symbolically(model: keras.Model) -> bool:
    """Whether `symbolic_build` can build the model."""
    return type(model).train_step is keras.Model.train_step and hasattr(model, "_symbolic_build")


def symbolic_build(model: keras.Model, element_spec: Any) -> None:
    """Builds a model, its metrics and its losses without data.

    Args:
        model: a compiled model with Keras's own train step.
        element_spec: of a batch of its data.
    """

    def symbol(spec):
        return None if spec is None else keras.KerasTensor(tuple(spec.shape), spec.dtype.name)

    batch = tf.nest.map_structure(symbol, element_spec)
    needed(model, "_symbolic_build")(data_batch=batch)


def forward(model: keras.Model, x: Any, y: Any, sample_weight: Any) -> tuple[Any, tf.Tensor]:
    """Returns the predictions for a batch and its loss in training, as Keras's own train step computes them."""
    y_pred = model(x, training=True) if needed(model, "_call_has_training_arg") else model(x)
    return y_pred, needed(model, "_compute_loss")(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def log_loss(model: keras.Model, loss: tf.Tensor, samples: tf.Tensor) -> None:
    """Adds the loss of a batch to the logged loss, as Keras's own train step does.

    Args:
        model: a compiled model.
        loss: what `forward` returned. Keras divides it by the number of replicas; older versions also log it so.
        samples: how many samples the batch has.
    """
    needed(model, "_loss_tracker").update_state(_unscale_loss(loss) if _unscale_loss else loss, sample_weight=samples)


def is_op_determinism_enabled() -> bool:
    """Returns whether TensorFlow's deterministic operations are enabled."""
    return _is_deterministic is not None and _is_deterministic()


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Sets the epoch, 0-based, with which the running `fit` begins, in `on_train_begin`; None leaves it to `fit`'s argument.

    Raises:
        InputError: if this version of Keras has another way to do that.
    """
    if epoch is not None:
        needed(model, "_initial_epoch")
    model._initial_epoch = epoch


def have_fit_take(adapter: type) -> None:
    """Has `fit` take data adapters of a class as they are; all but the oldest versions do.

    Args:
        adapter: a subclass of Keras's `DataAdapter`.
    """
    adapters: Any = importlib.import_module("keras.src.trainers.data_adapters")
    of_keras = adapters.get_data_adapter
    if "DataAdapter" in of_keras.__code__.co_names or of_keras.__module__ == __name__:
        return

    def get_data_adapter(x: Any, *args: Any, **options: Any) -> Any:
        return x if isinstance(x, adapter) else of_keras(x, *args, **options)

    adapters.get_data_adapter = get_data_adapter


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """Returns the model and all layers in it."""
    return needed(model, "_flatten_layers")()


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


def operations_of(graph: tf.Graph) -> set[str]:
    """Returns the kinds of operations in a graph and in the functions that it calls."""
    functions = getattr(graph, "_functions", {}).values()
    within = {
        node.op for function in functions if hasattr(function, "cached_definition") for node in function.cached_definition.node_def
    }
    return {operation.type for operation in graph.get_operations()} | within


def seeds_of(dataset: tf.data.Dataset) -> list[int] | None:
    """Returns the two seeds of a shuffle, both 0 if it takes others each time; None for a step without."""
    if not hasattr(dataset, "_seed2"):
        return None
    return [int(keras.ops.convert_to_numpy(seed)) for seed in (dataset._seed, dataset._seed2)]


def is_anew_for_each_iterator(dataset: tf.data.Dataset) -> bool:
    """Whether each iterator of a step with seeds has another order than the one before."""
    return bool(getattr(dataset, "_reshuffle_each_iteration", False) or getattr(dataset, "_rerandomize", False))


def is_in_any_order(dataset: tf.data.Dataset) -> bool:
    """Whether a step may give its elements in any order (`deterministic=False`)."""
    return getattr(dataset, "_deterministic", None) == "false"


def batches_of_validation(model: keras.Model) -> int | None:
    """Returns how many batches the validation of the running `fit` has; None if unknown, or in an `evaluate` outside `fit`."""
    validation = getattr(model, "_eval_epoch_iterator", None)
    return validation and validation.num_batches


def updated_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Returns the variables that an optimizer was built for, or the one within it, where the outer one keeps no list."""
    own = getattr(optimizer, "_trainable_variables", [])
    inner = getattr(optimizer, "inner_optimizer", None)
    return updated_variables(inner) if inner is not None and not own else own


def iterations_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns how often an optimizer has updated; an older one that scales the loss counts nothing itself."""
    return getattr(optimizer, "inner_optimizer", optimizer).iterations


def constant_learning_rate(optimizer: keras.optimizers.Optimizer) -> keras.Variable | None:
    """Returns the variable that holds the learning rate; None under a schedule."""
    rate = getattr(optimizer, "_learning_rate", None)
    return rate if isinstance(rate, KerasVariable) else None


def keep_best(callback: keras.callbacks.Callback) -> None:
    """Keeps the `best` of a callback where it has yet to choose its direction; older versions begin `best` anew when it does."""
    choose = getattr(type(callback), "_set_monitor_op", None)
    if choose is None or callback.monitor_op is not None or not hasattr(callback, "best"):
        return
    best = callback.best

    def choose_and_keep():
        del callback._set_monitor_op
        choose(callback)
        callback.best = best

    callback._set_monitor_op = choose_and_keep


def mode_of(checkpoint: keras.callbacks.ModelCheckpoint) -> str:
    """Returns in which direction a checkpoint's metric gets better: `"min"`, `"max"` or, where it is not chosen yet, `"auto"`."""
    if hasattr(checkpoint, "mode"):
        return checkpoint.mode
    return "min" if checkpoint.monitor_op(0.0, 1.0) else "max"


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
