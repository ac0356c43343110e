"""The camera's end for TensorFlow Lite (LiteRT): one file, no TensorFlow on the camera.

    camera-float32.tflite, camera-int8.tflite (int8 weights, computed in float32)
        images [1, 1, H, W, 3] float32 in [0, 1], iterations [] int32
        -> codes [1, 1, T, H/16, W/16, M] int8, -1 or +1

One view at a time: views are encoded alone, and a camera sends each as soon as it is there. T is
`iterations`, at most as many as in training. Without iterations (implicit) codes are [1, 1, K];
without binarizer they are float32. Unlike the SavedModel it does not refuse images out of range.

TensorFlow Lite sums in another order than TensorFlow. A bit flips where its activation is so near
to 0 that this changes the sign, and later iterations follow: `tfjoint.camera` counts how often, and
what it does to the shape. The codes remain valid ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfjoint.config import Config
from tfjoint.errors import UserError
from tfjoint.exported import read_description

PRECISIONS = ("float32", "int8")
_NOTE = re.compile(rb"WARNING: All log messages before|[IW]\d{4} ")


class LiteError(UserError):
    """A TensorFlow without TensorFlow Lite, or a model that it does not take."""


def convert(export: Path) -> dict[str, bytes]:
    """Return the camera's end of an export as TensorFlow Lite models by precision.

    Args:
      export: directory of one version of a whole export.

    Raises:
      LiteError: this TensorFlow has no converter, or another model was expected.
    """
    import tensorflow as tf

    converter = getattr(getattr(tf, "lite", None), "TFLiteConverter", None)
    if converter is None:
        raise LiteError(
            f"TensorFlow {tf.__version__} has no tf.lite to convert with: use the default "
            "environment (2.17); the models run everywhere"
        )
    from tfjoint import models
    from tfjoint.export import weights_sha256

    description = read_description(export)
    config = Config.from_json(description["config"])
    model = models.create(config)
    checkpoint = tf.train.Checkpoint(weights=models.variables(model))
    checkpoint.read(str(export / "variables" / "variables")).expect_partial()
    if weights_sha256(model) != description["weights_sha256"]:
        raise LiteError(f"{export} is damaged or not a whole export: export the run again")
    holder = tf.Module()  # with Keras' own, the converter does not find the variables
    holder.weights = models.variables(model)
    holder.encode = _encode_view(model, config)
    function = holder.encode.get_concrete_function()
    found = {}
    for precision in PRECISIONS:
        convert_one = converter.from_concrete_functions([function], holder)
        if precision == "int8":
            convert_one.optimizations = [tf.lite.Optimize.DEFAULT]
        with _without_notes():
            found[precision] = convert_one.convert()
    return found


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    # The converter's C++ side writes notes and warnings to stderr, whatever the level of its logs.
    # All other lines, its errors among them, are written when it has ended, in whichever way.
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            for line in written:
                if not _NOTE.match(line):
                    os.write(2, line)


def _encode_view(model: Any, config: Config) -> Any:
    import tensorflow as tf

    side, dtype = config.image_size, tf.int8 if config.binarizer else tf.float32
    images = tf.TensorSpec([1, 1, side, side, 3], tf.float32, "images")
    if not config.uses("iterations_max"):

        @tf.function(input_signature=[images])
        def encode_once(images):
            return {"codes": tf.cast(model.encode(images), dtype)}

        return encode_once

    codec = model.codec if config.model == "compression" else model.compression.codec

    @tf.function(input_signature=[images, tf.TensorSpec([], tf.int32, "iterations")])
    def encode(images, iterations):
        padded = codec.encode_padded(images[0], iterations, config.iterations_max)
        # TensorFlow Lite slices 5 axes at most.
        codes = tf.cast(padded[0, :iterations], dtype)
        return {"codes": tf.expand_dims(tf.expand_dims(codes, 0), 0)}

    return encode


class LiteCamera:
    """A TensorFlow Lite model at work.

    Args:
      path: of a .tflite file of `convert`.
      threads: that it computes with.

    Raises:
      LiteError: nothing here runs such a model, or the file is none.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        interpreter = _interpreter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that ai-edge-litert will take its place
                self._interpreter = interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or ["no message"])[0][:200]
            raise LiteError(
                f"{path} is no TensorFlow Lite model ({reason}): split again"
            ) from error
        inputs = self._interpreter.get_input_details()
        # Beside the images, which have five axes, there are iterations, or nothing.
        self._inputs = {len(entry["shape"]): entry["index"] for entry in inputs}
        (self._output,) = self._interpreter.get_output_details()

    def encode(self, view: np.ndarray, iterations: int = 1) -> np.ndarray:
        """Return the code [T, H/16, W/16, M] or [K] of a view [H, W, 3] float32 in [0, 1]."""
        self._interpreter.set_tensor(self._inputs[5], view[np.newaxis, np.newaxis])
        if 0 in self._inputs:
            self._interpreter.set_tensor(self._inputs[0], np.int32(iterations))
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output["index"])[0, 0]


def _interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter
    except ImportError:
        pass
    import tensorflow as tf

    found = getattr(getattr(tf, "lite", None), "Interpreter", None)
    if found is None:
        raise LiteError(
            f"TensorFlow {tf.__version__} has no tf.lite to run the model with: "
            "pip install ai-edge-litert"
        )
    return found
