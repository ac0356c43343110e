"""Repeating a step over a state, with all activations kept or computed again when needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

State = Any
"""A nest of tensors."""
Step = Callable[[tf.Tensor, "State | None", State], tuple[State, Sequence[tf.Tensor]]]
"""(t, state, inputs) -> (next state, outputs); t counts from 0, `inputs` are the same each time."""


def repeat(
    step: Step,
    count: tf.Tensor | int,
    inputs: State,
    dtypes: Sequence[tf.DType],
    recompute: bool = False,
) -> list[tf.Tensor]:
    """Return the outputs of `count` steps, each of them stacked to [count, ...].

    The first step gets None for a state, and stands outside the loop of the others, so that it may
    leave out what no state needs. Gradients reach `inputs` and the variables that `step` reads,
    and nothing else that it may hold. With `recompute`, only the states between steps are kept for
    the backward pass, which runs every step a second time: equal gradients, the activations of one
    step instead of `count`.

    Args:
      step: made of TensorFlow operations; called with t [] int32.
      count: at least 1.
      inputs: a nest of tensors; with `recompute`, of one at least.
      dtypes: of the outputs.
      recompute: trade time for memory.
    """
    if not recompute:
        return _forward(step, count, inputs, dtypes, keep_states=False)[0]

    @tf.custom_gradient
    def run(*tensors):
        fixed = tf.nest.pack_sequence_as(inputs, tensors)
        outputs, first, states = _forward(step, count, fixed, dtypes, keep_states=True)

        def gradient(*upstream, variables=()):
            return _backward(step, count, first, states, fixed, upstream, variables)

        return outputs, gradient

    return list(run(*tf.nest.flatten(inputs)))


def _forward(step, count, inputs, dtypes, keep_states: bool):
    """Return the stacked outputs, the state after the first step, and those kept of the others."""
    zero = tf.constant(0)
    first, results = step(zero, None, inputs)
    kept = tf.nest.flatten(first) if keep_states else []
    states = [tf.TensorArray(x.dtype, count) for x in kept]
    outputs = [tf.TensorArray(dtype, count).write(zero, x) for dtype, x in zip(dtypes, results)]

    def body(t, state, states, outputs):
        # `zip` leaves the flat state out where no states are kept.
        states = [array.write(t, x) for array, x in zip(states, tf.nest.flatten(state))]
        state, results = step(t, state, inputs)
        return t + 1, state, states, [array.write(t, x) for array, x in zip(outputs, results)]

    *_, states, outputs = tf.while_loop(
        lambda t, *_: t < count, body, (zero + 1, first, states, outputs)
    )
    return [array.stack() for array in outputs], first, states


def _backward(step, count, first, states, inputs, upstream, variables):
    """Return the gradients of the flat `inputs` and of the variables."""
    arrays = [tf.TensorArray(x.dtype, count).unstack(x) for x in upstream]
    flat = tf.nest.flatten(inputs)

    def differentiate(t, state: list[tf.Tensor], d_after):
        """Return the gradients of the state, empty for the first step, inputs and variables."""
        with tf.GradientTape() as tape:
            tape.watch([state, flat])
            before = tf.nest.pack_sequence_as(first, state) if state else None
            after, outputs = step(t, before, tf.nest.pack_sequence_as(inputs, flat))
        return tape.gradient(
            [*tf.nest.flatten(after), *outputs],
            [state, flat, list(variables)],
            output_gradients=[*d_after, *(array.read(t) for array in arrays)],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    def body(t, d_state, sums):
        d_state, *now = differentiate(t, [array.read(t) for array in states], d_state)
        return t - 1, d_state, tf.nest.map_structure(tf.add, sums, now)

    zeros = [
        [tf.zeros_like(x) for x in group] for group in (tf.nest.flatten(first), flat, variables)
    ]
    # One at a time: steps could be computed again ahead of their turn, and would fill the memory.
    _, d_state, sums = tf.while_loop(
        lambda t, *_: t > 0,
        body,
        (tf.convert_to_tensor(count) - 1, zeros[0], zeros[1:]),
        parallel_iterations=1,
    )
    # Or the first step's activations would be those of the forward pass, kept until here.
    with tf.control_dependencies(d_state):
        _, *now = differentiate(tf.constant(0), [], d_state)
    return tf.nest.map_structure(tf.add, sums, now)
