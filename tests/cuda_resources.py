"""What nvcc makes of each kernel: registers, spills, stack, shared memory, occupancy, accesses.

tests/cuda_resources.json holds the accepted numbers of every kernel for sm_80, sm_90, sm_100 and
the newest architecture of the nvcc named there. `threads` is the kernel's __launch_bounds__;
`dynamic_shared` the bytes that its launch asks for at the paper's sizes, on GPUs without and with
clusters; `blocks_per_sm` is the stated occupancy. `compiled` is a hash of nvcc's numbers and of all
that they depend on: while it holds nothing is compiled, which takes minutes. After a change that is
meant, also of nothing but comments:

    python -m tests.cuda_resources            shows what differs
    python -m tests.cuda_resources --update   accepts it; --lower too where occupancy falls
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from pacecore.frames import Frames
from pacecore.ops import info_nce, pace_clip
from tests.cuda_on_cpu import devices
from tests.cuda_on_cpu.build import CSRC, ROOT, TORCH, build_folder, run_ninja

__all__ = [
    "TABLE",
    "blocks_per_sm",
    "compile_kernels",
    "compiled",
    "differences",
    "disassembler",
    "nvcc",
]

TABLE = ROOT / "tests" / "cuda_resources.json"
FLAGS = (
    "-std=c++20 -O3 --expt-relaxed-constexpr -Xptxas -v -DTORCH_TARGET_VERSION=0x020b000000000000"
)
# Bytes of shared memory of a multiprocessor and of its resident threads and blocks, by compute
# capability: CUDA C++ Programming Guide, technical specifications.
LIMITS = {
    80: (164 * 1024, 2048, 32),
    90: (228 * 1024, 2048, 32),
    100: (228 * 1024, 2048, 32),
    103: (228 * 1024, 2048, 32),
    110: (228 * 1024, 1536, 24),
    120: (100 * 1024, 1536, 24),
    121: (100 * 1024, 1536, 24),
}
REGISTERS = 65536  # of a multiprocessor, on every architecture of LIMITS


@dataclass(frozen=True)
class Report:
    """nvcc's words on one kernel, and its launch bounds."""

    name: str  # pace_clip_kernel<float, 4>
    mangled: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int  # static
    threads: int | None  # of __launch_bounds__; None without


def nvcc() -> Path | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [Path(home) / "bin" / "nvcc"] if home else []
    on_path = shutil.which("nvcc")
    places += [Path(on_path)] if on_path else []
    places += [Path("/usr/local/cuda/bin/nvcc")]
    return next((path for path in places if path.is_file()), None)


def disassembler() -> Path | None:
    """nvdisasm: PACECORE_NVDISASM, PATH, beside nvcc, or of the package nvidia-cuda-nvdisasm."""
    named = os.environ.get("PACECORE_NVDISASM")
    on_path = shutil.which("nvdisasm")
    places = [Path(place) for place in (named, on_path) if place]
    places += [nvcc().parent / "nvdisasm"] if nvcc() else []
    places += Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvdisasm")
    return next((path for path in places if path.is_file()), None)


