"""The page as a file: what is in it, and that nothing in it can do harm. No browser."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from pages import DECODED, EVERYTHING, IMAGES, PERCENT, ROW, TRUTH, Document, data_of
from PIL import Image

from tfjoint import gallery, page
from tfjoint.gallery import from_arrays

RNG = np.random.default_rng(0)
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>-->\"'><img src=https://example.org/x onerror=alert(1)>",
    "@DATA@ @SCRIPT@ @STYLE@ @POLICY@",
    "\u2028\u2029\x00\\\ud800",
    "&lt;b&gt;",
)


def unpack(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def picture(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


# --- What is in it --------------------------------------------------------------------------------


def test_a_page_holds_every_grid_and_picture_once():
    given = from_arrays(
        {**EVERYTHING, "names": ("a", "b"), "categories": ("x", "y"), "threshold": 0.35}
    )
    shown = data_of(page.render(given, title="title", notes=["one", "two"]))
    assert (shown["title"], shown["notes"], shown["table"]) == ("title", ["one", "two"], None)
    shapes = shown["gallery"]
    assert (shapes["side"], shapes["threshold"], shapes["probabilities"]) == (4, 35, True)
    assert [o["name"] for o in shapes["objects"]] == ["a", "b"]
    assert [o["category"] for o in shapes["objects"]] == ["x", "y"]
    for number, found in enumerate(shapes["objects"]):
        np.testing.assert_array_equal(unpack(found["percent"]), PERCENT[number].ravel())
        np.testing.assert_array_equal(unpack(found["truth"]), TRUTH[number].ravel())
        np.testing.assert_array_equal(list(map(picture, found["images"])), IMAGES[number])
        decoded = [list(map(picture, views)) for views in found["decoded"]]
        np.testing.assert_array_equal(decoded, DECODED[number])


def test_what_is_not_known_has_a_name_only_where_there_is_a_choice():
    shapes = data_of(page.render(from_arrays(EVERYTHING)))["gallery"]
    assert (shapes["rates"], shapes["views"]) == (["1", "2", "3"], [1, 2])
    assert [o["name"] for o in shapes["objects"]] == ["object 1", "object 2"]
    shapes = data_of(page.render(from_arrays({"voxels": TRUTH[0]})))["gallery"]
    assert (shapes["rates"], shapes["views"], shapes["probabilities"]) == ([""], [0], False)
    (found,) = shapes["objects"]
    np.testing.assert_array_equal(unpack(found["percent"]), 100 * TRUTH[0].ravel())
    assert found["name"] == "" and not (found["truth"] or found["images"] or found["decoded"])


@pytest.mark.parametrize(("threshold", "shown"), [(0.004, 1), (0.333, 33), (0.4, 40), (1, 100)])
def test_a_threshold_is_shown_in_whole_percent(threshold, shown):
    given = from_arrays({"probabilities": RNG.random((4, 4, 4)), "threshold": threshold})
    assert data_of(page.render(given))["gallery"]["threshold"] == shown


def test_results_are_a_line_for_each_object_and_a_column_for_each_rate():
    second = {**ROW, "iterations": 2, "rate": {"nominal": 192.0}}
    second["objects"] = [{**entry, "iou": entry["iou"] / 2} for entry in ROW["objects"]]
    table = data_of(page.render(None, {"rows": [ROW, second]}))["table"]
    assert table["columns"] == ["T = 1\n384:1", "T = 2\n192:1"]
    assert table["rows"] == [
        {"name": "b", "category": "chair", "values": [0.25, 0.125]},
        {"name": "a", "category": "table", "values": [0.75, 0.375]},
    ]
    assert table["means"] == [0.5, 0.25]
    assert (table["title"], table["digits"], table["most"]) == ("IoU of every object", 3, 1)


def test_results_without_shapes_show_how_good_the_pictures_are():
    table = data_of(page.render(None, {"rows": [{**ROW, "iou": None}]}))["table"]
    assert [row["values"] for row in table["rows"]] == [[18.0], [20.0]]
    assert table["means"] == [19.0]
    assert table["title"] == "PSNR in dB of every object" and table["most"] == 0


def test_a_column_of_raw_views_is_named_after_what_it_holds():
    row = {**ROW, "iterations": None, "rate": {"nominal": None}}
    assert data_of(page.render(None, {"rows": [row]}))["table"]["columns"] == ["IoU"]


def test_grids_that_the_page_cannot_count_are_refused():
    side = page.LARGEST_SIDE + 1
    given = gallery.Gallery(np.broadcast_to(np.uint8(0), (1, 1, 1, side, side, side)))
    with pytest.raises(page.PageError, match="257 cells a side; a page shows up to 256"):
        page.render(given)


# --- That nothing in it can do harm ---------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_text_wherever_it_stands(text):
    without_null = text.replace("\x00", "")  # NumPy's texts end there
    given = from_arrays(
        {
            **EVERYTHING,
            "names": (without_null, "b"),
            "categories": (without_null, without_null),
            "rates": (without_null, "b", "c"),
        }
    )
    row = {**ROW, "objects": [{"id": text, "category": text, "iou": 0.5, "psnr_db": None}]}
    whole = page.render(given, {"rows": [row]}, title=text, notes=[text])
    shown = data_of(whole)
    assert shown["title"] == text and shown["notes"] == [text]
    assert shown["gallery"]["objects"][0]["name"] == without_null
    assert shown["table"]["rows"][0]["category"] == text
    harmless = page.render(from_arrays(EVERYTHING), {"rows": [ROW]})
    assert Document(whole).elements == Document(harmless).elements
    whole.encode("utf-8")


def test_a_browser_is_told_to_run_these_scripts_alone_and_to_fetch_nothing():
    document = Document(page.render(from_arrays(EVERYTHING)))
    (policy,) = [
        attributes["content"]
        for attributes, _ in document.all("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"] and rules["img-src"] == ["data:"]
    (_, style), (_, (_, script)) = document.all("style")[0], document.all("script")
    for rule, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == [f"'sha256-{digest}'"]


def test_nothing_in_a_page_names_another_place():
    document = Document(page.render(from_arrays(EVERYTHING), {"rows": [ROW]}))
    for tag, attributes in document.elements:
        assert "src" not in attributes and "style" not in attributes, tag
        assert attributes.get("href", "data:,") == "data:,"
        assert not [name for name in attributes if name.startswith("on")], tag
    sources = "".join(path.read_text() for path in Path(page.__file__).parent.glob("*.*s*"))
    assert "findFaces" in sources and "#canvas" in sources
    asks = r"https?:|url\(|@import|fetch\(|XMLHttp|WebSocket|EventSource|sendBeacon"
    writes = r"innerHTML|outerHTML|insertAdjacent|eval\(|document\.write|</script|<!--"
    assert not re.search(f"{asks}|{writes}", sources, re.IGNORECASE)


def test_a_page_depends_on_its_content_alone():
    given = from_arrays(EVERYTHING)
    assert page.render(given, title="a") == page.render(given, title="a")
