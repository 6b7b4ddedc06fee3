"""Builds csrc/cuda/*.cu for the CPU: one shared library that g++ makes of the unedited sources.

The library registers the ops under torch.ops.pacecore_emulated for CPU tensors. Objects are kept in
a cache folder (PACECORE_TEST_CACHE, otherwise one of the user's in the system's temporary folder)
and rebuilt by ninja as needed.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

__all__ = [
    "NAMESPACE",
    "BuildError",
    "build",
    "build_folder",
    "compiler_missing",
    "cuda_include",
    "run_ninja",
]

NAMESPACE = "pacecore_emulated"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
TORCH = Path(torch.__file__).parent
SANITIZE = (
    "-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all "
    "-fno-omit-frame-pointer"
)


class BuildError(RuntimeError):
    """g++ did not compile the kernels; carries its words and what to do."""


def cuda_include() -> Path | None:
    """A folder with the toolkit's headers, of a toolkit or of NVIDIA's pip packages."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    homes += [str(Path(nvcc).resolve().parent.parent)] if nvcc else []
    homes += ["/usr/local/cuda"]
    folders = [Path(home) / "include" for home in homes if home]
    folders += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/include"))
    # The last is in a package of its own, which no torch brings.
    wanted = ("cuda_bf16.h", "cuda_runtime_api.h", "crt/host_defines.h")
    for folder in folders:
        if all((folder / name).is_file() for name in wanted):
            return folder
    return None


def compiler_missing() -> str | None:
    """Why the kernels cannot be built for the CPU here, or None."""
    if sysconfig.get_platform() != "linux-x86_64":
        return "the CUDA kernels run on the CPU only under Linux on x86-64"
    if shutil.which(compiler()) is None:
        return f"the CUDA kernels run on the CPU only with a C++ compiler: no {compiler()} on PATH"
    if cuda_include() is None:
        return (
            "the CUDA kernels run on the CPU only with the CUDA toolkit's headers (bf16, fp16): "
            "set CUDA_HOME, or pip install 'cuda-toolkit[nvcc,cccl]'"
        )
    return None


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def build_folder(variant: str) -> Path:
    """Where objects are kept: a folder for each checkout, compiler, torch and `variant`."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout
    identity = f"{ROOT}\n{version}\n{torch.__version__}\n{cuda_include()}\n{variant}"
    root = os.environ.get("PACECORE_TEST_CACHE") or (
        Path(tempfile.gettempdir()) / f"pacecore-cuda-on-cpu-{os.getuid()}"
    )
    return Path(root) / hashlib.sha256(identity.encode()).hexdigest()[:16]


def build(*, sanitize: bool = False, coverage: bool = False, program: Path | None = None) -> Path:
    """Compiles csrc/cuda/*.cu with the schemas and host code of csrc; returns the library's path.

    program: a .cu file with a main, built alone, without torch, to an executable instead.
    Raises BuildError.
    """
    flags = "-O0 -g1" if sanitize else "-O2 -g1"
    if sanitize:
        flags += f" {SANITIZE}"
    if coverage:
        flags += " --coverage"
    if program:
        flags += " -DCUDA_ON_CPU_WITHOUT_TORCH"
        sources, link = [program], ""
    else:
        # In this order pace_clip.cu, which takes longest, is begun first.
        sources = sorted((CSRC / "cuda").glob("*.cu"), reverse=True)
        sources += [path for path in sorted(CSRC.glob("*.cpp")) if path.stem != "module"]
        link = f"-shared -Wl,--no-as-needed -L{TORCH / 'lib'} -ltorch -ltorch_cpu"
    work = build_folder(f"{flags} {program}")
    target = work / (program.stem if program else "kernels_on_cpu.so")
    ran = run_ninja(
        work, ninja_file(flags, link, [*sources, *sorted(HERE.glob("*.cpp"))], work, target)
    )
    if ran.returncode:
        raise BuildError(
            f"g++ does not compile the CUDA kernels for the CPU:\n{ran.stdout}{ran.stderr}\n"
            "A CUDA function that is not declared is one that the emulation does not model: "
            f"give it its meaning in {HERE / 'cuda_on_cpu.h'}, or, if it has none on a CPU (PTX), "
            f"put it behind a function with a host version in {CSRC / 'cuda' / 'primitives.h'}."
        )
    return target


def run_ninja(work: Path, rules: str) -> subprocess.CompletedProcess:
    """Builds by `rules` in the folder `work`, MAX_JOBS files at a time, otherwise one on each
    usable processor; a second process waits for the first, and finds its work done.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (work / "build.ninja").write_text(rules)
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        command = [sys.executable, "-m", "ninja", "-j", jobs, "-C", str(work)]
        return subprocess.run(command, capture_output=True, text=True)


def ninja_file(flags: str, link: str, sources: list[Path], work: Path, target: Path) -> str:
    includes = [TORCH / "include", cuda_include(), cuda_include() / "cccl"]
    common = " ".join(
        [
            "-std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas",
            "-fdata-sections -ftrivial-auto-var-init=pattern",
            "-DTORCH_TARGET_VERSION=0x020b000000000000",
            f"-DPACECORE_NAMESPACE={NAMESPACE} -DPACECORE_CUDA_KEY=CPU",
            f"-I{CSRC} -I{CSRC / 'cuda'} -I{HERE}",
            *(f"-isystem {folder}" for folder in includes),
            flags,
        ]
    )
    script = HERE / "shared_memory.ld"
    hidden = "-Wl,--exclude-libs,ALL"  # see setup.py
    lines = [
        "ninja_required_version = 1.3",
        "rule compile",
        f"  command = {compiler()} -MMD -MF $out.d {common} $extra -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler()} {flags} $in -o $out -Wl,-T,{script} {hidden} {link} -ldl",
    ]
    extra = {".cu": f"-include {HERE / 'cuda_on_cpu.h'} -x c++", ".cpp": ""}
    objects = []
    for source in sources:
        objects.append(str(work / f"{source.stem}_{source.parent.name}.o"))
        lines += [f"build {objects[-1]}: compile {source}", f"  extra = {extra[source.suffix]}"]
    lines += [f"build {target}: link {' '.join(objects)} | {script}", f"default {target}", ""]
    return "\n".join(lines)
