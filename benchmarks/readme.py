"""Writes the README's figures and the pages in results/ from the records, and the list of verbs.

    python -m benchmarks.readme [--check]

A block of the README between `<!-- figures: NAME -->` and `<!-- end -->` is what the function of
that name here returns. --check changes nothing and exits with 1 where the page differs.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .common import RESULTS, ROOT, processor
from .experiments.claims import claims_table, paper_line
from .experiments.differences import holm
from .gpu_check import measured
from .gpu_check import page as gpu_page
from .planning import planned
from .rows import rows_of, short
from .scaling import page as scaling_page
from .suite import page as suite_page

__all__ = ["BLOCKS", "rendered"]

_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def _record(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _machine(record: dict, *, torch: bool = True) -> str:
    machine = record["machine"]
    words = f"{machine['processors']} cores of {processor(machine)}"
    return f"{words}, torch {machine['torch']}" if torch else words


def install() -> str:
    """What `pip install .` did in each state of the environment."""
    record = _record("install")
    lines = [
        f"Installing in fresh environments on {_machine(record, torch=False)}; where pip fetched"
        " torch, it was held to the CPU's, of which a CUDA one is many times the size:",
        "",
        "| environment | pip | `pip install .` took | CPU time | load | torch | fetched | built |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        if "wheel" in case:
            continue
        built = case["probe"]["version"]
        fetched = "yes" if case["torch_fetched"] else "no"
        seconds = f"{case['seconds']:.0f} s | {case['cpu_seconds']:.0f} s"
        seconds += f" | {case['load_average'][1]:.0f}"
        start = f"| {case['state']} | {case['pip']}"
        lines.append(f"{start} | {seconds} | {case['probe']['torch']} | {fetched} | `{built}` |")
    lines += ["", "Load is the machine's load average: above the number of cores, time is shared."]
    for case in record["cases"]:
        if "wheel" in case:
            versions = f"torch {case['built_with']} loads and runs under {case['probe']['torch']}"
            lines += ["", f"A wheel built with {versions}."]
    return "\n".join(lines)


def first_run() -> str:
    """What `pacecore train` on the demo set reached, for each seed."""
    record = _record("first_run-cpu")
    lines = [
        f"The first run, `pacecore train`, on {_machine(record)}:",
        "",
        "| seed | in all | of it training | held-out pace accuracy | chance |",
        "|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        accuracy, chance = 100 * case["pace_accuracy"], 100 * case["chance"]
        seconds = f"{case['seconds']:.0f} s | {case['training_seconds']:.0f} s"
        lines.append(f"| {case['seed']} | {seconds} | {accuracy:.1f} % | {chance:.1f} % |")
    return "\n".join(lines)


def real_videos() -> str:
    """What pre-training on UT-Interaction, split by sequence, reached with each seed."""
    record = _record("real_videos-cpu")
    cases = [case for case in record["cases"] if case["case"].startswith("ut_interaction")]
    lines = [
        f"Preset `small` on {_machine(record)}, {cases[0]['videos']} training videos of"
        " UT-Interaction, measured on the videos of other sequences, with a load average of"
        f" {record['machine']['load_average'][0]:.1f} at the end:",
        "",
        "| arithmetic | seed | threads | training took | held-out pace accuracy | chance |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        accuracy, chance = 100 * case["pace_accuracy"], 100 * case["chance"]
        start = f"| {'bf16' if 'bf16' in case['arguments'] else 'fp32'} | {case['case'][-1]}"
        start += f" | {case['threads']} | {case['seconds']:.0f} s"
        lines.append(f"{start} | {accuracy:.1f} % | {chance:.1f} % |")
    return "\n".join(lines)


def pace_clip() -> str:
    """The op beside the alternatives, in processor time of one thread."""
    record = _record("pace_clip-cpu")
    chosen = [
        case
        for case in record["cases"]
        if case["case"] == "paper, 320 x 240" and case["threads"] == 1
    ]
    ours = next(case for case in chosen if case["contender"] == "pace_clip")
    lines = [
        f"`pace_clip` on one core of {processor(record['machine'])}: 16 x 112 x 112 from"
        " 320 x 240 YUV with jitter, fp32, processor time, all in one run:",
        "",
        "| | ms a clip | times ours |",
        "|---|---|---|",
    ]
    for case in chosen:
        took = case["processor_ms_a_clip"]
        ratio = took / ours["processor_ms_a_clip"]
        lines.append(f"| {case['contender']} | {took:.2f} | {ratio:.1f} |")
    return "\n".join(lines)


def speed() -> str:
    """What `pacecore bench` found on a CPU, and what a GPU reached where one has run."""
    lines = []
    cpu = RESULTS / "bench-cpu.json"
    if cpu.is_file():
        record = json.loads(cpu.read_text())
        load = record["machine"]["load_average"][0]
        words = f"`{record['command']}` on {_machine(record)}, at a load average of {load:.1f}:"
        lines += [words, "", *_summary(record["runs"])]
    gpu = sorted(RESULTS.glob("gpu_check*cuda.json"))
    if not gpu:
        return "\n".join(lines).rstrip()
    record = json.loads(gpu[-1].read_text())
    machine = record["machine"]
    passed = [step["name"] for step in record["steps"] if step["state"] == "passed"]
    others: dict[str, list[str]] = {}
    for step in record["steps"]:
        if step["state"] != "passed":
            others.setdefault(step["said"], []).append(f"`{step['name']}`")
    told = "".join(f"; {', '.join(names)}: {said}" for said, names in others.items())
    limits, runs = measured(record)
    in_tf32 = RESULTS / "pretrain-cuda.json"
    if in_tf32.is_file():
        rows = rows_of("pretrain", json.loads(in_tf32.read_text())["cases"], limits)
        runs.append({"rows": [asdict(row) for row in rows]})
    lines += [
        f"`python -m benchmarks.gpu_check` on one {machine['gpu']}, torch {machine['torch']}"
        f" ([all figures](benchmarks/results/{gpu[-1].stem}.md)): {len(passed)} of"
        f" {len(record['steps'])} steps passed{told}."
        f" {_limits(limits)}",
        "",
        *_summary(runs),
    ]
    return "\n".join(lines).rstrip()


def _limits(cases: list[dict]) -> str:
    """What a GPU reaches at most, as a sentence."""
    if not cases:
        return ""
    found = cases[0]
    return (
        f"It copies {short(found['copy_bytes_per_second'] / 1e12)} TB/s, multiplies"
        f" matrices at {short(found['bfloat16_flops'] / 1e12)} TFLOP/s in bf16 and"
        f" {short(found['float32_flops'] / 1e12)} in fp32, and takes"
        f" {short(found['bus_bytes_per_second'] / 1e9)} GB/s over the bus."
    )


def _summary(runs: list[dict]) -> list[str]:
    """Of each case the row of ours, and by how much it is faster than which other way. Of training,
    whose ways may differ in arithmetic, all of ours that are faster than any other, each with its
    own ratios; and all where there is no other, since none is what another is to be measured by.
    """
    lines = ["| measured | ours | limit | share | faster than |", "|---|---|---|---|---|"]
    for run in runs:
        cases: dict[str, list[dict]] = {}
        for row in run["rows"]:
            cases.setdefault(row["case"], []).append(row)
        for case, rows in cases.items():
            own = [row for row in rows if row["times"] in (None, 1.0)]
            others = [row for row in rows if row not in own]
            if not own:
                continue
            training = own[0]["unit"] == "clips/s"
            best = max(own, key=lambda row: (row["value"] if training else 0, row["share"] or 0))
            for ours in own if training or not others else [best]:
                times = [row["times"] * (ours["value"] / best["value"]) for row in others]
                if training and min(times, default=2) <= 1:
                    continue
                told = training or (len(own) > 1 and not others)
                # The layout that pacecore picks is no other arithmetic.
                way = re.sub("^(pacecore|ours)(, layout$)?", "", ours["way"]) if told else ""
                beside = [
                    f"{row['way']} {short(each)} x" for row, each in zip(others, times, strict=True)
                ]
                share = f"{100 * ours['share']:.0f} %" if ours["share"] is not None else ""
                value = f"{short(ours['value'])} {ours['unit']}"
                cells = [f"{case}{way}", value, ours["limit"], share, ", ".join(beside)]
                lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


_POINTS = (
    "How many points more than what the claim names, at a quarter of the width, {when}; in bold"
    " what is left when corrected for the number of comparisons of its grid (Holm):"
)


def claims() -> str:
    """What the records say of the paper's claims after the longer schedule, those asked again."""
    words = _POINTS.format(when="after the longer schedule")
    return "\n".join([words, "", *claims_table(_record, main=True), "", paper_line()])


