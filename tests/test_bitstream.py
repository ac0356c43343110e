"""Files and packets of codes: every byte, every flip, every cut, and what is refused."""

from __future__ import annotations

import dataclasses
import struct
import time
import tracemalloc

import fuzz_bitstream
import numpy as np
import pytest
import streams

from tfjoint import bitstream, config
from tfjoint.bitstream import BitstreamError, Codes, Packet, Source
from tfjoint.errors import UserError

pytest_plugins = ("trained",)

CODED = ("direct, mini", "implicit")
"""Geometries that are large enough to be smaller when deflated."""


def coder_of(codes: Codes) -> streams.Deflated:
    return streams.Deflated(codes.source)


def raw_payload(codes: Codes) -> bytes:
    """The payload by its definition, value by value."""
    if not codes.source.binary:
        return b"".join(struct.pack("<f", value) for value in codes.values.ravel().tolist())
    bits = "".join("1" if value == 1 else "0" for value in codes.values.ravel().tolist())
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def refusal(data: bytes, coder=None) -> str:
    with pytest.raises(BitstreamError) as refused:
        bitstream.decode(data, coder)
    return str(refused.value)


def resealed(body: bytes) -> bytes:
    return body + streams.crc(body)


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", streams.SOURCES)
def test_a_file_is_its_first_bytes_the_payload_and_the_crc(name):
    codes = streams.make(name)
    body = streams.first_bytes(codes) + raw_payload(codes)
    data = bitstream.encode(codes)
    assert data == resealed(body)
    assert len(data) == 17 + codes.raw_bytes == bitstream.OVERHEAD + len(raw_payload(codes))


def test_a_file_written_once_stays_readable():
    values = np.array([[1, 1, -1, 1, -1, -1, -1, 1, -1, 1, 1, -1]], np.int8)
    data = bytes.fromhex("54464a12 89abcdef 01 0c00 2000 d160 0662c6e7")
    source = Source("89abcdef", 32, 32, 12, iterative=False)
    assert bitstream.decode(data) == Codes(source, values)
    assert bitstream.encode(Codes(source, values)) == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("name", streams.SOURCES)
def test_codes_come_back(name, kind):
    codes = streams.make(name)
    found = bitstream.decode(kind(bitstream.encode(codes)))
    assert found == codes and hash(found) == hash(codes)
    assert found.values.dtype == codes.values.dtype
    np.testing.assert_array_equal(found.values, codes.values)


@pytest.mark.parametrize("name", CODED)
def test_a_coder_makes_the_payload_smaller_and_the_rest_is_as_long(name):
    codes = streams.make(name, likely=0.98)
    coder = coder_of(codes)
    data = bitstream.encode(codes, coder)
    payload = coder.encode(codes.values)
    assert data == resealed(streams.first_bytes(codes, coder.digest) + payload)
    assert len(payload) < codes.raw_bytes
    assert bitstream.decode(data, coder) == codes


@pytest.mark.parametrize("name", CODED)
def test_where_a_coder_saves_nothing_the_payload_is_raw(name):
    codes = streams.make(name, likely=0.5)
    assert bitstream.encode(codes, coder_of(codes)) == bitstream.encode(codes)
    assert bitstream.decode(bitstream.encode(codes), coder_of(codes)) == codes


def test_a_file_says_what_it_holds():
    codes = streams.make("direct, mini", likely=0.98)
    header = bitstream.inspect(bitstream.encode(codes))
    assert header == (codes.source, 5, 2, "raw")
    assert (header.shape, header.raw_bytes) == (codes.values.shape, codes.raw_bytes)
    coded = bitstream.inspect(bitstream.encode(codes, coder_of(codes)))
    assert coded.coding == "table" and coded.source.digest == "de0f1a7e"
    assert bitstream.inspect(bitstream.encode(streams.make("implicit"))).iterations is None


def test_raw_bytes_are_the_nominal_bits():
    assert streams.make("direct, paper").raw_bytes == 2 * 3 * 1024 // 8
    assert streams.make("implicit, 480:1").raw_bytes == 3 * 820 / 8 + 0.5
    assert streams.make("direct, floats").raw_bytes == 2 * 2 * (4 * 2 * 4) * 4


