"""All benchmarks, one after the other, into one record and one page: what `pacecore bench` runs.

Each is a process of its own with a limit in seconds, so that one that fails or hangs leaves the
rest. The record, bench-DEVICE.json, and the page drawn from it, bench-DEVICE.md, are written anew
after each; beside them lie each benchmark's own record and the log of what it said.
"""

import importlib.metadata
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pacecore.errors import PacecoreError
from pacecore.files import made_folder, write_json, write_text

from .common import machine_info, module_command, processor, run_limited
from .rows import Row, rows_of, short

__all__ = ["BENCHMARKS", "PEERS", "Benchmark", "Run", "page", "run_suite", "tables"]

LIMITS = "limits"
_PACKAGE = __package__  # benchmarks in a source tree, else pacecore.benchmarks


@dataclass(frozen=True)
class Benchmark:
    """What is measured, and which of the user's options it takes."""

    about: str
    takes: tuple[str, ...] = ()


BENCHMARKS = {
    LIMITS: Benchmark("what the machine reaches at most"),
    "pace_clip": Benchmark("fused clip making"),
    "info_nce": Benchmark("contrastive loss and its gradient"),
    "backbones": Benchmark("training steps of the networks"),
    "data": Benchmark("ways to feed, without a network", ("data", "official")),
    "train_step": Benchmark("what the trainer adds to a step"),
    "evaluate": Benchmark("the 10-clip test"),
    "retrieve": Benchmark("exact nearest neighbours"),
    "pretrain": Benchmark("pre-training, end to end", ("data", "official")),
}
# Seconds after which a benchmark is ended: far more than one takes on a machine that is not shared.
QUICK_SECONDS, FULL_SECONDS = 300, 3600
# Package -> its name where it is installed from.
PEERS = {
    "torchvision": "torchvision",
    "kornia": "kornia",
    "lightly": "lightly",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
}


@dataclass
class Run:
    """How a benchmark's process ended."""

    name: str
    state: str = "passed"  # or "failed"
    said: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


def run_suite(
    device: str,
    out: Path,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    data: str | None = None,
    official: str | None = None,
    command: str = "pacecore bench",
    on_done: Callable[[Run], None] = lambda run: None,
) -> list[Run]:
    """Runs the benchmarks `only`, or all, on `device` and writes record and page into `out`.

    The machine's limits are always measured first. data, official: as benchmarks.pretrain has them.
    on_done is told of each run as it ends. Raises PacecoreError for an unknown name, data that are
    not there, and for a copy of the authors' repository that lacks something.
    """
    from pacecore.datasets import find_videos  # needs av, which gpu_check does without

    from .official import Official

    names = _chosen(only)
    options = {"data": data, "official": official}
    if data:  # refused now, with the reason, and not by some benchmarks later
        find_videos(data)
    if official:
        Official(official)
    made_folder(out)
    kind = device.partition(":")[0]
    record = {
        "benchmark": "bench",
        "command": command,
        "quick": quick,
        "device": kind,
        "machine": machine_info(device),
        "peers": {package: _version(name) for package, name in PEERS.items()},
        "limits": [],
        "runs": [],
    }
    runs = []
    for name in names:
        run, cases = _run(name, device, out / f"{name}-{kind}.json", quick, options, record)
        runs.append(run)
        if name == LIMITS:
            record["limits"] = cases
        record["runs"].append(asdict(run))
        write_json(out / f"bench-{kind}.json", record)
        write_text(out / f"bench-{kind}.md", page(record))
        on_done(run)
    return runs


def _chosen(only: Sequence[str]) -> list[str]:
    unknown = [name for name in only if name not in BENCHMARKS]
    if unknown:
        raise PacecoreError(f"only must be of {', '.join(BENCHMARKS)}, got {', '.join(unknown)}")
    return [name for name in BENCHMARKS if not only or name in only or name == LIMITS]


