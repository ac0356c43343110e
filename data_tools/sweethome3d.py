"""The open meshes: SweetHome3D's furniture libraries, fetched, checked and read.

    package (.deb) or zip or folder  ->  *.sh3f  ->  catalogue entries  ->  files of one model

An .sh3f library is a zip file with `PluginFurnitureCatalog.properties` and a folder per model.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import lzma
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from tfjoint import files
from tfjoint.errors import UserError

PACKAGE, VERSION = "sweethome3d-furniture", "1.8-1"
PACKAGE_FILE = f"{PACKAGE}_{VERSION}_all.deb"
PACKAGE_SHA256 = "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668"
UPSTREAM = "http://www.sweethome3d.com/importModels.jsp"
CATALOGUE = "PluginFurnitureCatalog.properties"

_LICENCES = (("public domain", "CC0"), ("creative commons attribution 3.0", "CC-BY-3.0"))
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
    *(EOFError, OSError, ValueError),
)
_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60


class CatalogueModel(NamedTuple):
    """One model of a library as its catalogue describes it."""

    library: str
    """File name of the library, without suffix."""
    object_id: str
    name: str
    creator: str
    licence: str
    """"CC0", "CC-BY-3.0", or the catalogue's own words."""
    path: str
    """Path of the OBJ file inside the library."""
    rotation: tuple[float, ...] | None
    """`modelRotation`: 9 numbers, row by row, applied to column vectors."""
    door_or_window: bool


class Source(NamedTuple):
    """A file or folder that holds libraries, on this machine, its digest checked."""

    path: Path
    name: str
    sha256: str


