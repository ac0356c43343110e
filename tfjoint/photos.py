"""A user's own photos as views of the size that a model takes.

    file -> first frame -> EXIF orientation -> over the background -> cropped or padded -> resized

PNG, JPEG and WebP, of any size, aspect, depth and colour mode. Colour profiles are not applied.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfjoint.config import DOWNSAMPLING, MOST_COUNTED
from tfjoint.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")
FITS = ("crop", "pad")
MOST_PIXELS = 100_000_000
"""Of a file; a few kilobytes can claim more than any memory holds."""

MOST_SIDE = DOWNSAMPLING * MOST_COUNTED
"""Of a view that keeps its size, in pixels: what a .tfj file can say."""

_MOST_SAID = 5  # sizes, in one line
_ORIENTATION = 0x0112  # EXIF's tag
_COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255)}


class PhotoError(UserError):
    """A photo that cannot be read, or made into the view that was asked for."""


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How a photo becomes a view."""

    side: int | None
    """Of a square view in pixels; None keeps the size, cut or padded to multiples of 16."""
    fit: str = "crop"
    """"crop" cuts what sticks out, evenly on both sides; "pad" adds background instead."""
    background: tuple[int, int, int] = (0, 0, 0)
    """Red, green, blue in [0, 255]: behind what is transparent, and around what is padded."""


class Photo(NamedTuple):
    """A view, and in words what was done to the file."""

    pixels: np.ndarray
    """[H, W, 3] float32 in [0, 1]."""
    done: str


def colour(text: str) -> tuple[int, int, int]:
    """Return red, green and blue of "black", "white" or "#rrggbb". Raises `PhotoError`."""
    if text in _COLOURS:
        return _COLOURS[text]
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise PhotoError(
            f"a background is {', '.join(_COLOURS)} or #rrggbb in hexadecimal. Received: {text!r}"
        )
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def read_views(
    paths: Sequence[str | os.PathLike], fitting: Fitting
) -> tuple[np.ndarray, list[str]]:
    """Return the views of one object [V, H, W, 3] float32 in [0, 1], and what was done to each.

    Raises:
      PhotoError: a file is no photo, or the views differ in size.
    """
    photos = [read_photo(path, fitting) for path in paths]
    sizes = {photo.pixels.shape[:2] for photo in photos}
    if len(sizes) > 1:
        received = ", ".join(f"{width} x {height}" for height, width in sorted(sizes)[:_MOST_SAID])
        received += ", ..." if len(sizes) > _MOST_SAID else ""
        raise PhotoError(
            f"the views of one object have one size. Received: {received}; write a file for each, "
            "or bring the photos to one size before"
        )
    return np.stack([photo.pixels for photo in photos]), [photo.done for photo in photos]


def require_file(path: str | os.PathLike) -> None:
    """Raise `PhotoError` where there is no file at `path`; what it holds is not looked at."""
    if Path(path).is_dir():
        raise PhotoError(f"{path} is a directory: give the PNG, JPEG or WebP photos in it")
    if not Path(path).is_file():
        raise PhotoError(f"no file at {path}: give a PNG, JPEG or WebP photo")


