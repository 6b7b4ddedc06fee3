"""Exact nearest neighbours: ours, scikit-learn's brute force, and VCOP's whole distance matrix.

    python -m benchmarks.retrieve [--quick] [--large] [--device cuda]

The sizes are UCF101's split 1: 3,783 queries on 9,537 videos. --large maps p4 features of 50,176
numbers from a file of 1.9 GB and measures the memory of ours alone. Without scikit-learn ours
stands alone, and that is said.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pacecore.retrieve import hit_rates, nearest

from .common import add_arguments, peak_extra_bytes, time_function, write_record

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
        from sklearn.metrics.pairwise import cosine_distances
        from sklearn.neighbors import NearestNeighbors
    except ImportError as missing:
        print(f"scikit-learn and VCOP's way left out: {missing}")
        return {}
    brute = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(gallery)
    return {
        "scikit-learn brute": lambda: brute.kneighbors(queries, return_distance=False),
        "vcop": lambda: np.argsort(cosine_distances(queries, gallery), axis=1)[:, : max(KS)],
    }


def case(queries: int, gallery: int, dimensions: int, device: str) -> dict:
    (asked, labels), (answers, known) = (
        features(rows, dimensions, seed) for rows, seed in ((queries, 1), (gallery, 2))
    )
    k = min(max(KS), gallery)
    ways = {
        "pacecore": lambda: nearest(asked, answers, k, device=device, boundaries=KS)[0],
        **peers(asked, answers, k),
    }
    record: dict = {"queries": queries, "gallery": gallery, "dimensions": dimensions, "k": k}
    ours = hit_rates(ways["pacecore"](), labels, known, KS)
    for name, way in ways.items():
        where = device if name == "pacecore" else "cpu"
        timing = time_function(way, where, min_runs=3, max_runs=20)
        hits = hit_rates(way(), labels, known, KS)
        record[name] = {
            "seconds": timing,
            "peak_extra_bytes": peak_extra_bytes(way, where),
            "hit_rates": {str(each): share for each, share in hits.items()},
            "same_hits_as_pacecore": hits == ours,
        }
        print(
            f"{queries:>6} x {gallery:>6} x {dimensions:>6}  {name:<20} {timing.p50:8.3f} s"
            f"  {record[name]['peak_extra_bytes'] / 2**20:8.0f} MiB  same hits: {hits == ours}",
            flush=True,
        )
    if "scikit-learn brute" in record:
        record["times_faster_than_scikit_learn"] = (
            record["scikit-learn brute"]["seconds"].p50 / record["pacecore"]["seconds"].p50
        )
    return record


def large_case(queries: int, gallery: int, dimensions: int, device: str) -> dict:
    """Features mapped from files: what ours holds beyond them."""
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
            files.append(np.load(path, mmap_mode="r"))
        timing = time_function(
            lambda: nearest(*files, max(KS), device=device, boundaries=KS),
            device,
            min_runs=1,
            max_runs=1,
        )
        print(f"{queries:>6} x {gallery:>6} x {dimensions:>6}  pacecore, mapped {timing.p50:.1f} s")
        return {
            "queries": queries,
            "gallery": gallery,
            "dimensions": dimensions,
            "k": max(KS),
            "pacecore, mapped from files": {"seconds": timing},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--large", action="store_true", help="also p4 features mapped from a file")
    arguments = parser.parse_args()
    sizes = [(300, 1000, 512)] if arguments.quick else [(3783, 9537, 512), (3783, 9537, 9216)]
    cases = [case(*size, arguments.device) for size in sizes]
    if arguments.large:
        cases.append(large_case(3783, 9537, 50176, arguments.device))
    path = write_record(arguments.out, "retrieve", arguments.device, cases)
    print(f"record: {path}")


if __name__ == "__main__":
    main()
