# SPDX-License-Identifier: Apache-2.0
"""TOFU as a benchmark: which files, which cuts, whose prompts; and one audit costs one pass over what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expunge.audit.collect import collect
from expunge.audit.config import AuditConfig
from expunge.audit.metrics import compute_metrics
from expunge.audit.protocol import default_protocol
from expunge.benchmarks.base import BENCHMARKS, get_benchmark
from expunge.benchmarks.fictitious import FICTITIOUS
from expunge.benchmarks.tofu import LOCUSLAB_TOKENS, TOFU
from expunge.data.encoding import IGNORE, Encoder
from expunge.data.examples import Example
from expunge.data.fictitious import build_archive
from expunge.errors import InputDataError, RecipeError
from expunge.models.tiny import build_llama, build_tokenizer

DATA = Path(__file__).parents[2] / "../shared/data/tofu"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the TOFU files are not beside the checkout")
STEMS = ("forget10_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
SIZE = 6


def cut_files(folder, rows):
    """Write the first rows of every real file into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in STEMS:
        lines = (DATA / f"{stem}.json").read_text().splitlines()[:rows]
        (folder / f"{stem}.json").write_text("\n".join(lines))
    return folder


@needs_data
@pytest.mark.parametrize(
    ("split", "size", "authors"), [("forget10", 400, 20), ("forget05", 200, 10), ("forget01", 40, 2)]
)
def test_the_sets_of_every_request(split, size, authors):
    data = TOFU.load(DATA, split=split)
    assert {name: len(found) for name, found in data.sets.items()} == {
        "forget": size, "retain": 400, "real_authors": 100, "world_facts": 117,
    }  # fmt: skip
    assert len({one.subject for one in data.sets["forget"]}) == authors
    assert {one.subject for one in data.sets["world_facts"]} == {""}
    assert data.protocol.sets("retain", "options") == ("retain", "real_authors", "world_facts")
    assert all(one.paraphrased_answer and len(one.perturbed_answers) == 5 for one in data.sets["forget"])
    assert any("holdout" in note for note in data.notes)
    full = [json.loads(line)["question"] for line in (DATA / "full.json").read_text().splitlines()]
    assert [one.prompt for one in data.sets["forget"]] == full[-size:]


@needs_data
def test_the_authors_code_looks_at_three_hundred():
    cut = TOFU.load(DATA, split="forget10", compat="locuslab")
    assert {len(found) for found in cut.sets.values()} == {300, 100, 117}
    assert (cut.encoding["max_length"], cut.encoding["too_long"]) == (200, "truncate")
    assert cut.protocol.continuation("forget").max_total_tokens == LOCUSLAB_TOKENS
    whole = TOFU.load(DATA, split="forget10", compat="openunlearning")
    assert len(whole.sets["forget"]) == 400
    assert whole.audit_config(AuditConfig()).min_k == 0.4
    given = whole.audit_config(AuditConfig(min_k=0.1, compat="fixed"))
    assert (given.min_k, given.compat, given.max_new_tokens) == (0.1, "fixed", 200)


@needs_data
def test_a_folder_around_the_files_and_a_holdout_are_found(tmp_path):
    inside = cut_files(tmp_path / "data", 3)
    assert "holdout" not in TOFU.load(tmp_path, split="forget10").sets
    (inside / "holdout10.json").write_text('{"question": "Who?", "answer": "No one."}')
    data = TOFU.load(tmp_path, split="forget10")
    assert data.protocol.sets("holdout") == ("holdout",)
    assert not data.notes
    assert TOFU.training_file(tmp_path, "forget10_perturbed") == inside / "forget10_perturbed.json"
    with pytest.raises(InputDataError, match=r"retain90\.json"):
        TOFU.training_file(tmp_path, "retain90")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputDataError, match="--data"):
        TOFU.load(None, split="forget10")
    with pytest.raises(InputDataError, match="forget10_perturbed"):
        TOFU.load(tmp_path, split="forget10")
    with pytest.raises(RecipeError, match="forget10"):
        TOFU.load(tmp_path, split="forget1O")
    with pytest.raises(RecipeError, match="Did you mean 'tofu'"):
        get_benchmark("tofoo")
    assert get_benchmark("tofu") is TOFU
    assert {"tofu", "muse", "wmdp", "fictitious"} <= set(BENCHMARKS)


class Forwards:
    """Counts what enters the body of a model: rows, width, and real tokens of every forward."""

    def __init__(self, model):
        self.seen = []
        model.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        mask = kwargs.get("attention_mask")
        self.seen.append((*ids.shape, int(ids.numel() if mask is None else mask.sum())))


@pytest.fixture(scope="module")
def machine():
    torch.set_num_threads(1)
    texts = ["Who is the author of this book? Question: Answer:", "The complete name of the writer is Hsiao Yun-Hwa."]
    tokenizer = build_tokenizer(texts, vocab_size=300)
    return build_llama(len(tokenizer), hidden_size=16, layers=1, heads=2, context=1024), tokenizer