def read_photo(path: str | os.PathLike, fitting: Fitting) -> Photo:
    """Return one photo as a view.

    Raises:
      PhotoError: Pillow is not installed; the file is missing, damaged, too large or of another
        format; or it is smaller than a view without a size can be.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise PhotoError(
            f"reading photos needs Pillow, which is not here ({error}): install tfjoint[photos]"
        ) from error
    require_file(path)
    if not os.path.getsize(path):
        raise PhotoError(f"{path} is empty: give a PNG, JPEG or WebP photo")
    said: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; pixels are all we take
            with Image.open(path, formats=FORMATS) as file:
                _require_size(file.size)
                said.append(f"{file.width} x {file.height}")
                if (frames := getattr(file, "n_frames", 1)) > 1:
                    said.append(f"first of {frames} frames")
                if file.getexif().get(_ORIENTATION, 1) != 1:
                    said.append("turned as EXIF says")
                turned = ImageOps.exif_transpose(file)
            image = _over(_eight_bits(turned, said), fitting.background, said)
    except PhotoError as error:
        raise PhotoError(f"{path} {error}") from error
    except Exception as error:  # of many kinds, from SyntaxError to struct.error
        raise PhotoError(f"{path} {_reason(error)}") from error
    try:
        fitted = _fitted(image, fitting, said)
    except PhotoError as error:
        raise PhotoError(f"{path} {error}") from error
    pixels = np.asarray(fitted, np.float32) / 255
    return Photo(pixels, f"{path}: {', '.join(said)}")


def _require_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise PhotoError(
            f"has {size[0]} x {size[1]} pixels, {MOST_PIXELS // 10**6} million are allowed: "
            "make it smaller before"
        )


def _reason(error: Exception) -> str:
    kind, text = type(error).__name__, " ".join(str(error).split())[:200]
    if kind == "UnidentifiedImageError":
        return "is no PNG, JPEG or WebP photo: convert it to one of these"
    if kind == "DecompressionBombError":
        return f"has more than {MOST_PIXELS // 10**6} million pixels: make it smaller before"
    return f"is damaged or cut off ({kind}: {text}): get it again"


def _eight_bits(image: Image.Image, said: list[str]) -> Image.Image:
    """Return an image of Pillow's 16-bit modes as 8-bit grey; Pillow itself would clip it."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    said.append("16-bit grey to 8 bits")
    return Image.fromarray(np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8))


def _over(image: Image.Image, background: tuple[int, int, int], said: list[str]) -> Image.Image:
    """Return an image of any mode as RGB, over the background where it is transparent."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    said.append("alpha over #{:02x}{:02x}{:02x}".format(*background))
    behind = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def _fitted(image: Image.Image, fitting: Fitting, said: list[str]) -> Image.Image:
    crop = fitting.fit == "crop"
    if fitting.side is None:
        wanted = _multiple(image.width, up=not crop), _multiple(image.height, up=not crop)
        if not all(wanted):
            raise PhotoError(
                f"has {image.width} x {image.height} pixels, at least {DOWNSAMPLING} x "
                f"{DOWNSAMPLING} are needed: give --fit=pad, or a larger photo"
            )
        if max(wanted) > MOST_SIDE:
            raise PhotoError(
                f"has {image.width} x {image.height} pixels, a side has {MOST_SIDE} at most: make "
                "it smaller before"
            )
        return _centred(image, wanted, fitting.background, said)
    side = fitting.side
    if crop:
        middle = _centred(image, (min(image.size),) * 2, fitting.background, said)
        return _resized(middle, (side, side), said)
    # Resized first: around a photo of one row, a square would not fit into memory.
    scale = side / max(image.size)
    whole = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return _centred(_resized(image, whole, said), (side, side), fitting.background, said)


def _resized(image: Image.Image, size: tuple[int, int], said: list[str]) -> Image.Image:
    from PIL import Image

    if image.size == size:
        return image
    # What is enlarged is as blurred as it was: the words tell it from what is made smaller.
    enlarged = max(size) > max(image.size)
    verb = f"enlarged from {image.width} x {image.height}" if enlarged else "resized"
    said.append(f"{verb} to {size[0]} x {size[1]}")
    return image.resize(size, Image.Resampling.LANCZOS)


def _multiple(length: int, up: bool) -> int:
    return (length + (DOWNSAMPLING - 1 if up else 0)) // DOWNSAMPLING * DOWNSAMPLING


def _centred(
    image: Image.Image,
    size: tuple[int, int],
    background: tuple[int, int, int],
    said: list[str],
) -> Image.Image:
    """Return the middle of an image, with background around it where it is smaller than `size`."""
    from PIL import Image

    if image.size == size:
        return image
    verb = "cropped" if size < image.size else "padded"
    said.append(f"{verb} to {size[0]} x {size[1]}")
    canvas = Image.new("RGB", size, background)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas
