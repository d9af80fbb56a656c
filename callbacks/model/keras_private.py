"""The private names of Keras and TensorFlow that this repository uses, with a fallback for versions that lack one.

Seen in Keras 3.5 to 3.15 and TensorFlow 2.17 to 2.21. If a name is missing, a slower public way replaces it: Keras writes and reads
its part of a file itself, variables are read one by one, the first batch is traced again. If there is no public way, training is
refused in one line when it begins.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import Optimizer

from callbacks.errors import InputError
from callbacks.model import versions

versions.warn_if_untested(tf.__version__, keras.__version__)  # before the lookups, which may fail on an unknown version


def _find(module: str, *names: str) -> Any:
    """Returns the object of the first name that a private module has; None if it has none of them."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        return None
    return next((getattr(found, name) for name in names if hasattr(found, name)), None)


_SAVING = "keras.src.saving.saving_lib"
_skipset = _find(_SAVING, "get_attr_skipset", "get_attr_skiplist")
_save_state = _find(_SAVING, "_save_state")
_model_as_json = _find(_SAVING, "_serialize_model_as_json")
_saveable = _find("keras.src.saving.keras_saveable", "KerasSaveable")
_get_global = _find("keras.src.backend.common.global_state", "get_global_attribute")
_make_global_seeds = _find("keras.src.random.seed_generator", "global_seed_generator")
_GLOBAL_SEEDS = _find("keras.src.random.seed_generator", "GLOBAL_SEED_GENERATOR") or "global_seed_generator"
_unscale_loss = _find("keras.src.losses.loss", "unscale_loss_for_distribution")
_is_deterministic = _find("tensorflow.python.framework.config", "is_op_determinism_enabled")
_list_devices = _find("tensorflow.python.client.device_lib", "list_local_devices")
_reads_and_writes = _find("tensorflow.python.framework.auto_control_deps_utils", "get_read_write_resource_inputs")
_execute = _find("tensorflow.python.eager.execute", "execute")
_context = _find("tensorflow.python.eager.context", "context")

# The base class of tf.Module, of tf.random.Generator and of what tf.saved_model.load returns.
AutoTrackable = _find("tensorflow.python.trackable.autotrackable", "AutoTrackable") or (tf.Module, tf.random.Generator)

# Keras's loading of a model's part of a file, and the store that it loads from; None if this version has others.
LOAD_STATE = _find(_SAVING, "_load_state")
KERAS_STORE = _find(_SAVING, "H5IOStore")

# The class of all Keras variables. In Keras 3.5 and 3.6, those of layers are not instances of `keras.Variable`.
KerasVariable = _find("keras.src.backend.common.variables", "KerasVariable", "Variable") or keras.Variable
# The classes of objects that Keras saves.
KerasSaveable = _saveable or (keras.Layer, keras.optimizers.Optimizer, keras.metrics.Metric, keras.losses.Loss)

# Whether Keras's walk over a model is known, so that Keras's part of a file can be read from the model.
KNOWS_WALK = None not in (_skipset, _save_state) and hasattr(_saveable, "_obj_type")
# The containers that the walk visits; in most versions before 3.15 also sets.
CONTAINERS = tuple(each for each in (list, dict, tuple, set) if KNOWS_WALK and each.__name__ in _save_state.__code__.co_names)
# Whether the walk visits containers in containers, as in Keras 3.12.4 and 3.15.
VISITS_NESTED_CONTAINERS = _find(_SAVING, "_container_path_present") is not None

# Methods that `fit_hooks` replaces.
EPOCH_LOGS = "_get_metrics_result_or_logs"  # of a model: logs of the last batch -> logs of an epoch or of a validation
APPLY_GRADIENTS = "_backend_apply_gradients"  # of an optimizer, on each replica: clips, accumulates and updates
ALL_REDUCE = "_all_reduce_sum_gradients"  # of an optimizer, on each replica: sums over the replicas

# Attributes of every Keras layer that hold no state. An unknown one costs the time of a visit.
BOOKKEEPING = frozenset(
    ("_build_shapes_dict", "_call_has_context_arg", "_inbound_nodes", "_outbound_nodes", "_tracked", "call_signature_parameters")
)


def needed(owner: keras.Model | Optimizer, name: str) -> Any:
    """Returns a private attribute without a public replacement.

    Raises:
        InputError: if this version of Keras has no such attribute.
    """
    if not hasattr(owner, name):
        raise InputError(
            f"Keras {keras.__version__} has no {type(owner).__name__}.{name}, which this package needs. Install {versions.TESTED}."
        )
    return getattr(owner, name)


def saved_kind(saveable: Any) -> str:
    """Returns the kind that Keras's saving walk takes an object for: `"Layer"`, `"Functional"`, `"Optimizer"`, ..."""
    return saveable._obj_type()