# --- Damage ---------------------------------------------------------------------------------------


def every_stream(name: str):
    """A file and a packet of a geometry, raw and coded, and what reads each."""
    codes = streams.make(name, likely=0.98)
    for coder in (None, coder_of(codes)) if name in CODED else (None,):
        yield bitstream.encode(codes, coder), lambda data, c=coder: bitstream.decode(data, c)
        packet = bitstream.encode_packet(codes.packets(517)[0], coder)
        yield (
            packet,
            lambda data, c=coder: bitstream.decode_packet(data, codes.source, c),
        )


@pytest.mark.parametrize("name", streams.SMALL)
def test_every_flipped_bit_is_noticed(name):
    for data, decode in every_stream(name):
        decode(data)
        for changed in streams.flips(data):
            with pytest.raises(BitstreamError):
                decode(changed)


@pytest.mark.parametrize("name", streams.SMALL)
def test_every_cut_is_noticed(name):
    for data, decode in every_stream(name):
        for length in range(len(data)):
            with pytest.raises(BitstreamError):
                decode(data[:length])
            with pytest.raises(BitstreamError):
                decode(data[len(data) - length :])


@pytest.mark.parametrize("name", streams.SMALL)
def test_whatever_is_appended_is_noticed(name):
    for data, decode in every_stream(name):
        # The third: the CRC-32 of any bytes with their own CRC-32 behind them is this number.
        for more in (b"\0", b"\xff", streams.crc(b"12" + streams.crc(b"12")), b"\0" * 4, data):
            with pytest.raises(BitstreamError):
                decode(data + more)


def test_damage_behind_a_crc_that_is_right_is_noticed():
    codes = streams.make("bits that fill no byte")
    data = bytearray(bitstream.encode(codes)[:-4])
    assert codes.values.size % 8 == 1  # 7 bits of the last byte are not used
    for unused in range(7):
        data[-1] ^= 1 << unused
        assert "not 0" in refusal(resealed(bytes(data)))
        data[-1] ^= 1 << unused
    data[-1] ^= 1 << 7
    assert bitstream.decode(resealed(bytes(data))).values.ravel()[-1] != codes.values.ravel()[-1]


@pytest.mark.parametrize("value", ["7fc00000", "7f800001", "7f800000", "ff800000", "3f800001"])
def test_floats_that_no_model_makes_are_refused(value):
    data = bitstream.encode(streams.make("direct, floats"))
    bits = bytes.fromhex(value)[::-1]
    assert "in [-1, 1]" in refusal(resealed(data[:-8] + bits))


@pytest.mark.parametrize("place", range(8, 13))
def test_a_number_that_is_0_is_refused(place):
    data = bytearray(bitstream.encode(streams.make("one bit"))[:-4])
    data[place] = 0
    assert "is 0" in refusal(resealed(bytes(data)))


@pytest.mark.parametrize(
    ("name", "flags"),
    [("one bit", 0x18), ("one bit", 0x90), ("direct, floats", 0x15), ("implicit, floats", 0x17)],
)
def test_flags_that_no_file_has_are_refused(name, flags):
    data = bytearray(bitstream.encode(streams.make(name))[:-4])
    data[3] = flags
    assert f"its fourth byte is {flags:#04x}" in refusal(resealed(bytes(data)))


@pytest.mark.parametrize(("place", "value"), [(3, 255), (4, 0)])
def test_numbers_that_no_packet_has_are_refused(place, value):
    codes = streams.make("one bit")
    data = bytearray(bitstream.encode_packet(codes.packets(0)[0])[:-4])
    head = bytearray(streams.first_bytes(codes))
    data[place] = value
    head[9] = data[4]
    with pytest.raises(BitstreamError, match=r"is damaged or not from .*: it starts with"):
        whole = bytes(data) + streams.crc(bytes(head + data))
        bitstream.decode_packet(whole, codes.source)


