"""Tables of probabilities and what they save; the same bytes everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
import tracemalloc
from fractions import Fraction

import fuzz_bitstream
import numpy as np
import pytest
import runs
import streams

from tfjoint import bitstream, coding
from tfjoint.bitstream import BitstreamError, Codes, Source
from tfjoint.coding import CodingError, Tables
from tfjoint.errors import UserError

BINARY = [name for name, (source, _, _) in streams.SOURCES.items() if source.binary]
CODED = [name for name in streams.SMALL if name in BINARY and name != "one bit"]


@pytest.fixture(scope="module")
def coder():
    """The range coder; a test that asks for it cannot run where it is not installed."""
    try:
        return coding.range_coder()
    except CodingError as error:
        pytest.skip(str(error))


def shape_of(name: str) -> tuple[int, ...]:
    """Of the tables of a geometry."""
    source, _, iterations = streams.SOURCES[name]
    return (*([iterations] if source.iterative else []), *source.shape)


def arithmetic(name: str) -> tuple[Codes, Tables]:
    """Codes and tables that are made without any random generator."""
    source, views, _ = streams.SOURCES[name]
    shape = shape_of(name)
    number = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    ones = (number * 40503 + 977) % 65535 + 1
    draws = (np.arange(views).reshape(-1, *[1] * len(shape)) * 30011 + number * 50021) % 65536
    values = np.where(draws < ones, 1, -1).astype(np.int8)
    return Codes(source, values), Tables(source, ones.astype(np.uint16))


def ideal_bits(codes: Codes, tables: Tables) -> float:
    """The information in codes, by the definition."""
    probability = np.where(codes.values > 0, tables.ones / 65536, 1 - tables.ones / 65536)
    return float(-np.log2(probability).sum())


# --- Counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["direct, mini", "bits that fill no byte", "implicit, 480:1"])
def test_tables_hold_the_smoothed_share_of_every_bit(name):
    training = [streams.make(name, seed, likely=0.7) for seed in range(6)]
    tables = coding.count(iter(training))
    assert tables.source == training[0].source
    assert tables.ones.dtype == np.uint16 and tables.ones.shape == shape_of(name)
    rng = np.random.default_rng(0)
    for where in zip(*(rng.integers(side, size=50) for side in tables.ones.shape)):
        bits = [view[where] for codes in training for view in codes.values]
        share = Fraction(bits.count(1) + 1, len(bits) + 2)
        assert tables.ones[where] == int(share * 65536)


def test_no_bit_is_impossible_however_often_it_was_not_seen():
    source = streams.SOURCES["one bit"][0]
    for value, expected in ((1, 65535), (-1, 1)):
        codes = Codes(source, np.full((255, 1, 1, 1, 1), value, np.int8))
        assert coding.count([codes] * 600).ones.tolist() == [[[[expected]]]]


def test_codes_of_several_kinds_or_none_have_no_tables():
    codes, other = streams.make("direct, mini"), streams.make("direct, paper")
    with pytest.raises(CodingError, match="no codes"):
        coding.count([])
    for different in (other, codes.first(iterations=1)):
        with pytest.raises(CodingError, match="one kind"):
            coding.count([codes, different])


def test_floats_have_no_tables():
    with pytest.raises(CodingError, match="floats have no tables: send them raw"):
        coding.count([streams.make("direct, floats")])


@pytest.mark.parametrize(
    "ones",
    [
        np.ones((2, 4, 4, 16), np.int32),
        np.zeros((2, 4, 4, 16), np.uint16),
        np.ones((4, 4, 16), np.uint16),
        np.ones((2, 4, 16, 4), np.uint16),
        np.ones((0, 4, 4, 16), np.uint16),
    ],
)
def test_probabilities_that_are_not_of_the_source_are_refused(ones):
    with pytest.raises(CodingError, match="must be positive uint16"):
        Tables(streams.SOURCES["direct, mini"][0], ones)


def test_tables_never_change():
    ones = np.full((2, 4, 4, 16), 7, np.uint16)
    tables = Tables(streams.SOURCES["direct, mini"][0], ones)
    ones[:] = 8
    assert (tables.ones == 7).all()
    with pytest.raises(ValueError, match="read-only"):
        tables.ones[0] = 8


# --- Coding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BINARY)
def test_coded_codes_come_back(name, coder):
    for codes, tables in (
        arithmetic(name),
        (streams.make(name, likely=0.8), arithmetic(name)[1]),  # unlikely ones: raw
    ):
        assert bitstream.decode(bitstream.encode(codes, tables), tables) == codes
        for packet in codes.packets(3)[:5]:
            data = bitstream.encode_packet(packet, tables)
            assert bitstream.decode_packet(data, codes.source, tables) == packet


@pytest.mark.parametrize("name", BINARY)
def test_a_payload_is_as_long_as_the_information_in_it(name, coder):
    codes, tables = arithmetic(name)
    payload = tables.encode(codes.values)
    assert abs(8 * len(payload) - ideal_bits(codes, tables)) < 16
    assert tables.decode(payload, codes.values.shape).tobytes() == codes.values.tobytes()


@pytest.mark.parametrize("least", [1, 100, 20_000])
@pytest.mark.parametrize("unlikely", [0, 0.1, 0.5, 1])
def test_rounding_of_long_streams_is_not_taken_for_damage(least, unlikely, coder):
    """At the most extreme probabilities, where the coder rounds most: half a million bits."""
    rng = np.random.default_rng(7)
    source = Source(streams.DIGEST, 64, 64, 2048, iterative=False)
    ones = (2 ** rng.uniform(np.log2(least), 15, source.shape)).astype(np.uint16)
    ones = np.where(rng.random(source.shape) < 0.5, ones, 2**16 - ones.astype(np.int32))
    tables = Tables(source, ones.clip(1, 2**16 - 1).astype(np.uint16))
    likely = np.where(tables.ones >= 2**15, 1, -1).astype(np.int8)
    values = np.where(rng.random((250, *source.shape)) < unlikely, -likely, likely)
    assert np.array_equal(tables.decode(tables.encode(values), values.shape), values)


def test_tables_of_the_training_set_shorten_files_and_packets(coder):
    # Every bit has a likely value, and takes it in 9 of 10 views.
    source, views, iterations = streams.SOURCES["direct, mini"]
    rng = np.random.default_rng(3)
    likely = rng.choice([-1, 1], (1, iterations, *source.shape)).astype(np.int8)
    taken = rng.random((60, views, *likely.shape[1:])) < 0.9
    objects = [Codes(source, values) for values in np.where(taken, likely, -likely)]
    tables = coding.count(objects[:50])
    test = objects[50:]
    entropy = -0.9 * np.log2(0.9) - 0.1 * np.log2(0.1)
    files = [len(bitstream.encode(codes, tables)) - 17 for codes in test]
    assert np.mean(files) == pytest.approx(entropy * test[0].raw_bytes, rel=0.05)
    packets = [
        [len(bitstream.encode_packet(p, tables)) - 9 for p in codes.packets(0)] for codes in test
    ]
    # A file is one run of the coder: it rounds up to a byte once, not for every view.
    assert np.mean(files) <= np.mean(np.sum(packets, axis=1)) < np.mean(files) + views


# Made in the environment of TensorFlow 2.17; that of 2.14 makes and reads the same.
STORED = {
    "bits that fill no byte": (
        "89578b87",
        """
        54464a1489578b870307030503fcf203119b9b3c19563bbc6cd446051d195a1fd8abf7bb7576813d
        1b3c7ea5ce6b27a41a65973bc3837aa962fa6f0b57ac98ed86e54eab194e1acd6cf3621b4cb76bff
        5826e939d7dde6141f6ae9d8bff436039e49f17cad
        """,
    ),
    "implicit": (
        "fd2a5ef9",
        """
        54464a16fd2a5ef90500014000fcf203119b9b3c19563bbc6cd446051d195a1fd8ac02dfd5e209d6
        ee63b8e44a8d46489cab470f8f5183539ed1eeca19c07c8450a987dc56b4df39b377d3d0425cbc3c
        ea6aa38417df724fadf466cd7017e35769b88cfd5d6949f3fe9354205dbc130fb2b2daeb6184dcae
        fe0a00e4303ce6b4b3cafb96
        """,
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_codes_coded_elsewhere_are_decoded_here_and_coded_alike(name, coder):
    codes, tables = arithmetic(name)
    digest, data = STORED[name]
    assert tables.digest == digest
    stored = bytes.fromhex(data)
    assert stored[3] & 4, "coded, not raw"
    assert bitstream.decode(stored, tables) == codes
    assert bitstream.encode(codes, tables) == stored


# What a process of its own does with the file and the packets of an object: it reads raw codes and
# writes them coded, or the other way round.
PROCESS = """
import sys
from pathlib import Path
from tfjoint import bitstream, coding
tables = coding.read(sys.argv[2])
before, after = (tables, None) if sys.argv[1] == "decode" else (None, tables)
codes = bitstream.decode(Path(sys.argv[3]).read_bytes(), before)
for stream in Path(sys.argv[3]).parent.glob("packet-*"):
    packet = bitstream.decode_packet(stream.read_bytes(), tables.source, before)
    Path(sys.argv[4], stream.name).write_bytes(bitstream.encode_packet(packet, after))
