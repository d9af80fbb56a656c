"""Models whose layers store every kind of value, and trainings that save them with Keras at the same instants."""

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from callbacks import GlobalStepCheckpoint

SUFFIXES = (".weights.h5", ".keras")
BATCH, BATCHES = 4, 4
LARGE = (1 << 16) + 24  # bytes; from 64 KiB on a value does not go through HDF5
KEPT = {
    "matrix": np.arange(6, dtype="float32").reshape(2, 3),
    "half": np.array([1.5, -2], "float16"),
    "double": np.array([0.1], "float64"),
    "counts": np.array([1, 2**62], "int64"),
    "seeds": np.array([2**32 - 1, 7], "uint32"),
    "flags": np.array([True, False]),
    "complex": np.array([1 + 2j], "complex64"),
    "big_endian": np.array([1, 2], ">f4"),
    "number": np.float32(3.5),
    "nothing": np.zeros([0, 3], "float32"),
    "bits": np.array([0.5, 3.0], ml_dtypes.bfloat16),
}
DTYPES = ("float32", "float16", "float64", "int8", "int64", "uint32", "bool", "complex64", ">f4", ml_dtypes.bfloat16)
KEPT_LARGE = {
    np.dtype(dtype).str.strip("<>|") + f"_{i}": np.random.default_rng(i).integers(0, 100, LARGE).astype(dtype)
    for i, dtype in enumerate(DTYPES)
} | {"transposed": np.arange(40_000, dtype="float32").reshape(200, 200).T}


@keras.saving.register_keras_serializable("stored_values")
class Keeper(keras.layers.Layer):
    """Stores more than variables, and records what it gets back."""

    KEPT = KEPT

    def build(self, shape):
        self.kernel = self.add_weight(shape=[2, 3], name="kernel")
        self.twin = self.add_weight(shape=[2, 3], name="twin")

    def call(self, x):
        return x @ self.kernel + x @ self.twin

    def save_own_variables(self, store):
        for name, value in self.KEPT.items():
            store[name] = value

    def load_own_variables(self, store):
        self.found = {name: store[name] for name in store.keys()}  # noqa: SIM118, a store is not a dict
        matrix = KEPT["matrix"] if "matrix" not in self.found else self.found["matrix"]
        self.kernel.assign(matrix)
        self.twin.assign(matrix)


@keras.saving.register_keras_serializable("stored_values")
class LargeKeeper(Keeper):
    """The same with large arrays."""

    KEPT = KEPT_LARGE


@keras.saving.register_keras_serializable("stored_values")
class Variables(keras.layers.Layer):
    """Has a small and a large variable of each common dtype."""

    DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int32", "uint8", "int64", "bool")

    def build(self, shape):
        for dtype in self.DTYPES:
            for size in (3, LARGE):
                variable = self.add_weight(
                    shape=[size], dtype=dtype, initializer="zeros", name=f"{dtype}_{size}", trainable=False, autocast=False
                )
                variable.assign(np.random.default_rng(size).integers(0, 2 if dtype == "bool" else 100, size).astype(variable.dtype))

    def call(self, x):
        return x


@keras.saving.register_keras_serializable("stored_values")
class Nested(keras.layers.Layer):
    """Keeps layers in nested containers; some layers have the same name, and one occurs twice."""

    def __init__(self, **options):
        super().__init__(**options)
        dense = keras.layers.Dense
        self.listed = [dense(2, name="same"), dense(2, name="same"), keras.layers.BatchNormalization()]
        self.mapped = {"a": dense(2), "b": self.listed[0]}
        self.tuple = (dense(2), keras.Sequential([dense(2), keras.layers.Dropout(0.5)]))
        self.nested = [[dense(2)], {"c": [dense(2)]}]

    def innermost(self):  # not a property, because Keras finds layers through properties
        return (*self.nested[0], *self.nested[1]["c"])

    def build(self, shape):
        for layer in (*self.listed, *self.mapped.values(), *self.tuple, *self.innermost()):
            if not layer.built:
                layer.build((None, 2))

    def call(self, x, training=None):
        for layer in (self.listed[0], self.listed[1], self.mapped["a"], *self.tuple, *self.innermost()):
            x = layer(x)
        return self.listed[2](x, training=training)


