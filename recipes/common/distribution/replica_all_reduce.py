"""Gradient all-reduce over the replicas of one process, before clipping and accumulation.

Under MirroredStrategy, Keras 3 first clips and accumulates the gradients of each replica, and then sums them. So the weights depend
on the number of replicas if gradients are clipped; each replica accumulates its own gradients, of which a checkpoint stores only
one replica's; and the condition around accumulation fails (`merge_call called while defining a new graph`).

Gradients of embeddings are sparse, with one row for each occurrence of a token. Adam squares each row instead of the sum of the
rows, so the result would also depend on how the batch is shared, and clipping would use a wrong norm.
"""

import keras
import tensorflow as tf

from callbacks.model import keras_private
from callbacks.model.fit_hooks import around_apply, take_over_all_reduce


def dense_gradients(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Makes an optimizer receive dense gradients, as with several replicas.

    Args:
        optimizer: any optimizer of Keras 3.

    Returns:
        The same optimizer.
    """

    def apply_dense(apply, grads, trainable_variables=None):
        apply([grad if grad is None else tf.convert_to_tensor(grad) for grad in grads], trainable_variables)

    around_apply(optimizer, apply_dense)
    return optimizer


def reduce_over_replicas(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> keras.optimizers.Optimizer:
    """Makes an optimizer reduce its gradients over the replicas before it clips and accumulates them.

    The result is the mean over the global batch. All but the oldest supported versions of Keras divide the loss of each replica by
    the number of replicas, so the reduction is a sum. The optimizer keeps its class, so that a saved model loads without this
    repository.

    Args:
        optimizer: any optimizer of Keras 3, created under the scope of the strategy. Sparse gradients become dense.
        strategy: the strategy.

    Returns:
        The same optimizer.
    """
    inner = optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer
    reduction = tf.distribute.ReduceOp.SUM if _divides_losses(strategy) else tf.distribute.ReduceOp.MEAN

    def apply_reduced(apply_to_one_replica, grads, variables):
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

        # Strategies of TensorFlow allow a condition only outside the code of a replica.
        tf.cond(
            keras_private.is_update_due(inner),
            lambda: strategy.extended.call_for_each_replica(update, args=(grads,)),
            lambda: strategy.extended.call_for_each_replica(add, args=(grads,)),
        )

    take_over_all_reduce(inner, apply_reduced)
    return optimizer


def _divides_losses(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether Keras divides each replica's loss by the number of replicas."""

    @tf.function(autograph=False)  # TensorFlow warns about eager replicas
    def lose():
        return strategy.run(lambda: keras.losses.MeanSquaredError()(tf.ones([1, 1]), tf.zeros([1, 1])))

    losses = lose()
    return float(strategy.experimental_local_results(losses)[0]) < 1