Path(sys.argv[4], "object.tfj").write_bytes(bitstream.encode(codes, after))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["direct, mini", "implicit"])
def test_what_one_process_codes_another_decodes_to_the_same_bits(name, coder, tmp_path):
    codes, tables = arithmetic(name)
    coding.write(tmp_path / "tables.json", tables)
    streams_of = {
        folder: {
            "object.tfj": bitstream.encode(codes, used),
            **{f"packet-{p.view}": bitstream.encode_packet(p, used) for p in codes.packets(7)},
        }
        for folder, used in (("raw", None), ("coded", tables))
    }
    for folder in ("raw", "coded", "made raw", "made coded"):
        (tmp_path / folder).mkdir()
        for file, data in streams_of.get(folder, {}).items():
            (tmp_path / folder / file).write_bytes(data)
    # Each in a process of its own, and hashes of text that differ from this one's.
    for way, given, made in (("encode", "raw", "coded"), ("decode", "coded", "raw")):
        arguments = [way, tmp_path / "tables.json", tmp_path / given / "object.tfj"]
        result = runs.finish(
            [sys.executable, "-c", PROCESS, *map(str, arguments), str(tmp_path / f"made {made}")],
            PYTHONHASHSEED="7",
        )
        assert result.returncode == 0, result.stderr
        found = {file: (tmp_path / f"made {made}" / file).read_bytes() for file in streams_of[made]}
        assert found == streams_of[made]