def claims_page() -> str:
    """All that the records say of the paper's claims, and three of the grids."""
    words = _POINTS.format(when="after 240 steps or four times as many")
    parts = ["# The paper's claims, with all that was measured", words]
    parts += ["\n".join(claims_table(_record)), paper_line()]
    parts += [f"## {title}\n\n{_arms(words, record)}" for title, words, record in _GRIDS]
    return "\n\n".join(parts) + "\n"


_GRIDS = (
    (
        "240 steps",
        "Top-1 in per cent, mean and sample deviation over the seeds; in bold where the 95 %"
        " interval of how far it is above training from scratch, or for the linear probe and"
        " retrieval random weights, is all above 0, in italics where it is all below:",
        "experiments-small",
    ),
    (
        "Four times as many",
        "The same with four times as many unlabelled steps, and then also with four times as many"
        " labelled ones:",
        "experiments-small-long",
    ),
    (
        "Crops of their own",
        "As many unlabelled steps on the processor of the first table, and crops of its own for"
        " each view, `--view-augment own`, where it says so:",
        "experiments-small-long-more",
    ),
)


def _arms(words: str, record: str) -> str:
    """What each pre-training of a grid of experiments was worth, after `words`, and how many of
    the differences stand out.
    """
    cases = _record(record)["cases"]
    return "\n".join([words, "", *_arms_table(cases), "", _standing_out(cases)])


