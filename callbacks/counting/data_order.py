"""Inspects the order of a `tf.data` pipeline: its seeds, and the steps whose order cannot be repeated.

Each iterator of a data set starts from the beginning. Only a shuffle with `reshuffle_each_iteration` depends on earlier iterators.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import tensorflow as tf

from callbacks.model import keras_private

PYTHON = "it comes from Python code (a generator, a PyDataset, a py_function), which may yield other batches"
UNSEEDED = "it is shuffled or sampled without a seed (call keras.utils.set_random_seed first, or give the shuffle a seed)"
PARALLEL = "random operations run in a parallel map"
STATEFUL = "a function in it has state, such as a Keras layer with random operations"
ANY_ORDER = "it has no fixed order (deterministic=False)"
UNKNOWN = "it is not a tf.data.Dataset that can be inspected"
_KEEPS_SHUFFLES = "a shuffle comes before a repeat, a cache or a concatenation"

_RANDOM = re.compile("Random|Multinomial|SampleDistorted|TruncatedNormal")
_STATEFUL = re.compile("Assign|Stateful(?!PartitionedCall)|RngSkip|RngReadAndSkip")


class Replay(Enum):
    """How a new process brings the shuffles to their earlier state."""

    NOTHING = "no iterator depends on earlier ones"
    CREATE = "create the earlier iterators again"
    DRAW = "create them and draw an element from each, which creates the iterators of inner shuffles"
    IMPOSSIBLE = "create them and read them to their ends"


@dataclass
class DataOrder:
    """The known facts about the order of a data set.

    Args:
        seeds: the seeds of all random operations, in the order of the pipeline. Equal seeds mean equal order.
        doubts: reasons why the order may still differ in another process, for messages.
        replay: how to bring shuffles to their state before an iterator after the first one.
    """

    seeds: list[list[int]] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    replay: Replay = Replay.NOTHING

    def doubt(self, why: str) -> None:
        """Adds a reason, unless it is there already."""
        if why not in self.doubts:
            self.doubts.append(why)


def order_of(dataset: Any) -> DataOrder:
    """Inspects a pipeline.

    Args:
        dataset: a `tf.data.Dataset`, or one that a strategy distributes.
    """
    order = DataOrder()
    dataset = keras_private.undistributed(dataset)
    if not isinstance(dataset, tf.data.Dataset):
        order.doubt(UNKNOWN)
        return order
    if dataset.options().deterministic is False:
        order.doubt(ANY_ORDER)
    try:
        _inspect(dataset, order, ())
    except AttributeError:  # a version of TensorFlow without a private name
        order.doubt(UNKNOWN)
    return order


def doubts_of_replay(order: DataOrder) -> list[str]:
    """Returns why an iterator after the first one cannot be repeated."""
    return [_KEEPS_SHUFFLES] if order.replay is Replay.IMPOSSIBLE else []


def _inspect(dataset: tf.data.Dataset, order: DataOrder, after: tuple[str, ...]) -> None:
    """Inspects a step of a pipeline and the steps before it.

    Args:
        dataset: the step.
        order: receives the findings.
        after: the kinds of the later steps, the last one first.
    """
    kind = type(dataset).__name__
    seeds = keras_private.seeds_of(dataset)
    if seeds is not None:
        _note_seeds(order, seeds)
        if keras_private.reshuffles_each_iterator(dataset):
            _note_reshuffle(order, after)
    if "Service" in kind:
        order.doubt(UNKNOWN)
    if keras_private.is_in_any_order(dataset):
        order.doubt(ANY_ORDER)
    for graph in keras_private.graphs_of(dataset):
        _inspect_graph(graph, order, is_parallel="Parallel" in kind)
    for each in keras_private.inputs_of(dataset):
        _inspect(each, order, (*after, kind))


def _note_seeds(order: DataOrder, seeds: list[int]) -> None:
    order.seeds.append(seeds)
    if not any(seeds):
        order.doubt(UNSEEDED)


def _note_reshuffle(order: DataOrder, after: tuple[str, ...]) -> None:
    if any(name in kind for kind in after for name in ("Repeat", "Cache", "Concatenate")):
        order.replay = Replay.IMPOSSIBLE
    elif order.replay is not Replay.IMPOSSIBLE:
        order.replay = Replay.CREATE if order.replay is Replay.NOTHING else Replay.DRAW


def _inspect_graph(graph: tf.Graph, order: DataOrder, is_parallel: bool) -> None:
    """Inspects the operations of a function, which start again with each iterator."""
    for node, constants in _nodes(graph.as_graph_def()):
        if "PyFunc" in node.op or node.op == "GeneratorDataset":
            order.doubt(PYTHON)
        elif node.op.startswith("Stateless"):
            continue
        elif _STATEFUL.search(node.op):
            order.doubt(STATEFUL)
        elif ("Shuffle" in node.op and "Dataset" in node.op) or node.op.startswith("RandomDataset"):
            _note_seeds(order, [constants[name] for name in _inputs(node) if name in constants][-2:])
        elif _RANDOM.search(node.op):
            _note_seeds(order, [node.attr["seed"].i, node.attr["seed2"].i])
            if is_parallel:
                order.doubt(PARALLEL)


def _nodes(graph: Any) -> Iterator[tuple[Any, dict[str, int]]]:
    """Yields each operation of a graph and of its functions, with the integer constants of the same function."""
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        constants = {
            node.name: int(tf.make_ndarray(node.attr["value"].tensor))
            for node in nodes
            if node.op == "Const" and node.attr["dtype"].type == tf.int64.as_datatype_enum and not _dimensions(node)
        }
        for node in nodes:
            yield node, constants


def _dimensions(constant: Any) -> Any:
    return constant.attr["value"].tensor.tensor_shape.dim


def _inputs(node: Any) -> list[str]:
    return [name.partition(":")[0] for name in node.input]
