"""Optimizers and the learning rate by step."""

from __future__ import annotations

import math

import tensorflow as tf

from tfjoint.config import Config, ConfigError


def learning_rate_schedule(
    config: Config, objects: int
) -> tf.keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate by step: halved at every epoch of `config.halve_at_epochs`."""
    # Keras takes the next rate only after the boundary, so that is the last step before the epoch.
    boundaries = [math.ceil(e * objects / config.batch_size) - 1 for e in config.halve_at_epochs]
    rates = [config.learning_rate * 0.5**i for i in range(len(boundaries) + 1)]
    if not boundaries:  # which Keras does not take
        boundaries, rates = [0], rates * 2
    return tf.keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)


def make_optimizer(
    config: Config, schedule: tf.keras.optimizers.schedules.LearningRateSchedule | float
) -> tf.keras.optimizers.Optimizer:
    """Return the config's optimizer with a learning rate by step."""
    kind = {"adam": Adam, "adamw": AdamW}.get(config.optimizer) or _lamb()
    return kind(learning_rate=schedule)


def build_optimizer(optimizer: tf.keras.optimizers.Optimizer, variables: list[tf.Variable]) -> None:
    """Make the optimizer's variables now, in the strategy's scope, and not in the first step.

    Keras 3 cannot make them inside `strategy.run`; made in a step, they have it traced again.
    """
    if hasattr(optimizer, "build"):
        optimizer.build(variables)
    else:  # tensorflow-addons' LAMB is of Keras' older generation, which has no public way
        optimizer._create_all_weights(variables)


def _fused_update(self, gradient, variable, learning_rate=None):
    """Apply a dense gradient to a variable and its two moments.

    One operation, which TensorFlow has and Keras leaves unused: its fifteen pass over all weights
    as often (bench/NOTES.md, change 8). Moments and formula are Keras', and so are checkpoints.
    """
    if hasattr(self, "_get_variable_index"):  # Keras 3
        index = self._get_variable_index(variable)
    else:
        index, learning_rate = self._index_dict[self._var_key(variable)], self.learning_rate
    step = tf.cast(self.iterations + 1, variable.dtype)
    beta_1, beta_2 = (tf.cast(beta, variable.dtype) for beta in (self.beta_1, self.beta_2))
    tf.raw_ops.ResourceApplyAdam(
        var=_handle(variable),
        m=_handle(self._momentums[index]),
        v=_handle(self._velocities[index]),
        beta1_power=beta_1**step,
        beta2_power=beta_2**step,
        lr=tf.cast(learning_rate, variable.dtype),
        beta1=beta_1,
        beta2=beta_2,
        epsilon=tf.cast(self.epsilon, variable.dtype),
        grad=tf.cast(gradient, variable.dtype),
    )


class Adam(tf.keras.optimizers.Adam):
    """Keras' Adam with a fused update."""

    update_step = _fused_update


class AdamW(tf.keras.optimizers.AdamW):
    """Keras' AdamW with a fused update."""

    update_step = _fused_update


def _handle(variable: tf.Variable) -> tf.Tensor:
    """Return the resource of a variable of TensorFlow or of Keras 3."""
    return (variable if hasattr(variable, "handle") else variable.value).handle


def _lamb() -> type:
    if hasattr(tf.keras.optimizers, "Lamb"):
        return tf.keras.optimizers.Lamb
    try:
        from tensorflow_addons.optimizers import LAMB
    except ImportError as error:
        raise ConfigError(
            "optimizer=lamb needs Keras 3, or tensorflow-addons beside TensorFlow 2.14: "
            "install the extra tf214, or use adam or adamw"
        ) from error
    return LAMB
