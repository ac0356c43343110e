"""Losses and metrics against closed forms and the plainest possible definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tfjoint import config, losses, metrics
from tfjoint.models import Output


def grids(seed: int, objects: int, side: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in few steps, so that ties and the threshold itself occur, and voxels."""
    rng = np.random.default_rng(seed)
    shape = (objects, side, side, side)
    return (rng.integers(0, 11, shape) / 10).astype(np.float32), rng.random(shape) < 0.3


# --- Losses ---------------------------------------------------------------------------------------


def test_the_image_loss_is_the_plain_mean_over_everything():
    rng = np.random.default_rng(0)
    images = rng.random((2, 3, 4, 5, 3)).astype(np.float32)
    decoded = rng.normal(0.5, 1, (2, 3, 7, 4, 5, 3)).astype(np.float32)
    total = 0.0
    for b, v, t in np.ndindex(2, 3, 7):
        total += np.abs(images[b, v] - decoded[b, v, t]).sum()
    expected = total / decoded.size
    assert float(losses.compression_loss(images, decoded)) == pytest.approx(expected, rel=1e-5)


def test_the_image_loss_has_closed_forms():
    images = tf.zeros([1, 2, 4, 4, 3])
    assert float(losses.compression_loss(images, tf.zeros([1, 2, 3, 4, 4, 3]))) == 0
    # One of three iterations is off by 0.6, whichever way, and nothing is clipped.
    for error in (0.6, -0.6, 6.0):
        decoded = tf.stack([tf.zeros([1, 2, 4, 4, 3]), images + error, images], axis=2)
        found = float(losses.compression_loss(images, decoded))
        assert found == pytest.approx(abs(error) / 3, rel=1e-6)


def test_the_shape_loss_is_the_mean_cross_entropy_in_nats():
    logits = np.array([[[[-3.0, 0.0], [0.5, 2.0]]]], np.float32)
    voxels = np.array([[[[0, 1], [1, 0]]]], bool)
    probabilities = [1 / (1 + math.exp(-x)) for x in logits.ravel()]
    expected = -np.mean(
        [math.log(p if v else 1 - p) for p, v in zip(probabilities, voxels.ravel())]
    )
    assert float(losses.occupancy_loss(voxels, logits)) == pytest.approx(expected, rel=1e-6)
    assert float(losses.occupancy_loss(voxels, np.zeros_like(logits))) == pytest.approx(math.log(2))


def test_the_shape_loss_stays_finite_for_certain_and_wrong_logits():
    voxels = np.array([[[[0.0, 1.0]]]], np.float32)
    assert float(losses.occupancy_loss(voxels, np.float32([[[[1e4, 1e4]]]]))) == pytest.approx(5e3)


def test_the_shape_loss_is_the_softmax_of_the_two_channels():
    rng = np.random.default_rng(1)
    two = rng.normal(size=(2, 3, 3, 3, 2)).astype(np.float32)
    voxels = rng.random((2, 3, 3, 3)) < 0.5
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(voxels.astype(int), two)
    found = losses.occupancy_loss(voxels, two[..., 1] - two[..., 0])
    assert float(found) == pytest.approx(float(np.mean(expected)), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_the_joint_loss_is_the_weighted_sum_of_its_terms(weight):
    rng = np.random.default_rng(2)
    batch = {
        "images": rng.random((2, 1, 4, 4, 3)).astype(np.float32),
        "voxels": (rng.random((2, 3, 3, 3)) < 0.5).astype(np.float32),
    }
    decoded = rng.random((2, 1, 2, 4, 4, 3)).astype(np.float32)
    logits = rng.normal(size=(2, 3, 3, 3)).astype(np.float32)
    settings = config.Config(loss_weight=weight)
    terms = losses.loss_terms(settings, batch, Output(None, decoded, logits))
    assert sorted(terms) == ["L_3D", "L_comp", "loss"]
    image, shape = (
        float(losses.compression_loss(batch["images"], decoded)),
        float(losses.occupancy_loss(batch["voxels"], logits)),
    )
    assert (float(terms["L_comp"]), float(terms["L_3D"])) == (image, shape)
    assert float(terms["loss"]) == pytest.approx(image + weight * shape, rel=1e-6)

    only_images = losses.loss_terms(settings, batch, Output(None, decoded, None))
    assert {k: float(v) for k, v in only_images.items()} == {"L_comp": image, "loss": image}
    only_shape = losses.loss_terms(settings, batch, Output(None, None, logits))
    assert sorted(only_shape) == ["L_3D", "loss"]
    assert float(only_shape["loss"]) == pytest.approx(weight * shape)


# --- IoU ------------------------------------------------------------------------------------------


def plain_iou(probabilities: np.ndarray, voxels: np.ndarray, threshold: float) -> float:
    both = either = 0
    for p, v in zip(probabilities.ravel().tolist(), voxels.ravel().tolist()):
        found = p >= np.float32(threshold)
        both += found and v
        either += found or v
    return both / either if either else 1.0


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.4, 0.5, 1.0])
def test_iou_is_counted_voxel_by_voxel(threshold):
    probabilities, voxels = grids(0, 5)
    found = metrics.iou(probabilities, voxels, threshold)
    assert found.shape == (5,)
    for index in range(5):
        expected = plain_iou(probabilities[index], voxels[index], threshold)
        assert found[index] == pytest.approx(expected, abs=1e-12)


