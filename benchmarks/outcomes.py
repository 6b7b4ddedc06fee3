"""How tests end, as a plugin of pytest: a JSON line of each, which a run that is killed keeps."""

import json
from pathlib import Path

__all__ = ["read_outcomes"]


def pytest_addoption(parser) -> None:
    parser.addoption("--outcomes", type=Path, help="file of JSON lines to write")


def pytest_configure(config) -> None:
    if config.getoption("outcomes") and not hasattr(config, "workerinput"):  # xdist's, which tell
        config.pluginmanager.register(_Writer(config.getoption("outcomes")))


class _Writer:
    def __init__(self, path: Path):
        self.file = path.open("a", buffering=1, encoding="utf-8")  # a line at a time

    def write(self, report, outcome: str) -> None:
        why = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longreprtext
        line = {"name": report.nodeid, "outcome": outcome, "why": why}
        self.file.write(json.dumps(line) + "\n")

    def pytest_collectreport(self, report) -> None:
        if not report.passed:
            self.write(report, "not collected" if report.failed else "left out")

    def pytest_runtest_logreport(self, report) -> None:
        if not report.passed or report.when == "call":
            self.write(report, report.outcome)

    def pytest_unconfigure(self) -> None:
        self.file.close()


def read_outcomes(path: Path) -> dict[str, dict]:
    """{name: {"outcome", "why"}}, an outcome one of "passed", "failed", "skipped" and, of files,
    "not collected" and "left out". What passed and could not be taken down has failed; a line that
    was cut off is no error.
    """
    found: dict[str, dict] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        name = line.pop("name")
        if found.get(name, {}).get("outcome") != "failed":
            found[name] = line
    return found
