"""The build: what the extension shows to the libraries beside it."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
SOURCE = """
#include <sstream>
extern "C" __attribute__((visibility("default"))) int length() {
  std::ostringstream out;
  out << 42;
  return static_cast<int>(out.str().size());
}
"""

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file() or not shutil.which("g++") or not shutil.which("nm"),
    reason="no setup.py, as in an installed copy, or no g++ and nm",
)


def test_an_archive_of_the_standard_library_stays_within(tmp_path, monkeypatch):
    """As where the compiler has libstdc++ as an archive only: beside torch's it would be mixed."""
    compiler = tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("g++")} -static-libstdc++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    source, library = tmp_path / "length.cpp", tmp_path / "length.so"
    source.write_text(SOURCE)
    (tmp_path / "build.ninja").write_text(build["ninja_file"]([source], tmp_path, library))
    subprocess.run([sys.executable, "-m", "ninja", "-C", str(tmp_path)], check=True)
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in needed
    shown = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    assert " T length" in shown
    assert "ostringstream" not in shown
    assert len(shown.splitlines()) < 20


def test_an_archive_keeps_its_version_whatever_is_built_from_it(tmp_path, monkeypatch):
    """pip refuses an archive whose name and what is built from it have two versions."""
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setitem(build["version"].__globals__, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    assert build["version"]() == build["VERSION"] + "+cpu"
    monkeypatch.setattr(sys, "argv", ["setup.py", "sdist"])
    assert build["version"]() == build["VERSION"]
    (tmp_path / "PKG-INFO").write_text("")  # as an unpacked archive has
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    assert build["version"]() == build["VERSION"]


def test_a_python_that_is_too_old_fetches_no_torch(monkeypatch):
    """pip looks at requires-python only after the build's own requirements are there."""
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    oldest = ".".join(map(str, build["OLDEST_PYTHON"]))
    assert f'requires-python = ">={oldest}"' in (ROOT / "pyproject.toml").read_text()
    monkeypatch.setitem(build["build_torch"].__globals__, "TORCH", None)
    assert build["build_torch"]() == ["torch>=2.11"]
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert build["build_torch"]() == []


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("hopper", "must look like '8.0;9.0+PTX', got 'hopper'"),
        ("7.0;7.5+PTX", "must have one of 8.0 or later, got '7.0;7.5+PTX'"),
    ],
)
def test_architectures_that_cannot_be_are_refused(monkeypatch, wish, words):
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wish)
    with pytest.raises(SystemExit, match=re.escape(f"TORCH_CUDA_ARCH_LIST {words}")):
        build["architectures"]()


def test_what_is_built_for_the_list_of_an_image(tmp_path, monkeypatch):
    """Older GPUs are left out, intermediate code is named too, and CXX may have options."""
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.0 9.0a 12.0+PTX;")
    monkeypatch.setenv("CXX", "g++ -m64")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    assert build["architectures"]() == [("80", False), ("90a", False), ("120", True)]
    cuda = (Path("/nowhere"), (13, 0))
    for function in ("source_flags", "ninja_file", "local_version"):
        monkeypatch.setitem(build[function].__globals__, "CUDA", cuda)
    flags = build["source_flags"](Path("csrc/module.cpp"))
    assert '-DPACECORE_CUDA_ARCHITECTURES="sm_80 sm_90a sm_120 compute_120"' in flags
    written = build["ninja_file"]([Path("csrc/cuda/x.cu")], tmp_path, tmp_path / "x.so")
    assert "-ccbin g++ -Xcompiler=-m64" in written


def test_type_hints_reach_who_installs(tmp_path):
    """Without the mark of PEP 561 type checkers take every name of the package for anything."""
    words = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    environment = {**os.environ, "PACECORE_CUDA": "0"}
    subprocess.run(words, cwd=ROOT, env=environment, check=True)
    assert (tmp_path / "pacecore" / "py.typed").is_file()