def test_the_first_iterations_of_coded_codes_are_codes(coder):
    codes, tables = arithmetic("direct, paper")
    for iterations in (1, 2, 3):
        first = codes.first(iterations=iterations)
        data = bitstream.encode(first, tables)
        assert bitstream.decode(data, tables) == first
    whole = bitstream.decode(bitstream.encode(codes, tables), tables)
    assert whole.first(iterations=1) == codes.first(iterations=1)


def test_more_iterations_than_were_counted_cannot_be_coded(coder):
    tables = arithmetic("direct, mini")[1]
    source = tables.source
    values = np.ones((1, 3, *source.shape), np.int8)
    with pytest.raises(BitstreamError, match=r"up to 2 iterations\. Received: 3"):
        bitstream.encode(Codes(source, values), tables)
    with pytest.raises(BitstreamError, match=r"up to 2 iterations\. Received: 3"):
        tables.decode(b"", values.shape)


# --- Damage ---------------------------------------------------------------------------------------


def sealed(body: bytes) -> bytes:
    return body + streams.crc(body)


@pytest.mark.parametrize("name", CODED)
def test_a_payload_that_is_not_of_codes_is_refused(name, coder):
    """With a CRC-32 that is right: another payload is of other codes, or of none."""
    codes, tables = arithmetic(name)
    data = bitstream.encode(codes, tables)
    assert bitstream.inspect(data).coding == "table"
    body, refused = data[:-4], 0
    payloads = [*streams.flips(body[13:]), body[13:-1], body[13:-5], body[13:] + b"\0", b""]
    for payload in payloads:
        try:
            found = bitstream.decode(sealed(body[:13] + payload), tables)
        except BitstreamError:
            refused += 1
        else:
            assert found != codes
            assert bitstream.encode(found, tables) == sealed(body[:13] + payload)
    assert refused


def test_views_that_are_only_claimed_are_never_decoded(coder):
    source = Source(streams.DIGEST, 64, 64, 16)
    rng = np.random.default_rng(0)
    ones = np.full((8, *source.shape), 60000, np.uint16)
    tables = Tables(source, ones)
    codes = Codes(source, np.where(rng.random((2, 8, 4, 4, 16)) < 0.9, 1, -1).astype(np.int8))
    data = bytearray(bitstream.encode(codes, tables)[:-4])
    data[8] = 255
    claimed = sealed(bytes(data))
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(BitstreamError, match="take at least"):
            bitstream.decode(claimed, tables)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000 and time.process_time() - begin < 0.1


def test_the_bound_on_claims_spares_the_cheapest_codes(coder):
    """What is most likely everywhere is shortest, and must still be taken."""
    for name in ("most views and iterations", "most channels", "implicit, most"):
        source, views, _ = streams.SOURCES[name]
        for likely in (65535, 1, 60000, 33000):
            tables = Tables(source, np.full(shape_of(name), likely, np.uint16))
            value = 1 if likely > 32768 else -1
            codes = Codes(source, np.full((views, *shape_of(name)), value, np.int8))
            assert bitstream.decode(bitstream.encode(codes, tables), tables) == codes


def test_codes_of_other_tables_are_refused(coder):
    codes, tables = arithmetic("direct, mini")
    ones = tables.ones.copy()
    ones[0, 0, 0, 0] += 1
    other = Tables(tables.source, ones)
    with pytest.raises(BitstreamError, match=f"tables {tables.digest}.*use those of the export"):
        bitstream.decode(bitstream.encode(codes, tables), other)
    packet = bitstream.encode_packet(codes.packets(0)[0], tables)
    with pytest.raises(BitstreamError, match=f"damaged or not from .* tables {other.digest}"):
        bitstream.decode_packet(packet, codes.source, other)


