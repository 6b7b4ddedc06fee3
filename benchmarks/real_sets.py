"""`data check` and `data pack` on whole real sets: what they find, how long they take.

PACECORE_DATA=FOLDER python -m benchmarks.real_sets
"""

import tempfile
import time
from pathlib import Path

from pacecore.check import data_check
from pacecore.datasets import find_videos, probe_all
from pacecore.store import pack, store_bytes

from .common import run_main, write_record
from .hostile import data_folder
from .options import parser_of, whole

SIZE = (128, 171)  # height, width


def main() -> None:
    """Writes the record; file names and counts only."""
    parser = parser_of(__doc__)
    parser.add_argument("--workers", type=whole, default=0, help="processes; 0: one a core")
    options = parser.parse_args()
    sets = ("clips",) if options.quick else ("clips", "ucf101", "ut_interaction")
    cases = []
    for name in sets:
        cases.append(_case(data_folder() / name, options.workers))
        # Again after each set, so that a run which is cut off leaves what it has.
        write_record(options.out, "real_sets", "cpu", cases)


def _case(folder: Path, workers: int) -> dict:
    index = find_videos(folder)
    start = time.perf_counter()
    report = data_check(index, workers=workers)
    check_seconds = time.perf_counter() - start
    counted, bad = probe_all(index, workers)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as store_folder:
        store, not_packed = pack(counted, store_folder, SIZE, workers)
        pack_seconds = time.perf_counter() - start
        damaged = store.verify()
    kept = ("layout", "videos", "readable", "frames", "splits", "codecs", "lengths", "loops")
    case = {"set": folder.name} | {name: report[name] for name in kept}
    case |= {"kinds": report["kinds"], "serious": report["serious"]}
    case["findings"] = [
        f"{Path(f['path']).name}: {f['kind']}: {f['detail']}" for f in report["findings"]
    ]
    case |= {
        "check_seconds": check_seconds,
        "pack_seconds": pack_seconds,
        "store_bytes": store_bytes(counted, SIZE),
        "packed": len(store),
        "left_out": len(bad) + len(not_packed),
        "damaged": len(damaged),
    }
    print(
        f"{folder.name}: {report['readable']} of {report['videos']} videos readable, "
        f"{report['frames']:,} frames, {report['serious']} serious, kinds {report['kinds']}, "
        f"checked in {check_seconds:.0f} s; {len(store)} packed in {pack_seconds:.0f} s"
    )
    return case


if __name__ == "__main__":
    run_main(main)
