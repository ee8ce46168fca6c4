# SPDX-License-Identifier: Apache-2.0
"""The skeleton of the page: header with the verdict, contents, sections, footer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from expunge.report import sections
from expunge.report.answers import answers
from expunge.report.canaries import canaries_section
from expunge.report.examples import examples_section
from expunge.report.markup import para, quote, tag
from expunge.report.style import CSS, SCRIPT
from expunge.report.verdict import back_sentences, claim_sentences, far_sentences, measured_sentences, not_tested
from expunge.report.view import REPORT_SCHEMA, ReportView
from expunge.report.words import duration, listed, moment

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(view: ReportView, show_examples: bool) -> str:
    """Return the whole document as one string that needs nothing from outside."""
    return frame(view.title, _header(view), _sections(view, show_examples), _footer(view))


def frame(
    title: str, top: str, content: Sequence[tuple[str, str, str]], bottom: str, *, kind: str = "unlearning report"
) -> str:
    """Return a whole document around markup: its style, its contents, its sections.

    Args:
        title: of the document, plain text.
        top: markup of the header.
        content: (anchor, title, markup) of each section; one without markup is left out.
        bottom: markup of the footer.
        kind: what the bar at the top calls the page.
    """
    parts = [part for part in content if part[2]]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex">'
        f"<title>{escape(title)}</title><style>{CSS}</style>"
    )
    body = tag("a", "Skip to the report", "skip", {"href": "#main"}) + _bar(kind)
    body += tag("div", _contents(parts) + tag("main", top + _articles(parts), "", {"id": "main"}), "layout")
    body += bottom + tag("script", SCRIPT)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _sections(view: ReportView, show_examples: bool) -> list[tuple[str, str, str]]:
    return [
        ("numbers", "The key numbers", sections.cards(view)),
        ("asked", "What was asked", sections.asked(view)),
        ("done", "What was done", sections.done(view)),
        ("plane", "Forgetting against utility", sections.the_plane(view)),
        ("metrics", "Everything measured", sections.measured(view)),
        ("answers", "What it says instead", answers(view)),
        ("intervals", "How sure are the numbers?", sections.intervals(view)),
        ("training", "How training went", sections.trajectories(view)),
        ("examples", "Examples", examples_section(view, show_examples)),
        ("back", "Does it come back?", sections.comes_back(view)),
        ("canaries", "Canaries", canaries_section(view.canaries)),
        ("limits", "What this report cannot show", sections.cannot_show(view)),
        ("environment", "Environment", sections.surroundings(view)),
        ("reproduce", "How to reproduce", sections.commands(view.reproduce)),
    ]


def _bar(kind: str) -> str:
    mark = tag("span", tag("span", "", "bar b0", {"aria-hidden": "true"}) + "Expunge", "logo")
    toggle = tag("button", "Dark", "theme needs-js", {"type": "button", "aria-label": "Switch to the dark theme"})
    return tag("div", mark + tag("span", escape(kind), "kind") + toggle, "topbar")


def _contents(parts: list[tuple[str, str, str]]) -> str:
    items = "".join(tag("li", tag("a", escape(title), "", {"href": f"#{slug}"})) for slug, title, _ in parts)
    return tag("nav", tag("ol", items), "contents", {"aria-label": "Contents"})


def _articles(parts: list[tuple[str, str, str]]) -> str:
    out = ""
    for slug, title, body in parts:
        head = tag("h2", escape(title), "", {"id": f"h-{slug}"})
        out += tag("section", head + body, "", {"id": slug, "aria-labelledby": f"h-{slug}"})
    return out


def _header(view: ReportView) -> str:
    """Return title, verdict in words, what it rests on, and a banner where the run did not finish."""
    lead = "".join(tag("p", escape(sentence), "lead") for sentence in measured_sentences(view))
    claims = ""
    for kind, sentence in claim_sentences(view):
        chip = tag("span", kind.value, f"chip claim-{kind.value}") if kind else tag("span", "no claim", "chip")
        claims += tag("p", chip + " " + escape(sentence), "claimline")
    far = far_sentences(view)
    alarm = tag("div", para("Far from the reference", "alarmhead") + _list(far), "alarmbox") if far else ""
    back = "".join(tag("p", escape(said), "alarm" if came else "aside") for came, said in back_sentences(view))
    missing = not_tested(view)
    untested = tag("p", tag("strong", "Not tested: ") + escape(listed(missing)) + ".", "nottested") if missing else ""
    return tag(
        "header", _banner(view) + tag("h1", escape(view.title)) + _facts(view) + lead + claims + alarm + back + untested
    )


def _list(items: list[str]) -> str:
    out = ""
    for item in items:
        name, _, rest = item.partition(": ")
        out += tag("li", tag("strong", escape(name)) + ": " + escape(rest))
    return tag("ul", out)


def _banner(view: ReportView) -> str:
    """Say that a run failed or was interrupted, with its error; and what was odd about the files."""
    out = ""
    if not view.finished:
        status = str(view.run.get("status", "unknown"))
        words = para(f"This run did not finish (status: {status}). What follows is what it left behind.")
        error = view.run.get("error")
        out += tag("div", words + (quote(str(error), "pre") if error else ""), "alarmbox", {"role": "alert"})
    return out + "".join(para(note, "alarm") for note in view.notes)


def _facts(view: ReportView) -> str:
    run, facts = view.run, []
    if run.get("started"):
        facts.append(f"started {moment(str(run['started']))}")
    if run.get("seconds") is not None:
        facts.append(f"took {duration(float(run['seconds']))}")
    if run.get("steps") is not None:
        facts.append(f"{run['steps']} steps")
    if run.get("stopped"):
        facts.append(f"stopped early: {run['stopped']}")
    if run.get("peak_memory_mb") is not None:
        facts.append(f"peak memory {float(run['peak_memory_mb']):.0f} MB")
    if run.get("recipe_hash"):
        facts.append(f"recipe {str(run['recipe_hash'])[:12]}")
    return para(" · ".join(facts), "facts-line") if facts else ""


def _footer(view: ReportView) -> str:
    schemas = [
        f"report schema {REPORT_SCHEMA}",
        *(f"{name} schema {version}" for name, version in view.schemas.items()),
    ]
    return footer(schemas)


def footer(facts: Sequence[str]) -> str:
    """Return the last line of a page."""
    words = " · ".join([*facts, "this file is complete: it loads nothing and sends nothing"])
    return tag("footer", para(words))
