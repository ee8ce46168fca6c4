# SPDX-License-Identifier: Apache-2.0
"""The math and code domains: every worked answer is right, every function does what it says, and the splits hold."""

from __future__ import annotations

import ast
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from expunge.audit.protocol import default_protocol
from expunge.data.encoding import Encoder
from expunge.data.fictitious import Domain, Problem, ThreeDomains, build_code, build_domains, build_math
from expunge.data.fictitious.maths import PROCEDURES, STORIES, work
from expunge.data.fictitious.programs import FILTERS, REDUCERS, Program
from expunge.data.fictitious.splits import FORGET_SETS
from expunge.data.loaders import check_overlap, load_examples
from expunge.errors import RecipeError
from expunge.models.tiny import build_tokenizer

SUM = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


@pytest.fixture(scope="module")
def math() -> Domain:
    """Every kind of problem there is."""
    return build_math(50, holdout_families=10, per_family=12, seed=3)


@pytest.fixture(scope="module")
def code() -> Domain:
    """Every kind of function there is."""
    return build_code(40, holdout_families=8, per_family=12, seed=3)


@pytest.fixture(scope="module")
def world() -> ThreeDomains:
    return build_domains(10, families=10, per_family=2, seed=4)


def every(domain: Domain) -> list[Problem]:
    return [*domain.problems("full"), *domain.problems("holdout")]


def holds(equation: tuple[str, str, str, str]) -> bool:
    left, sign, right, result = equation
    one, other = int(left), int(right)
    value = {"+": one + other, "-": one - other, "*": one * other}.get(sign)
    return int(result) == (value if value is not None else one / other)  # a share leaves nothing over


def test_steps_by_hand() -> None:
    numbers = {"a": 6, "b": 8, "c": 4, "d": 3}
    found = {procedure.name: work(procedure, numbers) for procedure in PROCEDURES}
    assert found == {
        "more": [("6 * 8", 48), ("48 + 4", 52)],
        "fewer": [("6 * 8", 48), ("48 - 4", 44)],
        "kinds": [("6 * 8", 48), ("4 * 3", 12), ("48 + 12", 60)],
        "join": [("6 + 8", 14), ("14 * 4", 56)],
        "break": [("6 - 8", -2), ("-2 * 4", -8)],  # outside the ranges of the procedure, which keep a above b
        "share": [("6 * 8", 48), ("48 / 4", 12)],
    }


def test_every_worked_answer_is_right(math: Domain) -> None:
    for problem in every(math):
        for answer in problem.answers:
            sums = SUM.findall(answer)
            assert len(sums) >= 2
            assert all(map(holds, sums))
            assert sums[-1][3] == problem.result == re.findall(r"\d+", answer)[-1]
            assert int(problem.result) > 0


def test_a_worked_answer_uses_the_numbers_of_its_question_and_no_others(math: Domain) -> None:
    for problem in every(math):
        results = [r for _, _, _, r in SUM.findall(problem.answers[0])]
        operands = Counter(n for left, _, right, _ in SUM.findall(problem.answers[0]) for n in (left, right))
        operands.subtract(Counter(results[:-1]))  # what a step takes from the one before
        for question in problem.questions:
            assert Counter(re.findall(r"\d+", question)) == +operands


def test_every_wrong_answer_is_wrong_in_its_last_step_only(math: Domain) -> None:
    for problem in every(math):
        assert len(set(problem.perturbed_answer)) == 5
        for answer in problem.perturbed_answer:
            *first, last = SUM.findall(answer)
            assert all(map(holds, first))
            assert not holds(last)
            assert last[3] == re.findall(r"\d+", answer)[-1] != problem.result


def outcome(text: str, call: str) -> Any:
    names: dict[str, Any] = {}
    exec(compile(text, "problem", "exec"), {}, names)
    return eval(call, names)


def test_every_function_gives_the_result_it_promises(code: Domain) -> None:
    for problem in every(code):
        texts = [(problem.answers, True), (problem.perturbed_answer, False)]
        for answers, right in texts:
            for text in answers:
                assert (repr(outcome(text, problem.check)) == problem.result) is right
        assert len({ast.dump(ast.parse(text)) for text in problem.answers}) == 3  # three ways to write it


def test_every_function_does_what_its_docstring_says_on_any_list() -> None:
    rng = random.Random(0)
    for filter_ in FILTERS:
        for reducer in REDUCERS:
            program = Program("f", filter_, reducer, rng.randint(2, 9), rng.randint(2, 12))
            for form in range(3):
                items = [rng.randint(1, 30) for _ in range(6)]
                if (expected := program.run(items)) is not None:
                    assert outcome(program.write(form), f"f({items})") == expected
            tree = ast.parse(program.write(0))
            assert ast.get_docstring(tree.body[0]) == f"Return {program.what}."


@pytest.mark.parametrize(
    ("which", "what", "items", "expected"),
    [
        (("even", "total"), "5 plus the sum of the even numbers", [1, 2, 3, 4], 11),
        (("odd", "count"), "5 times the count of the odd numbers", [1, 2, 3, 4], 10),
        (("above", "most"), "5 times the largest of the numbers above 3", [1, 9, 4], 45),
        (("below", "least"), "5 plus the smallest of the numbers below 3", [2, 1, 9], 6),
        (("multiple", "ends"), "the first of the multiples of 3, less 5", [1, 9, 6], 4),
        (("odd", "squares"), "5 plus the sum of the squares of the odd numbers", [1, 2, 3], 15),
        (
            ("above", "spread"),
            "5 plus the gap between the largest and the smallest of the numbers above 3",
            [1, 9, 4],
            10,
        ),
        (("other", "each"), "each of the numbers that are not 3, raised by 5", [3, 1, 2], [6, 7]),
    ],
)
def test_functions_by_hand(which: tuple[str, str], what: str, items: list[int], expected: Any) -> None:
    filter_ = next(f for f in FILTERS if f.name == which[0])
    reducer = next(r for r in REDUCERS if r.name == which[1])
    program = Program("f", filter_, reducer, 3, 5)
    assert program.what == what
    assert program.run(items) == expected


