"""From records to minibatches: the order of everything is a pure function of (seed, step).

A minibatch is drawn with NumPy (`draw_minibatch`), its bytes are read by position, and TensorFlow
decodes, composes and crops the views. So a run can start at any step without reading what came
before, and every worker draws the same minibatch and keeps its own rows.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfjoint import words
from tfjoint.config import Config, ConfigError
from tfjoint.records import (
    MANIFEST,
    Manifest,
    ObjectRecord,
    RecordError,
    RecordSet,
    read_manifest,
)

DEMO = Path(__file__).parent / "demo"
"""The embedded record set."""

TEST_GREY = 240 / 255
"""What stands for a "random" background at test time (Choy et al.)."""

PHOTO_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
_MOST_PHOTOS = 4096

# One stream of random numbers per kind of draw, so that none depends on another's length.
_ORDER, _MINIBATCH, _PHOTOS = 0, 1, 2


class Split:
    """The objects of one split of a record directory; of JPEG 2000 views, at several rates.

    Raises `RecordError` where the record sets of the rates do not hold the same objects.
    """

    def __init__(
        self,
        sets: Sequence[RecordSet],
        rates: Sequence[float] = (),
        photos: np.ndarray | None = None,
    ) -> None:
        self._sets = tuple(sets)
        self.photos = photos
        """[N, H, W, 3] uint8, to put behind the objects, if not a colour."""
        self.rates = tuple(rates)
        """The rates of JPEG 2000 views, one record set each; () for raw views."""
        first, *others = self._sets
        self.manifest = first.manifest
        self.objects = first.objects
        digests = [records.data_sha256 for records in self._sets]
        if photos is not None:
            digests.append(hashlib.sha256(photos.tobytes()).hexdigest())
        self.data_sha256 = digests[0] if len(digests) == 1 else _sha256_of(*digests)
        for other in others:
            if _names(other) != _names(first):
                raise RecordError(
                    f"{other.directory} does not hold the objects of {first.directory} in their "
                    "order: build both from the same records"
                )
            if _form(other.manifest) != _form(first.manifest):
                raise RecordError(
                    f"{other.directory} differs from {first.directory} in number or size of views, "
                    "grids or background: build both from the same records"
                )

    def __len__(self) -> int:
        return len(self.objects)

    def record(self, index: int, rate_index: int = 0) -> ObjectRecord:
        """Return object `index`, with its views at `rates[rate_index]` where there are rates."""
        return self._sets[rate_index].record(index)


def _names(records: RecordSet) -> list[tuple[str, str]]:
    return [(found.category, found.object_id) for found in records.objects]


def _form(manifest: Manifest) -> tuple:
    background = manifest.jpeg2000.get("background")
    return manifest.views, manifest.image_size, manifest.voxel_size, background


def record_directory(config: Config) -> Path:
    """Return where the records of `config.data` lie."""
    return DEMO if config.data == "demo" else Path(config.data)


def open_split(config: Config, split: str, views: int | None = None) -> Split:
    """Open one split of the config's records and check that the config fits them.

    Args:
      config: says where the records are, and the size of images and grids.
      split: "train" or "test".
      views: views per object that are wanted; None is the config's `views_max`.

    Raises:
      RecordError: the records are missing or damaged.
      ConfigError: image, grid, number of views, rates or background do not fit the records, or
        the photos cannot be read.
    """
    opened = _open_rates(config, split) if config.uses("rates") else _open_raw(config, split)
    manifest = opened.manifest
    if config.uses("grid_size") and manifest.voxel_size != config.voxel_size:
        size, rest = divmod(manifest.voxel_size, 8)
        advice = "use other records" if rest else f"set grid_size={size}"
        raise ConfigError(
            f"the records hold grids of side {manifest.voxel_size}, the model makes "
            f"{config.voxel_size} = 8 x grid_size: {advice}"
        )
    if manifest.image_size < config.image_size:
        raise ConfigError(
            f"image_size={config.image_size} is above the records' {manifest.image_size} pixels: "
            "use a smaller image_size or profile, or larger records"
        )
    name, wanted = ("views_max", config.views_max) if views is None else ("views", views)
    if manifest.views < wanted:
        raise ConfigError(
            f"{name}={wanted}, but the records hold {words.count(manifest.views, 'view')} per "
            f"object: set {name} to at most {manifest.views}"
        )
    coded_over = manifest.jpeg2000.get("background", config.background)
    if coded_over != config.background or (manifest.jpeg2000 and config.photos):
        raise ConfigError(
            f"background={config.photos or config.background}, but the JPEG 2000 views were coded "
            f"over {coded_over}: set background={coded_over}, without photos, or build them again"
        )
    return opened


def crop_note(config: Config, manifest: Manifest) -> str:
    """Return what to know where crops hold only a part of the stored views; "" where they do not.

    The paper's crop, 128 of 137 pixels, keeps the object; one of less than three quarters cuts it.
    """
    stored, size = manifest.image_size, config.image_size
    if size >= 0.75 * stored:
        return ""
    share = (size / stored) ** 2
    directory, fitting = record_directory(config), []
    for path in directory.parent.glob(f"{directory.name}-*/{MANIFEST}"):
        with contextlib.suppress(RecordError):
            if size <= read_manifest(path.parent).image_size <= size / 0.75:
                fitting.append(f"--data={path.parent} holds smaller views")
    advice = min(
        fitting, default="use records of smaller views, such as the builders' --image_sizes"
    )
    return (
        f"note: image_size={size} shows {share:.0%} of a stored view, {size} of {stored} pixels, "
        f"and cuts the objects: {advice}"
    )


def _open_raw(config: Config, split: str) -> Split:
    photos = read_photos(Path(config.photos), config.image_size) if config.photos else None
    return Split([RecordSet(record_directory(config), split)], photos=photos)


def _open_rates(config: Config, split: str) -> Split:
    """Open the record sets of the config's rates, in sub-directories named by their rate."""
    root = record_directory(config)
    found: dict[float, Path] = {}
    for path in sorted(root.glob(f"*/{MANIFEST}")):
        if rate := read_manifest(path.parent).jpeg2000.get("rate"):
            if other := found.get(float(rate)):
                raise RecordError(
                    f"{other} and {path.parent} both hold rate {rate:g}: take one of them away"
                )
            found[float(rate)] = path.parent
    if not found:
        raise ConfigError(
            f"{root} holds no JPEG 2000 views: make them from a record directory with "
            "python -m data_tools.build_jpeg2000, and name the result with --data"
        )
    rates = sorted(set(config.rates) or found)
    if missing := [rate for rate in rates if rate not in found]:
        raise ConfigError(
            f"rates={','.join(f'{r:g}' for r in missing)} are not in {root}; it holds "
            f"{','.join(f'{r:g}' for r in sorted(found))}"
        )
    return Split([RecordSet(found[rate], split) for rate in rates], rates)


