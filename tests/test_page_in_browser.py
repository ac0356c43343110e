"""The page in a headless browser: what a person sees, and what hands on it do."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import browser
import numpy as np
import pytest
from pages import ROW
from PIL import Image

from tfjoint import gallery, metrics, page

FOUND = browser.find()
pytestmark = pytest.mark.skipif(
    FOUND is None, reason=f"no Chromium on the PATH, and {browser.VARIABLE} names none"
)
LAPTOP, PHONE = (1366, 768), (390, 844)
STAGE = (916, 702)
"""What the canvas takes of the first."""
PAINTERS = {"WebGLPainter": browser.SOFTWARE_WEBGL, "CanvasPainter": browser.NO_WEBGL}
SIDE = 12
RNG = np.random.default_rng(0)


def shapes(**changes) -> gallery.Gallery:
    """Two objects at three rates from two numbers of views; both look different from every side."""
    near = np.zeros((2, SIDE, SIDE, SIDE))
    near[:, 1:11, 0:3, 2:10] = 1
    near[:, 1:4, 3:12, 2:7] = 1
    near[1, 7:11, 3:6, 8:10] = 1
    noise = RNG.random((2, 3, 2, SIDE, SIDE, SIDE))
    given = {
        "probabilities": 0.6 * near[:, None, None] + 0.4 * noise,
        "truth": np.roll(near, 1, axis=3) > 0,
        "images": RNG.integers(0, 256, (2, 4, 8, 8, 3), np.uint8),
        "decoded": RNG.integers(0, 256, (2, 3, 4, 8, 8, 3), np.uint8),
        "names": ("a", "c"),
        "rates": ("T = 1", "T = 2", "T = 3"),
        "views": (1, 4),
        "threshold": 0.5,
    }
    return gallery.from_arrays({k: v for k, v in {**given, **changes}.items() if v is not None})


SHAPES = shapes()
OBJECTS = [
    {"id": name, "category": category, "iou": iou, "psnr_db": 20.0}
    for name, category, iou in [("b", "lamp", 0.25), ("a", "sofa", 0.5), ("c", "chair", 0.75)]
]
RESULTS = {"rows": [{**ROW, "objects": OBJECTS}]}


@pytest.fixture(scope="module", params=PAINTERS)
def anybody(request, tmp_path_factory):
    """A browser with WebGL, then one without."""
    with browser.Browser(FOUND, tmp_path_factory.mktemp("profile"), PAINTERS[request.param]) as b:
        b.painter = request.param
        yield b


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page.render(SHAPES, RESULTS, title="shapes"), encoding="utf-8")
    return path


def open_page(b: browser.Browser, path: Path, size: tuple[int, int] = LAPTOP, **features) -> None:
    b.open(path, *size, **features)
    b.wait(lambda: b.value("!viewer || Boolean(viewer.mesh)"))
    b.settle()


@pytest.fixture
def opened(anybody, shown) -> browser.Browser:
    """A browser that shows `SHAPES` and has nothing to complain of, then or later."""
    open_page(anybody, shown)
    if anybody.painter == "WebGLPainter" and not anybody.value("Boolean(viewer.painter.gl)"):
        pytest.skip("this browser has no WebGL 2 here")
    assert anybody.value("viewer.painter.constructor.name") == anybody.painter
    yield anybody
    assert anybody.complaints() == []
    assert anybody.requests() == [shown.resolve().as_uri()]
    assert anybody.value("byId('message').hidden")


def write(tmp_path: Path, *given, **more) -> Path:
    path = tmp_path / "page.html"
    path.write_text(page.render(*given, **more), encoding="utf-8")
    return path


def stage(b: browser.Browser) -> np.ndarray:
    """The picture on the canvas, without what is written over it, [H, W, 3]."""
    b.value("void (byId('legend').style.visibility = byId('hint').style.visibility = 'hidden')")
    b.value("void document.activeElement.blur()")
    b.settle()
    left, top, width, height = b.value(
        """(() => { const box = byId("canvas").getBoundingClientRect();
                    return [box.x, box.y, box.width, box.height]; })()"""
    )
    image = np.asarray(Image.open(io.BytesIO(b.screenshot())).convert("RGB")).astype(int)
    return image[round(top) : round(top + height), round(left) : round(left + width)]


def coloured(picture: np.ndarray) -> np.ndarray:
    """Which pixels show cells: the background and the cube behind them are nearly grey."""
    return np.ptp(picture, axis=-1) > 25


def differs(one: np.ndarray, other: np.ndarray) -> float:
    """The part of the pixels of two pictures that differ clearly."""
    return np.mean(np.abs(one - other).max(axis=-1) > 12)


def choose(b: browser.Browser, slider: str, value: int) -> None:
    b.value(f"byId('{slider}').value = {value}, byId('{slider}').dispatchEvent(new Event('input'))")


def text(b: browser.Browser, name: str) -> str:
    return b.value(f"byId('{name}').textContent")


def show(b: browser.Browser, mode: str) -> None:
    b.click(f"#modes label:has([value={mode}])")


# --- The picture ----------------------------------------------------------------------------------


def first_hit(kinds: np.ndarray, turn: float, rise: float) -> np.ndarray:
    """What every fourth pixel in both directions shows of a grid, found with points along rays.

    Where `kinds` is 0 a ray goes on.

    The camera stands at a distance of 3.1 from the middle of the cube of side 1, turned from +x to
    +z and raised. The shorter side of the picture is as long as 2 / 3.2 at distance 1.
    """
    back = np.array([np.cos(rise) * np.cos(turn), np.sin(rise), np.cos(rise) * np.sin(turn)])
    right = np.cross([0, 1, 0], back) / np.linalg.norm(np.cross([0, 1, 0], back))
    up = np.cross(back, right)
    width, height = STAGE
    row, column = np.meshgrid(
        np.arange(0, height, 4) + 0.5, np.arange(0, width, 4) + 0.5, indexing="ij"
    )
    scale = 2 / 3.2 / min(width, height)
    across, above = (column - width / 2) * scale, (height / 2 - row) * scale
    rays = across[..., None] * right + above[..., None] * up - back
    seen = np.zeros(row.shape, kinds.dtype)
    for far in np.arange(2.2, 4, 0.01):
        index = np.floor((3.1 * back + far * rays + 0.5) * len(kinds)).astype(int)
        inside = np.all((index >= 0) & (index < len(kinds)), axis=-1)
        here = kinds[tuple(np.clip(index, 0, len(kinds) - 1).transpose(2, 0, 1))] * inside
        seen = np.where(seen, seen, here)
    return seen


@pytest.mark.parametrize(
    ("right", "down"), [(0, 0), (150, 0), (-150, 0), (0, 80), (90, -70), (round(np.pi / 0.008), 0)]
)
def test_the_shape_turns_with_the_mouse_and_stands_where_rays_meet_it(opened, right, down):
    opened.drag("#canvas", right, down)
    found = coloured(stage(opened))[::4, ::4]
    cells = SHAPES.occupancy[0, 2, 1] >= 0.5
    expected = first_hit(cells, 0.62 + 0.008 * right, 0.42 + 0.008 * down)
    assert np.sum(found & expected) / np.sum(found | expected) > 0.97
    assert 0.05 < expected.mean() < 0.5


def test_with_and_without_webgl_the_picture_is_the_same(shown, tmp_path):
    pictures = []
    for painter, flags in PAINTERS.items():
        with browser.Browser(FOUND, tmp_path / painter, flags) as b:
            open_page(b, shown)
            if b.value("viewer.painter.constructor.name") != painter:
                pytest.skip("this browser has no WebGL 2 here")
            show(b, "difference")
            pictures.append(stage(b))
    one, other = pictures
    assert np.mean(np.abs(one - other)) < 2
    assert np.mean(coloured(one) != coloured(other)) < 0.005


def test_dragging_the_mouse_changes_the_picture_and_dragging_back_restores_it(opened):
    start = stage(opened)
    opened.drag("#canvas", 150, 40)
    assert differs(start, stage(opened)) > 0.05
    opened.drag("#canvas", -150, -40)
    assert differs(start, stage(opened)) < 0.001
    for x in (300, 400):  # no button is held
        opened("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=300)
    opened.settle()
    assert differs(start, stage(opened)) < 0.001


def test_the_wheel_zooms(opened):
    start = coloured(stage(opened)).mean()
    opened.wheel("#canvas", -200)
    near = coloured(stage(opened)).mean()
    assert near > 1.3 * start
    opened.wheel("#canvas", 200)
    assert coloured(stage(opened)).mean() == pytest.approx(start, rel=0.01)
    opened.wheel("#canvas", 200)
    assert coloured(stage(opened)).mean() < 0.8 * start
    assert opened.value("scrollY") == 0


def test_a_finger_turns_and_two_zoom(opened):
    start = stage(opened)
    opened.touch("#canvas", ((0, 0), (120, 0)))
    turned = stage(opened)
    assert differs(start, turned) > 0.05
    opened.drag("#canvas", -120, 0)
    assert differs(start, stage(opened)) < 0.001
    opened.touch("#canvas", ((-50, 0), (-100, 0)), ((50, 0), (100, 0)))
    assert coloured(stage(opened)).mean() > 1.3 * coloured(start).mean()


def test_keys_turn_and_zoom_and_bring_back(opened):
    start = stage(opened)
    opened.value("void byId('canvas').focus()")
    for key, other in (("ArrowLeft", "ArrowRight"), ("ArrowUp", "ArrowDown"), ("+", "-")):
        opened.value("void byId('canvas').focus()")
        for _ in range(3):
            opened.press(key)
        assert differs(start, stage(opened)) > 0.02, key
        opened.value("void byId('canvas').focus()")
        for _ in range(3):
            opened.press(other)
        assert differs(start, stage(opened)) < 0.001, key
        opened.value("void byId('canvas').focus()")
        opened.press(key)
        opened.press("0")
        assert differs(start, stage(opened)) < 0.001, key


def test_a_dark_page_shows_the_same_shape(anybody, shown):
    open_page(anybody, shown)
    light = stage(anybody)
    open_page(anybody, shown, prefers_color_scheme="dark")
    dark = stage(anybody)
    assert light[2, 2].min() > 200 and dark[2, 2].max() < 60
    assert np.mean(coloured(light) != coloured(dark)) < 0.01
    assert anybody.complaints() == []


# --- What is counted and what is shown ------------------------------------------------------------


def test_the_iou_of_what_is_shown_is_that_of_the_evaluation(opened):
    for number, rate, step in itertools.product(range(2), range(3), range(2)):
        opened.value(f"viewer.select({number})")
        opened.wait(lambda number=number: opened.value("byId('object').value") == str(number))
        opened.wait(lambda number=number: opened.value(f"viewer.grids.has({number})"))
        choose(opened, "rate", rate)
        choose(opened, "views", step)
        for threshold in (30, 50, 71):
            choose(opened, "threshold", threshold)
            found, truth = SHAPES.occupancy[number, rate, step], SHAPES.truth[number]
            iou = metrics.iou(found, truth, threshold / 100)
            cells = found >= threshold / 100
            assert float(text(opened, "iou").split()[1]) == pytest.approx(iou, abs=5.01e-4)
            assert text(opened, "counts") == (
                f"{cells.sum()} predicted, {truth.sum()} true, {(cells & truth).sum()} in both"
            )
        assert text(opened, "threshold-text") == "0.71"
        assert text(opened, "rate-text") == f"T = {rate + 1}"
        assert text(opened, "views-text") == f"{(1, 4)[step]} of 4"


def legend(b: browser.Browser) -> list[str]:
    return b.value("[...byId('legend').children].filter(l => !l.hidden).map(l => l.textContent)")


def test_prediction_truth_and_difference_count_their_cells(opened):
    cells, truth = SHAPES.occupancy[0, 2, 1] >= 0.5, SHAPES.truth[0]
    both, extra, missed = (cells & truth).sum(), (cells & ~truth).sum(), (truth & ~cells).sum()
    assert legend(opened) == [f"prediction: {cells.sum()}"]
    show(opened, "truth")
    assert legend(opened) == [f"truth: {truth.sum()}"]
    show(opened, "difference")
    assert legend(opened) == [f"in both: {both}", f"too much: {extra}", f"missing: {missed}"]
    for name, count in (("shared", both), ("extra", extra), ("missed", missed)):
        drawn = opened.value(
            f"""(() => {{
                const grids = viewer.grids.get(0), cells = {SIDE**3};
                const percent = grids.percent.subarray(5 * cells, 6 * cells);
                const found = classify("difference", percent, grids.truth, 50).cells;
                return found.filter((kind) => kind === KIND.{name}).length;
            }})()"""
        )
        assert drawn == count


def has(picture: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """Which pixels have a colour's hue, however shaded."""
    unit = picture / np.maximum(np.linalg.norm(picture, axis=-1, keepdims=True), 1)
    return (unit @ (np.array(rgb) / np.linalg.norm(rgb)) > 0.995) & coloured(picture)


