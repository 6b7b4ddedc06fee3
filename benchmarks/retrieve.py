"""Exact nearest neighbours: ours, scikit-learn's brute force, and VCOP's whole distance matrix.

    python -m benchmarks.retrieve [--quick] [--large QUERIES] [--device cuda]

The sizes are UCF101's split 1: 3,783 queries on 9,537 videos. --large instead asks so many of them
on ten clips a video at p4's 50,176 numbers, mapped from a file of 19 GB in the folder for temporary
files, measures the memory of ours alone and leaves a record of its own, retrieve-large. Without
scikit-learn ours stands alone, and that is said.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pacecore.retrieve import hit_rates, nearest

from .common import peak_extra_bytes, peer, percentiles, run_main, write_record
from .options import parser_of, positive
from .processes import watched

KS = (1, 5, 10, 20, 50)
CLASSES = 101


def features(rows: int, dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows around one centre a class, never negative, as features after a ReLU are."""
    centres = np.random.default_rng(0).standard_normal((CLASSES, dimensions), dtype=np.float32)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    noise = rng.standard_normal((rows, dimensions), dtype=np.float32)
    return np.maximum(0.3 * centres[labels] + noise, 0), labels


def peers(queries: np.ndarray, gallery: np.ndarray, k: int) -> dict[str, Callable[[], np.ndarray]]:
    """Other ways to the neighbours, as far as they are installed."""
    try:
        cosine_distances = peer("sklearn.metrics.pairwise").cosine_distances
        neighbors = peer("sklearn.neighbors").NearestNeighbors
    except ImportError as missing:
        print(f"scikit-learn and VCOP's way left out: {missing}")
        return {}
    brute = neighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(gallery)
    return {
        "scikit-learn brute": lambda: brute.kneighbors(queries, return_distance=False),
        "vcop": lambda: np.argsort(cosine_distances(queries, gallery), axis=1)[:, : max(KS)],
    }


def case(queries: int, gallery: int, dimensions: int, device: str, rounds: int) -> dict:
    """The three ways in turn, `rounds` times, so that what else runs meets all of them alike."""
    (asked, labels), (answers, known) = (
        features(rows, dimensions, seed) for rows, seed in ((queries, 1), (gallery, 2))
    )
    k = min(max(KS), gallery)
    ways = {
        "pacecore": lambda: nearest(asked, answers, k, device=device, boundaries=KS)[0],
        **peers(asked, answers, k),
    }
    record: dict = {"queries": queries, "gallery": gallery, "dimensions": dimensions, "k": k}
    found = {name: hit_rates(way(), labels, known, KS) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    for name, way in ways.items():
        where = device if name == "pacecore" else "cpu"
        same = found[name] == found["pacecore"]
        timing = percentiles(seconds[name])
        record[name] = {
            "seconds": timing,
            "peak_extra_bytes": peak_extra_bytes(way, where),
            "hit_rates": {str(each): share for each, share in found[name].items()},
            "same_hits_as_pacecore": same,
        }
        print(
            f"{queries:>6} x {gallery:>6} x {dimensions:>6}  {name:<20} {timing.p50:8.3f} s"
            f"  {record[name]['peak_extra_bytes'] / 2**20:8.0f} MiB  same hits: {same}",
            flush=True,
        )
    if "scikit-learn brute" in record:
        record["times_faster_than_scikit_learn"] = (
            record["scikit-learn brute"]["seconds"].p50 / record["pacecore"]["seconds"].p50
        )
    return record


def large_case(queries: int, of: int, gallery: int, dimensions: int, device: str) -> dict:
    """`queries` of `of` queries, on a gallery mapped from a file: what ours holds beyond it.

    Queries go through in blocks of equal size, so that the memory of one is that of all.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, rows in (("queries", queries), ("gallery", gallery)):
            path = Path(folder) / f"{name}.npy"
            mapped = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dimensions))
            rng = np.random.default_rng(rows)
            for first in range(0, rows, 256):
                part = mapped[first : first + 256]
                part[:] = rng.random(part.shape, dtype=np.float32)
            mapped.flush()
            del mapped, part
            files.append(np.load(path, mmap_mode="r"))
        before = anonymous_bytes()
        with watched(anonymous_bytes, 0.005) as held:
            start = time.perf_counter()
            nearest(*files, max(KS), device=device, boundaries=KS)
            seconds = time.perf_counter() - start
        extra = held.bytes - before
        print(
            f"{queries:>6} of {of} x {gallery} x {dimensions}, mapped: {seconds:.1f} s,"
            f" {extra / 2**20:.0f} MiB beyond the files; all {of} would take"
            f" {seconds * of / queries:.0f} s",
            flush=True,
        )
        return {
            "queries": queries,
            "queries_of_the_whole": of,
            "gallery": gallery,
            "dimensions": dimensions,
            "k": max(KS),
            "gallery_file_bytes": 4 * gallery * dimensions,
            "mapped": {
                "seconds": seconds,
                "peak_extra_bytes": extra,
                "gigaflops": 2e-9 * queries * gallery * dimensions / seconds,
                "seconds_of_the_whole_at_this_rate": seconds * of / queries,
            },
        }


def anonymous_bytes() -> int:
    """What this process holds, pages of mapped files apart, which the system takes back when it
    needs them.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--large",
        type=positive,
        metavar="QUERIES",
        help="instead: so many, on mapped p4 clips",
    )
    parser.add_argument("--rounds", type=positive, default=9, help="runs of each way, in turn")
    arguments = parser.parse_args()
    if arguments.large and arguments.quick:
        parser.error("--large has no quick run")
    device = arguments.device
    if arguments.large:
        cases = [large_case(arguments.large, 3783, 95370, 50176, device)]
        path = write_record(arguments.out, "retrieve-large", device, cases)
    else:
        sizes, cases = [(1500, 4000, 512)], []
        if not arguments.quick:
            sizes += [(3783, 9537, 512), (3783, 9537, 9216)]
        for size in sizes:
            cases.append(case(*size, device, arguments.rounds))
            # Again after each size, so that a run which is cut off leaves what it has.
            path = write_record(arguments.out, "retrieve", device, cases)
    print(f"record: {path}")


if __name__ == "__main__":
    run_main(main)
