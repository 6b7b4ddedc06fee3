"""The table of the paper's claims, and the records of the grids that it is made of."""

import json

import numpy as np
import pytest

from benchmarks.common import RESULTS
from benchmarks.experiments.arms import LONG, RANDOM, SCRATCH
from benchmarks.experiments.claims import _MEASURED, CLAIMS, Claim, Seen, claims_table
from benchmarks.experiments.differences import compare

GROUPED = sorted(
    path
    for path in RESULTS.glob("experiments-*.json")
    if json.loads(path.read_text()).get("filmed_together")
)


def hits(record, measure, arm):
    for case in record["cases"]:
        if (case["measure"], case["arm"]) == (measure, arm):
            return np.array([seed.split() for seed in case["right"]], dtype=np.float64)
    raise LookupError(f"{arm} under {measure}")


@pytest.mark.parametrize("path", GROUPED, ids=lambda path: path.stem)
def test_differences_of_a_record_are_those_of_its_hits(path):
    record = json.loads(path.read_text())
    groups = np.array(record["filmed_together"])

    def differences(measure, arm, against):
        return compare(hits(record, measure, arm), hits(record, measure, against), groups)

    checked = 0
    ablations = "ablations" in path.stem
    for case in record["cases"]:
        if case.get("difference") is None:
            continue
        of_scratch = case["measure"].startswith("finetune")
        baseline = "pace" if ablations else SCRATCH.words if of_scratch else RANDOM.words
        found = differences(case["measure"], case["arm"], baseline)
        assert found == pytest.approx([case[name] for name in ("difference", "low", "high", "p")])
        checked += 1
    measures = {words: measure for measure, words in _MEASURED.items()}
    for case in record.get("beside_context", []):
        found = differences(measures[case["measured"]], case["arm"], case["context"])
        assert found == pytest.approx([case[name] for name in ("difference", "low", "high", "p")])
        checked += 1
    assert checked >= 10


def test_every_row_of_the_claims_has_such_a_record():
    assert {f"{seen.record}.json" for claim in CLAIMS for seen in claim.seen} <= {
        path.name for path in GROUPED
    }


def test_what_the_two_grids_of_own_crops_say_together_is_of_their_hits():
    """The one figure of experiments.md that is of two records."""
    records = [
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("experiments-small-long-more", "experiments-small-own")
    ]
    assert records[0]["filmed_together"] == records[1]["filmed_together"]
    groups, words = np.array(records[0]["filmed_together"]), {arm.name: arm.words for arm in LONG}

    def said(measure):
        mine, theirs = (
            np.concatenate([hits(record, measure, words[name]) for record in records])
            for name in ("long-pace-context-own", "long-own")
        )
        *points, p = compare(mine, theirs, groups)
        return "{:.1f} points ({:.1f} to {:.1f}, p {:.3f})".format(*np.multiply(points, 100), p)

    text = " ".join((RESULTS / "experiments.md").read_text(encoding="utf-8").split())
    assert f"retrieval {said('retrieve-1')}, the probe {said('probe')};" in text


def compared(arm, measure, difference, p, **more):
    low, high = difference - 0.2, difference + 0.2
    verdict = "above" if low > 0 else "below" if high < 0 else "not told apart"
    figures = {"difference": difference, "low": low, "high": high, "p": p, "verdict": verdict}
    return {"arm": arm, **({"measure": measure} if measure else {}), **figures, **more}


def test_a_claim_is_told_with_its_sign_its_interval_and_what_is_left_of_it():
    record = {
        "cases": [
            {"arm": SCRATCH.words, "measure": "finetune", "difference": None},
            compared("mine", "finetune", 0.3, 0.02),
            compared("mine", "retrieve-1", 0.25, 0.04),
            compared("other", "finetune", -0.3, 0.03),
        ],
        "beside_context": [
            compared("mine", None, -0.31, 0.001, context="context", measured="fine-tuned"),
            compared("mine", None, 0.1, 0.5, context="context", measured="in retrieval"),
        ],
    }
    beside = {"context": "mine"}
    claims = (
        Claim(
            "first",
            lambda arm: SCRATCH.words,
            (
                Seen("grid", "mine", "finetune"),
                Seen("grid", "other", "finetune", "again", main=True),
            ),
        ),
        Claim(
            "second",
            beside.__getitem__,
            (Seen("grid", "context", "finetune"), Seen("grid", "context", "retrieve-1")),
        ),
    )
    assert claims_table({"grid": record}.__getitem__, claims)[2:] == [
        "| first | mine | fine-tuned | +30.0 | +10.0 to +50.0 | above |",
        "|  | other, again | fine-tuned | -30.0 | -50.0 to -10.0 | below |",
        "| second | context | fine-tuned | +31.0 | +11.0 to +51.0 | **above** |",
        "|  | context | in retrieval | -10.0 | -30.0 to +10.0 | not told apart |",
    ]
    assert claims_table({"grid": record}.__getitem__, claims[:1], main=True)[2:] == [
        "| first | other, again | fine-tuned | -30.0 | -50.0 to -10.0 | below |",
    ]
    # The least of three has to be a third of 0.05.
    record["cases"][1]["p"] = 0.05 / 3 - 1e-6
    assert "**above**" in claims_table({"grid": record}.__getitem__, claims)[2]