def _standing_out(cases: list[dict]) -> str:
    """How many comparisons of a grid stand out by themselves, and how many do among so many."""
    compared = [case for case in cases if case.get("difference") is not None]
    found = sum(case["verdict"] in ("above", "below") for case in compared)
    # What the table above leaves out.
    others = {"retrieve-5": "top-5", "finetune-clips": "clip by clip"}
    measures = {case["measure"] for case in compared}
    among = " and ".join(words for name, words in others.items() if name in measures)
    chance = 0.05 * len(compared)
    count = holm([case["p"] for case in compared])
    return (
        f"Of {len(compared)} comparisons in this grid,{f' {among} among them,' if among else ''}"
        f" {found} {'stands' if found == 1 else 'stand'} out, each taken by itself;"
        f" chance alone would give about {chance:.{0 if chance >= 0.5 else 1}f}."
        f" Corrected for their number (Holm) {count or 'none'} {'do' if count > 1 else 'does'}."
    )


def _arms_table(cases: list[dict]) -> list[str]:
    columns = {
        "finetune": "fine-tuned",
        "finetune-4x": "four times as long",
        "probe": "linear probe",
        "retrieve-1": "retrieval, p5",
    }
    measures = {case["measure"] for case in cases}
    columns = {k: v for k, v in columns.items() if k in measures}
    marks = {"above": "**", "below": "*"}
    lines = [
        f"| pre-training | seeds | {' | '.join(columns.values())} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for arm in dict.fromkeys(case["arm"] for case in cases):
        found = {case["measure"]: case for case in cases if case["arm"] == arm}
        seeds = max(found[measure]["seeds"] for measure in columns if measure in found)
        shown = []
        for measure in columns:
            case = found.get(measure)
            if case is None:
                shown.append("-")
                continue
            words = f"{100 * case['share']:.1f}"
            if case["seeds"] > 1:
                words += f" ± {100 * case['deviation']:.1f}"
            # One seed says nothing of what other trainings would have given.
            mark = marks.get(case["verdict"], "") if case["seeds"] > 1 else ""
            shown.append(f"{mark}{words}{mark}")
        lines.append(f"| {arm} | {seeds} | {' | '.join(shown)} |")
    return lines


def verbs() -> str:
    """The commands, as the command line lists them."""
    from pacecore.cli import _VERBS

    rows = [f"| `pacecore {name}` | {text.rstrip('.')} |" for name, text in _VERBS.items()]
    return "\n".join(["| command | does |", "|---|---|", *rows])


BLOCKS: dict[str, Callable[[], str]] = {
    "verbs": verbs,
    "speed": speed,
    "install": install,
    "first_run": first_run,
    "real_videos": real_videos,
    "pace_clip": pace_clip,
    "claims": claims,
}


def rendered(page: str) -> str:
    """The page with every block as its function gives it."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[4]}", page)


def pages() -> dict[Path, str]:
    """The pages in results/ that records alone determine, and what they should hold."""
    found = {RESULTS / "planning.md": planned(), RESULTS / "claims.md": claims_page()}
    for record in sorted(RESULTS.glob("scaling-*.json")):
        found[record.with_suffix(".md")] = scaling_page(json.loads(record.read_text()))
    for record in sorted(RESULTS.glob("gpu_check*cuda.json")):
        found[record.with_suffix(".md")] = gpu_page(json.loads(record.read_text()))
    for record in sorted(RESULTS.glob("bench-*.json")):
        found[record.with_suffix(".md")] = suite_page(json.loads(record.read_text()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, compare only")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    wanted = {readme: rendered(readme.read_text()), **pages()}
    if check:
        sys.exit(any(not p.is_file() or p.read_text() != text for p, text in wanted.items()))
    for path, text in wanted.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