@pytest.mark.parametrize("longer", [0, 3])
def test_a_coded_payload_that_is_not_shorter_than_raw_is_refused(longer):
    """Such codes are sent raw: every file can be written in one way alone."""
    codes = streams.make("direct, mini")
    start = streams.first_bytes(codes, "01234567")
    data = resealed(start + bytes(codes.raw_bytes + longer))
    assert "take less than 320 bytes" in refusal(data, NeverAsked(codes.source))


def test_other_files_and_later_versions_say_so():
    data = bitstream.encode(streams.make("one bit"))
    assert "not a .tfj file: it starts with b'\\x89PN'" in refusal(b"\x89PNG\r\n\x1a\n" + data)
    assert "later version: its fourth byte is 0x20" in refusal(data[:3] + b"\x20" + data[4:])
    assert "at least 17 bytes. Received: 0" in refusal(b"")


class NeverAsked:
    """A coder that must be refused, or whose stream must, before it is asked."""

    digest = "01234567"

    def __init__(self, source: Source) -> None:
        self.source = source

    def encode(self, values):
        raise AssertionError("asked")

    decode = encode


def test_a_coded_payload_is_refused_without_its_tables():
    codes = streams.make("direct, mini", likely=0.98)
    data = bitstream.encode(codes, coder_of(codes))
    assert "none were given" in refusal(data)
    assert "tables de0f1a7e" in refusal(data, NeverAsked(codes.source))
    packet = bitstream.encode_packet(codes.packets(0)[0], coder_of(codes))
    for coder, message in ((None, "none were given"), (NeverAsked(codes.source), "damaged or not")):
        with pytest.raises(BitstreamError, match=message):
            bitstream.decode_packet(packet, codes.source, coder)


def test_a_coder_of_another_source_is_refused():
    codes = streams.make("direct, mini")
    for change in ({"digest": "00000000"}, {"channels": 8}, {"width": 32}):
        other = NeverAsked(dataclasses.replace(codes.source, **change))
        with pytest.raises(BitstreamError, match="tables are for"):
            bitstream.encode(codes, other)
        with pytest.raises(BitstreamError, match="tables are for"):
            bitstream.encode_packet(codes.packets(0)[0], other)
    packet = bitstream.encode_packet(codes.packets(0)[0], streams.Deflated(codes.source))
    packet = bytes([packet[0] | 4]) + packet[1:]
    for name in ("implicit", "direct, floats"):
        with pytest.raises(BitstreamError, match="tables are for"):
            bitstream.decode_packet(packet, codes.source, NeverAsked(streams.make(name).source))


