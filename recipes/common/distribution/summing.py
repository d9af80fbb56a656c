"""Gradients within one process, made those of the whole global batch before anything else is done with them.

Under MirroredStrategy, Keras 3 clips and accumulates what each replica has by itself, and sums only then. Clipped weights so
depend on the number of replicas, each replica holds accumulated gradients of its own, of which a checkpoint has one replica's,
and the condition around accumulation fails (`merge_call called while defining a new graph`).

Gradients of embeddings come as rows, a token's as often as it occurs. Adam squares each of them, instead of their sum, so those
too would depend on how the batch is shared, and clipping takes a norm that is not that of the gradient.
"""

import keras
import tensorflow as tf

from callbacks import keras_private
from callbacks.fit_hooks import around_apply, take_over_all_reduce


def dense(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Has an optimizer see sparse gradients as dense ones, as under several replicas.

    Args:
        optimizer: any of Keras 3.

    Returns:
        The same optimizer.
    """

    def apply_dense(apply, grads, trainable_variables=None):
        apply([grad if grad is None else tf.convert_to_tensor(grad) for grad in grads], trainable_variables)

    around_apply(optimizer, apply_dense)
    return optimizer


def summing(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> keras.optimizers.Optimizer:
    """Has an optimizer sum its gradients over the replicas before it clips and accumulates them.

    What it gets is the mean of the global batch: the sum where Keras divides each replica's loss by their number, as all but its
    oldest versions do. The optimizer keeps its class, so that a saved model loads without this repository.

    Args:
        optimizer: any of Keras 3, made under the strategy's scope. Sparse gradients become dense, as under Horovod.
        strategy: the strategy.

    Returns:
        The same optimizer.
    """
    inner = optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer
    reduction = tf.distribute.ReduceOp.SUM if _divides_losses(strategy) else tf.distribute.ReduceOp.MEAN

    def apply_sum(apply_to_one_replica, grads, variables):
        replica = tf.distribute.get_replica_context()
        summed = replica.all_reduce(reduction, [tf.convert_to_tensor(grad) for grad in grads])
        if inner.gradient_accumulation_steps:
            replica.merge_call(accumulate, args=(summed, variables))
        else:
            apply_to_one_replica(summed, variables)

    def accumulate(strategy, grads, variables):
        accumulated = keras_private.accumulated_gradients(inner, variables)

        def update(grads):
            mean = [(grad + so_far) / inner.gradient_accumulation_steps for grad, so_far in zip(grads, accumulated, strict=True)]
            keras_private.update_and_reset(inner, mean, variables)

        def add(grads):
            keras_private.accumulate_gradients(inner, grads, accumulated)

        # The condition stands outside of what each replica does, where strategies of TensorFlow allow one.
        tf.cond(
            keras_private.is_update_due(inner),
            lambda: strategy.extended.call_for_each_replica(update, args=(grads,)),
            lambda: strategy.extended.call_for_each_replica(add, args=(grads,)),
        )

    take_over_all_reduce(inner, apply_sum)
    return optimizer


def _divides_losses(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether Keras divides each replica's loss by the number of replicas."""

    @tf.function(autograph=False)  # TensorFlow warns of replicas that run eagerly
    def lose():
        return strategy.run(lambda: keras.losses.MeanSquaredError()(tf.ones([1, 1]), tf.zeros([1, 1])))

    losses = lose()
    return float(strategy.experimental_local_results(losses)[0]) < 1
