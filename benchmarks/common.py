"""What every benchmark shares: machine, timing, peak memory, and the JSON record it leaves."""

import contextlib
import ctypes
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import torch

from pacecore._extension import extension
from pacecore.errors import PacecoreError
from pacecore.files import made_folder, write_text

from .processes import resident_bytes, watched

__all__ = [
    "PACECORE",
    "Timing",
    "changed",
    "end_by_signals",
    "end_running",
    "git",
    "machine_info",
    "module_command",
    "peak_extra_bytes",
    "peer",
    "percentiles",
    "processor",
    "read_record",
    "run_limited",
    "run_main",
    "time_function",
    "time_in_turn",
    "write_record",
]

ROOT = Path(__file__).resolve().parents[1]  # of the source tree; installed, pacecore's own folder
IN_SOURCE = (ROOT / "setup.py").is_file()
RESULTS = ROOT / "benchmarks" / "results" if IN_SOURCE else Path()  # installed: where the user is

# As -m, but not from the current folder, in which the source may lie with nothing built.
_ELSEWHERE = (
    "import sys; from runpy import run_module; sys.path[:] = filter(None, sys.path);"
    "run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(name: str) -> list[str]:
    """The words that run a module of this installation, or of this source tree."""
    return [sys.executable, "-m", name] if IN_SOURCE else [sys.executable, "-c", _ELSEWHERE, name]


PACECORE = module_command("pacecore.cli")  # the command line, in a process of its own


@dataclass(frozen=True)
class Timing:
    """Percentiles over `runs` runs, in seconds: the 20th, the median and the 80th."""

    p20: float
    p50: float
    p80: float
    runs: int


def machine_info(device: str | torch.device = "cpu") -> dict:
    """Processor, GPU, threads, versions and commit: what a figure means nothing without."""
    # Installed, the folder may lie in someone's repository, whose commit says nothing of ours.
    info = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD") if IN_SOURCE else "",
        "uncommitted_changes": IN_SOURCE and changed(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pacecore": extension().build_info(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        info["gpu"] = properties.name
        info["gpu_bytes"] = properties.total_memory
        info["gpu_processors"] = properties.multi_processor_count
        info["cuda"] = torch.version.cuda
        info["gpu_driver"] = _first_line(
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.sm,power.limit",
            "--format=csv,noheader",
        )
    return info


def processor(machine: dict) -> str:
    """The processor of a record's machine, with its article: "an AMD EPYC with AVX2"."""
    name = machine["processor"] or "unknown processor"
    if "instructions" in machine:  # not in the oldest records
        name += f" with {machine['instructions']}"
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def time_function(
    function: Callable[[], object],
    device: str | torch.device = "cpu",
    *,
    min_seconds: float = 1.0,
    min_runs: int = 5,
    max_runs: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Percentiles of the time of `function`, run once to warm up, then until both minima are met.

    On CUDA the time is the GPU's own, between two events. Short runs are not split from launch
    gaps, so capture them in a CUDA graph first where GPU time alone is meant. On a CPU it is that
    of `clock`: with time.process_time what this process computes, which other programs hardly
    change.
    """
    return percentiles(
        _seconds_of_runs(function, torch.device(device), min_seconds, min_runs, max_runs, clock)
    )


def time_in_turn(
    functions: dict[str, Callable[[], object]],
    device: str | torch.device = "cpu",
    *,
    min_seconds: float = 1.0,
    min_runs: int = 5,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """time_function of each, over `rounds` rounds in which each has its share of both minima, so
    that a slow spell of the machine falls on all alike. On CUDA, whose rate is steady, one round.
    """
    device = torch.device(device)
    rounds = 1 if device.type == "cuda" else rounds
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name] += _seconds_of_runs(
                function, device, min_seconds / rounds, -(-min_runs // rounds), 200, clock
            )
    return {name: percentiles(seconds) for name, seconds in found.items()}


def _seconds_of_runs(
    function: Callable[[], object],
    device: torch.device,
    min_seconds: float,
    min_runs: int,
    max_runs: int,
    clock: Callable[[], float],
) -> list[float]:
    function()
    seconds: list[float] = []
    if device.type != "cuda":
        while len(seconds) < min_runs or (sum(seconds) < min_seconds and len(seconds) < max_runs):
            before_seconds = clock()
            function()
            seconds.append(clock() - before_seconds)
        return seconds
    function()
    torch.cuda.synchronize(device)
    start_time, events = time.perf_counter(), []
    while len(events) < min_runs or (
        time.perf_counter() - start_time < min_seconds and len(events) < max_runs
    ):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        function()
        after.record()
        events.append((before, after))
        if len(events) % 16 == 0:  # a short queue, so that min_seconds means GPU time
            after.synchronize()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1000 for before, after in events]


def percentiles(seconds: Sequence[float]) -> Timing:
    """Of runs that took so long."""
    shares = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    p20, p50, p80 = torch.tensor(seconds, dtype=torch.float64).quantile(shares).tolist()
    return Timing(p20, p50, p80, len(seconds))


def peak_extra_bytes(function: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Most bytes that one run of `function` holds beyond those held before it, results included.

    CUDA: torch's allocator. CPU: resident memory of this process, sampled each millisecond, so a
    few MB uncertain.
    """
    device = torch.device(device)
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # give freed memory of earlier runs back first
        ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes()
    with watched(resident_bytes, 0.001) as held:
        result = function()
    del result
    return held.bytes - before


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Runs a module's `main` as the program: an expected error is one line and exit code 2, Ctrl-C
    is 130, as of the verbs. So is the end of a command that it ran, which has said why.
    """
    try:
        code = main()
    except (PacecoreError, subprocess.CalledProcessError) as error:
        name = _started().removesuffix(".__main__").rpartition(".")[2]
        sys.stderr.write(f"{name}: {_in_words(error)}\n")
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _in_words(error: PacecoreError | subprocess.CalledProcessError) -> str:
    if isinstance(error, PacecoreError):
        return str(error)
    ours = error.cmd[: len(PACECORE)] == PACECORE
    words = error.cmd[len(PACECORE) :] if ours else None
    command = " ".join(map(_shown, ["pacecore", *words] if words else map(str, error.cmd)))
    return f"{command} ended with code {error.returncode}"


def read_record(path: Path) -> dict:
    """A record that write_record left. PacecoreError if it is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise PacecoreError(f"{path}: cannot be read as a record: {why}") from None
    if not (isinstance(record, dict) and isinstance(record.get("cases"), list)):
        raise PacecoreError(f"{path}: is no record: it has no list of cases")
    return record


def peer(name: str) -> types.ModuleType:
    """A package that is measured beside ours. Raises ImportError where it is not installed, or does
    not load, as a torchvision that was built for another torch.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise
    except Exception as error:
        raise ImportError(f"{name} does not load: {type(error).__name__}: {error}") from error


def write_record(
    path: str | Path | None, name: str, device: str, cases: list[dict], **also: Any
) -> Path:
    """Writes {"benchmark", "command", "machine", "cases"} and `also` as JSON and gives its path.

    path: the file; None for benchmarks/results/NAME-DEVICE.json, and in the current folder where
    pacecore is installed. Timings among the values become plain numbers.
    """
    path = Path(path) if path else RESULTS / f"{name}-{torch.device(device).type}.json"
    made_folder(path.parent)
    record = {
        "benchmark": name,
        "command": " ".join(["python -m", _module(name), *map(_shown, sys.argv[1:])]),
        "machine": machine_info(device),
        **also,
        "cases": cases,
    }
    write_text(path, json.dumps(record, indent=1, default=_plain) + "\n")
    return path


# Not a session of its own: Linux schedules that as a new task, whatever niceness it was given.
_OWN_GROUP: dict = (
    {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}
)


def run_limited(
    command: list[str],
    log: Path,
    limit_seconds: float,
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> tuple[int | None, str]:
    """(exit code, output) of a command in a process group of its own; None past its limit.

    Whatever ends the wait, the command's children end too, and what they have laid in temporary
    folders goes. The output is in `log` meanwhile.
    """
    with log.open("w") as file, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**(os.environ if env is None else env), "TMPDIR": folder},
            **_OWN_GROUP,
        )
        _running.add(process)
        try:
            code = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(process)
            process.wait()
            _running.discard(process)
    return code, log.read_text(errors="replace")


def end_by_signals() -> None:
    """Has a request to end, or a terminal that closes, end this process as Ctrl-C does: with what
    it waits for. To be called in the main thread.
    """
    for sent in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sent) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(sent, signal.default_int_handler)


_running: set[subprocess.Popen] = set()  # that run_limited waits for, in any thread


def end_running() -> None:
    """Ends what run_limited waits for in other threads, where it then returns."""
    for process in list(_running):
        _kill(process)


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _started() -> str:
    """The module that `python -m` runs in this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else ""


def _module(name: str) -> str:
    """What this process was started as: benchmarks.NAME in a source tree, else pacecore's."""
    started = _started()
    return started if started.endswith(f"benchmarks.{name}") else f"benchmarks.{name}"


def _shown(word: str) -> str:
    """A word of the command; of a path on this machine only its last part means anything."""
    return Path(word).name if Path(word).is_absolute() else word


def _plain(value: object) -> object:
    if isinstance(value, Timing):
        return asdict(value)
    raise TypeError(f"a record cannot hold {type(value)}")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip().partition("\n")[0]


def git(*arguments: str) -> str:
    """The first line that git prints of the source tree; "" without git or a checkout."""
    return _first_line("git", *arguments)


def changed() -> bool:
    """Whether files that git knows differ from the commit; others, such as results, may."""
    return bool(git("status", "--porcelain", "--untracked-files=no"))
