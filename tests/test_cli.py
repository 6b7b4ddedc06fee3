"""The command itself: how it ends on errors that no verb expects."""

import os
import subprocess
import sys

import click
import pytest
import torch

from pacecore import cli
from pacecore.cli.options import given_values


def test_a_full_gpu_names_what_needs_less(monkeypatch, capsys):
    @click.command()
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore words")

    monkeypatch.setattr(cli, "pacecore", full)
    monkeypatch.setattr("sys.argv", ["pacecore"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    words = capsys.readouterr().err
    assert words.count("\n") == 1
    for option in ("--checkpointing", "--accumulate", "--amp bf16", "--batch", "--data-on host"):
        assert option in words
    assert words.endswith("CUDA out of memory. Tried to allocate 2 GiB.\n")


def test_other_runtime_errors_keep_their_traceback(monkeypatch):
    @click.command()
    def broken() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "pacecore", broken)
    monkeypatch.setattr("sys.argv", ["pacecore"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


def test_what_is_given_wins_over_the_file_and_its_preset(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('preset = "small"\nlr = 0.5\nseed = 3\n')
    values = {"lr": 0.25, "seed": None}
    assert given_values(values, None, file) == ({"lr": 0.25, "seed": 3}, "small")
    assert given_values(values, "demo", file) == ({"lr": 0.25, "seed": 3}, "demo")
    assert given_values(values, None, None) == ({"lr": 0.25}, None)


def test_a_path_that_is_no_text_is_one_line(monkeypatch, capsys, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/run-\xff")
    monkeypatch.setattr("sys.argv", ["pacecore", "train", str(tmp_path), "--out", folder])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("pacecore: out must be text that UTF-8 can write, got '")
    assert err.count("\n") == 1


def test_a_compiled_part_that_does_not_load_is_one_line(tmp_path):
    program = (
        "import sys; sys.modules['pacecore._C'] = None\n"  # what an import of it then meets
        "from pacecore.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "train", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("pacecore: pacecore's compiled part does not load: ")
    assert "pip install --force-reinstall --no-deps ." in done.stderr