@functools.cache
def skipped_attributes(kind: str) -> frozenset[str]:
    """Returns the attributes that the walk does not visit in objects of this kind."""
    return frozenset(_skipset(kind))


def model_archive_json(model: keras.Model) -> dict[str, str] | None:
    """Returns the JSON members of the model's `.keras` archive: file name -> text. None if unknown."""
    if _model_as_json is None:
        return None
    config, metadata = _model_as_json(model)
    return {"metadata.json": metadata, "config.json": config}


def read_variables(handles: Sequence[Any], types: Sequence[int]) -> list[tf.Tensor]:
    """Reads variables of one device, given by handles and dtypes (TensorFlow's enum), with one operation if possible.

    One call for each variable takes ten times as long.
    """
    if None in (_execute, _context):
        return [tf.raw_ops.ReadVariableOp(resource=handle, dtype=of) for handle, of in zip(handles, types, strict=True)]
    attributes = ("N", len(handles), "dtypes", types)
    return _execute(b"_ReadVariablesOp", len(handles), inputs=handles, attrs=attributes, ctx=_context())


def global_seed_generator() -> keras.random.SeedGenerator | None:
    """Returns the generator that Keras draws from if no seed is given; None before the first such draw."""
    return _get_global and _get_global(_GLOBAL_SEEDS)


def make_global_seed_generator() -> None:
    """Makes that generator if it does not exist yet."""
    if _make_global_seeds is not None:
        _make_global_seeds()


def memory_limits() -> dict[str, int]:
    """Returns the bytes that TensorFlow may allocate on each GPU, if known: `"/gpu:0"` -> bytes."""
    gpus = [device for device in (_list_devices or list)() if device.device_type == "GPU"]
    return {f"/gpu:{device.name.rpartition(':')[2]}": device.memory_limit for device in gpus}


def native_variable(variable: keras.Variable | tf.Variable) -> tf.Variable:
    """Returns TensorFlow's variable; `keras.Variable.value` may return a cast of it."""
    if not isinstance(variable, KerasVariable):
        return variable
    return variable._value if hasattr(variable, "_value") else variable.value


def array_view(tensor: tf.Tensor) -> np.ndarray:
    """Returns a writable view of a tensor on the CPU, or a copy of a tensor on another device; `numpy()` always copies."""
    return tensor._numpy()


def can_build_symbolically(model: keras.Model) -> bool:
    """Returns whether `symbolic_build` can build the model."""
    return type(model).train_step is keras.Model.train_step and hasattr(model, "_symbolic_build")


def symbolic_build(model: keras.Model, element_spec: Any) -> None:
    """Builds a compiled model with Keras's own train step, its metrics and its losses, for data of this `element_spec`."""

    def symbol(spec):
        return None if spec is None else keras.KerasTensor(tuple(spec.shape), spec.dtype.name)

    needed(model, "_symbolic_build")(data_batch=tf.nest.map_structure(symbol, element_spec))


