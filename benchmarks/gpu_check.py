"""One command for a machine with a GPU: builds, tests, sanitizes, times and trains, cheapest first.

    python -m benchmarks.gpu_check --out DIR [--only build,limits] [--train-steps 60]

Works from a source tree, with the torch of the running Python, in a copy of the tree; nothing needs
to be installed and nothing is fetched. Each step is a process of its own with a limit in seconds,
so what one step found stays when a later one fails, and all end within 8 minutes. DIR then holds
gpu_check-cuda.json and gpu_check-cuda.md, written anew after every step. Exit codes: 0 all passed,
1 a step failed, 2 no GPU. The README shows the record of a GPU that lies in benchmarks/results.

    python -m benchmarks.gpu_check --out DIR --device cpu

rehearses it on a CPU: what needs a GPU is skipped, and says so.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from .common import ROOT, run_limited, write_aside
from .rows import rows_of
from .suite import BENCHMARKS, LIMITS, tables

__all__ = ["STEPS", "Context", "Result", "main", "run_step"]

STATES = ("passed", "failed", "skipped")
ALL_SECONDS = 475  # of all steps, so that the whole stays within 8 minutes
_KEPT_CHARACTERS = 4000  # of a step's output, in the record; the whole of it is in DIR/STEP.log
_LEFT_BEHIND = ("build", "dist", "runs", "shared", "*.so", "*.egg-info", ".*", "__pycache__")
_PROGRAM = [sys.executable, "-c", "from pacecore.cli import main; main()"]


@dataclass
class Result:
    """What a step found. values: its figures, as JSON can hold them."""

    name: str
    state: str = "passed"
    said: str = ""  # one line
    seconds: float = 0.0
    values: dict = field(default_factory=dict)
    output: str = ""


@dataclass(frozen=True)
class Context:
    """Where the steps run and write."""

    tree: Path  # the copy of the source tree
    out: Path
    train_steps: int = 60
    device: str = "cuda"
    deadline: float = math.inf  # of time.perf_counter()

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
    last = (output.strip().splitlines() or [""])[-1]
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
    return _judged("exercise", *context.run("exercise", command, 60), 60)


def tests(context: Context) -> Result:
    """The CUDA tests, where a skip counts as a failure."""
    report = context.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", f"--junitxml={report}", "tests"]
    code, output = context.run("tests", command, 150, PACECORE_REQUIRE_CUDA="1")
    result = _judged("tests", code, output, 150)
    if report.is_file():
        result.values = counts = _counts(report)
        bad = counts["failed"] + counts["skipped"] + len(counts["not_collected"])
        result.state = "passed" if counts["passed"] and not bad and code is not None else "failed"
        result.said = ", ".join(f"{counts[k]} {k}" for k in ("passed", "failed", "skipped"))
        if counts["needs_av"]:
            result.said += f"; without av not collected: {' '.join(counts['needs_av'])}"
        if counts["not_collected"]:
            result.said += f"; not collected: {' '.join(counts['not_collected'])}"
    return result


def _counts(report: Path) -> dict:
    """Tests by outcome from pytest's XML; files that did not import for want of av stand apart."""
    counts: dict = {"passed": 0, "failed": 0, "skipped": 0, "needs_av": [], "not_collected": []}
    for case in ElementTree.parse(report).iter("testcase"):
        error = case.find("error")
        if error is not None and error.get("message") == "collection failure":
            lacks_av = re.search(r"No module named 'av'", error.text or "") and not find_spec("av")
            counts["needs_av" if lacks_av else "not_collected"].append(case.get("name"))
        elif error is not None or case.find("failure") is not None:
            counts["failed"] += 1
        else:
            counts["skipped" if case.find("skipped") is not None else "passed"] += 1
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
        code, output = context.run(tool, command, 60, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        result = _judged(tool, code, output, 60)
        if "Device not supported" in output:
            return Result(tool, "skipped", "compute-sanitizer: Device not supported", output=output)
        said = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY:.*)", output)
        result.said = said[-1] if said else result.said
        if not said:  # a tool that said nothing has checked nothing
            result.state = "failed"
        return result

    return step


def benchmark(name: str) -> Callable[[Context], Result]:
    def step(context: Context) -> Result:
        if not (context.tree / "benchmarks" / f"{name}.py").is_file():
            return Result(name, "skipped", f"benchmarks/{name}.py is not in this tree")
        if not find_spec("av") and name not in _WITHOUT_VIDEO:
            return Result(name, "skipped", "PyAV is not installed, so no video can be read")
        record, limit = context.out / f"{name}-{context.device}.json", _SECONDS
        command = [sys.executable, "-m", f"benchmarks.{name}", "--device", context.device]
        command += ["--quick", "--out", str(record)]
        code, output = context.run(name, command, limit)
        result = _judged(name, code, output, limit)
        if record.is_file():
            result.values = {"cases": json.loads(record.read_text())["cases"]}
            result.said = f"{len(result.values['cases'])} cases in {record.name}"
        return result

    return step


def train(context: Context) -> Result:
    """A short run of the trainer on the demo set, from files to checkpoint."""
    return _trained("train", context, [])


def train_resident(context: Context) -> Result:
    """The same from a frame store that is held in the GPU's memory."""
    name, demo, store = "train_resident", context.tree / "demo-set", context.tree / "store"
    pack = ["data", "pack", str(demo), str(store), "--size", "64x86"]
    if find_spec("av"):
        for arguments in (["data", "demo", str(demo)], pack):
            result = _judged(name, *context.run(name, [*_PROGRAM, *arguments], 60), 60)
            if result.state == "failed":
                return result
    result = _trained(name, context, [str(store), "--data-on", "device"])
    if result.state == "passed" and "all frames are held on" not in result.output:
        result.state, result.said = "failed", "the frames were not held on the device"
    return result


