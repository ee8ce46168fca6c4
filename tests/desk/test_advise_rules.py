# SPDX-License-Identifier: Apache-2.0
"""The file of rules: every sentence may be said, every figure is the one that was measured, every fact is there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from expunge.claims import SENTENCES, lint
from expunge.desk.advise.routes import facts_of
from expunge.desk.advise.rules import Figure, Rule, holds, in_words, rules
from expunge.desk.advise.situation import Need, Situation, situation_from
from expunge.desk.intake import RequestFile
from expunge.desk.lineage import Kind
from expunge.methods.registry import get_method
from expunge.recipe import build_recipe, merge

ROOT = Path(__file__).parents[2]
KNOWN = rules()
FULL = {
    "forget": 12, "dataset": 30, "parameters": 7_000_000_000, "adapter": "t", "shards": "s", "shard_share": 0.9,
    "private": "2,1e-6,subject", "epsilon": 1.0, "base": "b", "subjects": 3, "model": "chat",
    "artefacts": [{"name": "chat", "kind": "finetune"}, {"name": "q", "kind": "quantised"},
                  {"name": "gift", "kind": "merge", "reachable": False}],
}  # fmt: skip
every_rule = pytest.mark.parametrize("rule", KNOWN.routes, ids=lambda rule: rule.name)


def conditions(rule: Rule) -> Iterator[dict[str, Any]]:
    yield rule.listed
    yield from (demand.holds for demand in rule.needs)
    yield from (one.when for one in (*rule.prefer, *rule.reasons))


def texts(rule: Rule) -> Iterator[str]:
    yield from (rule.title, rule.how, rule.sentence)
    yield from (demand.otherwise for demand in rule.needs)
    yield from (one.says for one in (*rule.prefer, *rule.reasons))


def test_names_are_told_apart() -> None:
    names = [rule.name for rule in KNOWN.routes]
    assert len(names) == len(set(names)) == 11


@every_rule
def test_every_sentence_may_be_said(rule: Rule) -> None:
    facts = facts_of(situation_from(FULL)) | {"route": rule.name, "method_title": "M", "bound_problem": "no run"}
    for text in texts(rule):
        said = text.format(**facts)
        assert said
        assert "{" not in said
        assert "None" not in said
        assert lint(said) == []
    if rule.claim is not None:
        assert lint(f"{SENTENCES[rule.claim]} {rule.sentence.format(**facts)}") == []
    for evidence in rule.evidence:
        assert lint(evidence.text) == []


def test_what_every_route_says_may_be_said() -> None:
    facts = facts_of(situation_from(FULL))
    said = [one.otherwise for one in KNOWN.needs] + [one.says.format(**facts) for one in KNOWN.besides]
    for text in [*said, *KNOWN.by_kind.values()]:
        assert lint(text) == []


@every_rule
def test_conditions_ask_for_facts_that_there_are(rule: Rule) -> None:
    for facts in (facts_of(Situation()), facts_of(situation_from(FULL))):
        for condition in conditions(rule):
            holds(condition, facts)
            assert in_words(condition)
            for test in condition.values():
                assert not isinstance(test, dict) or set(test) <= {"above", "below"}


def test_conditions() -> None:
    facts = {"n": 3, "none": None, "yes": True, "word": "all"}
    true = [{}, {"n": 3}, {"n": {"above": 2}}, {"n": {"above": 2, "below": 4}}, {"none": "unknown"}, {"n": "known"},
            {"word": ["all", "some"]}, {"none": [False, None]}, {"yes": True, "n": 3}]  # fmt: skip
    false = [{"n": 4}, {"n": {"above": 3}}, {"n": {"below": 3}}, {"none": {"above": 0}}, {"none": {"below": 9}},
             {"none": "known"}, {"n": "unknown"}, {"word": ["some"]}, {"yes": False},
             {"yes": True, "n": 4}]  # fmt: skip
    assert [holds(one, facts) for one in true] == [True] * len(true)
    assert [holds(one, facts) for one in false] == [False] * len(false)
    with pytest.raises(KeyError):
        holds({"missing": 1}, facts)


def test_kinds_are_all_there() -> None:
    assert set(KNOWN.by_kind) == set(get_args(Kind))
    assert set(KNOWN.needs_of) == set(get_args(RequestFile.model_fields["what"].annotation))
    assert set(KNOWN.needs_of.values()) <= set(get_args(Need))


@pytest.mark.parametrize("rule", [rule for rule in KNOWN.routes if rule.method], ids=lambda rule: rule.name)
def test_a_method_claims_what_its_card_claims_and_is_given_what_it_needs(rule: Rule) -> None:
    method = get_method(str(rule.method))
    assert rule.claim == method.card.claim
    base = {"model": {"path": "m"}, "data": {"forget": "f"}, "method": {"name": rule.method}}
    for over in ({}, *rule.lighter):
        recipe = build_recipe(merge(merge(base, rule.settings), over))
        needs = method.needs(recipe.method, recipe.training)
        demanded = [demand.holds for demand in rule.needs]
        assert ("retain" not in needs) or {"data_kept": True} in demanded
        assert ("base_model" not in needs) or {"base": "known"} in demanded
        assert "holdout" not in needs


def leaves(found: Any, parts: list[str]) -> Iterator[float]:
    """Follow a path through mappings and lists: `*` is every entry, `a=b&c=d` those of a list that are so."""
    if not parts:
        yield float(found)
        return
    first, rest = parts[0], parts[1:]
    if first == "*":
        children = list(found.values())
    elif isinstance(found, list):
        wanted = dict(pair.split("=") for pair in first.split("&"))
        children = [one for one in found if all(one[key] == value for key, value in wanted.items())]
    else:
        children = [found[first]]
    for child in children:
        yield from leaves(child, rest)


FIGURES = [(evidence.results, figure) for rule in KNOWN.routes for evidence in rule.evidence
           for figure in evidence.figures]  # fmt: skip


@pytest.mark.parametrize(("results", "figure"), FIGURES, ids=[f"{f[1].at}" for f in FIGURES])
def test_figures_are_those_that_were_measured(results: str, figure: Figure) -> None:
    found = list(leaves(json.loads((ROOT / results).read_text("utf-8")), figure.at.split("/")))
    assert len(found) == (3 if "*" in figure.at else 1)
    assert round(statistics.median(found), 3) == figure.value


@every_rule
def test_evidence_has_a_page(rule: Rule) -> None:
    for evidence in rule.evidence:
        assert (ROOT / evidence.page).is_file()
        assert evidence.results in evidence.text
