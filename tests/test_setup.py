"""The build: what the extension shows to the libraries beside it."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
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


def test_a_python_that_is_too_old_and_an_archive_fetch_no_torch(monkeypatch):
    """pip looks at requires-python only after the build's own requirements are there."""
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    oldest = ".".join(map(str, build["OLDEST_PYTHON"]))
    assert f'requires-python = ">={oldest}"' in (ROOT / "pyproject.toml").read_text()
    monkeypatch.setitem(build["build_torch"].__globals__, "TORCH", None)
    assert build["build_torch"]() == ["torch>=2.11"]
    with monkeypatch.context() as hook:
        words = [sys.executable, "_in_process.py", "get_requires_for_build_sdist", "/tmp/x"]
        hook.setattr(sys, "orig_argv", words)
        assert build["build_torch"]() == []
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.delattr(sys, "orig_argv")
    assert build["build_torch"]() == []


def nvcc_like(home: Path, release: str, include: str = "include", library: str = "lib") -> Path:
    """What speaks like nvcc of itself, and of where the rest of a toolkit in `home` is."""
    (home / "bin").mkdir(parents=True)
    (home / include).mkdir(parents=True)
    (home / include / "cuda_runtime_api.h").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        f"[ $1 = --version ] && echo Cuda compilation tools, release {release}, V{release}.89\n"
        f"echo '#$ INCLUDES=\"-I{home}/bin/../{include}\"  ' >&2\n"
        f'echo \'#$ SYSTEM_INCLUDES="-isystem" "{home}/bin/../{include}/cccl"  \' >&2\n'
        f'echo \'#$ LIBRARIES=  "-L{home}/bin/../{library}/none" "-L{home}/{library}"\' >&2\n'
    )
    nvcc.chmod(0o755)
    return nvcc


def test_the_headers_of_a_distributions_own_toolkit_hide_none(tmp_path, monkeypatch):
    """Named by -isystem, /usr/include comes before the standard library's #include_next."""
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    for home, named in (("/usr", False), ("/opt/cuda", True)):
        nvcc, include, library = (Path(home, name) for name in ("bin/nvcc", "include", "lib64"))
        cuda = build["Toolkit"](nvcc, (12, 4), include, library)
        monkeypatch.setitem(build["ninja_file"].__globals__, "CUDA", cuda)
        written = build["ninja_file"]([], tmp_path, tmp_path / "x.so")
        assert "-isystem /usr/include " not in written
        assert (f"-isystem {tmp_path}/cuda-12.4 " in written) is named
        assert f" -L{library} -lcudart_static" in written
    assert (tmp_path / "cuda-12.4").readlink() == Path("/opt/cuda/include")


@pytest.mark.parametrize(
    ("include", "library", "said"),
    [
        ("include", "lib64", "lib64"),
        ("targets/x86_64-linux/include", "targets/x86_64-linux/lib", "targets/x86_64-linux/lib"),
        ("include", "lib", "lib64"),  # as the packages of 13.0 have it
        ("include", "", "lib64"),  # where the linker looks by itself
    ],
)
def test_a_toolkit_is_where_its_nvcc_says(tmp_path, monkeypatch, include, library, said):
    nvcc = nvcc_like(tmp_path, "12.4", include, said)
    folder = tmp_path / library if library else None
    if folder:
        folder.mkdir(parents=True)
        (folder / "libcudart_static.a").touch()
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.delenv("PACECORE_CUDA")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(nvcc.parent), prepend=os.pathsep)
    expected = build["Toolkit"](nvcc, (12, 4), tmp_path / include, folder)
    assert build["toolkit"]() == (expected, "")


def test_the_toolkit_of_pythons_packages_is_the_last_that_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.delenv("PACECORE_CUDA")
    monkeypatch.setenv("PATH", "/nowhere")
    # This machine's own toolkit is not there.
    monkeypatch.setattr(
        Path, "is_file", lambda path: os.path.isfile(path) and tmp_path in path.parents
    )
    monkeypatch.setitem(build["toolkit"].__globals__, "TORCH", tmp_path / "torch")
    nvcc = nvcc_like(tmp_path / "nvidia" / "cu13", "13.0")
    assert build["toolkit"]()[0].nvcc == nvcc
    (nvcc.parents[1] / "include" / "cuda_runtime_api.h").unlink()
    found, reason = build["toolkit"]()
    assert found is None
    assert reason.startswith("there is no ")
    assert reason.endswith(f"{nvcc} has no cuda_runtime_api.h in {nvcc.parent}/../include")


