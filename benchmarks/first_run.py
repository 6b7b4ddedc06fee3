"""The first thing a new user does: `pacecore train` with nothing named, in an empty folder.

    python -m benchmarks.first_run [--seeds 0,1,2] [--out FILE]

Each seed makes the demo set anew, trains, and is judged on held-out videos.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .common import PACECORE, run_main, write_record
from .options import comma_separated, whole

__all__ = ["main"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=comma_separated(whole), default="0,1,2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases = []
    for seed in options.seeds:
        cases.append(_run(seed, options.device))
        print(json.dumps(cases[-1]), flush=True)
        # Again after each seed, so that a run which is cut off leaves what it has.
        path = write_record(options.out, "first_run", options.device, cases)
    print(f"written: {path}")


def _run(seed: int, device: str) -> dict:
    command = [*PACECORE, "train", "--seed", str(seed), "--device", device]
    with tempfile.TemporaryDirectory() as folder:
        start_time = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - start_time
        (path,) = Path(folder).glob("runs/train-*/summary.json")
        summary = json.loads(path.read_text())
    kept = ("steps", "clips", "clips_per_second", "waiting_share")
    return {
        "seed": seed,
        "seconds": seconds,
        "training_seconds": summary["seconds"],
        **{name: summary[name] for name in kept},
        **summary["results"],
    }


if __name__ == "__main__":
    run_main(main)
