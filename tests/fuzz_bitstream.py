"""Mutated streams: each ends in codes or in one line, in bounded time and memory.

    python tests/fuzz_bitstream.py 1000000

Half of the mutants get a CRC-32 that is right, so that the checks behind it are reached. A mutant
that is taken must be what encoding its codes gives: there is no second way to write anything.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import os
import re
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import streams

from tfjoint import bitstream

BLOCK = 500
SLOW_MS = 0.1
"""Milliseconds below which a reading needs no second look."""
READINGS, TURN = 20, 200
"""How often the slowest is read, and after how many others again."""
LEAST_FILE, LEAST_PACKET = 17, 8
_NUMBERS = re.compile(r"\b[0-9a-f]{8,}\b|\d+|b[\"'].*?[\"'](?=,)")


@dataclasses.dataclass(frozen=True)
class Target:
    """What mutants are made of, and what is to read them."""

    name: str
    seeds: Sequence[bytes]
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    repair: Callable[[bytes], bytes]
    """Gives a stream the CRC-32 that it should have."""


@dataclasses.dataclass
class Outcome:
    """What became of all mutants."""

    taken: int = 0
    refused: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    """By how the message begins, its numbers left out."""
    slowest: tuple[float, str] = (SLOW_MS, "all")
    """Milliseconds of processor time, the best of several readings, and which."""
    largest: tuple[int, str] = (0, "")
    """Bytes that Python and NumPy allocated at most, and which."""

    def __str__(self) -> str:
        most = "\n".join(f"  {count:9d}  {text}" for text, count in self.refused.most_common())
        return (
            f"{self.taken + sum(self.refused.values())} mutants: {self.taken} taken, refused:\n"
            f"{most}\nslowest {self.slowest[0]:.3f} ms ({self.slowest[1]}), "
            f"largest {self.largest[0]} bytes ({self.largest[1]})"
        )


def file_target(name: str, coder=None, count: int = 8, **making) -> Target:
    """Files of a geometry; with a coder, coded ones beside raw ones."""
    seeds = [
        bitstream.encode(streams.make(name, seed, **making), coder if seed % 4 else None)
        for seed in range(count)
    ]
    return Target(
        f"file, {name}{', coded' * bool(coder)}",
        seeds,
        lambda data: (bitstream.decode(data, coder), bitstream.inspect(data).coding),
        lambda found: bitstream.encode(found[0], coder if found[1] == "table" else None),
        lambda data: data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little"),
    )


def packet_target(name: str, coder=None, count: int = 8, **making) -> Target:
    """Packets of a geometry; with a coder, coded ones beside raw ones."""
    codes = [streams.make(name, seed, **making) for seed in range(count)]
    source = codes[0].source

    def repair(data: bytes) -> bytes:
        # What the CRC-32 covers beside the packet, as far as the packet itself says it.
        coded = coder.digest if coder and data[0] & 4 else None
        like = codes[0].first(views=1)
        head = bytearray(streams.first_bytes(like, coded))
        if source.iterative:
            head[9] = data[4]
        body = data[:-4]
        return body + zlib.crc32(bytes(head) + body).to_bytes(4, "little")

    return Target(
        f"packet, {name}{', coded' * bool(coder)}",
        [
            bitstream.encode_packet(packet, coder if seed % 4 else None)
            for seed, code in enumerate(codes)
            for packet in code.packets(1000 * seed)
        ],
        lambda data: (bitstream.decode_packet(data, source, coder), data[0] & 4),
        lambda found: bitstream.encode_packet(found[0], coder if found[1] else None),
        repair,
    )


def targets() -> list[Target]:
    """Raw streams, and streams of a coder that needs no TensorFlow."""
    large = ("direct, paper", "most views and iterations")
    found = [file_target(name) for name in (*streams.SMALL, *large)]
    found += [packet_target(name) for name in streams.SMALL]
    return found + coded_targets(lambda codes: streams.Deflated(next(codes).source))


def coded_targets(coder_of: Callable[[Iterator[Any]], Any]) -> list[Target]:
    """Streams of the coder that `coder_of` makes of codes."""
    found = []
    for name in ("direct, mini", "implicit"):
        coder = coder_of(streams.make(name, seed, 0.95) for seed in range(20))
        found += [make(name, coder, likely=0.95) for make in (file_target, packet_target)]
    return found


def mutants(target: Target, rng: np.random.Generator) -> Iterator[bytes]:
    """Endless mutants of a target's streams."""
    while True:
        data = _mutated(target.seeds, rng)
        least = LEAST_FILE if target.name.startswith("file") else LEAST_PACKET + 1
        yield target.repair(data) if len(data) >= least and rng.integers(2) else data


