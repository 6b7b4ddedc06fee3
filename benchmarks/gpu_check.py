"""One command for a machine with a GPU: builds, tests, sanitizes, times and trains, cheapest first.

    python -m benchmarks.gpu_check --out DIR [--only build,rates] [--train-steps 60]

Works from a source tree, with the torch of the running Python, in a copy of the tree; nothing needs
to be installed and nothing is fetched. Each step is a process of its own with a limit in seconds,
so what one step found stays when a later one fails. DIR/gpu_check.json and DIR/gpu_check.md are
written after every step. Exit codes: 0 all passed, 1 a step failed, 2 no GPU.
"""

import argparse
import json
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

from .common import ROOT, run_limited

__all__ = ["STEPS", "Context", "Result", "main", "run_step"]

STATES = ("passed", "failed", "skipped")
_KEPT_CHARACTERS = 4000  # of a step's output, in the record; the whole of it is in DIR/STEP.log
_LEFT_BEHIND = ("build", "dist", "runs", "shared", "*.so", "*.egg-info", ".*", "__pycache__")


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

    def run(self, name: str, command: list[str], limit: float, **environment: str) -> tuple:
        """(exit code, output) of a command in the tree; None for a code past its limit."""
        environ = {**os.environ, "PYTHONPATH": str(self.tree), **environment}
        log = self.out / f"{name}.log"
        return run_limited(command, log, limit, cwd=self.tree, env=environ)


def _judged(name: str, code: int | None, output: str, limit: float) -> Result:
    if code is None:
        return Result(name, "failed", f"not done after {limit:.0f} s", output=output)
    last = (output.strip().splitlines() or [""])[-1]
    return Result(name, "failed" if code else "passed", last, output=output)


# ---- the steps, each Context -> Result


def build(context: Context) -> Result:
    import torch

    capability = torch.cuda.get_device_capability()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    architecture = f"{capability[0]}.{capability[1]}"
    code, output = context.run(
        "build", command, 180, PACECORE_CUDA="1", TORCH_CUDA_ARCH_LIST=architecture
    )
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
    command = [sys.executable, "-m", "benchmarks.gpu_exercise"]
    return _judged("exercise", *context.run("exercise", command, 60), 60)


def rates(context: Context) -> Result:
    command = [sys.executable, "-m", "benchmarks.gpu_rates"]
    code, output = context.run("rates", command, 60)
    result = _judged("rates", code, output, 60)
    if code == 0:
        result.values = json.loads(output.strip().splitlines()[-1])
        result.said = ", ".join(f"{name} {value:.1f}" for name, value in result.values.items())
    return result


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


def benchmark(name: str, limit: float) -> Callable[[Context], Result]:
    def step(context: Context) -> Result:
        if not (context.tree / "benchmarks" / f"{name}.py").is_file():
            return Result(name, "skipped", f"benchmarks/{name}.py is not in this tree")
        record = context.out / f"{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--device", "cuda", "--quick"]
        code, output = context.run(name, [*command, "--out", str(record)], limit)
        result = _judged(name, code, output, limit)
        if record.is_file():
            result.values = {"cases": json.loads(record.read_text())["cases"]}
            result.said = f"{len(result.values['cases'])} cases in {record.name}"
        return result

    return step


def train(context: Context) -> Result:
    """A short run of the trainer on the demo set, from files to checkpoint."""
    if not find_spec("av"):
        return Result(
            "train", "skipped", "PyAV is not installed, so no video can be written or read"
        )
    program = "from pacecore.cli import main; main()"
    out = context.tree / "run"
    command = [sys.executable, "-c", program, "train", "--preset", "small", "--device", "cuda"]
    command += ["--max-steps", str(context.train_steps), "--out", str(out)]
    code, output = context.run("train", command, 120)
    result = _judged("train", code, output, 120)
    if (out / "metrics.jsonl").is_file():
        lines = (out / "metrics.jsonl").read_text().splitlines()
        result.values = {"metrics": [json.loads(line) for line in lines]}
    return result


STEPS: dict[str, Callable[[Context], Result]] = {
    "build": build,
    "doctor": doctor,
    "exercise": exercise,
    "rates": rates,
    "tests": tests,
    "memcheck": sanitizer("memcheck"),
    "racecheck": sanitizer("racecheck"),
    "initcheck": sanitizer("initcheck"),
    "pace_clip": benchmark("pace_clip", 60),
    "info_nce": benchmark("info_nce", 60),
    "backbones": benchmark("backbones", 60),
    "train": train,
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


def machine() -> dict:
    import torch

    properties = torch.cuda.get_device_properties(0)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "commit": commit or None,
        "gpu": properties.name,
        "gpu_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "processors": os.cpu_count(),
    }


def write(out: Path, about: dict, results: list[Result]) -> None:
    """gpu_check.json and gpu_check.md; each written aside and renamed."""
    record = {"benchmark": "gpu_check", "machine": about, "steps": [asdict(r) for r in results]}
    for name, text in (
        ("gpu_check.json", json.dumps(record, indent=1) + "\n"),
        ("gpu_check.md", page(about, results)),
    ):
        aside = out / f"{name}.partial"
        aside.write_text(text)
        aside.replace(out / name)


def page(about: dict, results: list[Result]) -> str:
    """The results as one Markdown page."""
    lines = ["# GPU check", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    lines += ["| step | state | seconds | |", "|---|---|---|---|"]
    for result in results:
        said = result.said.replace("|", "\\|")
        lines.append(f"| {result.name} | {result.state} | {result.seconds} | {said} |")
    for result in results:
        if result.state == "failed" and result.output:
            lines += ["", f"## {result.name}", "", "```", result.output.strip(), "```"]
        for case in result.values.get("cases", [])[:40]:
            lines += ["", f"- {result.name}: `{json.dumps(case)}`"]
    return "\n".join(lines) + "\n"


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
        "--limit", type=float, default=460, help="seconds after which no step begins"
    )
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        parser.error(f"--only must be of {', '.join(STEPS)}, got {', '.join(unknown)}")
    import torch

    if not torch.cuda.is_available():
        print(
            f"gpu_check: torch {torch.__version__} sees no GPU, so there is nothing to check here"
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    about, results, start_time = machine(), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        context = Context(copy_tree(Path(folder)), options.out.resolve(), options.train_steps)
        for name in names:
            if time.perf_counter() - start_time > options.limit:
                results.append(Result(name, "failed", f"not begun within {options.limit:.0f} s"))
            else:
                results.append(run_step(name, context))
            print(f"{results[-1].state:8}{name:12}{results[-1].seconds:6.1f} s  {results[-1].said}")
            write(options.out, about, results)
    print(f"written: {options.out / 'gpu_check.json'}, {options.out / 'gpu_check.md'}")
    return 1 if any(result.state == "failed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
