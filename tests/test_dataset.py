"""Minibatches: what is drawn, that it is drawn again, and what becomes of the pixels."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
import tiny
from pictures import png
from PIL import Image

from tfjoint import config, dataset, records
from tfjoint.config import ConfigError
from tfjoint.dataset import Replicas, Split, draw_minibatch, evaluation_views, training_dataset
from tfjoint.errors import UserError
from tfjoint.records import RecordError, RecordSet

OBJECTS, VIEWS, STORED = 12, 6, 36


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def train(directory) -> Split:
    return raw(directory, "train")


def raw(directory, split: str) -> Split:
    return Split([RecordSet(directory, split)])


RATES = (48, 96, 120)


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """The same objects as JPEG 2000 views, a record set for each rate."""
    return tiny.make_rates(tmp_path_factory.mktemp("jpeg2000"), RATES)


def coded_settings(data, **changes) -> config.Config:
    return settings(model="jpeg2000", data=str(data), **changes)


def settings(**changes) -> config.Config:
    return config.resolve({"profile": "smoke", "batch_size": 5, **changes})[0]


def draw(step: int, **changes) -> dataset.Minibatch:
    return draw_minibatch(settings(**changes), OBJECTS, VIEWS, STORED, step)


def draw_rate(step: int, rates: int, **changes) -> int:
    return draw_minibatch(settings(**changes), OBJECTS, VIEWS, STORED, step, rates=rates).rate_index


def same(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second))


# --- The draw -------------------------------------------------------------------------------------


def test_a_minibatch_is_a_pure_function_of_seed_and_step():
    np.random.seed(0)
    first = [draw(step) for step in range(20)]
    np.random.seed(1)
    for step in reversed(range(20)):
        assert same(draw(step), first[step])
        assert not same(draw(step, seed=1), first[step])
    for a in range(20):
        for b in range(a):
            assert not np.array_equal(first[a].offsets, first[b].offsets)


def test_a_large_step_and_a_large_seed_can_be_drawn():
    drawn = draw(10**9, seed=2**31 - 1)
    assert same(drawn, draw(10**9, seed=2**31 - 1))
    assert drawn.objects.max() < OBJECTS


@pytest.mark.parametrize("batch_size", [1, 5, 12, 30])
def test_every_object_comes_once_per_epoch_and_minibatches_span_epochs(batch_size):
    steps = -(-4 * OBJECTS // batch_size)
    drawn = [draw(step, batch_size=batch_size).objects for step in range(steps)]
    assert all(len(objects) == batch_size for objects in drawn)
    epochs = np.concatenate(drawn)[: 4 * OBJECTS].reshape(4, OBJECTS)
    for epoch in epochs:
        assert sorted(epoch) == list(range(OBJECTS))
    assert len(np.unique(epochs, axis=0)) == 4


def test_the_order_depends_on_the_seed_and_is_uniform():
    first = [draw(0, seed=seed, batch_size=OBJECTS).objects for seed in range(600)]
    assert len(np.unique(first, axis=0)) == 600
    counts = np.bincount(np.array(first)[:, 0], minlength=OBJECTS)
    assert np.sum((counts - 50) ** 2 / 50) < 40  # chi square, 11 degrees: p < 1e-4


def test_views_of_an_object_do_not_repeat_and_are_uniform():
    counts = np.zeros(VIEWS)
    different = 0
    for step in range(400):
        views = draw(step, views_min=3, views_max=3).views
        assert views.shape == (5, 3)
        assert all(len(set(ids)) == 3 for ids in views.tolist())
        assert views.min() >= 0 and views.max() < VIEWS
        counts += np.bincount(views.ravel(), minlength=VIEWS)
        different += len(np.unique(views, axis=0)) > 1
    assert different > 390  # every object draws its own
    np.testing.assert_allclose(counts / counts.sum(), 1 / VIEWS, atol=0.02)


def test_views_and_iterations_take_their_whole_range_about_equally_and_independently():
    pairs = Counter()
    for step in range(3000):
        drawn = draw(step, views_min=2, views_max=5, iterations_min=3, iterations_max=8)
        pairs[drawn.views.shape[1], drawn.iterations] += 1
    assert set(pairs) == {(v, t) for v in range(2, 6) for t in range(3, 9)}
    expected = 3000 / 24
    assert sum((n - expected) ** 2 / expected for n in pairs.values()) < 60  # 23 degrees: p < 1e-4


def test_one_number_of_views_and_iterations_can_be_had():
    for step in range(10):
        drawn = draw(step, views_min=6, views_max=6, iterations_min=1, iterations_max=1)
        assert drawn.views.shape == (5, 6) and drawn.iterations == 1
        assert type(drawn.iterations) is int


def test_crops_lie_inside_the_stored_view_and_reach_both_ends():
    offsets = np.concatenate([draw(step).offsets.reshape(-1, 2) for step in range(200)])
    assert offsets.dtype == np.int32
    for axis in range(2):
        assert set(offsets[:, axis]) == {0, 1, 2, 3, 4}
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.1  # rows and columns apart
    views = draw(0, views_min=5, batch_size=30).offsets
    assert len(np.unique(views.reshape(-1, 2), axis=0)) > 15  # every view its own


def test_a_view_of_the_size_of_the_image_is_not_cropped():
    drawn = draw_minibatch(settings(), OBJECTS, VIEWS, 32, 0)
    assert not drawn.offsets.any()


def test_backgrounds_are_black_white_or_random_light_greys():
    assert not draw(0, background="black").backgrounds.any()
    assert (draw(0, background="white").backgrounds == 1).all()
    drawn = [draw(step, background="random").backgrounds for step in range(100)]
    greys = np.concatenate([b.reshape(-1, 3) for b in drawn])
    assert (greys == greys[:, :1]).all()
    assert set(np.round(greys[:, 0] * 255, 6)) == set(range(225, 256))
    assert len(np.unique(drawn[0])) > 1  # every view its own


def test_what_is_drawn_for_one_thing_does_not_change_another():
    """One setting more or less leaves order, views and crops as they were."""
    drawn = draw(3, views_min=5)
    for changed in (
        draw(3, views_min=5, background="random"),
        draw(3, views_min=5, iterations_min=8),
    ):
        assert np.array_equal(drawn.objects, changed.objects)
        assert np.array_equal(drawn.views, changed.views)
        assert np.array_equal(drawn.offsets, changed.offsets)


def test_the_rate_is_a_pure_function_of_seed_and_step():
    first = [draw_rate(step, 8) for step in range(50)]
    assert {type(index) for index in first} == {int}
    assert [draw_rate(step, 8) for step in reversed(range(50))] == first[::-1]
    assert [draw_rate(step, 8, seed=1) for step in range(50)] != first


def test_rates_take_their_whole_range_about_equally_and_apart_from_views():
    pairs = Counter()
    for step in range(2000):
        drawn = draw_minibatch(settings(), OBJECTS, VIEWS, STORED, step, rates=4)
        pairs[drawn.views.shape[1], drawn.rate_index] += 1
    assert set(pairs) == {(v, r) for v in range(1, 6) for r in range(4)}
    assert sum((n - 100) ** 2 / 100 for n in pairs.values()) < 52  # 19 degrees: p < 1e-4


def test_the_number_of_rates_changes_nothing_else_that_is_drawn():
    for step in range(10):
        one = draw(step, background="random")
        assert one.rate_index == 0
        for rates in (1, 2, 9):
            chosen = settings(background="random")
            several = draw_minibatch(chosen, OBJECTS, VIEWS, STORED, step, rates=rates)
            assert same(one, several._replace(rate_index=0))


# --- The dataset ----------------------------------------------------------------------------------


def elements(*arguments) -> list[dict[str, np.ndarray]]:
    return list(training_dataset(*arguments).as_numpy_iterator())


def equal_elements(first: dict, second: dict) -> bool:
    return set(first) == set(second) and all(np.array_equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def first_steps(train) -> list[dict[str, np.ndarray]]:
    return elements(settings(batch_size=6), train, 0, 7)


def test_elements_hold_what_was_drawn(train, first_steps):
    for step, element in enumerate(first_steps):
        drawn = draw(step, batch_size=6)
        views = drawn.views.shape[1]
        assert element["images"].shape == (6, views, 32, 32, 3)
        assert element["images"].dtype == element["voxels"].dtype == np.float32
        assert (element["step"], element["iterations"]) == (step, drawn.iterations)
        assert element["first_object"] == 0
        truth = [train.record(index).voxels for index in drawn.objects]
        np.testing.assert_array_equal(element["voxels"], truth)
        for b, v in np.ndindex(6, views):
            png = train.record(drawn.objects[b]).views[drawn.views[b, v]]
            row, column = drawn.offsets[b, v]
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))  # alpha is 0 or 255
            crop = pixels[row : row + 32, column : column + 32] / 255
            np.testing.assert_allclose(element["images"][b, v], crop, atol=1e-6)
    assert len({element["images"].shape[1] for element in first_steps}) > 1


def test_starting_at_a_step_is_skipping_the_steps_before(train, first_steps):
    for start in (1, 4, 6):
        later = elements(settings(batch_size=6), train, start, 7)
        assert len(later) == 7 - start
        for found, expected in zip(later, first_steps[start:]):
            assert equal_elements(found, expected)
    assert elements(settings(batch_size=6), train, 7, 7) == []


@pytest.mark.parametrize("workers", [[(0, 2)], [(0, 1), (1, 1)], [(0, 3)], [(0, 2), (2, 4)]])
def test_the_rows_of_all_replicas_are_the_minibatch_of_one(train, first_steps, workers):
    """Workers of (first, local) replicas; elements come replica after replica, step after step."""
    total = sum(local for _, local in workers)
    parts = {}
    for first, local in workers:
        read = elements(settings(batch_size=6), train, 0, 7, Replicas(first, local, total))
        assert len(read) == 7 * local
        for index, element in enumerate(read):
            parts[index // local, first + index % local] = element
    for step, expected in enumerate(first_steps):
        mine = [parts[step, replica] for replica in range(total)]
        assert [element["first_object"] for element in mine] == [
            replica * 6 // total for replica in range(total)
        ]
        for name in ("images", "voxels"):
            np.testing.assert_array_equal(np.concatenate([e[name] for e in mine]), expected[name])
        assert {(int(e["step"]), int(e["iterations"])) for e in mine} == {
            (step, int(expected["iterations"]))
        }


@pytest.mark.parametrize("total", [4, 5, 7])
def test_a_batch_that_replicas_cannot_share_is_refused(train, total):
    with pytest.raises(ConfigError, match=f"batch_size=6 cannot be shared by {total} replicas"):
        training_dataset(settings(batch_size=6), train, 0, 1, Replicas(0, 1, total))


def test_shapes_are_known_but_for_the_number_of_views(train):
    shapes = {
        name: spec.shape.as_list()
        for name, spec in training_dataset(settings(), train, 0, 1).element_spec.items()
    }
    assert shapes == {
        "images": [5, None, 32, 32, 3],
        "voxels": [5, 32, 32, 32],
        "iterations": [],
        "step": [],
        "first_object": [],
    }


def test_views_come_from_the_drawn_rate(coded):
    chosen = coded_settings(coded, batch_size=4)
    opened = dataset.open_split(chosen, "train")
    drawn = [
        draw_minibatch(chosen, OBJECTS, VIEWS, STORED, step, rates=3).rate_index
        for step in range(12)
    ]
    assert set(drawn) == {0, 1, 2}
    for element, rate_index in zip(elements(chosen, opened, 0, 12), drawn):
        np.testing.assert_allclose(element["images"][..., 2] * 255, RATES[rate_index], atol=1e-3)
    for element in elements(chosen, opened, 5, 7):  # wherever a run goes on
        expected = RATES[drawn[int(element["step"])]]
        np.testing.assert_allclose(element["images"][..., 2] * 255, expected, atol=1e-3)


def test_all_replicas_draw_the_same_rate(coded):
    chosen = coded_settings(coded, batch_size=4)
    opened = dataset.open_split(chosen, "train")
    parts = [elements(chosen, opened, 0, 6, Replicas(first, 1, 2)) for first in (0, 1)]
    for ours, theirs in zip(*parts):
        assert ours["images"][..., 2].max() == theirs["images"][..., 2].min()


def test_a_codec_alone_is_trained_on_records_with_any_grid(tmp_path):
    """Its settings do not say how large a grid is."""

    def coarse(index: int) -> records.ObjectRecord:
        record = tiny.record(index)
        return dataclasses.replace(record, voxels=record.voxels[::2, ::2, ::2])

    tiny.write(tmp_path, coarse, 3, 1)
    chosen = settings(model="compression", data=str(tmp_path), batch_size=2)
    (element,) = elements(chosen, dataset.open_split(chosen, "train"), 0, 1)
    assert element["voxels"].shape == (2, 16, 16, 16)


# --- Pixels ---------------------------------------------------------------------------------------


def test_views_are_composed_and_cropped_as_pillow_does_it():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 3, 12, 12, 4), np.uint8)
    pixels[0, 0, ..., 3] = 0
    pixels[0, 1, ..., 3] = 255
    backgrounds = rng.integers(0, 256, (2, 3, 3), np.uint8)
    offsets = rng.integers(0, 5, (2, 3, 2), np.int32)
    offsets[0, :2] = (0, 4), (4, 0)
    encoded = np.array([[png(view) for view in row] for row in pixels], object)
    found = dataset.decode_views(
        tf.constant(encoded),
        offsets,
        (backgrounds / 255).astype(np.float32)[:, :, np.newaxis, np.newaxis],
        8,
    ).numpy()
    assert found.shape == (2, 3, 8, 8, 3) and found.dtype == np.float32
    for b, v in np.ndindex(2, 3):
        background = Image.new("RGBA", (12, 12), (*backgrounds[b, v].tolist(), 255))
        whole = np.asarray(Image.alpha_composite(background, Image.fromarray(pixels[b, v])))
        row, column = offsets[b, v]
        expected = whole[row : row + 8, column : column + 8, :3] / 255
        np.testing.assert_allclose(found[b, v], expected, atol=1.01 / 255)  # Pillow rounds
    np.testing.assert_allclose(found[0, 0], np.broadcast_to(backgrounds[0, 0] / 255, (8, 8, 3)))
    opaque = pixels[0, 1, 4:, :8, :3] / 255
    np.testing.assert_allclose(found[0, 1], opaque, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_views_without_alpha_are_taken_as_they_are(mode):
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    found = dataset.decode_views(
        tf.constant([[stream.getvalue()]]), np.full((1, 1, 2), 1), np.ones((1, 1, 3), "f"), 8
    )
    expected = np.asarray(image.convert("RGB"))[1:, 1:] / 255
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)


def test_training_reads_rgb_views_too(tmp_path):
    pixels = np.arange(36 * 36 * 3, dtype=np.uint32).reshape(36, 36, 3).astype(np.uint8)
    objects = []
    for index in range(2):
        record = tiny.record(index)
        objects.append(
            records.ObjectRecord(
                record.category,
                record.object_id,
                record.source,
                [png(pixels)] * VIEWS,
                record.cameras,
                record.voxels,
            )
        )
    shards = {"train": records.write_split(tmp_path, "train", objects, 2)}
    manifest = records.Manifest("rgb", "rgb", "0" * 64, STORED, VIEWS, 32, shards)
    records.write_manifest(tmp_path, manifest)
    chosen = settings(batch_size=2, background="white")
    (element,) = elements(chosen, raw(tmp_path, "train"), 0, 1)
    row, column = draw_minibatch(chosen, 2, VIEWS, STORED, 0).offsets[0, 0]
    expected = pixels[row : row + 32, column : column + 32] / 255
    np.testing.assert_allclose(element["images"][0, 0], expected, atol=1e-6)


# --- Evaluation -----------------------------------------------------------------------------------


def test_every_object_is_evaluated_once_in_record_order_with_a_central_crop(directory):
    test = raw(directory, "test")
    examples = list(dataset.evaluation_examples(settings(), test, views=4, seed=3))
    assert [e.object_id for e in examples] == [f"object-{i:03d}" for i in range(12, 17)]
    for index, example in enumerate(examples):
        record = test.record(index)
        assert example.category == record.category
        assert example.view_ids == evaluation_views(3, record.object_id, VIEWS, 4)
        np.testing.assert_array_equal(example.voxels, record.voxels)
        assert example.images.shape == (4, 32, 32, 3) and example.images.dtype == np.float32
        for image, view in zip(example.images, example.view_ids):
            pixels = np.asarray(Image.open(io.BytesIO(record.views[view])).convert("RGB"))
            np.testing.assert_allclose(image, pixels[2:-2, 2:-2] / 255, atol=1e-6)


@pytest.mark.parametrize(("background", "value"), [("white", 1), ("random", 240 / 255)])
def test_evaluation_has_a_fixed_background(directory, background, value):
    test = raw(directory, "test")
    chosen = settings(background=background)
    example = next(dataset.evaluation_examples(chosen, test, views=1, seed=0))
    np.testing.assert_allclose(example.images[0, 0, 0], value, atol=1e-6)


# --- Photos behind the objects --------------------------------------------------------------------

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three photos of one colour each; a white border is outside the middle."""
    folder = tmp_path_factory.mktemp("photos")
    for index, colour in enumerate(COLOURS):
        photo = Image.new("RGB", (120, 60), "white")
        photo.paste(colour, (30, 0, 90, 60))
        photo.save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("no photo")
    return folder


