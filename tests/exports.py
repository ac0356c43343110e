"""Exports of models that nobody trained: the same weights for everybody, made in a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfjoint import coding, export, models
from tfjoint.config import Config, resolve

KINDS = {
    "direct": {"model": "direct", "iterations_max": 4},
    "compression": {"model": "compression", "iterations_max": 4},
    "implicit": {"model": "implicit"},
    "direct floats": {"model": "direct", "binarizer": False, "iterations_max": 2},
    "reconstruction": {"model": "reconstruction"},
}


class Export(NamedTuple):
    """An export, and what it was made of."""

    path: Path
    config: Config
    model: tf.keras.Model


def make(name: str, data: Path, root: Path) -> Export:
    """Write the export of one of `KINDS` as `root`/export/1, with tables of the records `data`."""
    config, _ = resolve({"profile": "smoke", "data": str(data), **KINDS[name]})
    model = models.create(config)
    rng = np.random.default_rng(0)
    scales = [2 / np.sqrt(np.prod(w.shape[:-1])) * (w.ndim > 1) for w in model.get_weights()]
    model.set_weights([rng.normal(0, s, w.shape) for s, w in zip(scales, model.get_weights())])
    path = root / "export" / "1"
    signatures = export.Signatures(model, config)
    signatures.save(path)
    description = {
        **{"config": config.to_json(), "step": 0, "data_sha256": "", "versions": {}},
        **{"weights_sha256": export.weights_sha256(model), "code_revision": ""},
    }
    (path / "assets.extra").mkdir()
    (path / export.DESCRIPTION).write_text(json.dumps(description))
    if tables := export.count_tables(signatures, config, description):
        coding.write(path / export.TABLES, tables)
    return Export(path, config, model)


def part(made: Export, path: Path, *names: str) -> Path:
    """Write an export that has some of the signatures: the camera's side, or the ground's."""
    signatures = export.Signatures(made.model, made.config)
    signatures.by_name = {name: signatures.by_name[name] for name in names}
    signatures.save(path)
    shutil.copytree(made.path / "assets.extra", path / "assets.extra")
    return path
