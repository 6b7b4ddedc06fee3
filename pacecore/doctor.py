"""What was built, what was found, what is missing and how to mend it.

Each check stands alone and imports what it looks at itself, so that a broken part is a line of the
report and not the end of it.
"""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pacecore._extension import REBUILD

__all__ = ["Finding", "doctor", "is_broken"]

_REBUILD = f"reinstall from the source folder: {REBUILD}"
_EXTRAS = {"matplotlib": "plots", "tensorboard": "tensorboard", "safetensors": "safetensors"}


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, its state, what was found, how to mend it.

    state: "ok", "warn", or "missing" where something that pacecore needs is absent or wrong.
    """

    name: str
    state: str
    found: str
    mend: str = ""


def doctor() -> list[Finding]:
    """Runs every check, on every device that torch sees, and returns what each of them found."""
    findings = []
    for name, check in _CHECKS.items():
        try:
            findings += [Finding(name, *rest) for rest in check()]
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            findings.append(
                Finding(
                    name, "missing", f"{type(error).__name__}: {reason}", _MEND.get(name, _REBUILD)
                )
            )
    return findings


def is_broken(findings: list[Finding]) -> bool:
    """Whether something that pacecore needs is absent or wrong."""
    return any(finding.state == "missing" for finding in findings)


Rest = Iterator[tuple[str, ...]]  # a Finding without its name


def _python() -> Rest:
    import numpy

    version = platform.python_version()
    yield "ok", f"{version} ({sys.executable}), numpy {numpy.__version__}, {platform.platform()}"


def _torch() -> Rest:
    import torch

    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU"
    found = f"{torch.__version__}, built {built}, {torch.backends.cpu.get_cpu_capability()}"
    numbers = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if numbers and (int(numbers[1]), int(numbers[2])) < (2, 11):
        yield "missing", found, _MEND["torch"]
    else:
        yield "ok", found


def _extension() -> Rest:
    from pacecore._extension import extension

    info = extension().build_info()
    cuda = (
        f"CUDA {info['cuda']} kernels for {info['cuda_architectures']}"
        if info["cuda"]
        else "CPU kernels only"
    )
    found = f"{info['version']}: {cuda}; headers of torch {info['torch_headers']}, "
    found += f"compiler {info['compiler']}"
    # In an editable install, after a change or a pull.
    sources = (Path(__file__).parent.parent / "csrc").rglob("*.*")
    built = Path(extension().__file__).stat().st_mtime
    if any(source.stat().st_mtime > built for source in sources):
        yield "warn", f"{found}; older than csrc", "python setup.py build_ext --inplace"
    else:
        yield "ok", found


def _gpu() -> Rest:
    import torch

    from pacecore.kernels import OLDEST, lack_of

    if not torch.cuda.is_available():
        seen = _nvidia_smi()
        if not seen:
            yield "ok", "none found; everything runs on the CPU"
        elif torch.version.cuda is None:
            mend = "install a CUDA build of torch; pacecore need not be rebuilt"
            yield "warn", f"{seen}, but this torch is built for the CPU", mend
        else:
            mend = "see what torch.cuda.init() says; often the driver is older than torch's CUDA"
            yield "warn", f"{seen}, but torch {torch.__version__} cannot use it", mend
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = (properties.major, properties.minor)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        found = f"cuda:{number} {properties.name}, {memory}, sm_{capability[0]}{capability[1]}"
        lack = lack_of(number)
        if lack:
            state = "warn" if capability < OLDEST else "missing"
            yield state, f"{found}; {lack.reason}", lack.mend
        else:
            yield "ok", f"{found}; {_nvidia_smi()}"


def _nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    line = done.stdout.strip().partition("\n")[0] if done.returncode == 0 else ""
    return "driver sees " + line.replace(", ", ", driver ") if line else ""


def _video() -> Rest:
    import av

    from pacecore.video_writer import has_codec, video_encoder

    libraries = av.library_versions["libavcodec"]
    decoders = [n for n in ("h264", "hevc", "mpeg4", "vp9", "av1") if has_codec(n, "r")]
    encoder = video_encoder()
    found = (
        f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, libraries))}; "
        f"reads {' '.join(decoders)}; writes {encoder}"
    )
    lacking = [name for name in ("h264", "mpeg4") if name not in decoders]
    mend = "install PyAV's own wheel: pip install --force-reinstall av"
    if lacking:
        yield "missing", f"{found}; lacks {' '.join(lacking)}", mend
    elif encoder != "libx264":
        yield "warn", f"{found}; without libx264 the demo set is MPEG-4 instead of H.264", mend
    else:
        yield "ok", found


def _threads() -> Rest:
    import torch

    from pacecore.workers import core_count

    usable = core_count()
    found = f"{torch.get_num_threads()} threads of torch on {usable} usable processors"
    if torch.get_num_threads() > usable:
        yield "warn", found, f"set OMP_NUM_THREADS={usable}"
    else:
        yield "ok", found


def _tools() -> Rest:
    from pacecore._extension import extension

    names = (*shlex.split(os.environ.get("CXX", ""))[:1], "g++", "c++", "clang++")
    compilers = [name for name in names if name and shutil.which(name)]
    homes = filter(None, map(os.environ.get, ("CUDA_HOME", "CUDA_PATH")))
    folders = [f"{home}/bin" for home in homes]
    folders += [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    folders += map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"))
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    ninja = shutil.which("ninja") or importlib.util.find_spec("ninja")
    found = f"C++: {compilers[0] if compilers else 'none'}; nvcc: {nvcc or 'none'}; " + (
        "ninja found" if ninja else "ninja: fetched by pip at need"
    )
    if not compilers:
        yield "warn", found, "only needed to build again: install g++"
    elif nvcc and not extension().build_info()["cuda"]:
        mend = _REBUILD.replace("pip", "PACECORE_CUDA=1 pip", 1)  # which says what it lacks
        yield "warn", f"{found}; this pacecore was built without CUDA kernels", mend
    else:
        yield "ok", found


def _extras() -> Rest:
    there = [name for name in _EXTRAS if importlib.util.find_spec(name)]
    lacking = [extra for name, extra in _EXTRAS.items() if name not in there]
    found = f"found {', '.join(there) or 'none'}"
    if lacking:
        found += f"; optional: pip install 'pacecore[{','.join(lacking)}]'"
    yield "ok", found


def _devices() -> list[str]:
    import torch

    return ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]


def _pace_clip() -> Rest:
    """One clip with every step of the op, in each device's kernels, against float64."""
    import torch

    from pacecore.frames import Frames
    from pacecore.ops.pace_clip import pace_clip
    from pacecore.reference.pace_clip import pace_clip as reference

    height, width, count = 37, 51, 3
    size = height * width + 2 * ((height + 1) // 2) * ((width + 1) // 2)
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (count * size,), dtype=torch.uint8, generator=generator)
    frames = Frames.of_yuv420p(data, (height, width))
    plan = torch.tensor([[0, 1, 1, 2]], dtype=torch.int32)
    crop = torch.tensor([[3, 5, 1]], dtype=torch.int32)
    jitter = torch.tensor([[[1.2, 0.7, 1.4, 0.1]]], dtype=torch.float32).repeat(1, 4, 1)
    order = torch.full((1, 4), 0 | 2 << 2 | 3 << 4 | 1 << 6, dtype=torch.int32)
    sizes = {"resize": (32, 44), "crop_size": (24, 24)}
    expected = reference(frames, plan, crop, jitter, order, **sizes, dtype=torch.float64)
    for device in _devices():
        moved = [tensor.to(device) for tensor in (plan, crop, jitter, order)]
        clips = pace_clip(frames.to(device), *moved, **sizes)
        error = (clips.cpu() - expected).abs().max().item()
        # Values run from 0 to 255; hue makes thousandths of a rounding of the sixth digit.
        yield _judged(device, error, 0.05, "of 255")


