"""Build of pacecore: pure Python plus one extension, pacecore._C.

The extension is written against torch's stable ABI, so the torch it is compiled with only lends its
headers and its `libtorch.so` to link against; importing torch is not needed and its CUDA helpers,
which refuse a CPU torch, are not used. CUDA kernels are compiled wherever nvcc is found, whatever
torch is installed.

    PACECORE_CUDA=0 / 1      never / always compile the CUDA kernels (1 without nvcc is an error)
    CUDA_HOME                the toolkit to use; otherwise that of nvcc on PATH, then
                             /usr/local/cuda, then the package cuda-toolkit
    TORCH_CUDA_ARCH_LIST     e.g. "8.0;9.0+PTX"; that is also the default
    CXX                      the C++20 compiler; otherwise g++, c++ or clang++
    MAX_JOBS                 parallel compilations; otherwise one for each usable processor
"""

from __future__ import annotations  # for a Python too old, of which pip tells after this has run

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
VERSION = "0.1.0"
OLDEST_PYTHON = (3, 10)  # as requires-python
OLDEST_TORCH = (2, 11)  # the stable ABI that csrc is written against
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the same version; hides the rest
OLDEST_NVCC = (12, 0)  # the first that compiles C++20
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


def torch_version(folder):
    """2.13.0+cpu, of the torch in `folder`, without importing it; "" where there is none."""
    file = folder / "version.py"
    text = file.read_text() if file.is_file() else ""
    found = re.search(r"__version__ = ['\"]([^'\"]+)", text)
    return found[1] if found else ""


def torch_folder():
    """Folder of a torch that serves for building, or None: in this environment, else in the target.

    pip builds in isolation: by PYTHONPATH and PYTHONNOUSERSITE it hides the environment that it
    installs into. A child without those two sees that environment as its programs will.
    """
    spec = importlib.util.find_spec("torch")
    origins = [spec.origin if spec else None]
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE")
    look = "import importlib.util as i; s = i.find_spec('torch'); print((s and s.origin) or '')"
    done = subprocess.run(
        [sys.executable, "-c", look],
        env={name: value for name, value in os.environ.items() if name not in hidden},
        cwd=ROOT / "csrc",  # -c puts the working folder on the path
        capture_output=True,
        text=True,
    )
    origins += done.stdout.split("\n")[:1]
    for origin in filter(None, origins):
        folder = Path(origin).parent
        found = re.match(r"(\d+)\.(\d+)", torch_version(folder))
        serves = found and (int(found[1]), int(found[2])) >= OLDEST_TORCH
        if serves and (folder / "include").is_dir():
            return folder
    return None


class Toolkit(NamedTuple):
    """A CUDA toolkit to compile with."""

    nvcc: Path
    release: tuple[int, int]
    include: Path
    library: Path | None  # folder of libcudart_static.a; None where the linker looks anyway


