"""The documents against the code: commands exist, figures come from records, words are clean."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from torch.distributed.run import get_args_parser

from benchmarks.readme import BLOCKS, _arms_table, _standing_out, rendered
from pacecore.cli import pacecore

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
CODE = (".py", ".cpp", ".h", ".cu", ".md", ".toml", ".sh", "")
# Written apart, so that this file passes its own test.
FORBIDDEN = [
    "TO" + "DO",
    "FIX" + "ME",
    "X" + "XX",
    "place" + "holder",
    r"\bst" + r"ubs?\b",
    "lorem" + " ipsum",
]
MACHINE_PATHS = r"(?<![\w./])/(?:work|home|root|Users|opt/torch|opt/gcc|tmp/tmp)/?\w"


def tracked():
    if not shutil.which("git"):
        pytest.skip("git is not installed, so what belongs to the project is not known")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout, so what belongs to the project is not known")
    names = [name for name in done.stdout.splitlines() if Path(name).suffix in CODE]
    return [ROOT / name for name in names if (ROOT / name).is_file() and name != "LICENSE"]


def code_blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands():
    """Every `pacecore ...` line in the pages, in code blocks and inline."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        lines = [line for block in code_blocks(page, "bash") for line in block.splitlines()]
        lines += re.findall(r"`(pacecore [^`\n]*)`", text)
        for line in lines:
            if line.startswith("pacecore ") and not line.startswith("pacecore VERB"):
                yield page, line


def test_pages_name_commands():
    assert any(line == "pacecore train" for _, line in commands())


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_every_command_in_the_pages_exists(page, line):
    words = shlex.split(line)[1:]
    command, context = pacecore, click.Context(pacecore)
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{page}: {line}: there is no command {words[0]}"
        command, words = found, words[1:]
    known = {flag for each in command.params for flag in [*each.opts, *each.secondary_opts]}
    known |= {"--help", "-h"}
    unknown = {word.split("=")[0] for word in words if word.startswith("-")} - known
    assert not unknown, f"{page}: {line}: there is no option {unknown}"


@pytest.mark.parametrize("name", ["main", "test"])
def test_the_readme_marks_the_two_commands(name):
    found = re.findall(
        rf"<!-- command: {name} -->\n```bash\n(.*?)```\n",
        (ROOT / "README.md").read_text(),
        re.DOTALL,
    )
    assert len(found) == 1
    last = found[0].splitlines()[-1]
    assert last == {"main": "pacecore train", "test": "python -m pytest"}[name]


def test_figures_of_the_readme_are_those_of_the_records():
    page = (ROOT / "README.md").read_text()
    assert set(re.findall(r"<!-- figures: (\w+) -->", page)) == set(BLOCKS)
    assert rendered(page) == page, "run: python -m benchmarks.readme"


def test_another_figure_would_be_noticed():
    page = (ROOT / "README.md").read_text()
    changed = re.sub(r"(\d+) s \|", lambda found: f"{int(found[1]) + 1} s |", page, count=1)
    assert changed != page
    assert rendered(changed) == page


def compared(measure, difference, p):
    verdict = "not told apart" if p > 0.05 else "above" if difference > 0 else "below"
    return {
        "arm": "mine", "measure": measure, "seeds": 3, "share": 0.5, "deviation": 0.1,
        "difference": difference, "verdict": verdict, "p": p,
    }  # fmt: skip


def test_a_table_has_the_columns_that_were_measured():
    cases = [compared("probe", 0.3, 0.01), compared("finetune", 0.1, 0.2)]
    assert _arms_table(cases)[0] == "| pre-training | seeds | fine-tuned | linear probe |"
    assert "probe" not in "".join(_arms_table(cases[1:]))


def test_what_stands_out_by_itself_is_corrected_for_how_many_there_are():
    rest = [compared("finetune", 0.0, 1.0)] * 18
    for p, words in ((0.0026, "1 does."), (0.0027, "none does.")):
        found = _standing_out([*rest, compared("finetune", 0.32, p)])
        assert found.startswith("Of 19 comparisons in this grid, 1 stands out, each taken by")
        assert found.endswith(f"Corrected for their number (Holm) {words}")
    # Of 20 that which is least has to be a twentieth of 0.05.
    two = [compared("finetune", 0.3, 0.003), compared("retrieve-5", -0.21, 0.04)]
    found = _standing_out([*rest, *two])
    assert "grid, top-5 among them, 2 stand out, each taken by itself" in found
    assert "chance alone would give about 1. Corrected for their number (Holm) none does." in found


def test_torchrun_leaves_pacecores_options_alone():
    """It takes what an option of its own begins with for that option, of the program's too."""
    (line,) = re.findall(r"^torchrun (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    train = pacecore.get_command(click.Context(pacecore), "train")
    flags = [flag for each in train.params for flag in [*each.opts, *each.secondary_opts]]
    assert "--start" in flags
    for flag in flags:
        if flag.startswith("-"):
            found = get_args_parser().parse_args([*shlex.split(line), flag])
            assert found.training_script_args[-1] == flag
            assert (found.training_script, found.no_python) == ("pacecore", True)


def test_the_python_of_the_readme_runs():
    blocks = code_blocks("README.md", "python")
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_relative_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{page}: {target}"


def test_every_record_named_has_its_script():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    scripts = re.findall(r"python -m benchmarks\.(\w+)", text)
    assert scripts
    for name in scripts:
        place = ROOT / "benchmarks" / name
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), name


def test_letters_are_given_once_each():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.split("## Letters")[1].split("## ")[0]
    letters = re.findall(r"^\| ([A-Za-z, ]+) \|", table, re.MULTILINE)
    found = [letter.strip() for row in letters if row != "letter" for letter in row.split(",")]
    assert sorted(found) == sorted(["B", "T", "H", "W", "n", "D", "F"])


@pytest.mark.parametrize("word", [*FORBIDDEN, MACHINE_PATHS])
def test_words_that_do_not_belong(word):
    pattern = re.compile(word)
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line) and path != Path(__file__)
    ]
    assert not found
