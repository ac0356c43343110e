"""Repeating a step over a state, with all activations kept or computed again when needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

State = Any
"""A nest of tensors."""
Step = Callable[[tf.Tensor, State, State], tuple[State, Sequence[tf.Tensor]]]
"""(t, state, inputs) -> (next state, outputs); t counts from 0, `inputs` are the same each time."""


def repeat(
    step: Step,
    count: tf.Tensor | int,
    state: State,
    inputs: State,
    dtypes: Sequence[tf.DType],
    recompute: bool = False,
) -> list[tf.Tensor]:
    """Return the outputs of `count` steps, each of them stacked to [count, ...].

    Gradients reach `state`, `inputs` and the variables that `step` reads, and nothing else that it
    may hold. With `recompute`, only the states between steps are kept for the backward pass, which
    runs every step a second time: equal gradients, the activations of one step instead of `count`.

    Args:
      step: made of TensorFlow operations; called with t [] int32.
      count: at least 1.
      state: the state before the first step; a step does not change its shapes.
      inputs: a nest of tensors.
      dtypes: of the outputs.
      recompute: trade time for memory.
    """
    if not recompute:
        return _forward(step, count, state, inputs, dtypes, keep_states=False)[0]

    @tf.custom_gradient
    def run(*tensors):
        first, fixed = tf.nest.pack_sequence_as((state, inputs), tensors)
        outputs, states = _forward(step, count, first, fixed, dtypes, keep_states=True)

        def gradient(*upstream, variables=()):
            return _backward(step, count, states, first, fixed, upstream, variables)

        return outputs, gradient

    return list(run(*tf.nest.flatten((state, inputs))))


def _forward(step, count, state, inputs, dtypes, keep_states: bool):
    """Return the stacked outputs and, where they are kept, the states before each step."""
    kept = tf.nest.flatten(state) if keep_states else []
    states = [tf.TensorArray(x.dtype, count) for x in kept]
    outputs = [tf.TensorArray(dtype, count) for dtype in dtypes]

    def body(t, state, states, outputs):
        # `zip` leaves the flat state out where no states are kept.
        states = [array.write(t, x) for array, x in zip(states, tf.nest.flatten(state))]
        state, results = step(t, state, inputs)
        return t + 1, state, states, [array.write(t, x) for array, x in zip(outputs, results)]

    *_, states, outputs = tf.while_loop(
        lambda t, *_: t < count, body, (tf.constant(0), state, states, outputs)
    )
    return [array.stack() for array in outputs], states


def _backward(step, count, states, first, inputs, upstream, variables):
    """Return the gradients of the flat (state, inputs) and of the variables."""
    arrays = [tf.TensorArray(x.dtype, count).unstack(x) for x in upstream]

    def body(t, d_state, d_inputs, d_variables):
        state = [array.read(t) for array in states]
        fixed = tf.nest.flatten(inputs)
        with tf.GradientTape() as tape:
            tape.watch([state, fixed])
            packed = tf.nest.pack_sequence_as((first, inputs), [*state, *fixed])
            after, outputs = step(t, *packed)
        d_state, *now = tape.gradient(
            [*tf.nest.flatten(after), *outputs],
            [state, fixed, list(variables)],
            output_gradients=[*d_state, *(array.read(t) for array in arrays)],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        sums = tf.nest.map_structure(tf.add, [d_inputs, d_variables], now)
        return t - 1, d_state, *sums

    zeros = [
        [tf.zeros_like(x) for x in group]
        for group in (tf.nest.flatten(first), tf.nest.flatten(inputs), variables)
    ]
    # One at a time: steps could be computed again ahead of their turn, and would fill the memory.
    _, d_state, d_inputs, d_variables = tf.while_loop(
        lambda t, *_: t >= 0,
        body,
        (tf.convert_to_tensor(count) - 1, *zeros),
        parallel_iterations=1,
    )
    return [*d_state, *d_inputs], d_variables
