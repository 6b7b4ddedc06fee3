"""Two processes beside one: the losses of each step on the same videos, and what a step costs.

    python -m benchmarks.two_ranks DATA [--preset small] [--steps 20]

Two ranks hold half of each batch, joined by torchrun over gloo (NCCL where there are two GPUs). The
one process computes the same batch in two parts (--accumulate 2), so that batch norm averages over
the same halves; everything else, the negatives of the contrastive loss too, is of the whole batch.

The learning rate is small on purpose: training amplifies rounding. At the preset's own, 0.03, one
process beside itself with initial weights 1e-7 apart was 9e-4 apart in the loss of the second step,
1e-2 in the fourth. At 1e-6 the losses still move, and a wrong gradient would move them otherwise:
`largest_loss_difference` is to be read beside `largest_loss_change`, between the losses with and
without training (learning rate 0) on the same videos.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pacecore.checkpoint import load_checkpoint

from .common import PACECORE, run_main, write_record
from .options import positive, positive_number

__all__ = ["main"]

_CONTRASTS = ("context", "pace", "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="folder, list or index of videos")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=positive, default=20)
    parser.add_argument("--lr", type=positive_number, default=1e-6)
    parser.add_argument("--contrasts", nargs="+", choices=_CONTRASTS, default=_CONTRASTS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cases = []
    for contrast in arguments.contrasts:
        with tempfile.TemporaryDirectory() as folder:
            cases.append(compared(arguments, contrast, Path(folder)))
        print(json.dumps(cases[-1]), flush=True)
        # Again after each, so that a run which is cut off leaves what it has.
        path = write_record(arguments.out, "two_ranks", arguments.device, cases)
    print(f"written: {path}")


def compared(arguments: argparse.Namespace, contrast: str, folder: Path) -> dict:
    words = [arguments.data, "--preset", arguments.preset, "--device", arguments.device]
    words += ["--contrast", contrast, "--max-steps", str(arguments.steps), "--log-every", "1"]
    words += ["--held-out", "none"]
    parts, rate = ["--accumulate", "2"], ["--lr", str(arguments.lr)]
    still = trained([*words, *parts, "--lr", "0"], folder / "still", ranks=1)
    one = trained([*words, *parts, *rate], folder / "one", ranks=1)
    two = trained([*words, *rate], folder / "two", ranks=2)
    differences, changes = (
        [abs(a - b) / abs(a) for a, b in zip(one["losses"], other["losses"], strict=True)]
        for other in (two, still)
    )
    weights = [load_checkpoint(folder / name / "last.pt")["model"] for name in ("one", "two")]
    apart = max(
        (a - b).abs().max().item() / a.abs().max().item()
        for name, a in weights[0].items()
        for b in [weights[1][name]]
        if name.endswith("weight") and a.any()
    )
    return {
        "contrast": contrast,
        "preset": arguments.preset,
        "lr": arguments.lr,
        "steps": arguments.steps,
        "largest_loss_difference": max(differences),
        "largest_loss_change": max(changes),
        "loss_difference_of_step": differences,
        "largest_weight_difference": apart,
        "one": one,
        "two": two,
    }


def trained(words: list[str], out: Path, ranks: int) -> dict:
    python, *program = [*PACECORE, "train", *words, "--out", str(out)]
    joined = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [python, *(joined if ranks > 1 else []), *program]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // ranks))
    start_time = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=sys.stderr, env=os.environ | {"OMP_NUM_THREADS": threads}
    )
    seconds = time.perf_counter() - start_time
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    summary = json.loads((out / "summary.json").read_text())
    return {
        "ranks": summary["ranks"],
        "threads_of_each": int(threads),
        "seconds": seconds,
        "clips_per_second": summary["clips_per_second"],
        "losses": [line["loss"] for line in lines if "loss" in line],
    }


if __name__ == "__main__":
    run_main(main)
