"""The command itself: how it ends on errors that no verb expects."""

import contextlib
import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pacecore import _extension, cli
from pacecore.cli.options import given_values
from pacecore.errors import PacecoreError
from tests.test_train import call
from tests.tiny import tiny_set, write_tiny


def test_a_full_gpu_names_what_needs_less(monkeypatch, capsys):
    @click.command()
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore words")

    monkeypatch.setattr(cli, "pacecore", full)
    code, _, words = call(monkeypatch, capsys)
    assert (code, words.count("\n")) == (2, 1)
    for option in ("--checkpointing", "--accumulate", "--amp bf16", "--batch", "--data-on host"):
        assert option in words
    assert words.endswith("CUDA out of memory. Tried to allocate 2 GiB.\n")


def _raised(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("allocate", "said"),
    [
        (lambda: torch.empty(1 << 50, dtype=torch.uint8), "tried to allocate 1125899906842624 byt"),
        (lambda: np.empty(1 << 50), ": Unable to allocate 8.00 PiB"),
        (lambda: _raised(MemoryError()), "--checkpointing\n"),
        (lambda: _raised(OSError(errno.ENOMEM, "no more")), "--checkpointing: no more\n"),
    ],
)
def test_a_full_memory_names_what_needs_less(monkeypatch, capsys, allocate, said):
    monkeypatch.setattr(cli, "pacecore", lambda **_: allocate())
    code, _, words = call(monkeypatch, capsys)
    assert (code, words.count("\n"), "GPU" in words, "alloc_cpu" in words) == (2, 1, False, False)
    assert words.startswith("pacecore: the memory is full; fewer --workers need less")
    assert "a smaller --batch or --crop" in words
    assert said in words


@pytest.mark.parametrize(
    ("name", "value", "code", "said"),
    [
        ("RANK", "1", 0, "data: "),  # of a scheduler, without torchrun
        ("RANK", "", 0, "data: "),
        ("WORLD_SIZE", "many", 2, "WORLD_SIZE must be a whole number, as torchrun sets it, got 'm"),
    ],
)
def test_what_a_launcher_sets(monkeypatch, capsys, tmp_path, name, value, code, said):
    monkeypatch.setenv(name, value)
    videos = tiny_set(tmp_path / "set", train=2, test=0)
    tiny = ["--max-steps", 1, "--workers", 0, "--held-out", "none", "--out", tmp_path / "run"]
    tiny += ["--clip-frames", 4, "--resize", "16,20", "--crop", 16, "--width", 0.125, "--batch", 2]
    found, out, err = call(monkeypatch, capsys, "train", videos, *tiny, "--device", "cpu")
    assert found == code, err
    assert said in out + err


