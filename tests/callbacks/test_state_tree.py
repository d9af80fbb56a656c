"""The state tree finds everything that training changes, under names that are the same in every process."""

import collections
import dataclasses
import gc
import types

import keras
import pytest
import tensorflow as tf
from small import arrays, fit, small_model

from callbacks.model.state_tree import StateTree

L = keras.layers


class Counter:
    """An object of a user's class."""

    def __init__(self):
        self.seen = tf.Variable(0)
        self.kept, self.by_name = [0], {"a": 0}


class Model(keras.Model):
    """Keeps state in all common places."""

    def __init__(self):
        super().__init__()
        self.blocks = [L.Dense(2), [L.Dense(3)]]
        self.heads = {"a": L.Dense(1), ("b", 1): L.Dense(1)}
        self.generator = tf.random.Generator.from_seed(1)
        self.counter = Counter()
        self.d_optimizer = keras.optimizers.SGD(momentum=0.9)
        self.names_of_classes = ["cat", "dog"]

    def call(self, x):
        return self.heads["a"](self.blocks[1][0](self.blocks[0](x))) + self.heads["b", 1](x)


def build():
    made = Model()
    made(tf.zeros([1, 2]))
    return made


@pytest.fixture
def model():
    keras.backend.clear_session(free_memory=False)  # so that Keras's global seed generator exists in no test, or in all
    return build()


def test_every_variable_is_found_once_under_its_shortest_name(model):
    names = StateTree(model).variables
    assert [name for name in names if "optimizer" not in name and "keras.random" not in name] == [
        "counter.seen",
        "generator._state_var",
        "blocks[0].bias",
        "blocks[0]._kernel",
        "heads['a'].bias",
        "heads['a']._kernel",
        "heads[('b', 1)].bias",
        "heads[('b', 1)]._kernel",
        "_layers[1].bias",  # shorter than `blocks[1][0].bias`
        "_layers[1]._kernel",
    ]
    assert len({id(variable) for variable in names.values()}) == len(names)


def test_an_optimizer_that_is_built_names_no_variable_of_a_layer(model):
    before = set(StateTree(model).variables)
    model.d_optimizer.build(model.trainable_variables)
    after = StateTree(model).variables
    assert before < set(after)
    assert all(name.startswith("d_optimizer.") for name in set(after) - before)


def test_names_equal_those_of_another_model_built_the_same_way():
    first, second = small_model(), small_model()
    fit(first)
    second.train_on_batch(*(each[:4] for each in arrays()))
    assert [v.path for v in first.variables] != [v.path for v in second.variables]
    assert list(StateTree(first).variables) == list(StateTree(second).variables)


def test_variables_of_metrics_have_distinct_names():
    model = small_model(metrics=["mae"])
    fit(model)
    tree = StateTree(model)
    assert {id(tree.variables[name]) for name in tree.metrics} == {id(v) for v in model.metrics_variables}


def test_an_optimizer_within_another_is_not_an_outer_one():
    model = small_model(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()))
    assert list(StateTree(model).optimizers) == ["optimizer", "optimizer.inner_optimizer"]
    assert StateTree(model).outer_optimizers == [model.optimizer]


CHANGES = {
    "another object in its place": lambda model: setattr(model, "d_optimizer", keras.optimizers.Adam()),
    "a variable in a list": lambda model: model.counter.kept.append(tf.Variable(1.0)),
    "a variable in a dict": lambda model: model.counter.by_name.update(b=tf.Variable(1.0)),
    "another variable in its place": lambda model: model.counter.by_name.update(a=tf.Variable(1.0)),
    "compile": lambda model: model.compile("adam", "mse"),
    "LoRA": lambda model: model.blocks[0].enable_lora(1),
    "an optimizer that was built": lambda model: model.d_optimizer.build(model.trainable_variables),
    "an attribute of an object of the user's own": lambda model: setattr(model.counter, "more", tf.Variable(1.0)),
}


def test_a_tree_knows_when_the_model_has_changed():
    changed = {}
    for kind, change in CHANGES.items():
        model = build()
        tree = StateTree(model)
        assert tree.is_current() and tree.is_like(StateTree(model)), kind
        change(model)
        changed[kind] = tree, model
    gc.collect()  # once, because it takes a second
    for kind, (tree, model) in changed.items():
        assert not tree.is_current() and not tree.is_like(StateTree(model)), kind


def test_a_tree_knows_when_an_empty_list_is_filled(model):
    model.counter.later = []
    tree = StateTree(model)
    assert tree.is_current()
    model.counter.later.append(tf.Variable(1.0))
    assert not tree.is_current()


def test_training_changes_values_and_not_the_tree():
    model = small_model(metrics=["mae"])
    fit(model)
    tree = StateTree(model)
    fit(model)
    assert tree.is_like(StateTree(model))


def test_attributes_that_training_updates_are_not_changes_of_the_model(model):
    tree = StateTree(model)
    model.counter.kept = ["batch 50"]
    model.counter.losses = [0.1, 0.2]
    assert tree.is_like(StateTree(model))


@dataclasses.dataclass(slots=True)
class Slots:
    """An object without a dict of attributes."""

    first: object
    second: object = None


def test_variables_are_found_in_namespaces_and_in_objects_with_slots(model):
    model.named = types.SimpleNamespace(variable=tf.Variable(1.0))
    model.slots = Slots(tf.Variable(1.0))
    tree = StateTree(model)
    assert {"named.variable", "slots.first"} < tree.variables.keys()
    assert tree.is_current()
    model.slots.second = tf.Variable(2.0)
    assert not tree.is_current()


def test_the_name_of_a_variable_contains_no_text_of_an_object(model):
    model.by_pair = {(model.blocks[0], "a"): tf.Variable(1.0), ("b", 0): tf.Variable(2.0)}
    assert {"by_pair[#0]", "by_pair[('b', 0)]"} < StateTree(model).variables.keys()


Pair = collections.namedtuple("Pair", ["first", "second"])


def test_variables_are_found_in_what_tensorflow_wraps_and_in_what_it_has_loaded(model, tmp_path):
    module = tf.Module()
    module.variable = tf.Variable(1.0)
    tf.saved_model.save(module, tmp_path)
    model.loaded = tf.saved_model.load(tmp_path)
    module.by_name, module.pair = {"a": [tf.Variable(1.0)]}, (tf.Variable(1.0), {"b": tf.Variable(1.0)})
    model.module, model.generators = module, (tf.random.Generator.from_seed(1),)
    model.pair = Pair(keras.optimizers.SGD(), keras.optimizers.Adam())
    tree = StateTree(model)
    names = {"loaded.variable", "module.by_name['a'][0]", "module.pair[0]", "module.pair[1]['b']", "generators[0]._state_var"}
    assert names < tree.variables.keys()
    assert {"pair[0]", "pair[1]"} < tree.optimizers.keys()
    assert tree.is_current()
    module.by_name["c"] = tf.Variable(1.0)
    assert not tree.is_current()
