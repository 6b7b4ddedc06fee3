"""Imports point one way: command line, verbs, loading and losses, data and ops, reference."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the top down; a module may import its own level and those below.
LEVELS = tuple(
    tuple(names.split())
    for names in (
        "cli",
        "benchmarks",
        "train finetune evaluate protocol recognition retrieve attend extract report doctor",
        "beginning engine device step meter inputs runlog runs settings tables loader losses"
        " trained stills config convert distributed",
        "demo backbones probe checkpoint weight_names datasets index layouts labelling"
        " finding listing check isolated store source arena sampling video video_writer pictures"
        " plots paper media timeline planes resample ops workers",
        "reference frames kernels",
        "_extension files presets rules errors stopping",
    )
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# doctor is there to say that PyAV is broken; the rest go through video and video_writer.
READS_OR_WRITES_VIDEO = {"video", "video_writer", "doctor"}


def modules():
    """(file, unit, imported names): a unit is the first name below pacecore."""
    for path in sorted([*(ROOT / "pacecore").rglob("*.py"), *(ROOT / "cli").glob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        unit = "cli" if parts[0] == "cli" else parts[1]
        if unit != "__init__":
            yield path, unit, set(imported(path, parts))


def imported(path, parts):
    """Every module named by an import anywhere in the file, in full."""
    package = ("pacecore", "cli") if parts[0] == "cli" else parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_there_are_modules_to_read():
    assert len(list(modules())) > 20


def test_every_module_has_a_level():
    lacking = {unit for _, unit, _ in modules()} - set(LEVEL)
    assert not lacking, f"give {lacking} a level in LEVELS"


def test_nothing_imports_upwards():
    upwards = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, unit, names in modules()
        for name in sorted(names)
        if name.startswith("pacecore.")
        and LEVEL.get(name.split(".")[1], len(LEVELS)) < LEVEL.get(unit, 0)
    ]
    assert not upwards


def test_modules_offer_what_others_take_from_them():
    taken = {name for _, _, names in modules() for name in names if name.startswith("pacecore.")}
    for name in sorted(taken):
        module, _, item = name.rpartition(".")
        found = import_module(module)
        if not (item.startswith("_") or isinstance(getattr(found, item, found), ModuleType)):
            assert item in found.__all__, name


def test_only_the_video_modules_import_av():
    importers = {
        unit for _, unit, names in modules() if any(re.match(r"av\b", name) for name in names)
    }
    assert importers <= READS_OR_WRITES_VIDEO


def test_only_the_ops_say_torch_ops():
    pattern = re.compile(r"torch\.ops\.pacecore\.\w")
    sayers = {
        path.relative_to(ROOT).as_posix()
        for path in [*(ROOT / "pacecore").rglob("*.py"), *(ROOT / "cli").glob("*.py")]
        if pattern.search(path.read_text()) and path.parent.name != "ops"
    }
    assert not sayers


def test_reference_stands_on_torch_alone():
    for path in (ROOT / "pacecore" / "reference").glob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        own = {name for name in imported(path, parts) if name.startswith("pacecore.")}
        allowed = ("pacecore.reference", "pacecore.errors", "pacecore.frames")
        assert all(name.startswith(allowed) for name in own), path


def test_tests_and_benchmarks_are_not_imported_by_the_package():
    for path, _, names in modules():
        assert not any(name.split(".")[0] in ("tests", "benchmarks", "cli") for name in names), path
        if path.relative_to(ROOT) != Path("cli/bench.py"):
            assert not any(name.startswith("pacecore.benchmarks") for name in names), path


@pytest.mark.parametrize("module", ["pacecore.cli", "pacecore.datasets", "pacecore.demo"])
def test_what_must_start_fast_does_not_load_torch(module, tmp_path):
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == 0


def test_public_names_are_listed_before_they_are_loaded(tmp_path):
    script = (
        "import sys, pacecore; assert set(pacecore.__all__) <= set(dir(pacecore));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("header", sorted((ROOT / "csrc").rglob("*_math.h"), key=str))
def test_shared_maths_is_free_of_torch(header):
    includes = re.findall(r'#include [<"]([^>"]+)', header.read_text())
    assert not [name for name in includes if name.startswith(("torch/", "ATen/", "c10/"))]


@pytest.mark.parametrize(
    "source", sorted((ROOT / "csrc").rglob("*.*"), key=str), ids=lambda path: path.name
)
def test_only_the_stable_interface_of_torch_is_used(source):
    includes = re.findall(r'#include [<"]((?:torch|ATen|c10)/[^>"]+)', source.read_text())
    stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")
    assert all(name.startswith(stable) for name in includes), includes
