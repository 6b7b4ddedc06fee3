"""One command for a machine with a GPU: builds, tests, sanitizes, times and trains.

    python -m benchmarks.gpu_check --out DIR [--only build,limits] [--train-steps 60]
        [--data VIDEOS] [--official FOLDER] [--also COMMIT]

Works from a source tree, with the torch of the running Python, in a copy of the tree; nothing needs
to be installed and nothing is fetched. Each step is a process of its own with a limit in seconds,
so what one step found stays when a later one fails, and all end within 8 minutes; a build that
crashes ends it at once. Tests, sanitizers, short trainings and what counts bytes run side by side,
since none of them is timed, and so does what is timed on one core beside what is timed on the GPU;
all else that is timed runs alone, last what no page shows. DIR then holds
gpu_check-cuda.json and gpu_check-cuda.md, written anew after every step; what passed in an earlier
run into DIR on such a machine, of the same commit or of one that --also names, stays where it is
not run again, not begun in time, or then cut off with less; so do the figures of a step that had
failed. The record of another machine or commit becomes gpu_check-cuda-before.json. Without the step
`build` the extension is the one that was built in place. Exit codes: 0 all passed, 1 a step failed,
2 no GPU, 130 stopped by Ctrl-C or SIGTERM. The README shows the record of a GPU that lies in
benchmarks/results. --data and --official: as benchmarks.pretrain has them; without, the demo set
and the authors' way rebuilt.

    python -m benchmarks.gpu_check --out DIR --device cpu

rehearses it on a CPU: what needs a GPU is skipped, and says so.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from pacecore.files import made_folder, write_json, write_text

from .common import ROOT, changed, end_by_signals, end_running, git, run_main
from .gpu_steps import STEPS, TOGETHER, Context, Result, breaks, run_step
from .options import positive, positive_number
from .rows import rows_of
from .suite import BENCHMARKS, LIMITS, tables

__all__ = ["main", "measured", "page", "run_steps"]

# Of all steps, so that the whole stays within 8 minutes: before them Python and torch are imported,
# after them those that it cuts off are ended and the page is written.
ALL_SECONDS = 470
_LEFT_BEHIND = ("build", "dist", "runs", "shared", "*.so", "*.egg-info", ".*", "__pycache__")


def run_steps(names: list[str], context: Context) -> Iterator[Result]:
    """Results in the order of `names`, but of neighbours in one group of TOGETHER, which run side
    by side, as they end; after one that breaks the others they are not begun.
    """
    broken = ""
    for together, group in itertools.groupby(names, TOGETHER.get):
        if together is None:
            for name in group:
                result = _begun(name, context, broken)
                if not broken and breaks(result):
                    broken = name
                yield result
            continue
        group = list(group)
        with ThreadPoolExecutor(len(group)) as pool:
            begun = [pool.submit(_begun, name, context, broken) for name in group]
            try:
                for each in as_completed(begun):
                    yield each.result()
            finally:
                while wait(begun, 0.2).not_done:  # it was stopped
                    end_running()


def _begun(name: str, context: Context, broken: str) -> Result:
    if broken:
        return Result(name, "failed", f"not begun, since {broken} failed")
    if time.perf_counter() > context.deadline:
        return Result(name, "failed", "not begun within the time of all steps")
    return run_step(name, context)


def copy_tree(folder: Path, built: bool = False) -> Path:
    """The source tree with `cli` where an installation has it, so that pacecore.cli imports; with
    the extensions that were `built` in place.
    """
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*_LEFT_BEHIND), symlinks=True)
    shutil.copytree(tree / "cli", tree / "pacecore" / "cli")
    for extension in (ROOT / "pacecore").glob("*.so") if built else ():
        shutil.copy2(extension, tree / "pacecore")
    return tree


def machine(device: str, commit: str | None = None) -> dict:
    """commit: of a tree that is no git checkout."""
    import torch

    about = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "commit": commit or git("rev-parse", "HEAD") or None,
        "uncommitted_changes": commit is None and changed(),
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


def found_before(out: Path, device: str, about: dict, also: str | None = None) -> dict[str, dict]:
    """Steps that passed in an earlier run into `out` on such a machine, or have figures, by name:
    of this commit, or of that named by `also`.
    """
    path = out / f"gpu_check-{device}.json"
    if not path.is_file() or not about.get("commit") or about.get("uncommitted_changes"):
        return {}
    record = json.loads(path.read_text())
    of_any = {"date": "", "commit": ""}
    if record["machine"] | of_any != about | of_any:
        return {}
    first = record["machine"].get("commit")
    steps = [{"commit": first} | step for step in record["steps"] if _worth(step) > _NOTHING]
    return {step["name"]: step for step in steps if step["commit"] in (about["commit"], also)}


_NOTHING = (False, 0)


def _worth(step: dict) -> tuple[bool, int]:
    """By which of two results of a step is kept: that it passed, and its cases."""
    return step["state"] == "passed", len(step["values"].get("cases", []))


def write(out: Path, device: str, about: dict, steps: dict[str, dict]) -> None:
    """The record and the page; each written aside and renamed."""
    chosen = [steps[name] for name in STEPS if name in steps]
    chosen = [step | ({"output": ""} if step["state"] == "passed" else {}) for step in chosen]
    record = {"benchmark": "gpu_check", "machine": about, "steps": chosen}
    write_json(out / f"gpu_check-{device}.json", record)
    write_text(out / f"gpu_check-{device}.md", page(record))


def measured(record: dict) -> tuple[list[dict], list[dict]]:
    """The limits of a record's machine, and its benchmarks as steps with rows."""
    limits: list[dict] = []
    runs = []
    for step in record["steps"]:
        cases = step["values"].get("cases", [])
        if step["name"] == LIMITS:
            limits = cases
        elif step["name"] in BENCHMARKS and cases:
            try:
                rows = [asdict(row) for row in rows_of(step["name"], cases, limits)]
            except Exception as error:  # a page less must not end the steps that follow
                said = f"its record is not understood: {type(error).__name__} {error}"
                step, rows = {**step, "state": "failed", "said": said}, []
            runs.append({**step, "rows": rows})
    return limits, runs


