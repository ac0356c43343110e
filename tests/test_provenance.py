"""The revision that results name is that of the code which made them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tfjoint import __version__, provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A repository with a module and a result, in place of this one."""
    for name in ("tfjoint/module.py", "results/demo/direct.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "tfjoint" / "provenance.py"))
    return tmp_path


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_changed_code_marks_the_revision_and_a_new_result_does_not(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert provenance.code_revision() == commit
    (checkout / "results" / "demo" / "direct.json").write_text("2")
    assert provenance.code_revision() == commit
    (checkout / "tfjoint" / "module.py").write_text("2")
    assert provenance.code_revision() == f"{commit}+changes"


def test_without_a_repository_it_is_the_version(checkout):
    (checkout / ".git").rename(checkout / "away")
    assert provenance.code_revision() == f"tfjoint {__version__}"
