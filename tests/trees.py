"""Folders of empty files and lists, and what an index says of them."""

import os
from pathlib import Path


def tree(root: Path, *names: str) -> Path:
    """Empty files; layouts are read without opening videos."""
    for folder in {os.path.dirname(root / name) for name in names}:
        os.makedirs(folder, exist_ok=True)
    for name in names:
        with open(root / name, "wb"):
            pass
    return root


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    return path


def names(index) -> list[str]:
    return [entry.name for entry in index.entries]


def labels(index) -> list:
    return [entry.label for entry in index.entries]
