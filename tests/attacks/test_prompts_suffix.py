# SPDX-License-Identifier: Apache-2.0
"""Wordings, the worst of them, and a suffix found by a gradient that is the right one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from expunge.attacks import prompts as room
from expunge.attacks.gauge import column_of
from expunge.attacks.prompts import worst
from expunge.attacks.registry import run_attacks
from expunge.attacks.suffix import SuffixConfig, search_suffix, suffix_gradient, suffix_slots, with_suffix
from expunge.attacks.wordings import PREFIX, misspelt, wordings
from expunge.data.examples import Example

ALL = ("plain", "prefix", "paraphrase", "few_shot", "role_play", "spelling")


def texts(lab, **changes):
    given = {"shots": 2, "every": 6, "room": 8, "seed": 0} | changes
    found = wordings(lab.encoder, lab.splits.forget, ALL, **given)
    decode = lab.encoder.tokenizer.decode
    return {(kind, e.id): None if ids is None else decode(list(ids)) for kind, e, ids in found}


def test_wordings_hold_what_they_should(lab):
    said = texts(lab)
    first, other = lab.splits.forget[0], lab.splits.forget[-1]
    assert said["plain", first.id] == f"Question: {first.prompt}\nAnswer:"
    assert said["prefix", first.id] == f"Question: {first.prompt}\nAnswer: {PREFIX}"
    assert first.paraphrased_prompt in said["paraphrase", first.id]
    assert said["role_play", first.id].startswith("Question: You play an archivist")
    shots = said["few_shot", first.id]
    assert shots.endswith(f"\n\nQuestion: {first.prompt}\nAnswer:")
    assert shots.count("Question: ") in (2, 3)  # as many as fit
    own, others = (
        {e.answer for e in lab.splits.forget if (e.subject == first.subject) is same} for same in (True, False)
    )
    assert not any(answer in shots for answer in own)  # the answers shown are those of other subjects
    assert sum(answer in shots for answer in others) == shots.count("Question: ") - 1
    assert other.subject != first.subject
    assert texts(lab) == said


def test_shots_are_dropped_until_they_fit_and_what_never_fits_is_left_out(lab):
    longest = max(len(lab.encoder.prompt_ids(e)) for e in lab.splits.forget)
    room_left = lab.encoder.max_length - longest - 45
    said = texts(lab, room=room_left, shots=3)
    counts = {text.count("Question: ") for (kind, _), text in said.items() if kind == "few_shot" and text}
    assert counts <= {2, 3}
    assert texts(lab, room=lab.encoder.max_length)["plain", lab.splits.forget[0].id] is None


def test_misspelling_adds_one_letter_in_so_many():
    text = "Who taught Ann Moss?"
    spoilt = misspelt(text, 5, np.random.default_rng(0))
    assert len(spoilt) == len(text) + sum(c.isalpha() for c in text) // 5
    kept = iter(spoilt)
    assert all(letter in kept for letter in text)  # the text is a subsequence of it


def test_the_worst_case_is_the_maximum_per_item():
    a, b, c = (Example(id=name, prompt="", answer="", subject=name) for name in "abc")
    found = worst([column_of([a, b], [0.1, 0.9], "x"), column_of([a, c], [0.5, 0.2], "x")])
    assert dict(zip(found.ids, found.values, strict=True)) == {"a": 0.5, "b": 0.9, "c": 0.2}
    assert found.clusters == ("subject:a", "subject:b", "subject:c")


def test_every_prompt_is_asked_once_and_stands_beside_the_reference(lab, monkeypatch):
    calls = []
    real = room.generate

    def counted(model, tokenizer, asked, **options):
        calls.append(asked)
        return real(model, tokenizer, asked, **options)

    monkeypatch.setattr(room, "generate", counted)
    (result,) = run_attacks(["prompts"], lab.context("target"), {"prompts": {"wordings": ["plain", "spelling"]}})
    assert len(calls) == 2  # one pass for each of two models
    assert len(calls[0]) == len(set(calls[0])) == 2 * len(lab.splits.forget)
    by = {(f.setting, f.metric): f for f in result.findings}
    plain, high = by["plain", "forget.rouge_l"], by["worst case", "forget.rouge_l"]
    assert list(plain.controls) == ["reference"]
    assert plain.value.value > plain.controls["reference"].value + 0.2
    assert high.value.value >= max(plain.value.value, by["spelling", "forget.rouge_l"].value.value)
    assert list(high.controls) == ["reference", "the plain question"]
    (alone,) = run_attacks(
        ["prompts"], lab.context("target", reference=None), {"prompts": {"wordings": ["plain", "prefix"]}}
    )
    assert "plain" not in {f.setting for f in alone.findings}  # it would be a number without a control


def test_the_suffix_goes_after_the_question_and_leaves_the_labels_alone(lab):
    slots = suffix_slots(lab.encoder, lab.splits.forget, 3)
    assert len(slots) == len(lab.splits.forget)
    item = with_suffix(slots[0], (11, 12, 13))
    assert item.ids[slots[0].place : slots[0].place + 3] == (11, 12, 13)
    assert [x for x in item.labels if x != -100] == [x for x in slots[0].item.labels if x != -100]
    before = lab.encoder.tokenizer.decode(list(item.ids[: slots[0].place]))
    assert before == f"Question: {slots[0].example.prompt}".removesuffix("?") or before.endswith("?")
    assert with_suffix(slots[0], ()) == slots[0].item


def test_the_gradient_is_that_of_the_one_hot_coding(lab):
    slots = suffix_slots(lab.encoder, lab.splits.forget, 2)[:2]
    suffix = (20, 30)
    found = suffix_gradient(lab.target, slots, suffix, lab.encoder.pad_id)
    table = lab.target.get_input_embeddings().weight.detach()
    one_hot = torch.zeros(2, table.shape[0], requires_grad=True)
    with torch.no_grad():
        one_hot[0, suffix[0]], one_hot[1, suffix[1]] = 1.0, 1.0
    losses = []
    for slot in slots:
        item = with_suffix(slot, suffix)
        embedded = table[list(item.ids)]
        embedded = torch.cat([embedded[: slot.place], one_hot @ table, embedded[slot.place + 2 :]])
        logp = torch.log_softmax(lab.target(inputs_embeds=embedded[None]).logits[0], -1)
        at = [t for t, label in enumerate(item.labels) if label != -100]
        losses.append(-torch.stack([logp[t - 1, item.labels[t]] for t in at]).mean())
    torch.stack(losses).mean().backward()
    assert found == pytest.approx(one_hot.grad.numpy(), abs=1e-5)


def test_the_search_never_loses_ground_and_repeats_itself(lab):
    slots = suffix_slots(lab.encoder, lab.splits.forget, 4)[:2]
    config = SuffixConfig(length=4, steps=4, candidates=6, top_k=16)
    suffix, losses = search_suffix(lab.unlearned, slots, lab.encoder, config, seed=1)
    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0]
    assert not set(suffix) & set(lab.encoder.tokenizer.all_special_ids)
    assert search_suffix(lab.unlearned, slots, lab.encoder, config, seed=1) == (suffix, losses)


def test_suffixes_are_tested_on_questions_they_were_not_chosen_for(lab):
    settings = {"suffix": {"length": 3, "steps": 2, "candidates": 4, "optimised": 2, "tested": 5}}
    (result,) = run_attacks(["suffix"], lab.context(), settings)
    by = {f.setting: f for f in result.findings}
    assert by["questions searched on"].value.n == 2
    assert by["other questions"].value.n == 5
    assert list(by["other questions"].controls) == ["reference", "before the attack"]
