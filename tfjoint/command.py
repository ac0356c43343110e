"""The command `tfjoint`: photos to codes, codes to views and to a shape.

    tfjoint compress a.jpg b.jpg -o object.tfj --model=runs/direct/export
    tfjoint reconstruct object.tfj -o shape.obj --model=runs/direct/export

`--help` of each part has examples. Exit codes: 0, 2 after a line that says what was wrong, 130
after Ctrl-C. What was done is said on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tfjoint import __version__, entry, files, words
from tfjoint.config import MOST_COUNTED
from tfjoint.errors import UserError, run_or_exit
from tfjoint.exported import TABLES, find_export

if TYPE_CHECKING:
    import numpy as np

    from tfjoint.bitstream import Codes
    from tfjoint.codec import Codec

MODEL = "TFJOINT_MODEL"
"""The environment variable that stands for --model."""
STREAM = "-"
"""The name of standard input and output."""

_LONGEST_MESSAGE = 200


class CommandError(UserError):
    """Arguments that do not go together, or a file that must not be written."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are a `CommandError`, and so one line, however much was given."""

    def error(self, message: str) -> NoReturn:
        raise _misused(self.prog, message)


def _misused(program: str, message: str) -> CommandError:
    said = textwrap.shorten(message, _LONGEST_MESSAGE, placeholder=" ...")
    return CommandError(f"{said}; see {program} --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    entry.set_environment()
    run_or_exit(lambda: _run(arguments), interrupted="interrupted; nothing is half written")


def _run(arguments: Sequence[str] | None) -> None:
    parsed, unknown = parser().parse_known_args(arguments)
    if unknown:
        raise _misused(f"tfjoint {parsed.part}", f"unrecognized arguments: {' '.join(unknown)}")
    parsed.run(parsed)


# --- What can be given ----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the parser of all parts; `run` of what it parses does the work."""
    whole = _Parser(
        prog="tfjoint",
        description="Send photos of an object in a few hundred bytes, and make its shape of them.",
        epilog="tfjoint PART --help has examples. Models are trained by python -m tfjoint.train.",
    )
    whole.add_argument("--version", action="version", version=f"tfjoint {__version__}")
    parts = whole.add_subparsers(metavar="PART", required=True, dest="part")
    for add in (_add_compress, _add_decompress, _add_reconstruct, _add_info, _add_view):
        add(parts)
    return whole


def _part(
    parts: argparse._SubParsersAction,
    run: Callable[[argparse.Namespace], None],
    title: str,
    examples: str,
) -> argparse.ArgumentParser:
    lines = "".join(f"  tfjoint {line.strip()}\n" for line in examples.strip().splitlines())
    part = parts.add_parser(
        run.__name__.lstrip("_"),
        help=title,
        description=f"{title[0].upper()}{title[1:]}.",
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    part.set_defaults(run=run)
    return part


def _add_model(part: argparse.ArgumentParser) -> None:
    part.add_argument(
        "--model",
        metavar="EXPORT",
        help=f"export directory, of one version or of all; otherwise ${MODEL}",
    )
    part.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")


def _add_photos(part: argparse.ArgumentParser) -> None:
    part.add_argument(
        "--fit",
        choices=("crop", "pad"),
        default="crop",
        help="crop photos to the model's shape (default), or pad them with background",
    )
    part.add_argument(
        "--background",
        metavar="COLOUR",
        help="black, white or #rrggbb: behind transparent pixels and padding; otherwise what the "
        "model was trained with",
    )


def _add_rate(part: argparse.ArgumentParser, otherwise: str) -> argparse._MutuallyExclusiveGroup:
    group = part.add_mutually_exclusive_group()
    group.add_argument(
        "--rate", type=_rate, help="raw bits over code bits: 48 or 48:1, never more bits of codes"
    )
    group.add_argument(
        "--iterations",
        type=_read_iterations,
        metavar="T",
        help=f"iterations of the codec; otherwise {otherwise}",
    )
    return group


def _read_iterations(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MOST_COUNTED):
        raise argparse.ArgumentTypeError(
            f"iterations must be in [1, {MOST_COUNTED}]. Received: {text!r}"
        )
    return int(text)


def _rate(text: str) -> float:
    try:
        return _positive(float)(re.sub(":1$", "", text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"a rate is a positive number such as 48, or 48:1. Received: {text!r}"
        ) from error


def _positive(kind: type) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    read.__name__ = {int: "positive whole number", float: "positive number"}[kind]
    return read


def _add_compress(parts: argparse._SubParsersAction) -> None:
    part = _part(
        parts,
        _compress,
        "write the codes of an object's photos as one small file",
        """
        compress chair-1.jpg chair-2.jpg chair-3.jpg -o chair.tfj --model=runs/direct/export
        compress chair-*.png -o chair.tfj --rate=96 --fit=pad --background=white
        compress chair-*.png -o chair.tfj --max-bytes=300 --coding=table
        compress chair.webp -o - | ssh ground 'tfjoint reconstruct - -o chair.obj'
        """,
    )
    part.add_argument("photos", nargs="+", metavar="PHOTO", help="PNG, JPEG or WebP, any size")
    part.add_argument("-o", "--output", required=True, help=".tfj file to write; - is stdout")
    _add_model(part)
    _add_rate(part, "as many as in training").add_argument(
        "--max-bytes",
        type=_positive(int),
        metavar="N",
        help="as many iterations as fit into a file of N bytes, at most those of training",
    )
    part.add_argument(
        "--coding",
        choices=("raw", "table"),
        default="raw",
        help="packed bits (default), or coded with the export's tables where that is shorter: "
        "needs TensorFlow Compression at both ends",
    )
    part.add_argument(
        "--packets", metavar="DIR", help="write a packet per view there too: view-1.packet, ..."
    )
    _add_photos(part)


def _add_decompress(parts: argparse._SubParsersAction) -> None:
    part = _part(
        parts,
        _decompress,
        "write the views in a .tfj file as PNG pictures",
        """
        decompress chair.tfj -o views --model=runs/direct/export
        decompress chair.tfj -o 'chair-%02d.png' --iterations=2
        decompress chair.tfj -o chair.png --views=1
        """,
    )
    part.add_argument("object", metavar="OBJECT", help=".tfj file; - is stdin")
    part.add_argument(
        "-o",
        "--output",
        required=True,
        help="directory for view-1.png, ..., a name with %%d, or of one view a .png file",
    )
    _add_model(part)
    _add_first(part)
    _add_rate(part, "all that the file has")


def _add_reconstruct(parts: argparse._SubParsersAction) -> None:
    part = _part(
        parts,
        _reconstruct,
        "make the shape of an object from its .tfj file, from packets or from photos",
        """
        reconstruct chair.tfj -o chair.obj --model=runs/direct/export
        reconstruct chair-*.jpg -o chair.npz --model=runs/reconstruction/export
        reconstruct chair.tfj -o chair.png --views=2 --iterations=1
        reconstruct packets/view-1.packet packets/view-4.packet -o chair.ply
        """,
    )
    part.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="one .tfj file (- is stdin), or packets of one object (.packet), or photos",
    )
    part.add_argument(
        "-o", "--output", required=True, help="shape to write: .binvox, .obj, .ply, .npz or .png"
    )
    _add_model(part)
    part.add_argument(
        "--threshold",
        type=_positive(float),
        default=0.4,
        help="a cell is occupied from this probability on (default 0.4)",
    )
    _add_first(part)
    _add_rate(part, "all that a file has, or as many as in training")
    _add_photos(part)


def _add_first(part: argparse.ArgumentParser) -> None:
    part.add_argument(
        "--views", type=_positive(int), metavar="V", help="use the first V views alone"
    )


def _add_info(parts: argparse._SubParsersAction) -> None:
    part = _part(
        parts,
        _info,
        "say what .tfj files and exports are",
        """
        info chair.tfj table.tfj
        info runs/direct/export
        """,
    )
    part.add_argument(
        "inputs", nargs="+", metavar="INPUT", help=".tfj file (- is stdin), or export directory"
    )


def _add_view(parts: argparse._SubParsersAction) -> None:
    part = _part(
        parts,
        _view,
        "write a page that shows shapes or results in a browser",
        """
        view chair.npz
        view runs/direct/results.json -o page.html
        """,
    )
    part.add_argument("input", metavar="INPUT", help=".npz file of shapes or .json of results")
    part.add_argument("-o", "--output", help="page to write; otherwise the input's name with .html")


# --- What is done ---------------------------------------------------------------------------------


def _compress(given: argparse.Namespace) -> None:
    from tfjoint import bitstream

    if given.output != STREAM and Path(given.output).suffix != ".tfj":
        raise CommandError(f"codes are written to a .tfj file or -; received {given.output!r}")
    _require_writable(given.output)
    packet_paths: list[str] = []
    if given.packets == STREAM:
        raise CommandError("packets are files: give --packets the name of a directory")
    if given.packets:
        packet_paths = _numbered(Path(given.packets), "view-{}.packet", len(given.photos))
    _require_photos(given.photos, given)
    codec = _codec(given)
    if codec.takes_images:
        raise CommandError(f"model {codec.config.model} has no codes: give reconstruct the photos")
    coder = codec.coder(given.coding)
    images = _views(given.photos, codec, given)
    if given.max_bytes:
        codes, data = codec.encode_within(images, given.max_bytes, coder)
    else:
        codes = _encoded(codec, images, given)
        data = bitstream.encode(codes, coder)
    # Nothing counts objects here; of their codes, a number keeps two objects' packets apart.
    number = zlib.crc32(codes.values.tobytes()) & 0xFFFF
    for path, packet in zip(packet_paths, codes.packets(number)):
        _write(path, bitstream.encode_packet(packet, coder))
    _write(given.output, data)
    _say(given, f"{given.output}: {_described(data)}")
    if coder and bitstream.inspect(data).coding == bitstream.RAW:
        _say(given, f"{given.output} is raw: the tables would not have made it shorter")


def _decompress(given: argparse.Namespace) -> None:
    from tfjoint import bitstream, png

    data = _read(given.object)
    with _about(given.object):
        there = bitstream.inspect(data).views
    paths = _pictures(given.output, min(given.views or there, there))
    codec = _codec(given)
    codes = _first(codec, _codes_in(given.object, data, codec), given)
    views = codec.decode(codes)[:, -1]  # after the last iteration
    for path, view in zip(paths, views):
        _write(path, png.encode_png((view * 255).round().astype("uint8")))
    height, width = views.shape[1:3]
    of_views = words.count(len(views), "view")
    _say(given, f"{given.output}: {of_views} of {width} x {height} pixels")


def _pictures(output: str, views: int) -> list[str]:
    """Return the names of the pictures of so many views."""
    path, number = Path(output), re.compile(r"%(?:0(\d))?d")
    if "%" in output:
        if len(number.findall(path.name)) != 1 or path.name.count("%") != 1:
            raise CommandError(f"a name of several views has one %d or %02d. Received: {output!r}")
        name = number.sub(lambda match: f"{{:0{match[1] or 1}d}}", path.name)
        return _numbered(path.parent, name, views)
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix in (".jpg", ".jpeg", ".webp"):
        raise CommandError(f"views are written as .png. Received: {output!r}")
    if output != STREAM and suffix != ".png":
        return _numbered(path, "view-{}.png", views)
    if views > 1:
        raise CommandError(
            f"{output} is one file, and there are {views} views: give -o the name of a directory, "
            "or one with %d, or take --views=1"
        )
    _require_writable(output)
    return [output]


def _reconstruct(given: argparse.Namespace) -> None:
    from tfjoint import shapes

    shapes.require_suffix(given.output)
    _require_writable(given.output)
    if Path(given.output).resolve() in [Path(name).resolve() for name in given.inputs]:
        raise CommandError(f"{given.output} is one of the inputs: give -o another name")
    if given.threshold > 1:
        raise CommandError(f"a threshold is in (0, 1]. Received: {given.threshold:g}")
    of_file = [name for name in given.inputs if name == STREAM or name.lower().endswith(".tfj")]
    of_packets = [name for name in given.inputs if name.lower().endswith(".packet")]
    if (of_file and len(given.inputs) > 1) or len(of_packets) not in (0, len(given.inputs)):
        raise CommandError("give one .tfj file, or packets, or photos, not several of these")
    if of_file or of_packets:
        data = {name: _read(name) for name in given.inputs}
        codec = _codec(given)
        codes = codec.read_packets(data) if of_packets else _codes_in(*data.popitem(), codec)
        codes = _first(codec, codes, given)
        occupancy, views = codec.reconstruct(codes), codes.views
    else:
        paths = given.inputs[: given.views]
        _require_photos(paths, given)
        codec = _codec(given)
        images = _views(paths, codec, given)
        occupancy, views = _shape_of(codec, images, given), len(images)
    shapes.write_shape(given.output, occupancy, given.threshold)
    occupied = int((occupancy >= given.threshold).sum())
    of_views = words.count(views, "view")
    _say(given, f"{given.output}: {occupied} of {occupancy.size} cells occupied, from {of_views}")
    if not occupied:
        _say(given, f"no cell is as probable as {given.threshold:g}: try a lower --threshold")


def _shape_of(codec: Codec, images: np.ndarray, given: argparse.Namespace) -> np.ndarray:
    if not codec.takes_images:
        return codec.reconstruct(_encoded(codec, images, given))
    if given.rate or given.iterations:
        raise CommandError(f"model {codec.config.model} has no codes, and no rate: leave it out")
    return codec.reconstruct_images(images)


def _info(given: argparse.Namespace) -> None:
    for name in given.inputs:
        if name != STREAM and Path(name).is_dir():
            print("\n".join(_of_export(name)))
        else:
            data = _read(name)
            with _about(name):
                print(f"{name}: {_described(data)}")


def _of_export(path: str) -> list[str]:
    from tfjoint import bitstream
    from tfjoint.codec import Codec

    codec = Codec(path)
    config = codec.config
    size = f"{codec.side} x {codec.side} pixels" if codec.side else "any multiples of 16 pixels"
    steps = codec.description["step"]
    lines = [
        f"{codec.path}: {config.model}, {config.profile} profile, {steps} steps",
        f"can {', '.join(codec.signatures)}; takes views of {size} over {config.background}",
    ]
    if codec.takes_images:
        return [*lines, "no codes: shapes are made of the photos themselves"]
    source = codec.source()
    there = (codec.path / TABLES).is_file()
    lines.append(f"model {source}; tables {codec.tables.digest if there else 'none'}")
    for iterations in range(1, config.iterations_max + 1) if source.iterative else (None,):
        lines.append(
            f"{f'T = {iterations}, ' if iterations else ''}{config.rate(iterations or 1):.4g}:1, "
            f"{config.bits_per_view(iterations or 1)} bits a view; a raw file of 5 views has "
            f"{source.raw_bytes(5, iterations) + bitstream.OVERHEAD} bytes"
        )
    return lines


def _view(given: argparse.Namespace) -> None:
    from tfjoint import view

    output = Path(given.output or Path(given.input).with_suffix(".html"))
    _require_writable(str(output))
    view.view(Path(given.input), output)
    print(f"page: {output}, {output.stat().st_size / 1e6:.2f} MB")


# --- What the parts share -------------------------------------------------------------------------


def _codec(given: argparse.Namespace) -> Codec:
    path = given.model or os.environ.get(MODEL)
    if not path:
        raise CommandError(
            "no model: give --model=EXPORT, such as runs/direct/export after make demo, or set "
            f"{MODEL}"
        )
    find_export(Path(path))  # refused before TensorFlow is loaded, which takes seconds
    from tfjoint.codec import Codec

    return Codec(path)


def _require_photos(paths: Sequence[str], given: argparse.Namespace) -> None:
    """Refuse what can be refused before a model is loaded, which takes seconds."""
    from tfjoint import photos

    if len(paths) > MOST_COUNTED:
        raise CommandError(
            f"an object has {MOST_COUNTED} views at most. Received: {len(paths)} photos; give fewer"
        )
    for path in paths:
        photos.require_file(path)
    if given.background:
        photos.colour(given.background)


def _views(paths: Sequence[str], codec: Codec, given: argparse.Namespace) -> np.ndarray:
    from tfjoint import photos

    trained = codec.config.background
    colour = given.background or ("#f0f0f0" if trained == "random" else trained)
    fitting = photos.Fitting(codec.side, given.fit, photos.colour(colour))
    images, done = photos.read_views(paths, fitting)
    for line in done:
        _say(given, line)
    return images


def _encoded(codec: Codec, images: np.ndarray, given: argparse.Namespace) -> Codes:
    from tfjoint.codec import beyond_training

    iterations = _iterations(codec, given)
    if note := beyond_training(codec.config, iterations):
        _say(given, note)
    return codec.encode(images, iterations)


def _iterations(codec: Codec, given: argparse.Namespace) -> int | None:
    return codec.iterations_of(given.rate) if given.rate else given.iterations


def _first(codec: Codec, codes: Codes, given: argparse.Namespace) -> Codes:
    iterations = _iterations(codec, given)
    there = codes.iterations
    if given.rate and iterations and there and iterations > there:
        highest, lowest = codec.config.rate(), codec.config.rate(there)
        raise CommandError(
            f"the codes end at T = {there}, {lowest:.4g}:1. Received: --rate={given.rate:g}; ask "
            f"for a rate from {lowest:.4g} to {highest:.4g}"
        )
    return codes.first(given.views, iterations)


def _described(data: bytes) -> str:
    """Return what a .tfj file says of itself, in a line."""
    from tfjoint import bitstream
    from tfjoint.config import FLOAT_BITS, RAW_BITS

    header = bitstream.inspect(data)
    source = header.source
    raw_bits = RAW_BITS * source.height * source.width * header.views
    values = header.views * (header.iterations or 1)
    for side in source.shape:
        values *= side
    nominal = raw_bits / (values * (1 if source.binary else FLOAT_BITS))
    digest_of = "tables" if header.coding == bitstream.TABLE else "model"
    iterations = f"T = {header.iterations}, " if header.iterations else ""
    return (
        f"{len(data)} bytes, {header.coding}; {words.count(header.views, 'view')}, "
        f"{iterations}{nominal:.4g}:1 nominal, {raw_bits / 8 / len(data):.4g}:1 real; "
        f"{digest_of} {source}"
    )


def _read(path: str) -> bytes:
    if path == STREAM:
        return sys.stdin.buffer.read()
    if not Path(path).is_file():
        raise CommandError(f"no file at {path}: give one that compress has written")
    return Path(path).read_bytes()


def _codes_in(name: str, data: bytes, codec: Codec) -> Codes:
    with _about(name):
        return codec.read(data)


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    """Name the .tfj file in what is wrong with it."""
    from tfjoint.bitstream import BitstreamError

    try:
        yield
    except BitstreamError as error:
        called = "standard input" if name == STREAM else name
        if name.lower().endswith(".packet"):
            raise CommandError(
                f"{called} is a packet, which belongs to the others of its object: give them to "
                "reconstruct"
            ) from error
        raise BitstreamError(f"{called}: {error}") from error


def _require_writable(output: str) -> None:
    if output == STREAM and sys.stdout.isatty():
        raise CommandError("bytes are not written to a terminal: give -o a file, or use a pipe")
    if output != STREAM:
        if Path(output).is_dir():
            raise CommandError(f"{output} is a directory: give -o the name of a file")
        _require_directory(Path(output).parent)


def _require_directory(path: Path) -> None:
    """Refuse a directory that is none, or that cannot be made."""
    there = next(found for found in (path, *path.parents) if found.exists())
    if not there.is_dir():
        raise CommandError(f"{there} is a file: give the name of a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CommandError(f"{there} may not be written to: give the name of another directory")


def _numbered(directory: Path, name: str, count: int) -> list[str]:
    """Return `count` names of files in a directory that is there or can be made."""
    _require_directory(directory)
    paths = [directory / name.format(number) for number in range(1, MOST_COUNTED + 1)]
    for path in paths[count:]:
        if path.exists():
            raise CommandError(
                f"{path} is there and would pass for one of this object: take it away, or give "
                "another directory"
            )
    for path in paths[:count]:
        _require_writable(str(path))
    return [str(path) for path in paths[:count]]


def _write(output: str, data: bytes) -> None:
    if output == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with files.replacing(output) as temporary:
        temporary.write_bytes(data)


def _say(given: argparse.Namespace, line: str) -> None:
    if not given.quiet:
        print(line, file=sys.stderr)
