"""The build: what the extension shows to the libraries beside it."""

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


@pytest.mark.parametrize(
    ("wish", "words"),
    [("hopper", "must look like '8.0;9.0+PTX', got 'hopper'"), ("7.5 8.0", "must be 8.0 or later")],
)
def test_architectures_that_cannot_be_are_refused(monkeypatch, wish, words):
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wish)
    with pytest.raises(SystemExit, match=re.escape(f"TORCH_CUDA_ARCH_LIST {words}")):
        build["architectures"]()
