"""Small generative models with custom train steps: GANs, a denoising model, and variational autoencoders."""

import keras
import numpy as np
import tensorflow as tf
from kind_data import rows

layers, optimizers = keras.layers, keras.optimizers


class GAN(keras.Model):
    """A generator and a discriminator with one optimizer each, as in the guides of keras.io.

    Args:
        updates: how often the discriminator is updated in a batch.
    """

    def __init__(self, updates=1):
        super().__init__()
        self.updates = updates
        self.discriminator = keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="relu"), layers.Dense(1)])
        self.generator = keras.Sequential([keras.Input((3,)), layers.Dense(6)])
        self.seeds = keras.random.SeedGenerator(5)
        self.d_tracker, self.g_tracker = keras.metrics.Mean(name="d_loss"), keras.metrics.Mean(name="g_loss")

    def get_config(self):
        return {"updates": self.updates}

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        self.loss_of = keras.losses.BinaryCrossentropy(from_logits=True, reduction="sum")

    def get_compile_config(self):  # stock Keras does not support two optimizers
        return None

    @property
    def metrics(self):
        return [self.d_tracker, self.g_tracker]

    def noise(self, real):
        return keras.random.normal((tf.shape(real)[0], 3), seed=self.seeds)

    def train_step(self, data):
        real, _ = data
        label = tf.ones((tf.shape(real)[0], 1))
        for _ in range(self.updates):
            fake = self.generator(self.noise(real))
            with tf.GradientTape() as tape:
                d_loss = self.loss_of(label, self.discriminator(fake)) + self.loss_of(0 * label, self.discriminator(real))
            weights = self.discriminator.trainable_weights
            self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        with tf.GradientTape() as tape:
            g_loss = self.loss_of(0 * label, self.discriminator(self.generator(self.noise(real))))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        self.d_tracker.update_state(d_loss)
        self.g_tracker.update_state(g_loss)
        return {"d_loss": self.d_tracker.result(), "g_loss": self.g_tracker.result()}


def gan(updates=1):
    """Two optimizers."""
    model = GAN(updates)
    model.compile(optimizers.Adam(0.05), optimizers.Adam(0.02))
    return model


class GANWithEncoder(GAN):
    """A GAN with an encoder for its noise, which has its own optimizer, in a dict."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((6,)), layers.Dense(3)])

    def get_config(self):
        return {}

    def compile(self, d_optimizer, g_optimizer, of_parts):
        super().compile(d_optimizer, g_optimizer)
        self.of_parts = of_parts

    def train_step(self, data):
        real, _ = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((self.generator(self.encoder(real)) - real) ** 2)
        weights = self.encoder.trainable_weights
        self.of_parts["encoder"].apply(tape.gradient(loss, weights), weights)
        return super().train_step(data)


def gan_with_three_optimizers():
    model = GANWithEncoder()
    model.compile(optimizers.Adam(0.05), optimizers.RMSprop(0.02), {"encoder": optimizers.SGD(0.01, momentum=0.9)})
    return model


class DDIM(keras.Model):
    """A denoising model: a normalizer, a network, and the moving average of the network."""

    def __init__(self):
        super().__init__()
        self.normalizer = layers.Normalization()
        self.network = keras.Sequential([keras.Input((6,)), layers.Dense(6)])
        self.ema_network = keras.models.clone_model(self.network)
        self.seeds = keras.random.SeedGenerator(3)

    def get_config(self):
        return {}

    def compile(self, **options):
        super().compile(**options)
        self.noise_loss = keras.metrics.Mean(name="noise_loss")

    @property
    def metrics(self):
        return [self.noise_loss]

    def call(self, x):
        return self.ema_network(self.normalizer(x))

    def train_step(self, data):
        x = self.normalizer(data[0])
        noise = keras.random.normal(tf.shape(x), seed=self.seeds)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.abs(noise - self.network(x + noise)))
        weights = self.network.trainable_weights  # and not those of the average
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.noise_loss.update_state(loss)
        for weight, average in zip(self.network.weights, self.ema_network.weights, strict=True):
            average.assign(0.9 * average + 0.1 * weight)
        return {"noise_loss": self.noise_loss.result()}


def ddim():
    model = DDIM()
    model.normalizer.adapt(rows().map(lambda x, y: x))
    model.compile(optimizer=optimizers.AdamW(0.01))
    model(np.zeros((1, 6), "float32"))
    return model


class Sampling(layers.Layer):
    """Draws from the distribution that an encoder names."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_variance = inputs
        return mean + tf.exp(0.5 * log_variance) * keras.random.normal(tf.shape(mean), seed=self.seeds)


class VAE(keras.Model):
    """A variational autoencoder without `call`, as in the guides of keras.io."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.total = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.total]

    def train_step(self, data):
        x, _ = data
        with tf.GradientTape() as tape:
            mean, log_variance, drawn = self.encoder(x)
            divergence = -0.5 * tf.reduce_mean(1 + log_variance - mean**2 - tf.exp(log_variance))
            loss = tf.reduce_mean((self.decoder(drawn) - x) ** 2) + divergence
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        self.total.update_state(loss)
        return {"loss": self.total.result()}


def vae():
    x = keras.Input((6,))
    mean, log_variance = layers.Dense(2)(x), layers.Dense(2)(x)
    encoder = keras.Model(x, [mean, log_variance, Sampling()([mean, log_variance])])
    model = VAE(encoder, keras.Sequential([keras.Input((2,)), layers.Dense(6)]))
    model.compile(optimizers.Adam(0.01))
    return model


class LazyEncoder(keras.Model):
    """An encoder that learns the shape of its input from the first batch."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_variance, self.sampling = layers.Dense(2), layers.Dense(2), Sampling()

    def call(self, x):
        mean, log_variance = self.mean(x), self.log_variance(x)
        return mean, log_variance, self.sampling([mean, log_variance])


def lazy_vae():
    """A model without an Input: only the first batch builds it."""
    model = VAE(LazyEncoder(), keras.Sequential([layers.Dense(4, activation="tanh"), layers.Dense(6)]))
    model.compile(optimizers.Adam(0.01))
    return model
