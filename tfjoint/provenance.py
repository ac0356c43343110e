"""What made a result: the revision of the code, the versions it ran with, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from tfjoint import __version__


def code_revision() -> str:
    """Return the git commit, "+changes" behind it if the tree differs; else the version.

    What lies in `results/` is made by the code and no part of it: one result does not mark the
    next.
    """
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return f"tfjoint {__version__}"
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, *"status --porcelain --untracked-files=no -- . :!results".split())
    except (OSError, subprocess.CalledProcessError):
        return f"tfjoint {__version__}"
    return commit + ("+changes" if changed else "")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result can depend on."""
    found = {"python": platform.python_version(), "tfjoint": __version__}
    for name in ("tensorflow", "keras", "numpy"):
        found[name] = metadata.version(name)
    return found


def machine() -> dict[str, str | int]:
    """Return processor architecture, usable cores and operating system; never a host name."""
    return {
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "system": platform.system(),
    }


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