def test_photos_are_the_middle_of_every_picture_by_name(photos):
    read = dataset.read_photos(photos, 32)
    assert read.shape == (3, 32, 32, 3) and read.dtype == np.uint8
    np.testing.assert_array_equal(
        read, np.broadcast_to(np.array(COLOURS)[:, None, None], read.shape)
    )


def test_photos_of_any_size_are_scaled_to_the_mean_of_what_they_show(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = pixels.reshape(32, 2, 32, 2, 3).mean((1, 3))
    found = dataset.read_photos(tmp_path, 32)[0]
    assert np.abs(found - expected).max() <= 0.5


def test_a_photo_is_behind_every_view_and_which_one_depends_on_seed_and_step(directory, photos):
    chosen = settings(data=str(directory), photos=str(photos))
    train = dataset.open_split(chosen, "train")
    seen = set()
    for step, element in enumerate(elements(chosen, train, 0, 6)):
        drawn = draw_minibatch(chosen, OBJECTS, VIEWS, STORED, step)
        corners = element["images"][:, :, 0, 0]
        expected = np.array(COLOURS)[drawn.photos % np.uint64(3)] / 255
        empty = np.stack(
            [
                [_is_empty(train.record(index).views[v], offset) for v, offset in zip(ids, offsets)]
                for index, ids, offsets in zip(drawn.objects, drawn.views, drawn.offsets)
            ]
        )
        assert empty.any()
        np.testing.assert_allclose(corners[empty], expected[empty], atol=1e-6)
        seen |= {tuple(colour) for colour in corners[empty].tolist()}
    assert len(seen) == 3


def _is_empty(png: bytes, offset: np.ndarray) -> bool:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[tuple(offset)][3] == 0


def test_evaluation_has_the_same_photos_whatever_the_training_settings(directory, photos):
    def first(**changes) -> np.ndarray:
        chosen = settings(data=str(directory), photos=str(photos), **changes)
        test = dataset.open_split(chosen, "test")
        return next(dataset.evaluation_examples(chosen, test, views=6, seed=1)).images

    found = first()
    assert len(np.unique(found[:, 0, 0], axis=0)) > 1
    np.testing.assert_array_equal(found, first(seed=9, batch_size=2))


def test_photos_are_part_of_the_digest_of_the_data(directory, photos, tmp_path):
    digests = {
        dataset.open_split(settings(data=str(directory), photos=name), "test").data_sha256
        for name in ("", str(photos), str(shutil.copytree(photos, tmp_path / "same")))
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds 0 photos: name a folder with 1 to 4096 files that end in .bmp"),
        ({"a.jpg": b"no photo"}, "a.jpg is no photo that can be read .*: remove it"),
        ({"a.png": b"\x89PNG\r\n\x1a\n"}, "a.png is no photo that can be read .*: remove it"),
    ],
)
def test_a_folder_that_is_of_no_use_is_refused(directory, tmp_path, files, message):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        dataset.open_split(settings(data=str(directory), photos=str(tmp_path)), "train")
    assert "\n" not in str(caught.value)