def _mutated(seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    data = bytearray(seeds[rng.integers(len(seeds))])
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        kind, at = rng.integers(9), int(rng.integers(len(data)))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 4:
            other = seeds[rng.integers(len(seeds))]
            data[at:] = other[min(at, len(other)) :]
        elif kind == 5:
            other = seeds[rng.integers(len(seeds))]
            data += other[int(rng.integers(len(other))) :]
        elif kind == 6:
            data[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 7:
            # Where the numbers stand that say how much follows.
            data[int(rng.integers(min(13, len(data))))] = int(rng.integers(256))
        else:
            data[:] = rng.bytes(int(rng.integers(60)))
    return bytes(data)


def run(count: int, made: Sequence[Target], seed: int = 0) -> Outcome:
    """Read `count` mutants, of one target after the other, and return what became of them."""
    rng, outcome = np.random.default_rng(seed), Outcome()
    sources = [mutants(target, rng) for target in made]
    for target in made:
        for data in target.seeds:
            assert target.encode(target.decode(data)) == data, target.name
    done, slow = 0, []
    while done < count:
        which = done // BLOCK % len(made)
        block = [next(sources[which]) for _ in range(min(BLOCK, count - done))]
        timed = _time(made[which], block, outcome)
        _weigh(made[which], block, outcome)
        done += len(block)
        slow += [item for item in timed if item[0] > SLOW_MS]
    outcome.slowest = max(outcome.slowest, _slowest(slow))
    return outcome


def _slowest(slow: Sequence[tuple[float, Target, bytes]]) -> tuple[float, str]:
    """Milliseconds of the slowest mutant, the best of several readings, and which it is.

    Other work on the machine falls on some readings, and for longer than one takes: those that are
    the slowest as yet are read again in turn, until the slowest of all was read often enough.
    """
    if not slow:
        return 0.0, ""
    best, readings = np.array([took for took, _, _ in slow]), np.ones(len(slow), int)
    while readings[best.argmax()] < READINGS:
        for number in best.argsort()[::-1][:TURN]:
            best[number] = min(best[number], _read(*slow[number][1:])[1])
            readings[number] += 1
    slowest = best.argmax()
    return float(best[slowest]), _name(*slow[slowest][1:])


def _time(
    target: Target, block: Sequence[bytes], outcome: Outcome
) -> list[tuple[float, Target, bytes]]:
    gc.collect()
    timed = []
    for data in block:
        found, took = _read(target, data)
        if isinstance(found, str):
            outcome.refused[_NUMBERS.sub("#", found)[:50]] += 1
        else:
            outcome.taken += 1
            assert target.encode(found) == data, f"{target.name}: a second {data.hex()}"
        timed.append((took, target, data))
    return timed


def _weigh(target: Target, block: Sequence[bytes], outcome: Outcome) -> None:
    tracemalloc.start()
    try:
        for data in block:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            _read(target, data)
            size = tracemalloc.get_traced_memory()[1] - before
            outcome.largest = max(outcome.largest, (size, _name(target, data)))
    finally:
        tracemalloc.stop()


def _name(target: Target, data: bytes) -> str:
    return f"{target.name}: {data[:20].hex()}"


def _read(target: Target, data: bytes) -> tuple[Any, float]:
    """What a stream holds, or the one line that says why not; milliseconds."""
    start = time.process_time_ns()
    found: Any
    try:
        found = target.decode(data)
    except bitstream.BitstreamError as error:
        found = str(error)
    took = (time.process_time_ns() - start) / 1e6
    if isinstance(found, str):
        assert "\n" not in found and len(found) < 300, found
    return found, took


def main(arguments: Sequence[str]) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tfjoint import coding

    made = targets()
    try:
        made += coded_targets(coding.count)
    except coding.CodingError as error:
        print(f"without tables: {error}")
    start = time.monotonic()
    print(run(int(arguments[0]), made))
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:] or ["100000"])