def toolkit():
    """The Toolkit to compile with, or None; and why there is none."""
    wish = os.environ.get("PACECORE_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"pacecore: PACECORE_CUDA must be 0 or 1, got {wish!r}")
    if wish == "0":
        return None, "PACECORE_CUDA=0"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [Path(home) / "bin" / "nvcc" for home in homes if home]
    on_path = shutil.which("nvcc")
    places += [Path(on_path)] if on_path else []
    places += [Path("/usr/local/cuda/bin/nvcc")]
    # Of the package cuda-toolkit[nvcc], beside the torch of the environment to install into.
    places += sorted(TORCH.parent.glob("nvidia/cu*/bin/nvcc"), reverse=True) if TORCH else []
    reasons = []
    for nvcc in places:
        found = toolkit_of(nvcc.absolute())
        if isinstance(found, Toolkit):
            return found, ""
        reasons.append(found)
    reason = "; ".join(reasons)
    if wish == "1":
        sys.exit(f"pacecore: PACECORE_CUDA=1, but {reason}")
    return None, reason


def toolkit_of(nvcc):
    """The Toolkit of an nvcc, or why it does not serve. Only nvcc itself knows where the rest is:
    beside it, in targets/x86_64-linux as conda has it, or where a distribution keeps such things.
    """
    if not nvcc.is_file():
        return f"there is no {nvcc}"
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    release = (int(found[1]), int(found[2])) if found else (0, 0)
    if release < OLDEST_NVCC:
        oldest = ".".join(map(str, OLDEST_NVCC))
        return f"{nvcc} is of release {release[0]}.{release[1]}, {oldest} is needed"
    planned = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]
    said = subprocess.run(planned, capture_output=True, text=True).stderr
    named = dict(re.findall(r"^#\$ (INCLUDES|LIBRARIES)=(.*)", said, re.MULTILINE))
    includes = re.findall(r'"-I([^"]+)"', named.get("INCLUDES", ""))
    for include in map(Path, [*includes, "/usr/include"]):
        if (include / "cuda_runtime_api.h").is_file():
            # Some packages of nvcc 13 have lib and speak of lib64.
            folders = [*re.findall(r'"-L([^"]+)"', named.get("LIBRARIES", "")), include / "../lib"]
            runtime = (Path(folder).resolve() / "libcudart_static.a" for folder in folders)
            library = next((path.parent for path in runtime if path.is_file()), None)
            return Toolkit(nvcc, release, include.resolve(), library)
    return f"{nvcc} has no cuda_runtime_api.h in {', '.join(includes) or '/usr/include'}"


def architectures():
    """[('80', False), ('90', True)] for "8.0;9.0+PTX". Older GPUs of the list are left out."""
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
    result = []
    for word in filter(None, re.split(r"[;,\s]+", wish)):
        found = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", word)
        if not found:
            sys.exit(f"pacecore: TORCH_CUDA_ARCH_LIST must look like '8.0;9.0+PTX', got {wish!r}")
        if int(found[1]) >= 8:  # as pacecore.kernels.OLDEST
            result.append((found[1] + found[2], bool(found[3])))
    if not result:
        sys.exit(f"pacecore: TORCH_CUDA_ARCH_LIST must have one of 8.0 or later, got {wish!r}")
    return result


TORCH = torch_folder()
CUDA, WITHOUT_CUDA = toolkit()


def local_version():
    """What was built, said by the last line that pip prints: 0.1.0+cpu or 0.1.0+cu130.sm80.sm90."""
    if CUDA is None:
        return VERSION + "+cpu"
    names = [f"sm{number}" for number, _ in architectures()]
    return ".".join([f"{VERSION}+cu{CUDA.release[0]}{CUDA.release[1]}", *names])


def version():
    """The project's version for pip. An archive of the source has one before anything is built, and
    what is made from it must keep that.
    """
    is_archive = "sdist" in sys.argv or (ROOT / "PKG-INFO").is_file()
    return VERSION if is_archive else local_version()


def build_torch():
    """The torch to fetch for the build: one only where the target environment has none that serves.
    Under an older Python none is found, or gigabytes, before pip says that Python is too old. An
    archive of the source wants none.
    """
    none = TORCH or sys.version_info < OLDEST_PYTHON
    # In sys.argv both kinds of build are egg_info.
    none = none or "get_requires_for_build_sdist" in sys.orig_argv
    return [] if none else ["torch>=2.11"]


