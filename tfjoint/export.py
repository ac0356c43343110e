"""A trained model as a SavedModel that needs TensorFlow alone.

    <run>/export/<version>/      TensorFlow Serving's layout
        encode:      images [B, V, H, W, 3] float32 in [0, 1], iterations [] int32
                     -> codes [B, V, T, H/16, W/16, M] int8, -1 or +1
        reconstruct: codes -> occupancy [B, D, D, D] float32, probabilities
        refine:      codes of further views, hidden and cell [B, G, G, G, F] float32
                     -> occupancy, hidden, cell: as if all views had come at once
        decode:      codes -> images [B, V, T, H, W, 3] float32 in [0, 1], after each iteration
        ...          for files and packed codes, as a server's clients send them: tfjoint.serving
        assets.extra/tfjoint.json   config, step, data hash, code revision
        assets.extra/tables.json    probabilities of the codes' bits, for `tfjoint.coding`
        assets.extra/tf_serving_warmup_requests

Any number of objects, views and iterations; a server's clients get an error beyond 255 views or
iterations. The grid's state is zeros before an object's first view; its shape is that of the inputs
`hidden` and `cell` in the signature. G and F are grid_size and grid_channels of the config in
tfjoint.json. A system has the signatures that it can serve:

    implicit         encode takes no iterations, codes are [B, V, K]; no decode
    compression      images of any size that is a multiple of 16; no reconstruct, no refine
    reconstruction, jpeg2000     reconstruct alone, and it takes images
    without binarizer            codes are float32 in [-1, 1], and there are no tables

An export is reloaded in a process that cannot import tfjoint and compared with the model before it
gets its version number.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfjoint import bitstream, coding, files, models, serving
from tfjoint.checkpoint import Checkpoints
from tfjoint.config import DOWNSAMPLING, Config
from tfjoint.dataset import evaluation_examples, open_split
from tfjoint.exported import DESCRIPTION, TABLES, ExportError, latest_version, read_description
from tfjoint.layers import GridState
from tfjoint.serving import require as _require
from tfjoint.trainer import read_run

ORDER = ("encode", "reconstruct", "decode")
"""The signatures in the order in which one takes what another makes."""
TOLERANCE = 1e-6
CHECKED_OBJECTS, CHECKED_VIEWS, CHECKED_ITERATIONS = 2, 3, 3
COUNTED_OBJECTS, COUNTED_VIEWS = 128, 3
"""Of which the tables are counted at most: training objects, evenly over the split, and views. With
384 views a probability is near enough: what its error costs is 0.2 % of a bit."""


class Signatures(tf.Module):
    """The signatures of a model; holds its variables and nothing of Keras."""

    def __init__(self, model: tf.keras.Model, config: Config) -> None:
        super().__init__()
        self.weights = models.variables(model)
        self.by_name: dict[str, tf.types.experimental.GenericFunction] = {}
        """The signatures by the name they are served under."""
        self._make(model, config)
        # Not by |=, which would pass by TensorFlow's tracking of the dictionary.
        self.by_name.update(serving.signatures(self.by_name, config))

    def _make(self, model: tf.keras.Model, config: Config) -> None:
        images, codes = _image_spec(config), _code_spec(config)
        if codes is None:
            self.by_name["reconstruct"] = _reconstruct_images(model, images)
            return
        encode = _encode_iterations if config.uses("iterations_max") else _encode
        self.by_name["encode"] = encode(model, images, codes.dtype)
        if config.uses("grid_size"):
            self.by_name["reconstruct"] = _reconstruct_codes(model, codes)
            self.by_name["refine"] = _refine(model, codes, _state_specs(config))
        if config.uses("codec"):
            self.by_name["decode"] = _decode(model, codes)

    def save(self, path: Path) -> None:
        """Write the SavedModel."""
        tf.saved_model.save(self, str(path), self.by_name)


def _image_spec(config: Config) -> tf.TensorSpec:
    # A codec alone is fully convolutional; every other network expects one size.
    size = config.image_size if config.uses("grid_size") else None
    return tf.TensorSpec([None, None, size, size, 3], tf.float32, "images")


def _code_spec(config: Config) -> tf.TensorSpec | None:
    dtype = tf.int8 if config.binarizer else tf.float32
    if config.uses("code_bits"):
        return tf.TensorSpec([None, None, config.code_bits], dtype, "codes")
    if config.uses("codec"):
        side = config.image_size // DOWNSAMPLING if config.uses("grid_size") else None
        shape = [None, None, None, side, side, config.code_channels]
        return tf.TensorSpec(shape, dtype, "codes")
    return None


def _state_specs(config: Config) -> list[tf.TensorSpec]:
    shape = [None, *[config.grid_size] * 3, config.grid_channels]
    return [tf.TensorSpec(shape, tf.float32, name) for name in GridState._fields]


def _encode(model: tf.keras.Model, images: tf.TensorSpec, dtype: tf.DType):
    @tf.function(input_signature=[images])
    def encode(images):
        return {"codes": tf.cast(model.encode(_checked(images)), dtype)}

    return encode


def _encode_iterations(model: tf.keras.Model, images: tf.TensorSpec, dtype: tf.DType):
    @tf.function(input_signature=[images, tf.TensorSpec([], tf.int32, "iterations")])
    def encode(images, iterations):
        iterations = _require(
            iterations, (iterations >= 1) & (iterations <= serving.MOST),
            f"iterations must be in [1, {serving.MOST}]. Received:", iterations,
        )  # fmt: skip
        images = _checked(images)
        sides = tf.shape(images)[2:4]
        whole = tf.reduce_all(sides % DOWNSAMPLING == 0)
        images = _require(
            images, whole, "height and width must be multiples of 16. Received:", sides
        )
        return {"codes": tf.cast(model.encode(images, iterations), dtype)}

    return encode


def _reconstruct_codes(model: tf.keras.Model, codes: tf.TensorSpec):
    @tf.function(input_signature=[codes])
    def reconstruct(codes):
        return {"occupancy": tf.sigmoid(model.occupancy(_not_empty(codes)))}

    return reconstruct


def _refine(model: tf.keras.Model, codes: tf.TensorSpec, state: list[tf.TensorSpec]):
    @tf.function(input_signature=[codes, *state])
    def refine(codes, hidden, cell):
        # Else one state would be taken for that of several objects.
        rows = [tf.shape(part)[0] for part in (codes, hidden, cell)]
        alike = (rows[0] == rows[1]) & (rows[0] == rows[2])
        codes = _require(codes, alike, "codes, hidden and cell must be of equally many objects")
        hidden = _require(hidden, tf.reduce_all(tf.abs(hidden) <= 1), "hidden must be in [-1, 1]")
        finite = tf.reduce_all(tf.math.is_finite(cell))
        cell = _require(cell, finite, "cell must be finite")
        logits, after = model.refine(_not_empty(codes), GridState(hidden, cell))
        return {"occupancy": tf.sigmoid(logits), **after._asdict()}

    return refine


def _reconstruct_images(model: tf.keras.Model, images: tf.TensorSpec):
    @tf.function(input_signature=[images])
    def reconstruct(images):
        return {"occupancy": tf.sigmoid(model.occupancy(_checked(images)))}

    return reconstruct


def _decode(model: tf.keras.Model, codes: tf.TensorSpec):
    @tf.function(input_signature=[codes])
    def decode(codes):
        return {"images": tf.clip_by_value(model.decode(_not_empty(codes)), 0, 1)}

    return decode


def _checked(images: tf.Tensor) -> tf.Tensor:
    images = serving.filled("images", images)
    in_range = tf.reduce_all((images >= 0) & (images <= 1))  # which NaN is not
    return _require(images, in_range, "images must be in [0, 1]")


def _not_empty(codes: tf.Tensor) -> tf.Tensor:
    codes = serving.filled("codes", codes)
    if codes.dtype == tf.int8:
        # The absolute value of int8 -128 is -128.
        return _require(codes, tf.reduce_all(tf.abs(codes) == 1), "codes must be -1 or +1")
    return _require(codes, tf.reduce_all(tf.abs(codes) <= 1), "codes must be in [-1, 1]")


def export_run(run: Path) -> Path:
    """Export the newest checkpoint of a run and return the directory of the new version.

    Where the newest export is already of that checkpoint, with the same signatures, it is returned
    as it is.

    Raises:
      ExportError: the run has no checkpoint, or the reloaded export differs from the model.
    """
    description = read_run(run)
    config = Config.from_json(description["config"])
    model = models.create(config)
    weights = tf.train.Checkpoint(weights=models.variables(model))
    step = Checkpoints(run / "checkpoints", weights).restore(partial=True)
    if not step:
        raise ExportError(f"{run} has no checkpoint to export: train it first")
    signatures = Signatures(model, config)
    description |= {
        "step": step,
        "weights_sha256": weights_sha256(model),
        "signatures": sorted(signatures.by_name),
    }
    root = run / "export"
    if (latest := latest_version(root)) and _is_of(latest, description):
        print(f"already exported: {latest}")
        return latest
    path = root / str(int(latest.name) + 1 if latest else 1)
    with files.replacing(path) as temporary:
        signatures.save(temporary)
        (temporary / DESCRIPTION).parent.mkdir()
        files.write_json(temporary / DESCRIPTION, description)
        serving.write_warmup(temporary, signatures.by_name, config)
        check_export(temporary, signatures, _real_images(config))
        if tables := count_tables(signatures, config, description):
            coding.write(temporary / TABLES, tables)
    print(f"exported: {path}")
    return path


def _is_of(export: Path, description: Mapping[str, Any]) -> bool:
    try:
        found = read_description(export)
    except ExportError as error:
        raise ExportError(f"{error}; or remove {export} and repeat the command") from error
    same = ("step", "weights_sha256", "signatures")
    return all(found.get(name) == description[name] for name in same)


def weights_sha256(model: tf.keras.Model) -> str:
    """SHA-256 over the values of a model's weights, in order."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def check_export(export: Path, signatures: Signatures, images: np.ndarray) -> None:
    """Compare an export, reloaded without tfjoint, with the model on images [B, V, H, W, 3].

    Both run on the CPU: a GPU's memory is this process's, and its kernels may differ from run to
    run. `refine` gets one view after another and has to end where `reconstruct` does.

    Raises `ExportError` unless bits are equal and everything else is to 1e-6.
    """
    with tf.device("/CPU:0"):
        expected = _run_signatures(signatures.by_name, images)
    with tempfile.TemporaryDirectory() as directory:
        inputs, outputs = Path(directory) / "inputs.npz", Path(directory) / "outputs.npz"
        np.savez(inputs, images=images, iterations=np.int32(CHECKED_ITERATIONS))
        command = [sys.executable, "-I", "-c", _RELOAD, str(export), str(inputs), str(outputs)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(
                f"the export does not load without tfjoint ({reason}); nothing was exported: use "
                "the versions of constraints/"
            )
        found = dict(np.load(outputs))
    for name, value in expected.items():
        tolerance = 0 if value.dtype == np.int8 else TOLERANCE
        difference = np.max(np.abs(found[name].astype(np.float64) - value))
        if not difference <= tolerance:
            raise ExportError(
                f"the reloaded export differs from the model in {name}: by {difference:.3g}, "
                f"allowed {tolerance:g}; nothing was exported"
            )


def _run_signatures(by_name: Mapping[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    """Run all signatures one after the other and return what they make, by name."""
    values = {"images": tf.constant(images), "iterations": tf.constant(CHECKED_ITERATIONS)}
    made: dict[str, tf.Tensor] = {}
    for name in ORDER:
        if name in by_name:
            results = by_name[name](*(values[spec.name] for spec in by_name[name].input_signature))
            made |= results
            values |= results
    if "refine" in by_name:
        made["refined"] = made["occupancy"]
    return {name: value.numpy() for name, value in made.items()}


# What a user without tfjoint would write; `None` in sys.modules makes its import fail.
_RELOAD = f"""
import sys
sys.modules["tfjoint"] = None
import numpy as np
import tensorflow as tf
export, inputs, outputs = sys.argv[1:]
values = {{name: tf.constant(value) for name, value in np.load(inputs).items()}}
signatures = tf.saved_model.load(export).signatures
made = {{}}
for name in {ORDER}:
    if name in signatures:
        _, wanted = signatures[name].structured_input_signature
        results = signatures[name](**{{key: values[key] for key in wanted}})
        made |= results
        values |= results
if "refine" in signatures:
    _, wanted = signatures["refine"].structured_input_signature
    objects, views = made["codes"].shape[:2]
    after = {{name: tf.zeros([objects, *wanted[name].shape[1:]]) for name in ("hidden", "cell")}}
    for view in range(views):
        codes = made["codes"][:, view : view + 1]
        after = signatures["refine"](codes=codes, **after)
        made["refined"] = after.pop("occupancy")
np.savez(outputs, **made)
"""


def _real_images(config: Config) -> np.ndarray:
    records = open_split(config, "test", views=1)
    views = min(CHECKED_VIEWS, records.manifest.views)
    indices = range(min(CHECKED_OBJECTS, len(records)))
    examples = evaluation_examples(config, records, views, config.seed, indices)
    return np.stack([example.images for example in examples])


def count_tables(
    signatures: Signatures, config: Config, description: Mapping[str, Any]
) -> coding.Tables | None:
    """Return the tables of a model's codes of training objects, with as many iterations as trained.

    The same objects, views and bits whenever it is repeated: no file of an export changes.

    Args:
      signatures: those of the model.
      config: says where the records are.
      description: what the export says of itself.

    Returns:
      None of a system without codes or with codes of floats, or whose codes no bitstream holds.
    """
    if not (config.code_size and config.binarizer):
        return None
    try:
        source = bitstream.Source.of_export(description)
    except bitstream.BitstreamError as error:
        print(f"without tables: {error}")
        return None
    records = open_split(config, "train", views=1)
    views = min(COUNTED_VIEWS, records.manifest.views)
    count = min(COUNTED_OBJECTS, len(records))
    indices = [index * len(records) // count for index in range(count)]
    iterations = [config.iterations_max] if source.iterative else []
    encode = signatures.by_name["encode"]
    with tf.device("/CPU:0"):
        examples = evaluation_examples(config, records, views, config.seed, indices)
        codes = (encode(e.images[np.newaxis], *iterations)["codes"].numpy()[0] for e in examples)
        return coding.count(bitstream.Codes(source, values) for values in codes)
