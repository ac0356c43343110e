"""What the processor is called, and which of the instructions that count here it has."""

from __future__ import annotations

from pathlib import Path

_COUNTING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe() -> str:
    """Return the processor's name and its instructions, as Linux gives them."""
    fields = _fields()
    return f"{fields.get('model name', 'unknown')}, {' '.join(instructions())}"


def instructions() -> list[str]:
    """Return which of AVX2, AVX-512 and the bfloat16 instructions there are."""
    found = _fields().get("flags", "").split()
    return [name for name in _COUNTING if name in found]


def has_bfloat16() -> bool:
    """Return whether products in bfloat16 are instructions and not made of float32 ones."""
    return any("bf16" in name for name in instructions())


def _fields() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
