# SPDX-License-Identifier: Apache-2.0
"""Multiple choice: the scores of one forward are those of a full softmax, and the numbers are what the field means."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.audit import choices as room
from expunge.audit.choice_metrics import choice_jobs, credit, probability_of_right, slug, standard_error
from expunge.audit.choices import score_choices, with_choices
from expunge.audit.config import AuditConfig
from expunge.audit.measure import Measurer
from expunge.audit.metrics import card_for, compute_metrics, item_values, metric_cards
from expunge.audit.mmlu import MMLU_GROUPS, MMLU_SUBJECTS
from expunge.audit.protocol import Protocol
from expunge.audit.records import ChoiceItem, Records
from expunge.audit.statistics import Unavailable
from expunge.audit.store import read_records, write_records
from expunge.data.encoding import Encoder
from expunge.data.questions import TEXT_TEMPLATE, Question, QuestionSet, load_questions
from expunge.errors import InputDataError
from expunge.models.tiny import build_llama, build_tokenizer

CONFIG = AuditConfig(bootstrap=200)
ROWS = [
    {"question": "Which of these is a tree?", "choices": ["An oak", "A boat of the harbour", "A book"], "answer": 0,
     "subject": "college_biology"},
    {"question": "Where is the boat? ", "choices": ["In the harbour", "On the tree", "In a book", "Nowhere"],
     "answer": "B", "subject": "high_school_geography"},
    {"question": "Who wrote the book?", "choices": [1961, 1958, 1965, 1994], "answer": 3,
     "subject": "high_school_geography"},
]  # fmt: skip


@pytest.fixture(scope="module")
def questions():
    return load_questions(ROWS, name="quiz")


def machine_of(extra="", seed=0):
    texts = [str(row) for row in ROWS] * 4 + [f"Answer: {letter} . {extra}" for letter in "ABCD" * 20]
    tokenizer = build_tokenizer(texts, vocab_size=500)
    model = build_llama(len(tokenizer), hidden_size=32, layers=2, heads=2, context=512, seed=seed)
    return model, Encoder(tokenizer, template="question", max_length=512)


@pytest.fixture(scope="module")
def machine():
    torch.set_num_threads(1)
    model, encoder = machine_of()
    # Fresh weights give nearly equal scores; larger ones make the test able to fail.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model, encoder


def naive(model, encoder, questions, question):
    """Log-probability of every continuation: one unbatched forward and a full softmax for each."""
    tokenizer, out = encoder.tokenizer, []
    for text in questions.continuations(question):
        prompt = tokenizer(questions.prompt(question))["input_ids"]
        whole = tokenizer(questions.prompt(question) + text)["input_ids"]
        assert whole[: len(prompt)] == prompt
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), dim=-1)
        out.append(sum(float(logp[t - 1, whole[t]]) for t in range(len(prompt), len(whole))))
    return out


def item(scores, best=0, *, correct=None, subject="", cluster="", own="q", style="letters", lengths=None, name="quiz"):
    correct = correct or [int(i == best) for i in range(len(scores))]
    return ChoiceItem(
        set=name, id=own, subject=subject, cluster=cluster, style=style, ids_hash="x", scores=scores, correct=correct,
        best=best, lengths=lengths or [1] * len(scores), n_tokens=[1] * len(scores), cut=0,
    )  # fmt: skip


def metrics(items, role="questions", **settings):
    protocol = Protocol("test", "1", {"quiz": role})
    config = AuditConfig(bootstrap=200, **settings)
    return compute_metrics(Records([], [], {}, items), protocol=protocol, config=config)


def test_the_prompt_is_the_published_one(questions):
    assert QuestionSet(questions=questions).prompt(questions[1]) == (
        "The following are multiple choice questions (with answers) about high school geography.\n\n"
        "Where is the boat?\nA. In the harbour\nB. On the tree\nC. In a book\nD. Nowhere\nAnswer:"
    )


@pytest.mark.parametrize(("style", "template"), [("letters", None), ("texts", TEXT_TEMPLATE)])
def test_scores_are_those_of_a_full_softmax_per_choice(machine, questions, style, template):
    made = QuestionSet(questions=questions, style=style)
    made = replace(made, template=template) if template else made
    found = score_choices(*machine, {"quiz": made}, batch_tokens=200)
    for got, question in zip(found, questions, strict=True):
        np.testing.assert_allclose(got.scores, naive(*machine, made, question), rtol=0, atol=2e-5)
    assert len({round(float(s), 3) for got in found for s in got.scores}) > 4


def test_a_single_token_choice_costs_one_forward_per_question(machine, questions, monkeypatch):
    rows = []
    real = room.body
    monkeypatch.setattr(room, "body", lambda model, ids, mask: rows.append(len(ids)) or real(model, ids, mask))
    monkeypatch.setattr(room, "score", lambda *args, **options: pytest.fail("the letters are single tokens"))
    twice = {"quiz": QuestionSet(questions=questions), "again": QuestionSet(questions=questions)}
    found = score_choices(*machine, twice)
    assert sum(rows) == len(questions), "equal prompts are run once"
    assert [len(got.scores) for got in found] == [3, 4, 4] * 2
    assert all(n == 1 for got in found for n in got.n_tokens)


def test_letters_of_several_tokens_are_summed_and_still_cost_one_forward(questions, monkeypatch):
    tokenizer = build_tokenizer(["xyz" * 20], vocab_size=300)  # too few merges for " A"
    encoder = Encoder(tokenizer, template="question", max_length=512)
    assert len(tokenizer(" A")["input_ids"]) > len(tokenizer("")["input_ids"]) + 1
    model = build_llama(len(tokenizer), hidden_size=16, layers=1, context=512)
    made = QuestionSet(questions=questions)
    monkeypatch.setattr(room, "score", lambda *args, **options: pytest.fail("they differ in their last token only"))
    found = score_choices(model, encoder, {"quiz": made})
    assert all(n > 1 for got in found for n in got.n_tokens)
    for got, question in zip(found, questions, strict=True):
        np.testing.assert_allclose(got.scores, naive(model, encoder, made, question), rtol=0, atol=2e-5)


def test_the_model_is_left_as_it_was(machine, questions):
    model, encoder = machine
    model = copy.deepcopy(model).train()
    score_choices(model, encoder, {"quiz": QuestionSet(questions=questions)})
    assert model.training


def test_batching_and_order_do_not_change_a_score(machine, questions):
    one = score_choices(*machine, {"quiz": QuestionSet(questions=questions)}, batch_tokens=1)
    many = score_choices(*machine, {"quiz": QuestionSet(questions=questions[::-1])}, batch_tokens=10_000)
    for left, right in zip(one, many[::-1], strict=True):
        np.testing.assert_allclose(left.scores, right.scores, atol=1e-5)


def test_a_long_prompt_is_refused_or_loses_its_start(machine, questions):
    model, encoder = machine
    long = replace(questions[0], text="boat " * 40 + questions[0].text)
    whole = len(encoder.tokenizer(QuestionSet(questions=[long]).prompt(long))["input_ids"])
    short = Encoder(encoder.tokenizer, template="raw", max_length=whole - 10)
    with pytest.raises(InputDataError, match=r"question 'quiz-1' is 10 tokens too long"):
        score_choices(model, short, {"quiz": QuestionSet(questions=[long])})
    cut = score_choices(model, short, {"quiz": QuestionSet(questions=[long], too_long="cut")})[0]
    assert cut.cut == 10
    ids = encoder.tokenizer(QuestionSet(questions=[long]).prompt(long))["input_ids"][10:]
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], dim=-1)
    letters = [encoder.tokenizer(f": {letter}")["input_ids"][-1] for letter in "ABC"]
    np.testing.assert_allclose(cut.scores, logp[letters].numpy(), atol=1e-5)
    exact = Encoder(encoder.tokenizer, template="raw", max_length=whole)
    assert score_choices(model, exact, {"quiz": QuestionSet(questions=[long])})[0].cut == 0


def test_points_worked_by_hand():
    assert credit(item([-1.0, -2.0, -3.0])) == 1
    assert credit(item([-1.0, -2.0, -3.0], best=1)) == 0
    # Per character: -6/10 > -5/5.
    assert credit(item([-6.0, -5.0], lengths=[10, 5])) == 0
    assert credit(item([-6.0, -5.0], lengths=[10, 5]), norm=True) == 1
    assert credit(item([-math.inf, -9.0], best=1)) == 1


def test_ties_share_the_point_and_the_published_rule_takes_the_first():
    collapsed = [item([-1.4, -1.4, -1.4, -1.4], best=best) for best in (0, 1, 2, 3)]
    assert [credit(one) for one in collapsed] == [0.25] * 4
    assert [credit(one, compat="paper") for one in collapsed] == [1, 0, 0, 0]
    assert credit(item([-1.0, -1.0, -2.0], best=2)) == 0
    assert metrics(collapsed)["quiz.accuracy"].value == 0.25
    always_a = [item([-1.4] * 4, own=f"q{i}") for i in range(5)]
    assert metrics(always_a)["quiz.accuracy"].value == 0.25
    assert "same share" in metrics(always_a)["quiz.accuracy"].reason
    assert metrics(always_a, compat="paper")["quiz.accuracy"].value == 1.0
    assert metrics(always_a, compat="paper")["quiz.accuracy"].compat == "paper"


def test_several_right_answers_do_not_compete_and_share_probability():
    # MC1: the best right answer against the wrong ones; MC2: mass on all right ones.
    one = item([math.log(0.2), math.log(0.5), math.log(0.1), math.log(0.1)], correct=[1, 1, 0, 0])
    assert credit(one) == 1
    assert probability_of_right(one) == pytest.approx(0.7 / 0.9)
    assert metrics([one])["quiz.chance"].value == pytest.approx(1 / 3)
    far = item([-1000.0, -1001.0], best=0)
    assert probability_of_right(far) == pytest.approx(1 / (1 + math.exp(-1)))


def test_intervals_standard_errors_and_what_they_refuse():
    items = [item([0.0, -1.0], best=i % 4 == 0, own=f"q{i}") for i in range(40)]  # best 1 where True: a miss
    found = metrics(items)
    assert found["quiz.accuracy"].value == 0.75
    assert found["quiz.accuracy_stderr"].value == pytest.approx(math.sqrt(0.75 * 0.25 / 40))
    assert found["quiz.accuracy"].ci_low == pytest.approx(0.75 - 1.96 * 0.0685, abs=0.04)
    assert found["quiz.chance"].value == 0.5
    together = metrics([replace(one, cluster=f"c{i // 10}") for i, one in enumerate(items)])["quiz.accuracy"]
    assert together.value == 0.75
    assert together.ci_high - together.ci_low < 0.2 < found["quiz.accuracy"].ci_high - found["quiz.accuracy"].ci_low
    one = metrics([items[1]])
    assert (one["quiz.accuracy"].value, one["quiz.accuracy"].ci_high) == (1.0, 1.0)
    assert one["quiz.accuracy"].ci_low == pytest.approx(0.025)  # Clopper-Pearson of 1 of 1
    assert one["quiz.accuracy_stderr"].value is None
    assert "no standard error" in one["quiz.accuracy_stderr"].reason
    with pytest.raises(Unavailable, match="alike"):
        standard_error(1.0, 30)
    nothing = metrics([])
    assert nothing["quiz.accuracy"].value is None
    assert "no multiple-choice questions" in nothing["quiz.accuracy"].reason
    assert nothing["quiz.chance"].value is None


def test_not_a_number_names_its_question():
    with pytest.raises(ValueError, match="quiz/broken"):
        metrics([item([0.0, math.nan], own="broken")])


def test_mmlu_is_rolled_up_by_size_and_by_group():
    assert [len(group) for group in MMLU_GROUPS.values()] == [19, 13, 12, 13]
    assert len(MMLU_SUBJECTS) == 57
    sizes = {"anatomy": (3, 3), "virology": (10, 2), "sociology": (7, 7)}
    items = [
        item([0.0, -1.0], best=int(i >= right), subject=subject, own=f"{subject}{i}")
        for subject, (n, right) in sizes.items()
        for i in range(n)
    ]
    found = metrics(items)
    assert found["quiz.accuracy"].value == pytest.approx(12 / 20)
    assert found["quiz.anatomy.accuracy"].value == 1
    assert found["quiz.virology.accuracy"].value == pytest.approx(0.2)
    assert [found[f"quiz.{g}.accuracy"].value for g in ("stem", "other", "social_sciences")] == [1, 0.2, 1]
    assert "quiz.humanities.accuracy" not in found
    # Weighted by size, the parts give the whole.
    parts = [found[f"quiz.{subject}.accuracy"] for subject in sizes]
    assert sum(p.value * p.n for p in parts) / sum(p.n for p in parts) == pytest.approx(found["quiz.accuracy"].value)
    other = metrics([replace(one, subject=f"{one.subject} of others") for one in items])
    assert "quiz.stem.accuracy" not in other
    assert slug("U.S. law & order") == "u_s_law_order"


def test_direction_follows_the_role_and_every_number_has_a_card():
    items = [item([0.0, -1.0], subject=s, own=s, style="texts", lengths=[3, 4]) for s in ("law", "art")]
    for role, direction in (("questions", "higher"), ("hazard", "lower")):
        protocol = Protocol("test", "1", {"quiz": role})
        found = metrics(items, role=role)
        assert set(found) == {
            "quiz.accuracy", "quiz.accuracy_norm", "quiz.answer_probability", "quiz.accuracy_stderr", "quiz.chance",
            "quiz.law.accuracy", "quiz.art.accuracy",
        }  # fmt: skip
        assert found["quiz.accuracy"].direction == found["quiz.law.accuracy"].direction == direction
        cards = {card_for(name, protocol).name: card_for(name, protocol) for name in found}
        assert set(cards) == {card.name for card in metric_cards(protocol)}
        for name, estimate in found.items():
            assert card_for(name, protocol).direction == estimate.direction
            assert estimate.compat in card_for(name, protocol).compat


def test_questions_stand_beside_an_unlearning_audit_without_entering_its_utility():
    protocol = Protocol("test", "1", {"forget": "forget", "quiz": "questions"})
    found = compute_metrics(Records([], [], {}, [item([0.0, -1.0])]), protocol=protocol, config=CONFIG)
    assert found["quiz.accuracy"].value == 1
    assert "quiz.rouge_l" not in found
    assert "forget.probability" in found
    assert "model_utility" in found
    assert len(item_values(Records([], [], {}, [item([0.0])]), "quiz.accuracy", protocol=protocol, config=CONFIG)) == 1


def test_records_come_back_exactly_and_old_folders_have_no_choices(tmp_path, machine, questions):
    records = with_choices(
        Records([], [], {"counts": {"pairs": 0}}), *machine, {"quiz": QuestionSet(questions=questions)}
    )
    assert records.meta["counts"] == {"pairs": 0, "questions": 3, "questions_of_single_tokens": 3, "questions_cut": 0}
    back = read_records(write_records(records, tmp_path))
    for left, right in zip(records.choices, back.choices, strict=True):
        for field in ("set", "id", "subject", "cluster", "style", "ids_hash", "best", "cut"):
            assert getattr(left, field) == getattr(right, field)
        for field in ("scores", "correct", "lengths", "n_tokens"):
            np.testing.assert_array_equal(getattr(left, field), getattr(right, field))
    assert back.meta["data"]["quiz"]["n"] == 3
    (tmp_path / "choices.parquet").unlink()
    assert list(read_records(tmp_path).choices) == []
    write_records(records, tmp_path)
    write_records(Records([], []), tmp_path)
    assert not (tmp_path / "choices.parquet").exists()


def test_a_measurer_asks_the_questions_once_and_finds_them_again(tmp_path, machine, questions, monkeypatch):
    model, encoder = machine
    protocol = Protocol("quiz", "1", {"quiz": "questions"})
    asked = {"quiz": QuestionSet(questions=questions)}
    measurer = Measurer(encoder, {}, CONFIG, protocol, tmp_path, questions=asked)
    first = measurer.measure(model, name="m", model_digest="d")
    other = Measurer(encoder, {}, CONFIG, protocol, tmp_path, questions={"quiz": asked["quiz"].first(1)})
    assert other.key("d", "float32") != measurer.key("d", "float32")
    limited = Measurer(encoder, {}, AuditConfig(limit=1), protocol, questions=asked)
    got = limited.measure(model, name="m", model_digest="d").choices
    assert [i.id for i in got] == ["quiz-1", "quiz-2"], "the limit counts per subject"
    monkeypatch.setattr(room, "body", lambda *args: pytest.fail("asked again"))
    again = measurer.measure(model, name="m", model_digest="d")
    assert [list(i.scores) for i in again.choices] == [list(map(float, i.scores)) for i in first.choices]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "?", "choices": ["a", "b"]}, "lacks the column 'answer'"),
        ({"question": "?", "choices": ["a"], "answer": 0}, "at least two choices"),
        ({"question": "?", "choices": "ab", "answer": 0}, "at least two choices"),
        ({"question": "?", "choices": ["a", "b"], "answer": 2}, "needs an answer from 0 to 1"),
        ({"question": "?", "choices": ["a", "b"], "answer": "C"}, "needs an answer from 0 to 1"),
        ({"question": "?", "choices": ["a", None], "answer": 0}, "texts or numbers"),
    ],
)
def test_a_row_that_is_no_question_is_refused(row, problem):
    with pytest.raises(InputDataError, match=problem):
        load_questions([row], name="quiz")


def test_equal_questions_share_a_cluster_and_ids_are_unique():
    found = load_questions([ROWS[0], ROWS[1], ROWS[0]], name="quiz")
    assert [q.cluster for q in found] == ["same as quiz-1", "", "same as quiz-1"]
    with pytest.raises(InputDataError, match="same id"):
        load_questions([{**ROWS[0], "id": "a"}, {**ROWS[1], "id": "a"}], name="quiz")
    with pytest.raises(InputDataError, match="no questions"):
        load_questions([], name="quiz")


def test_jobs_exist_only_for_sets_with_questions():
    class Any:
        protocol = Protocol("t", "1", {"forget": "forget"})

    assert choice_jobs(Any()) == {}


def test_a_question_knows_its_right_answers():
    assert Question(id="q", text="?", choices=("a", "b", "c"), best=1, also_right=(2,)).correct == (0, 1, 1)
