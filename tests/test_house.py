"""The rules of the house: which way imports point, what may lie in the repository."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

import tfjoint

ROOT = Path(__file__).resolve().parents[1]

# Data flows from left to right; a module imports only what stands to its left.
ORDER = (
    *("errors", "words", "files", "provenance", "config", "exported", "records", "dataset"),
    "layers",
    "models",
    *("losses", "metrics", "baselines", "optimizers"),
    *("bitstream", "coding", "png", "photos", "voxels", "binvox", "gallery", "shapes"),
    *("checkpoint", "summaries", "workers", "trainer", "serving", "export"),
    *("codec", "lite", "station", "report", "page", "plan", "points", "claims", "figures"),
    *("entry", "split", "camera", "arrivals"),
    *("evaluate", "compare", "view", "train", "command", "__main__", "study", "study_report"),
)
WITHOUT_TENSORFLOW = (
    *("exported", "bitstream", "photos", "shapes", "report", "page", "view"),
    *("plan", "points", "claims", "figures", "study", "study_report"),
)
FOR_LAYERS = {"keras", "numpy", "tensorflow"}
FOR_DATA_TOOLS = {
    *("errors", "words", "files", "provenance", "config", "records", "baselines"),
    *("png", "voxels", "binvox", "entry"),
}
ENTRY_POINTS = {
    *("tfjoint.entry", "tfjoint.evaluate", "tfjoint.compare", "tfjoint.view", "tfjoint.train"),
    *("tfjoint.split", "tfjoint.camera", "tfjoint.arrivals"),
    *("tfjoint.study", "tfjoint.study_report"),
}

# An import name whose distribution is called something else.
DISTRIBUTIONS = {"absl": "absl-py", "PIL": "pillow"}

MACHINE_PATH = re.compile(r"(?:^|[^\w.~-])/(?:work|tmp|root|home)/", re.MULTILINE)
REGISTRY = re.compile(
    r"[\w-]*(?:pypi|pythonhosted|artifactory|devpi|nexus)[\w-]*(?:\.[\w-]+)+(?:/|:\d)"
    r"|\b(?:pypi|pythonhosted)\.org"
    r"|--(?:extra-index|index|find|trusted)-(?:url|links|host)"
)
LARGEST_FILE = 4 * 2**20

Imports = Mapping[str, set[str]]
"""The modules that each module names in an import, wherever in the file that import stands."""


def read_imports(root: Path, package: str) -> dict[str, set[str]]:
    return {_module(root, p): _imports_of(root, p) for p in sorted((root / package).rglob("*.py"))}


def _module(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports_of(root: Path, path: Path) -> set[str]:
    found = set()
    here = _module(root, path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {_existing(root, name, alias.name) for alias in node.names}
    return found


def _existing(root: Path, package: str, name: str) -> str:
    """`from package import name` means the module package.name where there is one."""
    path = root.joinpath(*package.split("."), name)
    return f"{package}.{name}" if path.is_dir() or path.with_suffix(".py").is_file() else package


def against_the_flow(imports: Imports) -> list[str]:
    """Imports inside tfjoint that do not point to the left, and modules without a place."""
    place = {"": -1, **{name: index for index, name in enumerate(ORDER)}}
    faults = []
    for module, targets in imports.items():
        head = _head(module)
        if head not in place:
            faults.append(f"{module} has no place in the order of modules")
            continue
        for target in sorted(t for t in targets if _is_in(t, "tfjoint")):
            other = _head(target)
            inside = other == head and other in ("layers", "models")
            if not inside and place.get(other, len(ORDER)) >= place[head]:
                faults.append(f"{module} imports {target}, which does not stand to its left")
    return faults


def reachable(imports: Imports, start: str) -> set[str]:
    """Everything that `start` imports, directly or through modules of the project."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports.get(name, ())
    return seen - {start}