@pytest.mark.slow
def test_mutants_of_coded_streams_end_in_codes_or_one_line(coder):
    outcome = fuzz_bitstream.run(4_000, fuzz_bitstream.coded_targets(coding.count))
    assert outcome.taken and any("not one of codes" in text for text in outcome.refused), outcome
    assert outcome.slowest[0] < 10 and outcome.largest[0] < 2**20, outcome


# --- Files of tables ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BINARY)
def test_tables_come_back_from_their_file(name, tmp_path):
    tables = arithmetic(name)[1]
    coding.write(tmp_path / "tables.json", tables)
    found = coding.read(tmp_path / "tables.json")
    assert (found.source, found.digest) == (tables.source, tables.digest)
    np.testing.assert_array_equal(found.ones, tables.ones)
    coding.write(tmp_path / "again.json", found)
    files = [(tmp_path / name).read_bytes() for name in ("tables.json", "again.json")]
    assert files[0] == files[1]


def test_the_digest_is_of_source_and_probabilities():
    tables = arithmetic("direct, mini")[1]
    source = {"binary": True, "channels": 16, "digest": "0123abcd", "height": 64,
              "iterative": True, "width": 64}  # fmt: skip
    text = json.dumps([1, source, [2, 4, 4, 16]]).encode()
    numbers = b"".join(int(one).to_bytes(2, "little") for one in tables.ones.ravel())
    assert tables.digest == hashlib.sha256(text + numbers).hexdigest()[:8]
    other = dataclasses.replace(tables.source, digest="0123abce")
    assert Tables(other, tables.ones).digest != tables.digest


def test_every_flipped_bit_of_a_file_of_tables_is_noticed(tmp_path):
    path = tmp_path / "tables.json"
    source = Source(streams.DIGEST, 16, 16, 3)
    coding.write(path, Tables(source, np.array([[[[1, 300, 65535]]]], np.uint16)))
    data = path.read_bytes()
    for changed in [*streams.flips(data), data[:-3], b"", b"[]", b"null", b'{"format": 1}']:
        path.write_bytes(changed)
        with pytest.raises(CodingError, match="does not hold tables"):
            coding.read(path)


@pytest.mark.parametrize("one", [0, -1, 65536, 2**70, 1.5, "1", None, []])
def test_probabilities_that_no_table_has_are_refused(one, tmp_path):
    path = tmp_path / "tables.json"
    coding.write(path, Tables(Source(streams.DIGEST, 16, 16, 1), np.ones((1, 1, 1, 1), np.uint16)))
    found = json.loads(path.read_text())
    found["ones"] = [[[[one]]]]
    path.write_text(json.dumps(found))
    with pytest.raises(CodingError, match="does not hold tables"):
        coding.read(path)


def test_a_file_that_is_missing_or_of_a_later_format_says_so(tmp_path):
    with pytest.raises(CodingError, match="No such file"):
        coding.read(tmp_path / "tables.json")
    (tmp_path / "tables.json").write_text('{"format": 2}')
    with pytest.raises(CodingError, match="format 2, this tfjoint reads 1"):
        coding.read(tmp_path / "tables.json")


# --- Without the coder ----------------------------------------------------------------------------


@pytest.fixture
def no_coder(monkeypatch):
    for name in ("tensorflow_compression_ops", "tensorflow_compression"):
        monkeypatch.setitem(sys.modules, name, None)
    coding.range_coder.cache_clear()
    yield
    coding.range_coder.cache_clear()


def test_without_the_coder_one_line_says_what_to_install(no_coder):
    codes, tables = arithmetic("direct, mini")
    for attempt in (
        lambda: bitstream.encode(codes, tables),
        lambda: tables.decode(bytes(codes.raw_bytes - 1), codes.values.shape),
    ):
        with pytest.raises(UserError, match=r"use raw, or install tfjoint\[tfc\]") as refused:
            attempt()
        assert "\n" not in str(refused.value)


def test_where_no_coder_exists_the_line_names_the_environments_that_have_one():
    try:
        coding.range_coder()
    except CodingError as error:
        assert "tfjoint[tfc] with TensorFlow 2.17, tfjoint[tf214] with 2.14" in str(error)
    else:
        pytest.skip("the range coder is installed")


def test_without_the_coder_raw_streams_are_read_and_tables_counted(no_coder):
    codes = streams.make("direct, mini")
    tables = coding.count([codes])
    assert bitstream.decode(bitstream.encode(codes), tables) == codes
