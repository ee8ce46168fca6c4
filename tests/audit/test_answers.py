# SPDX-License-Identifier: Apache-2.0
"""One continuation per prompt serves every set as if each had been continued alone, to its own length and stop."""

from __future__ import annotations

import random

import pytest
import torch
from pydantic import ValidationError

from completions_server import serving
from expunge.api.memory import entry
from expunge.audit.answers import Wanted, answers_to
from expunge.audit.collect import collect
from expunge.audit.config import AuditConfig
from expunge.audit.measure import Measurer
from expunge.audit.protocol import Continuation, Protocol
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.errors import RecipeError
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.recipe import AuditRecipe, build_recipe
from expunge.signals import generation
from expunge.signals.engine import EngineConfig
from expunge.signals.stopping import cut_before

WORDS = ["the", "boat", "left", "harbour", "at", "dawn", "nobody", "knows", "where", "Question:", "Answer:", "why"]


def restless(tokenizer, seed=0):
    model = build_llama(len(tokenizer), hidden_size=32, layers=1, heads=2, context=160)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4, generator=draws)
        model.lm_head.weight[1] *= 2
        model.lm_head.weight[130:260] *= 0.1
    return model


@pytest.fixture(scope="module")
def machine():
    torch.set_num_threads(1)
    tokenizer = build_tokenizer([" ".join(WORDS) + "\n\n", "Question: why?\n\nQuestion: where?"] * 3, vocab_size=320)
    return restless(tokenizer), Encoder(tokenizer, template="raw", max_length=128, answer_eos=False)


def examples(n, seed):
    draw = random.Random(seed)
    prompts = [" ".join(draw.choices(WORDS, k=draw.randrange(2, 12))) for _ in range(n)]
    return [
        Example(id=f"{seed}-{i}", prompt=p, answer=" the harbour", kind="completion") for i, p in enumerate(prompts)
    ]


def alone(model, ids, most):
    """One prompt to its full length through transformers: ids without the end, and whether it came."""
    out = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        max_new_tokens=most, pad_token_id=0, eos_token_id=1,
    )[0, len(ids) :].tolist()  # fmt: skip
    return (out[: out.index(1)], True) if 1 in out else (out, False)


def expected(model, encoder, example, rule, most):
    """Generate to the full length, cut to the room, then before the first stop string."""
    tokenizer, prompt = encoder.tokenizer, encoder.prompt_ids(example)
    ids, finished = alone(model, prompt, rule.max_new_tokens or most)
    room = 10**9 if rule.max_total_tokens is None else max(0, rule.max_total_tokens - len(prompt))
    if room < len(ids):
        ids, finished = ids[:room], False
    text, stopped = cut_before(tokenizer.decode(ids, skip_special_tokens=True), rule.stop)
    return text.strip(), finished or stopped


def test_every_text_is_what_cutting_the_full_one_gives(machine):
    model, encoder = machine
    shared = examples(10, 1)
    rules = {
        "short": Continuation(5), "stopped": Continuation(30, stop=("e", " n", "Qu")), "long": Continuation(40),
        "tight": Continuation(max_total_tokens=28), "both": Continuation(20, stop=("o",), max_total_tokens=30),
    }  # fmt: skip
    sets = {name: shared + examples(6, 10 + i) for i, name in enumerate(rules)}
    protocol = Protocol("t", "1", dict.fromkeys(sets, "retain"), continuations=rules)
    config = AuditConfig(max_new_tokens=16, batch_tokens=700, bootstrap=100)
    records = collect(model, encoder, sets, config=config, protocol=protocol)
    ends = set()
    for item in records.generated:
        example = next(e for e in sets[item.set] if e.id == item.id)
        assert (item.prediction, item.finished) == expected(model, encoder, example, rules[item.set], 16)
        ends.add((item.set, item.finished))
    assert {("stopped", True), ("both", True), ("tight", False), ("tight", True), ("long", True)} <= ends
    unique = {encoder.prompt_ids(e) for found in sets.values() for e in found}
    assert records.meta["counts"]["unique_prompts"] == len(unique) < records.meta["counts"]["prompts"]


def test_stop_strings_end_the_work_early(machine, monkeypatch):
    model, encoder = machine
    taken = []
    real = generation.Row.take
    monkeypatch.setattr(generation.Row, "take", lambda self, *args: taken.append(1) or real(self, *args))
    rule = Continuation(40, stop=("e", "a", "o"))
    protocol = Protocol("t", "1", {"s": "retain"}, continuations={"s": rule})
    records = collect(model, encoder, {"s": examples(20, 3)}, config=AuditConfig(), protocol=protocol)
    kept = sum(item.n_tokens for item in records.generated)
    assert kept <= len(taken) <= kept + 20  # a token more where the text ended by itself
    assert len(taken) < 20 * 20