def _version(distribution: str) -> str | None:
    names = [distribution, "opencv-python"] if distribution.startswith("opencv") else [distribution]
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _run(
    name: str, device: str, path: Path, quick: bool, options: dict, record: dict
) -> tuple[Run, list[dict]]:
    benchmark = BENCHMARKS[name]
    command = [*module_command(f"{_PACKAGE}.{name}"), "--device", device]
    command += ["--quick"] if quick else []
    command += ["--out", str(path.resolve())]
    for option in benchmark.takes:
        if options[option]:
            command += [f"--{option}", str(options[option])]
    limit = QUICK_SECONDS if quick else FULL_SECONDS
    started, clock = time.time(), time.perf_counter()
    code, output = run_limited(command, path.with_suffix(".log"), limit)
    run = Run(name, seconds=round(time.perf_counter() - clock, 1))
    # A record from before is not this run's.
    fresh = path.is_file() and path.stat().st_mtime >= started - 1
    cases = json.loads(path.read_text())["cases"] if fresh else []
    lines = output.strip().splitlines() or ["it said nothing"]
    run.said = "; ".join(line.strip() for line in lines if "left out" in line)
    failed = [case["failed"] for case in cases if "failed" in case]
    if code != 0 or not cases or failed:
        run.state = "failed"
        run.said = f"not done after {limit:g} s" if code is None else (failed or lines[-1:])[0]
    try:
        if name != LIMITS and cases:
            run.rows = rows_of(name, cases, record["limits"])
    except (KeyError, TypeError, ZeroDivisionError) as error:
        run.state = "failed"
        run.said = f"its record is not understood: {type(error).__name__} {error}"
    return run, cases


def page(record: dict) -> str:
    """The record as a Markdown page."""
    machine = record["machine"]
    what = machine.get("gpu") or f"{machine['processors']} cores of {processor(machine)}"
    load = machine["load_average"][0]
    lines = [
        f"# {record['command']}",
        "",
        f"{what}, torch {machine['torch']}, pacecore {machine['pacecore']['version']},"
        f" commit {(machine['commit'] or 'unknown')[:10]}, {machine['date'][:10]}."
        f" Load average when it began: {load:.1f}.",
        "",
        "In the column `ours`: by how much pacecore is faster than that way, in the same run."
        " `share`: the part reached of the limit, which was measured in the same run too.",
    ]
    if record["quick"]:
        lines += ["", "A quick run: few and small cases."]
    missing = [name for name, version in record["peers"].items() if version is None]
    if missing:
        lines += ["", f"Not installed, so not compared: {', '.join(missing)}."]
    return "\n".join([*lines, "", *tables(record["limits"], record["runs"])]) + "\n"


def tables(limits: list[dict], runs: list[dict]) -> list[str]:
    """Lines of Markdown: the limits, then a table for each benchmark."""
    lines = []
    if limits:
        lines += ["## limits: what the machine reaches at most", ""]
        names = [name for name in limits[0] if name != "threads"]
        heads = [name.replace("_", " ").replace(" bytes per second", " GB/s") for name in names]
        heads = [head.replace(" flops", " TFLOP/s") for head in heads]
        lines += [f"| threads | {' | '.join(heads)} |", "|---" * (len(names) + 1) + "|"]
        for case in limits:
            cells = [short(case[n] / (1e9 if "bytes" in n else 1e12)) for n in names]
            lines.append(f"| {case['threads']} | {' | '.join(cells)} |")
        lines.append("")
    for run in runs:
        if run["name"] == LIMITS and run["state"] == "passed":
            continue
        lines += [f"## {run['name']}: {BENCHMARKS[run['name']].about}", ""]
        if run["state"] != "passed":
            lines += [f"Failed after {run['seconds']:.0f} s: {run['said']}", ""]
        elif run["said"]:
            lines += [run["said"], ""]
        lines += _table(run["rows"])
    return lines


def _table(rows: list[dict]) -> list[str]:
    if not rows:
        return []
    lines = ["| | way | | ours | limit | share | |", "|---|---|---|---|---|---|---|"]
    last = ""
    for row in rows:
        case = "" if row["case"] == last else row["case"]
        last = row["case"]
        times = f"{short(row['times'])} x" if row["times"] is not None else ""
        share = f"{100 * row['share']:.1f} %" if row["share"] is not None else ""
        value = f"{short(row['value'])} {row['unit']}"
        cells = [case, row["way"], value, times, row["limit"], share, row["note"]]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]