@needs_data
def test_one_audit_is_one_scoring_pass_and_one_generation_pass(machine, tmp_path):
    model, tokenizer = machine
    folder = cut_files(tmp_path, SIZE)
    # A question that two sets share: it must be scored and continued once.
    extra = (folder / "forget10_perturbed.json").read_text().splitlines()[0]
    (folder / "retain_perturbed.json").write_text((folder / "retain_perturbed.json").read_text() + "\n" + extra)
    data = TOFU.load(folder, split="forget10")
    encoder = Encoder(tokenizer, template="question", max_length=1024)
    config = data.audit_config(AuditConfig(max_new_tokens=4, batch_tokens=4096, bootstrap=100))
    phases = []
    forwards = Forwards(model)
    records = collect(
        model, encoder, data.sets, config=config, protocol=data.protocol, progress=lambda *told: phases.append(told)
    )

    pairs, prompts = set(), set()
    for name, examples in data.sets.items():
        for one in examples:
            answers = [one.answer, *one.perturbed_answers] + (
                [one.paraphrased_answer] if one.paraphrased_answer else []
            )
            pairs |= {encoder.encode(one, answer=answer).ids for answer in answers}
            prompts.add(encoder.prompt_ids(one))
            if one.paraphrased_prompt:
                pairs.add(encoder.encode(one, prompt=one.paraphrased_prompt).ids)
                if name == "forget":
                    prompts.add(encoder.prompt_ids(one, prompt=one.paraphrased_prompt))

    n_scoring = sum(phase == "scoring" for phase, _, _ in phases)
    scoring, generation = forwards.seen[:n_scoring], forwards.seen[n_scoring:]
    assert sum(rows for rows, _, _ in scoring) == len(pairs)
    assert sum(tokens for _, _, tokens in scoring) == sum(map(len, pairs))
    # Prompts go in once with little padding, and every token that is wanted takes one position.
    fed = sum(rows * width for rows, width, _ in generation)
    assert fed <= 1.2 * sum(map(len, prompts)) + len(prompts) * (config.max_new_tokens - 1)
    counts = records.meta["counts"]
    assert (counts["unique_pairs"], counts["unique_prompts"]) == (len(pairs), len(prompts))
    assert counts["pairs"] > counts["unique_pairs"]

    before = len(forwards.seen)
    found = compute_metrics(records, protocol=data.protocol, config=config, reference=records)
    assert len(forwards.seen) == before
    assert found["model_utility"].value is not None
    assert found["forget_quality"].value == 1.0
    assert found["membership.loss.auc"].value is None
    assert "holdout" in found["membership.loss.auc"].reason


@needs_data
def test_prompt_and_generation_together_are_cut(machine, tmp_path):
    model, tokenizer = machine
    data = TOFU.load(cut_files(tmp_path, 2), split="forget10", compat="locuslab")
    encoder = Encoder(tokenizer, template="tofu_llama2", **data.encoding)
    config = data.audit_config(AuditConfig())
    records = collect(model, encoder, data.sets, config=config, protocol=data.protocol)
    lengths = {one.id: len(encoder.prompt_ids(one)) for one in data.sets["forget"]}
    for item in records.generated:
        if item.set == "forget" and item.prompt_variant == "question":
            assert item.n_tokens + lengths[item.id] <= LOCUSLAB_TOKENS
            assert item.finished or item.n_tokens + lengths[item.id] == LOCUSLAB_TOKENS


def test_the_prompts_of_the_authors_code(machine):
    tokenizer = machine[1]
    one = Example(id="q", prompt="Who?", answer="Ann.")
    llama = Encoder(tokenizer, template="tofu_llama2", max_length=64)
    phi = Encoder(tokenizer, template="tofu_phi", max_length=64)
    assert tokenizer.decode(llama.encode(one).ids, skip_special_tokens=True) == "[INST] Who? [/INST]Ann."
    assert tokenizer.decode(phi.encode(one).ids, skip_special_tokens=True) == "Question: Who?\nAnswer: Ann."
    labels = [label for label in phi.encode(one).labels if label != IGNORE]
    assert tokenizer.decode(labels, skip_special_tokens=True) == "Answer: Ann."  # the tag is scored with the answer


def test_an_unfinished_answer_has_no_end_and_still_has_numbers(machine):
    model, tokenizer = machine
    encoder = Encoder(tokenizer, template="question", max_length=64, too_long="truncate")
    sets = {
        "forget": [
            Example(id=str(i), prompt="Who?", answer="Ann" * (i + 1), perturbed_answers=("a",)) for i in range(2)
        ],
        "holdout": [Example(id=str(i), prompt="Who is it?", answer="Ann" * 40) for i in range(2)],
    }
    config = AuditConfig(max_new_tokens=2, bootstrap=100)
    records = collect(model, encoder, sets, config=config)
    assert {item.ends_with_eos for item in records.scored if item.set == "holdout"} == {False}
    assert {item.ends_with_eos for item in records.scored if item.set == "forget"} == {True}
    found = compute_metrics(records, protocol=default_protocol(sets), config=config)
    assert found["forget.extraction_strength"].value is not None
    assert found["membership.min_k.auc"].value is not None
    assert "paraphrase" in found["forget.truth_ratio"].reason


def test_the_archive_is_a_benchmark_without_data(tmp_path):
    drawn = FICTITIOUS.load(None, split="forget10")
    build_archive(FICTITIOUS.people, seed=FICTITIOUS.seed).write_jsonl(tmp_path)
    read = FICTITIOUS.load(tmp_path, split="forget10")
    assert [len(found) for found in drawn.sets.values()] == [len(found) for found in read.sets.values()]
    assert drawn.protocol == read.protocol
    assert drawn.protocol.sets("holdout") == ("holdout",)
    assert [one.answer for one in drawn.sets["forget"]] == [one.answer for one in read.sets["forget"]]
    (tmp_path / "holdout.jsonl").unlink()
    with pytest.raises(InputDataError, match=r"holdout\.jsonl"):
        FICTITIOUS.load(tmp_path, split="forget10")
