"""Build of pacecore: pure Python plus one extension, pacecore._C.

The extension is written against torch's stable ABI, so the torch it is compiled with only lends its headers and its
`libtorch.so` to link against; importing torch is not needed and its CUDA helpers, which refuse a CPU torch, are not
used. CUDA kernels are compiled wherever nvcc is found, whatever torch is installed.

    PACECORE_CUDA=0 / 1      never / always compile the CUDA kernels (1 without nvcc is an error)
    CUDA_HOME                the toolkit to use; otherwise nvcc on PATH, then /usr/local/cuda
    TORCH_CUDA_ARCH_LIST     e.g. "8.0;9.0+PTX"; that is also the default
    MAX_JOBS                 parallel compilations; ninja's own default otherwise
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = "0.1.0"
OLDEST_TORCH = (2, 11)  # the stable ABI that csrc is written against
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


def torch_folder():
    """Folder of a torch that serves for building, or None: in this environment, else in the one pip installs into.

    In pip's isolated build this interpreter's sys.path is hidden, but sysconfig still names the target environment.
    """
    places = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for place in places:
        folder = Path(place or ".") / "torch"
        version_file = folder / "version.py"
        if not version_file.is_file() or not (folder / "include").is_dir():
            continue
        found = re.search(r"__version__ = ['\"](\d+)\.(\d+)", version_file.read_text())
        if found and (int(found[1]), int(found[2])) >= OLDEST_TORCH:
            return folder
    return None


def cuda_home():
    """The CUDA toolkit to compile with, or None for a CPU-only build."""
    wish = os.environ.get("PACECORE_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"pacecore: PACECORE_CUDA must be 0 or 1, got {wish!r}")
    if wish == "0":
        return None
    on_path = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places += [str(Path(on_path).resolve().parent.parent)] if on_path else []
    places += ["/usr/local/cuda"]
    for place in filter(None, places):
        home = Path(place)
        if (home / "bin" / "nvcc").is_file() and (
            home / "include" / "cuda_runtime_api.h"
        ).is_file():
            return home
    if wish == "1":
        sys.exit(
            "pacecore: PACECORE_CUDA=1, but neither CUDA_HOME, nor the folder of the nvcc on PATH, nor "
            "/usr/local/cuda holds both bin/nvcc and include/cuda_runtime_api.h"
        )
    return None


def cuda_release(home):
    text = subprocess.run(
        [home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return re.search(r"release (\d+)\.(\d+)", text).groups()


def architectures():
    """[('80', False), ('90', True)] for "8.0;9.0+PTX"."""
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
    result = []
    for word in re.split(r"[;,\s]+", wish.strip()):
        found = re.fullmatch(r"(\d+)\.(\d+[a-z]?)(\+PTX)?", word)
        if not found:
            sys.exit(f"pacecore: TORCH_CUDA_ARCH_LIST must look like '8.0;9.0+PTX', got {wish!r}")
        result.append((found[1] + found[2], bool(found[3])))
    return result


CUDA_HOME = cuda_home()
TORCH = torch_folder()


def local_version():
    """What was built, said by the last line that pip prints: 0.1.0+cpu or 0.1.0+cu130.sm80.sm90."""
    if CUDA_HOME is None:
        return VERSION + "+cpu"
    names = [f"sm{number}" for number, _ in architectures()]
    return f"{VERSION}+cu{''.join(cuda_release(CUDA_HOME))}.{'.'.join(names)}"


class NinjaBuild(build_ext):
    """Compiles every source of the one extension with ninja, in parallel, and links them."""

    def build_extension(self, ext):
        import pybind11

        if TORCH is None:
            sys.exit(
                "pacecore: building needs torch >= 2.11; let pip build in isolation or install torch first"
            )
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = [
            TORCH / "include",
            pybind11.get_include(),
            sysconfig.get_path("include"),
            ROOT / "csrc",
        ]
        defines = [
            "-DTORCH_TARGET_VERSION=0x020b000000000000",
            f'-DPACECORE_VERSION=\\"{local_version()}\\"',
        ]
        if CUDA_HOME:
            includes.append(CUDA_HOME / "include")
            arch_names = " ".join(f"sm_{number}" for number, _ in architectures())
            defines.append(f'-DPACECORE_CUDA_ARCHITECTURES="\\"{arch_names}\\""')
        common = " ".join(
            [
                *defines,
                "-std=c++20",
                "-O3",
                *(f"-isystem {path}" for path in includes[:3]),
                f"-I{includes[3]}",
                *(f"-isystem {path}" for path in includes[4:]),
            ]
        )
        lines = [
            "ninja_required_version = 1.3",
            f"builddir = {work}",
            "rule cxx",
            f"  command = {os.environ.get('CXX', 'g++')} -MMD -MF $out.d -fPIC -fvisibility=hidden -Wall -Wextra "
            f"{common} $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule nvcc",
            f"  command = {(CUDA_HOME or Path('.')) / 'bin' / 'nvcc'} -MD -MF $out.d {common} {gencode()} "
            "-Xcompiler -fPIC,-fvisibility=hidden --expt-relaxed-constexpr -lineinfo -Xptxas -v -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {os.environ.get('CXX', 'g++')} -shared $in -o $out -Wl,--no-as-needed "
            f"-L{TORCH / 'lib'} -ltorch -ltorch_cpu $libraries",
        ]
        objects = []
        for source in map(Path, ext.sources):
            rule = "nvcc" if source.suffix == ".cu" else "cxx"
            objects.append(work / (source.stem + "_" + source.parent.name + ".o"))
            lines += [
                f"build {objects[-1]}: {rule} {ROOT / source}",
                f"  flags = {isa_flags(source)}",
            ]
        libraries = (
            f"-L{CUDA_HOME}/lib64 -lcudart_static -lrt -lpthread -ldl" if CUDA_HOME else "-ldl"
        )
        lines += [
            f"build {target}: link {' '.join(map(str, objects))}",
            f"  libraries = {libraries}",
            "",
        ]
        (work / "build.ninja").write_text("\n".join(lines))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([sys.executable, "-m", "ninja", *jobs, "-C", str(work)]).returncode:
            sys.exit("pacecore: the extension did not compile; the compiler's words are above")
        print(
            f"pacecore {local_version()}: built with the headers of the torch in {TORCH}, "
            + (
                f"CUDA kernels by the nvcc in {CUDA_HOME}"
                if CUDA_HOME
                else "CPU kernels only, no nvcc was used"
            )
        )


def gencode():
    flags = []
    for number, ptx in architectures():
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


def isa_flags(source):
    """A file named *_avx2.cpp or *_avx512.cpp is compiled for that instruction set and chosen at run time."""
    if sysconfig.get_platform().endswith("x86_64"):
        if source.stem.endswith("_avx2"):
            return "-mavx2 -mfma -mf16c"
        if source.stem.endswith("_avx512"):
            return (
                "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512"
            )
    return ""


def sources():
    names = sorted(ROOT.glob("csrc/*.cpp")) + sorted(ROOT.glob("csrc/cpu/*.cpp"))
    names += sorted(ROOT.glob("csrc/cuda/*.cu")) if CUDA_HOME else []
    return [str(name.relative_to(ROOT)) for name in names]


setup(
    version=local_version(),
    packages=[
        "pacecore",
        "pacecore.backbones",
        "pacecore.ops",
        "pacecore.reference",
        "pacecore.cli",
    ],
    package_dir={"pacecore.cli": "cli"},
    ext_modules=[Extension("pacecore._C", sources())],
    cmdclass={"build_ext": NinjaBuild},
    # A torch is fetched for the build only where the target environment has none that serves.
    setup_requires=[] if TORCH else ["torch>=2.11"],
)