def test_other_errors_are_shown_whole(monkeypatch):
    def broken(**_):
        raise RuntimeError("of a bug")

    monkeypatch.setattr(cli, "pacecore", broken)
    with pytest.raises(RuntimeError, match="of a bug"):
        cli.main()


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_on_a_terminal_unless_the_user_wants_none(no_color, coloured):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    program = (
        "from pacecore import doctor; doctor._CHECKS = {'python': doctor._python}\n"  # the shortest
        "from pacecore.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "doctor"],
        stdout=theirs,
        env={**os.environ, "NO_COLOR": no_color},
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # Linux's word for a terminal that nobody writes to any more
        while more := os.read(ours, 4096):
            said += more
    process.wait()
    os.close(ours)
    assert b"python" in said
    assert (b"\x1b[" in said) == coloured


def test_a_package_that_is_broken_is_named(tmp_path):
    """As one whose shared library is of another system, which is found when it is first used."""
    (tmp_path / "av").mkdir()
    words = "libavcodec.so.62: cannot open shared object file"
    (tmp_path / "av" / "__init__.py").write_text(f"raise ImportError({words!r}, name='av._core')")
    done = subprocess.run(
        [sys.executable, "-c", "from pacecore.cli import main; main()", "train", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    told = f"pacecore: av cannot be imported: {words}; pacecore doctor says what is wrong\n"
    assert done.stderr == told


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["finetune", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (
            ["train", "--paces", "9999"],
            "pace must be n/d with n and d from 1 to 1000, or -n/d, got 9999",
        ),
        (["train", "--seed", "3"], "my.toml: warmup_steps must be at least 0, got -1"),
    ],
)
def test_a_wrong_value_is_the_files_only_where_it_stands_there(
    words, said, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text("warmup_steps = -1\n" if "my.toml" in said else "epochs = 2\n")
    _, _, err = call(monkeypatch, capsys, *words, "--config", "my.toml")
    assert err == f"pacecore: {said}\n"


def test_a_path_that_is_no_text_is_one_line(monkeypatch, capsys, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/run-\xff")
    code, _, err = call(monkeypatch, capsys, "train", tmp_path, "--out", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("pacecore: out must be text that UTF-8 can write, got '")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "LONG"],
        ["train", ".", "--out", "LONG"],
        ["test", "LONG"],
        ["convert", "LONG"],
        ["report", "LONG"],
        ["data", "check", "LONG"],
        ["data", "demo", "LONG"],
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(words, monkeypatch, capsys, tmp_path):
    """What only looks whether a path is there raises for this, and for a locked folder."""
    name = "x" * 300
    monkeypatch.chdir(tmp_path)
    arguments = [name if word == "LONG" else word for word in words]
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 2
    err = err.splitlines()[-1]
    assert err.startswith("pacecore: ")
    assert name in err
    assert err.endswith("File name too long")


def test_other_system_errors_keep_their_traceback(monkeypatch):
    @click.command()
    def broken() -> None:
        Path("/nowhere/file").read_text()

    monkeypatch.setattr(cli, "pacecore", broken)
    monkeypatch.setattr("sys.argv", ["pacecore"])
    with pytest.raises(FileNotFoundError):
        cli.main()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", ""], "DATA must name a file or a folder, got ''"),
        (["finetune", "", "videos"], "CHECKPOINT must name a file or a folder, got ''"),
        (["finetune", "some.pt", ""], "DATA must name a file or a folder, got ''"),
        (["finetune", "--scratch", ""], "DATA must name a file or a folder, got ''"),
        (["test", "some.pt", ""], "DATA must name a file or a folder, got ''"),
        (["data", "check", ""], "SOURCE must name a file or a folder, got ''"),
        (["data", "pack", "videos", ""], "FOLDER must name a file or a folder, got ''"),
        (["data", "index", "--root", "", "a", "b"], "--root must name a file or a folder, got ''"),
        (["report", ""], "RUNS must name a file or a folder, got ''"),
        (["test", ""], "CHECKPOINT must name a file or a folder, got ''"),
        (["attend", ""], "CHECKPOINT must name a file or a folder, got ''"),
        (["retrieve", "--features", "a", ""], "--features must name a file or a folder, got ''"),
        (["train", "--resume-previous"], "--resume-previous goes with --resume, which is missing"),
        (["finetune", "a.pt", "--resume-previous"], "--resume-previous goes with --resume, which"),
        (["train", "--resume", ""], "--resume must name a file or a folder, got ''"),
        (["train", "--held-out", ""], "held_out must be auto, none or a path, got ''"),
        (["finetune", "--config", ""], "--config must name a file or a folder, got ''"),
        (["finetune", "--resume", "a", "--scratch"], "--resume goes on from the run's weights:"),
        (["finetune", "--scratch", "a", "b"], "--scratch takes DATA alone, got a and b"),
        (["finetune"], "CHECKPOINT is missing; --scratch starts from fresh weights"),
        (["retrieve"], "CHECKPOINT is missing; or name --features GALLERY QUERIES"),
        (
            ["retrieve", "a.pt", "--features", "b.npy", "c.npy"],
            "--features takes the place of CHECKPOINT, got a.pt too",
        ),
        (
            ["train", "--resume", "a", "--preset", "small"],
            "--resume takes its options from the run: leave out --preset and --config",
        ),
    ],
)
def test_what_would_start_another_run_than_was_meant_is_refused(words, said, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, *words)
    assert code == 2
    assert err.startswith(f"pacecore: {said}")


def test_help_gives_defaults_and_limits():
    context = click.Context(cli.pacecore)
    train = cli.pacecore.get_command(context, "train")
    shown = {each.name: each.help for each in train.params if isinstance(each, click.Option)}
    assert shown["flip"].endswith("  [default: 0.5; 0.0 to 1.0]")
    assert shown["epochs"].endswith("  [default: 18; at least 1]")
    assert shown["depth"].endswith("  [default: 0; one of 0, 10, 18]")
    assert shown["jitter"].endswith("  [default: on]")
    assert shown["out"].endswith("<n>.")
    assert shown["denominator"].startswith("Denominator of Eq. 2 and Eq. 3.  [")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["test"], "test.json and, of actions, predictions.jsonl"),
        (["data", "pack"], "Frames are kept as 8-bit YUV 4:2:0"),
    ],
)
def test_help_says_what_is_written(words, said):
    shown = CliRunner().invoke(cli.pacecore, [*words, "--help"]).output
    assert said in " ".join(shown.split())


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


def test_a_source_folder_with_nothing_built_is_named(tmp_path, monkeypatch):
    package = tmp_path / "pacecore"
    package.mkdir()
    (tmp_path / "setup.py").touch()
    monkeypatch.delattr("pacecore._C", raising=False)
    monkeypatch.setitem(sys.modules, "pacecore._C", None)
    monkeypatch.setattr(_extension, "__file__", str(package / "_extension.py"))
    with pytest.raises(PacecoreError, match=f"in another folder than the source's, {tmp_path} "):
        _extension.extension()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a full disk of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["convert", "--help"], ["convert", "none.pt"]])
def test_an_output_that_is_full_is_one_line(words, unbuffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pacecore.cli", *words],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    reason = "the output cannot be written: No space left on device"
    if words[-1] == "--help":
        assert done.stderr == f"pacecore: {reason}\n"
    else:  # the verb's own error is not the output's
        assert reason not in done.stderr
        assert "none.pt" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", [["--help"], ["data", "pack", "set", "store", "--workers", "1"], ["test", "none"]]
)
def test_a_reader_that_has_gone_costs_no_result(words, unbuffered, tmp_path):
    """Nor the exit code, which tells of the work."""
    write_tiny(tmp_path / "set/one.mp4", 0, 1, 8)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "pacecore.cli", *words],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=gone,
            stderr=gone,
            cwd=tmp_path,
        )
    assert done.returncode == (2 if "none" in words else 0)
    assert (tmp_path / "store/index.json").exists() == ("store" in words)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed, tmp_path):
    code = (
        "import os, sys; from pacecore import cli; sys.argv = ['pacecore', '--version']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "file = open('checkpoint', 'w'); sys.stderr.write('x'); os.write(2, b'warning')\n"
        "os._exit(os.path.getsize('checkpoint'))"
    )
    line = f'{shlex.quote(sys.executable)} -c "$CODE" {closed}'
    environment = os.environ | {"CODE": code}
    assert subprocess.run(line, shell=True, cwd=tmp_path, env=environment).returncode == 0