def page(record: dict) -> str:
    """A record as a Markdown page: the steps, what failed, and the figures."""
    about = [f"- {name}: {value}" for name, value in record["machine"].items()]
    lines = ["# GPU check", "", *about, ""]
    lines += ["| step | state | seconds | |", "|---|---|---|---|"]
    commit = record["machine"].get("commit")
    for step in record["steps"]:
        said = step["said"].replace("|", "\\|")
        if step.get("commit", commit) != commit:
            said += f"; commit {step['commit'][:10]}"
        lines.append(f"| {step['name']} | {step['state']} | {step['seconds']} | {said} |")
    for step in record["steps"]:
        if step["state"] == "failed" and step["output"]:
            lines += ["", f"## {step['name']}", "", "```", step["output"].strip(), "```"]
    return "\n".join([*lines, "", *tables(*measured(record))]) + "\n"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """The options given; `only`: the steps that they name, in order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the record and the page"
    )
    parser.add_argument(
        "--only", default=",".join(STEPS), help="steps, by comma; build comes first"
    )
    parser.add_argument("--train-steps", type=positive, default=60)
    parser.add_argument(
        "--limit",
        type=positive_number,
        default=ALL_SECONDS,
        help=f"seconds in which all steps end; default {ALL_SECONDS}",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data", help="videos to feed from; default PACECORE_DATA, else a demo")
    parser.add_argument("--official", help="a copy of laura-wang/video-pace to set ours beside")
    parser.add_argument("--commit", help="what to call a tree that is no git checkout")
    parser.add_argument("--also", help="commit whose steps, passed before, stay too")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        parser.error(f"--only must be of {', '.join(STEPS)}, got {', '.join(unknown)}")
    options.only = [name for name in STEPS if name in names]
    return options


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    deadline = time.perf_counter() + options.limit  # a GPU may take seconds to be opened, too
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu_check: torch {torch.__version__} sees no GPU, so there is nothing to check here"
        )
        return 2
    made_folder(options.out)
    about, failed = machine(options.device, options.commit), False
    steps = found_before(options.out, options.device, about, options.also)
    record = options.out / f"gpu_check-{options.device}.json"
    if record.is_file() and not steps:
        record.replace(record.with_stem(f"{record.stem}-before"))
    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            copy_tree(Path(folder), built="build" not in options.only),
            options.out.resolve(),
            options.train_steps,
            options.device,
            *(path and str(Path(path).resolve()) for path in (options.data, options.official)),
            deadline,
        )
        with closing(run_steps(options.only, context)) as results:
            for result in results:
                failed |= result.state == "failed"
                step = asdict(result) | {"commit": about.get("commit")}
                before = steps.get(result.name, step)
                in_time = result.date and time.perf_counter() < deadline
                if in_time or _worth(step) >= _worth(before):
                    steps[result.name] = step
                line = f"{result.state:8}{result.name:15}{result.seconds:6.1f} s  {result.said}"
                print(line, flush=True)
                write(options.out, options.device, about, steps)
    print(f"written: gpu_check-{options.device}.json and .md in {options.out}")
    return int(failed)


if __name__ == "__main__":
    end_by_signals()  # and its steps with it
    run_main(main)