def nvcc_version() -> str:
    command = [nvcc(), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def release() -> str:
    return re.search(r"release (\d+\.\d+)", nvcc_version())[1]


def compiled(kernels: dict) -> str:
    """A hash of nvcc's numbers of `kernels`, as in the table, and of what they depend on: itself,
    its flags, torch and the sources.
    """
    known = hashlib.sha256(f"{nvcc_version()}\n{FLAGS}\n{torch.__version__}\n".encode())
    for path in sorted([*CSRC.glob("*.h"), *CSRC.glob("cuda/*")]):
        known.update(f"{path.relative_to(CSRC)}\n".encode() + path.read_bytes())
    known.update(json.dumps(kernels, sort_keys=True).encode())
    return known.hexdigest()


def architectures() -> list[int]:
    """80, 90, 100 and the newest that this nvcc compiles for."""
    command = [nvcc(), "--list-gpu-arch"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    known = {int(number) for number in re.findall(r"compute_(\d+)\b", text)}
    return sorted({80, 90, 100} & known | {max(known)})


def compile_kernels() -> dict[int, list[Path]]:
    """{architecture: cubins of every csrc/cuda/*.cu}, each beside its .txt report and its .ptx.

    Only what changed since the last call is compiled.
    """
    work = build_folder(f"{nvcc()} {release()} cubin")
    flags = f"{FLAGS} -I{CSRC} -isystem {TORCH / 'include'}"
    lines = [
        "ninja_required_version = 1.3",
        "rule cubin",
        f"  command = mkdir -p $out.keep && {nvcc()} -cubin -arch=sm_$arch {flags} -MD -MF $out.d "
        "--keep --keep-dir $out.keep $in -o $out > $out.txt 2>&1 || (cat $out.txt && false)",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    cubins = {
        arch: [work / f"{path.stem}_{arch}.cubin" for path in sorted(CSRC.glob("cuda/*.cu"))]
        for arch in architectures()
    }
    for arch, targets in cubins.items():
        for source, target in zip(sorted(CSRC.glob("cuda/*.cu")), targets, strict=True):
            lines += [f"build {target}: cubin {source}", f"  arch = {arch}"]
    ran = run_ninja(work, "\n".join([*lines, ""]))
    if ran.returncode:
        raise RuntimeError(f"nvcc does not compile csrc/cuda:\n{ran.stdout}{ran.stderr}")
    return cubins


def demangle(names: list[str]) -> list[str]:
    """`pace_clip_kernel<float, 4>` of each mangled name: no namespaces, result or parameters."""
    ran = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    short = []
    for line in ran.stdout.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|\bpacecore::", "", line)
        name = re.sub(r"\((?:int|bool|unsigned int)\)(\d+)", r"\1", name)
        depth = 0
        for end, letter in enumerate(name):
            depth += (letter == "<") - (letter == ">")
            if letter == "(" and depth == 0:
                name = name[:end]
                break
        short.append(name.removeprefix("void "))
    return short


def reports(cubin: Path) -> list[Report]:
    """Every kernel of a cubin, by the report that compile_kernels wrote beside it."""
    text = Path(f"{cubin}.txt").read_text()
    ptx = "\n".join(path.read_text() for path in Path(f"{cubin}.keep").glob("*.ptx"))
    bounds = dict(re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx))
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    found = re.findall(pattern, text, re.DOTALL)
    result = []
    for name, (mangled, stack, stores, loads, registers, rest) in zip(
        demangle([row[0] for row in found]), found, strict=True
    ):
        shared = re.search(r"(\d+) bytes smem", rest)
        result.append(
            Report(
                name=name,
                mangled=mangled,
                registers=int(registers),
                spill_bytes=int(stores) + int(loads),
                stack_bytes=int(stack),
                shared_bytes=int(shared[1]) if shared else 0,
                threads=int(bounds[mangled]) if mangled in bounds else None,
            )
        )
    return result


def blocks_per_sm(arch: int, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks that one multiprocessor holds at once, as the CUDA occupancy calculator counts."""
    shared_limit, thread_limit, block_limit = LIMITS[arch]
    warps = -(-threads // 32)
    registers_of_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // registers_of_warp // 4 * 4 // warps
    # The system keeps 1 KB of each block's shared memory; both are dealt out in units of 128 bytes.
    by_shared = shared_limit // (-(-(shared_bytes + 1024) // 128) * 128)
    return min(by_registers, by_shared, thread_limit // (32 * warps), block_limit)


def loop_accesses(cubin: Path) -> dict[str, list[str]]:
    """{mangled name: kinds of memory access, "LDG.E.128", in the kernel's loops}."""
    command = [disassembler(), "-c", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = {}
    for section in re.split(r"\n\t\.section\t\.text\.", text)[1:]:
        lines = section.splitlines()
        labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.L_x_\d+:", line)}
        loops = []
        for end, line in enumerate(lines):
            target = re.search(r"BRA[^`]*`\((\.L_x_\d+)\)", line)
            start = labels.get(target[1], end) if target else end
            # A branch to itself pads the kernel's end.
            if start < end - 1:
                loops.append((start, end))
        kinds = set()
        for line in {line for start, end in loops for line in lines[start:end]}:
            access = re.search(r"\s((?:LD|ST|RED|ATOM)[A-Z]*(?:\.[A-Z0-9_]+)*) [^;]*\[", line)
            if access and "@!PT" not in line:
                kinds.add(access[1])
        result[lines[0].split(",")[0]] = sorted(kinds)
    return result


def launch_at_paper_sizes() -> None:
    """Launches each kernel: clips of 112 x 112 from 240 x 320, 60 embeddings of 512, and many."""
    plane = torch.zeros(240 * 320 * 3 // 2, dtype=torch.uint8)
    frames = Frames.of_yuv420p(plane, (240, 320))
    plan = torch.zeros(1, 1, dtype=torch.int32)
    crop = torch.zeros(1, 3, dtype=torch.int32)
    jitter, order = torch.ones(1, 1, 4), torch.full((1, 1), 0b11100100, dtype=torch.int32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            sizes = {"resize": (128, 171), "crop_size": (112, 112)}
            for drawn in ((jitter, order), (None, None)):
                pace_clip(frames, plan, crop, *drawn, dtype=dtype, memory_format=layout, **sizes)
        for n, features in ((60, 512), (60, 511), (513, 9)):
            z = torch.ones(n, features, dtype=dtype).requires_grad_()
            for denominator in ("anchor", "batch"):
                info_nce(z, torch.arange(n) // 2, denominator=denominator).loss.backward()


def dynamic_shared(kernels: list[str]) -> dict[str, dict[str, int | None]]:
    """{kernel: bytes on sm_80 and sm_90}, by launching on the emulated devices."""
    result: dict[str, dict[str, int | None]] = {name: {} for name in kernels}
    # What a launch asks for is the same under every order of its threads.
    one_order = mock.patch.dict(os.environ, {devices.SCHEDULES_VARIABLE: "forwards"})
    for architecture, emulated in (("sm_80", 86), ("sm_90", 90)):
        with devices.emulation(emulated), one_order:
            launch_at_paper_sizes()
            for name in kernels:
                result[name][architecture] = devices.shared_bytes(name)
    return result


def measure(table: dict, *, again: bool = False) -> dict:
    """The table as this nvcc would have it; without nvdisasm the accesses are those of `table`.

    again: compiled, though nothing changed since `table`.
    """
    known = table["kernels"]
    unchanged = table.get("compiled") == compiled(known)
    if unchanged and not again and disassembler() is None:
        dynamic = dynamic_shared(list(known))
        kernels = {name: known[name] | {"dynamic_shared": dynamic[name]} for name in known}
        return {**table, "kernels": kernels}
    kernels = {}
    cubins_of = compile_kernels()
    names = [report.name for cubin in cubins_of[80] for report in reports(cubin)]
    dynamic = dynamic_shared(names)
    for arch, cubins in cubins_of.items():
        for cubin in cubins:
            accesses = loop_accesses(cubin) if disassembler() else {}
            for report in reports(cubin):
                before = known.get(report.name, {})
                entry = kernels.setdefault(
                    report.name,
                    {"threads": report.threads, "dynamic_shared": dynamic[report.name]},
                )
                asked = dynamic[report.name]["sm_80" if arch < 90 else "sm_90"] or 0
                shared = report.shared_bytes + asked
                threads = report.threads or 1024
                entry[f"sm_{arch}"] = {
                    "registers": report.registers,
                    "spill": report.spill_bytes,
                    "stack": report.stack_bytes,
                    "shared": report.shared_bytes,
                    "blocks_per_sm": blocks_per_sm(arch, threads, report.registers, shared),
                    "loop_accesses": accesses.get(
                        report.mangled, before.get(f"sm_{arch}", {}).get("loop_accesses")
                    ),
                }
    kernels = dict(sorted(kernels.items()))
    return {"nvcc": release(), "compiled": compiled(kernels), "kernels": kernels}


def differences(old: dict, new: dict) -> list[str]:
    """What keeps `new` from being accepted beside the table `old`, one line a finding.

    Of another nvcc than the table's only the rules count: launch bounds, no spill, no less
    occupancy.
    """
    findings = []
    same_nvcc = old["nvcc"] == new["nvcc"]
    for name in sorted(set(old["kernels"]) - set(new["kernels"])):
        findings.append(f"{name}: in the table, but no longer compiled")
    for name, entry in new["kernels"].items():
        known = old["kernels"].get(name)
        if known is None:
            findings.append(f"{name}: not in the table")
            known = {}
        if entry["threads"] is None:
            findings.append(f"{name}: has no __launch_bounds__")
        for arch, numbers in entry.items():
            if not arch.startswith("sm_"):
                continue
            before = known.get(arch, {})
            if numbers["spill"]:
                findings.append(f"{name}, {arch}: spills {numbers['spill']} bytes")
            if numbers["blocks_per_sm"] < before.get("blocks_per_sm", 1):
                findings.append(
                    f"{name}, {arch}: {numbers['blocks_per_sm']} blocks on a multiprocessor, below "
                    f"the stated {before.get('blocks_per_sm', 1)}"
                )
            if same_nvcc and before:
                findings += [
                    f"{name}, {arch}: {key} was {before.get(key)}, is {value}"
                    for key, value in numbers.items()
                    if value != before.get(key)
                ]
        findings += [
            f"{name}: {key} was {known[key]}, is {entry[key]}"
            for key in ("threads", "dynamic_shared")
            if known and known[key] != entry[key]
        ]
        if None in entry["dynamic_shared"].values():
            findings.append(f"{name}: not launched by launch_at_paper_sizes")
    return findings


def written(table: dict) -> str:
    """The table as JSON, a line for all that is known of a kernel on an architecture."""
    kernels = {
        name: ",\n".join(f"   {json.dumps(key)}: {json.dumps(entry[key])}" for key in entry)
        for name, entry in table["kernels"].items()
    }
    lines = ",\n".join(f"  {json.dumps(name)}: {{\n{of}\n  }}" for name, of in kernels.items())
    head = "".join(f" {json.dumps(k)}: {json.dumps(table[k])},\n" for k in table if k != "kernels")
    return f'{{\n{head} "kernels": {{\n{lines}\n }}\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--lower", action="store_true")
    options = parser.parse_args()
    old = json.loads(TABLE.read_text())
    new = measure(old, again=True)
    findings = differences(old, new)
    print("\n".join(findings) or "as the table says")
    lower = [line for line in findings if "below the stated" in line or "spills" in line]
    if not options.update:
        sys.exit(bool(findings))
    if lower and not options.lower:
        sys.exit("not updated: occupancy falls or registers spill; --lower accepts that")
    TABLE.write_text(written(new))


if __name__ == "__main__":
    main()
