"""Runs the op tests on the emulated kernels under AddressSanitizer and UBSan, and counts lines.

    python -m tests.cuda_on_cpu.coverage [tests/test_OP.py ...]      all op tests without a name

Fails where a test or a sanitizer does, and where a line of csrc/cuda was never run.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from . import build
from .devices import LIBRARY_VARIABLE, SCHEDULES_VARIABLE

__all__ = ["op_tests", "run_sanitized", "unreached_lines"]


def op_tests() -> list[Path]:
    """The test files of the ops that have a CUDA kernel."""
    kernels = [path.stem for path in sorted((build.CSRC / "cuda").glob("*.cu"))]
    return sorted(
        {path for name in kernels for path in (build.ROOT / "tests").glob(f"test_{name}*.py")}
    )


def runtime(name: str) -> str:
    command = [build.compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run_sanitized(tests: list[Path]) -> tuple[subprocess.CompletedProcess, Path]:
    """pytest's result, and the folder of the objects with their line counts."""
    library = build.build(sanitize=True, coverage=True)
    for counts in library.parent.glob("*.gcda"):
        counts.unlink()
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(map(runtime, ("libasan.so", "libubsan.so", "libstdc++.so"))),
        # Python's own memory is never given back; a fault must end the run with its report.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
        LIBRARY_VARIABLE: str(library),
        # That the orders agree is tested without sanitizers; one that mixes all is enough here.
        SCHEDULES_VARIABLE: "shuffled",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-k", "emulated", "-p", "no:cacheprovider"]
    # -s: a sanitizer's report must not end in pytest's captured output, which dies with it.
    ran = subprocess.run(
        [*command, "-s", *map(str, tests)],
        env=environment,
        cwd=build.ROOT,
        capture_output=True,
        text=True,
    )
    return ran, library.parent


def line_counts(objects: Path) -> dict[Path, dict[int, int]]:
    """{file of csrc/cuda: {line: how often it ran, in all instances of its templates}}."""
    counts: dict[Path, dict[int, int]] = {}
    for data in sorted(objects.glob("*.gcda")):
        command = ["gcov", "--json-format", "--stdout", str(data)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=objects)
        for report in ran.stdout.splitlines():
            for file in json.loads(report)["files"]:
                path = Path(file["file"]).resolve()
                if path.parent != build.CSRC / "cuda":
                    continue
                lines = counts.setdefault(path, {})
                for line in file["lines"]:
                    number = line["line_number"]
                    lines[number] = lines.get(number, 0) + line["count"]
    return counts


def unreached_lines(objects: Path) -> tuple[list[str], int]:
    """ "pace_clip.cu:12: text" of lines never run, and how many ran."""
    missing, reached = [], 0
    for path, lines in sorted(line_counts(objects).items()):
        source = path.read_text().splitlines()
        for number, count in sorted(lines.items()):
            text = source[number - 1].strip()
            if count:
                reached += 1
            elif not re.fullmatch(r"[{}()\[\];]*", text):
                missing.append(f"{path.name}:{number}: {text}")
    return missing, reached


def main() -> None:
    tests = [Path(name).resolve() for name in sys.argv[1:]] or op_tests()
    started = time.monotonic()
    ran, objects = run_sanitized(tests)
    print(ran.stdout[-3000:], ran.stderr[-6000:])
    missing, reached = unreached_lines(objects)
    print(f"{reached} lines of csrc/cuda ran, {len(missing)} did not")
    print("\n".join(missing))
    print(f"{time.monotonic() - started:.0f} seconds, building included")
    sys.exit(bool(ran.returncode or missing))


if __name__ == "__main__":
    main()
