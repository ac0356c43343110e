"""Multiplications and additions that a TensorFlow graph makes, counted operation by operation."""

from __future__ import annotations

import math
from collections.abc import Iterable

import tensorflow as tf

_LOOPS = ("While", "StatelessWhile")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


class UncountedError(ValueError):
    """An operation whose shapes the graph does not say."""


def of_graph(graph: tf.Graph, trips: int) -> float:
    """Return the floating-point operations of all matrix products and convolutions of a graph.

    A convolution counts two for every tap of its kernel at every position, padding included; what
    is elementwise does not count. The graph does not say how often its loops run: `trips`, the
    same for all of them.

    Raises:
      UncountedError: a shape is unknown.
    """
    return _of_operations(graph.get_operations(), graph, trips)


def _of_operations(operations: Iterable[tf.Operation], graph: tf.Graph, trips: int) -> float:
    total = 0.0
    for operation in operations:
        if operation.type in (*_LOOPS, *_CALLS):
            attribute = "body" if operation.type in _LOOPS else "f"
            # Inside a function, the functions it calls are known to the outermost graph alone.
            name = operation.get_attr(attribute).name
            inner = _function_graph(graph, name)
            times = trips if operation.type in _LOOPS else 1
            total += times * _of_operations(inner.get_operations(), inner, trips)
        else:
            total += 2.0 * _products(operation)
    return total


def _function_graph(graph: tf.Graph, name: str) -> tf.Graph:
    while graph is not None:
        if graph._is_function(name):
            found = graph._get_function(name)
            return getattr(found, "graph", None) or found.func_graph
        graph = getattr(graph, "outer_graph", None)
    raise UncountedError(f"the graph of {name} is not known")


def _products(operation: tf.Operation) -> int:
    """Return how many numbers are multiplied by another in an operation."""
    kind, inputs, outputs = operation.type, operation.inputs, operation.outputs
    if kind in ("MatMul", "BatchMatMulV2"):
        transposed = operation.get_attr("transpose_a" if kind == "MatMul" else "adj_x")
        inner = _shape(inputs[0])[-2 if transposed else -1]
        return math.prod(_shape(outputs[0])) * inner
    if kind == "Einsum":
        return _einsum_products(operation.get_attr("equation").decode(), inputs)
    if kind in ("Conv2D", "Conv3D"):
        *taps, inner, _ = _shape(inputs[1])
        return math.prod(_shape(outputs[0])) * math.prod(taps) * inner
    if kind.startswith(("Conv2DBackpropInput", "Conv3DBackpropInput")):
        # As many as the convolution whose gradient it is: its output is what goes in here.
        *taps, inner, _ = _shape(inputs[1])
        return math.prod(_shape(inputs[2])) * math.prod(taps) * inner
    if kind.startswith(("Conv2DBackpropFilter", "Conv3DBackpropFilter")):
        *taps, inner, _ = _shape(outputs[0])
        return math.prod(_shape(inputs[2])) * math.prod(taps) * inner
    return 0


def _einsum_products(equation: str, inputs: Iterable[tf.Tensor]) -> int:
    terms = equation.partition("->")[0].split(",")
    if len(terms) < 2:
        return 0
    sides: dict[str, int] = {}
    for term, tensor in zip(terms, inputs):
        sides |= dict(zip(term, _shape(tensor)))
    return math.prod(sides.values())


def _shape(tensor: tf.Tensor) -> list[int]:
    if not tensor.shape.is_fully_defined():
        raise UncountedError(f"{tensor.op.name} ({tensor.op.type}) has the shape {tensor.shape}")
    return tensor.shape.as_list()