def _head(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _roots(modules: Iterable[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def _third_party(modules: Iterable[str]) -> set[str]:
    if sys.version_info < (3, 10):
        pytest.skip("sys.stdlib_module_names, to tell third-party modules, is new in Python 3.10")
    return _roots(modules) - sys.stdlib_module_names - {"tfjoint", "data_tools"}


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return {**read_imports(ROOT, "tfjoint"), **read_imports(ROOT, "data_tools")}


def _write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_imports_point_to_the_left(imports):
    assert "tfjoint.records" in imports
    assert not against_the_flow({m: t for m, t in imports.items() if _is_in(m, "tfjoint")})


def test_the_check_of_the_order_sees_every_kind_of_import(tmp_path):
    _write(
        tmp_path,
        {
            "tfjoint/__init__.py": "",
            "tfjoint/records.py": "from tfjoint import errors\nfrom tfjoint.files import replacing",
            "tfjoint/errors.py": "def late():\n    from tfjoint import records",
            "tfjoint/files.py": "from . import errors",
            "tfjoint/losses.py": "import tfjoint.models.direct",
            "tfjoint/layers/__init__.py": "from tfjoint.layers.grid import Grid",
            "tfjoint/layers/grid.py": "from ..losses import loss",
            "tfjoint/models/direct.py": "from tfjoint.models import width",
            "tfjoint/surprise.py": "",
        },
    )
    assert against_the_flow(read_imports(tmp_path, "tfjoint")) == [
        "tfjoint.errors imports tfjoint.records, which does not stand to its left",
        "tfjoint.layers.grid imports tfjoint.losses, which does not stand to its left",
        "tfjoint.surprise has no place in the order of modules",
    ]


def test_layers_import_tensorflow_and_keras_alone(imports):
    layers = {m: t for m, t in imports.items() if _is_in(m, "tfjoint.layers")}
    assert layers
    for module, targets in layers.items():
        assert not [t for t in targets if _is_in(t, "tfjoint") and _head(t) != "layers"], module
        assert _third_party(targets) <= FOR_LAYERS, module


def test_what_looks_at_results_does_without_tensorflow(imports):
    for name in WITHOUT_TENSORFLOW:
        through = _roots(reachable(imports, f"tfjoint.{name}"))
        assert not through & {"tensorflow", "keras", "tensorboard"}, name


def test_the_check_without_tensorflow_looks_through_other_modules():
    imports = {
        "tfjoint.report": {"json", "tfjoint.records"},
        "tfjoint.records": {"tensorflow"},
    }
    assert "tensorflow" in reachable(imports, "tfjoint.report")


def test_data_tools_take_only_the_record_schema_and_its_neighbours(imports):
    for module, targets in imports.items():
        if _is_in(module, "data_tools"):
            foreign = {_head(t) for t in targets if _is_in(t, "tfjoint")} - {""}
            assert foreign <= FOR_DATA_TOOLS, module
        else:
            assert "data_tools" not in _roots(targets), module


def test_only_entry_points_define_flags(imports):
    with_flags = {
        module
        for module, targets in imports.items()
        if any(_is_in(t, "absl.flags") for t in targets) or _names_absl_flags(module)
    }
    commands = {m for m in imports if _is_in(m, "data_tools") and _is_command(m)}
    assert with_flags <= ENTRY_POINTS | commands


def _source(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path.read_text(encoding="utf-8")


def _names_absl_flags(module: str) -> bool:
    return bool(re.search(r"^\s*from absl import .*\bflags\b", _source(module), re.MULTILINE))


def _is_command(module: str) -> bool:
    return 'if __name__ == "__main__":' in _source(module)


def test_every_imported_package_is_a_declared_dependency(imports):
    declared: dict[str, set[str]] = {"": set()}
    for requirement in importlib.metadata.requires("tfjoint") or ():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        declared.setdefault(extra[1] if extra else "", set()).add(name)
    for package, extras in (
        ("tfjoint", ("tfc", "tf214", "photos", "lite", "study")),
        ("data_tools", ("data", "beam")),
    ):
        allowed = declared[""].union(*(declared[extra] for extra in extras))
        for module, targets in imports.items():
            if _is_in(module, package):
                names = {
                    DISTRIBUTIONS.get(name, name.replace("_", "-"))
                    for name in _third_party(targets)
                }
                assert names <= allowed, module


# --- What lies in the repository ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """The files under version control that are present in the work tree."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files are tracked is not known")
    # A checkout that belongs to another user is still one to check.
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def _texts(paths: Iterable[Path]) -> dict[str, str]:
    data = {str(path.relative_to(ROOT)): path.read_bytes() for path in paths}
    return {name: d.decode("utf-8", "replace") for name, d in data.items() if b"\0" not in d}


def test_no_file_is_a_drawer_for_everything(tracked):
    nouns = {part.partition(".")[0] for p in tracked for part in p.relative_to(ROOT).parts}
    assert not nouns & {"common", "helper", "helpers", "misc", "util", "utils"}


def test_no_file_names_a_path_of_one_machine(tracked):
    assert not {n: m[0] for n, t in _texts(tracked).items() if (m := MACHINE_PATH.search(t))}


def test_no_file_names_a_package_registry(tracked):
    assert not {n: m[0] for n, t in _texts(tracked).items() if (m := REGISTRY.search(t))}


@pytest.mark.parametrize("where", ["tmp", "home", "root", "work"])
def test_the_check_for_machine_paths_knows_them_from_relative_ones(where):
    slash = "/"
    for before in ("", " ", "'", "=", "\n"):
        assert MACHINE_PATH.search(f"{before}{slash}{where}{slash}x")
    for harmless in (f"runs{slash}{where}{slash}x", f"~{slash}{where}", f".{slash}{where}{slash}x"):
        assert not MACHINE_PATH.search(harmless)


def test_the_check_for_registries_knows_hosts_and_options():
    name = "pypi"
    for text in (
        f"https://{name}.org/simple",
        f"http://my-{name}.corp:8080/",
        "--index" + "-url x",
    ):
        assert REGISTRY.search(text)
    for text in ("the package registry", "https://www.apache.org/licenses/", f"{name} packages"):
        assert not REGISTRY.search(text)


def test_no_tracked_file_is_large(tracked):
    assert not {str(p): s for p in tracked if (s := p.stat().st_size) >= LARGEST_FILE}


# --- Configs and papers ---------------------------------------------------------------------------


def config_faults(path: Path) -> list[str]:
    """What a .cfg lacks: its command, its time and the number to expect, in an opening comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    opening = "\n".join(lines[:end])
    faults = [
        f"{path.name} does not open with a comment '# {word}'"
        for word in ("COMMAND", "TIME", "EXPECT")
        if not re.search(rf"^#\s*{word}\b", opening, re.MULTILINE)
    ]
    if f"{path.parent.name}/{path.name}" not in opening:
        faults.append(f"{path.name}: the command in its opening comment does not name it")
    if any(re.match(r"\s*--?model(\s|=|$)", line) for line in lines):
        faults.append(f"{path.name} sets --model, which belongs on the command line")
    return faults


def test_every_config_opens_with_its_command_time_and_number():
    configs = sorted((ROOT / "configs").glob("*.cfg"))
    assert configs
    assert not [fault for path in configs for fault in config_faults(path)]


def test_the_check_of_configs_sees_what_is_missing(tmp_path):
    _write(
        tmp_path,
        {
            "configs/good.cfg": "# COMMAND  train --model=x --flagfile=configs/good.cfg\n"
            "# TIME 3 min\n# EXPECT mIoU 0.3\n--steps=5\n--model_width=mini\n",
            "configs/bad.cfg": "# COMMAND  train\n--model=direct\n# TIME 3 min\n# EXPECT 1\n",
        },
    )
    assert config_faults(tmp_path / "configs/good.cfg") == []
    assert len(config_faults(tmp_path / "configs/bad.cfg")) == 4


def test_the_version_is_the_same_everywhere():
    assert importlib.metadata.version("tfjoint") == tfjoint.__version__
    assert f"\nversion: {tfjoint.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {tfjoint.__version__}" in (ROOT / "CHANGELOG.md").read_text()