def _info_nce() -> Rest:
    """Loss and gradient of one batch, in each device's kernels, against float64."""
    import torch

    from pacecore.ops.info_nce import info_nce
    from pacecore.reference.info_nce import info_nce as reference

    z = torch.randn((24, 40), generator=torch.Generator().manual_seed(0))
    groups = torch.arange(24) // 2
    exact = z.double().requires_grad_()
    expected = reference(exact, groups)[0]
    expected.backward()
    for device in _devices():
        leaf = z.to(device, copy=True).requires_grad_()  # to the CPU it would be z itself
        loss = info_nce(leaf, groups.to(device)).loss
        loss.backward()
        error = max(
            (loss.detach().cpu() - expected.detach()).abs().item() / expected.item(),
            ((leaf.grad.cpu() - exact.grad).norm() / exact.grad.norm()).item(),
        )
        yield _judged(device, error, 1e-4, "relative")


def _bf16_convolution() -> Rest:
    """conv3d in bf16 against fp32: some torch and cuDNN versions get it wrong, or run it slowly."""
    from pacecore.backbones.bf16 import check_bf16_conv3d

    for device in _devices():
        check = check_bf16_conv3d(device)
        if check.usable:
            yield "ok", check.report()
        else:
            yield "warn", check.report(), "train without --amp bf16; training falls back by itself"


def _judged(device: str, error: float, bound: float, unit: str) -> tuple[str, ...]:
    found = f"{device}: largest error against the reference {error:.1e} {unit}"
    if error <= bound:  # False for NaN too
        return "ok", found
    return "missing", f"{found}, more than {bound:.0e}", f"the kernels are wrong here; {_REBUILD}"


_CHECKS: dict[str, Callable[[], Rest]] = {
    "python": _python,
    "torch": _torch,
    "extension": _extension,
    "gpu": _gpu,
    "video": _video,
    "threads": _threads,
    "build tools": _tools,
    "extras": _extras,
    "pace_clip": _pace_clip,
    "info_nce": _info_nce,
    "bf16 conv3d": _bf16_convolution,
}
_MEND = {
    "python": "pip install --force-reinstall numpy",
    "torch": "pip install --upgrade 'torch>=2.11'",
    "video": "pip install --force-reinstall av",
}