def test_jpeg_2000_views_have_their_background_already(coded, photos):
    chosen = settings(model="reconstruction", data=str(coded / "48"), photos=str(photos))
    with pytest.raises(ConfigError, match="coded over black: set background=black, without photos"):
        dataset.open_split(chosen, "train")


def test_where_crops_cut_the_objects_a_note_names_records_that_fit(tmp_path):
    stored = {}
    for name, size in (("open", 137), ("open-40", 40), ("open-137", 137)):
        (tmp_path / name).mkdir()
        shards = {"train": ()}
        stored[name] = records.Manifest(name, "s", "0" * 64, size, VIEWS, 32, shards)
        records.write_manifest(tmp_path / name, stored[name])
    (tmp_path / "open-0").mkdir()
    (tmp_path / "open-0" / "manifest.json").write_text("damaged")
    chosen = settings(data=str(tmp_path / "open"))  # 32 pixels
    assert dataset.crop_note(chosen, stored["open"]) == (
        "note: image_size=32 shows 5% of a stored view, 32 of 137 pixels, and cuts the objects: "
        f"--data={tmp_path / 'open-40'} holds smaller views"
    )
    alone = settings(data=str(tmp_path / "open-137"))
    assert "--image_sizes" in dataset.crop_note(alone, stored["open-137"])
    assert not dataset.crop_note(settings(data=str(tmp_path / "open-40")), stored["open-40"])
    paper = settings(data=str(tmp_path / "open"), profile="paper")  # 128
    assert not dataset.crop_note(paper, stored["open"])


