"""The steps of gpu_check: each runs a command in the copied tree and says what it found."""

import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from .common import PACECORE, run_limited
from .outcomes import read_outcomes
from .suite import BENCHMARKS, LIMITS

__all__ = ["STEPS", "TOGETHER", "Context", "Result", "breaks", "run_step"]

_TESTS_SECONDS = 140
_KEPT_CHARACTERS = 4000  # of a step's output, in the record; the whole of it is in DIR/STEP.log


@dataclass
class Result:
    """What a step found. values: its figures, as JSON can hold them."""

    name: str
    state: str = "passed"
    said: str = ""  # one line
    seconds: float = 0.0
    date: str = ""  # when it began
    values: dict = field(default_factory=dict)
    output: str = ""


@dataclass(frozen=True)
class Context:
    """Where the steps run and write."""

    tree: Path  # the copy of the source tree
    out: Path
    train_steps: int = 60
    device: str = "cuda"
    data: str | None = None
    official: str | None = None
    deadline: float = math.inf  # of time.perf_counter()

    def result_file(self, name: str) -> Path:
        """Where a step is to leave what it found; what an earlier run left there is gone."""
        path = self.out / name
        path.unlink(missing_ok=True)
        return path

    def run(self, name: str, command: list[str], limit: float, **environment: str) -> tuple:
        """(exit code, output) of a command in the tree; None for a code past its limit."""
        paths = [str(self.tree), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
        limit = max(1.0, min(limit, self.deadline - time.perf_counter()))
        return run_limited(command, self.out / f"{name}.log", limit, cwd=self.tree, env=environ)


def _judged(name: str, code: int | None, output: str, limit: float) -> Result:
    if code is None:
        said = f"not done after {limit:.0f} s, or in the time of all steps"
        return Result(name, "failed", said, output=output)
    last = (output.strip().splitlines() or ["it said nothing"])[-1]
    if code < 0:
        last = f"ended by signal {signal.Signals(-code).name}; {last}"
    return Result(name, "failed" if code else "passed", last, output=output)


def _on_gpu_only(step: Callable[[Context], Result], name: str) -> Callable[[Context], Result]:
    def judged(context: Context) -> Result:
        if context.device != "cuda":
            return Result(name, "skipped", "a rehearsal without a GPU")
        return step(context)

    return judged


# ---- the steps, each Context -> Result


def build(context: Context) -> Result:
    import torch

    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    architecture, settings = "none", {"PACECORE_CUDA": "0"}
    if context.device == "cuda":
        architecture = "{}.{}".format(*torch.cuda.get_device_capability())
        settings = {"PACECORE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture}
        settings["NVCC_APPEND_FLAGS"] = "-lineinfo"  # which the sanitizer then names
    code, output = context.run("build", command, 180, **settings)
    result = _judged("build", code, output, 180)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", output)
    result.values = {
        "architecture": architecture,
        "kernels": len(re.findall(r"Compiling entry function", output)),
        "kernels_that_spill": sum(pair != ("0", "0") for pair in spills),
    }
    said = re.findall(r"^pacecore .*", output, re.MULTILINE)
    result.said = said[-1] if said else result.said
    return result


def doctor(context: Context) -> Result:
    script = (
        "import json, dataclasses; from pacecore.doctor import *; found = doctor();"
        "print(json.dumps([dataclasses.asdict(f) for f in found]))"
    )
    code, output = context.run("doctor", [sys.executable, "-c", script], 60)
    result = _judged("doctor", code, output, 60)
    if code == 0:
        findings = json.loads(output.strip().splitlines()[-1])
        absent = [] if find_spec("av") else ["video"]  # not needed by what comes first
        bad = [f for f in findings if f["state"] == "missing" and f["name"] not in absent]
        result.values = {"findings": findings}
        result.state = "failed" if bad else "passed"
        result.said = "; ".join(f"{f['name']}: {f['found']}" for f in bad) or "nothing is missing"
    return result


def exercise(context: Context) -> Result:
    command = [sys.executable, "-m", "benchmarks.gpu_exercise", "--device", context.device]
    result = _judged("exercise", *context.run("exercise", command, 60), 60)
    result.values = {"went_through": "results compared" in result.output}
    return result


def tests(context: Context) -> Result:
    """The CUDA tests, where a skip counts as a failure, but for those of videos that are not there
    and of whole files, which hold none on CUDA: they need a package that is not here.

    In several processes where pytest-xdist is installed, as the references are computed on the CPU.
    The comparison with the kernels run on the CPU is left to `pytest -m cuda`: what it compares
    with takes a minute to compile.
    """
    record = context.result_file("tests.jsonl")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.outcomes", f"--outcomes={record}"]
    command += ["--continue-on-collection-errors", "tests"]
    command += ["--ignore", "tests/test_cuda_against_emulation.py"]
    cores = os.cpu_count() or 1
    processes = min(6, cores) if find_spec("xdist") else 1
    command += ["-n", str(processes)] if processes > 1 else []
    settings = {"PACECORE_REQUIRE_CUDA": "1", "OMP_NUM_THREADS": str(max(1, cores // processes))}
    code, output = context.run("tests", command, _TESTS_SECONDS, **settings)
    result = _judged("tests", code, output, _TESTS_SECONDS)
    if outcomes := read_outcomes(record):
        result.values = counts = _counts(outcomes)
        bad = counts["failed"] + counts["skipped"] + len(counts["not_collected"])
        # 1 is also of files that lack av; any other is of a run that did not end as it should.
        ended = code in ((0, 1) if bad or counts["needs_av"] else (0,))
        result.state = "passed" if counts["passed"] and not bad and ended else "failed"
        found = ", ".join(f"{counts[k]} {k}" for k in ("passed", "failed", "skipped"))
        result.said = found if ended else f"{found}; {result.said}"
        if not ended:  # so that pytest has not told of them
            failed = [f"{n}: {o['why']}" for n, o in outcomes.items() if o["outcome"] == "failed"]
            result.output = "\n".join([result.output, *failed])
        if counts["needs_videos"]:
            result.said += f"; {counts['needs_videos']} of real videos, which are not here"
        words = {"needs_av": "without av not collected", "not_collected": "not collected"}
        for kind, said in {**words, "left_out": "without"}.items():
            result.said += f"; {said}: {' '.join(counts[kind])}" if counts[kind] else ""
    return result


def _counts(outcomes: dict[str, dict]) -> dict:
    """Tests by outcome; files that did not import for want of av stand apart, and those that left
    themselves out.
    """
    counts: dict = {"passed": 0, "failed": 0, "skipped": 0, "needs_videos": 0}
    counts |= {"needs_av": [], "not_collected": [], "left_out": []}
    for name, outcome in outcomes.items():
        kind, why = outcome["outcome"].replace(" ", "_"), outcome["why"]
        if kind == "not_collected" and "No module named 'av'" in why and not find_spec("av"):
            kind = "needs_av"
        elif kind == "skipped" and "PACECORE_DATA" in why:
            kind = "needs_videos"
        if isinstance(counts[kind], list):
            counts[kind].append(name)
        else:
            counts[kind] += 1
    return counts


def sanitizer(tool: str) -> Callable[[Context], Result]:
    def step(context: Context) -> Result:
        program = shutil.which("compute-sanitizer") or shutil.which(
            "compute-sanitizer", path="/usr/local/cuda/bin"
        )
        if not program:
            return Result(tool, "skipped", "compute-sanitizer is not on this machine")
        # Without torch's cache every tensor is an allocation whose ends the tool knows.
        command = [program, "--tool", tool, "--error-exitcode", "9"]
        command += [sys.executable, "-m", "benchmarks.gpu_exercise"]
        command += ["--few"] if tool == "racecheck" else []  # the slowest
        # Beside the tests, whose references want the cores.
        settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "2"}
        code, output = context.run(tool, command, 90, **settings)
        result = _judged(tool, code, output, 90)
        if "Device not supported" in output:
            return Result(tool, "skipped", "compute-sanitizer: Device not supported", output=output)
        said = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY:.*)", output)
        wrong = [each for each in said if not re.match(r"\w+ SUMMARY: 0 ", each)]
        result.said = (wrong or said or [result.said])[-1]
        if wrong or not said:  # a tool that said nothing has checked nothing
            result.state = "failed"
        return result

    return step


def benchmark(name: str) -> Callable[[Context], Result]:
    def step(context: Context) -> Result:
        if not find_spec("av") and name not in _WITHOUT_VIDEO:
            return Result(name, "skipped", "PyAV is not installed, so no video can be read")
        record = context.result_file(f"{name}-{context.device}.json")
        limit = _SECONDS.get(name, 60)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--device", context.device]
        command += ["--quick", "--out", str(record)]
        for option in _TAKES.get(name, ()):
            value = getattr(context, option)
            command += [f"--{option}", value] if value else []
        code, output = context.run(name, command, limit)
        result = _judged(name, code, output, limit)
        cases = json.loads(record.read_text())["cases"] if record.is_file() else []
        kept = f"{len(cases)} cases in {record.name}"
        left_out = [line.strip() for line in output.splitlines() if "left out" in line]
        if cases:
            result.values = {"cases": cases}
            result.said = kept if code == 0 else f"{result.said}; {kept}"
        elif code == 0:  # it has measured nothing
            result.state, result.said = "failed", kept
        failed = [case["failed"] for case in cases if "failed" in case]
        if failed:
            result.state, result.said = "failed", f"{kept}; {failed[0]}"
        result.said = "; ".join([result.said, *left_out])
        return result

    return step


def train(context: Context) -> Result:
    """A short run of the trainer on the demo set, from files to checkpoint."""
    return _trained("train", context, [])


def train_resident(context: Context) -> Result:
    """From a frame store that is held in the GPU's memory, in bf16 and as a CUDA graph."""
    name, demo, store = "train_resident", context.tree / "demo", context.tree / "store"
    make = ["data", "demo", str(demo), "--groups", "4"]
    pack = ["data", "pack", str(demo), str(store), "--size", "64x86"]
    if find_spec("av"):
        for arguments in (make, pack):
            result = _judged(name, *context.run(name, [*PACECORE, *arguments], 60), 60)
            if result.state == "failed":
                return result
    on_gpu = ["--amp", "bf16", "--graph"] if context.device == "cuda" else []
    result = _trained(name, context, [str(store), "--data-on", "device", *on_gpu])
    if result.state == "passed" and "all frames are held on" not in result.output:
        result.state, result.said = "failed", "the frames were not held on the device"
    summary = context.tree / name / "summary.json"
    if on_gpu and summary.is_file():
        amp = json.loads(summary.read_text())["options"]["amp"]
        result.said += "" if amp == "bf16" else "; in fp32, as bf16 was slower here or wrong"
    return result


def _trained(name: str, context: Context, arguments: list[str]) -> Result:
    if not find_spec("av"):
        return Result(name, "skipped", "PyAV is not installed, so no video can be written or read")
    out = context.tree / name
    command = [*PACECORE, "train", *arguments, "--preset", "small", "--device", context.device]
    command += ["--max-steps", str(context.train_steps), "--out", str(out)]
    code, output = context.run(name, command, 120)
    result = _judged(name, code, output, 120)
    rates = re.findall(r"^trained .*", output, re.MULTILINE)
    result.said = rates[-1] if rates and code == 0 else result.said
    if (out / "metrics.jsonl").is_file():
        lines = (out / "metrics.jsonl").read_text().splitlines()
        result.values = {"metrics": [json.loads(line) for line in lines]}
    return result


# Of quick runs; any other has a minute. info_nce needs it on a CPU, where it compiles, train_step
# on a GPU, where cuDNN searches for its convolutions three times.
_SECONDS = {"pretrain": 200, "info_nce": 120, "train_step": 120, "scaling": 100, "backbones": 90}
_TAKES = {name: benchmark.takes for name, benchmark in BENCHMARKS.items()} | {"scaling": ("data",)}
_WITHOUT_VIDEO = (LIMITS, "pace_clip", "info_nce", "backbones", "memory")

STEPS: dict[str, Callable[[Context], Result]] = {
    "build": build,
    "exercise": exercise,
    LIMITS: benchmark(LIMITS),
    "doctor": doctor,
    "tests": _on_gpu_only(tests, "tests"),
    **{
        tool: _on_gpu_only(sanitizer(tool), tool) for tool in ("memcheck", "racecheck", "initcheck")
    },
    "train": train,
    "train_resident": train_resident,
    "memory": benchmark("memory"),
    **{name: benchmark(name) for name in ("pace_clip", "info_nce", "backbones", "data")},
    **{name: benchmark(name) for name in ("train_step", "evaluate", "retrieve", "pretrain")},
    "scaling": benchmark("scaling"),  # last, as no page shows its figures: it is the least to lose
}
# What those that run side by side have in common.
TOGETHER = {
    **dict.fromkeys(("doctor", "tests", "memcheck", "racecheck", "initcheck"), "not timed"),
    **dict.fromkeys(("train", "train_resident", "memory"), "not timed"),
    **dict.fromkeys(("backbones", "data"), "the GPU, and CPU time of one core"),
}


def breaks(result: Result) -> bool:
    """Whether nothing else can pass after this: no build, or one that crashes."""
    if result.name == "exercise":
        return result.state == "failed" and not result.values.get("went_through")
    return result.name == "build" and result.state == "failed"


def run_step(name: str, context: Context) -> Result:
    """Runs one step; whatever goes wrong is its result."""
    start_time = time.perf_counter()
    date = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    try:
        result = STEPS[name](context)
    except Exception as error:
        result = Result(name, "failed", f"{type(error).__name__}: {error}")
    result.date = date
    result.seconds = round(time.perf_counter() - start_time, 1)
    result.output = result.output[-_KEPT_CHARACTERS:]
    return result