def fetch(source: str | None, sha256: str | None, directory: Path) -> Source:
    """Bring the meshes to this machine and check them.

    Args:
        source: path or URL of the .deb, of a zip with libraries or of one library, or a folder
            with libraries; None takes the pinned package with `apt-get download`.
        sha256: what is expected; None means the pinned package. For a folder it is the digest of
            the text `sha256sum *.sh3f` prints.
        directory: where downloads are kept.

    Raises `UserError` when the source is missing or its digest differs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    expected = sha256 or PACKAGE_SHA256
    if source is None:
        path = directory / PACKAGE_FILE
        if not path.is_file():
            _apt_download(path)
    elif re.match(r"(https?|ftp|file)://", source):
        path = directory / PurePosixPath(source.split("?")[0]).name
        if not path.is_file():
            _download(source, path)
    else:
        path = Path(source)
    digest = source_sha256(path)
    if digest != expected:
        raise UserError(
            f"{path} has sha256 {digest}, expected {expected}: remove it and fetch it again, or "
            "name its digest with --source_sha256 if you trust it"
        )
    # The package goes by its own name, whatever the file is called here.
    return Source(path, PACKAGE_FILE if digest == PACKAGE_SHA256 else path.name, digest)


def source_sha256(path: Path) -> str:
    """SHA-256 of a file, or for a folder of the lines `<sha256>  <name>` of its libraries."""
    if path.is_file():
        return files.sha256(path)
    if not path.is_dir():
        raise UserError(f"no source at {path}: give --source the .deb, a zip or a folder of .sh3f")
    lines = [f"{files.sha256(p)}  {p.name}\n" for p in sorted(path.glob("*.sh3f"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _apt_download(path: Path) -> None:
    command = ["apt-get", "download", f"{PACKAGE}={VERSION}"]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subprocess.run(command, cwd=scratch, check=True, capture_output=True)
            downloaded = next(Path(scratch).glob("*.deb"))
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
            reason = said.splitlines()[-1] if said else error
            raise UserError(
                f"`{' '.join(command)}` failed ({reason}): where there is no apt-get, give the "
                f"package, or the libraries from {UPSTREAM}, with --source"
            ) from error
        with files.replacing(path) as temporary:
            shutil.copyfile(downloaded, temporary)


def _download(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            with files.replacing(path) as temporary, temporary.open("wb") as handle:
                shutil.copyfileobj(response, handle)
    except (OSError, urllib.error.URLError) as error:
        raise UserError(f"cannot download {url} ({error}): check --source") from error


def unpack(source: Path, directory: Path) -> list[Path]:
    """Return the .sh3f libraries of a source, sorted by name; those of archives are extracted.

    Raises `UserError` when the source is damaged or holds no library.
    """
    if source.is_dir():
        libraries = sorted(source.glob("*.sh3f"))
    elif source.suffix == ".sh3f":
        libraries = [source]
    else:
        directory.mkdir(parents=True, exist_ok=True)
        libraries = sorted(_extract(source, directory), key=lambda path: path.name)
    if not libraries:
        raise UserError(f"{source} holds no .sh3f library: give the .deb, a zip or a folder")
    return libraries


def _extract(source: Path, directory: Path) -> Iterator[Path]:
    try:
        with source.open("rb") as handle:
            members = _deb_members if handle.read(len(_AR_MAGIC)) == _AR_MAGIC else _zip_members
            for name, content in members(handle):
                if name.endswith(".sh3f"):
                    path = directory / PurePosixPath(name).name
                    with files.replacing(path) as temporary, temporary.open("wb") as target:
                        shutil.copyfileobj(content, target)
                    yield path
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0]  # tarfile lists every compression it tried
        raise UserError(f"{source} cannot be unpacked ({reason}): fetch it again") from error


def _zip_members(handle: BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    with zipfile.ZipFile(handle) as archive:
        for name in archive.namelist():
            with archive.open(name) as content:
                yield name, content  # type: ignore[misc]


def _deb_members(handle: BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    # A .deb is an `ar` archive around two tar archives; this way dpkg is not needed.
    with tarfile.open(fileobj=_ar_member(handle, "data.tar"), mode="r:*") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content  # type: ignore[misc]


def _ar_member(handle: BinaryIO, prefix: str) -> BinaryIO:
    handle.seek(len(_AR_MAGIC))
    while len(header := handle.read(_AR_HEADER)) == _AR_HEADER:
        name, size = header[:16].decode("ascii").strip(), int(header[48:58])
        if name.startswith(prefix):
            return io.BytesIO(handle.read(size))
        handle.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError(f"no {prefix} inside")


def read_catalogue(library: Path) -> list[CatalogueModel]:
    """Return the models of a library in the order of its catalogue. Raises `UserError`."""
    properties = parse_properties(_read_member(library, CATALOGUE).decode("latin-1"))
    licence = _licence(properties.get("license", ""))
    numbers = [key.partition("#")[2] for key in properties if re.fullmatch(r"id#\d+", key)]
    try:
        return [_model(properties, number, library.stem, licence) for number in numbers]
    except (KeyError, ValueError) as error:
        raise UserError(f"{library}: its catalogue is damaged ({error}): fetch it again") from error


def parse_properties(text: str) -> dict[str, str]:
    r"""Parse a Java properties file: comments, `key=value`, continued lines, `\uXXXX`."""
    properties = {}
    for line in re.sub(r"\\\r?\n[ \t]*", "", text).splitlines():
        line = line.strip()
        if line and line[0] not in "#!":
            key, _, value = line.partition("=")
            properties[key.strip()] = _unescape(value.strip())
    return properties


def _unescape(value: str) -> str:
    value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), value)
    return re.sub(r"\\([^u])", r"\1", value)


def _licence(text: str) -> str:
    lower = text.lower()
    return next((name for words, name in _LICENCES if lower.startswith(words)), text)


def _model(
    properties: Mapping[str, str], number: str, library: str, licence: str
) -> CatalogueModel:
    own_name = properties[f"id#{number}"].rpartition("#")[2]
    rotation = properties.get(f"modelRotation#{number}")
    numbers = tuple(map(float, rotation.split())) if rotation else None
    if numbers is not None and len(numbers) != 9:
        raise ValueError(f"modelRotation#{number} has {len(numbers)} numbers, not 9")
    return CatalogueModel(
        library=library,
        object_id=re.sub(r"[^A-Za-z0-9_-]+", "-", f"{library.lower()}_{own_name}"),
        name=properties[f"name#{number}"],
        creator=properties.get(f"creator#{number}", "unknown"),
        licence=licence,
        path=properties[f"model#{number}"].lstrip("/"),
        rotation=numbers,
        door_or_window=properties.get(f"doorOrWindow#{number}") == "true",
    )


def read_folder(library: Path, path: str) -> dict[str, bytes]:
    """Return every file beside `path` in the library, by its name inside that folder.

    Raises `UserError` when `path` is not there.
    """
    folder = str(PurePosixPath(path).parent)
    with _open(library) as archive:
        if path not in archive.namelist():
            raise UserError(f"{library} holds no {path}, though its catalogue names it")
        names = [n for n in archive.namelist() if str(PurePosixPath(n).parent) == folder]
        return {PurePosixPath(n).name: archive.read(n) for n in names if not n.endswith("/")}


def _read_member(library: Path, name: str) -> bytes:
    with _open(library) as archive:
        if name not in archive.namelist():
            raise UserError(f"{library} holds no {name}: it is not a furniture library")
        return archive.read(name)


@contextlib.contextmanager
def _open(library: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(library) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{library} is not a furniture library ({error}): fetch it again"
        ) from error


def catalogue_matrix(model: CatalogueModel) -> np.ndarray:
    """Return `modelRotation` as [3, 3] float64, the identity where the catalogue has none."""
    return np.eye(3) if model.rotation is None else np.reshape(model.rotation, (3, 3))
