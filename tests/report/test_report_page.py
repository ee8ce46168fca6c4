# SPDX-License-Identifier: Apache-2.0
"""The page: well formed, offline, honest, redacted, the same every time."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_fixture as fixture

from expunge.claims import ATTACKS, MISMATCHES, SENTENCES, ClaimKind, lint
from expunge.errors import ExpungeError
from expunge.report import (
    ReportView,
    model_card_section,
    render,
    render_markdown_table,
    view_from_audit,
    view_from_run,
    write_report,
)
from expunge.report.style import _DARK, _LIGHT
from expunge.report.words import check_page

_VOID = {"meta", "br", "hr", "input", "link", "img", "col", "wbr"}


class Strict(HTMLParser):
    """Fails on unbalanced tags and collects attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> ReportView:
    root = tmp_path_factory.mktemp("runs")
    runs = {name: fixture.write_run(root / name, name) for name in ("ga", "grad_diff", "npo", "simnpo", "idk")}
    return view_from_audit(fixture.audit(), title="Seven models", runs=runs, reproduce=["expunge demo"])


@pytest.fixture(scope="module")
def page(view: ReportView) -> str:
    return render(view)


def test_balanced_unique_ids_and_links_that_lead_somewhere(page: str) -> None:
    parsed = Strict(page)
    ids = [value for _, key, value in parsed.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    links = [value for _, key, value in parsed.attributes if key == "href"]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"url\(|@import|\bsrc=|fetch\(|XMLHttp|//[a-z]", page)
    assert "default-src 'none'" in page


def test_every_sentence_is_allowed_and_the_limits_are_printed(page: str) -> None:
    text = "\n".join(Strict(page).text)
    assert lint(text) == []
    for sentence in (*MISMATCHES, SENTENCES[ClaimKind.APPROXIMATE]):
        assert sentence in text
    untested = text.partition("Not tested: ")[2].partition(".")[0]
    assert all((attack in untested) == (attack != "relearning") for attack in ATTACKS)


@pytest.mark.parametrize("where", ["title", "reason", "asked", "note"])
def test_a_forbidden_sentence_is_never_written(view: ReportView, where: str, tmp_path: Path) -> None:
    bad = "After this the data is removed"
    changes = {
        "title": {"title": bad},
        "asked": {"what_was_asked": (("Request", bad),)},
        "note": {"notes": (bad,)},
        "reason": {
            "models": view.models
            | {
                "ga": dataclasses.replace(
                    view.models["ga"],
                    metrics={"forget.rouge": fixture.estimate(None, 0, "lower", reason=bad)},
                )
            }
        },
    }[where]
    with pytest.raises(ExpungeError, match="data is removed"):
        write_report(dataclasses.replace(view, **changes), tmp_path / "report.html")  # type: ignore[arg-type]
    assert not (tmp_path / "report.html").exists()


def test_a_forbidden_sentence_split_over_inline_tags_is_found_and_quotations_are_let_through() -> None:
    with pytest.raises(ExpungeError):
        check_page("<p>the data <em>is</em> <strong>removed</strong></p>")
    with pytest.raises(ExpungeError):
        check_page('<p title="GDPR compliant">fine</p>')
    assert check_page('<p><span data-quote>Certified unlearning</span></p><svg><line x1="1"/></svg>')
    with pytest.raises(ExpungeError):
        check_page("<p><span data-quote>quoted</span> certified unlearning</p>")


def test_redaction_leaves_no_text_of_any_example(page: str, view: ReportView) -> None:
    for model in view.models.values():
        for example in model.examples:
            for text in (example.prompt, example.target, example.before, example.after, example.reference):
                assert text
                assert text not in page
    assert not any(word in page for word in fixture.SECRET_WORDS)
    assert "9 words, 64 characters" in page
    assert "overlap 0.110" in page
    shown = render(view, show_examples=True)
    assert all(word in shown for word in fixture.SECRET_WORDS)
    Strict(shown)
    assert not re.search(r"<details class=\"example\" open", shown)


