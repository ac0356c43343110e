"""A user's own photos, made with Pillow and compared with NumPy."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import runs
from PIL import Image

from tfjoint import photos
from tfjoint.photos import Fitting, PhotoError

RED, GREEN, BLUE = (200, 10, 20), (10, 180, 30), (30, 40, 160)


def stripes(width: int = 90, height: int = 60) -> np.ndarray:
    """[H, W, 3] uint8: three equal columns, red, green, blue; the top half is brighter."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for index, colour in enumerate((RED, GREEN, BLUE)):
        pixels[:, index * width // 3 : (index + 1) * width // 3] = colour
    pixels[: height // 2] += 40
    return pixels


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def read(path: Path, side: int | None = 32, **fitting) -> np.ndarray:
    """As uint8, so that colours are compared in whole numbers."""
    pixels = photos.read_photo(path, Fitting(side, **fitting)).pixels
    assert pixels.dtype == np.float32 and pixels.min() >= 0 and pixels.max() <= 1
    return np.round(pixels * 255).astype(np.uint8)


def refusal(path: Path, side: int | None = 32, **fitting) -> str:
    with pytest.raises(PhotoError) as caught:
        photos.read_photo(path, Fitting(side, **fitting))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


# --- Size -----------------------------------------------------------------------------------------


def test_a_photo_of_the_size_of_a_view_is_taken_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    photo = photos.read_photo(save(tmp_path / "a.png", pixels), Fitting(32))
    np.testing.assert_array_equal(photo.pixels, pixels.astype(np.float32) / 255)
    assert photo.done == f"{tmp_path / 'a.png'}: 32 x 32"


def test_a_wide_photo_is_cropped_in_the_middle_and_resized(tmp_path):
    path = save(tmp_path / "a.png", stripes(180, 60))
    found = read(path, 30)  # the middle third, which is green
    assert found.shape == (30, 30, 3)
    np.testing.assert_array_equal(found[20:], np.broadcast_to(GREEN, (10, 30, 3)))
    done = photos.read_photo(path, Fitting(30)).done
    assert done == f"{path}: 180 x 60, cropped to 60 x 60, resized to 30 x 30"


def test_a_wide_photo_is_padded_with_the_background(tmp_path):
    path = save(tmp_path / "a.png", stripes(90, 30))
    found = read(path, 90, fit="pad", background=(1, 2, 3))
    np.testing.assert_array_equal(found[30:60], stripes(90, 30))
    for rest in (found[:30], found[60:]):
        np.testing.assert_array_equal(rest, np.broadcast_to((1, 2, 3), rest.shape))
    done = photos.read_photo(path, Fitting(45, "pad")).done
    assert done == f"{path}: 90 x 30, resized to 45 x 15, padded to 45 x 45"


def test_a_smaller_photo_is_made_larger_and_the_line_says_from_what(tmp_path):
    path = save(tmp_path / "a.png", np.full((5, 9, 3), 77, np.uint8))
    np.testing.assert_array_equal(read(path, 64), np.full((64, 64, 3), 77))
    done = photos.read_photo(path, Fitting(64)).done
    assert done == f"{path}: 9 x 5, cropped to 5 x 5, enlarged from 5 x 5 to 64 x 64"
    done = photos.read_photo(path, Fitting(18, "pad")).done
    assert done == f"{path}: 9 x 5, enlarged from 9 x 5 to 18 x 10, padded to 18 x 18"


def test_resizing_is_filtered_and_not_sampled(tmp_path):
    """Single bright rows on black: their mean stays."""
    pixels = np.zeros((320, 320, 3), np.uint8)
    pixels[::10] = 250
    found = read(save(tmp_path / "a.png", pixels), 32)
    assert np.abs(found[2:-2].astype(int) - 25).max() <= 8


@pytest.mark.parametrize(
    ("fit", "width", "height"), [("crop", 80, 48), ("pad", 96, 64)]
)  # of 90 x 60
def test_without_a_side_photos_become_multiples_of_16_and_keep_their_pixels(
    tmp_path, fit, width, height
):
    found = read(save(tmp_path / "a.png", stripes()), None, fit=fit, background=(9, 9, 9))
    assert found.shape == (height, width, 3)
    expected = np.full((64, 96, 3), 9, np.uint8)
    expected[2:62, 3:93] = stripes()
    if fit == "crop":
        expected = stripes()[6:54, 5:85]
    np.testing.assert_array_equal(found, expected)


def test_a_photo_that_no_multiple_of_16_fits_into_is_refused(tmp_path):
    path = save(tmp_path / "a.png", stripes(90, 15))
    assert "has 90 x 15 pixels, at least 16 x 16 are needed: give --fit=pad" in refusal(path, None)
    assert read(path, None, fit="pad").shape == (16, 96, 3)


def test_a_photo_that_no_file_of_codes_could_hold_is_refused(tmp_path):
    path = save(tmp_path / "a.png", stripes(4100, 16))
    assert f"{path} has 4100 x 16 pixels, a side has 4080 at most" in refusal(path, None)
    assert read(path, 64).shape == (64, 64, 3)


def test_a_photo_of_one_row_is_padded_without_a_canvas_of_its_length(tmp_path):
    path = save(tmp_path / "a.png", np.full((1, 60_000, 3), 200, np.uint8))
    found = read(path, 32, fit="pad")
    assert [row for row in range(32) if found[row].any()] == [15]


# --- Colour ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (10, 20, 30)])
def test_alpha_is_composed_over_the_background(tmp_path, suffix, background):
    alpha = np.tile(np.array([0, 128, 255], np.uint8).repeat(10), (30, 1))
    pixels = np.dstack([stripes(30, 30), alpha])
    path = save(tmp_path / f"a{suffix}", pixels, lossless=True)
    share = alpha[..., np.newaxis] / 255
    expected = pixels[..., :3] * share + np.array(background) * (1 - share)
    found = read(path, 30, background=background)
    assert np.abs(found - expected).max() <= 1.01
    name = "#{:02x}{:02x}{:02x}".format(*background)
    assert f"alpha over {name}" in photos.read_photo(path, Fitting(30, "crop", background)).done


def test_a_palette_with_a_transparent_colour_is_composed(tmp_path):
    image = Image.new("P", (30, 30), 1)
    image.putpalette([0, 0, 0, 50, 100, 150])
    image.paste(0, (0, 0, 15, 30))
    image.save(tmp_path / "a.png", transparency=0)
    found = read(tmp_path / "a.png", 30, background=(7, 8, 9))
    assert found[0, 0].tolist() == [7, 8, 9] and found[0, 29].tolist() == [50, 100, 150]


def test_grey_of_8_and_16_bits_and_of_1_bit(tmp_path):
    ramp = np.linspace(0, 255, 32).round().astype(np.uint8)
    grey = np.tile(ramp, (32, 1))
    save(tmp_path / "8.png", grey)
    save(tmp_path / "16.png", grey.astype(np.uint16) * 257)
    Image.fromarray(grey > 127).save(tmp_path / "1.png")
    for name in ("8", "16"):
        np.testing.assert_array_equal(read(tmp_path / f"{name}.png"), np.dstack([grey] * 3))
    assert "16-bit grey to 8 bits" in photos.read_photo(tmp_path / "16.png", Fitting(32)).done
    np.testing.assert_array_equal(read(tmp_path / "1.png")[..., 1], np.where(grey > 127, 255, 0))


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = read(tmp_path / "a.jpg")[16, 16].tolist()
    assert red < 20 and green > 230 and blue > 230


@pytest.mark.parametrize("text", ["red", "#12345", "#1234567", "12ab34", "#12ab3g", "", "Black"])
def test_a_background_that_is_no_colour_is_refused(text):
    with pytest.raises(PhotoError, match=r"is black, white or #rrggbb .*Received"):
        photos.colour(text)


def test_backgrounds_by_name_and_number():
    assert photos.colour("black") == (0, 0, 0)
    assert photos.colour("white") == (255, 255, 255)
    assert photos.colour("#0aFf10") == (10, 255, 16)


# --- EXIF and frames ------------------------------------------------------------------------------

# What a viewer does with the stored pixels, by EXIF's own table: where row 0 and column 0 are.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[:, ::-1],
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: p.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_photo_is_turned_as_exif_says(tmp_path, orientation, suffix):
    stored = stripes(48, 32)
    options = {".jpg": {"quality": 98, "subsampling": 0}, ".webp": {"lossless": True}}
    path = tmp_path / f"a{suffix}"
    save(path, stored, exif=exif(orientation), **options.get(suffix, {}))
    expected = UPRIGHT[orientation](stored)
    found = read(path, None)
    assert found.shape == expected.shape
    # JPEG blurs the borders between colours.
    assert np.median(np.abs(found.astype(int) - expected)) <= 2
    assert np.mean(np.abs(found.astype(int) - expected)) < 4
    done = photos.read_photo(path, Fitting(None)).done
    assert ("turned as EXIF says" in done) == (orientation > 1)


def test_of_several_frames_the_first_is_taken(tmp_path):
    first, second = (Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE))
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    for name in ("a.webp", "a.png"):
        assert read(tmp_path / name)[16, 16].tolist() == list(RED)
        assert "first of 2 frames" in photos.read_photo(tmp_path / name, Fitting(32)).done


# --- What is no photo -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_photo_that_is_cut_off_is_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"a{suffix}", noise)
    data = path.read_bytes()
    for length in (len(data) // 2, len(data) - len(data) // 5, 40):
        path.write_bytes(data[:length])
        assert "get it again" in refusal(path) or "convert it" in refusal(path)


def test_what_is_no_photo_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_text("no photo")
    assert "is no PNG, JPEG or WebP photo: convert it" in refusal(tmp_path / "a.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "b.gif")
    assert "is no PNG, JPEG or WebP photo" in refusal(tmp_path / "b.gif")
    (tmp_path / "c.png").write_bytes(b"")
    assert "is empty: give a PNG" in refusal(tmp_path / "c.png")
    assert "no file at" in refusal(tmp_path / "missing.png")
    assert "is a directory" in refusal(tmp_path)


def claimed_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be that large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (header, body, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


@pytest.mark.parametrize("side", [10_001, 12_000, 60_000, 2**31 - 1])
def test_a_photo_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path, side):
    (tmp_path / "a.png").write_bytes(claimed_png(side, side))
    assert "million" in refusal(tmp_path / "a.png")


def test_the_limit_is_on_pixels_and_not_on_sides(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MOST_PIXELS", 1000)
    assert read(save(tmp_path / "a.png", stripes(1000, 1))).any()
    assert "has 143 x 7 pixels" in refusal(save(tmp_path / "b.png", stripes(143, 7)))


# --- Several views --------------------------------------------------------------------------------


def test_views_keep_their_order(tmp_path):
    paths = [save(tmp_path / f"{v}.png", np.full((9, 9, 3), v, np.uint8)) for v in (5, 3, 200)]
    views, done = photos.read_views(paths, Fitting(16))
    assert views.shape == (3, 16, 16, 3)
    assert np.round(views[:, 8, 8, 0] * 255).tolist() == [5, 3, 200]
    assert [line.partition(":")[0] for line in done] == [str(path) for path in paths]


def test_views_of_several_sizes_are_refused(tmp_path):
    paths = [save(tmp_path / f"{w}.png", stripes(w, 32)) for w in (32, 64)]
    with pytest.raises(PhotoError, match=r"one size\. Received: 32 x 32, 64 x 32"):
        photos.read_views(paths, Fitting(None))
    assert photos.read_views(paths, Fitting(32))[0].shape == (2, 32, 32, 3)


def test_without_pillow_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", stripes())
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(PhotoError, match=r"needs Pillow.*install tfjoint\[photos\]"):
        photos.read_photo(path, Fitting(32))


def test_photos_are_read_without_tensorflow(tmp_path):
    path = save(tmp_path / "a.png", stripes())
    code = (
        "import sys; from tfjoint import photos; sys.modules['tensorflow'] = None;"
        f"print(photos.read_photo({str(path)!r}, photos.Fitting(32)).pixels.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "(32, 32, 3)", done.stderr