def test_one_id_in_two_categories_is_two_objects_at_every_rate(tmp_path):
    def coded(rate, category):
        def make(index):
            record = tiny.coded_record(rate, index)
            return dataclasses.replace(record, category=category if index == 3 else "box")

        coding = {"rate": rate, "mode": "lossy", "background": "black"}
        return tiny.write(tmp_path / f"{rate}", make, 12, 5, jpeg2000=coding)

    coded(48, "box"), coded(96, "sphere")
    with pytest.raises(RecordError, match="does not hold the objects of"):
        dataset.open_split(coded_settings(tmp_path), "train")


def test_evaluation_does_not_depend_on_training_settings(directory):
    test = raw(directory, "test")
    first = next(dataset.evaluation_examples(settings(), test, views=3, seed=1))
    changed = settings(seed=9, batch_size=2, views_max=2, iterations_max=1)
    second = next(dataset.evaluation_examples(changed, test, views=3, seed=1))
    assert first.view_ids == second.view_ids
    np.testing.assert_array_equal(first.images, second.images)


def test_evaluation_shows_the_same_views_at_every_rate_and_their_sizes(coded, directory):
    chosen = coded_settings(coded)
    test = dataset.open_split(chosen, "test")
    plain = list(dataset.evaluation_examples(settings(), raw(directory, "test"), views=3, seed=2))
    assert {example.code_bytes for example in plain} == {None}
    for rate_index, rate in enumerate(RATES):
        found = dataset.evaluation_examples(chosen, test, 3, seed=2, rate_index=rate_index)
        for index, (example, expected) in enumerate(zip(found, plain)):
            assert example.object_id == expected.object_id
            assert example.view_ids == expected.view_ids
            np.testing.assert_array_equal(example.voxels, expected.voxels)
            np.testing.assert_allclose(example.images[..., 2] * 255, rate, atol=1e-3)
            np.testing.assert_allclose(example.images[..., :2], expected.images[..., :2], atol=1e-6)
            sizes = tiny.coded_record(rate, 12 + index).code_bytes
            assert example.code_bytes.shape == (3, 3)
            np.testing.assert_array_equal(example.code_bytes, [sizes[v] for v in example.view_ids])


