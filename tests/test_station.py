"""The ground station: shapes from packets that come late, twice, damaged, mixed, or never."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tfjoint import bitstream, export, split, station
from tfjoint.bitstream import Codes, Packet, Source
from tfjoint.station import DAMAGED, REFINED, REPEATED, Station, StationError

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("own_determinism")

SOURCE = Source("01234567", 32, 32, 4)
"""Of codes [V, T, 2, 2, 4]."""


class Sum:
    """A `refine` that adds: the shape is the sum of the bits of all views, at any order."""

    structured_input_signature = (
        (),
        {name: tf.TensorSpec([None, 1, 1, 1, 1], name=name) for name in ("hidden", "cell")},
    )

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, codes, hidden, cell):
        self.calls += 1
        total = cell + tf.reduce_sum(tf.cast(codes, tf.float32))
        return {"occupancy": tf.reshape(total, [1, 1, 1, 1]), "hidden": hidden, "cell": total}


def codes(views: int = 3, iterations: int = 2, seed: int = 0, source: Source = SOURCE) -> Codes:
    shape = (views, *([iterations] if source.iterative else []), *source.shape)
    bits = np.random.default_rng(seed).integers(0, 2, shape)
    return Codes(source, (2 * bits - 1).astype(np.int8))


def packets(number: int, of: Codes) -> list[bytes]:
    return [bitstream.encode_packet(packet) for packet in of.packets(number)]


def value(occupancy: np.ndarray | None) -> float:
    assert occupancy is not None
    return float(occupancy.item())


@pytest.fixture
def summing() -> Station:
    return Station(Sum(), SOURCE, objects=3)


@pytest.fixture(scope="module")
def trained(exported, tmp_path_factory) -> SimpleNamespace:
    """A station of a trained ground end, and what the whole export makes."""
    ends = split.split(exported, tmp_path_factory.mktemp("ends"))
    loaded = tf.saved_model.load(str(exported))
    source = Source.of_export(export.read_description(exported))
    shown = np.random.default_rng(1).random((1, 4, 32, 32, 3), np.float32)
    made = loaded.signatures["encode"](images=shown, iterations=tf.constant(2))["codes"]
    return SimpleNamespace(
        ground=ends[1],
        codes=Codes(source, made.numpy()[0]),
        reconstruct=lambda values: loaded.signatures["reconstruct"](
            codes=tf.constant(values[np.newaxis])
        )["occupancy"].numpy()[0],
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 0)])
def test_the_shape_is_that_of_all_arrived_views_at_once(trained, order):
    ground = Station.of_export(trained.ground)
    sent = packets(9, trained.codes)
    for count, view in enumerate(order, start=1):
        arrival = ground.receive(sent[view])
        assert (arrival.kind, arrival.object_number, arrival.view) == (REFINED, 9, view)
        assert arrival.arrived == order[:count]
        expected = trained.reconstruct(trained.codes.values[list(order[:count])])
        np.testing.assert_allclose(arrival.occupancy, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(ground.shape(9), arrival.occupancy)


def test_an_export_that_cannot_refine_is_refused(trained):
    camera = trained.ground.parents[1] / "camera" / "1"
    with pytest.raises(StationError, match="it has encode, encode_files: give") as caught:
        Station.of_export(camera)
    assert "\n" not in str(caught.value)


def test_objects_whose_packets_are_mixed_stay_apart(summing):
    sent = {number: codes(seed=number) for number in (1, 2, 3)}
    for group in zip(*(packets(number, of) for number, of in sent.items())):
        for data in group:
            summing.receive(data)
    for number, of in sent.items():
        assert value(summing.shape(number)) == of.values.sum()


def test_a_view_counts_once_also_with_other_iterations(summing):
    of = codes()
    first = summing.receive(packets(0, of)[0])
    for again in (of, of.first(iterations=1)):
        arrival = summing.receive(packets(0, again)[0])
        assert arrival.kind == REPEATED and arrival.arrived == (0,)
        assert value(arrival.occupancy) == value(first.occupancy) == of.values[0].sum()
    assert summing._refine.calls == 1


def test_it_is_complete_when_the_last_view_and_all_before_it_are_there(summing):
    first, second, last = packets(0, codes())
    assert not summing.receive(first).complete
    late = summing.receive(last)
    assert late.total == 3 and not late.complete
    assert summing.receive(second).complete


def test_a_number_that_is_used_again_is_a_new_object(summing):
    old, new = codes(seed=1), codes(seed=2)
    for data in packets(5, old):
        summing.receive(data)
    arrival = summing.receive(packets(5, new)[1])
    assert arrival.kind == REFINED and arrival.arrived == (1,) and arrival.total is None
    assert value(arrival.occupancy) == new.values[1].sum()


def test_what_is_damaged_changes_nothing(summing):
    of = codes()
    first, second, _ = packets(0, of)
    summing.receive(first)
    for position in range(8 * len(second)):
        damaged = bytearray(second)
        damaged[position // 8] ^= 1 << position % 8
        arrival = summing.receive(damaged)
        assert arrival.kind == DAMAGED and arrival.occupancy is None and arrival.reason
        assert arrival.object_number is None
    for length in range(len(second)):
        assert summing.receive(second[:length]).kind == DAMAGED
    assert summing.objects == (0,)
    assert value(summing.shape(0)) == of.values[0].sum()
    assert summing.receive(second).arrived == (0, 1)


def test_noise_is_damaged_and_nothing_is_kept_of_it(summing):
    rng = np.random.default_rng(0)
    for _ in range(2000):
        assert summing.receive(rng.bytes(rng.integers(0, 40))).kind == DAMAGED
    assert summing.objects == ()


def test_packets_of_another_model_are_none(summing):
    other = dataclasses.replace(SOURCE, digest="76543210")
    arrival = summing.receive(packets(0, codes(source=other))[0])
    assert arrival.kind == DAMAGED and "not from 01234567" in arrival.reason


def test_the_object_that_has_waited_longest_is_forgotten_first(summing):
    of = codes()
    for number in (1, 2, 3):
        summing.receive(packets(number, of)[0])
    summing.receive(packets(1, of)[0])  # repeated, but a sign of life
    summing.receive(packets(4, of)[0])
    assert summing.objects == (3, 1, 4)
    assert summing.shape(2) is None
    # What comes late for it begins again.
    assert summing.receive(packets(2, of)[1]).arrived == (1,)
    for number in range(5000, 5500):
        summing.receive(packets(number, of)[0])
    assert summing.objects == (5497, 5498, 5499)


def test_forgetting_is_no_mistake(summing):
    summing.forget(3)
    with pytest.raises(StationError, match="keeps at least 1 object"):
        Station(Sum(), SOURCE, objects=0)


def test_codes_without_iterations_arrive_as_well():
    source = Source("01234567", 32, 32, 64, iterative=False)
    of = codes(source=source)
    ground = Station(Sum(), source)
    arrivals = [ground.receive(data) for data in packets(0, of)]
    assert arrivals[-1].complete and value(arrivals[-1].occupancy) == of.values.sum()


def test_the_zero_state_has_the_shape_that_the_signature_says():
    state = station.zero_state(Sum(), objects=2)
    assert {name: tuple(part.shape) for name, part in state.items()} == {
        "hidden": (2, 1, 1, 1, 1),
        "cell": (2, 1, 1, 1, 1),
    }
    assert not any(np.any(part) for part in state.values())


def test_a_packet_may_be_given_as_one(summing):
    of = codes()
    assert summing.take(Packet(1, 0, False, of.first(views=1))).arrived == (0,)
