"""Installs pacecore as a new user does, in fresh environments, and records what that did and took.

Each state is a virtual environment of its own: without torch, with a CPU torch, with a CUDA torch.
`pip install SOURCE` runs there without flags, SOURCE being a copy of the committed tree. One wheel
is then loaded under another torch than it was built with.

    python -m benchmarks.install [--states none,cpu,cuda,wheel] [--out FILE]

PIP_CONSTRAINT may name a file that bounds what is fetched in the state without torch.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pacecore.errors import PacecoreError

from .common import RESULTS, ROOT, machine_info, read_record, run_main

__all__ = ["main"]

STATES = {
    "none": "no torch installed",
    "cpu": "a CPU torch installed",
    "cpu-newest-pip": "a CPU torch installed, newest pip",
    "cuda": "a CUDA torch installed",
    "wheel": "a wheel built with the CPU torch, loaded under another torch",
}
_ORDER = list(STATES.values())
# Both ops run in the new environment and are compared with the reference; printed as JSON.
PROBE = """
import json, torch
from pacecore._extension import extension
from pacecore.doctor import doctor, is_broken
findings = doctor()
assert not is_broken(findings), findings
ops = {f.name: f.found for f in findings if f.name in ("pace_clip", "info_nce")}
print(json.dumps({"torch": torch.__version__, **extension().build_info(), **ops}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--states", default=",".join(STATES), help="which, by comma")
    parser.add_argument("--cpu-torch", default="2.13.0", help="version for the CPU states")
    parser.add_argument("--cuda-torch", default="2.14.1", help="version for the others")
    parser.add_argument("--work", type=Path, help="folder for the environments; default: temporary")
    parser.add_argument("--out", type=Path, default=RESULTS / "install.json")
    arguments = parser.parse_args()
    unknown = set(arguments.states.split(",")) - set(STATES)
    if unknown:
        parser.error(f"--states must be of {', '.join(STATES)}, got {', '.join(sorted(unknown))}")
    if arguments.work and not arguments.work.is_dir():
        parser.error(f"--work: {arguments.work} is not a folder")
    record: dict = {"benchmark": "install", "command": "python -m benchmarks.install"}
    record |= {"machine": machine_info(), "cases": _recorded(arguments.out)}
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        for state in sorted(arguments.states.split(","), key=list(STATES).index):
            case = {"state": STATES[state], **_case(state, Path(work) / state, arguments)}
            case |= {"commit": record["machine"]["commit"], "load_average": os.getloadavg()}
            print(json.dumps(case, indent=1), flush=True)
            others = [each for each in record["cases"] if each["state"] != case["state"]]
            record["cases"] = sorted([*others, case], key=lambda each: _ORDER.index(each["state"]))
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {arguments.out}")


def _recorded(path: Path) -> list[dict]:
    """Cases of the record that is there: a state not measured anew stays."""
    return read_record(path)["cases"] if path.is_file() else []


def _case(state: str, folder: Path, arguments: argparse.Namespace) -> dict:
    if state != "none":  # it is the first; the others have the torch that they name
        os.environ.pop("PIP_CONSTRAINT", None)
    source = _source(folder)
    python = _environment(folder / "venv")
    if state == "cpu-newest-pip":
        _run(python, "-m", "pip", "install", "-q", "-U", "pip")
    before = {"none": None, "cuda": arguments.cuda_torch}.get(state, arguments.cpu_torch)
    if before:
        _run(python, "-m", "pip", "install", "-q", f"torch=={before}", "numpy")
    if state == "wheel":
        return _wheel(folder, source, python, arguments)
    case = {"pip": _pip_version(python), "installed_before": _torch(python)}
    case |= _timed(folder, python, "-m", "pip", "install", str(source))
    case["probe"] = _probe(folder, python)
    return case


def _wheel(folder: Path, source: Path, python: Path, arguments: argparse.Namespace) -> dict:
    out = folder / "wheels"
    built_with = _torch(python)
    case = _timed(folder, python, "-m", "pip", "wheel", str(source), "--no-deps", "-w", str(out))
    (wheel,) = out.glob("*.whl")
    case |= {"wheel": wheel.name, "wheel_bytes": wheel.stat().st_size, "built_with": built_with}
    other = folder.parent / "cuda" / "venv" / "bin" / "python"
    if not other.exists():
        other = _environment(folder / "other")
        _run(other, "-m", "pip", "install", "-q", f"torch=={arguments.cuda_torch}", str(wheel))
    _run(other, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", str(wheel))
    case["probe"] = _probe(folder, other)
    if case["probe"]["torch"] == built_with:
        raise PacecoreError(f"the wheel was built with torch {built_with}, too; nothing shown")
    return case


def _source(folder: Path) -> Path:
    """The committed tree, as a clean clone has it."""
    source = folder / "source"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    return source


def _inside(word: str, folder: Path) -> str:
    """A path as seen from the source in `folder`, which is a temporary one."""
    return {str(folder / "source"): "."}.get(word, word.replace(f"{folder}/", ""))


def _environment(folder: Path) -> Path:
    _run(Path(sys.executable).resolve(), "-m", "venv", str(folder))
    return folder / "bin" / "python"


def _timed(folder: Path, python: Path, *words: str) -> dict:
    """Runs pip; seconds and CPU seconds, every torch it fetched or moved, its last line."""
    log = folder / "pip.log"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_time = time.perf_counter()
    output = _run(python, *words, environment={"PIP_LOG": str(log)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.perf_counter() - start_time
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    fetched = re.findall(
        r"(?:Downloading|Using cached|Processing) \S*?(torch-\d\S*)", log.read_text()
    )
    last = [line for line in output.splitlines() if line.startswith(("Success", "Built", "Saved"))]
    return {
        "command": " ".join(["pip", *(_inside(word, folder) for word in words[2:])]),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "torch_fetched": sorted(fetched),
        "last_line": last[-1] if last else output.splitlines()[-1],
    }


def _probe(folder: Path, python: Path) -> dict:
    return json.loads(_run(python, "-c", PROBE, cwd=folder).splitlines()[-1])


def _torch(python: Path) -> str | None:
    look = "import importlib.metadata as m; print(m.version('torch'))"
    done = subprocess.run([python, "-c", look], capture_output=True, text=True)
    return done.stdout.strip() or None


def _pip_version(python: Path) -> str:
    return _run(python, "-m", "pip", "--version").split()[1]


def _run(
    python: Path, *words: str, environment: dict | None = None, cwd: Path | None = None
) -> str:
    done = subprocess.run(
        [str(python), *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise PacecoreError(f"{' '.join(words)} failed\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    run_main(main)
