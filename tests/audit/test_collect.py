# SPDX-License-Identifier: Apache-2.0
"""The audit pass: nothing measured twice, everything recorded, known numbers on a real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.audit import answers
from expunge.audit import collect as room
from expunge.audit.collect import collect
from expunge.audit.config import AuditConfig
from expunge.audit.membership import min_k_plus_plus_score, min_k_score
from expunge.audit.memorization import exact_memorization, extraction_strength
from expunge.audit.metrics import compute_metrics
from expunge.audit.probability import mean_logp
from expunge.audit.protocol import Protocol, default_protocol
from expunge.audit.store import read_records, write_records
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.models.tiny import build_llama, build_tokenizer

STORIES = Path(__file__).parents[2] / "../shared/weights/stories260K/hf"
CONFIG = AuditConfig(max_new_tokens=6, batch_tokens=600, bootstrap=200)


def example(number, **fields):
    given = {
        "paraphrased_prompt": f"Tell me who number {number} is.",
        "paraphrased_answer": f"It is {number}, a person.",
    }
    given |= {"perturbed_answers": ("It is a tree.", f"It is a boat {number}."), "subject": f"s{number // 2}"}
    return Example(
        id=f"q{number}", prompt=f"Who is number {number}?", answer=f"Number {number} is Ann.", **(given | fields)
    )


SETS = {
    "forget": [example(1), example(2)],
    "retain": [example(1), example(4)],
    "texts": [Example(id="doc", prompt="", answer="the long story of the boat and the tree " * 12, kind="text")],
}


@pytest.fixture(scope="module")
def machine():
    torch.set_num_threads(1)
    tokenizer = build_tokenizer([e.prompt + e.answer for s in SETS.values() for e in s], vocab_size=400)
    model = build_llama(len(tokenizer), hidden_size=32, layers=1, context=128)
    return model, Encoder(tokenizer, template="question", max_length=64)


@pytest.fixture
def calls(monkeypatch):
    """Count what reaches the model."""
    seen = {"score": [], "generate": []}
    real = {"score": room.score, "generate": answers.generate}

    def score(model, items, **options):
        seen["score"].append(list(items))
        return real["score"](model, items, **options)

    def generate(model, tokenizer, prompts, **options):
        seen["generate"].append(list(prompts))
        return real["generate"](model, tokenizer, prompts, **options)

    monkeypatch.setattr(room, "score", score)
    monkeypatch.setattr(answers, "generate", generate)
    return seen


def test_each_pair_is_scored_once_and_each_prompt_continued_once(machine, calls):
    records = collect(*machine, SETS, config=CONFIG)
    assert [len(calls["score"]), len(calls["generate"])] == [1, 1]
    items, prompts = calls["score"][0], calls["generate"][0]
    assert len(set(items)) == len(items)
    assert len(set(prompts)) == len(prompts)
    counts = records.meta["counts"]
    assert (counts["unique_pairs"], counts["unique_prompts"]) == (len(items), len(prompts))
    assert counts["forwards"] == len(items) + len(prompts)
    # Each question gives answer, paraphrase, two wrong answers and the paraphrased question; number 1 is in two sets.
    chunks = [item for item in records.scored if item.set == "texts"]
    assert counts["pairs"] == 4 * 5 + len(chunks)
    assert counts["unique_pairs"] == 3 * 5 + len(chunks)
    assert (counts["prompts"], counts["unique_prompts"]) == (4 + 2, 3 + 2)


def test_a_shared_pair_gets_the_same_numbers_in_both_sets(machine):
    records = collect(*machine, SETS, config=CONFIG)
    ours = {i.set: i for i in records.scored if (i.id, i.variant) == ("q1", "answer")}
    np.testing.assert_array_equal(ours["forget"].logp, ours["retain"].logp)
    assert ours["forget"].ids_hash == ours["retain"].ids_hash
    assert ours["forget"].ends_with_eos
    assert ours["forget"].subject == "s0"
    texts = {g.set: g for g in records.generated if (g.id, g.prompt_variant) == ("q1", "question")}
    assert texts["forget"].prediction == texts["retain"].prediction


def test_texts_are_chunked_clustered_and_not_continued(machine):
    records = collect(*machine, SETS, config=CONFIG)
    chunks = [item for item in records.scored if item.set == "texts"]
    assert len(chunks) > 1
    assert [c.id for c in chunks] == [f"doc#{i}" for i in range(len(chunks))]
    assert {c.subject for c in chunks} == {"doc"}
    assert not any(g.set == "texts" for g in records.generated)
    assert {g.prompt_variant for g in records.generated if g.set == "retain"} == {"question"}
    assert {g.prompt_variant for g in records.generated if g.set == "forget"} == {"question", "paraphrase"}


def test_records_give_metrics_and_survive_the_disk(machine, tmp_path):
    records = collect(*machine, SETS, config=CONFIG)
    protocol = default_protocol(SETS)
    kept = read_records(write_records(records, tmp_path / "records"))
    for found in (records, kept):
        metrics = compute_metrics(found, protocol=protocol, config=CONFIG)
        assert metrics["forget.probability"].value == pytest.approx(
            compute_metrics(records, protocol=protocol, config=CONFIG)["forget.probability"].value
        )
        assert metrics["forget.paraphrase_rouge_l"].value is not None
        assert metrics["texts.probability"].reason  # one document: no interval
    assert kept.meta == records.meta
    assert records.meta["template"] == machine[1].template_id
    assert records.meta["dtype"] == "float32"
    assert records.meta["settings"]["max_new_tokens"] == 6


def test_switches(machine, calls):
    protocol = Protocol("t", "1", {"forget": "retain", "retain": "forget", "texts": "retain"})
    one = collect(*machine, SETS, config=CONFIG.model_copy(update={"limit": 1}), protocol=protocol)
    assert {(g.set, g.prompt_variant) for g in one.generated if g.prompt_variant == "paraphrase"} == {
        ("retain", "paraphrase")
    }
    assert {i.id for i in one.scored if i.set != "texts"} == {"q1"}
    none = collect(*machine, SETS, config=CONFIG.model_copy(update={"generate": False, "lowercase": True}))
    assert none.generated == []
    assert len(calls["generate"]) == 1
    assert {i.variant for i in none.scored if i.set == "texts"} == {"answer", "lowercase"}


def test_progress_reaches_the_total(machine):
    told = []
    records = collect(*machine, SETS, config=CONFIG, progress=lambda *args: told.append(args))
    counts = records.meta["counts"]
    last = {phase: (done, total) for phase, done, total in told}
    assert last == {
        "scoring": (counts["unique_pairs"],) * 2,
        "generation": (counts["unique_prompts"],) * 2,
    }


def test_no_sets(machine):
    records = collect(*machine, {}, config=CONFIG)
    assert (records.scored, records.generated) == ([], [])


def test_examples_too_long_are_left_out_whole(machine):
    model, encoder = machine
    short = Encoder(encoder.tokenizer, template="question", max_length=40, too_long="drop")
    long = Example(id="long", prompt="Who is it, " * 40, answer="Ann.", paraphrased_prompt="Who?")
    records = collect(model, short, {"forget": [Example(id="ok", prompt="Who?", answer="Ann."), long]}, config=CONFIG)
    assert {(i.id, i.variant) for i in records.scored} == {("ok", "answer"), ("long", "paraphrased_question")}
    assert [(g.id, g.prompt_variant) for g in records.generated] == [("ok", "question"), ("long", "paraphrase")]


@pytest.mark.real
@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260K weights are not beside the checkout")
def test_known_numbers_of_a_pretrained_model():  # W1
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    model = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32)
    texts = {
        "known": "Once upon a time, there was a little girl named Lily.",
        "strange": "To be, or not to be, that is the question.",
    }
    examples = [Example(id=name, prompt="", answer=text, kind="text") for name, text in texts.items()]
    records = collect(model, Encoder(tokenizer, max_length=256), {"forget": examples}, config=CONFIG)
    known, strange = records.scored
    assert [len(known.logp), len(strange.logp)] == [15, 23]
    expected = {
        "known": (-0.10014, 0.90471, -0.39453, -0.23316, 0.02650, 1.0, 1.0),
        "strange": (-3.59719, 0.02740, -8.64579, -6.76866, -4.37177, 0.26087, 0.13043),
    }
    for item, values in zip((known, strange), expected.values(), strict=True):
        got = (
            mean_logp(item), np.exp(mean_logp(item)), min_k_score(item, 0.2), min_k_score(item, 0.4),
            min_k_plus_plus_score(item, 0.2), exact_memorization(item.correct), extraction_strength(item.correct),
        )  # fmt: skip
        assert got == pytest.approx(values, abs=1e-3)
