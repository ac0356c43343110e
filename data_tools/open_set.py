"""The open mesh set: which of SweetHome3D's furniture, under which names, on which side.

fetch -> libraries -> catalogue -> entries -> `mesh_set.build` -> credits
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_tools import categories, credits, mesh_set, meshes, pool, splits, sweethome3d
from data_tools.layout import Model
from data_tools.mesh_set import Built, MeshSetConfig
from data_tools.sweethome3d import CatalogueModel, Source
from tfjoint.errors import UserError


@dataclasses.dataclass(frozen=True)
class OpenSetConfig(MeshSetConfig):
    """Everything that decides what the records hold."""

    name: str = "open"
    licences: tuple[str, ...] = ("CC0", "CC-BY-3.0")
    least_per_category: int = 6
    """Smaller categories become part of "other"."""


PRESETS = {
    "full": OpenSetConfig(),
    "demo": OpenSetConfig(
        name="open-demo",
        licences=("CC0",),
        image_size=68,
        smaller_sizes=(),
        views=7,
        copies=2,
        least_per_category=4,
        records_per_shard=128,
        optimize_png=True,
    ),
}
"""What can be built by name: everything, and the set that lies in the repository."""


class CatalogueEntry(NamedTuple):
    """An object to build: where it comes from and where it goes."""

    library: Path
    source: CatalogueModel
    model: Model

    def load(self) -> meshes.Mesh:
        """Return the mesh in ShapeNet's pose. Raises `UnusableMesh`."""
        folder = sweethome3d.read_folder(self.library, self.source.path)
        mesh = meshes.load_obj(folder, Path(self.source.path).name)
        # SweetHome3D's furniture looks to z.
        rotation = meshes.pose("y", "z") @ sweethome3d.catalogue_matrix(self.source)
        return meshes.prepare(mesh, rotation)


def build(
    config: OpenSetConfig,
    source: Source,
    work: Path,
    output: Path,
    split_list: Path | None = None,
    processes: int = 1,
    run: pool.Runner = pool.run,
) -> Built:
    """Build the records of the open mesh set, with credits; see `mesh_set.build`.

    Args:
        config: what to build.
        source: what `sweethome3d.fetch` returned.
        work: directory for the libraries and the layout; a later run resumes from it.
        output: directory of the records.
        split_list: committed list to use; it has the last word on categories. None makes a new one.
        processes: how many objects are built at once.
        run: what builds them, on this machine or elsewhere.

    Raises `UserError` for a source, directory or split list that does not fit.
    """
    listed = None if split_list is None else splits.read_split_list(split_list)
    entries = select(sweethome3d.unpack(source.path, work / "libraries"), config, listed)
    sources = {source.name: source.sha256}
    built = mesh_set.build(config, entries, sources, work, output, split_list, processes, run)
    made = set(built.models)
    models = [entry.source for entry in entries if entry.model in made]
    for directory in built.manifests:
        credits.write_credits(directory / credits.CREDITS, models, source)
    return built


def select(
    libraries: Sequence[Path], config: OpenSetConfig, listed: splits.SplitList | None = None
) -> list[CatalogueEntry]:
    """Return the catalogue's usable models of the wanted licences, sorted by category and id.

    The categories are those of the split list; `categories` decides where it names no object.
    Raises `UserError` when no model is left.
    """
    chosen = {
        model.object_id: (library, model)
        for library in libraries
        for model in sweethome3d.read_catalogue(library)
        if model.licence in config.licences and not model.door_or_window
    }
    names = {key: categories.category_of(model.name) for key, (_, model) in chosen.items()}
    names = {key: name for key, name in names.items() if name != categories.DROPPED}
    names = categories.merge_small(names, config.least_per_category)
    if listed is not None:
        keys = (key.split("/", 1) for side in listed.sides.values() for key in side)
        names.update({name: category for category, name in keys if name in chosen})
    if not names:
        raise UserError(
            f"no model under {' or '.join(config.licences)} in "
            f"{', '.join(library.name for library in libraries)}: check --source and --licence"
        )
    entries = [CatalogueEntry(*chosen[key], Model(names[key], key)) for key in names]
    return sorted(entries, key=lambda entry: entry.model)
