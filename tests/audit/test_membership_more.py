# SPDX-License-Identifier: Apache-2.0
"""Attacks by gradient norm and by neighbours, the test on texts alone, and rates that n cannot resolve."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from audit_records import full_records, scored
from scipy import optimize
from torch import nn

from expunge.audit import collect as room
from expunge.audit import extra, membership, text_only
from expunge.audit.collect import collect
from expunge.audit.columns import View
from expunge.audit.config import AuditConfig
from expunge.audit.document import AuditDocument, estimates, model_entry, read_audit, write_json
from expunge.audit.measure import Measurer
from expunge.audit.metrics import compute_metrics
from expunge.audit.neighbours import neighbour_texts, vocabulary
from expunge.audit.policy import Bound, Policy
from expunge.audit.protocol import Protocol, default_protocol
from expunge.audit.records import Records
from expunge.audit.statistics import Unavailable, auc, clopper_pearson
from expunge.audit.store import read_records, write_records
from expunge.data.encoding import IGNORE, Encoder
from expunge.data.examples import Example
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.report import render, view_from_audit
from expunge.report.metrics import describe, key_metrics

CONFIG = AuditConfig(max_new_tokens=12, batch_tokens=600, bootstrap=200)
MORE = CONFIG.model_copy(update={"gradient_norm": True, "neighbours": 3, "lowercase": True})
PROTOCOL = Protocol("test", "1", {"forget": "forget", "holdout": "holdout"})
NAMES = ("Ann", "Bob", "Cid", "Dot", "Eve", "Fay", "Gus", "Hal")


def example(number, place):
    name = NAMES[number]
    return Example(
        id=f"q{number}", prompt=f"Where does {name} live now?", subject=f"s{number}",
        answer=f"{name} lives in the old town of {place}, near the river.",
    )  # fmt: skip


SETS = {
    "forget": [example(i, "Lisbon") for i in range(4)],
    "retain": [example(0, "Lisbon"), example(4, "Rome")],
    "holdout": [example(i, "Oslo") for i in range(4, 8)],
}
TEXTS = {
    "forget": [Example(id="a", prompt="", answer="the long story of the boat and the tree " * 8, kind="text")],
    "holdout": [Example(id="b", prompt="", answer="A short story of the hill.", kind="text")],
}


@pytest.fixture(scope="module")
def machine():
    torch.set_num_threads(1)
    texts = [e.prompt + e.answer for sets in (SETS, TEXTS) for found in sets.values() for e in found]
    tokenizer = build_tokenizer(texts, vocab_size=400)
    model = build_llama(len(tokenizer), hidden_size=32, layers=1, context=128)
    return model, Encoder(tokenizer, template="question", max_length=64)


@pytest.fixture(scope="module")
def more(machine):
    return collect(*machine, SETS, config=MORE)


def by_variant(records, variant):
    return [item for item in records.scored if item.variant == variant]


# The pass


def test_by_default_no_gradient_is_taken_and_nothing_more_is_scored(machine, more, monkeypatch):
    calls = {"score": 0, "answers_to": 0}
    real = {"score": room.score, "answers_to": room.answers_to}
    for name in calls:
        monkeypatch.setattr(room, name, _counting(calls, name, real[name]))
    monkeypatch.setattr(extra, "gradient_norms", lambda *args, **options: pytest.fail("a backward"))
    plain = collect(*machine, SETS, config=CONFIG)
    assert calls == {"score": 1, "answers_to": 1}
    assert {item.variant for item in plain.scored} == {"answer"}
    assert {item.prompt_variant for item in plain.generated} == {"question"}
    assert "backwards" not in plain.meta["counts"]
    assert all(item.gradient_norm is None and item.gradient_norm_mean is None for item in plain.scored)
    for before, after in zip(plain.scored, by_variant(more, "answer"), strict=True):
        np.testing.assert_allclose(before.logp, after.logp, atol=1e-5)
        assert before.text_score == after.text_score


def _counting(calls, name, function):
    def counted(*args, **options):
        calls[name] += 1
        return function(*args, **options)

    return counted


def naive_norms(model, encoded, *, drop_last):
    """One backward on full logits: L2 norm over all weights, and mean of the norms of the tensors."""
    labels = list(encoded.labels)
    if drop_last or encoded.ends_with_eos:
        labels[-1] = IGNORE
    model.eval()
    logits = model(input_ids=torch.tensor([encoded.ids])).logits[0, :-1]
    loss = nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), ignore_index=IGNORE)
    norms = torch.stack([g.norm() for g in torch.autograd.grad(loss, list(model.parameters()))])
    return float(norms.norm()), float(norms.mean())


@pytest.mark.parametrize("sets", [SETS, TEXTS], ids=["questions", "texts"])
def test_gradient_norms_in_the_records_equal_the_naive_ones(machine, sets):
    model, encoder = machine
    records = collect(model, encoder, sets, config=MORE)
    items = {(i.set, i.id): i for i in by_variant(records, "answer")}
    backwards = 0
    for name in ("forget", "holdout"):
        for row in encoder.encode_many(sets[name], where=name):
            found = sets[name][row.index]
            item = items[name, f"{found.id}#{row.chunk}" if found.kind == "text" else found.id]
            assert item.gradient_norm == pytest.approx(naive_norms(model, row.encoded, drop_last=False)[0], rel=1e-3)
            mean = naive_norms(model, row.encoded, drop_last=True)[1]
            assert item.gradient_norm_mean == pytest.approx(mean, rel=1e-3)
            assert membership.gradient_score(item) == -item.gradient_norm
            assert membership.gradient_score(item, compat="openunlearning") == -item.gradient_norm_mean
            backwards += 1 if row.encoded.ends_with_eos else 2
    assert records.meta["counts"]["backwards"] == backwards
    assert all(i.gradient_norm is None for i in records.scored if i.set == "retain" or i.variant != "answer")


def test_progress_tells_the_gradients(machine):
    told = []
    records = collect(*machine, SETS, config=MORE, progress=lambda *args: told.append(args))
    assert [entry for entry in told if entry[0] == "gradients"][-1][1:] == (records.meta["counts"]["backwards"],) * 2


def test_neighbours_are_scored_for_both_sides_in_the_same_pass(machine, more):
    found = by_variant(more, "neighbour")
    assert {(i.set, i.id, i.variant_index) for i in found} == {
        (name, e.id, k) for name in ("forget", "holdout") for e in SETS[name] for k in range(3)
    }
    again = collect(*machine, SETS, config=MORE)
    assert [i.ids_hash for i in by_variant(again, "neighbour")] == [i.ids_hash for i in found]
    other = collect(*machine, SETS, config=MORE.model_copy(update={"seed": 1}))
    assert [i.ids_hash for i in by_variant(other, "neighbour")] != [i.ids_hash for i in found]


def test_copies_that_need_more_tokens_do_not_stop_the_audit(machine):
    model, encoder = machine
    longest = max(len(encoder.encode(e).ids) for e in SETS["forget"])
    tight = Encoder(encoder.tokenizer, template="question", max_length=longest)
    sets = {"forget": SETS["forget"], "holdout": [Example(id="x", prompt="?", answer="Extraordinarily of the")]}
    records = collect(model, tight, sets, config=MORE.model_copy(update={"neighbours": 30}))
    assert len(by_variant(records, "neighbour")) == 30 * 5


def test_attacks_equal_a_direct_computation(machine, more):
    view = View(more)
    found = {a: membership.attack_column(view, "forget", a, k=0.2, reference=view) for a in membership.ATTACKS}
    lowered = {i.id: i for i in by_variant(more, "lowercase") if i.set == "forget"}
    for place, item in enumerate(i for i in by_variant(more, "answer") if i.set == "forget"):
        loss = -float(np.mean(item.logp[:-1]))  # the end-of-sequence token left out
        near = [n for n in by_variant(more, "neighbour") if (n.set, n.id) == ("forget", item.id)]
        by_hand = {
            "neighbourhood": np.mean([-np.mean(n.logp[:-1]) for n in near]) - loss,
            "lowercase": -np.mean(lowered[item.id].logp[:-1]) / loss,
            "reference": 0.0,
            "gradient_norm": -item.gradient_norm,
            "loss": -loss,
        }
        for attack, value in by_hand.items():
            assert found[attack].values[place] == pytest.approx(value, abs=1e-5), attack


def test_every_attack_has_its_metrics_and_reasons_without_input():
    records = full_records(0, n=24)
    bare = [
        dataclasses.replace(i, gradient_norm=None, gradient_norm_mean=None, text_score=None)
        for i in records.scored
        if i.variant not in ("neighbour", "lowercase")
    ]
    config = CONFIG.model_copy(update={"metrics": ("membership.*",)})
    roles = Protocol("t", "1", {n: n for n in ("forget", "retain", "holdout")} | {"facts": "options"})
    found = compute_metrics(Records(bare, []), protocol=roles, config=config)
    for attack, word in (
        ("gradient_norm", "gradient_norm"), ("neighbourhood", "neighbour"), ("lowercase", "lowercase"),
        ("reference", "reference"), ("text_only", "two subjects"),
    ):  # fmt: skip
        entry = found[f"membership.{attack}.auc"]
        assert entry.value is None
        assert word in entry.reason
        assert not entry.caveat
    full = compute_metrics(records, protocol=roles, config=config, reference=records)
    assert full["membership.gradient_norm.auc"].value is not None
    assert full["membership.neighbourhood.auc"].n == 48
    other = compute_metrics(records, protocol=roles, config=config.model_copy(update={"compat": "openunlearning"}))
    assert other["membership.gradient_norm.auc"].compat == "openunlearning"
    assert other["membership.gradient_norm.auc"].value != full["membership.gradient_norm.auc"].value
    assert other["membership.neighbourhood.auc"].compat == "fixed"


def test_a_gradient_that_is_no_number_fails_and_names_the_item():
    item = dataclasses.replace(scored("forget", "broken", [-1.0]), gradient_norm=float("nan"))
    with pytest.raises(ValueError, match="forget/broken"):
        membership.attack_column(View(Records([item], [])), "forget", "gradient_norm", k=0.2)


def test_one_token_answers(machine):
    model, encoder = machine
    bare = Encoder(encoder.tokenizer, template="question", max_length=64, answer_eos=False)
    sets = {n: [Example(id=f"{n}{i}", prompt=f"Who {i}?", answer="") for i in (1, 2)] for n in ("forget", "holdout")}
    records = collect(model, bare, sets, config=MORE)
    answers = by_variant(records, "answer")
    assert [len(i.logp) for i in answers] == [1] * 4
    assert all(i.gradient_norm > 0 and i.gradient_norm_mean is None for i in answers)
    assert by_variant(records, "neighbour") == []  # nothing to replace in an empty text
    found = membership_of(records)
    assert found["membership.gradient_norm.auc"].value == 0.5  # the same two texts on both sides
    assert "neighbour" in found["membership.neighbourhood.auc"].reason
    other = compute_metrics(records, protocol=PROTOCOL, config=CONFIG.model_copy(update={"compat": "openunlearning"}))
    assert other["membership.gradient_norm.auc"].value is None
    assert other["membership.loss.auc"].value == 0.5
    ended = collect(model, encoder, sets, config=MORE)
    only_end = [dataclasses.replace(i, logp=i.logp[-1:]) for i in by_variant(ended, "answer")]
    assert "beside its last one" in membership_of(Records(only_end, []))["membership.loss.auc"].reason


def test_records_and_their_key_know_what_was_asked(machine, more, tmp_path):
    kept = read_records(write_records(more, tmp_path / "more"))
    for one, two in zip(more.scored, kept.scored, strict=True):
        for field in ("gradient_norm", "gradient_norm_mean", "text_score"):
            assert getattr(one, field) == getattr(two, field)
    plain = collect(*machine, {"forget": SETS["forget"]}, config=CONFIG)
    assert read_records(write_records(plain, tmp_path / "plain")).scored[0].text_score is None

    def key(**changes):
        config = CONFIG.model_copy(update=changes)
        return Measurer(machine[1], SETS, config, default_protocol(SETS)).key("digest", "float32")

    asked = [key(), key(gradient_norm=True), key(neighbours=2), key(neighbours=2, seed=1), key(extraction_prefixes=3)]
    assert len(set(asked)) == len(asked)
    assert key(seed=1) == key() == key(extraction_samples=7, min_k=0.3)


# Neighbours


def test_neighbours_keep_everything_but_a_tenth_of_the_words():
    text = "Ann was born in 1987, in Lisbon; she wrote (with Bob) 12 books on the sea and on the old boats there."
    known = vocabulary([text, "Cid saw 3 ships in Rome"])
    words = text.replace(",", " ").split()
    for other in neighbour_texts(text, known, 20, seed=0):
        assert other != text
        changed = [(a, b) for a, b in zip(words, other.replace(",", " ").split(), strict=True) if a != b]
        assert len(changed) == 2  # a tenth of 22
        for a, b in changed:
            assert a[:1].isupper() == b[:1].isupper()
            assert a.strip("();.").isdigit() == b.strip("();.").isdigit()
    assert neighbour_texts(text, known, 5, seed=3) == neighbour_texts(text, known, 5, seed=3)
    assert neighbour_texts(text, known, 5, seed=3) != neighbour_texts(text, known, 5, seed=4)


@pytest.mark.parametrize("text", ["", " ?!", "alone"])
def test_texts_without_a_substitute_have_no_neighbours(text):
    assert neighbour_texts(text, vocabulary([text]), 4, seed=0) == []


def test_substitutes_are_drawn_as_often_as_they_occur_and_never_the_word_itself():
    known = vocabulary(["a a a a a a b b b c"])["lower"]
    rng = np.random.default_rng(0)
    for word, shares in (
        ("a", {"b": 0.75, "c": 0.25}),
        ("b", {"a": 6 / 7, "c": 1 / 7}),
        ("c", {"a": 2 / 3, "b": 1 / 3}),
    ):
        drawn = [known.other(word, rng) for _ in range(4000)]
        assert set(drawn) == set(shares)
        for other, share in shares.items():
            assert drawn.count(other) / 4000 == pytest.approx(share, abs=0.03)


# Texts alone


def pool(rng, n, extra=()):
    words = np.array([f"w{i}" for i in range(60)])
    return [" ".join([*rng.choice(words, 12), *rng.choice([*extra, "x"], 2)]) for _ in range(n)]


def test_different_texts_are_told_apart_and_alike_ones_are_not():
    rng = np.random.default_rng(0)
    side = np.repeat([True, False], 60)
    subjects = [f"{s}{i % 12}" for i, s in enumerate(side)]
    apart = text_only.text_scores([*pool(rng, 60, ("red", "blue")), *pool(rng, 60)], side, subjects)
    assert auc(apart[side], apart[~side]) > 0.85
    alike = [
        auc(scores[side], scores[~side])
        for scores in (text_only.text_scores(pool(rng, 120), side, subjects) for _ in range(10))
    ]
    assert np.mean(alike) == pytest.approx(0.5, abs=0.08)


def test_a_subject_is_never_scored_by_a_classifier_that_saw_it():
    """A word that marks one subject alone cannot help: were it seen in fitting, the AUC would be 1."""
    side = np.repeat([True, False], 40)
    subjects = [f"subject{i // 4}" for i in range(80)]
    marked = [f"{subject} {subject}mark" for subject in subjects]
    scores = text_only.text_scores(marked, side, subjects)
    assert auc(scores[side], scores[~side]) == pytest.approx(0.5, abs=0.1)


def test_subjects_in_both_sets_stay_in_one_fold():
    side = np.array([True] * 6 + [False] * 6)
    subjects = [f"p{i % 3}" for i in range(12)]
    folds = text_only._folds(side, subjects)
    assert all(len({f for f, s in zip(folds, subjects, strict=True) if s == name}) == 1 for name in set(subjects))


def test_the_fit_is_the_minimum_that_a_plain_dense_search_finds():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(30, 4))
    side = rows[:, 0] + rng.normal(size=30) > -0.4
    sign, share = np.where(side, 1, -1), np.where(side, 0.5 / side.sum(), 0.5 / (~side).sum())

    def loss(x):
        fit = sum(s * np.log1p(np.exp(-y * (row @ x[:4] + x[4]))) for s, y, row in zip(share, sign, rows, strict=True))
        return fit + x[:4] @ x[:4] / 60

    weights, intercept = text_only.fit(rows, side)
    slow = optimize.minimize(
        loss, np.zeros(5), method="Nelder-Mead", options={"xatol": 1e-8, "maxiter": 9000, "maxfev": 9000}
    )
    assert loss(np.append(weights, intercept)) == pytest.approx(slow.fun, abs=1e-6)


def test_features_are_the_grams_of_the_text():
    rows = text_only.features(["a b", "b a", "", "a b a b a b"]).toarray()
    assert [int((row > 0).sum()) for row in rows] == [4, 4, 1, 5]  # length, words, pairs
    np.testing.assert_allclose((rows**2).sum(axis=1), 1.0)
    assert (rows[0] > 0).tolist() != (rows[1] > 0).tolist()


@pytest.mark.parametrize(
    ("forget", "subjects"),
    [
        ([], []),
        ([True], ["a"]),
        ([True, True, False, False], ["a", "a", "b", "c"]),
        ([True, False] * 2, ["a", "b"] * 2),
    ],
)
def test_too_few_subjects_give_no_score(forget, subjects):
    with pytest.raises(Unavailable, match="two subjects"):
        text_only.text_scores(["t"] * len(forget), forget, subjects)


# The verdict


def records_with(scores_forget, scores_holdout):
    rng = np.random.default_rng(5)
    items = []
    for name, values in (("forget", scores_forget), ("holdout", scores_holdout)):
        for i, value in enumerate(values):
            item = scored(name, f"q{i}", -rng.exponential(1.0, 6), subject=f"{name}{i // 2}")
            items.append(dataclasses.replace(item, text_score=float(value)))
    return Records(items, [])


def membership_of(records, metrics=("membership.*",)):
    return compute_metrics(records, protocol=PROTOCOL, config=CONFIG.model_copy(update={"metrics": metrics}))


def test_sets_that_differ_as_texts_make_every_membership_number_no_evidence(tmp_path):
    rng = np.random.default_rng(0)
    found = membership_of(records_with(rng.normal(2, 1, 120), rng.normal(0, 1, 120)))
    verdict = found["membership.text_only.auc"]
    assert verdict.value > 0.85
    assert not verdict.caveat
    doubted = {name for name, entry in found.items() if entry.caveat}
    assert doubted == {n for n, entry in found.items() if entry.value is not None} - {"membership.text_only.auc"}
    assert {"membership.loss.auc", "membership.loss.tpr_at_1pct_fpr"} <= doubted
    caveat = found["membership.loss.auc"].caveat
    assert "not evidence" in caveat
    assert f"AUC {verdict.value:.2f}" in caveat
    assert estimates(model_entry(found)) == found
    path = write_json(AuditDocument(models={"m": model_entry(found, role="method")}), tmp_path / "audit.json")
    plain = json.loads(path.read_text())["models"]["m"]["metrics"]
    assert plain["membership.loss.auc"]["caveat"] == caveat
    assert "caveat" not in plain["membership.text_only.auc"]
    assert read_audit(path).models["m"].metrics["membership.loss.auc"].caveat == caveat


def test_alike_sets_leave_the_numbers_alone():
    rng = np.random.default_rng(0)
    found = membership_of(records_with(rng.normal(0, 1, 120), rng.normal(0, 1, 120)))
    assert not any(entry.caveat for entry in found.values())
    over = membership_of(records_with(rng.normal(-2, 1, 120), rng.normal(0, 1, 120)))
    assert not any(entry.caveat for entry in over.values())


def test_a_few_subjects_cannot_show_that_sets_differ():
    """Three subjects a side, perfectly apart, have a bootstrap interval of [1, 1] and yet happen by chance."""
    few = membership_of(records_with([2.0] * 6, [1.0] * 6))
    assert few["membership.text_only.auc"].ci_low == 1.0
    assert not few["membership.loss.auc"].caveat
    enough = membership_of(records_with([2.0] * 10, [1.0] * 10))
    assert enough["membership.loss.auc"].caveat


def test_a_policy_does_not_rely_on_what_is_no_evidence():
    rng = np.random.default_rng(0)
    policy = Policy(bounds={"membership.loss.auc": Bound(max=0.99)})
    apart = policy.check(membership_of(records_with(rng.normal(2, 1, 120), rng.normal(0, 1, 120))))[0]
    assert (apart.measured, apart.met) == (None, False)
    alike = policy.check(membership_of(records_with(rng.normal(0, 1, 120), rng.normal(0, 1, 120))))[0]
    assert alike.met


def test_the_report_says_so_and_does_not_lead_with_it():
    rng = np.random.default_rng(0)
    documents = {
        shift: AuditDocument(
            models={
                "m": model_entry(
                    membership_of(records_with(rng.normal(shift, 1, 120), rng.normal(0, 1, 120))), role="method"
                )
            }
        )
        for shift in (0, 2)
    }
    views = {s: view_from_audit(d.model_dump(mode="json"), title="t") for s, d in documents.items()}
    assert "membership.min_k.auc" in key_metrics(views[0])
    assert "membership.min_k.auc" not in key_metrics(views[2])
    pages = {shift: render(view) for shift, view in views.items()}
    assert "not evidence" not in pages[0]
    assert pages[2].count("<small>not evidence<sup>") == sum(
        bool(e.get("caveat")) for e in views[2].models["m"].metrics.values()
    )
    assert "Membership numbers are not evidence of membership" in pages[2]
    assert describe("membership.text_only.auc").title == "AUC of the texts alone"
    assert describe("membership.gradient_norm.auc").title == "Gradient-norm membership AUC"
    assert describe("membership.neighbourhood.auc").title == "Neighbourhood membership AUC"


def test_collected_text_scores_are_those_of_prompt_and_answer(machine, more):
    found = {(i.set, i.id): i.text_score for i in by_variant(more, "answer")}
    both = [(name, e) for name in ("forget", "holdout") for e in SETS[name]]
    texts = [f"{e.prompt}\n{e.answer}" for _, e in both]
    slow = text_only.text_scores(texts, [name == "forget" for name, _ in both], [e.subject for _, e in both])
    np.testing.assert_allclose([found[name, e.id] for name, e in both], slow)
    assert found["retain", "q0"] is None


# TPR at FPR


def test_tpr_metric_refuses_99_holdout_items_and_gives_the_exact_interval_at_100():
    def records(n):
        items = [scored("forget", f"f{i}", [-0.01 * i]) for i in range(50)]
        return Records([*items, *(scored("holdout", f"h{i}", [-0.005 - 0.01 * i]) for i in range(n))], [])

    name = "membership.loss.tpr_at_1pct_fpr"
    few = membership_of(records(99), (name,))[name]
    assert few.value is None
    assert "100 are needed" in few.reason
    enough = membership_of(records(100), (name,))[name]
    # The second holdout score is -0.015: f0 and f1 lie above it.
    assert (enough.value, (enough.ci_low, enough.ci_high)) == (2 / 50, clopper_pearson(2, 50))
    none = membership_of(Records([scored("holdout", f"h{i}", [-1.0]) for i in range(100)], []), (name,))[name]
    assert none.value is None
