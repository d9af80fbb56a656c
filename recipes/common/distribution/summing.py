"""Gradients within one process, made those of the whole global batch before anything else is done with them.

Under MirroredStrategy, Keras 3 clips and accumulates what each replica has by itself, and sums only then. Clipped weights so
depend on the number of replicas, each replica holds accumulated gradients of its own, of which a checkpoint has one replica's,
and the condition around accumulation fails (`merge_call called while defining a new graph`).

Gradients of embeddings come as rows, a token's as often as it occurs. Adam squares each of them, instead of their sum, so those
too would depend on how the batch is shared, and clipping takes a norm that is not that of the gradient.
"""

import keras
import tensorflow as tf


def dense(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Has an optimizer see sparse gradients as dense ones, as under several replicas.

    Args:
        optimizer: any of Keras 3.

    Returns:
        The same optimizer.
    """
    apply = optimizer.apply

    def apply_dense(grads, trainable_variables=None):
        apply([grad if grad is None else tf.convert_to_tensor(grad) for grad in grads], trainable_variables)

    optimizer.apply = apply_dense
    return optimizer


def summing(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Has an optimizer sum its gradients over the replicas before it clips and accumulates them.

    The sum is the mean of the global batch: Keras divides each replica's loss by their number. The optimizer keeps its class, so
    that a saved model loads without this repository.

    Args:
        optimizer: any of Keras 3, made under the strategy's scope. Sparse gradients become dense, as under Horovod.

    Returns:
        The same optimizer.
    """
    inner = optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer
    apply_to_one_replica = inner._backend_apply_gradients

    def apply_sum(grads, variables):
        replica = tf.distribute.get_replica_context()
        summed = replica.all_reduce(tf.distribute.ReduceOp.SUM, [tf.convert_to_tensor(grad) for grad in grads])
        if inner.gradient_accumulation_steps:
            replica.merge_call(accumulate, args=(summed, variables))
        else:
            apply_to_one_replica(summed, variables)

    def accumulate(strategy, grads, variables):
        steps = inner.gradient_accumulation_steps
        accumulated = [inner._accumulated_gradients[inner._get_variable_index(variable)] for variable in variables]

        def update(grads):
            mean = [(grad + so_far) / steps for grad, so_far in zip(grads, accumulated, strict=True)]
            mean = inner._clip_gradients(mean)
            inner._apply_weight_decay(variables)
            inner._backend_update_step(mean, variables, inner.learning_rate)
            inner._backend_reset_gradient_accumulators()

        def add(grads):
            inner._backend_increment_gradient_accumulators(grads, accumulated)

        # The condition stands outside of what each replica does, where strategies of TensorFlow allow one.
        tf.cond(
            tf.equal((tf.convert_to_tensor(inner._iterations) + 1) % steps, 0),
            lambda: strategy.extended.call_for_each_replica(update, args=(grads,)),
            lambda: strategy.extended.call_for_each_replica(add, args=(grads,)),
        )

    inner._backend_apply_gradients = apply_sum
    inner._all_reduce_sum_gradients = lambda grads_and_variables: grads_and_variables
    return optimizer
