"""Pre-training on real videos: `pacecore train` with preset small, and the accuracy it reaches.

    python -m benchmarks.real_videos DATA [--runs FOLDER] [--out FILE]

DATA holds the folders ut_interaction, ucf101 and clips. UT-Interaction, split by sequence, is
trained on to the end with three seeds, in fp32 and with `--amp bf16`: its scenes give the pace away
least. The others show the forms that data come in (a data set in its layout, class folders, a flat
folder, a text list) and take few steps. A run that is finished in FOLDER is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from pacecore.errors import PacecoreError

from .common import PACECORE, run_main, write_record

__all__ = ["main"]

_SHORT = ["--max-steps", "20"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/real_videos"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    cases = []
    for name, source, arguments in _cases(options.data, options.runs):
        cases.append(_run(name, source, arguments, options.runs / name))
        print(json.dumps(cases[-1]), flush=True)
        # Again after each run, so that one which is cut off leaves what it has.
        path = write_record(options.out, "real_videos", "cpu", cases)
    print(f"written: {path}")


def _cases(data: Path, runs: Path) -> list[tuple[str, Path, list[str]]]:
    """(name of the run, what is trained on, options beside the preset)."""
    flat = runs / "flat"
    flat.mkdir(exist_ok=True)
    for path in sorted((data / "clips").rglob("*.[am][vp][i4]")):
        if not (flat / path.name).exists():
            (flat / path.name).symlink_to(path.resolve())
    listed = runs / "list.txt"
    listed.write_text("".join(f"{path.resolve()}\n" for path in sorted(flat.iterdir())))
    cases = [
        (f"ut_interaction{name}-seed{seed}", data / "ut_interaction", ["--seed", str(seed), *more])
        for name, more in (("", ()), ("-bf16", ("--amp", "bf16")))
        for seed in range(3)
    ]
    cases += [
        ("ucf101-layout", data / "ucf101", _SHORT),
        ("class-folders", data / "clips", _SHORT),
        ("flat-folder", flat, _SHORT),
        ("text-list", listed, _SHORT),
    ]
    return cases


def _run(name: str, source: Path, arguments: list[str], out: Path) -> dict:
    if not (out / "summary.json").exists():
        command = [*PACECORE, "train", str(source), "--preset", "small"]
        command += ["--out", str(out), *arguments]
        code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if code:
            raise PacecoreError(f"{name}: pacecore train ended with code {code}")
    summary = json.loads((out / "summary.json").read_text())
    kept = ("videos", "steps", "clips", "seconds", "clips_per_second", "waiting_share", "torch")
    return {
        "case": name,
        "arguments": ["--preset", "small", *arguments],
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        **{each: summary[each] for each in kept},
        **summary["results"],
    }


if __name__ == "__main__":
    run_main(main)