def test_evaluation_views_depend_on_seed_and_id_alone():
    drawn = {(s, i): evaluation_views(s, f"id-{i}", 24, 5) for s in range(30) for i in range(30)}
    assert len(set(drawn.values())) == 900  # 24 * 23 * 22 * 21 * 20 is large
    for (seed, index), views in drawn.items():
        assert views == evaluation_views(seed, f"id-{index}", 24, 5)
        assert len(set(views)) == 5 and min(views) >= 0 and max(views) < 24
        assert evaluation_views(seed, f"id-{index}", 24, 3) == views[:3]
    counts = np.bincount(np.concatenate(list(drawn.values())), minlength=24)
    assert np.sum((counts - 187.5) ** 2 / 187.5) < 65  # chi square, 23 degrees: p < 1e-5


def test_evaluation_views_are_the_same_for_ever():
    """Results of other days are compared with new ones; these were drawn with NumPy 1.26."""
    assert evaluation_views(0, "object-012", 6, 5) == (2, 0, 5, 1, 4)


def test_draws_are_the_same_for_ever():
    """A run may be resumed with another NumPy or TensorFlow; drawn with NumPy 1.26."""
    drawn = draw(7, views_min=1, views_max=5)
    assert (drawn.objects.tolist(), drawn.views.tolist(), drawn.iterations) == (
        [4, 11, 1, 5, 3],
        [[0, 4, 1], [5, 4, 0], [3, 4, 0], [2, 0, 3], [0, 1, 3]],
        2,
    )


