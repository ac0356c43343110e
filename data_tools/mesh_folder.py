"""Your own meshes: a folder with a sub-folder per category, to records.

    <meshes>/chair/*.obj *.ply *.stl *.glb *.off   ->  entries  ->  `mesh_set.build`

The files may come from anywhere. What a mesh names is read from inside the folder alone, reading
may take so much memory and no more, and what cannot be used is skipped and named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import trimesh

from data_tools import categories, mesh_set, meshes, pool
from data_tools.layout import Model
from data_tools.mesh_set import Built, MeshSetConfig
from tfjoint import files
from tfjoint.errors import UserError

_MESHES = tuple(f".{kind}" for kind in meshes.FORMATS)
_NAMED_BY_MESHES = (".mtl", ".bin", ".png", ".jpg", ".jpeg", ".bmp", ".tga", ".tif", ".webp")
_LONGEST_NAME = 80
_MOST_MEMORY = 4 << 30  # bytes beyond what the process has when it begins to read


@dataclasses.dataclass(frozen=True)
class FolderConfig(MeshSetConfig):
    """Everything that decides what the records hold, beside the files."""

    name: str = "meshes"
    up: str = "y"
    """Direction in the files that is up."""
    front: str = "z"
    """Direction in the files that a chair looks to."""
    largest_bytes: int = 128 << 20
    """Of a mesh, and of all that it names together; larger files are skipped."""

    def layout_settings(self) -> dict[str, object]:
        """What of it decides the bytes of the layout."""
        own = ("up", "front", "largest_bytes")
        return {**super().layout_settings(), **{name: getattr(self, name) for name in own}}


class FileEntry(NamedTuple):
    """A mesh file to build."""

    root: Path
    path: str
    """Inside `root`."""
    model: Model
    config: FolderConfig

    def load(self) -> meshes.Mesh:
        """Return the mesh in ShapeNet's pose. Raises `UnusableMesh` naming the file."""
        path = PurePosixPath(self.path)
        folder = Folder(self.root, path.parent, self.config.largest_bytes)
        try:
            with _memory_limit():
                data = folder.read(path.name)
                mesh = meshes.load(data, path.suffix[1:].lower(), folder)
                mesh = meshes.prepare(mesh, meshes.pose(self.config.up, self.config.front))
        except (OSError, MemoryError, meshes.UnusableMesh) as error:
            reason = str(error) or "it takes too much memory"
            raise meshes.UnusableMesh(f"{self.path}: {reason}") from error
        remarks = (*mesh.remarks, *folder.refused)
        return dataclasses.replace(mesh, remarks=tuple(f"{self.path}: {r}" for r in remarks))


class Folder(trimesh.resolvers.Resolver):
    """Gives a mesh the files that it names, of one folder and no other."""

    def __init__(self, root: Path, beside: PurePosixPath, largest_bytes: int) -> None:
        self._root = root.resolve()
        self._beside = self._root / beside
        self._bytes_left = largest_bytes
        self._read: dict[Path, bytes] = {}
        self.refused: list[str] = []
        """Why files that the mesh names were not read."""

    def get(self, key: str | bytes) -> bytes:
        """Return the contents of a file named by the mesh. Raises `OSError`."""
        name = os.fsdecode(key)
        try:
            return self.read(name)
        except OSError as error:
            self.refused.append(f"{name[:_LONGEST_NAME]!r} is not used: {error}")
            raise

    def read(self, name: str) -> bytes:
        """Return the contents of a file. Raises `OSError` for one outside, or too large."""
        try:
            path = (self._beside / name.strip().replace("\\", "/")).resolve()
            if not path.is_relative_to(self._root):
                raise PermissionError("it lies outside the folder of the meshes")
            if not path.is_file():
                raise FileNotFoundError("there is no such file")
            if path not in self._read:
                size = path.stat().st_size
                if size > self._bytes_left:
                    raise OSError(f"{size} bytes are more than the {self._bytes_left} left for it")
                self._read[path] = path.read_bytes()
                self._bytes_left -= size
            return self._read[path]
        except (ValueError, RuntimeError) as error:  # a zero byte, links in a circle
            raise OSError(f"no usable path ({error})") from error

    def keys(self) -> list[str]:
        return []

    def namespaced(self, namespace: str) -> Folder:
        raise NotImplementedError("meshes of one file each")

    def write(self, name: str, data: bytes) -> None:
        raise NotImplementedError("the folder is only read")


@contextlib.contextmanager
def _memory_limit() -> Iterator[None]:
    # A few bytes of a file can ask for any amount of memory; this makes it a MemoryError here
    # instead of the end of some process on the machine.
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + _MOST_MEMORY
    known = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def build(
    config: FolderConfig,
    root: Path,
    work: Path,
    output: Path,
    split_list: Path | None = None,
    processes: int = 1,
    run: pool.Runner = pool.run,
) -> Built:
    """Build the records of a folder of meshes; see `mesh_set.build`.

    Raises `UserError` where there is no mesh that can be used.
    """
    meshes.pose(config.up, config.front)  # a wrong pose is told before the work
    paths = list_files(root, _MESHES)
    if not paths:
        raise UserError(
            f"{root} holds no mesh: it takes a folder with sub-folders of files that end in "
            f"{', '.join(_MESHES)}"
        )
    entries = [FileEntry(root, path, model, config) for path, model in name_models(paths).items()]
    sources = {root.resolve().name or "meshes": folder_sha256(root)}
    return mesh_set.build(config, entries, sources, work, output, split_list, processes, run)


def list_files(root: Path, suffixes: Sequence[str]) -> list[str]:
    """Return the files of a folder that end so, as paths inside it, sorted; hidden ones are not.

    Links to directories are not followed. Raises `UserError` when there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"no folder at {root}: give --meshes a folder with sub-folders of meshes")
    found = []
    for directory, names, file_names in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in file_names:
            if name.lower().endswith(tuple(suffixes)) and not name.startswith("."):
                found.append((Path(directory) / name).relative_to(root).as_posix())
    return sorted(found)


def name_models(paths: Sequence[str]) -> dict[str, Model]:
    """Return what files are called in the layout: the first folder is the category.

    A name that two files would share, or that is long, ends in a digest of its path.
    """
    models = {}
    for path in paths:
        *folders, name = PurePosixPath(path).with_suffix("").parts
        category = _plain(folders[0]) if folders else categories.OTHER
        models[path] = Model(category, _plain("-".join([*folders[1:], name])))
    counts = Counter(models.values())
    for path, model in models.items():
        if counts[model] > 1 or len(model.name) > _LONGEST_NAME:
            digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
            models[path] = Model(model.category, f"{model.name[:_LONGEST_NAME]}-{digest}")
    return models


def _plain(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name)


def folder_sha256(root: Path) -> str:
    """Return the SHA-256 of the lines `<sha256>  <path>` of the meshes and what they may name."""
    digest = hashlib.sha256()
    inside = root.resolve()
    for path in list_files(root, (*_MESHES, *_NAMED_BY_MESHES)):
        file = inside / path
        if file.is_file() and file.resolve().is_relative_to(inside):
            try:
                digest.update(files.sha256(file).encode())
            except OSError:  # not for us to read; named when its turn comes
                pass
        digest.update(b"  " + os.fsencode(path) + b"\n")
    return digest.hexdigest()
