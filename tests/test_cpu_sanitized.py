"""The ops' CPU kernels under ASan and UBSan, over random sizes, in every build that runs here."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import require

_ROOT = Path(__file__).resolve().parents[1]
_CXX = os.environ.get("CXX", "g++")
_FLAGS = ["-std=c++20", "-pthread", "-O0", "-g1", "-Wall", "-Wextra", "-fno-omit-frame-pointer"]
_FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiled(source: Path, folder: Path, *flags: str) -> Path:
    target = folder / f"{source.parent.name}_{source.stem}.o"
    command = [_CXX, *_FLAGS, *flags, f"-I{_ROOT / 'csrc'}", "-c", source, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


# Of an op: the sources beside those of each instruction set, and how many random cases.
PROGRAMS = {"pace_clip": (["pace_clip_run.cpp"], 200), "info_nce": ([], 12)}


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request, tmp_path_factory) -> tuple[Path, int]:
    """An op's kernels and tests/sanitize/OP.cpp as one program, and its number of cases."""
    if shutil.which(_CXX) is None:
        require("PACECORE_REQUIRE_EMULATION", f"no C++ compiler: {_CXX} is not on PATH")
    op, (sources, cases) = request.param, PROGRAMS[request.param]
    folder = tmp_path_factory.mktemp("sanitized")
    cpu = _ROOT / "csrc" / "cpu"
    x86 = "x86_64" in sysconfig.get_platform()
    avx2 = ["-mavx2", "-mfma", "-mf16c"] if x86 else []
    avx512 = [*avx2, *(f"-mavx512{name}" for name in ("f", "bw", "dq", "vl"))] if x86 else []
    objects = [
        compiled(_ROOT / "tests" / "sanitize" / f"{op}.cpp", folder),
        *(compiled(cpu / source, folder) for source in sources),
        compiled(cpu / f"{op}_avx2.cpp", folder, *avx2),
        compiled(cpu / f"{op}_avx512.cpp", folder, *avx512),
    ]
    target = folder / op
    done = subprocess.run([_CXX, *_FLAGS, *objects, "-o", target], capture_output=True, text=True)
    if done.returncode and "san" in done.stderr and "cannot find" in done.stderr:
        require("PACECORE_REQUIRE_EMULATION", "this compiler has no sanitizer libraries")
    assert done.returncode == 0, done.stderr
    return target, cases


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_access_outside_and_no_undefined_behaviour(program, seed):
    path, cases = program
    done = subprocess.run(
        [path, str(seed), str(cases)], capture_output=True, text=True, timeout=1200,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{cases} computed" in done.stdout