def test_a_voxel_at_the_threshold_itself_is_occupied():
    assert metrics.THRESHOLD == 0.4
    voxels = np.ones((1, 1, 1), bool)
    for dtype in (np.float32, np.float64):
        at = np.full((1, 1, 1), 0.4, dtype)
        assert metrics.iou(at, voxels) == 1
        assert metrics.iou(np.nextafter(at, dtype(0)), voxels) == 0


def test_iou_of_nothing_and_nothing_is_one_and_of_nothing_and_something_zero():
    nothing, something = np.zeros((2, 3, 3, 3), bool), np.zeros((2, 3, 3, 3), bool)
    something[:, 0, 0, 0] = True
    np.testing.assert_array_equal(metrics.iou(nothing * 0.1, nothing), [1, 1])
    np.testing.assert_array_equal(metrics.iou(nothing * 0.1, something), [0, 0])
    np.testing.assert_array_equal(metrics.iou(something * 0.9, nothing), [0, 0])
    np.testing.assert_array_equal(metrics.iou(something * 0.9, something), [1, 1])


def test_one_prediction_is_compared_with_many_grids():
    probabilities, voxels = grids(1, 4)
    found = metrics.iou(probabilities[0], voxels)
    expected = [plain_iou(probabilities[0], v, 0.4) for v in voxels]
    np.testing.assert_allclose(found, expected)


def plain_overlap(
    probabilities: np.ndarray, voxels: np.ndarray, threshold: float
) -> tuple[int, int]:
    pairs = [(p >= np.float32(threshold), v) for p, v in zip(probabilities.flat, voxels.flat)]
    return sum(p and v for p, v in pairs), sum(p or v for p, v in pairs)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.4, 1.0])
def test_overlap_counts_the_voxels_of_both_and_of_either(threshold):
    probabilities, voxels = grids(4, 5)
    both, either = metrics.overlap(probabilities, voxels, threshold)
    expected = [plain_overlap(p, v, threshold) for p, v in zip(probabilities, voxels)]
    assert list(zip(both, either)) == expected
    assert both.dtype.kind == either.dtype.kind == "i"
    # Of one object, two numbers; without a word at the threshold of the paper.
    assert metrics.overlap(probabilities[0], voxels[0]) == plain_overlap(
        probabilities[0], voxels[0], 0.4
    )


def test_overlap_of_nothing_is_nothing():
    nothing = np.zeros((2, 3, 3, 3), bool)
    both, either = metrics.overlap(nothing * 0.1, nothing)
    np.testing.assert_array_equal([both, either], np.zeros((2, 2)))


def counts_of(probabilities: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    return np.array([plain_overlap(p, v, 0.4) for p, v in zip(probabilities, voxels)])


@pytest.mark.parametrize("objects", [1, 2, 6, 7, 13, 20])
def test_pooled_iou_counts_a_minibatch_as_one_grid_and_a_last_partial_one_too(objects):
    probabilities, voxels = grids(2, 13, side=4)
    voxels *= np.linspace(0, 1, 13)[:, None, None, None] > 0.2  # some objects are empty
    minibatches = [slice(i, i + objects) for i in range(0, 13, objects)]
    expected = np.mean([plain_iou(probabilities[m], voxels[m], 0.4) for m in minibatches])
    found = metrics.pooled_iou(counts_of(probabilities, voxels), objects)
    assert found == pytest.approx(expected, abs=1e-12)


def test_pooled_iou_has_closed_forms():
    assert metrics.pooled_iou(np.array([[1, 2], [3, 6], [1, 1]]), 2) == (4 / 8 + 1) / 2
    assert metrics.pooled_iou(np.array([[0, 0], [0, 0], [0, 5]]), 2) == (1 + 0) / 2
    assert metrics.pooled_iou(np.array([[0, 0], [1, 4]]), 6) == 1 / 4


def test_pooled_iou_of_single_objects_is_the_mean_iou():
    probabilities, voxels = grids(3, 5)
    voxels[0] = False
    counts = counts_of(probabilities, voxels)
    pooled = metrics.pooled_iou(counts, 1)
    assert pooled == pytest.approx(metrics.iou(probabilities, voxels).mean())
    assert pooled != pytest.approx(metrics.pooled_iou(counts, 5), abs=1e-3)


# --- Cross-entropy and average precision ----------------------------------------------------------


def test_cross_entropy_is_the_mean_log_likelihood_per_object():
    rng = np.random.default_rng(4)
    probabilities = rng.uniform(0.01, 0.99, (3, 4, 4, 4)).astype(np.float32)
    voxels = rng.random((3, 4, 4, 4)) < 0.5
    for index, found in enumerate(metrics.cross_entropy(probabilities, voxels)):
        pairs = zip(probabilities[index].ravel().tolist(), voxels[index].ravel().tolist())
        expected = -np.mean([math.log(p if v else 1 - p) for p, v in pairs])
        assert found == pytest.approx(expected, rel=1e-6)
    half = metrics.cross_entropy(
        np.full((1, 2, 2, 2), np.float32(0.5)), np.ones((1, 2, 2, 2), bool)
    )
    assert half == pytest.approx(math.log(2))


def test_cross_entropy_of_probabilities_agrees_with_the_loss_of_logits():
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (2, 5, 5, 5)).astype(np.float32)
    voxels = rng.random((2, 5, 5, 5)) < 0.3
    found = metrics.cross_entropy(tf.sigmoid(logits).numpy(), voxels).mean()
    assert found == pytest.approx(float(losses.occupancy_loss(voxels, logits)), rel=1e-5)