def test_a_second_build_compiles_what_changed_and_all_for_another_torch(tmp_path, monkeypatch):
    """pip fetches torch and pybind11 into a new folder for every build, with new times of files."""
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    header, work = tmp_path / "own.h", tmp_path / "work"
    work.mkdir()
    sources = [tmp_path / "a.cpp", tmp_path / "b.cpp"]
    for source in sources:
        source.write_text('#include "own.h"\n#include <foreign.h>\n')
    sources[1].write_text("#include <foreign.h>\n")

    def compiled(folder: str, version: str) -> set[str]:
        torch = tmp_path / folder
        (torch / "include").mkdir(parents=True)
        (torch / "include" / "foreign.h").write_text("// no matter what\n")
        (torch / "version.py").write_text(f"__version__ = '{version}'\n")
        monkeypatch.setitem(build["ninja_file"].__globals__, "TORCH", torch)
        lines = build["ninja_file"](sources, work, tmp_path / "x.so")
        (work / "build.ninja").write_text(lines)
        objects = [line.split()[1][:-1] for line in lines.splitlines() if ": cxx " in line]
        ran = subprocess.run(
            [sys.executable, "-m", "ninja", "-v", "-C", str(work), *objects],
            capture_output=True,
            text=True,
            check=True,
        )
        return {path.name for path in sources if f" -c {path} " in ran.stdout}

    header.write_text("")
    assert compiled("first", "2.11.0+cpu") == {"a.cpp", "b.cpp"}
    assert compiled("second", "2.11.0+cpu") == set()
    header.write_text("// changed\n")
    assert compiled("third", "2.11.0+cpu") == {"a.cpp"}
    assert compiled("fourth", "2.12.0+cpu") == {"a.cpp", "b.cpp"}


def test_why_there_are_no_cuda_kernels_is_said(tmp_path, monkeypatch):
    """Of an nvcc that is there, but too old, the last line is not that there is none."""
    nvcc = nvcc_like(tmp_path, "11.8")
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    assert build["toolkit"]() == (None, "PACECORE_CUDA=0")
    monkeypatch.setenv("PACECORE_CUDA", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    words = f"{nvcc} is of release 11.8, 12.0 is needed"
    # This machine's own toolkit, the last place that is looked at.
    monkeypatch.setattr(
        Path, "is_file", lambda path: os.path.isfile(path) and tmp_path in path.parents
    )
    found, reason = build["toolkit"]()
    assert found is None
    assert reason.startswith(words)
    monkeypatch.setenv("PACECORE_CUDA", "1")
    with pytest.raises(SystemExit, match=f"PACECORE_CUDA=1, but {re.escape(words)}"):
        build["toolkit"]()


def test_a_python_without_headers_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(SystemExit, match=f"needs Python's headers, {tmp_path} has none: install"):
        build["NinjaBuild"].build_extension(None, None)


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


def test_parallel_compilations(monkeypatch):
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.delenv("MAX_JOBS", raising=False)
    assert 1 <= build["parallel_jobs"]() <= os.cpu_count()
    monkeypatch.setenv("MAX_JOBS", "3")
    assert build["parallel_jobs"]() == 3
    for wish in ("all", "0", "-1", "1.5"):
        monkeypatch.setenv("MAX_JOBS", wish)
        words = f"MAX_JOBS must be a whole number above 0, got '{wish}'"
        with pytest.raises(SystemExit, match=re.escape(words)):
            build["parallel_jobs"]()


def test_what_is_built_for_the_list_of_an_image(tmp_path, monkeypatch):
    """Older GPUs are left out, intermediate code is named too, and CXX may have options."""
    monkeypatch.setenv("PACECORE_CUDA", "0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.0 9.0a 12.0+PTX;")
    monkeypatch.setenv("CXX", "g++ -m64")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(ROOT / "setup.py"))
    assert build["architectures"]() == [("80", False), ("90a", False), ("120", True)]
    cuda = build["Toolkit"](Path("/nowhere/nvcc"), (13, 0), Path("/nowhere"), None)
    for function in ("source_flags", "ninja_file", "local_version"):
        monkeypatch.setitem(build[function].__globals__, "CUDA", cuda)
    flags = build["source_flags"](Path("csrc/module.cpp"))
    assert '-DPACECORE_CUDA_ARCHITECTURES="sm_80 sm_90a sm_120 compute_120"' in flags
    written = build["ninja_file"]([Path("csrc/cuda/x.cu")], tmp_path, tmp_path / "x.so")
    assert "-ccbin g++ -Xcompiler=-m64" in written
    assert "-lineinfo" not in written  # the build would be three times as large


def test_what_is_installed_is_code_and_the_mark_of_type_hints(tmp_path):
    """Without the mark, of PEP 561, type checkers take every name of the package for anything."""
    gone = tmp_path / "pacecore" / "gone_since.py"  # of an earlier build into the same folder
    gone.parent.mkdir()
    gone.touch()
    words = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    environment = {**os.environ, "PACECORE_CUDA": "0"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert "would be ignored" not in done.stderr  # setuptools, of folders of records
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".py"]
    assert files == [tmp_path / "pacecore" / "py.typed"]
    assert not gone.exists()
    assert not (tmp_path / "pacecore" / "benchmarks" / "experiments").exists()


def test_annotations_are_none_that_an_older_python_stumbles_at():
    """pip asks it for its requirements before it says that this Python is too old."""
    first = ast.parse((ROOT / "setup.py").read_text()).body[1]
    assert isinstance(first, ast.ImportFrom)
    assert [each.name for each in first.names] == ["annotations"]