@pytest.mark.parametrize("build", [build_math, build_code])
def test_families_are_split_whole(build: Any) -> None:
    domain: Domain = build(20, seed=1, per_family=8)
    full = domain.families_in("full")
    for forget, (_, retain) in FORGET_SETS.items():
        assert domain.families_in(retain) + domain.families_in(forget) == full
    splits = domain.splits("forget10")
    assert [len(found) for found in splits.named().values()] == [16, 144, 16]
    subjects = [{example.subject for example in found} for found in splits.named().values()]
    assert sum(map(len, subjects)) == len(set().union(*subjects)) == 22
    kinds = [family.kind for family in (*full, *domain.holdout)]
    assert len(set(kinds)) == len(kinds)
    for other in (splits.retain, splits.holdout):
        check_overlap(splits.forget, other, names=("forget", "other"))
    questions = [text for problem in every(domain) for text in problem.questions]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("build", [build_math, build_code])
def test_paraphrases_are_never_trained_on(build: Any) -> None:
    domain: Domain = build(10, seed=2)
    trained = {(e.prompt, e.answer) for e in domain.training_examples()}
    assert len(trained) == 2 * len(domain.problems())
    prompts, answers = {p for p, _ in trained}, {a for _, a in trained}
    for problem in domain.problems():
        assert problem.questions[1] not in prompts
        assert problem.answers[1] not in answers
    with pytest.raises(RecipeError, match="never trained on"):
        domain.training_examples("holdout")


@pytest.mark.parametrize("build", [build_math, build_code])
def test_a_seed_decides_everything_and_nothing_else_does(build: Any) -> None:
    random.seed(5)
    before = random.getstate()
    assert build(10, seed=1) == build(10, seed=1)
    assert random.getstate() == before
    assert {p.questions for p in build(10, seed=2).problems()} != {p.questions for p in build(10, seed=1).problems()}
    more = build(10, seed=1, holdout_families=5)
    assert more.families == build(10, seed=1).families  # whatever is held out


def test_another_process_draws_the_same_without_torch() -> None:
    code = (
        "import sys, json, hashlib; from expunge.data.fictitious import build_domains as b; w = b(10, families=10);"
        "rows = json.dumps([w.math.rows(), w.code.rows()]);"
        "print(hashlib.sha256(rows.encode()).hexdigest(), 'torch' in sys.modules)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1
    assert outputs.pop().split()[1] == "False"


@pytest.mark.parametrize("build", [build_math, build_code])
@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"families": 9}, "families"), ({"families": 61}, "families"), ({"per_family": 0}, "per_family"),
        ({"per_family": 99}, "per_family"), ({"holdout_families": -1}, "holdout_families"),
    ],
)  # fmt: skip
def test_sizes_that_are_not_possible(build: Any, settings: dict[str, int], field: str) -> None:
    with pytest.raises(RecipeError, match=field):
        build(**settings)


def test_the_largest_domains_can_be_drawn() -> None:
    assert len(build_math(len(STORIES) * len(PROCEDURES), holdout_families=0, per_family=40).problems()) == 2400
    assert len(build_code(48, holdout_families=0, per_family=16).problems()) == 768


@pytest.mark.parametrize("domain", ["text", "math", "code"])
def test_utility_counts_the_other_two_domains(world: ThreeDomains, domain: Any) -> None:
    sets = world.splits(domain).named()
    others = {"text", "math", "code"} - {domain}
    assert others <= sets.keys()
    assert domain not in sets
    protocol = default_protocol(sets)
    assert {protocol.roles[name] for name in others} == {"options"}
    assert others | {"retain"} <= set(protocol.sets("retain", "options"))
    ids = [example.id for found in sets.values() for example in found]
    assert len(set(ids)) == len(ids)


def test_training_sets_lack_the_forget_set_and_nothing_else(world: ThreeDomains) -> None:
    full = world.training_examples()
    kept = world.training_examples("math", "retain90")
    gone = {problem.family for problem in world.math.problems("forget10")}
    assert {e.id for e in full} - {e.id for e in kept} == {e.id for e in full if e.subject in gone}
    assert {e.subject[0] for e in kept} == {"p", "w", "m", "c"}
    with pytest.raises(RecipeError, match="no such domain"):
        world.training_examples("maths")  # type: ignore[arg-type]


def test_files_read_back_as_the_same_examples(world: ThreeDomains, tmp_path: Path) -> None:
    paths = world.write_jsonl(tmp_path, "code")
    assert set(paths) == {"forget", "retain", "holdout", "text", "math", "train_full", "train_retain"}
    assert load_examples(str(paths["forget"]), name="forget") == list(world.splits("code").forget)
    assert load_examples(str(paths["train_retain"]), name="train") == world.training_examples("code", "retain90")
    files = world.code.write_jsonl(tmp_path / "own")
    rows = load_examples(str(files[0]), name="full")
    assert rows == world.code.examples()


def test_everything_fits_the_embedded_model() -> None:
    world = build_domains()
    encoder = Encoder(build_tokenizer(world.texts()), template="question", max_length=128)
    for name in ("math", "code"):
        sets = [*world.splits(name).named().values(), world.training_examples(name, "retain90")]
        lengths = [len(row.encoded.ids) for found in sets for row in encoder.encode_many(found, where=name)]
        assert max(lengths) <= 128
