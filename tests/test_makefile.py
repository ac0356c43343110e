"""How the Makefile finds a Python and what a broken-off set-up leaves; pretended Pythons only."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("mkdir", "rm", "touch", "cp", "cat", "chmod")
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Answers the Makefile's question for its version, makes a directory when asked for a venv, and
# notes what else it is called with.
PYTHON = """#!/bin/sh
case "$*" in
  *ensurepip*) echo "{version} {version}.5" ;;
  -V) echo "Python {version}.5" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo made >> {log} ;;
  *) echo "$*" >> {log}; {then} ;;
esac
"""
LAUNCHER = "#!/bin/sh\necho 'this version is not installed' >&2\nexit 127\n"


class Machine:
    """A machine whose PATH holds nothing but what a test puts there."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.venv = directory / "venv"
        self.log = directory / "log"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)

    def add(self, name: str, version: str = "", then: str = "true") -> Path:
        path = self.bin / name
        text = PYTHON.format(version=version, log=self.log, then=then) if version else LAUNCHER
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        return path

    def make(self, target: str = "setup", **variables: str) -> subprocess.CompletedProcess:
        arguments = [f"{k}={v}" for k, v in {"VENV": str(self.venv), **variables}.items()]
        return subprocess.run(
            [shutil.which("make") or "make", "-C", str(ROOT), target, *arguments],
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []


@pytest.fixture()
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_name_that_fails_when_run_is_passed_over(machine):
    machine.add("python3.11")
    machine.add("python3.10", "3.10")
    machine.add("python3.12", "3.12")
    done = machine.make()
    assert done.returncode == 0, done.stderr
    assert f"creating {machine.venv} with Python 3.12.5 (python3.12)" in done.stdout
    assert machine.calls()[0] == "made"


def test_a_name_is_not_believed_but_its_version_is(machine):
    machine.add("python3.11", "3.8")
    machine.add("python3", "3.10")
    assert "with Python 3.10.5 (python3)" in machine.make().stdout


def test_without_a_fitting_python_one_line_says_what_is_needed(machine):
    machine.add("python3", "3.13")
    done = machine.make()
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for part in ("3.11 3.12 3.10", "python3.12 python3.10 python3", "make PYTHON=<path>"):
        assert part in lines[0]
    assert not machine.venv.exists()


def test_a_named_python_is_the_only_one_tried(machine):
    machine.add("python3.11", "3.11")
    mine = machine.add("mine", "3.12")
    assert "with Python 3.12.5 (" in machine.make(PYTHON=str(mine)).stdout
    refused = machine.make(PYTHON=str(machine.add("old", "3.9")))
    assert refused.returncode == 2
    assert machine.venv.exists()  # what worked before is still there


def test_pins_and_extras_reach_pip(machine):
    machine.add("python3.11", "3.11")
    machine.make()
    _, tools, package = machine.calls()
    assert "--constraint constraints/default.txt" in tools
    assert "--constraint constraints/default.txt" in package
    assert package.endswith("--no-build-isolation --editable .[tfc,data,study,dev]")


def test_beam_is_added_to_the_environment_under_its_pins_and_once(machine):
    machine.add("python3.11", "3.11")
    for _ in range(2):
        done = machine.make("test-beam")
        assert done.returncode == 0, done.stderr
    made, _, _, beam, *tests = machine.calls()
    assert made == "made"
    assert "--constraint constraints/default.txt --only-binary :all:" in beam
    assert beam.endswith("--no-build-isolation --editable .[beam]")
    assert tests == ["-m pytest tests/test_data_tools_beam.py"] * 2


def test_a_new_environment_gets_beam_anew(machine):
    machine.add("python3.11", "3.11")
    machine.make("test-beam")
    machine.make("test-beam", PYTHON=str(machine.add("mine", "3.12")))
    assert sum(call.endswith(".[beam]") for call in machine.calls()) == 2


def test_benchmarks_run_in_an_environment_of_their_own_and_go_on_where_they_were(machine, tmp_path):
    machine.add("python3.11", "3.11")
    own = str(tmp_path / "bench")
    done = machine.make("bench", VENV_BENCH=own, BENCH_FLAGS="--sections=data")
    assert done.returncode == 0, done.stderr
    _, tools, package, run = machine.calls()
    assert "--constraint constraints/bench.txt" in tools
    assert package.endswith("--editable .[tfc,data,test,bench]")
    assert run.startswith("-m bench --resume --readme=README.md --data=data/open")
    assert run.endswith("--sections=data")
    assert not machine.venv.exists()


def test_a_finished_set_up_is_not_repeated(machine):
    machine.add("python3.11", "3.11")
    machine.make()
    before = machine.calls()
    again = machine.make()
    assert again.returncode == 0
    assert machine.calls() == before


def test_another_named_python_replaces_the_environment(machine):
    machine.add("python3.11", "3.11")
    machine.make()
    assert "with Python 3.12.5" in machine.make(PYTHON=str(machine.add("mine", "3.12"))).stdout
    assert "creating" not in machine.make(PYTHON=str(machine.bin / "mine")).stdout


def test_an_interrupted_set_up_starts_over(machine):
    machine.add("python3.11", "3.11", then="exit 1")
    assert machine.make().returncode == 2
    (machine.venv / "half-installed").touch()
    machine.add("python3.11", "3.11")
    assert machine.make().returncode == 0
    assert not (machine.venv / "half-installed").exists()
    assert machine.calls().count("made") == 2
