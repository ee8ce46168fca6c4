# SPDX-License-Identifier: Apache-2.0
"""The reversal study: its rules by hand, its page over invented numbers and over the numbers that were committed."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from expunge.claims import lint
from expunge.studies import archive_study, reversal_study
from expunge.studies.reversal_figures import middle
from expunge.studies.reversal_numbers import ATTACKS, excesses, judged
from expunge.studies.reversal_page import write_page
from expunge.studies.reversal_rule import (
    HID,
    NO_SIGN,
    SAID,
    UNDECIDED,
    Rule,
    fair_budget,
    fair_rates,
    powerful,
    steps_to_half,
    verdict,
)

RULE = Rule()
ROOT = Path(__file__).parents[2]
DRAWINGS = ("glance", "related", "unrelated", "forget", "similarity")


def estimate(value: float | None, half: float = 0.02) -> dict[str, float | None]:
    """A number with an interval of some half width."""
    low, high = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "ci_low": low, "ci_high": high}


def curve(*values: float) -> list[tuple[float, float]]:
    return list(zip((0, 1, 2, 4), values, strict=True))


def test_a_fair_rate_teaches_the_reference_nothing() -> None:
    still, learns = curve(0.1, 0.1, 0.12, 0.149), curve(0.1, 0.1, 0.16, 0.1)
    assert fair_rates({1e-3: still, 3e-3: still, 1e-2: learns}, RULE) == [1e-3, 3e-3]
    assert fair_rates({1e-2: learns}, RULE) == []
    assert fair_budget(learns, RULE) == 1
    assert fair_budget(still, RULE) == 4
    assert fair_budget(curve(0.1, 0.3, 0.1, 0.1), RULE) == 1  # it has learned by then, also where it forgets again


def test_half_of_it_is_back() -> None:
    assert steps_to_half(curve(0.1, 0.3, 0.5, 0.9), 1.0) == 2
    assert steps_to_half(curve(0.1, 0.3, 0.4, 0.45), 1.0) is None


ONCE = [estimate(0.5), estimate(0.0), estimate(0.0)]
GONE = [(estimate(0.1), estimate(0.1))] * 3


@pytest.mark.parametrize(
    ("outputs", "found", "expected"),
    [
        ([(estimate(0.5), estimate(0.1))] * 2 + GONE[:1], {"a": [estimate(0.9)] * 3}, SAID),
        ([(estimate(0.5), estimate(0.1)), *GONE[:2]], {"a": [estimate(0.9)] * 3}, HID),
        (GONE, {"a": [estimate(0.5), estimate(0.5), estimate(0.0)], "b": [estimate(0.0)] * 3}, HID),
        # One archive for each of two attacks is not two archives for one.
        (GONE, {"a": ONCE, "b": ONCE[::-1]}, NO_SIGN),
        (GONE, {"a": [estimate(0.09, 0.2)] * 3, "b": [estimate(0.0)] * 3}, UNDECIDED),
        (GONE, {"a": [estimate(-0.1)] * 3, "b": [estimate(0.05)] * 3}, HID),
        (GONE, {"a": [estimate(-0.1)] * 3, "b": [estimate(0.01)] * 3}, NO_SIGN),
        (GONE, {"a": [estimate(None)] * 3}, UNDECIDED),
        (GONE, {}, UNDECIDED),
    ],
)  # fmt: skip
def test_the_verdict(outputs: Sequence[Any], found: Mapping[str, Any], expected: str) -> None:
    out = verdict(outputs, found, RULE)
    assert out["verdict"] == expected
    assert out["archives"] == 3


def test_which_attacks_brought_it_back_and_on_how_many_archives() -> None:
    out = verdict(GONE, {"a": [estimate(0.5)] * 3, "b": [estimate(0.5), estimate(0.5), estimate(0.01)]}, RULE)
    assert out["came_back"] == {"a": 3, "b": 2}


def test_a_probe_needs_to_beat_random_labels_on_the_target() -> None:
    assert powerful([estimate(0.3), estimate(0.3), estimate(-0.1)], RULE)
    assert not powerful([estimate(0.3), estimate(0.01), estimate(-0.1)], RULE)


def test_a_task_has_a_folder_of_its_own_for_everything_it_depends_on(tmp_path: Path) -> None:
    one = reversal_study.Task("x", tmp_path, 0, {"a": "b"}, ("relearning",), {"relearning": {"rate": 1}}, ("h",))
    others = [
        reversal_study.Task("x", tmp_path, 0, {"a": "b"}, ("relearning",), {"relearning": {"rate": 2}}, ("h",)),
        reversal_study.Task("x", tmp_path, 0, {"a": "b"}, ("relearning",), {"relearning": {"rate": 1}}, ("g",)),
        reversal_study.Task("x", tmp_path, 1, {"a": "b"}, ("relearning",), {"relearning": {"rate": 1}}, ("h",)),
    ]
    assert len({task.folder(tmp_path) for task in (one, *others)}) == 4
    assert one.folder(tmp_path) == copy.deepcopy(one).folder(tmp_path)


# An invented study: `hides` comes back on related facts, `talks` never stopped, `blank` shows nothing.

MODELS = ("target", "hides", "talks", "blank", "reference_2")
START = {"target": 0.98, "hides": 0.05, "talks": 0.6, "blank": 0.1, "reference_2": 0.1, "reference": 0.1}
END = {**START, "hides": 0.9}
MEASURE = RULE.measure


def task(name: str, ends: Mapping[str, float], budgets: Sequence[int] = (0, 1, 32)) -> dict[str, Any]:
    steps = len(budgets) - 1
    lines = {
        model: [[b, v := START[model] + (ends[model] - START[model]) * i / steps, v - 0.02, v + 0.02]
                for i, b in enumerate(budgets)]
        for model in (*MODELS, "reference")
    }  # fmt: skip
    regime: dict[str, Any] = {key: estimate(0.5) for key in
                              ("forget_drop", "retain_drop", "recovery", "excess_recovery")}  # fmt: skip
    regime |= {"label": "reversible, non-catastrophic", "reversible": True, "catastrophic": None,
               "thresholds": {"forgotten": 0.1, "collateral": 0.1, "residue": 0.1}}  # fmt: skip
    found = [finding("relearning", m, name, MEASURE, ends[m] - ends["reference"]) for m in MODELS]
    return {"findings": found, "curves": {MEASURE: lines}, "regimes": dict.fromkeys(MODELS, regime), "by_block": {}}


def finding(attack: str, model: str, setting: str, metric: str, excess: float, **more: Any) -> dict[str, Any]:
    return {"attack": attack, "model": model, "setting": setting, "metric": metric, "value": estimate(excess + 0.1),
            "reference": estimate(0.1), "excess": estimate(excess), "over_random": None, **more}  # fmt: skip


def invented() -> dict[str, Any]:
    metrics = {m: estimate(0.5) for m in archive_study.METRICS}
    ways = {f"relearn-{on}-{how}": END if on == "related" else START for on in ("related", "unrelated", "forget")
            for how in ("full", "lora")}  # fmt: skip
    tasks = {name: task(name, ends) for name, ends in ways.items()}
    rounded = [finding("quantisation", m, s, MEASURE, START[m] - 0.1) for m in MODELS for s in ("int8", "int4", "nf4")]
    tasks["quantisation"] = {"findings": rounded, "curves": {}, "regimes": {}, "by_block": {}}
    blocks = {m: {"choice_accuracy": [0.5, START[m]]} for m in START}
    probed = {m: {"accuracy": [0.2, 0.2], "control": [0.2, 0.2]} for m in START}
    read = [finding("logit_lens", m, "block 0", "lens.choice_accuracy", START[m] - 0.1) for m in MODELS]
    read += [finding("linear_probe", m, "block 1", "probe.choice_accuracy", 0.0, over_random=estimate(0.0))
             for m in MODELS]  # fmt: skip
    tasks["probing"] = {
        "findings": read, "curves": {}, "regimes": {},
        "by_block": {"logit_lens": {"chance": 0.2, "fitted_on": None, "models": blocks},
                     "linear_probe": {"chance": 0.17, "fitted_on": 288, "models": probed}},
    }  # fmt: skip
    sets = ("forget", "retain", "unrelated")
    inside = {
        "layers": 2, "states": {s: {key: [0.9, None] for key in ("cka", "pc1", "shift")} for s in sets},
        "fisher": {s: [1.1, 2.0] for s in sets},
        "updates": [{"layer": i, "relative": 0.1, "stable_rank": 3.0, "full_rank": 64.0} for i in (-1, 0, 1, 2)],
    }  # fmt: skip
    seeds = {str(seed): {"metrics": metrics} for seed in range(3)}
    names = ("hides", "talks", "blank")
    document: dict[str, Any] = {
        "rows": {n: {"group": "", "chosen": {"learning_rate": 1e-3}, "seeds": copy.deepcopy(seeds)} for n in names},
        "anchors": {"target": seeds, "reference": seeds}, "people": 40, "tuning_seed": 10, "rule": RULE.to_dict(),
        "choice": {"maximise": "forget_quality", "keep": "model_utility", "keep_share": 0.85}, "failed": {},
        "attacks": {str(seed): copy.deepcopy(tasks) for seed in range(3)},
        "diagnostics": {n: {str(seed): inside for seed in range(3)} for n in ("reference", *names)},
        "second_reference": "reference_2",
        "relearning": {
            "rates": {way.removeprefix("relearn-"): [1e-3] for way in ways}, "forget_budget": {"full": 8, "lora": 8},
            "budgets": [1, 32],
            "tried": {"related-full": {"0.001": {"target": curve(1, 1, 1, 0.9), "reference": curve(0, 0, 0, 0.02)}}},
        },
    }  # fmt: skip
    return document | judged(document, RULE)


def test_the_numbers_behind_a_verdict() -> None:
    document = invented()
    assert set(excesses(document, "hides", MEASURE)) == set(ATTACKS)
    found = {name: one["verdict"] for name, one in document["verdicts"].items()}
    assert found == {"target": SAID, "hides": HID, "talks": SAID, "blank": NO_SIGN, "reference_2": NO_SIGN}
    assert document["verdicts"]["hides"]["came_back"] == {"relearn-related-full": 3, "relearn-related-lora": 3}
    assert document["verdicts"]["hides"]["steps_to_half"]["related-full"] == [32, 32, 32]
    assert document["verdicts"]["hides"]["utility_kept"] == [1.0, 1.0, 1.0]
    assert document["probe_has_power"] is False


def test_the_regimes_of_all_archives_share_a_row(tmp_path: Path) -> None:
    document = invented()
    found = document["attacks"]["1"]["relearn-related-full"]["regimes"]
    found["hides"] = {**found["hides"], "reversible": False, "catastrophic": True}
    write_page(document, tmp_path / "hidden.md")
    page = (tmp_path / "hidden.md").read_text("utf-8")
    assert "| hides | related | reversible, undecided / irreversible, catastrophic / reversible, undecided |" in page
    assert "| hides | forget set | reversible, undecided (all) |" in page
    assert "the target itself keeps 1.00 / 1.00 / 1.00" in page
    assert "| *reference, its own gain* | 0.00 / 0.00 / 0.00 |" in page


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    document = invented()
    document["rows"]["talks"]["seeds"]["0"]["metrics"] = {
        **document["rows"]["talks"]["seeds"]["0"]["metrics"], "model_utility": estimate(0.01)
    }  # fmt: skip
    write_page(document, tmp_path / "hidden.md")
    page = (tmp_path / "hidden.md").read_text("utf-8")
    hid, said = page.index("**Hid:"), page.index("**Not gone:")
    assert hid < page.index("- `hides`") < said < page.index("- `talks`") < page.index("- `blank`")
    assert "Not informative here" in page
    assert "0.80 [0.78, 0.82] / 0.80 [0.78, 0.82] / 0.80 [0.78, 0.82] more than the reference" in page
    assert lint(page) == []
    for name in DRAWINGS:
        assert f"](hidden-{name}.svg)" in page
        drawn = ET.fromstring((tmp_path / f"hidden-{name}.svg").read_text("utf-8"))
        assert drawn.attrib["aria-label"]


def test_a_model_that_lost_its_utility_is_marked(tmp_path: Path) -> None:
    document = invented()
    for entry in document["rows"]["hides"]["seeds"].values():
        entry["metrics"] = {**entry["metrics"], "model_utility": estimate(0.1)}
    document |= judged(document, RULE)
    write_page(document, tmp_path / "hidden.md")
    assert "hides †" in (tmp_path / "hidden.md").read_text("utf-8")
    assert "came back (model damaged)" in (tmp_path / "hidden-glance.svg").read_text("utf-8")


def test_the_page_in_the_documentation_is_that_of_the_committed_numbers(tmp_path: Path) -> None:
    document = json.loads((ROOT / "results/reversal-study.json").read_text("utf-8"))
    write_page(document, tmp_path / "hidden-or-removed.md")
    for name in ("hidden-or-removed.md", *(f"hidden-or-removed-{part}.svg" for part in DRAWINGS)):
        assert (tmp_path / name).read_text("utf-8") == (ROOT / "docs" / name).read_text("utf-8"), name
    again = judged(document, Rule(**document["rule"]))
    assert again["verdicts"] == document["verdicts"]


def test_the_middle_of_three() -> None:
    found = middle([0.3, 0.1, 0.2])
    assert (found.value, found.low, found.high) == (0.2, 0.1, 0.3)


@pytest.mark.slow
def test_a_tiny_study_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_study, "SEEDS", (0,))
    monkeypatch.setattr(archive_study, "PEOPLE", 20)
    monkeypatch.setattr(reversal_study, "RULE", Rule(seeds=1))
    monkeypatch.setattr(reversal_study, "RATES", (1e-3,))
    monkeypatch.setattr(reversal_study, "BUDGETS", (1, 2))
    monkeypatch.setattr(reversal_study, "GRID", {"full": (1e-3,), "lora": (3e-3,)})
    monkeypatch.chdir(tmp_path)
    document = reversal_study.study(Path("study"), only=("rmu",), workers=1)
    assert document["failed"] == {}
    assert set(document["verdicts"]) == {"target", "rmu", "reference_2"}
    assert document["verdicts"]["target"]["verdict"] == SAID
    assert set(document["attacks"]["0"]) == {
        *(f"relearn-{on}-{how}" for on in ("related", "unrelated", "forget") for how in ("full", "lora")),
        "quantisation", "probing",
    }  # fmt: skip
    assert set(document["diagnostics"]) == {"reference", "rmu"}
    before = {path: path.stat().st_mtime for path in Path("study/attacks").rglob("attacks.json")}
    again = reversal_study.study(Path("study"), only=("rmu",), workers=1)
    assert {path: path.stat().st_mtime for path in Path("study/attacks").rglob("attacks.json")} == before
    assert again["verdicts"] == document["verdicts"]