def test_an_end_at_the_limit_does_not_count(machine):
    model, encoder = machine
    ids = next(p for e in examples(40, 4) if (p := encoder.prompt_ids(e)) and 2 < len(alone(model, p, 60)[0]) < 50)
    length = len(alone(model, ids, 60)[0])
    asked = [Wanted(ids, limit) for limit in (length - 1, length, length + 1, 60)]
    found = answers_to(model, encoder, asked, AuditConfig(), name="m", counter=lambda total: None)
    assert len(found.found) == 1
    for one in asked:
        answer = found.of(one)
        assert (list(answer.ids), answer.finished) == alone(model, ids, one.limit)
        assert answer.text == encoder.tokenizer.decode(answer.ids, skip_special_tokens=True).strip()


class TestEngine:
    """An audit whose texts a server writes."""

    SETS = {"forget": examples(6, 5), "retain": examples(4, 6)}  # noqa: RUF012

    def config(self, url, **options):
        engine = EngineConfig(url=url, backoff=0.0, retries=0, token_ids=True, **options)
        return AuditConfig(max_new_tokens=10, bootstrap=100, engine=engine)

    def test_the_records_are_those_of_the_local_model_and_say_who_wrote(self, machine):
        model, encoder = machine
        rule = {"retain": Continuation(12, stop=("o",))}
        protocol = Protocol("t", "1", {"forget": "forget", "retain": "retain"}, continuations=rule)
        local = collect(model, encoder, self.SETS, config=AuditConfig(max_new_tokens=10), protocol=protocol)
        with serving({"target": restless(encoder.tokenizer)}, encoder.tokenizer) as server:
            measurer = Measurer(encoder, self.SETS, self.config(server.url), protocol)
            served = measurer.measure(model, name="target", model_digest="0")
        assert [(g.id, g.prediction, g.finished) for g in served.generated] == [
            (g.id, g.prediction, g.finished) for g in local.generated
        ]
        assert [s.logp.tolist() for s in served.scored] == [s.logp.tolist() for s in local.scored]
        facts = served.meta["engine"]
        assert (facts["url"], facts["model"], facts["agreement"]) == (server.url, "target", 1.0)
        assert facts["tokens"] > 20
        assert "engine" not in local.meta
        assert entry(served, {}).meta["engine"] == facts
        assert measurer.key("0", "f") != Measurer(encoder, self.SETS, AuditConfig(max_new_tokens=10), protocol).key(
            "0", "f"
        )

    def test_a_server_with_other_weights_is_found_out(self, machine):
        model, encoder = machine
        with serving({"other": restless(encoder.tokenizer, seed=1)}, encoder.tokenizer) as server:
            with pytest.raises(RecipeError, match="served tokens are the local model's most likely"):
                collect(model, encoder, self.SETS, config=self.config(server.url, model="other"))
            waved = collect(model, encoder, self.SETS, config=self.config(server.url, model="other", agreement=0.0))
        assert waved.meta["engine"]["agreement"] < 0.5

    def test_nothing_is_asked_where_nothing_is_generated(self, machine):
        model, encoder = machine
        quiet = self.config("http://127.0.0.1:9/v1").model_copy(update={"generate": False})
        assert collect(model, encoder, self.SETS, config=quiet).generated == []

    def test_it_is_set_from_the_command_line_and_refused_where_the_model_changes(self):
        settings = {"model": {"path": "m"}, "data": {"forget": "f"}, "audit": {"engine": {"url": "http://host/v1"}}}
        recipe = AuditRecipe.build({"target": "m"}, settings)
        assert recipe.audit.engine.url == "http://host/v1"
        with pytest.raises(RecipeError, match="no server holds the model yet"):
            build_recipe(settings | {"method": {"name": "npo"}})
        with pytest.raises(ValidationError):
            AuditConfig(engine={"url": "http://host/v1", "modle": "x"})


def test_answers_are_generated_in_the_sets_named(machine):
    model, encoder = machine
    sets = {"forget": examples(3, 1), "holdout": examples(3, 2)}
    records = collect(model, encoder, sets, config=AuditConfig(max_new_tokens=4, generate=("forget",)))
    assert {item.set for item in records.generated} == {"forget"}
    assert {item.set for item in records.scored} == {"forget", "holdout"}
    assert not collect(model, encoder, sets, config=AuditConfig(generate=False)).generated
    with pytest.raises(RecipeError, match="no such set"):
        collect(model, encoder, sets, config=AuditConfig(generate=("forgot",)))
