"""Hostile video files: mutations of real ones, each read in a process under limits; and leaks.

    PACECORE_DATA=FOLDER python -m benchmarks.hostile --count 1000 --opens 10000

Every file has to end as frames or as a VideoError with a reason: a crash, a hang, an exception of
another kind or memory beyond the limit is a fault, and makes the exit code 1.
"""

import os
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pacecore.errors import PacecoreError
from pacecore.isolated import JobFailure, run_jobs
from pacecore.media import is_video_name
from pacecore.video import VideoError, decode, decode_all, probe

from .common import run_main, write_record
from .options import parsed, parser_of, positive, whole
from .processes import resident_bytes

__all__ = ["KINDS", "mutations", "read_hostile", "run"]

MEMORY_LIMIT = 2 * 2**30  # bytes of address space beyond what the process has when it starts
TIME_LIMIT = 60.0  # seconds for one file
_ENDINGS = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".flv", ".ts", ".mpg", ".gif")
_ABSURD = (0, 1, 7, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def _bit_flips(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    for place in rng.integers(0, len(data), int(rng.integers(1, 200))):
        data[place] ^= 1 << int(rng.integers(8))
    return data


def _header_flips(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    for place in rng.integers(0, min(len(data), 4096), int(rng.integers(1, 40))):
        data[place] = int(rng.integers(256))
    return data


def _cut(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    return data[: int(rng.integers(0, len(data)))]


def _hole(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 20000))
    return data[:start] + data[start + length :]


def _zeros(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 20000))
    stop = min(start + length, len(data))
    data[start:stop] = bytes(stop - start)
    return data


def _repeat(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 20000))
    return data[: start + length] + data[start:]


def _garbage(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    start = int(rng.integers(0, len(data)))
    return data[:start] + bytearray(rng.bytes(int(rng.integers(1, 5000)))) + data[start:]


def _swapped_header(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    length = int(rng.integers(32, 8192))
    return bytearray(other[:length]) + data[length:]


def _absurd_numbers(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    """Sizes, rates and counts of AVI's and MP4's headers."""
    places = [32, 48, 64, 68]  # avih: microseconds a frame, frames, width, height
    for tag, offsets in {
        b"strh": (28, 32, 40),  # scale, rate, length
        b"strf": (12, 16),  # width, height
        b"tkhd": (80, 84),
        b"mvhd": (16, 20),
        b"mdhd": (16, 20),
        b"avc1": (28, 30),
        b"stsz": (8, 12),
        b"stts": (8, 12),
        b"stco": (8, 12),
    }.items():
        found = data.find(tag)
        if found >= 0:
            places += [found + offset for offset in offsets]
    for place in rng.choice(places, int(rng.integers(1, 4)), replace=False):
        if place + 4 <= len(data):
            order = "little" if data[:4] == b"RIFF" else "big"
            data[place : place + 4] = _ABSURD[rng.integers(len(_ABSURD))].to_bytes(4, order)
    return data


def _noise(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    return bytearray(rng.bytes(int(rng.integers(0, 50000))))


KINDS: dict[str, Callable[[bytearray, np.random.Generator, bytes], bytearray]] = {
    "bit flips": _bit_flips,
    "header flips": _header_flips,
    "cut": _cut,
    "hole": _hole,
    "zeros": _zeros,
    "repeat": _repeat,
    "garbage": _garbage,
    "swapped header": _swapped_header,
    "absurd numbers": _absurd_numbers,
    "noise": _noise,
}


@dataclass(frozen=True)
class Mutation:
    """What is done to which file; the same numbers give the same bytes."""

    number: int
    kind: str
    source: str
    other: str  # lends its header
    ending: str
    folder: str

    def content(self) -> bytes:
        rng = np.random.default_rng(self.number)
        data = bytearray(Path(self.source).read_bytes())
        with open(self.other, "rb") as file:
            other = file.read(8192)
        return bytes(KINDS[self.kind](data, rng, other))


def mutations(sources: list[Path], count: int, folder: str, seed: int = 0) -> Iterator[Mutation]:
    """`count` mutations, the kinds in turn; every seventh file gets a wrong ending too."""
    rng = np.random.default_rng(seed)
    kinds = list(KINDS)
    for number in range(count):
        source, other = (sources[n] for n in rng.integers(0, len(sources), 2))
        ending = _ENDINGS[rng.integers(len(_ENDINGS))] if number % 7 == 0 else source.suffix
        kind = kinds[number % len(kinds)]
        yield Mutation(seed * 10**9 + number, kind, str(source), str(other), ending, folder)


def read_hostile(mutation: Mutation) -> str:
    """Runs in a process of its own: "decodes", or the VideoError's reason without numbers."""
    _limit_memory()
    path = Path(mutation.folder) / f"{mutation.number}{mutation.ending}"
    path.write_bytes(mutation.content())
    try:
        info = probe(path)
        frames = sum(len(part) for part in decode_all(path))
        decode(path, np.unique(np.linspace(0, info.num_frames - 1, 8).astype(np.int64)), info)
        return "decodes" if frames == info.num_frames else "decodes, count differs"
    except VideoError as error:
        return "refused: " + "".join(c for c in error.reason if not c.isdigit()).replace("  ", " ")
    except BaseException as error:
        return f"FAULT {type(error).__name__}: {error}"
    finally:
        path.unlink(missing_ok=True)


def _limit_memory() -> None:
    now = resource.getrlimit(resource.RLIMIT_AS)[0]
    if now == resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def run(sources: list[Path], count: int, workers: int = 2, seed: int = 0) -> dict:
    """Reads `count` mutations; counts by outcome and by kind, and the faults one by one."""
    outcomes: Counter = Counter()
    per_kind: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = list(mutations(sources, count, folder, seed))
        results = run_jobs(read_hostile, jobs, workers, TIME_LIMIT)
        for done, (number, result) in enumerate(results, 1):
            if isinstance(result, JobFailure):
                result = f"FAULT {result.reason}"
            short = result.split(":")[0] if result.startswith(("decodes", "refused")) else "fault"
            outcomes[result] += 1
            per_kind[jobs[number].kind][short] += 1
            if short == "fault":
                job = jobs[number]
                fault = {"mutation": job.number, "of": Path(job.source).name, "kind": job.kind}
                faults.append(fault | {"fault": result})
            if done % 100 == 0:
                print(f"{done} of {count}, {len(faults)} faults", file=sys.stderr, flush=True)
    return {
        "mutations": count,
        "faults": faults,
        "kinds": {kind: dict(counts) for kind, counts in per_kind.items()},
        "outcomes": dict(outcomes.most_common(40)),
    }


def opens(sources: list[Path], count: int) -> dict:
    """Opens good and cut files in turn; open files and memory at one tenth and at the end."""
    marks = {}
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder) / "cut.avi"
        cut.write_bytes(sources[0].read_bytes()[:20000])
        for number in range(count):
            try:
                path = cut if number % 2 else sources[number // 2 % min(8, len(sources))]
                decode(path, np.array([0]))
            except VideoError:
                pass
            if number + 1 in (count // 10, count):
                marks[number + 1] = {
                    "files": len(os.listdir("/proc/self/fd")),
                    "resident_bytes": resident_bytes(),
                }
    return marks


def main() -> None:
    """Mutates the videos below PACECORE_DATA and reads them."""
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=positive, default=1000, help="mutations")
    parser.add_argument("--opens", type=positive, default=10000, help="opens that may leak nothing")
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--seed", type=whole, default=0)
    options = parsed(parser, count=60, opens=500)
    sources = sorted(p for p in data_folder().rglob("*") if is_video_name(p.name))
    record = run(sources, options.count, options.workers, options.seed)
    record |= {"memory_limit_bytes": MEMORY_LIMIT, "time_limit_seconds": TIME_LIMIT}
    for kind, counts in record["kinds"].items():
        print(f"{kind:16} " + ", ".join(f"{k} {v}" for k, v in sorted(counts.items())))
    for fault in record["faults"]:
        print(f"FAULT {fault}")
    record["opens"] = opens(sources, options.opens)
    print(f"opens: {record['opens']}")
    write_record(options.out, "hostile", "cpu", [record])
    sys.exit(1 if record["faults"] else 0)


def data_folder() -> Path:
    """The folder of real videos, from the environment: no record names a machine's paths."""
    if not os.environ.get("PACECORE_DATA"):
        raise PacecoreError("PACECORE_DATA must name a folder of videos")
    return Path(os.environ["PACECORE_DATA"])


if __name__ == "__main__":
    from . import hostile  # its processes find read_hostile in the module alone

    run_main(hostile.main)
