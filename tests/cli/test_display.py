# SPDX-License-Identifier: Apache-2.0
"""What people look at: the table at the end and the progress before it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from expunge.cli.progress import Display, LiveDisplay
from expunge.cli.tables import KEY_METRICS, print_results
from expunge.report.view import ModelView, ReportView
from expunge.training.callbacks import StepInfo


def found(
    value: float | None, low: float | None = None, high: float | None = None, *, way: str = "lower"
) -> dict[str, Any]:
    """One estimate in its JSON form."""
    return {
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": 8,
        "direction": way,
        "reason": "" if low else "too few",
    }


def view_of(models: int, **more: Any) -> ReportView:
    """A view of target, reference and some changed models."""
    metrics = {
        "forget.probability": found(0.5, 0.4, 0.6), "retain.probability": found(0.9, 0.85, 0.95, way="higher"),
        "model_utility": found(0.6, 0.5, 0.7, way="higher"), "privleak": found(-100.0, -100.0, -98.2, way="reference"),
        "forget.fluency": found(2.5, 2.0, 3.0, way="higher"), **more,
    }  # fmt: skip
    roles = {"target": "target", "reference": "reference"} | {f"method{i}": "method" for i in range(models)}
    views = {name: ModelView(role=role, metrics=metrics) for name, role in roles.items()}
    return ReportView(title="", models=views)


def printed(view: ReportView, width: int, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_results(console, view, **options)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("models", [1, 5])
def test_every_model_and_number_is_there_at_any_width(width: int, models: int) -> None:
    text = printed(view_of(models), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for name in ("target", "reference", *(f"method{i}" for i in range(models))):
        assert name in text
    assert text.count("0.900") == 2 + models
    assert text.count(".85–.95") + text.count(".850–.950") == 2 + models
    assert "…" in text  # the negative interval keeps its sign and needs no dash
    assert "−100…−98.2" in text.replace("\n", "")


def test_seven_models_stand_side_by_side_at_100_columns() -> None:
    assert printed(view_of(5), 100).count("model_utility ↑") == 1


def test_what_has_no_number_says_why_and_the_rest_is_counted() -> None:
    view = view_of(1, **{"forget_quality": found(None), "forget.rouge_l": found(0.2)})
    text = printed(view, 100)
    assert "– forget_quality: too few" in text
    assert "no interval for 1 of the rows: too few" in text
    assert "fluency" not in text
    assert "1 more metrics: --all-metrics" in text
    assert "fluency ↑" in printed(view, 100, all_metrics=True)


def test_at_most_fourteen_rows_lead() -> None:
    assert len(KEY_METRICS) <= 14


def step(number: int, total: int) -> StepInfo:
    return StepInfo(number, total, 0, {"forget": 0.5}, 1e-3, 1.0, 0.1)


def follow(display: Display) -> None:
    """One heading, one stage that ends, and one that fails half way."""
    with pytest.raises(ValueError), display as watcher:  # noqa: PT012
        watcher.heading("npo: a method")
        watcher.stage("Loading [the] model")
        watcher.stage("Unlearning")
        watcher.on_probe(0, {"forget.probability": 0.95})
        watcher.on_step(step(1, 4))
        watcher.on_step(step(2, 4))
        watcher.on_probe(2, {"forget.probability": 0.5})
        raise ValueError


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    follow(Display(Console(file=stream, width=100)))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "npo: a method"
    assert lines[1].endswith("Loading [the] model")
    assert lines[3].strip() == "step 2 of 4, forget 0.95 → 0.50"
    assert "\x1b" not in stream.getvalue()


def test_live_bars_leave_lines_behind() -> None:
    stream = io.StringIO()
    follow(LiveDisplay(Console(file=stream, width=100, force_terminal=True, color_system=None)))
    text = stream.getvalue()
    assert "✓ Loading [the] model" in text
    assert "✗ Unlearning  step 2 of 4, forget 0.95 → 0.50" in text
    assert text.count("\x1b[?25h") == 1  # the cursor is given back