def kept(layer=Keeper):
    return keras.Sequential([keras.Input([2]), layer(), keras.layers.Dense(1)])


def of_all_dtypes():
    return keras.Sequential([keras.Input([2]), Variables(), keras.layers.Dense(1)])


def wide():
    """Returns a model with large kernels and moments, and small biases."""
    return keras.Sequential(
        [keras.Input([2]), keras.layers.Dense(150), keras.layers.Dense(150, dtype="mixed_bfloat16"), keras.layers.Dense(1)]
    )


def wide_of_bfloat16():
    return keras.Sequential(
        [
            keras.Input([2]),
            keras.layers.Dense(250, dtype="bfloat16"),
            keras.layers.Dense(250, dtype="bfloat16"),
            keras.layers.Dense(1),
        ]
    )


def nested():
    return keras.Sequential([keras.Input([2]), Nested(), keras.layers.Dense(1)])


def of_words():
    """Returns a model whose learned vocabularies are assets of the archive."""
    layers = keras.layers
    vectorize, lookup = layers.TextVectorization(output_sequence_length=4), layers.StringLookup()
    vectorize.adapt(["a quick brown fox", "a slow é dog"])
    lookup.adapt(["red", "green\tblue", "red"])
    words, color = keras.Input([1], dtype="string"), keras.Input([1], dtype="string")
    pool = layers.GlobalAveragePooling1D()
    x = pool(layers.Embedding(20, 5)(vectorize(words))) + pool(layers.Embedding(9, 5)(lookup(color)))
    return keras.Model([words, color], layers.Dense(1)(x))


def with_a_shared_layer():
    """A layer that is used twice is stored once."""
    shared = keras.layers.Dense(2)
    inputs = keras.Input([2])
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.BatchNormalization()(shared(shared(inputs)))))


MODELS = {
    "small values": kept,
    "large values": lambda: kept(LargeKeeper),
    "variables of all dtypes": of_all_dtypes,
    "large weights": wide,
    "large weights of bfloat16": wide_of_bfloat16,
    "layers in containers": nested,
    "vocabularies": of_words,
    "a shared layer": with_a_shared_layer,
}


def data_for(model):
    random = np.random.default_rng(0)
    y = random.normal(size=[BATCH * BATCHES, 1]).astype("float32")
    if len(model.inputs) == 1:
        return random.normal(size=[BATCH * BATCHES, 2]).astype("float32"), y
    words = np.array([["a brown dog"], ["é fox"], ["unseen"], ["quick quick"]] * BATCHES)
    return [tf.constant(words), tf.constant(np.array([["red"], ["blue"], ["green\tblue"], [""]] * BATCHES))], y


class SaveAsKeras(keras.callbacks.Callback):
    """Saves the same instant with stock Keras, beside each checkpoint."""

    def __init__(self, directory, every):
        super().__init__()
        self.directory, self.every, self.batches = directory, every, 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches % self.every == 0:
            self.model.save_weights(self.directory / f"keras_{self.batches}.weights.h5")
            self.model.save(self.directory / f"keras_{self.batches}.keras")


def train(model, directory, background=True, optimizer="adam"):
    """Saves batches 2 and 4 with our callback, in both formats, and with Keras."""
    model.compile(optimizer, "mse", run_eagerly=True)
    x, y = data_for(model)
    ours = [
        GlobalStepCheckpoint(str(directory / f"ours_{{batch}}{suffix}"), save_freq=2, background=background) for suffix in SUFFIXES
    ]
    model.fit(x, y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[*ours, SaveAsKeras(directory, 2)])


def assert_same_values(found, expected, names):
    assert found.keys() == expected.keys() == names.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value), err_msg=name)