@pytest.mark.parametrize("coded", [False, True])
def test_what_a_file_only_claims_is_never_allocated(coded):
    source = Source(streams.DIGEST, 4080, 4080, 255)
    start = b"TFJ" + bytes([0x14 if coded else 0x10]) + bytes.fromhex("01234567") + b"\xff" * 5
    data = resealed(start + bytes(1000))
    coder = NeverAsked(dataclasses.replace(source, height=64))
    tracemalloc.start()
    begin = time.process_time()
    try:
        refusal(data, coder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000 and time.process_time() - begin < 0.1


def test_mutants_end_in_codes_or_one_line_within_a_millisecond_and_a_megabyte():
    """More of them: python tests/fuzz_bitstream.py 1000000."""
    outcome = fuzz_bitstream.run(10_000, fuzz_bitstream.targets())
    refused = sum(outcome.refused.values())
    assert outcome.taken + refused == 10_000
    assert outcome.taken > 500 and refused > 7_000, outcome
    assert len(outcome.refused) > 18, outcome
    assert outcome.slowest[0] < 1, outcome
    assert outcome.largest[0] < 2**20, outcome


# --- Prefixes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["direct, mini", "bits that fill no byte", "direct, floats"])
def test_any_views_and_iterations_at_the_beginning_can_be_cut_off(name):
    codes = streams.make(name)
    data = bitstream.encode(codes)
    for views in range(1, codes.views + 1):
        for iterations in range(1, codes.iterations + 1):
            expected = Codes(codes.source, codes.values[:views, :iterations])
            assert codes.first(views, iterations) == expected
            assert bitstream.cut(data, views, iterations) == bitstream.encode(expected)
    assert bitstream.cut(data) == data
    assert bitstream.decode(bitstream.cut(data, views=1)).iterations == codes.iterations


def test_codes_without_iterations_are_cut_by_views():
    codes = streams.make("implicit, 480:1")
    cut = bitstream.cut(bitstream.encode(codes), views=2)
    np.testing.assert_array_equal(bitstream.decode(cut).values, codes.values[:2])
    with pytest.raises(BitstreamError, match="no iterations"):
        bitstream.cut(bitstream.encode(codes), iterations=1)


@pytest.mark.parametrize("wanted", [{"views": 0}, {"views": 6}, {"iterations": 3}])
def test_more_than_there_is_cannot_be_cut_off(wanted):
    with pytest.raises(BitstreamError, match=r"must be in \[1, [25]\]"):
        bitstream.cut(bitstream.encode(streams.make("direct, mini")), **wanted)


def test_a_coded_file_is_cut_by_decoding_it():
    codes = streams.make("direct, mini", likely=0.98)
    coder = coder_of(codes)
    data = bitstream.encode(codes, coder)
    with pytest.raises(BitstreamError, match="decode it with them"):
        bitstream.cut(data, views=2)
    cut = bitstream.encode(bitstream.decode(data, coder).first(views=2), coder)
    assert bitstream.decode(cut, coder) == codes.first(views=2)


# --- Packets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["direct, mini", "bits that fill no byte", "implicit, 480:1",
                                  "direct, floats", "implicit, floats"])  # fmt: skip
def test_a_packet_is_five_bytes_the_payload_and_a_crc_that_knows_the_source(name):
    codes = streams.make(name)
    for view, packet in enumerate(codes.packets(0x1234)):
        flags = streams.first_bytes(codes)[3] + 8 * (view == codes.views - 1)
        body = bytes([flags, 0x34, 0x12, view])
        body += bytes([codes.iterations]) if codes.iterations else b""
        body += raw_payload(packet.codes)
        whole = streams.first_bytes(packet.codes) + body
        data = bitstream.encode_packet(packet)
        assert data == body + streams.crc(whole)
        assert len(data) - packet.codes.raw_bytes == (9 if codes.iterations else 8)
        assert bitstream.decode_packet(data, codes.source) == packet


@pytest.mark.parametrize("name", CODED)
def test_coded_packets_are_decoded_alone(name):
    codes = streams.make(name, likely=0.99)
    coder = coder_of(codes)
    data = [bitstream.encode_packet(packet, coder) for packet in codes.packets(7)]
    assert all(
        len(packet) < len(bitstream.encode_packet(p)) for packet, p in zip(data, codes.packets(7))
    )
    for view in (3, 0):
        found = bitstream.decode_packet(data[view], codes.source, coder)
        np.testing.assert_array_equal(found.codes.values[0], codes.values[view])


def test_the_ground_sees_what_was_lost_repeated_or_overtaken():
    first, second = (streams.make("direct, mini", seed) for seed in (1, 2))
    link = [bitstream.encode_packet(p) for p in first.packets(65535) + second.packets(0)]
    arriving = [link[i] for i in (2, 0, 6, 4, 2, 5, 9)]
    packets = [bitstream.decode_packet(data, first.source) for data in arriving]
    assert [(p.object_number, p.view, p.last) for p in packets] == [
        (65535, 2, False),
        (65535, 0, False),
        (0, 1, False),
        (65535, 4, True),
        (65535, 2, False),
        (0, 0, False),
        (0, 4, True),
    ]
    there = bitstream.join(p for p in packets if p.object_number == 65535)
    np.testing.assert_array_equal(there.values, first.values[[0, 2, 4]])
    assert bitstream.join(reversed(second.packets(0))) == second