def compiler():
    """The C++ compiler's words, ["g++"] or ["ccache", "g++"]."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = [name for name in ("g++", "c++", "clang++") if shutil.which(name)]
    if not named and not found:
        sys.exit("pacecore: building needs a C++20 compiler: install g++ or clang++, or set CXX")
    return named or found[:1]


def ninja():
    """The words that start ninja."""
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if shutil.which("ninja"):
        return ["ninja"]
    sys.exit("pacecore: building needs ninja: pip install ninja")


def parallel_jobs():
    """How many compilers run at once. ninja's own default, some more than there are processors,
    keeps the longest from being done first.
    """
    wish = os.environ.get("MAX_JOBS")
    if wish:
        if not wish.isdecimal() or int(wish) == 0:
            sys.exit(f"pacecore: MAX_JOBS must be a whole number above 0, got {wish!r}")
        return int(wish)
    return len(os.sched_getaffinity(0))


def torch_in(work):
    """TORCH by its name in the folder `work`."""
    return named(TORCH, f"torch-{torch_version(TORCH)}", work)


def pybind11_in(work):
    """pybind11's headers: its own package's, else the copy that torch brings along."""
    try:
        import pybind11
    except ImportError:
        return torch_in(work) / "include"
    return named(pybind11.get_include(), f"pybind11-{pybind11.__version__}", work)


def named(folder, name, work):
    """A link `name` in `work` to `folder`. pip puts what it builds with into a new place each time;
    by a name that tells its version a command stays the same, and ninja knows what is done already.
    """
    link = work / name
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    return link


def gencode():
    flags = []
    for number, ptx in architectures():
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def source_flags(source):
    """Flags of one file. What *_avx2.cpp and *_avx512.cpp hold is chosen at run time."""
    if source.name == "module.cpp":  # uses pybind11, and the copy in torch refuses STABLE_ABI
        words = [f'-DPACECORE_VERSION="{local_version()}"']
        if CUDA:
            codes = re.findall(r",code=(\w+)", " ".join(gencode()))
            words.append(f'-DPACECORE_CUDA_ARCHITECTURES="{" ".join(codes)}"')
        return words
    if sysconfig.get_platform().endswith("x86_64"):
        if source.stem.endswith("_avx2"):
            return [STABLE_ABI, "-mavx2", "-mfma", "-mf16c"]
        if source.stem.endswith("_avx512"):
            extensions = ("f", "bw", "dq", "vl")
            return [
                STABLE_ABI,
                *(f"-mavx512{name}" for name in extensions),
                *("-mfma", "-mf16c", "-mprefer-vector-width=512"),
            ]
    return [STABLE_ABI]


def command(words):
    """Words of a command as ninja's command line; $in, $out and $flags stay ninja's."""
    variables = ("$in", "$out", "$out.d", "$flags")
    quoted = (str(w) if w in variables else shlex.quote(str(w)).replace("$", "$$") for w in words)
    return " ".join(quoted)


def escaped(path):
    """A path as ninja's build lines want it."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_file(sources, work, target):
    """Text of the build.ninja that compiles `sources` into the folder `work` and links `target`.

    Dependencies are our own files. For foreign headers of another version, whose folder has another
    name, everything is compiled anew.
    """
    torch = torch_in(work)
    # Foreign headers are not ours to warn about. pybind11's own come before torch's copy of them.
    foreign = [pybind11_in(work), torch / "include"]
    # A distribution's own packages have theirs in /usr/include. It is searched anyway, and named it
    # would come before the standard library's, whose #include_next then finds nothing.
    if sysconfig.get_path("include") != "/usr/include":
        foreign.append(sysconfig.get_path("include"))
    if CUDA and CUDA.include != Path("/usr/include"):
        foreign.append(named(CUDA.include, "cuda-" + ".".join(map(str, CUDA.release)), work))
    common = ["-std=c++20", "-O3", f"-I{ROOT}/csrc"]
    for folder in foreign:
        common += ["-isystem", folder]
    hidden = ["-fPIC", "-fvisibility=hidden"]
    cxx = [*compiler(), "-MMD", "-MF", "$out.d", *hidden, "-Wall", "-Wextra", *common, "$flags"]
    link = [*compiler(), "-shared", "$in", "-o", "$out", "-Wl,--no-as-needed"]
    # Some compilers have libstdc++ only as an archive. Torch has brought another, and where the two
    # see each other, one's objects meet the other's code: the first ostringstream crashes.
    link.append("-Wl,--exclude-libs,ALL")
    link += [f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu"]
    lines = [
        "ninja_required_version = 1.3",
        f"builddir = {escaped(work)}",
        "rule cxx",
        f"  command = {command([*cxx, '-c', '$in', '-o', '$out'])}",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    if CUDA:
        nvcc = [CUDA.nvcc, "-MMD", "-MF", "$out.d", STABLE_ABI, *common, *gencode()]
        programs = [word for word in compiler() if not word.startswith("-")]
        nvcc += ["-ccbin", programs[-1]] if os.environ.get("CXX") else []
        nvcc += [f"-Xcompiler={word}" for word in compiler() if word.startswith("-")]
        nvcc += ["-Xcompiler", ",".join(hidden), "--expt-relaxed-constexpr"]
        nvcc += ["-Xptxas", "-v", "-c", "$in", "-o", "$out"]
        lines += ["rule nvcc", f"  command = {command(nvcc)}", *lines[4:6]]
        link += [f"-L{CUDA.library}"] if CUDA.library else []
        link += ["-lcudart_static", "-lrt", "-lpthread"]
    lines += ["rule link", f"  command = {command([*link, '-ldl'])}"]
    objects = []
    for source in map(Path, sources):
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        objects.append(escaped(work / f"{source.stem}_{source.parent.name}.o"))
        lines.append(f"build {objects[-1]}: {rule} {escaped(ROOT / source)}")
        lines.append(f"  flags = {command(source_flags(source))}")
    return "\n".join([*lines, f"build {escaped(target)}: link {' '.join(objects)}", ""])


class NinjaBuild(build_ext):
    """Compiles every source of the one extension with ninja, in parallel, and links them."""

    def build_extension(self, ext):
        if TORCH is None:
            oldest = ".".join(map(str, OLDEST_TORCH))
            hint = "let pip build in isolation, or install torch first"
            sys.exit(f"pacecore: building needs torch >= {oldest}; {hint}")
        headers = Path(sysconfig.get_path("include"))
        if not (headers / "Python.h").is_file():
            hint = "install python3-dev or python3-devel"
            sys.exit(f"pacecore: building needs Python's headers, {headers} has none: {hint}")
        # Not self.build_temp, which for an editable install is another each time.
        work = ROOT / "build" / f"objects-{sys.implementation.cache_tag}"
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        for folder in (work, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(ninja_file(ext.sources, work, target))
        jobs = parallel_jobs()
        # pace_clip.cu takes half of the time; nvcc's threads compile it for several architectures
        # at once. Not in its command, which would be another where there are more processors.
        appended = f"{os.environ.get('NVCC_APPEND_FLAGS', '')} --threads {max(1, jobs // 2)}"
        environment = {**os.environ, "NVCC_APPEND_FLAGS": appended.strip()}
        if subprocess.run([*ninja(), "-j", str(jobs), "-C", work], env=environment).returncode:
            hint = "; CXX names another, such as one that nvcc takes" if CUDA else ""
            hint += "; PACECORE_CUDA=0 leaves the CUDA kernels out" if CUDA else ""
            sys.exit(
                f"pacecore: the extension did not compile; the compiler's words are above{hint}"
            )
        how = f"CUDA kernels by {CUDA.nvcc}" if CUDA else f"CPU only: {WITHOUT_CUDA}"
        print(f"pacecore {local_version()}: built with the headers of {TORCH}, {how}")


class FreshBuild(build_py):
    """Without the modules of an earlier build in this folder that the source has no more."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "pacecore", ignore_errors=True)
        super().run()


def sources():
    # ninja begins with the first. What takes longest would else be compiled alone at the end: nvcc,
    # and of its files pace_clip.cu.
    names = sorted(ROOT.glob("csrc/cuda/*.cu"), reverse=True) if CUDA else []
    names += sorted(ROOT.glob("csrc/*.cpp")) + sorted(ROOT.glob("csrc/cpu/*.cpp"))
    return [str(name.relative_to(ROOT)) for name in names]


setup(
    version=version(),
    packages=[
        *find_packages(include=["pacecore", "pacecore.*"]),
        *("pacecore.cli", "pacecore.benchmarks"),
    ],
    package_dir={"pacecore.cli": "cli", "pacecore.benchmarks": "benchmarks"},
    include_package_data=False,  # of what MANIFEST.in names for the source archive
    package_data={"pacecore": ["py.typed"]},
    ext_modules=[Extension("pacecore._C", sources())],
    cmdclass={"build_py": FreshBuild, "build_ext": NinjaBuild},
    setup_requires=build_torch(),
)
