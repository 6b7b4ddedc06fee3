"""The paper's claims on labelled real videos: which pre-training helps, by how much, how surely.

    python -m benchmarks.experiments DATA --runs FOLDER [--grid main|long|own|ablations]
        [--fold 1] [--seeds 0,1,2] [--setting small|small-bf16|full] [--arms pace,context]
        [--jobs 2]
        [--scene '(set[0-9])'] [--together '_([0-9]+)_[0-9]+[.]avi']

Each cell is an arm (from scratch; pace; pace + same context; ...) with one seed: pre-trained
without labels on the training videos of DATA, a data set or a frame store of one, then used for
retrieval, fine-tuned, probed linearly and tested, by the verbs that a user types. All arms run with
one seed before the next seed begins. A cell that is finished in FOLDER is not run again, one that
was stopped goes on, and after each cell the pages are written anew: FOLDER/evidence.md, with the
differences and their intervals (also beside the record), and FOLDER/report/report.md, the runs side
by side; of another grid than main evidence-GRID.md and report-GRID/. --pages writes them from what
there is. With --scene the page also says whether a video's neighbours are of its scene, as of
features that look at little else. With --together held-out videos that were filmed together, whose
results may go together, count as one in the intervals; above, for UT-Interaction, its sequences.
"""

import argparse
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pacecore.datasets import find_videos
from pacecore.errors import PacecoreError
from pacecore.report import make_report
from pacecore.store import FrameStore

from ..common import RESULTS, end_by_signals, run_main, write_record
from ..options import comma_separated, device_name, positive, positive_number, whole
from .arms import ABLATIONS, ARMS, LONG, OWN, PACE, SETTINGS, Arm
from .cells import Cell, CellError, stop_all
from .page import beside_context, evidence_page, filmed_together, summary, trained_on

_GRIDS = {"main": ARMS, "long": LONG, "own": OWN, "ablations": (PACE, *ABLATIONS)}


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    cells = _cells(_chosen(parser, options.grid, options.arms), options)
    if options.pages:
        _write_pages(cells, options)
        return 0
    lock, failed = threading.Lock(), []
    done = [cell for cell in cells if cell.finished()]
    for cell in done:
        print(f"{cell.name}: done", flush=True)
    if done:
        _write_pages(cells, options)

    def run(cell: Cell) -> None:
        try:
            cell.run()
        except CellError as error:
            failed.append(str(error))
            print(error, file=sys.stderr, flush=True)
        with lock:
            print(f"{cell.name}: {'done' if cell.finished() else 'not done'}", flush=True)
            _write_pages(cells, options)

    end_by_signals()
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for _ in pool.map(run, [cell for cell in cells if cell not in done]):
                pass
        except KeyboardInterrupt:
            stop_all()
            return 130
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    words = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="experiments", description=words)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--runs", type=Path, required=True, help="folder of the cells, of one setting and split"
    )
    parser.add_argument("--grid", choices=list(_GRIDS), default="main")
    parser.add_argument("--fold", default="1", help="which of the splits of DATA")
    parser.add_argument("--setting", choices=list(SETTINGS), default="small")
    parser.add_argument("--seeds", type=comma_separated(whole), default="0,1,2")
    parser.add_argument("--arms", help="by name, of any grid; default all of --grid")
    parser.add_argument("--jobs", type=positive, default=1, help="cells at once, sharing the cores")
    parser.add_argument("--threads", type=positive, help="of a cell; default a fair share")
    parser.add_argument(
        "--limit-minutes",
        type=positive_number,
        help="of one cell; default 40 at the small setting, times the arm's schedules",
    )
    parser.add_argument("--device", type=device_name, default="auto")
    parser.add_argument(
        "--scene",
        type=_expression,
        help="regular expression whose group, in a video's path, names its scene",
    )
    parser.add_argument(
        "--together",
        type=_expression,
        help="as --scene, of what was filmed together with it; default: each video alone",
    )
    parser.add_argument("--pages", action="store_true", help="only write the pages")
    parser.add_argument("--out", type=Path, help="record to write; default benchmarks/results/")
    return parser


def _cells(arms: list[Arm], options: argparse.Namespace) -> list[Cell]:
    """Every arm with each seed. Raises PacecoreError for data that each of them would refuse."""
    if FrameStore.is_at(options.data):
        index = FrameStore.open(options.data).index.of_fold(options.fold, options.data)
    else:
        index = find_videos(options.data, fold=options.fold)
    if not index.classes:
        raise PacecoreError(f"{options.data}: has no labels to measure by: {index.layout}")
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    return [
        Cell(
            arm,
            seed,
            SETTINGS[options.setting],
            options.data.resolve(),
            options.runs.resolve() / f"{arm.name}-seed{seed}",
            60 * (options.limit_minutes or SETTINGS[options.setting].minutes * arm.schedules),
            threads,
            options.device,
            options.fold,
        )
        for seed in options.seeds
        for arm in arms
    ]


def _chosen(parser: argparse.ArgumentParser, grid: str, names: str | None) -> list[Arm]:
    if not names:
        return list(_GRIDS[grid])
    known = {arm.name: arm for arms in (*_GRIDS.values(), _GRIDS[grid]) for arm in arms}
    wanted = names.split(",")
    for name in wanted:
        if name not in known:
            parser.error(f"--arms must be of {', '.join(known)}, got {name}")
    if len(set(wanted)) < len(wanted):
        parser.error(f"--arms must differ from each other, got {names}")
    return [known[name] for name in wanted]


def _expression(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise argparse.ArgumentTypeError(f"is no regular expression: {error}: {text!r}") from None
    if not groups:
        raise argparse.ArgumentTypeError(f"must have a group, in parentheses, got {text!r}")
    return text


def _write_pages(cells: list[Cell], options: argparse.Namespace) -> None:
    folders = [folder for cell in cells for folder in cell.run_folders()]
    if not folders:
        return
    done = sum(cell.finished() for cell in cells)
    about = (
        f"{done} of {len(cells)} cells are done: {options.data.resolve().name}, fold"
        f" {options.fold}, setting {options.setting}. Shares are of held-out videos, mean and"
        " sample deviation over the seeds. The intervals are Student's, of other videos and, where"
        " there are several seeds, of other trainings; an arm is above or below its baseline where"
        " the whole interval is."
    )
    if options.together:
        about += " Videos that were filmed together may go together in them."
    machines = trained_on(cells)
    if machines:
        about += f" Trained on {' and on '.join(machines)}."
    baseline = PACE if options.grid == "ablations" else None
    marks = options.scene, options.together
    page = evidence_page(cells, about, baseline, *marks)
    suffix = "" if options.grid == "main" else f"-{options.grid}"
    report = options.runs / f"report{suffix}"
    try:
        make_report(folders, report)
    except PacecoreError as error:  # matplotlib is not installed
        print(error, file=sys.stderr)
        make_report(folders, report, pictures=False)
    path = options.out or RESULTS / f"experiments-{options.setting}{suffix}.json"
    write_record(
        path,
        "experiments",
        options.device,
        summary(cells, baseline, *marks),
        beside_context=[] if baseline else beside_context(cells, options.together),
        filmed_together=filmed_together(cells, options.together) if options.together else [],
        trained_on=machines,
    )
    for place in (options.runs / f"evidence{suffix}.md", path.with_suffix(".md")):
        place.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