def test_drawn_rates_are_the_same_for_ever():
    assert [draw_rate(step, 5) for step in range(10)] == [4, 0, 3, 2, 2, 4, 2, 4, 2, 4]


# --- Opening --------------------------------------------------------------------------------------


def test_a_split_that_fits_is_opened(directory):
    opened = dataset.open_split(settings(data=str(directory)), "train")
    assert len(opened) == len(opened.objects) == 12
    assert opened.rates == ()
    assert opened.data_sha256 == records.manifest_sha256(directory)
    for index in (0, 11):
        assert opened.record(index).object_id == opened.objects[index].object_id
    assert dataset.open_split(settings(data=str(directory)), "test").objects != opened.objects


@pytest.mark.parametrize(
    ("given", "opened"),
    [((), (48, 96, 120)), ((120, 48), (48, 120)), ((96.0,), (96,)), ((96, 96), (96,))],
)
def test_the_rates_of_the_config_are_opened_in_order_or_all_that_are_there(coded, given, opened):
    split = dataset.open_split(coded_settings(coded, rates=given), "test")
    assert split.rates == opened
    assert len(split) == 5
    for index, rate in enumerate(opened):
        record = split.record(2, index)
        assert record.object_id == split.objects[2].object_id
        assert list(record.views) == tiny.coded_record(rate, 14).views