def forward(model: keras.Model, x: Any, y: Any, sample_weight: Any) -> tuple[Any, tf.Tensor]:
    """Returns the predictions for a batch and its loss in training, as Keras's own train step computes them."""
    y_pred = model(x, training=True) if needed(model, "_call_has_training_arg") else model(x)
    return y_pred, needed(model, "_compute_loss")(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def log_loss(model: keras.Model, loss: tf.Tensor, samples: tf.Tensor) -> None:
    """Adds the loss of a batch, from `forward`, to the logged loss, as Keras's own train step does."""
    # Keras divides the loss by the number of replicas; older versions also log it so.
    needed(model, "_loss_tracker").update_state(_unscale_loss(loss) if _unscale_loss else loss, sample_weight=samples)


def is_op_determinism_enabled() -> bool:
    """Returns whether TensorFlow's deterministic operations are enabled."""
    return _is_deterministic is not None and _is_deterministic()


class _Epoch(int):
    """An epoch that is true even if it is 0, because `fit` replaces a false one by its argument."""

    def __bool__(self):
        return True


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Sets the 0-based epoch with which the running `fit` begins; None for the argument of `fit`. Call it in `on_train_begin`.

    Raises:
        InputError: if this version of Keras has no such attribute.
    """
    if epoch is not None:
        needed(model, "_initial_epoch")
    model._initial_epoch = None if epoch is None else _Epoch(epoch)


def have_fit_take(adapter: type) -> None:
    """Makes `fit` accept data adapters of a class as data. Only the oldest versions do not do that themselves.

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


def dataset_of(epoch_iterator: Any) -> Any:
    """Returns the data set that `fit` draws its batches from."""
    return epoch_iterator._distributed_dataset


def replace_dataset(epoch_iterator: Any, dataset: Any) -> None:
    """Makes `fit` draw its batches from another data set."""
    epoch_iterator._distributed_dataset = dataset


def has_open_iterator(epoch_iterator: Any) -> bool:
    """Returns whether the last epoch left its iterator to the next one, as with `steps_per_epoch`."""
    return epoch_iterator._current_iterator is not None


def count_as_seen(epoch_iterator: Any, batches: int) -> None:
    """Counts batches as drawn from the iterator, whose length Keras may know."""
    epoch_iterator._steps_seen += batches


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
    """Returns the types of the operations in a graph and in the functions that it calls."""
    called = [each for each in getattr(graph, "_functions", {}).values() if hasattr(each, "cached_definition")]
    within = {node.op for function in called for node in function.cached_definition.node_def}
    return {operation.type for operation in graph.get_operations()} | within


def written_variables(graph: tf.Graph) -> list[tf.Variable]:
    """Returns the variables outside a graph that its operations write; none if this version has no such analysis."""
    inputs = {id(outer): inner for outer, inner in getattr(graph, "captures", [])}
    known = getattr(graph, "_watched_variables", []) if _reads_and_writes else []
    return [variable for variable in known if id(variable.handle) in inputs and _is_written(inputs[id(variable.handle)])]


def _is_written(handle: tf.Tensor) -> bool:
    return any(each.name == handle.name for operation in handle.consumers() for each in _reads_and_writes(operation)[1])


def seeds_of(dataset: tf.data.Dataset) -> list[int] | None:
    """Returns the two seeds of a step, both 0 if it draws new ones each time; None if it has no seeds."""
    if not hasattr(dataset, "_seed2"):
        return None
    return [int(keras.ops.convert_to_numpy(seed)) for seed in (dataset._seed, dataset._seed2)]


def reshuffles_each_iterator(dataset: tf.data.Dataset) -> bool:
    """Returns whether each new iterator of a step with seeds has another order."""
    return bool(getattr(dataset, "_reshuffle_each_iteration", False) or getattr(dataset, "_rerandomize", False))


def is_in_any_order(dataset: tf.data.Dataset) -> bool:
    """Returns whether a step may yield its elements in any order (`deterministic=False`)."""
    return getattr(dataset, "_deterministic", None) == "false"


def batches_of_validation(model: keras.Model) -> int | None:
    """Returns the number of batches in the validation of the running `fit`; None if unknown, or in `evaluate` outside `fit`."""
    validation = getattr(model, "_eval_epoch_iterator", None)
    return validation and validation.num_batches


def updated_variables(optimizer: Optimizer) -> list[keras.Variable]:
    """Returns the variables that an optimizer was built for; those of its inner optimizer if it has no list."""
    own = getattr(optimizer, "_trainable_variables", [])
    inner = getattr(optimizer, "inner_optimizer", None)
    return updated_variables(inner) if inner is not None and not own else own


def iterations_of(optimizer: Optimizer) -> Any:
    """Returns the update count of an optimizer; for a loss-scaling one, that of its inner optimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer).iterations


def constant_learning_rate(optimizer: Optimizer) -> keras.Variable | None:
    """Returns the variable that holds the learning rate; None under a schedule."""
    rate = getattr(optimizer, "_learning_rate", None)
    return rate if isinstance(rate, KerasVariable) else None


def keep_best(callback: keras.callbacks.Callback) -> None:
    """Keeps a callback's `best` when it chooses its direction later, which resets `best` in older versions."""
    choose = getattr(type(callback), "_set_monitor_op", None)
    if choose is None or callback.monitor_op is not None or not hasattr(callback, "best"):
        return
    best = callback.best

    def choose_and_keep():
        del callback._set_monitor_op
        choose(callback)
        callback.best = best

    callback._set_monitor_op = choose_and_keep


def accumulated_gradients(optimizer: Optimizer, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """Returns the accumulated gradients of variables since the last update."""
    return [optimizer._accumulated_gradients[optimizer._get_variable_index(variable)] for variable in variables]


def accumulate_gradients(optimizer: Optimizer, grads: Sequence[tf.Tensor], accumulated: Sequence[keras.Variable]) -> None:
    """Adds gradients to the accumulated ones."""
    optimizer._backend_increment_gradient_accumulators(grads, accumulated)


def is_update_due(optimizer: Optimizer) -> tf.Tensor:
    """Returns whether this batch is the last of an accumulation. Call it before `iterations` counts the batch."""
    return tf.equal((tf.convert_to_tensor(optimizer._iterations) + 1) % optimizer.gradient_accumulation_steps, 0)


def update_and_reset(optimizer: Optimizer, grads: Sequence[tf.Tensor], variables: Sequence[keras.Variable]) -> None:
    """Clips gradients, updates variables with them, and resets the accumulated gradients."""
    grads = optimizer._clip_gradients(grads)
    optimizer._apply_weight_decay(variables)
    optimizer._backend_update_step(grads, variables, optimizer.learning_rate)
    optimizer._backend_reset_gradient_accumulators()