def test_what_comes_from_outside_is_escaped(view: ReportView) -> None:
    evil = "<script>alert(1)</script>\"'&"
    models = {evil: dataclasses.replace(view.models["npo"], settings={evil: evil}), **view.models}
    page = render(dataclasses.replace(view, title=evil, models=models, environment={evil: evil}, reproduce=(evil,)))
    Strict(page)
    assert page.count("<script>") == 1
    assert "&lt;script&gt;" in page


def test_missing_values_carry_their_reason_as_tooltip_and_footnote(page: str) -> None:
    reason = "every generation is empty, so no share can be given"
    note = re.search(rf'<li id="(fn-\d+)">{reason}</li>', page)
    assert note
    assert f'<abbr title="{reason}">–</abbr>' in page
    assert f'<a href="#{note.group(1)}">' in page


def test_numbers_in_drawings_are_finite_and_drawings_are_spoken(page: str) -> None:
    parsed = Strict(page)
    geometry = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "rx", "width", "height"}
    values = [value for tag, key, value in parsed.attributes if key in geometry and tag != "meta"]
    assert len(values) > 500
    assert all(math.isfinite(float(value)) for value in values)
    steps = [value for _, key, value in parsed.attributes if key == "d"]
    assert steps
    assert not any("nan" in value or "inf" in value for value in steps)
    assert page.count("<svg") == len([1 for tag, key, _ in parsed.attributes if (tag, key) == ("svg", "aria-label")])


def test_output_is_the_same_every_time(view: ReportView, page: str) -> None:
    assert render(view) == page


def test_a_failed_run_renders_and_claims_nothing(tmp_path: Path) -> None:
    folder = fixture.write_run(tmp_path / "run", "ga", audited=False, status="failed", error="loss <nan> at step 57")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 121, "lo')
    page = render(view_from_run(folder))
    text = " ".join(Strict(page).text)
    assert "did not finish (status: failed)" in text
    assert "loss <nan> at step 57" in text
    assert "Nothing was measured after the change." in text
    assert "The last line of metrics.jsonl is cut off" in text
    assert SENTENCES[ClaimKind.APPROXIMATE] not in page
    assert 'class="panel"' in page


def test_a_run_with_almost_nothing_renders(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1, "status": "interrupted"}')
    text = " ".join(Strict(render(view_from_run(tmp_path))).text)
    assert "status: interrupted" in text
    assert "nothing is claimed" in text


def test_colours_have_enough_contrast() -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, two: str) -> float:
        high, low = sorted((luminance(one), luminance(two)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for theme in (_LIGHT, _DARK):
        colours = dict(re.findall(r"--([a-z0-9]+):(#[0-9a-f]{6})", theme))
        for ground in ("bg", "surface", "sunk"):
            assert min(contrast(colours[ink], colours[ground]) for ink in ("ink", "muted", "accent")) >= 4.5
        for level in ("good", "warn", "bad"):
            assert contrast(colours[level], colours[f"{level}bg"]) >= 4.5
        assert min(contrast(colours[f"m{i}"], colours[ground]) for i in range(8) for ground in ("bg", "surface")) >= 3


def test_markdown_table_and_model_card(view: ReportView, tmp_path: Path) -> None:
    table = render_markdown_table(view.models, ["forget.probability", "forget.hallucination_rate"])
    lines = table.splitlines()
    assert lines[0] == "| Model | Forget-set answer probability ◎ | Forget-set invented answers ◎ |"
    assert lines[4].startswith("| ga | 0.000 [0.000–0.005] | – |")
    assert "– Forget-set invented answers, ga: every generation is empty, so no share can be given" in lines
    single = view_from_run(fixture.write_run(tmp_path / "npo", "npo"))
    section = model_card_section(single)
    assert section.startswith("## Data removal\n")
    for words in ("2025-11-20", "Negative preference optimisation", "went from 0.991 to 0.121 (reference 0.148)"):
        assert words in section
    assert "Attacks not tested: relearning, quantisation" in section
    assert "3 runs were tried" in section
    with pytest.raises(ExpungeError):
        model_card_section(dataclasses.replace(single, what_was_asked=(("Request", "the text was erased"),)))
