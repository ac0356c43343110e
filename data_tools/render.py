"""Views of a mesh by ray casting on the CPU, with the camera of 3D-R2N2.

The camera stands at d (cos el cos az, sin el, cos el sin az), y up, and looks at the origin;
d = 1.75 x distance ratio, focal length = 35/32 x image width, pixels at their centres.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from data_tools import seeding
from data_tools.meshes import Mesh

MAX_DISTANCE = 1.75
FOCAL_LENGTH = 35.0 / 32.0
ELEVATION_DEGREES = (25.0, 30.0)
DISTANCE_RATIO = (0.65, 0.95)

_AMBIENT, _SUN, _HEADLIGHT = 0.35, 0.35, 0.30
_SUN_DIRECTION = np.array([0.45, 0.80, 0.40]) / np.linalg.norm([0.45, 0.80, 0.40])


class CameraFrame(NamedTuple):
    """Position and axes of a camera in the world, each [3] float64."""

    position: np.ndarray
    right: np.ndarray
    up: np.ndarray
    forward: np.ndarray


def cameras(seed: int, object_id: str, views: int) -> np.ndarray:
    """Return [V, 4] float64: azimuth, elevation, in-plane rotation (degrees), distance ratio.

    A pure function of the arguments; the first views do not depend on how many follow. Rounded
    to six decimals, so that the numbers survive the layout's text file.
    """
    rows = []
    for view in range(views):
        rng = seeding.generator(seed, "camera", object_id, view)
        azimuth = seeding.uniform(rng, 0.0, 360.0, 1)[0]
        elevation = seeding.uniform(rng, *ELEVATION_DEGREES, 1)[0]
        rows.append((azimuth, elevation, 0.0, seeding.uniform(rng, *DISTANCE_RATIO, 1)[0]))
    return np.round(np.array(rows, np.float64).reshape(views, 4), 6)


def camera_frame(camera: np.ndarray) -> CameraFrame:
    """Return the frame of a camera row [4] as in `cameras`; in-plane rotation must be 0."""
    azimuth, elevation, rotation, ratio = (float(value) for value in camera)
    if rotation != 0.0:
        raise ValueError(f"in-plane rotation must be 0. Received: {rotation}")
    azimuth, elevation = math.radians(azimuth), math.radians(elevation)
    outward = np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.sin(elevation),
            math.cos(elevation) * math.sin(azimuth),
        ]
    )
    right = np.cross(-outward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    return CameraFrame(MAX_DISTANCE * ratio * outward, right, np.cross(right, -outward), -outward)


def project(points: np.ndarray, camera: np.ndarray, image_size: int) -> np.ndarray:
    """Project world points [N, 3] to pixels [N, 2] (column, row); pixel centres lie at .5."""
    frame = camera_frame(camera)
    relative = np.asarray(points, np.float64) - frame.position
    depth = relative @ frame.forward
    column = 0.5 + FOCAL_LENGTH * (relative @ frame.right) / depth
    row = 0.5 - FOCAL_LENGTH * (relative @ frame.up) / depth
    return image_size * np.stack([column, row], axis=-1)


class Renderer:
    """Ray casting against one prepared mesh (bounding-box diagonal 1, centred)."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        low, high = mesh.corners.min((0, 1)), mesh.corners.max((0, 1))
        self._box = np.stack(np.meshgrid(*zip(low, high)), axis=-1).reshape(-1, 3)
        self._normals = _unit(
            np.cross(
                mesh.corners[:, 1] - mesh.corners[:, 0], mesh.corners[:, 2] - mesh.corners[:, 0]
            )
        )
        self._scene = EmbreeScene()
        # The scene does not keep its geometry alive: without this reference the process crashes.
        self._geometry = TriangleMesh(self._scene, mesh.corners.astype(np.float32))

    def render(self, camera: np.ndarray, image_size: int, supersampling: int = 2) -> np.ndarray:
        """Return a view as [S, S, 4] uint8 RGBA; alpha is antialiased, RGB under alpha 0 black.

        Args:
            camera: [4], a row of `cameras`.
            image_size: S in pixels.
            supersampling: rays per pixel and axis.
        """
        return develop(self.cast(camera, image_size * supersampling), image_size)

    def cast(self, camera: np.ndarray, size: int) -> np.ndarray:
        """Return what size x size rays meet: [size, size, 4] float64, colour and 1, or zeros."""
        frame = camera_frame(camera)
        rows, columns = self._window(camera, size)
        offset = (np.arange(size) + 0.5) / size - 0.5
        directions = _unit(
            FOCAL_LENGTH * frame.forward
            + offset[None, columns, None] * frame.right
            - offset[rows, None, None] * frame.up
        )
        window = directions.shape[:2]
        directions = directions.reshape(-1, 3)
        origins = np.broadcast_to(frame.position, directions.shape)
        found = self._scene.run(
            np.ascontiguousarray(origins, np.float32), directions.astype(np.float32), output=True
        )
        hit = found["primID"] >= 0
        face = found["primID"][hit]
        base = self._base_colour(face, found["u"][hit], found["v"][hit])
        seen = np.zeros((len(directions), 4))
        seen[hit, :3] = base * self._shade(face, directions[hit])[:, None]
        seen[hit, 3] = 1.0
        rays = np.zeros((size, size, 4))
        rays[rows, columns] = seen.reshape(*window, 4)
        return rays

    def _window(self, camera: np.ndarray, size: int) -> tuple[slice, slice]:
        # The rows and columns of the mesh's bounding box, and one more: other rays meet nothing.
        pixels = project(self._box, camera, size)
        low = np.clip(np.floor(pixels.min(0)) - 1, 0, size).astype(int)
        high = np.clip(np.ceil(pixels.max(0)) + 1, 0, size).astype(int)
        return slice(low[1], high[1]), slice(low[0], high[0])

    def _shade(self, face: np.ndarray, directions: np.ndarray) -> np.ndarray:
        normals = self._normals[face]
        facing = np.einsum("ij,ij->i", normals, directions)
        # Faces are seen from both sides: many models are single sheets.
        sun = np.maximum(-np.sign(facing) * (normals @ _SUN_DIRECTION), 0.0)
        return _AMBIENT + _SUN * sun + _HEADLIGHT * np.abs(facing)

    def _base_colour(self, face: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        mesh = self._mesh
        material = mesh.material[face]
        colour = np.stack([entry.colour for entry in mesh.materials])[material]
        weights = np.stack([1.0 - u - v, u, v], axis=-1)
        for index in np.unique(material):
            texture = mesh.materials[index].texture
            if texture is not None:
                here = material == index
                uv = np.einsum("nc,ncd->nd", weights[here], mesh.uv[face[here]])
                colour[here] = _sample(texture, uv)
        return colour


def develop(rays: np.ndarray, image_size: int) -> np.ndarray:
    """Return rays [R, R, 4] as an image [S, S, 4] uint8 RGBA, every pixel the mean over its area.

    R need not be a multiple of S: a ray that lies in two pixels counts for each by its share.
    """
    taps, weights = _areas(len(rays), image_size)
    image = np.zeros((image_size, image_size, 4), np.uint8)
    met = rays[..., 3] > 0
    # Most of a view is empty: from the first pixel to the last one that has something in it.
    rows, columns = (np.flatnonzero(met.any(axis)[taps].any(1)) for axis in (1, 0))
    if not len(rows):
        return image
    rows, columns = (np.arange(pixels[0], pixels[-1] + 1) for pixels in (rows, columns))
    first, last = taps[columns[0], 0], taps[columns[-1], -1]
    rays = rays[:, first : last + 1]
    for pixels, offset in ((rows, 0), (columns, first)):  # rows; then, turned, columns
        parts = (
            weights[pixels, t, None, None] * rays[taps[pixels, t] - offset]
            for t in range(taps.shape[1])
        )
        rays = functools.reduce(np.add, parts).swapaxes(0, 1)
    coverage = rays[..., 3:]
    rgba = np.concatenate([rays[..., :3] / np.maximum(coverage, 1e-9), coverage], axis=-1)
    image[np.ix_(rows, columns)] = np.round(255.0 * np.clip(rgba, 0.0, 1.0))
    return image


@functools.cache
def _areas(rays: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    # Per pixel of a row, the rays in it [S, K] and each one's share of its area [S, K].
    edges = np.arange(pixels + 1) * rays / pixels
    first = np.floor(edges[:-1]).astype(int)
    taps = first[:, None] + np.arange((np.ceil(edges[1:]).astype(int) - first).max())
    inside = np.minimum(edges[1:, None], taps + 1) - np.maximum(edges[:-1, None], taps)
    return np.minimum(taps, rays - 1), np.maximum(inside, 0.0) * pixels / rays


def _sample(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    height, width = texture.shape[:2]
    u, v = np.mod(uv[:, 0], 1.0), np.mod(1.0 - uv[:, 1], 1.0)
    column = np.minimum((u * width).astype(int), width - 1)
    row = np.minimum((v * height).astype(int), height - 1)
    return texture[row, column]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-20)
