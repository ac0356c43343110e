"""The data card and the contact sheet: numbers and pictures of a record set."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import contact_sheet, data_card, render
from tfjoint import records
from tfjoint.records import ObjectRecord, RecordError

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tfjoint" / "demo"


def _png(side=8, alpha=255):
    stream = io.BytesIO()
    Image.new("RGBA", (side, side), (200, 100, 50, alpha)).save(stream, "PNG")
    return stream.getvalue()


def _box(*size):
    grid = np.zeros((8, 8, 8), bool)
    grid[tuple(slice(0, side) for side in size)] = True
    return grid


def _record(category, object_id, grid, source=None):
    cameras = render.cameras(0, object_id, 2).astype(np.float32)
    return ObjectRecord(category, object_id, source or object_id, [_png()] * 2, cameras, grid)


TRAIN = (
    _record("chair", "a", _box(8, 8, 8)),
    _record("chair", "a.copy1", _box(8, 8, 4), source="a"),
    _record("lamp", "b", _box(8, 2, 8)),
)
TEST = (
    _record("chair", "c", _box(8, 8, 6)),
    _record("sofa", "d", _box(8, 1, 8)),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    shards = {
        side: records.write_split(root, side, objects, len(objects))
        for side, objects in (("train", TRAIN), ("test", TEST))
    }
    manifest = records.Manifest(
        "mine", "by hand", "0" * 64, 8, 2, 8, shards, {"x.zip": "1" * 64}, {"licences": ["CC0"]}
    )
    records.write_manifest(root, manifest)
    return root


@pytest.fixture(scope="module")
def card(directory):
    return data_card.write(directory)


def test_the_card_counts_objects_copies_groups_and_categories(card):
    train, test = card["splits"]["train"], card["splits"]["test"]
    assert (train["objects"], train["copies"], train["groups"]) == (3, 1, 2)
    assert (test["objects"], test["copies"], test["groups"]) == (2, 0, 2)
    assert train["categories"] == {"chair": 2, "lamp": 1}
    assert test["categories"] == {"chair": 1, "sofa": 1}


def test_the_card_says_how_full_the_grids_are(card):
    train = card["splits"]["train"]["occupancy"]
    assert train["mean"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3, abs=1e-6)
    assert (train["quantiles"]["0"], train["quantiles"]["0.5"]) == (0.25, 0.5)
    assert train["quantiles"]["1"] == 1


def test_the_card_holds_the_baselines_by_category(card):
    # Mean of the training grids: 1 in 8x2x4, 2/3 in the rest of two of them, 1/3 elsewhere; so at
    # 0.2 and up to 0.3 it is the full grid, at 0.35 and above 8x8x4 and 8x2x8 together.
    found = card["baselines"]["test"]
    full, part = (1 + 1 / 2 + 1 / 4) / 3, (320 / 512 + 256 / 320 + 128 / 320) / 3
    assert part > full
    assert found["mean_shape"]["threshold"] == 0.35
    chair, sofa = (8 * 8 * 4 + 8 * 2 * 2) / (384 + 8 * 2 * 2), 64 / 320
    assert found["mean_shape"]["per_class"] == pytest.approx(
        {"chair": chair, "sofa": sofa}, abs=1e-6
    )
    assert found["mean_shape"]["mean"] == pytest.approx((chair + sofa) / 2, abs=1e-6)
    assert found["best_training_grid"]["per_class"] == {"chair": 0.75, "sofa": 0.5}
    assert found["best_training_grid"]["std"] == pytest.approx(0.125)


def test_the_card_says_where_the_records_are_from(card, directory):
    assert card["licences"] == ["CC0"]
    assert card["sources_sha256"] == {"x.zip": "1" * 64}
    assert card["split_list"] == {"name": "by hand", "sha256": "0" * 64}
    assert card["manifest_sha256"] == records.manifest_sha256(directory)


def test_both_files_hold_the_same_card_and_come_out_the_same_again(card, directory):
    tables, text = directory / data_card.TABLES, directory / data_card.TEXT
    assert json.loads(tables.read_text(encoding="utf-8")) == card
    assert text.read_text(encoding="utf-8").splitlines() == data_card.as_text(card)
    before = tables.read_bytes(), text.read_bytes()
    data_card.write(directory)
    assert (tables.read_bytes(), text.read_bytes()) == before


def test_the_text_shows_every_category_and_the_baselines(card):
    text = "\n".join(data_card.as_text(card))
    assert "| chair | 2 | 1 | 0.692 | 0.750 |".replace("2 | 1", "1 | 2") in text
    assert "| lamp | 0 | 1 |  |  |" in text
    assert "| sofa | 1 | 0 | 0.200 | 0.500 |" in text
    assert "best threshold 0.35: mIoU 0.446" in text
    assert "CC0" in text and "1" * 64 in text


def test_records_without_a_training_split_have_a_card_without_baselines(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "r")
    path = tmp_path / "r" / records.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["splits"]["train"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert data_card.write(tmp_path / "r")["baselines"] == {}


def test_damaged_records_have_no_card(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "r", ignore=shutil.ignore_patterns("C*", "card*"))
    next((tmp_path / "r").glob("train-*")).write_bytes(b"")
    with pytest.raises(RecordError, match="is damaged"):
        data_card.write(tmp_path / "r")
    assert not (tmp_path / "r" / data_card.TEXT).exists()


def test_the_demo_has_its_card_and_it_agrees_with_the_results(tmp_path):
    """What evaluation wrote beside the results of the demo is computed from the same grids."""
    committed = json.loads((DEMO / data_card.TABLES).read_text(encoding="utf-8"))
    shutil.copytree(DEMO, tmp_path / "demo")
    assert data_card.write(tmp_path / "demo") == committed
    assert (tmp_path / "demo" / data_card.TEXT).read_bytes() == (DEMO / data_card.TEXT).read_bytes()
    results = json.loads((ROOT / "results/demo/direct.json").read_text(encoding="utf-8"))
    for kind in ("mean_shape", "best_training_grid"):
        for value in ("mean", "std"):
            found = committed["baselines"]["test"][kind][value]
            assert found == pytest.approx(results["baselines"][kind][value], abs=2e-6)


# --- Contact sheet --------------------------------------------------------------------------------


def test_the_sheet_shows_originals_of_every_category_and_no_more_than_asked(directory):
    shown = contact_sheet.choose(directory, 1)
    assert {name: found.objects for name, found in shown.items()} == {
        "chair": 2,
        "lamp": 1,
        "sofa": 1,
    }
    ids = {name: [cell.object_id for cell in found.cells] for name, found in shown.items()}
    assert ids == {"chair": ["a"], "lamp": ["b"], "sofa": ["d"]}
    assert [c.object_id for c in contact_sheet.choose(directory, 9)["chair"].cells] == ["a", "c"]


def test_of_the_views_the_one_nearest_to_45_degrees_is_shown(directory):
    for found in contact_sheet.choose(directory, 9).values():
        for cell in found.cells:
            azimuths = render.cameras(0, cell.object_id, 2)[:, 0]
            distances = np.abs((azimuths - 45 + 180) % 360 - 180)
            assert cell.camera[0] == pytest.approx(azimuths[np.argmin(distances)])


def test_a_cell_shows_the_view_and_the_grid_from_the_same_camera():
    for found in contact_sheet.choose(DEMO, 2).values():
        for cell in found.cells:
            picture = contact_sheet.draw(cell)
            assert picture.shape == (72, 144, 3)
            view, grid = (picture[:, half : half + 72].min(2) < 250 for half in (0, 72))
            alpha = Image.open(io.BytesIO(cell.png)).getchannel("A").resize((72, 72))
            assert (view & (np.asarray(alpha) > 127)).sum() > 0.95 * (view).sum() * 0.8
            # A cell of the grid is wide beside what is thin.
            assert (view & grid).sum() > 0.9 * view.sum(), cell.object_id


def test_an_empty_grid_leaves_its_half_white():
    cell = contact_sheet.Cell("test", "x", _png(), render.cameras(0, "x", 1)[0], _box(0, 0, 0))
    picture = contact_sheet.draw(cell)
    assert (picture[:, 72:] == 255).all() and not (picture[:, :72] == 255).all()


def test_any_number_of_processes_draws_the_same_sheet(directory):
    path = contact_sheet.write(directory)
    alone = path.read_bytes()
    with Image.open(path) as image:
        assert image.size == (10 * 150, 3 * (20 + 83))
    assert contact_sheet.write(directory, processes=2).read_bytes() == alone