def test_joined_views_have_the_iterations_that_all_have():
    codes = streams.make("direct, mini")
    packets = codes.packets(0)
    packets[1] = packets[1]._replace(codes=packets[1].codes.first(iterations=1))
    assert bitstream.join(packets) == codes.first(iterations=1)


def test_packets_of_several_objects_or_none_are_not_joined():
    codes, other = streams.make("direct, mini"), streams.make("direct, paper")
    first = codes.packets(0)
    for packets in ([], [*first, *codes.packets(1)], [*first, *other.packets(0)]):
        with pytest.raises(BitstreamError, match="one object"):
            bitstream.join(packets)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "0123abcc"},
        {"height": 32, "width": 128},
        {"channels": 8},
        {"iterative": False, "channels": 256},
        {"binary": False, "channels": 1},
    ],
)
def test_a_packet_from_another_source_is_refused(change):
    codes = streams.make("direct, mini")
    data = bitstream.encode_packet(codes.packets(0)[0])
    other = dataclasses.replace(codes.source, **change)
    with pytest.raises(BitstreamError, match="damaged"):
        bitstream.decode_packet(data, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object_number": -1}, "object number"),
        ({"object_number": 65536}, "object number"),
        ({"view": 255}, r"view in \[0, 254\]"),
        ({"codes": streams.make("direct, mini")}, "one view. Received: 5"),
    ],
)
def test_a_packet_that_has_no_bytes_is_refused(change, message):
    packet = streams.make("direct, mini").packets(0)[0]._replace(**change)
    with pytest.raises(BitstreamError, match=message):
        bitstream.encode_packet(packet)


def test_all_views_of_the_longest_object_have_a_packet():
    packets = streams.make("most views and iterations").packets(0)
    data = bitstream.encode_packet(packets[-1])
    found = bitstream.decode_packet(data, packets[0].codes.source)
    assert isinstance(found, Packet) and (found.view, found.last) == (254, True)
    assert [p.last for p in packets] == [False] * 254 + [True]


# --- Values ---------------------------------------------------------------------------------------


def test_codes_never_change():
    source, views, iterations = streams.SOURCES["direct, mini"]
    values = np.ones((views, iterations, *source.shape), np.int8)
    codes = Codes(source, values)
    values[:] = -1
    assert (codes.values == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        codes.values[0] = -1
    with pytest.raises(dataclasses.FrozenInstanceError):
        codes.values = values
    with pytest.raises(ValueError, match="read-only"):
        bitstream.decode(bitstream.encode(codes)).values[0] = -1


def test_codes_are_equal_when_source_and_every_bit_are():
    codes = streams.make("direct, floats")
    zero = np.zeros_like(codes.values)
    assert Codes(codes.source, zero) != Codes(codes.source, -zero)
    assert Codes(codes.source, zero) == Codes(codes.source, zero)
    other = dataclasses.replace(codes.source, digest="00000000")
    assert Codes(other, codes.values) != codes
    assert codes != codes.first(iterations=1) and codes != "codes"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((5, 2, 4, 4, 16), np.int32), r"int8 \[V, T, 4, 4, 16\]. Received: int32"),
        (np.ones((5, 2, 4, 4, 16), np.float32), "Received: float32"),
        (np.ones((5, 2, 4, 16, 4), np.int8), r"Received: int8 \[5, 2, 4, 16, 4\]"),
        (np.ones((5, 4, 4, 16), np.int8), "Received"),
        (np.ones((1, 5, 2, 4, 4, 16), np.int8), "Received"),
        (np.ones((0, 2, 4, 4, 16), np.int8), r"in \[1, 255\]. Received: \[0, 2\]"),
        (np.ones((256, 2, 4, 4, 16), np.int8), r"Received: \[256, 2\]"),
        (np.zeros((5, 2, 4, 4, 16), np.int8), r"-1 or \+1"),
        (np.full((5, 2, 4, 4, 16), -128, np.int8), r"-1 or \+1"),
    ],
)
def test_codes_that_are_not_of_their_source_are_refused(values, message):
    with pytest.raises(BitstreamError, match=message):
        Codes(streams.SOURCES["direct, mini"][0], values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0000001, 2])