def _trained(name: str, context: Context, arguments: list[str]) -> Result:
    if not find_spec("av"):
        return Result(name, "skipped", "PyAV is not installed, so no video can be written or read")
    out = context.tree / name
    command = [*_PROGRAM, "train", *arguments, "--preset", "small", "--device", context.device]
    command += ["--max-steps", str(context.train_steps), "--out", str(out)]
    code, output = context.run(name, command, 120)
    result = _judged(name, code, output, 120)
    rates = re.findall(r"^trained .*", output, re.MULTILINE)
    result.said = rates[-1] if rates and code == 0 else result.said
    if (out / "metrics.jsonl").is_file():
        lines = (out / "metrics.jsonl").read_text().splitlines()
        result.values = {"metrics": [json.loads(line) for line in lines]}
    return result


_SECONDS = 60  # for a benchmark's quick run
_WITHOUT_VIDEO = (LIMITS, "pace_clip", "info_nce", "backbones", "retrieve")

STEPS: dict[str, Callable[[Context], Result]] = {
    "build": build,
    "doctor": doctor,
    "exercise": exercise,
    LIMITS: benchmark(LIMITS),
    "tests": _on_gpu_only(tests, "tests"),
    "memcheck": _on_gpu_only(sanitizer("memcheck"), "memcheck"),
    **{name: benchmark(name) for name in ("pace_clip", "info_nce", "backbones")},
    "train": train,
    "train_resident": train_resident,
    **{name: benchmark(name) for name in BENCHMARKS if name not in _WITHOUT_VIDEO},
    "retrieve": benchmark("retrieve"),
    "scaling": benchmark("scaling"),
    "racecheck": _on_gpu_only(sanitizer("racecheck"), "racecheck"),
    "initcheck": _on_gpu_only(sanitizer("initcheck"), "initcheck"),
}


def run_step(name: str, context: Context) -> Result:
    """Runs one step; whatever goes wrong is its result."""
    start_time = time.perf_counter()
    try:
        result = STEPS[name](context)
    except Exception as error:
        result = Result(name, "failed", f"{type(error).__name__}: {error}")
    result.seconds = round(time.perf_counter() - start_time, 1)
    result.output = result.output[-_KEPT_CHARACTERS:]
    return result


def copy_tree(folder: Path) -> Path:
    """The source tree with `cli` where an installation has it, so that pacecore.cli imports."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*_LEFT_BEHIND), symlinks=True)
    shutil.copytree(tree / "cli", tree / "pacecore" / "cli")
    return tree


def machine(device: str) -> dict:
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    about = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "commit": commit or None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "processors": os.cpu_count(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "gpu": properties.name,
            "gpu_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return about


def write(out: Path, device: str, about: dict, results: list[Result]) -> None:
    """The record and the page; each written aside and renamed."""
    steps = [asdict(result) for result in results]
    record = {"benchmark": "gpu_check", "machine": about, "steps": steps}
    write_aside(out / f"gpu_check-{device}.json", json.dumps(record, indent=1) + "\n")
    write_aside(out / f"gpu_check-{device}.md", page(record))


def measured(record: dict) -> list[str]:
    """The tables of the benchmarks in a record, as lines of Markdown."""
    limits: list[dict] = []
    runs = []
    for step in record["steps"]:
        cases = step["values"].get("cases", [])
        if step["name"] == LIMITS:
            limits = cases
        elif step["name"] in BENCHMARKS and cases:
            rows = [asdict(row) for row in rows_of(step["name"], cases, limits)]
            runs.append({**step, "rows": rows})
    return tables(limits, runs)


def page(record: dict) -> str:
    """A record as a Markdown page: the steps, what failed, and the figures."""
    about = [f"- {name}: {value}" for name, value in record["machine"].items()]
    lines = ["# GPU check", "", *about, ""]
    lines += ["| step | state | seconds | |", "|---|---|---|---|"]
    for step in record["steps"]:
        said = step["said"].replace("|", "\\|")
        lines.append(f"| {step['name']} | {step['state']} | {step['seconds']} | {said} |")
    for step in record["steps"]:
        if step["state"] == "failed" and step["output"]:
            lines += ["", f"## {step['name']}", "", "```", step["output"].strip(), "```"]
    return "\n".join([*lines, "", *measured(record)]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the record and the page"
    )
    parser.add_argument(
        "--only", default=",".join(STEPS), help="steps, by comma; build comes first"
    )
    parser.add_argument("--train-steps", type=int, default=60)
    parser.add_argument(
        "--limit", type=float, default=ALL_SECONDS, help="seconds in which all steps end"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        parser.error(f"--only must be of {', '.join(STEPS)}, got {', '.join(unknown)}")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu_check: torch {torch.__version__} sees no GPU, so there is nothing to check here"
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    about, results, deadline = machine(options.device), [], time.perf_counter() + options.limit
    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            copy_tree(Path(folder)),
            options.out.resolve(),
            options.train_steps,
            options.device,
            deadline,
        )
        for name in names:
            if time.perf_counter() > deadline:
                results.append(Result(name, "failed", f"not begun within {options.limit:.0f} s"))
            else:
                results.append(run_step(name, context))
            print(f"{results[-1].state:8}{name:15}{results[-1].seconds:6.1f} s  {results[-1].said}")
            write(options.out, options.device, about, results)
    print(f"written: gpu_check-{options.device}.json and .md in {options.out}")
    return 1 if any(result.state == "failed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