def read_photos(folder: Path, size: int) -> np.ndarray:
    """Return the photos of a folder, by name, as [N, size, size, 3] uint8: the middle of each.

    Raises `ConfigError` when there are none, too many, or one that cannot be read.
    """
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    if not 0 < len(paths) <= _MOST_PHOTOS:
        raise ConfigError(
            f"photos={folder} holds {len(paths)} photos: name a folder with 1 to {_MOST_PHOTOS} "
            f"files that end in {', '.join(PHOTO_SUFFIXES)}"
        )
    return np.stack([_read_photo(path, size) for path in paths])


def _read_photo(path: Path, size: int) -> np.ndarray:
    try:
        photo = tf.io.decode_image(path.read_bytes(), channels=3, expand_animations=False)
    except (OSError, tf.errors.InvalidArgumentError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} is no photo that can be read ({reason}): remove it") from error
    side = min(photo.shape[:2])
    square = tf.image.resize_with_crop_or_pad(photo, side, side)
    return tf.cast(tf.round(tf.image.resize(square, [size, size], "area")), tf.uint8).numpy()


class Minibatch(NamedTuple):
    """What one training step uses: B objects, V views of each, T iterations."""

    objects: np.ndarray
    """[B] positions in the record set."""
    views: np.ndarray
    """[B, V] view ids, no repeats within an object."""
    offsets: np.ndarray
    """[B, V, 2] top left corner of the crop, rows and columns."""
    backgrounds: np.ndarray
    """[B, V, 3] colour behind the object, in [0, 1]."""
    iterations: int
    rate_index: int
    """Which of the records' rates the views have; 0 where they have none."""
    photos: np.ndarray
    """[B, V] uint64; modulo the number of photos, which of them is behind the object."""


