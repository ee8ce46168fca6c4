# SPDX-License-Identifier: Apache-2.0
"""The parts of a report: judgements, words, scales, labels, folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import report_fixture as fixture

from expunge.claims import SENTENCES, ClaimKind
from expunge.errors import InputDataError
from expunge.report import CurvePoint, ModelView, RelearnView, ReportView, render, view_from_audit, view_from_run
from expunge.report.answers import answers
from expunge.report.judge import Anchor, anchor, judge
from expunge.report.metrics import describe, key_metrics, metric_names
from expunge.report.plane import Box, Dot, place_labels, plane
from expunge.report.plots import relearning, spread, trajectory
from expunge.report.regime import remark
from expunge.report.svg import SHAPES, Scale, coordinate, domain, marker, text_width, ticks
from expunge.report.tables import metrics_table
from expunge.report.verdict import back_sentences, claim_sentences, far_sentences, measured_sentences
from expunge.report.words import duration, interval, moment, number, settings_sentence


def _view(*names: str) -> ReportView:
    return view_from_audit(fixture.audit(names, with_relearning=False), title="test")


@pytest.mark.parametrize("gap", [0.02, 0.07, 0.15, 0.4])
def test_over_unlearning_is_judged_like_under_unlearning(gap: float) -> None:
    to = Anchor(0.5, 0.49, 0.51, "reference")
    over = judge("forget.probability", fixture.estimate(0.5 - gap, 0.01, "reference"), to)
    under = judge("forget.probability", fixture.estimate(0.5 + gap, 0.01, "reference"), to)
    assert over.level == under.level == {0.02: "good", 0.07: "warn", 0.15: "bad", 0.4: "bad"}[gap]
    if gap > 0.05:
        assert "over-unlearned" in over.words
        assert "under-unlearned" in under.words
        assert over.mark != under.mark


def test_a_large_gap_that_the_intervals_explain_is_amber() -> None:
    to = Anchor(0.5, 0.3, 0.7, "reference")
    verdict = judge("forget.probability", fixture.estimate(0.3, 0.15, "reference"), to)
    assert verdict.level == "warn"
    assert "overlap" in verdict.words


def test_one_sided_metrics_count_the_worse_side_only() -> None:
    to = Anchor(0.6, 0.59, 0.61, "reference")
    assert judge("model_utility", fixture.estimate(0.9, 0.01, "higher"), to).level == "good"
    assert judge("model_utility", fixture.estimate(0.3, 0.01, "higher"), to).level == "bad"
    assert judge("forget.probability", fixture.estimate(0.55, 0.01, "lower"), to).level == "good"
    beyond = judge("forget.probability", fixture.estimate(0.1, 0.01, "lower"), to)
    assert (beyond.level, beyond.words) == ("warn", "below the reference: over-unlearned")
    assert judge("forget.leak_rate", fixture.estimate(0.1, 0.01, "lower"), to).level == "good"
    assert judge("forget.probability", fixture.estimate(0.9, 0.01, "lower"), to).level == "bad"


def test_what_a_number_is_compared_with() -> None:
    full, bare = _view("target", "reference", "npo"), _view("target", "npo")
    found = anchor(full, "membership.min_k_auc")
    assert found is not None
    assert (found.value, found.label) == (0.507, "reference")
    neutral = anchor(bare, "membership.min_k_auc")
    assert neutral is not None
    assert neutral.value == 0.5
    before = anchor(bare, "model_utility")
    assert before is not None
    assert (before.value, before.label) == (0.623, "model before")
    assert anchor(bare, "forget.probability") is None
    auc = judge("membership.min_k_auc", fixture.estimate(0.1, 0.02, "reference"), neutral)
    assert auc.level == "bad"
    assert "over-unlearned" in auc.words


def test_p_values_and_numbers_outside_a_share_get_no_colour() -> None:
    to = Anchor(1.0, 1.0, 1.0, "reference")
    assert judge("forget_quality", fixture.estimate(0.42, 0, "higher"), to).level == "none"
    assert judge("forget.strange", fixture.estimate(7.0, 0, "reference"), to).level == "none"


def test_table_colours_and_words_of_over_and_under() -> None:
    table = metrics_table(_view("target", "reference", "ga", "idk"))
    row = next(r for r in re.findall(r"<tr>.*?</tr>", table) if 'title="forget.probability"' in r)
    cells = re.findall(r"<td.*?</td>", row)[1:]
    assert "j-none" in cells[0]
    assert "j-none" in cells[1]
    assert all('class="pill j-bad"' in cell for cell in cells[2:])
    assert "▼" in cells[2]
    assert "over-unlearned" in cells[2]
    assert "▲" in cells[3]
    assert "under-unlearned" in cells[3]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.12345, "0.123"), (1.9e-4, "0.0002"),
     (-96.4, "−96.40"), (1.83e-21, "1.8×10⁻²¹"), (123456.0, "123\u202f456"),
     (10.0, "10.00"), (250.04, "250.0"), (-2.5e-7, "−2.5×10⁻⁷")],
)  # fmt: skip
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_words_for_numbers() -> None:
    assert interval({"ci_low": 0.1, "ci_high": 0.2}) == "0.100–0.200"
    assert interval({"ci_low": -5.4, "ci_high": 15.0}) == "−5.40 to 15.00"
    assert interval({"ci_low": None, "ci_high": 1.0}) == ""
    assert moment("2025-11-20T14:03:21+00:00") == "2025-11-20 14:03 UTC"
    assert moment("yesterday") == "yesterday"
    assert [duration(s) for s in (3.21, 125, 7260)] == ["3.2 s", "2 min 05 s", "2 h 01 min"]
    with pytest.raises(ValueError, match="nan"):
        number(float("nan"))
    sentence = settings_sentence({"training": {"lr": 1e-5, "epochs": 5}, "method": {"beta": 0.1}})
    assert sentence == "It ran with learning rate 1e-05 and 5 epochs."


def test_metric_words_and_groups() -> None:
    assert describe("forget.probability").title == "Forget-set answer probability"
    assert describe("forget.paraphrase_probability").title == "Forget-set answer probability, paraphrased question"
    assert describe("membership.min_k_plus_plus_auc").title == "Min-K%++ membership AUC"
    assert describe("membership.min_k.auc").title == "Min-K% membership AUC"
    assert describe("membership.loss.tpr_at_1pct_fpr").title == "Loss membership hits"
    assert describe("forget.exact_memorization").title == "Forget-set exact memorisation"
    names = ("forget.rouge_l", "forget.rouge_l_f1", "forget.rouge_1", "forget.paraphrase_rouge_l", "retain.rouge_l")
    assert len({describe(name).title for name in names}) == len(names)
    groups = {"retain.rouge": "Utility", "forget.rouge": "Forgetting", "mia.loss": "Membership", "x": "Other",
              "neighbours.probability": "Utility", "holdout.probability": "Other", "forget.loss": "Forgetting",
              "forget.refusal_rate": "Behaviour", "world_facts.probability": "Utility"}  # fmt: skip
    assert {name: describe(name).group for name in groups} == groups
    view = _view("target", "reference", "npo")
    assert key_metrics(view)[:3] == ["forget.extraction_strength", "forget.probability", "model_utility"]
    ordered = [describe(name).group for name in metric_names(view)]
    assert ordered == sorted(ordered, key=["Forgetting", "Utility", "Membership", "Behaviour", "Other"].index)


def test_verdict_sentences() -> None:
    one = measured_sentences(_view("target", "reference", "npo"))
    assert one[0] == "Forget-set answer probability went from 0.991 to 0.121 (reference 0.148)."
    assert measured_sentences(_view("target", "npo"))[0].endswith("to 0.121 (no reference measured).")
    many = measured_sentences(_view("target", "reference", "npo", "simnpo"))
    assert many[1].endswith("nearest to that is npo with 0.121.")
    assert many[2].endswith("nearest to that is simnpo with 0.602.")
    assert many[3] == "No model is nearest on both: npo and simnpo."
    far = far_sentences(_view("target", "reference", "ga"))
    over = next(line for line in far if line.startswith("Over-unlearned, below the reference: "))
    assert "Min-K% membership AUC" in over
    several = far_sentences(_view("target", "reference", "ga", "npo"))
    assert several[0].startswith("ga: Forgetting (over-unlearned); Utility (below the reference); ")


def test_claims_weakest_first_and_none_without_measurement() -> None:
    metrics = {"forget.probability": fixture.estimate(0.1, 0.01, "reference")}
    models = {
        "a": ModelView(role="unlearned", method={"claim": "exact"}, metrics=metrics),
        "b": ModelView(role="unlearned", method={"claim": "suppression"}, metrics=metrics),
    }
    found = claim_sentences(ReportView(title="t", models=models))
    assert [kind for kind, _ in found] == [ClaimKind.SUPPRESSION, ClaimKind.EXACT]
    assert found[0][1] == f"b: {SENTENCES[ClaimKind.SUPPRESSION]}"
    nothing = ReportView(title="t", models={"a": ModelView(role="unlearned", method={"claim": "exact"})})
    assert claim_sentences(nothing) == [(None, "Nothing was measured, so nothing is claimed.")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-40, 0, [-40, -30, -20, -10, 0]), (0, 0.013, [0, 0.005, 0.01])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_scale_domain_and_coordinates() -> None:
    scale = Scale(0.2, 0.7, 10, 110)
    assert scale(0.45) == pytest.approx(60)
    assert domain([0.3, 0.3]) == pytest.approx((0.27, 0.33))
    assert domain([]) == (0, 1)
    assert domain([0.05, 0.95]) == (0, 1)
    assert coordinate(-0.04) == "0"
    with pytest.raises(ValueError, match="finite"):
        coordinate(float("inf"))
    assert len({marker(shape, 0, 0, 5, "") for shape in (*SHAPES, "ring", "diamond")}) == len(SHAPES) + 2


def test_labels_in_a_crowd_do_not_touch_each_other_or_the_dots() -> None:
    spots = [(60, 60), (66, 64), (72, 58), (60, 78), (340, 60), (52, 380)]
    dots = [Dot(f"method_{i}", x, y, (Box(x - 7, y - 7, x + 7, y + 7),)) for i, (x, y) in enumerate(spots)]
    frame = Box(46, 26, 356, 390)
    boxes = {}
    for name, (x, y, side) in place_labels(dots, frame).items():
        width = text_width(name, 12.5)
        left = x if side == "start" else x - width if side == "end" else x - width / 2
        boxes[name] = Box(left, y - 10, left + width, y + 3)
    for name, box in boxes.items():
        assert all(box.shared(other) == 0 for key, other in boxes.items() if key != name)
        assert all(box.shared(part) == 0 for dot in dots for part in dot.covers)
        assert box.shared(frame) == pytest.approx((box.right - box.left) * (box.bottom - box.top))


def test_plane_needs_two_points_and_marks_the_reference() -> None:
    drawing = plane(_view("target", "reference", "npo"), "forget.probability")
    assert 'class="near"' in drawing
    assert drawing.count("mark mr ring") == 1
    assert all(f">{name}</text>" in drawing for name in ("target", "reference", "npo"))
    assert plane(_view("npo"), "forget.probability") == ""


def test_trajectory_skips_what_is_not_a_number_and_names_its_lines() -> None:
    rows = [{"step": 1, "loss": 2.0, "forget": None}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.0}]
    panels = trajectory(_view("npo"), ModelView(role="unlearned", trajectory=rows))
    assert len(panels) == 1
    assert "from 2.000 to 1.000" in panels[0]
    assert trajectory(_view("npo"), ModelView(role="unlearned", trajectory=[{"step": 1}])) == []
    long = [{"step": i, "loss": 1.0 / (i + 1)} for i in range(5000)]
    drawn = trajectory(_view("npo"), ModelView(role="unlearned", trajectory=long))[0]
    assert len(drawn) < 6000


def test_spread_keeps_order_and_distance() -> None:
    out = spread([10.0, 12.0, 11.0], 13)
    assert sorted(out) == pytest.approx([out[0], out[0] + 13, out[0] + 26])
    assert out[0] < out[2] < out[1]
    assert sum(out) == pytest.approx(33)


def test_a_value_without_interval_says_why() -> None:
    only = fixture.estimate(0.4, 0, "reference") | {"ci_low": None, "ci_high": None, "reason": "only one subject"}
    table = metrics_table(
        ReportView(title="t", models={"a": ModelView(role="method", metrics={"forget.rouge_l": only})})
    )
    assert 'no interval<sup><a href="#fn-1">' in table
    assert '<li id="fn-1">only one subject</li>' in table
    assert "<small>unlearned</small>" in table


def test_relearning_without_a_control_says_so() -> None:
    points = (CurvePoint(budget=0, value=0.1), CurvePoint(budget=16, value=0.6, ci_low=0.5, ci_high=0.7))
    curve = RelearnView(metric="forget.probability", budget_unit="steps", curves={"npo": points})
    view = _view("target", "reference", "npo")
    assert "npo from 0.100 to 0.600" in relearning(view, curve)
    changed = ReportView(title="t", models=view.models, relearning=curve, attacks_run=("relearning",))
    assert "No control curve of a reference is given" in render(changed)


def _attacked(*, there: bool, after: float) -> dict[str, Any]:
    """An audit with relearning in one way, in which nothing came back."""
    way = "forget, all weights"
    regime = {"label": None, "power": False, "reason": "no power"} if not there else {"label": None, "reason": "none"}
    notes = {"regimes": {"npo": {way: regime}},
             "power": {way: {"before": 0.009, "after": after, "limit": 0.05, "there": there, "rise": {}}}}  # fmt: skip
    entry = {**fixture.relearning(), "kind": "relearning", "findings": [], "notes": notes, "card": {}}
    return {**fixture.audit(with_relearning=False), "attacks": {"relearning": entry}}


def test_an_attack_without_power_says_that_it_shows_nothing() -> None:
    weak = render(view_from_audit(_attacked(there=False, after=0.011), title="t"))
    assert "No power in 1 way of relearning" in weak
    assert "the reference went on what it was shown from 0.009 to 0.011 (forget, all weights), rises below 0.05" in weak
    assert "That nothing came back there in npo says nothing" in weak
    assert "Relearning had no power on npo in any way tried" in weak.partition('id="numbers"')[0]
    assert "The attack had power" not in weak
    strong = render(view_from_audit(_attacked(there=True, after=0.361), title="t"))
    assert "the reference went on what it was shown from 0.009 to 0.361 (forget, all weights)" in strong
    assert "no power" not in strong.lower()


def test_what_comes_back_stands_at_the_top() -> None:
    def row(way: str, value: float, low: float) -> dict[str, Any]:
        gap = fixture.estimate(value - 0.2, 0.05, "reference") | {"ci_low": low}
        return {"model": "npo", "setting": f"{way}, 32 steps", "metric": "forget.probability",
                "value": fixture.estimate(value, 0.05, "reference"), "differences": {"reference": gap},
                "controls": {"reference": fixture.estimate(0.2, 0.05, "reference")}}  # fmt: skip

    def said(*rows: dict[str, Any]) -> list[tuple[bool, str]]:
        document = _attacked(there=True, after=0.4)
        document["attacks"]["relearning"]["findings"] = list(rows)
        return back_sentences(view_from_audit(document, title="t"))

    ((came, text),) = said(row("forget, all weights", 0.5, 0.1), row("forget, LoRA", 0.7, 0.2))
    assert came
    assert text.startswith("The forget set comes back in npo: trained again (forget, LoRA, 32 steps)")
    assert "reaches 0.700, that of the reference 0.200; the difference is 0.500" in text
    ((came, text),) = said(row("forget, all weights", 0.22, -0.1))
    assert not came
    assert text.startswith("In 1 way of relearning, npo went no further than the reference")


def test_irreversible_by_the_threshold_alone_is_said() -> None:
    some, far, near = {"value": 0.88}, {"value": 0.5, "ci_low": 0.4}, {"value": 0.01, "ci_low": -0.1}
    assert "more came back than a model learns that never knew" in remark("irreversible, catastrophic", some, far)
    assert remark("irreversible, catastrophic", some, near) == ""
    assert remark("irreversible, catastrophic", some, {"value": None}) == ""
    assert remark("reversible, catastrophic", some, far) == ""


def test_traces_stand_beside_membership() -> None:
    value, control = fixture.estimate(0.9, 0.05, "reference"), fixture.estimate(0.6, 0.05, "reference")
    finding = {"model": "npo", "setting": "states", "metric": "traces.accuracy", "value": value,
               "controls": {"two models that never learned": control}, "differences": {}}  # fmt: skip
    entry = {"kind": "trace detection", "card": {"title": "Trace detection"}, "findings": [finding], "notes": {}}
    view = view_from_audit({**fixture.audit(with_relearning=False), "attacks": {"traces": entry}}, title="t")
    assert view.models["npo"].metrics["membership.traces.states"] == value
    assert view.models["reference"].metrics["membership.traces.states"] == control
    assert describe("membership.traces.states").group == "Membership"
    assert "Traces in the states" in render(view).replace('</span> <span class="nowrap"><span class="mtitle">', " ")


def test_refusals_inventions_and_leaks_fill_a_bar() -> None:
    rates = {"refusal_rate": 0.25, "hallucination_rate": 0.65, "leak_rate": 0.1}
    metrics = {f"forget.{name}": fixture.estimate(value, 0.05, "reference") for name, value in rates.items()}
    models = {"a": ModelView(role="method", metrics=metrics), "b": ModelView(role="method")}
    found = answers(ReportView(title="t", models=models))
    # 180 wide: 45, 117 and 18.
    assert [part.split('"')[0] for part in found.split('width="')[-3:]] == ["45", "117", "18"]
    assert "refuses 0.250, invents 0.650, leaks 0.100" in found
    assert found.count("<tr>") == 2  # the head and the model that has all three
    assert answers(ReportView(title="t", models={"b": models["b"]})) == ""


def test_folder_gives_settings_examples_and_curves_to_the_right_model(tmp_path: Path) -> None:
    view = view_from_run(fixture.write_run(tmp_path / "npo", "npo"))
    assert list(view.models) == ["target", "reference", "npo"]
    own = view.models["npo"]
    assert own.settings["method"]["beta"] == 0.1
    assert len(own.trajectory) == 31
    assert [e.id for e in own.examples] == ["author-3/7", "author-3/8"]
    assert own.seconds == 312.4
    assert not view.models["target"].trajectory
    assert dict(view.what_was_asked)["Model"] == (
        "models/target, 1\u202f235\u202f814\u202f400 parameters, digest b1946ac92492"
    )
    assert view.runs_tried == 3
    assert view.policy[2].measured == "not measured"


def test_bad_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"run\.json"):
        view_from_run(tmp_path)
    folder = fixture.write_run(tmp_path / "a", "npo")
    (folder / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(InputDataError, match="line 2"):
        view_from_run(folder)
    folder = fixture.write_run(tmp_path / "b", "npo")
    (folder / "examples.json").write_text(json.dumps([{"id": "x"}]))
    with pytest.raises(InputDataError, match="missing or unknown fields"):
        view_from_run(folder)
    with pytest.raises(InputDataError, match="no audited model"):
        view_from_audit(fixture.audit(), title="t", runs={"nobody": folder})


def test_an_empty_attack_result_does_not_count_as_run() -> None:
    document = {
        **fixture.audit(("target", "npo"), with_relearning=False),
        "attacks": {"relearning": None, "probing": 1},
    }
    assert view_from_audit(document, title="t").attacks_run == ("probing",)