def test_floats_out_of_range_are_refused(value):
    source = streams.SOURCES["implicit, floats"][0]
    with pytest.raises(BitstreamError, match=r"in \[-1, 1\]"):
        Codes(source, np.array([[0.5] * 59 + [value]], np.float32))
    Codes(source, np.array([[-1.0, -0.0, 1.0] * 20], np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "0123ABCD"}, "8 hexadecimal"),
        ({"digest": "0123abc"}, "8 hexadecimal"),
        ({"height": 40}, r"height must be a multiple of 16 in \[16, 4080\]. Received: 40"),
        ({"width": 4096}, "width must be"),
        ({"height": 0}, "height must be"),
        ({"channels": 256}, r"channels must be in \[1, 255\]. Received: 256"),
        ({"channels": 0}, "channels must be"),
        ({"iterative": False, "height": 70000, "width": 70000}, r"in \[1, 65535\]"),
        ({"iterative": False, "width": 32}, "square"),
    ],
)
def test_a_source_that_has_no_bytes_is_refused(change, message):
    with pytest.raises(BitstreamError, match=message):
        dataclasses.replace(streams.SOURCES["direct, mini"][0], **change)


# --- Exports --------------------------------------------------------------------------------------


def description(**given) -> dict:
    """What an export of a config says of itself, as far as codes need it."""
    settings = config.resolve({"profile": "mini", **given})[0]
    return {"config": settings.to_json(), "weights_sha256": "fedcba98" * 8}


@pytest.mark.parametrize("binarizer", [True, False])
@pytest.mark.parametrize("model", ["compression", "separate", "sequential", "direct", "implicit"])
def test_a_source_has_the_sizes_of_its_config(model, binarizer):
    said = description(model=model, binarizer=binarizer)
    settings = config.Config.from_json(said["config"])
    source = Source.of_export(said)
    assert (source.digest, source.height, source.width) == ("fedcba98", 64, 64)
    assert int(np.prod(source.shape)) == settings.code_size
    iterations = None if model == "implicit" else 3
    bits = settings.bits_per_view(iterations or 1)
    assert 8 * source.raw_bytes(5, iterations) == 5 * bits


def test_a_codec_alone_has_views_of_other_sizes_too():
    source = Source.of_export(description(model="compression"), (48, 80))
    assert source.shape == (3, 5, 16)
    with pytest.raises(BitstreamError, match="takes views of 64 x 64 pixels"):
        Source.of_export(description(model="direct"), (48, 80))
    assert Source.of_export(description(model="direct"), (64, 64)).shape == (4, 4, 16)


@pytest.mark.parametrize("model", ["reconstruction", "jpeg2000"])
def test_a_system_without_code_has_no_source(model):
    with pytest.raises(UserError, match=f"model {model} has no code"):
        Source.of_export(description(model=model))


@pytest.mark.slow
def test_the_codes_of_an_export_give_the_same_shape_behind_a_link(exported):
    import tensorflow as tf

    from tfjoint import export

    signatures = tf.saved_model.load(str(exported)).signatures
    source = Source.of_export(export.read_description(exported))
    images = np.random.default_rng(0).random((1, 3, source.height, source.width, 3), np.float32)
    sent = signatures["encode"](images=tf.constant(images), iterations=tf.constant(2))["codes"]

    codes = Codes(source, sent.numpy()[0])
    data = bitstream.encode(codes)
    assert len(data) == 17 + 3 * 2 * source.height * source.width // 16 // 8
    packets = [bitstream.encode_packet(packet) for packet in codes.packets(0)]
    joined = bitstream.join(bitstream.decode_packet(packet, source) for packet in packets)
    for received in (bitstream.decode(data), joined):
        np.testing.assert_array_equal(received.values, sent.numpy()[0])
        shapes = [
            signatures["reconstruct"](codes=tf.constant(values))["occupancy"].numpy()
            for values in (sent, received.values[np.newaxis])
        ]
        np.testing.assert_array_equal(*shapes)