def test_cross_entropy_of_certainty_is_finite():
    certain = np.array([[[[0.0, 1.0]]]], np.float32)
    right = metrics.cross_entropy(certain, np.array([[[[False, True]]]]))
    assert right == pytest.approx(0, abs=1e-7)
    wrong = metrics.cross_entropy(certain, np.array([[[[True, False]]]]))
    # From 0 down to the least normal float32, from 1 down to half a step below it.
    assert wrong == pytest.approx((126 + 25) * np.log(2) / 2)


def plain_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sum over thresholds, from high to low, of precision times the gain in recall."""
    scores, labels = scores.ravel(), labels.ravel()
    total = recall_before = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        precision = labels[chosen].mean()
        recall = labels[chosen].sum() / labels.sum()
        total += precision * (recall - recall_before)
        recall_before = recall
    return total


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_its_definition_ties_included(seed):
    probabilities, voxels = grids(seed, 1)
    if seed % 2:  # without ties too
        probabilities = np.random.default_rng(seed).permutation(voxels.size) / voxels.size
        probabilities = probabilities.reshape(voxels.shape)
    found = metrics.average_precision(probabilities, voxels)
    assert found == pytest.approx(plain_average_precision(probabilities, voxels), abs=1e-12)


def test_average_precision_does_not_depend_on_the_order_of_ties():
    scores = np.array([0.5, 0.5, 0.5, 0.5]).reshape(1, 2, 2)
    for labels in ([1, 0, 0, 0], [0, 0, 0, 1]):
        voxels = np.array(labels, bool).reshape(1, 2, 2)
        assert metrics.average_precision(scores, voxels) == pytest.approx(0.25)


def test_average_precision_has_closed_forms():
    scores = np.array([0.9, 0.8, 0.7, 0.6]).reshape(1, 2, 2)
    for labels, expected in (
        ([1, 1, 0, 0], 1.0),
        ([0, 0, 1, 1], (1 / 3 + 2 / 4) / 2),
        ([1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([1, 1, 1, 1], 1.0),
    ):
        voxels = np.array(labels, bool).reshape(1, 2, 2)
        assert metrics.average_precision(scores, voxels) == pytest.approx(expected)
    assert math.isnan(metrics.average_precision(scores, np.zeros((1, 2, 2), bool)))


# --- PSNR -----------------------------------------------------------------------------------------


def test_psnr_is_ten_log_ten_of_the_mean_squared_error_per_image():
    rng = np.random.default_rng(6)
    images = rng.random((2, 3, 8, 8, 3)).astype(np.float32)
    decoded = rng.random((2, 3, 8, 8, 3)).astype(np.float32)
    found = metrics.psnr(images, decoded)
    assert found.shape == (2, 3)
    for b, v in np.ndindex(2, 3):
        error = np.mean((images[b, v].astype(np.float64) - decoded[b, v]) ** 2)
        assert found[b, v] == pytest.approx(10 * math.log10(1 / error), abs=1e-4)
    expected = tf.image.psnr(images, decoded, 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_psnr_has_closed_forms_and_clips_what_was_decoded():
    image = np.zeros((1, 4, 4, 3), np.float32)
    assert metrics.psnr(image, image + 0.1) == pytest.approx(20, abs=1e-4)
    assert metrics.psnr(image, image + 0.5) == pytest.approx(20 * math.log10(2), abs=1e-4)
    assert metrics.psnr(image, image - 3) == 100  # below black is black
    assert metrics.psnr(image + 1, image + 7) == 100
    assert metrics.psnr(image, image + 7) == pytest.approx(0)


@pytest.mark.parametrize(("side", "scales"), [(16, 1), (32, 2), (64, 3), (128, 4), (176, 5)])
def test_ms_ssim_has_as_many_scales_as_its_window_fits(side, scales):
    weights = metrics.ms_ssim_weights(side)
    assert len(weights) == scales and sum(weights) == pytest.approx(1)
    ratios = np.array(weights) / np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    np.testing.assert_allclose(ratios, ratios[0])
