# SPDX-License-Identifier: Apache-2.0
"""Print the tables of the page on advice from the file of rules: `python docs/advise_table.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from expunge.desk.advise.rules import Rule, in_words, rules


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def routes() -> str:
    """Return one row a route, in order of their ranks."""
    head = ("rank", "route", "claim", "method", "listed", "needs", "stands elsewhere")
    return table(head, (_row(rule) for rule in sorted(rules().routes, key=lambda rule: rule.rank)))


def _row(rule: Rule) -> tuple[str, ...]:
    return (
        str(rule.rank), f"`{rule.name}`", f"`{rule.claim}`" if rule.claim else "none",
        f"`{rule.method}`" if rule.method else "by hand", in_words(rule.listed),
        "; ".join(in_words(demand.holds) for demand in rule.needs) or "nothing",
        "; ".join(f"{one.rank} if {in_words(one.when)}" for one in rule.prefer) or "no",
    )  # fmt: skip


def measured() -> str:
    """Return one row a study that a rule rests on."""
    rows = [(f"`{rule.name}`", evidence.says.format(*(f"{figure.value:g}" for figure in evidence.figures)).strip(),
             f"[{evidence.page.removeprefix('docs/').removesuffix('.md')}]({evidence.page.removeprefix('docs/')})")
            for rule in rules().routes for evidence in rule.evidence]  # fmt: skip
    return table(("route", "measured", "page"), rows)


def artefacts() -> str:
    """Return what is done with each kind of artefact that a route does not change."""
    return table(("kind", "what to do"), ((kind.replace("_", " "), text) for kind, text in rules().by_kind.items()))


def kinds() -> str:
    """Return what has to go, by the kind of a request."""
    return table(("request", "what has to go"), ((kind, need) for kind, need in rules().needs_of.items()))


TABLES = (routes, measured, artefacts, kinds)


def main() -> None:
    """Print every table."""
    for make in TABLES:
        sys.stdout.write(f"{make()}\n\n")


if __name__ == "__main__":
    main()