GREEN, ORANGE, BLUE = (92, 171, 92), (229, 138, 43), (60, 125, 208)


def test_every_kind_of_cell_has_its_colour_and_can_be_switched_off(opened):
    prediction = stage(opened)
    assert has(prediction, GREEN).mean() > 0.05
    assert not has(prediction, ORANGE).any() and not has(prediction, BLUE).any()
    show(opened, "difference")
    whole = stage(opened)
    assert has(whole, ORANGE).mean() > 0.005 and has(whole, BLUE).mean() > 0.005
    assert not has(whole, GREEN).any()
    opened.value("document.querySelectorAll('#legend input')[1].click()")
    without = stage(opened)
    assert not has(without, ORANGE).any()
    assert has(without, BLUE).sum() >= has(whole, BLUE).sum()
    show(opened, "prediction")
    assert differs(prediction, stage(opened)) < 0.001
    show(opened, "difference")
    opened.value("document.querySelectorAll('#legend input')[1].click()")
    assert differs(whole, stage(opened)) < 0.001


@pytest.mark.parametrize(("right", "down"), [(0, 0), (200, 60), (390, -90), (-200, 20)])
def test_of_cells_behind_each_other_the_nearest_is_seen(anybody, tmp_path, right, down):
    kinds = np.random.default_rng(0).choice(3, (6, 6, 6), p=(0.7, 0.15, 0.15))
    given = gallery.from_arrays({"voxels": kinds == 1, "truth": kinds == 2})
    open_page(anybody, write(tmp_path, given))
    show(anybody, "difference")
    anybody.drag("#canvas", right, down)
    picture = stage(anybody)[::4, ::4]
    found = np.select([has(picture, ORANGE), has(picture, BLUE)], [1, 2])
    expected = first_hit(kinds, 0.62 + 0.008 * right, 0.42 + 0.008 * down)
    assert np.mean(found == expected) > 0.98
    assert min(np.mean(expected == kind) for kind in (1, 2)) > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_there_is_a_face_between_every_full_and_empty_cell_and_no_other(opened, seed):
    cells = np.random.default_rng(seed).random((5, 5, 5)) < (0.2, 0.5, 1)[seed]
    script = f"[...findFaces(Uint8Array.from({cells.astype(int).ravel().tolist()}), 5)]"
    faces = np.array(opened.value(script)).reshape(-1, 8)
    padded = np.pad(cells, 1)
    expected = set()
    for direction in range(6):
        step = -1 if direction % 2 else 1
        front = np.roll(padded, -step, direction // 2)[1:-1, 1:-1, 1:-1]
        expected |= {(*cell, direction) for cell in np.argwhere(cells & ~front).tolist()}
    assert {tuple(face) for face in faces[:, :4].tolist()} == expected
    assert len(faces) == len(expected) and (faces[:, 4] == 1).all()
    for x, y, z, direction, _, light, _, _ in faces.tolist():
        axis = direction // 2
        front = np.array([x, y, z]) + 1
        front[axis] += -1 if direction % 2 else 1
        for corner in range(4):
            sides = np.zeros((2, 3), int)
            sides[0, (axis + 1) % 3] = 1 if corner & 1 else -1
            sides[1, (axis + 2) % 3] = 1 if corner & 2 else -1
            one, other, far = (padded[tuple(front + s)] for s in (*sides, sides.sum(axis=0)))
            dark = 3 if one and other else int(one) + int(other) + int(far)
            assert light >> 2 * corner & 3 == 3 - dark


def test_views_stand_beside_the_shape_and_those_not_used_are_faint(opened):
    def figures() -> list:
        return opened.value(
            """[...document.querySelectorAll("#pictures figure")].map(figure => [
                figure.className, figure.textContent,
                ...[...figure.querySelectorAll("img")].map(i => [i.alt, i.naturalWidth, i.src])])"""
        )

    opened.wait(lambda: all(image[1] == 8 for figure in figures() for image in figure[2:]))
    before = figures()
    assert [figure[:2] for figure in before] == [["", str(view)] for view in (1, 2, 3, 4)]
    assert [image[0] for image in before[1][2:]] == ["input views, 2", "decoded views, 2"]
    choose(opened, "views", 0)
    assert [figure[0] for figure in figures()] == ["", "unused", "unused", "unused"]
    assert figures()[1][1] == "2, unused"
    choose(opened, "rate", 0)
    after = figures()
    for one, other in zip(before, after):
        assert one[2] == other[2] and one[3] != other[3]


# --- Choosing -------------------------------------------------------------------------------------


def test_objects_are_chosen_by_list_buttons_and_table(opened):
    def chosen() -> tuple:
        return tuple(
            opened.value(
                """[byId("object").value, byId("previous").disabled, byId("next").disabled,
                    document.querySelector("tr.chosen")?.dataset.name]"""
            )
        )

    assert chosen() == ("0", True, False, "a")
    first = stage(opened)
    opened.click("#next")
    opened.wait(lambda: chosen() == ("1", False, True, "c"))
    assert differs(first, stage(opened)) > 0.01
    opened.click("#previous")
    opened.wait(lambda: chosen() == ("0", True, False, "a"))
    assert differs(first, stage(opened)) < 0.001
    opened.value("byId('object').value = 1, byId('object').dispatchEvent(new Event('change'))")
    opened.wait(lambda: chosen() == ("1", False, True, "c"))
    opened.click("tr[data-name=a] button")
    opened.wait(lambda: chosen() == ("0", True, False, "a"))
    # Of b there are no shapes.
    assert opened.value("document.querySelector('tr[data-name=b] button')") is None


def test_the_table_sorts_by_every_column_both_ways(opened):
    def names() -> str:
        return opened.value("[...byId('table').tBodies[0].rows].map(r => r.dataset.name).join('')")

    assert names() == "abc"
    for column, orders in (("1", ("cba", "abc")), ("2", ("cba", "abc")), ("3", ("cab", "bac"))):
        for order, direction in zip(orders, ("first", "second")):
            opened.click(f"th:nth-child({column}) button")
            assert names() == order, (column, direction)
    sorts = opened.value("[...document.querySelectorAll('th')].map(h => h.ariaSort)")
    assert sorts == [None, None, "ascending"]
    assert opened.value("[...document.querySelectorAll('tfoot td')].map(c => c.textContent)") == [
        *("mean", "", "0.500")
    ]


# --- Other pages ----------------------------------------------------------------------------------


def test_a_lone_shape_has_no_controls_that_do_nothing(anybody, tmp_path):
    given = gallery.from_arrays({"voxels": SHAPES.truth[0]})
    open_page(anybody, write(tmp_path, given, title="lone"))
    for name in ("chooser", "modes", "rate-row", "views-row", "threshold-row", "results"):
        assert anybody.value(f"byId('{name}').offsetParent") is None, name
    assert text(anybody, "iou") == f"{SHAPES.truth[0].sum()} voxels"
    assert coloured(stage(anybody)).mean() > 0.05
    assert anybody.value("document.title") == "lone - tfjoint"
    assert anybody.complaints() == []


def test_an_empty_shape_is_an_empty_cube(anybody, tmp_path):
    given = gallery.from_arrays(
        {"voxels": np.zeros((4, 4, 4), bool), "truth": np.zeros((4, 4, 4), bool)}
    )
    open_page(anybody, write(tmp_path, given))
    assert text(anybody, "iou") == "IoU 1.000"
    assert not coloured(stage(anybody)).any()
    assert anybody.complaints() == []


def test_results_without_shapes_are_a_table_and_a_note(anybody, tmp_path):
    path = write(tmp_path, None, RESULTS, title="results", notes=["a note"])
    open_page(anybody, path)
    assert anybody.value("byId('viewer').offsetParent") is None
    assert text(anybody, "message") == "a note"
    assert anybody.value("byId('table').rows.length") == 5
    assert anybody.value("document.querySelector('td button')") is None
    assert anybody.complaints() == []


@pytest.mark.parametrize("size", [LAPTOP, PHONE, (320, 568), (1920, 1080)])
def test_nothing_is_cut_off_at_the_side(anybody, shown, size):
    open_page(anybody, shown, size)
    assert anybody.value("document.scrollingElement.scrollWidth") <= size[0]
    box = json.loads(anybody.value("JSON.stringify(byId('canvas').getBoundingClientRect())"))
    assert box["x"] >= 0 and box["right"] <= size[0] and box["bottom"] <= size[1]
    assert box["width"] > 0.6 * min(size[0], 1000) and box["height"] > 0.45 * min(*size)
    assert coloured(stage(anybody)).mean() > 0.05


def test_hostile_names_are_seen_as_they_are_written(anybody, tmp_path):
    name = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;"
    given = shapes(names=(name, "b"), categories=(name, name), rates=(name, "b", "c"))
    objects = [{**OBJECTS[0], "id": name, "category": name}]
    path = write(tmp_path, given, {"rows": [{**ROW, "objects": objects}]}, title=name, notes=[name])
    open_page(anybody, path)
    choose(anybody, "rate", 0)
    assert text(anybody, "title") == text(anybody, "message") == text(anybody, "rate-text") == name
    assert anybody.value("byId('object').options[0].text") == f"{name} ({name})"
    assert anybody.value("document.querySelector('td').textContent") == name
    assert not [e for e in anybody.events if e["method"] == "Page.javascriptDialogOpening"]
    assert anybody.value("document.scripts.length") == 2
    assert anybody.complaints() == [] and anybody.requests() == [path.resolve().as_uri()]


def test_a_script_that_is_smuggled_in_does_not_run_and_nothing_is_fetched(anybody, shown):
    open_page(anybody, shown)
    anybody.value(
        """(() => { const script = document.createElement("script");
                    script.textContent = "window.smuggled = 1"; document.body.append(script);
                    new Image().src = "http://127.0.0.1:9/x.png";
                    fetch("data:,x").catch(() => { window.refused = 1; }); })()"""
    )
    anybody.wait(lambda: anybody.value("window.refused") == 1)
    assert anybody.value("window.smuggled") is None
    anybody.wait(lambda: len(anybody.complaints()) >= 3)
    assert all("Content Security Policy" in complaint for complaint in anybody.complaints())


def test_a_3d_view_that_the_browser_takes_away_is_not_a_silent_blank(anybody, shown):
    open_page(anybody, shown)
    if anybody.painter != "WebGLPainter":
        pytest.skip("a plain canvas is never taken away")
    anybody.value("viewer.painter.gl.getExtension('WEBGL_lose_context').loseContext()")
    anybody.wait(lambda: text(anybody, "message") == "The 3D view was lost: reload the page.")


def test_a_browser_that_cannot_unpack_the_shapes_says_so(anybody, shown):
    script = "delete window.DecompressionStream"
    added = anybody("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        open_page(anybody, shown)
        assert text(anybody, "message") == "The shapes need a browser of 2023 or later."
        assert anybody.value("byId('table').rows.length") == 5
    finally:
        anybody("Page.removeScriptToEvaluateOnNewDocument", **added)