def test_a_rate_is_what_the_manifest_says_and_not_the_name(tmp_path):
    tiny.make_rates(tmp_path, (479.5,), 2, 1)
    (tmp_path / "479.5").rename(tmp_path / "low")
    assert dataset.open_split(coded_settings(tmp_path), "train").rates == (479.5,)


def test_the_digest_of_the_data_depends_on_every_rate(coded):
    digests = [
        dataset.open_split(coded_settings(coded, rates=rates), "train").data_sha256
        for rates in ((), (48, 96), (48, 120), (48,))
    ]
    assert len(set(digests)) == 4
    assert digests[3] == records.manifest_sha256(coded / "48")
    again = dataset.open_split(coded_settings(coded, rates=RATES), "test")
    assert again.data_sha256 == digests[0]


def _without_rates(data) -> tuple[type, str]:
    tiny.make(data, 2, 1)
    return ConfigError, "holds no JPEG 2000 views: make them .*data_tools.build_jpeg2000"


def _with_nothing(data) -> tuple[type, str]:
    return ConfigError, "holds no JPEG 2000 views"


def _with_raw_views_below(data) -> tuple[type, str]:
    tiny.make(data / "raw", 2, 1)
    return ConfigError, "holds no JPEG 2000 views"


def _without_one_rate(data) -> tuple[type, str]:
    tiny.make_rates(data, (24, 96), 2, 1)
    return ConfigError, "rates=48,479.5 are not in .*; it holds 24,96"


def _with_other_objects_at_a_rate(data) -> tuple[type, str]:
    tiny.make_rates(data, (48, 96), 2, 1)
    tiny.make_rates(data, (479.5,), 3, 1)
    return RecordError, "479.5 does not hold the objects of .*48 in their order: build both"


