"""Imports point down only, heavy packages stay where they belong, the top level stays tidy."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import skmrr

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "skmrr"

# From bottom to top. A part imports from the rows below its own, and from within itself.
LAYERS = [
    {"_pursuit_numba", "_sklearn", "versions", "whole_files"},
    {"callbacks"},
    {"nn"},
    {"harmless", "distributed"},
    {"calibration", "networks", "reading", "threshold", "attacks", "datasets"},
    {"validation", "betting"},
    {"base", "features"},
    {"joining", "defenders", "baselines", "monitor"},
    {"ensemble"},
    {"records", "detector_files"},
    {"persistence", "exporting"},
    {"evaluation", "art"},
    {"bench"},
    {"cli"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

TOP_LEVEL = {
    *("skmrr", "tests", "examples", "docs", ".ci", ".github"),
    *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile"),
    *(".gitignore", ".pre-commit-config.yaml"),
}

MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def part_of(path):
    """Name the module or subpackage of skmrr that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """List the absolute dotted names a file imports anywhere, lazily or not."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            # `from skmrr import datasets` names the part only in its aliases
            yield from (f"{module}.{alias.name}" for alias in node.names)


def packages_of(path):
    return {name.split(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    part = part_of(path)
    assert part in RANK, f"{name_of(path)} is new: give skmrr.{part} a place in LAYERS"
    for name in imports_of(path):
        package, *inner = name.split(".")
        if package != "skmrr" or inner[:1] == [part]:
            continue
        assert inner, f"{name_of(path)} imports all of skmrr; import the part it needs"
        assert inner[0] in RANK, f"{name_of(path)}: {name} is no part of skmrr"
        assert RANK[inner[0]] < RANK[part], f"{name_of(path)} imports {name}, which is not below it"


@pytest.mark.parametrize("path", [*MODULES, PACKAGE / "__init__.py", *EXAMPLES], ids=name_of)
def test_packages_stay_where_they_belong(path):
    if not path.exists():
        pytest.skip(f"there is no {name_of(path)}")
    part = part_of(path) if path.is_relative_to(PACKAGE) else "examples"
    packages = packages_of(path)
    if part in {"nn", "attacks"}:
        assert "sklearn" not in packages
    if part not in {"art", "examples"}:
        assert "art" not in packages
    if part != "examples" and path.name not in {"exported_files.py", "onnx_operators.py"}:
        assert not {"onnx", "onnxruntime", "onnxscript"} & packages
    if part not in {"evaluation", "bench", "examples"} and path.name != "pictures.py":
        assert "matplotlib" not in packages


def test_private_parts_of_scikit_learn_stay_in_one_file():
    private = re.compile(r"sklearn\.(base\._|.*\._(?!_)|utils\._)")
    for path in MODULES:
        if path.name != "_sklearn.py":
            assert not [name for name in imports_of(path) if private.match(name)], name_of(path)


def test_no_two_files_share_a_name():
    names = [path.name for path in MODULES if path.name not in {"__init__.py", "__main__.py"}]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})


def test_nothing_but_the_command_imports_bench():
    for path in MODULES:
        if part_of(path) not in {"bench", "cli"}:
            assert not [n for n in imports_of(path) if n.startswith("skmrr.bench")], name_of(path)


def test_imports_of_sees_every_form(tmp_path, monkeypatch):
    source = "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from ..g.h import i\n"
    monkeypatch.setitem(imports_of.__globals__, "ROOT", tmp_path)
    (tmp_path / "skmrr" / "nn").mkdir(parents=True)
    path = tmp_path / "skmrr" / "nn" / "module.py"
    path.write_text(source)
    assert set(imports_of(path)) == {"a.b", "c.d", "skmrr.nn.e", "skmrr.g.h.i"}


def heavy_modules_after(statement):
    heavy = {"art", "dask", "distributed", "matplotlib", "numba", "pandas", "PIL", "pooch"}
    heavy |= {"onnx", "onnxruntime", "onnxscript", "pyarrow"}
    program = f"import sys\n{statement}\nprint(*{heavy} & sys.modules.keys())"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_import_is_light():
    # scikit-learn and torch may bring in some of these by themselves, pandas for one
    unavoidable = heavy_modules_after("import sklearn.base, torch.utils.data, tqdm.auto")
    assert heavy_modules_after("import skmrr, skmrr.datasets") <= unavoidable


def test_version_is_the_same_everywhere():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert skmrr.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_top_level_is_fixed():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not in a git checkout")
    listing = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line.split("/")[0] for line in listing.stdout.splitlines()} <= TOP_LEVEL