def draw_minibatch(
    config: Config, objects: int, views: int, stored_size: int, step: int, rates: int = 1
) -> Minibatch:
    """Return the minibatch of `step`: a pure function of the config's seed and the step.

    Objects follow one permutation per epoch; a minibatch may span two epochs, so none is dropped.

    Args:
      config: batch size, ranges of views and iterations, image size, background, seed.
      objects: number of training objects.
      views: number of views stored per object.
      stored_size: side of the stored views in pixels.
      step: from 0.
      rates: number of rates at which the views are stored.
    """
    batch = config.batch_size
    position = np.arange(step * batch, (step + 1) * batch)
    orders = {epoch: _permutation(config.seed, epoch, objects) for epoch in position // objects}
    chosen = np.array([orders[p // objects][p % objects] for p in position])

    bits = _bits(config.seed, _MINIBATCH, step, 3 + batch * views * 4)
    view_count = _integer(bits[0], config.views_min, config.views_max)
    iterations = _integer(bits[1], config.iterations_min, config.iterations_max)
    rate_index = _integer(bits[-1], 0, rates - 1)
    order, *draws = bits[2:-1].reshape(4, batch, views)
    view_ids = np.argsort(order, axis=1, kind="stable")[:, :view_count]
    rows, columns, greys = (draw[:, :view_count] for draw in draws)
    offsets = np.stack([rows, columns], -1) % np.uint64(stored_size - config.image_size + 1)
    backgrounds = _backgrounds(config.background, (225 + greys % np.uint64(31)) / 255)
    photos = _bits(config.seed, _PHOTOS, step, batch * views).reshape(batch, views)
    return Minibatch(
        chosen,
        view_ids,
        offsets.astype(np.int32),
        backgrounds,
        iterations,
        rate_index,
        photos[:, :view_count],
    )


class Replicas(NamedTuple):
    """Which replicas' rows a worker reads: `local` of `total`, from `first` on."""

    first: int = 0
    local: int = 1
    total: int = 1


ONE_REPLICA = Replicas()


def rows_per_replica(config: Config, replicas: int) -> int:
    """Return how many objects of a minibatch each replica gets. Raises `ConfigError`."""
    if config.batch_size % replicas:
        raise ConfigError(
            f"batch_size={config.batch_size} cannot be shared by {replicas} replicas: "
            f"use a multiple of {replicas}"
        )
    return config.batch_size // replicas


def training_dataset(
    config: Config, records: Split, start: int, stop: int, replicas: Replicas = ONE_REPLICA
) -> tf.data.Dataset:
    """Return the minibatches of steps `start` to `stop`, one element per step and local replica.

    Elements are dicts; b = batch_size / replicas, V varies from step to step:
      images: [b, V, H, W, 3] float32 in [0, 1]
      voxels: [b, D, D, D] float32, 0 or 1
      iterations: [] int32
      step: [] int32
      first_object: [] int32, row of the first object in the minibatch of all replicas
    """
    rows = rows_per_replica(config, replicas.total)
    manifest = records.manifest

    def fetch(element: np.ndarray) -> tuple:
        step, replica = divmod(int(element), replicas.local)
        step, first = step + start, (replica + replicas.first) * rows
        drawn = draw_minibatch(
            config,
            len(records),
            manifest.views,
            manifest.image_size,
            step,
            rates=len(records.rates) or 1,
        )
        mine = slice(first, first + rows)
        read = [records.record(index, drawn.rate_index) for index in drawn.objects[mine]]
        views = drawn.views[mine]
        images = [[record.views[v] for v in ids] for record, ids in zip(read, views)]
        voxels = np.stack([record.voxels for record in read]).astype(np.float32)
        return (
            np.array(images, object),
            drawn.offsets[mine],
            _behind(records, drawn.backgrounds[mine], drawn.photos[mine]),
            voxels,
            np.int32(drawn.iterations),
            np.int32(step),
            np.int32(first),
        )

    types = (tf.string, tf.int32, tf.float32, tf.float32, tf.int32, tf.int32, tf.int32)

    def load(element: tf.Tensor) -> dict[str, tf.Tensor]:
        images, offsets, backgrounds, voxels, *scalars = tf.numpy_function(fetch, [element], types)
        images.set_shape([rows, None])
        voxels.set_shape([rows, *[manifest.voxel_size] * 3])
        for scalar in scalars:
            scalar.set_shape([])
        iterations, step, first = scalars
        return {
            "images": decode_views(images, offsets, backgrounds, config.image_size),
            "voxels": voxels,
            "iterations": iterations,
            "step": step,
            "first_object": first,
        }

    elements = tf.data.Dataset.range((stop - start) * replicas.local)
    return elements.map(load, num_parallel_calls=2).prefetch(4)


def decode_views(
    encoded: tf.Tensor, offsets: tf.Tensor, backgrounds: tf.Tensor, image_size: int
) -> tf.Tensor:
    """Return [B, V, H, W, 3] float32 in [0, 1] of PNG views [B, V], composed and cropped.

    Args:
      encoded: [B, V] PNG bytes, RGB or RGBA; alpha blends the view over its background.
      offsets: [B, V, 2] int32, top left corner of the crop.
      backgrounds: [B, V, h, w, 3] float32 in [0, 1], h = w = 1 or `image_size`.
      image_size: side of the crop.
    """

    def decode(args):
        png, offset, background = args
        rgba = tf.cast(tf.io.decode_png(png, channels=4), tf.float32) / 255
        rgba = tf.slice(rgba, [offset[0], offset[1], 0], [image_size, image_size, 4])
        return rgba[..., :3] * rgba[..., 3:] + background * (1 - rgba[..., 3:])

    flat = (
        tf.reshape(encoded, [-1]),
        tf.reshape(offsets, [-1, 2]),
        tf.reshape(backgrounds, tf.concat([[-1], tf.shape(backgrounds)[2:]], 0)),
    )
    images = tf.map_fn(decode, flat, fn_output_signature=tf.TensorSpec([image_size, image_size, 3]))
    images = tf.reshape(images, tf.concat([tf.shape(encoded), tf.shape(images)[1:]], 0))
    return tf.ensure_shape(images, [encoded.shape[0], None, image_size, image_size, 3])


class Example(NamedTuple):
    """One object as it is evaluated."""

    category: str
    object_id: str
    view_ids: tuple[int, ...]
    images: np.ndarray
    """[V, H, W, 3] float32 in [0, 1]."""
    voxels: np.ndarray
    """[D, D, D] bool."""
    code_bytes: np.ndarray | None
    """[V, 3] of JPEG 2000 views, columns as in `records.CODE_BYTE_FIELDS`."""


def evaluation_examples(
    config: Config,
    records: Split,
    views: int,
    seed: int,
    indices: Iterable[int] | None = None,
    rate_index: int = 0,
) -> Iterator[Example]:
    """Yield objects, all in record order or those of `indices`, cropped in the centre.

    The view ids depend on the seed and the object's id alone: the same for every system and rate.
    """
    stored = records.manifest.image_size
    offsets = np.full([1, views, 2], (stored - config.image_size) // 2, np.int32)
    colours = _backgrounds(config.background, np.full([1, views], TEST_GREY))
    for index in range(len(records)) if indices is None else indices:
        record = records.record(index, rate_index)
        ids = evaluation_views(seed, record.object_id, len(record.views), views)
        encoded = np.array([[record.views[i] for i in ids]], object)
        photos = _object_bits(seed, record.object_id, views, _PHOTOS)[np.newaxis]
        backgrounds = _behind(records, colours, photos)
        images = decode_views(tf.constant(encoded), offsets, backgrounds, config.image_size)
        yield Example(
            category=record.category,
            object_id=record.object_id,
            view_ids=ids,
            images=images[0].numpy(),
            voxels=record.voxels,
            code_bytes=None if record.code_bytes is None else record.code_bytes[list(ids)],
        )


def evaluation_views(seed: int, object_id: str, stored: int, views: int) -> tuple[int, ...]:
    """Return `views` of the `stored` view ids, drawn once from the seed and the object's id."""
    order = np.argsort(_object_bits(seed, object_id, stored), kind="stable")
    return tuple(int(i) for i in order[:views])


def _object_bits(seed: int, object_id: str, count: int, stream: int = 0) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}/{object_id}".encode()).digest()
    return _bits(int.from_bytes(digest[:8], "little"), stream, 0, count)


def _behind(records: Split, colours: np.ndarray, photos: np.ndarray) -> np.ndarray:
    # [B, V, 1, 1, 3] of colours [B, V, 3] or [B, V, H, W, 3] of photos [B, V], float32 in [0, 1].
    if records.photos is None:
        return colours[:, :, np.newaxis, np.newaxis].astype(np.float32)
    chosen = photos % np.uint64(len(records.photos))
    return records.photos[chosen].astype(np.float32) / 255


def _backgrounds(background: str, greys: np.ndarray) -> np.ndarray:
    # [..., 3] colours; `greys` [...] are used where the background is random.
    colour = {"black": np.zeros_like(greys), "white": np.ones_like(greys), "random": greys}
    return np.repeat(colour[background][..., np.newaxis], 3, axis=-1)


def _permutation(seed: int, epoch: int, objects: int) -> np.ndarray:
    return np.argsort(_bits(seed, _ORDER, int(epoch), objects), kind="stable")


def _bits(seed: int, stream: int, step: int, count: int) -> np.ndarray:
    # Raw Philox output is the same in every version of NumPy; `permutation` and others are not.
    generator = np.random.Philox(
        key=np.array([seed, stream], np.uint64), counter=np.array([0, step, 0, 0], np.uint64)
    )
    return generator.random_raw(count)


def _sha256_of(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _integer(bits: np.uint64, low: int, high: int) -> int:
    return low + int(bits % np.uint64(high - low + 1))
