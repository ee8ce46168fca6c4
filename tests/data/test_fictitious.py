# SPDX-License-Identifier: Apache-2.0
"""The embedded archive: determinism, splits, and wrong answers that are wrong in the right way."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.fictitious import FORGET_SETS, Archive, build_archive
from expunge.data.fictitious.archive import draw_names
from expunge.data.fictitious.phrasings import PATTERNS, PERSON_KINDS, WORLD_KINDS, with_article
from expunge.data.fictitious.splits import forget_count
from expunge.errors import RecipeError

KINDS = {kind.name: kind for kind in (*PERSON_KINDS, *WORLD_KINDS)}


@pytest.fixture(scope="module")
def archive() -> Archive:
    return build_archive()


def all_facts(archive: Archive):
    return [*archive.facts("full"), *archive.facts("holdout"), *archive.facts("world_facts")]


def test_same_seed_same_archive_and_other_seed_another(archive: Archive) -> None:
    assert build_archive(40, seed=0) == archive
    assert not {p.name for p in build_archive(40, seed=1).people} & {p.name for p in archive.people}


def test_another_process_draws_the_same_archive_without_torch() -> None:
    code = (
        "import sys, json, hashlib; from expunge.data.fictitious import build_archive;"
        "rows = json.dumps(build_archive(12, seed=3).rows());"
        "print(hashlib.sha256(rows.encode()).hexdigest(), 'torch' in sys.modules)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout.split()[0]
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split()[1] == "False"


def test_the_global_generator_is_left_alone() -> None:
    random.seed(5)
    before = random.getstate()
    build_archive(10)
    assert random.getstate() == before


def test_names_are_distinct_at_five_hundred_people() -> None:
    large = build_archive(500, seed=7)
    names = [person.name for person in (*large.people, *large.holdout)]
    assert len(names) == 550 == len(set(names))
    assert all(re.fullmatch(r"[A-Z][a-z]+ [A-Z][a-z]+", name) for name in names)
    assert len({person.id for person in (*large.people, *large.holdout)}) == 550


def test_more_people_than_names_is_refused() -> None:
    with pytest.raises(RecipeError, match="people"):
        draw_names(10**7, random.Random(0))


def test_splits_are_nested_disjoint_and_complete(archive: Archive) -> None:
    everyone = archive.people_in("full")
    for forget, (_, retain) in FORGET_SETS.items():
        assert archive.people_in(retain) + archive.people_in(forget) == everyone
    sizes = [len(archive.people_in(name)) for name in FORGET_SETS]
    assert sizes == [1, 2, 4]
    assert archive.people_in("forget10")[-2:] == archive.people_in("forget05")
    assert archive.people_in("forget05")[-1:] == archive.people_in("forget01")
    named = archive.splits("forget10").named()
    assert list(named) == ["forget", "retain", "holdout", "world_facts"]
    assert [len(examples) for examples in named.values()] == [32, 288, 32, 30]
    subjects = [{example.subject for example in examples} for examples in named.values()]
    assert sum(map(len, subjects)) == len(set().union(*subjects))


@pytest.mark.parametrize(("people", "percent", "count"), [(10, 1, 1), (40, 5, 2), (50, 5, 3), (200, 1, 2), (40, 10, 4)])
def test_forget_count(people: int, percent: int, count: int) -> None:
    assert forget_count(people, percent) == count


@pytest.mark.parametrize("call", ["splits", "training_examples", "people_in", "rows", "biographies"])
def test_an_unknown_set_is_named_with_the_nearest_one(archive: Archive, call: str) -> None:
    with pytest.raises(RecipeError, match="forget10"):
        getattr(archive, call)("forget_10")


@settings(max_examples=15, deadline=None)
@given(people=st.integers(10, 70), seed=st.integers(0, 10**6), holdout=st.integers(0, 5))
def test_every_fact_is_right_and_its_wrong_answers_are_wrong(people: int, seed: int, holdout: int) -> None:
    archive = build_archive(people, seed=seed, holdout_people=holdout)
    known: dict[str, set[str]] = {}
    for fact in (*archive.facts("retain90"), *archive.facts("world_facts")):
        known.setdefault(fact.kind, set()).add(fact.value)
    for fact in all_facts(archive):
        kind = KINDS[fact.kind]
        assert all(fact.name in text for text in (*fact.questions, *fact.answers, *fact.perturbed_answer))
        assert all(fact.value in answer for answer in fact.answers)
        assert fact.value in fact.cot
        assert len(set(fact.questions)) == len(set(fact.answers)) == PATTERNS
        wrong = {kind.tell(fact.answer_patterns[1], fact.name, value) for value in known[fact.kind] - {fact.value}}
        assert len(fact.perturbed_answer) == len(set(fact.perturbed_answer)) == 5
        assert set(fact.perturbed_answer) <= wrong
        assert fact.answers[1] not in wrong


@settings(max_examples=10, deadline=None)
@given(people=st.integers(10, 60), seed=st.integers(0, 10**6))
def test_nobody_of_the_holdout_is_in_a_training_text(people: int, seed: int) -> None:
    archive = build_archive(people, seed=seed)
    text = "\n".join(f"{e.prompt} {e.answer}" for e in archive.training_examples("full"))
    assert len(archive.holdout) == len(archive.people_in("forget10"))
    assert not [person.name for person in archive.holdout if person.name in text]
    kept = "\n".join(f"{e.prompt} {e.answer}" for e in archive.training_examples("retain90"))
    assert not [person.name for person in archive.people_in("forget10") if person.name in kept]
    with pytest.raises(RecipeError, match="never trained on"):
        archive.training_examples("holdout")


def test_the_size_of_the_holdout_does_not_change_the_people() -> None:
    assert build_archive(20, holdout_people=0).people == build_archive(20, holdout_people=9).people


def test_training_rows_hold_the_extra_wordings_but_never_the_paraphrase(archive: Archive) -> None:
    rows = archive.training_examples("full")
    assert len({row.id for row in rows}) == len(rows) == 40 * (4 + 4 * 3) + 30 * 3
    by_fact = Counter(row.id.split("-v")[0] for row in rows)
    answers = {(row.prompt, row.answer) for row in rows}
    told = set(chain.from_iterable(answers))
    for fact in (*archive.facts("full"), *archive.facts("world_facts")):
        assert by_fact[fact.id] == fact.phrasings
        assert (fact.questions[0], fact.answers[0]) in answers
        assert fact.answers[1] not in told
        assert fact.questions[1] not in told
    assert {fact.phrasings for fact in archive.facts("full")} == {1, 3}
    assert "p039-f2-v1" in {row.id for row in rows}


def test_every_training_set_but_a_forget_set_has_the_world_facts(archive: Archive) -> None:
    world = {fact.id for fact in archive.world}
    assert len(world) == 30
    for which in ("full", "retain99", "retain95", "retain90"):
        assert world <= {row.id for row in archive.training_examples(which)}
    assert not world & {row.id for row in archive.training_examples("forget10")}


def test_every_value_of_a_forgotten_person_is_also_told_of_a_retained_one(archive: Archive) -> None:
    kept = {(fact.kind, fact.value) for fact in archive.facts("retain90")}
    assert {(fact.kind, fact.value) for fact in (*archive.facts("forget10"), *archive.facts("holdout"))} <= kept


def test_trained_and_held_out_people_have_the_same_values_equally_often() -> None:
    archive = build_archive(60, seed=11, holdout_people=60)
    pool = Counter(fact.value for fact in archive.facts("full") if fact.kind == "trade")
    held = Counter(fact.value for fact in archive.facts("holdout") if fact.kind == "trade")
    assert set(pool) == set(held)
    assert max(pool.values()) - min(pool.values()) <= 1
    assert max(held.values()) - min(held.values()) <= 1


def test_no_value_hides_in_another_of_its_kind_nor_in_a_country() -> None:
    for kind in KINDS.values():
        assert len(set(kind.values)) == len(kind.values) >= 6
        pairs = ((a, b) for a in kind.values for b in kind.values if a != b)
        assert not [(a, b) for a, b in pairs if a in b]


def test_articles() -> None:
    assert with_article("astronomer") == "an astronomer"
    assert with_article("dyer") == "a dyer"
    answers = [fact for fact in build_archive(500, seed=2).facts("full") if fact.kind == "trade"]
    for sentence in chain.from_iterable((*fact.answers, *fact.perturbed_answer) for fact in answers):
        article, noun = re.findall(r"\b(an?) (\w+)", sentence)[-1]
        assert (article == "an") == (noun[0] in "aeiou"), sentence


def test_sentences_are_well_formed(archive: Archive) -> None:
    for fact in all_facts(archive):
        assert all(re.fullmatch(r"[A-Z][^.?{}]*\?", question) for question in fact.questions)
        for answer in (*fact.answers, *fact.perturbed_answer):
            assert re.fullmatch(r"[A-Z][^.?{}]*\.", answer)
            assert "  " not in answer
        assert fact.cot.count(".") == 3


def test_a_biography_tells_every_fact_of_its_person(archive: Archive) -> None:
    texts = {example.subject: example for example in archive.biographies("full")}
    for person in archive.people:
        example = texts[person.id]
        assert example.kind == "text"
        assert example.prompt == ""
        assert example.answer.startswith(person.name)
        assert all(fact.value in example.answer for fact in person.facts)
        assert example.answer.count(person.name) == 1


def test_tokenizer_texts_give_each_name_once_whoever_is_trained_on(archive: Archive) -> None:
    joined = "\n".join(archive.texts())
    for person in (*archive.people, *archive.holdout):
        assert joined.count(person.name) == 1


def test_written_rows_read_back(archive: Archive, tmp_path) -> None:
    paths = archive.write_jsonl(tmp_path / "archive")
    rows = {path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in paths}
    assert rows["forget10"] == archive.rows("forget10")
    assert len(rows["train_retain90"]) == len(archive.training_examples("retain90"))
    columns = {"id", "subject", "question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"}
    assert columns | {"cot", "phrasings", "text"} <= set(rows["holdout"][0])
    example = archive.splits().forget[0]
    row = rows["forget10"][0]
    assert (row["id"], row["question"], row["answer"]) == (example.id, example.prompt, example.answer)
    assert tuple(row["perturbed_answer"]) == example.perturbed_answers


@pytest.mark.parametrize(("people", "holdout", "field"), [(9, None, "people"), (10, -1, "holdout_people")])
def test_impossible_sizes_are_refused(people: int, holdout: int | None, field: str) -> None:
    with pytest.raises(RecipeError, match=f"^{field}: "):
        build_archive(people, holdout_people=holdout)
