# SPDX-License-Identifier: Apache-2.0
"""The harness on a model in memory: the same numbers as ours on the same task, and estimates that say what they are."""

from __future__ import annotations

import importlib.util
import json
import random
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from expunge.audit.choice_metrics import credit
from expunge.audit.choices import score_choices
from expunge.audit.config import AuditConfig
from expunge.audit.exact_answer import harness_equal
from expunge.audit.lm_eval_results import from_results
from expunge.audit.metrics import card_for, compute_metrics
from expunge.audit.protocol import Protocol
from expunge.audit.records import Records
from expunge.data.encoding import Encoder
from expunge.data.questions import TEXT_TEMPLATE, QuestionSet, load_questions
from expunge.errors import MissingDependency, RecipeError
from expunge.models.tiny import build_llama, build_tokenizer

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: pip install 'expunge[evals]'"
)
WORDS = ["oak", "boat", "harbour", "book", "river", "tree", "stone", "lamp", "road", "bridge"]

LETTERS = "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"


def rows(n=24):
    draw = random.Random(3)
    return [
        {
            "question": f" Which of these is {draw.choice(WORDS)} number {i}? ",
            "choices": [f"The {a} by the {b}" + " again" * draw.randrange(3) for a, b in
                        (draw.sample(WORDS, 2) for _ in range(4))],
            "answer": draw.randrange(4), "subject": "rivers",
        }
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def machine():
    torch.set_num_threads(1)
    texts = [json.dumps(row) for row in rows()] + ["Answer: A Answer: B Answer: C Answer: D questions about"] * 30
    tokenizer = build_tokenizer(texts, vocab_size=500)
    model = build_llama(len(tokenizer), hidden_size=64, layers=2, heads=2, context=512)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # fresh weights give nearly equal scores
    return model, tokenizer


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two local tasks: the letters of WMDP, and the texts of the choices."""
    folder = tmp_path_factory.mktemp("harness")
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(folder)},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_target": "answer", "metric_list": metrics,
        "num_fewshot": 0, "metadata": {"version": 7},
    }  # fmt: skip
    description = "The following are multiple choice questions (with answers) about rivers.\n\n"
    letters = {
        "task": "quiz_letters", "description": description, "doc_to_text": LETTERS,
        "doc_to_choice": ["A", "B", "C", "D"],
    }  # fmt: skip
    texts = {"task": "quiz_texts", "doc_to_text": "Q: {{question.strip()}}\nA:", "doc_to_choice": "choices"}
    return [common | letters, common | texts]


@pytest.fixture(scope="module")
def run(machine, tasks):
    pytest.importorskip("lm_eval")
    from expunge.audit.lm_eval_adapter import run_lm_eval

    model, tokenizer = machine
    model.train()
    torch.manual_seed(5)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), tokenizer.pad_token)
    found = run_lm_eval(model, tokenizer, tasks, batch_size=4)
    assert model.training
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:3] == (np.random.get_state()[1].tolist(), random.getstate())
    assert before[3] == tokenizer.pad_token
    model.eval()
    return found


def ours(machine, style):
    made = QuestionSet(questions=load_questions(rows(), name="quiz"), style=style)
    if style == "texts":
        made = QuestionSet(questions=made.questions, style="texts", template=TEXT_TEMPLATE)
    model, tokenizer = machine
    encoder = Encoder(tokenizer, template="raw", max_length=512)
    items = score_choices(model, encoder, {"quiz": made}, batch_tokens=800)
    config, protocol = AuditConfig(bootstrap=200, compat="paper"), Protocol("t", "1", {"quiz": "questions"})
    return made, items, compute_metrics(Records([], [], {}, items), protocol=protocol, config=config)


@needs_harness
@pytest.mark.parametrize("style", ["letters", "texts"])
def test_our_scores_are_those_of_the_harness(machine, run, style):
    made, items, found = ours(machine, style)
    samples = sorted(run.samples[f"quiz_{style}"], key=lambda sample: sample["doc_id"])
    theirs = np.array([[response[0][0] for response in sample["resps"]] for sample in samples])
    mine = np.array([item.scores for item in items])
    assert theirs.std() > 0.1
    np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    for sample, question in zip(samples, made.questions, strict=True):
        assert [tuple(pair) for pair in sample["arguments"]] == [
            (made.prompt(question), text) for text in made.continuations(question)
        ]
    assert found["quiz.accuracy"].value == run.estimates[f"lm_eval.quiz_{style}.acc"].value
    assert 0 < found["quiz.accuracy"].value < 1
    if style == "texts":
        assert found["quiz.accuracy_norm"].value == run.estimates["lm_eval.quiz_texts.acc_norm"].value
        assert [credit(one) for one in items] != [credit(one, norm=True) for one in items]


@needs_harness
def test_estimates_carry_intervals_and_what_the_task_was(run):
    name = "lm_eval.quiz_letters.acc"
    found = run.estimates[name]
    p, n = found.value, 24
    half = 1.959964 * (p * (1 - p) / (n - 1)) ** 0.5  # the harness divides by n - 1
    assert found.n == n
    assert found.direction == "higher"
    assert (found.ci_low, found.ci_high) == pytest.approx((max(0, p - half), min(1, p + half)), abs=1e-6)
    task = run.tasks["quiz_letters"]
    assert (task["version"], task["n"], task["n_shot"]) == (7, 24, 0)
    assert len(task["hash"]) == 64
    assert task["hash"] != run.tasks["quiz_texts"]["hash"]
    assert json.dumps(run.meta())
    assert card_for(name).name == name


@needs_harness
def test_a_limit_and_one_item(machine, tasks):
    from expunge.audit.lm_eval_adapter import run_lm_eval

    found = run_lm_eval(*machine, tasks[:1], limit=1).estimates["lm_eval.quiz_letters.acc"]
    assert (found.n, found.ci_low) == (1, None)
    assert "standard error" in found.reason


@needs_harness
def test_paper_counts_gsm8k_answers_as_the_harness_does():
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    exact = pytest.importorskip("lm_eval.api.metrics").exact_match_fn
    path = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks/gsm8k/gsm8k.yaml"
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    filters = {
        part["name"]: extraction.RegexFilter(**{k: v for k, v in part["filter"][0].items() if k != "function"})
        for part in task["filter_list"]
    }
    options = {k: task["metric_list"][0][k] for k in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    draw, hits = random.Random(0), 0
    parts = ["#### ", "####", "18", "1,8", "$", "-", ".", "...", " ", "\n", "42", "18.0", "is "]
    for _ in range(1500):
        said, target = (
            "".join(draw.choices(parts, k=draw.randrange(6))),
            f"<<9*2=18>>\n#### {draw.choice(['18', '-42'])}",
        )
        for name, flexible in (("strict-match", False), ("flexible-extract", True)):
            found = next(iter(filters[name].apply([[said]], [{}])))[0]
            theirs = exact(predictions=[found], references=[target], **options)["exact_match"]
            assert harness_equal(said, target, flexible=flexible) == bool(theirs), (said, target)
            hits += bool(theirs)
    assert hits > 30


def test_unknown_tasks_are_named_without_the_list_of_thousands():
    from expunge.audit.lm_eval_adapter import check_names

    class Manager:
        all_tasks = ("mmlu", "wmdp", "wmdp_bio", *(f"other_{i}" for i in range(5000)))

        def match_tasks(self, names):
            return [known for known in self.all_tasks if fnmatchcase(known, names[0])]

    check_names(["wmdp_*", "mmlu", {"task": "of one's own"}], Manager())
    with pytest.raises(RecipeError, match="wmdp_bio") as error:
        check_names(["mmlu", "wmdp_bioo"], Manager())
    assert len(str(error.value)) < 300


@needs_harness
def test_no_task_at_all(machine):
    from expunge.audit.lm_eval_adapter import run_lm_eval

    with pytest.raises(RecipeError, match="no task is named"):
        run_lm_eval(*machine, [])


def test_without_the_package_the_extra_is_named(machine, monkeypatch):
    from expunge.audit.lm_eval_adapter import run_lm_eval

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"expunge\[evals\]"):
        run_lm_eval(*machine, ["wmdp"])


def test_results_of_groups_filters_and_gaps():
    found = {
        "results": {
            "wmdp": {"alias": "wmdp", "acc,none": 0.5, "acc_stderr,none": 0.02},
            "wmdp_bio": {"alias": "bio", "sample_len": 30, "acc,none": 1.0, "acc_stderr,none": 0.0},
            "wmdp_chem": {"acc,none": 0.98, "acc_stderr,none": 0.02},
            "gsm8k": {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": "N/A",
                      "exact_match,flexible-extract": float("nan"), "exact_match_stderr,flexible-extract": 0.1},
            "wiki": {"word_perplexity,none": 12.5, "word_perplexity_stderr,none": 1.0},
        },
        "group_subtasks": {"wmdp": ["wmdp_bio", "wmdp_chem"]},
        "versions": {"wmdp_bio": 1}, "n-shot": {"gsm8k": 5},
        "n-samples": {name: {"original": 100, "effective": 30} for name in ("wmdp_bio", "wmdp_chem", "gsm8k", "wiki")},
        "higher_is_better": {"wmdp_bio": {"acc": True}, "wmdp_chem": {"acc": True}, "gsm8k": {"exact_match": True},
                             "wiki": {"word_perplexity": False}, "wmdp": {"acc": True}},
    }  # fmt: skip
    estimates, tasks = from_results(found)
    assert estimates["lm_eval.wmdp.acc"].n == 60
    assert estimates["lm_eval.wmdp.acc"].ci_low == pytest.approx(0.5 - 1.959964 * 0.02)
    assert "every item has the same value" in estimates["lm_eval.wmdp_bio.acc"].reason
    assert estimates["lm_eval.wmdp_chem.acc"].ci_high == 1.0
    assert "gives no standard error" in estimates["lm_eval.gsm8k.exact_match.strict-match"].reason
    assert estimates["lm_eval.gsm8k.exact_match.flexible-extract"].value is None
    assert estimates["lm_eval.wiki.word_perplexity"].direction == "lower"
    assert estimates["lm_eval.wiki.word_perplexity"].ci_high == pytest.approx(14.459964)
    assert tasks["gsm8k"] == {"version": None, "n": 30, "n_shot": 5, "hash": None}