def _with_other_backgrounds(data) -> tuple[type, str]:
    tiny.make_rates(data, (48, 96, 479.5), 2, 1, background="white")
    return (
        ConfigError,
        "background=black, but .* coded over white: set background=white, .*or build",
    )


def _with_another_background_at_a_rate(data) -> tuple[type, str]:
    tiny.make_rates(data, (48, 96), 2, 1)
    tiny.make_rates(data, (479.5,), 2, 1, background="white")
    return RecordError, "479.5 differs from .*48 in number or size of views, grids or background"


def _with_fewer_views_at_a_rate(data) -> tuple[type, str]:
    def fewer(index: int) -> records.ObjectRecord:
        record = tiny.coded_record(96, index)
        cut = {"views": record.views[:5], "cameras": record.cameras[:5]}
        return dataclasses.replace(record, **cut, code_bytes=record.code_bytes[:5])

    tiny.make_rates(data, (48, 479.5), 2, 1)
    tiny.write(data / "96", fewer, 2, 1, jpeg2000={"rate": 96, "background": "black"})
    return RecordError, "96 differs from .*48 in number or size of views"


def _with_a_damaged_rate(data) -> tuple[type, str]:
    tiny.make_rates(data, (48, 96, 479.5), 2, 1)
    (shard,) = (data / "96").glob("train-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    return RecordError, "is damaged"


def _with_a_rate_twice(data) -> tuple[type, str]:
    tiny.make_rates(data, (48, 96, 479.5), 2, 1)
    shutil.copytree(data / "96", data / "other")
    return RecordError, "96 and .*other both hold rate 96: take one of them away"


def _without_its_split(data) -> tuple[type, str]:
    tiny.make_rates(data, (48, 96, 479.5), 2, 1)
    manifest = json.loads((data / "96" / "manifest.json").read_text())
    del manifest["splits"]["train"]
    (data / "96" / "manifest.json").write_text(json.dumps(manifest))
    return RecordError, "has no split 'train'"


@pytest.mark.parametrize(
    "make",
    [
        _without_rates,
        _with_nothing,
        _with_raw_views_below,
        _without_one_rate,
        _with_other_objects_at_a_rate,
        _with_other_backgrounds,
        _with_another_background_at_a_rate,
        _with_fewer_views_at_a_rate,
        _with_a_damaged_rate,
        _with_a_rate_twice,
        _without_its_split,
    ],
    ids=lambda make: make.__name__.strip("_"),
)
def test_record_sets_of_rates_that_do_not_fit_are_refused(tmp_path, make):
    kind, message = make(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        dataset.open_split(coded_settings(tmp_path, rates=(48, 96, 479.5)), "train")
    assert "\n" not in str(caught.value)


def test_views_of_one_rate_can_be_used_like_raw_ones_over_their_background(coded):
    chosen = settings(model="reconstruction", data=str(coded / "48"))
    assert dataset.open_split(chosen, "train").rates == ()
    chosen = settings(model="reconstruction", data=str(coded / "48"), background="white")
    with pytest.raises(ConfigError, match="background=white, but the JPEG 2000 views were coded"):
        dataset.open_split(chosen, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid_size": 2}, "grids of side 32, the model makes 16 .*set grid_size=4"),
        ({"image_size": 48}, "image_size=48 is above the records' 36 pixels"),
        ({"views_max": 7}, "views_max=7, but the records hold 6 views.*at most 6"),
    ],
)
def test_settings_that_do_not_fit_the_records_are_refused(directory, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        dataset.open_split(settings(data=str(directory), **changes), "train")
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


def test_missing_records_are_refused(directory, tmp_path):
    with pytest.raises(RecordError, match="no record directory"):
        dataset.open_split(settings(data=str(tmp_path / "nowhere")), "train")
    with pytest.raises(RecordError, match="no split 'validation'"):
        dataset.open_split(settings(data=str(directory)), "validation")


def test_the_embedded_set_is_called_demo_and_fits_the_default_ranges():
    chosen = settings(data="demo", image_size=64)
    assert dataset.record_directory(chosen).name == "demo"
    train, test = (dataset.open_split(chosen, split) for split in ("train", "test"))
    sources = [{entry.source for entry in split.objects} for split in (train, test)]
    assert sources[0] and sources[1] and not sources[0] & sources[1]
