# SPDX-License-Identifier: Apache-2.0
"""The lens is the head; the probe beats its control only where there is something to read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.attacks.choices import answer_pairs, token_choices
from expunge.attacks.probing import ProbeConfig, ProbeTask, lens_columns, probe_block
from expunge.attacks.registry import run_attacks
from expunge.attacks.states import answer_states, last_states
from expunge.data.batching import pad
from expunge.data.encoding import Encoded
from expunge.data.examples import Example
from expunge.signals.head import body
from expunge.signals.hidden import block_outputs, final_states


def test_final_states_of_the_last_block_are_those_of_the_body(lab):
    items = [row.encoded for row in lab.encoder.encode_many(lab.splits.forget[:3], where="forget")]
    batch = pad(items, lab.encoder.pad_id)
    with torch.no_grad():
        states = block_outputs(lab.target, batch.input_ids, batch.attention_mask, layers=[1])[1]
        want = body(lab.target, batch.input_ids, batch.attention_mask)
        assert torch.allclose(final_states(lab.target, states), want, atol=1e-6)
        again = body(lab.target, batch.input_ids, batch.attention_mask)
    assert torch.equal(want, again)  # nothing is left hooked


def test_choices_begin_where_right_and_wrong_part(lab):
    example = Example(
        id="a", prompt="Which?", answer="The answer is B.", perturbed_answers=("The answer is A.", "The answer is D.")
    )
    (choice,) = token_choices(lab.encoder, [example])
    ids = [lab.encoder.encode(example, answer=f"The answer is {letter}.").ids for letter in "BAD"]
    at = next(t for t in range(99) if len({sequence[t] for sequence in ids}) > 1)
    assert choice.context.ids == ids[0][:at]
    assert choice.right == ids[0][at]
    assert set(choice.wrong) == {ids[1][at], ids[2][at]} - {choice.right}
    assert lab.encoder.tokenizer.decode(list(choice.context.ids)).strip().endswith("The answer is")
    (bare,) = token_choices(lab.encoder, [Example(id="b", prompt="Which?", answer="B.")])
    assert bare.wrong == ()
    assert len(bare.context.ids) == len(lab.encoder.prompt_ids(example))
    ((_, answers),) = answer_pairs(lab.encoder, [example])
    assert len(answers) == 3
    assert all(not item.ends_with_eos for item in answers)


def test_the_lens_after_the_last_block_is_the_models_own_output(lab):
    choices = token_choices(lab.encoder, lab.splits.forget[:6])
    columns = lens_columns(lab.target, choices, lab.encoder.pad_id)
    for index, choice in enumerate(choices):
        with torch.no_grad():
            logits = lab.target(torch.tensor([choice.context.ids])).logits[0, -1]
        among = torch.softmax(logits[[choice.right, *choice.wrong]], 0)
        assert columns[-1]["right_token_probability"].values[index] == pytest.approx(float(among[0]), abs=1e-5)
        assert columns[-1]["choice_accuracy"].values[index] == float(among[0] > among[1:].max())


def test_states_are_those_of_the_right_token_whatever_the_batch(lab):
    items = [Encoded((5, 6, 7), (-100, 6, 7), False), Encoded((8, 9, 10, 11, 12), (-100, -100, 10, 11, 12), False)]
    last = last_states(lab.target, items, layers=[0], pad_id=0)[0]
    mean = answer_states(lab.target, items, layers=[0], pad_id=0)[0]
    for index, item in enumerate(items):
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            states = block_outputs(lab.target, ids, torch.ones_like(ids), layers=[0])[0][0]
        assert last[index] == pytest.approx(states[-1].numpy(), abs=1e-5)
        assert mean[index] == pytest.approx(states[item.label_start :].mean(0).numpy(), abs=1e-5)


def task(subjects=10, answers=4):
    one = Encoded((1, 2), (1, 2), False)
    questions = [
        (Example(id=f"q{i}", prompt="q", answer="a", subject=f"s{i}"), (one,) * answers) for i in range(subjects)
    ]
    return ProbeTask(questions, [], tuple(i % 5 for i in range(subjects)), seed=0)


def test_the_probe_reads_a_truth_direction_and_nothing_from_noise():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(160, 12))
    plan = task(40)
    noise = probe_block(rows, plan, ProbeConfig(controls=4))
    assert noise.accuracy.values.mean() < 0.5
    rows[::4, 3] += 6.0  # the right answer is the first of four
    found = probe_block(rows, plan, ProbeConfig(controls=4))
    assert found.accuracy.values.mean() > 0.95
    assert found.control.values.mean() == pytest.approx(0.25, abs=0.12)
    again = probe_block(rows, plan, ProbeConfig(controls=4))
    assert np.array_equal(found.control.values, again.control.values)


def test_both_probes_come_with_their_controls(lab):
    lens, probe = run_attacks(["probing"], lab.context("target"), {"linear_probe": {"controls": 1}})[::-1]
    lens, probe = (lens, probe) if lens.card.name == "logit_lens" else (probe, lens)
    accuracy = next(f for f in lens.findings if f.metric == "lens.choice_accuracy")
    assert list(accuracy.controls) == ["reference", "the last block of the same model"]
    assert accuracy.value.value > accuracy.controls["reference"].value + 0.2
    assert 0.15 < lens.notes["chance"] < 0.5
    (selective,) = probe.findings
    assert list(selective.controls) == ["random labels", "reference"]
    value, control = selective.value.value, selective.controls["random labels"].value
    assert selective.differences["random labels"].value == pytest.approx(value - control)
    assert probe.notes["fitted_on"] == len(lab.splits.retain)
