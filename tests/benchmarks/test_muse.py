# SPDX-License-Identifier: Apache-2.0
"""MUSE: prompts, cuts and orientations worked by hand, and the published logs through the same metrics."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.audit import answers
from expunge.audit import collect as room
from expunge.audit.collect import collect
from expunge.audit.config import AuditConfig
from expunge.audit.metrics import compute_metrics
from expunge.audit.protocol import Continuation, Protocol
from expunge.audit.records import GeneratedItem, Records, ScoredItem
from expunge.benchmarks.base import get_benchmark
from expunge.benchmarks.muse import ANSWER, MUSE, VERBATIM, few_shot_prompt, forget_folds, nested_forget_sets, texts
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.errors import InputDataError, RecipeError
from expunge.models.loading import load_tokenizer
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.signals.stopping import Generation, cut_before

SHARED = Path(__file__).parents[2] / "../shared"
LOGS, DATA = SHARED / "data/muse_eval_logs/ga_klr", SHARED / "data/muse"
STORIES = SHARED / "weights/stories260K/hf"
ROLES = {
    "verbmem": "forget", "knowmem_f": "forget", "knowmem_r": "retain", "forget": "forget", "holdout": "holdout",
}  # fmt: skip
NEWS = Protocol("muse-news", "1", ROLES, members=("forget",))
BOOKS = Protocol("muse-books", "1", ROLES, members=("forget",))
CONFIG = AuditConfig(bootstrap=200, metrics=("verbmem", "knowmem_?", "privleak*", "membership.min_k.auc"))

# M1: token log-probabilities of two forget and two holdout texts; their Min-40% AUC is 0.75 for members.
FORGET = [[-0.1, -0.2, -0.1, -0.3, -0.2], [-1, -0.5, -2, -0.2, -0.3]]
HOLDOUT = [[-2, -3, -1, -0.5, -4], [-0.9, -0.1, -0.2, -1.2, -0.3]]


def scored(name, item, logp):
    return ScoredItem(
        set=name, id=str(item), subject="", variant="answer", variant_index=0, ids_hash=f"{name}{item}",
        logp=np.asarray(logp, dtype=np.float64), correct=np.ones(len(logp), bool), mu=np.zeros(len(logp)),
        sigma2=np.ones(len(logp)), ends_with_eos=False, zlib_bytes=9,
    )  # fmt: skip


def said(name, item, prediction, target):
    return GeneratedItem(
        set=name, id=str(item), subject="", prompt_variant="question", prediction=prediction, target=target,
        n_tokens=3, finished=True,
    )  # fmt: skip


def chunks(forget, holdout):
    return [scored("forget", i, row) for i, row in enumerate(forget)] + [
        scored("holdout", i, row) for i, row in enumerate(holdout)
    ]


def write(folder, name, value):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def data(tmp_path):
    """A corpus of a few rows in the published layout, without its membership chunks."""
    news = tmp_path / "news"
    write(news, "verbmem/forget.json", [{"prompt": "The boat left", "gt": " the harbour at dawn"}])
    for part in ("forget", "retain"):
        write(news, f"knowmem/{part}_qa.json", [{"question": f"Who is {part}?", "answer": "Ann"}])
        solved = [{"question": f"Q{i}?", "answer": f"A{i}"} for i in range(10)]
        write(news, f"knowmem/{part}_qa_icl.json", solved)
    write(news, "raw/forget.json", ["one text", "", "another text", "  "])
    for k in (2, 3, 4):
        write(news, f"sust/forget_{k}.json", [f"text {k} a", f"text {k} b", "another text"])
    return tmp_path


def test_prompt_of_knowmem_by_hand():
    solved = [Example(id="1", prompt="Where?", answer="Here"), Example(id="2", prompt="When?", answer="Now")]
    expected = "Question: Where?\nAnswer: Here\n\nQuestion: When?\nAnswer: Now\n\nQuestion: Who?\nAnswer: "
    assert few_shot_prompt(solved, "Who?") == expected


def test_sets_protocol_and_what_is_absent(data):
    assert get_benchmark("muse") is MUSE
    found = MUSE.load(data, split="news")
    assert {name: len(examples) for name, examples in found.sets.items()} == {
        "verbmem": 1, "knowmem_f": 1, "knowmem_r": 1,
    }  # fmt: skip
    assert found.protocol.name == "muse-news"
    assert found.protocol.continuation("verbmem") == VERBATIM == Continuation(128, (), 128)
    assert found.protocol.continuation("knowmem_r") == ANSWER
    assert Continuation(32, ("\n\n", "\nQuestion", "Question:")) == ANSWER
    asked = found.sets["knowmem_f"][0]
    assert (asked.kind, asked.answer) == ("completion", "Ann")
    assert asked.prompt.count("Question:") == 11
    assert asked.prompt.endswith("Question: Who is forget?\nAnswer: ")
    assert [note.split(" ")[0] for note in found.notes] == ["news/privleak/forget.json", "news/privleak/holdout.json"]
    assert found.audit_config(AuditConfig()).privleak_k == 0.4
    assert found.encoding == {"answer_eos": False}


def test_a_folder_without_the_files_and_an_unknown_corpus_are_refused(data, tmp_path):
    with pytest.raises(InputDataError, match="books"):
        MUSE.load(data, split="books")
    with pytest.raises(InputDataError, match="--data"):
        MUSE.load(None, split="news")
    with pytest.raises(RecipeError, match="news"):
        MUSE.load(data, split="new")


def test_rows_without_text_are_skipped_and_counted(data, caplog):
    with caplog.at_level(logging.WARNING):
        found = texts(data / "news/raw/forget.json", name="fold1")
    assert [(example.id, example.kind) for example in found] == [("fold1-1", "text"), ("fold1-3", "text")]
    assert "skipped 2 of 4 rows" in caplog.text
    write(data, "news/raw/forget.json", ["", " "])
    with pytest.raises(InputDataError, match="no text"):
        texts(data / "news/raw/forget.json", name="fold1")


def test_folds_and_their_unions(data):
    folds = forget_folds(data, "news")
    assert {name: len(found) for name, found in folds.items()} == {"fold1": 2, "fold2": 3, "fold3": 3, "fold4": 3}
    unions, note = nested_forget_sets(data, "news")
    assert [len(found) for found in unions.values()] == [2, 5, 8, 11]
    assert "union" in note
    for k in (2, 3, 4):
        write(data, f"news/scal/forget_{k}.json", [f"text {i}" for i in range(k)])
    published, note = nested_forget_sets(data, "news")
    assert [len(found) for found in published.values()] == [2, 2, 3, 4]
    assert note == ""
    (data / "news/sust/forget_3.json").unlink()
    with pytest.raises(InputDataError, match="forget_3"):
        forget_folds(data, "news")


def test_an_answer_is_cut_before_the_first_stop_string():
    stop = ANSWER.stop
    assert cut_before("Paris\n\nQuestion: Where?", stop) == ("Paris", True)
    assert cut_before("Paris\nQuestion: Where?\n\nx", stop) == ("Paris", True)
    assert cut_before("Paris Question: Where?", stop) == ("Paris ", True)
    assert cut_before("\n\nParis", stop) == ("", True)
    assert cut_before("Paris\nin France", stop) == ("Paris\nin France", False)
    assert cut_before("Paris", ()) == ("Paris", False)


@pytest.fixture(scope="module")
def machine():
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(["the boat left the harbour at dawn Question: Answer:"] * 4, vocab_size=300)
    return build_llama(len(tokenizer), hidden_size=32, layers=1, heads=2, context=128), tokenizer


def test_every_set_is_continued_as_its_protocol_says(machine, monkeypatch):
    model, tokenizer = machine
    encoder = Encoder(tokenizer, template="raw", max_length=128, answer_eos=False)
    asked = []

    def generate(model, tokenizer, prompts, *, max_new_tokens, stop, **options):
        texts = [tokenizer.decode(ids) for ids in prompts]
        asked.extend(zip(texts, max_new_tokens, stop, strict=True))
        ids = tuple(tokenizer(" left\n\n the boat")["input_ids"])
        return [Generation(ids, "left\n\n the boat", False) for _ in prompts]

    monkeypatch.setattr(answers, "generate", generate)
    examples = [Example(id=str(i), prompt=p, answer=" the harbour at dawn", kind="completion")
                for i, p in enumerate(("the boat", "the boat", "a boat"))]  # fmt: skip
    sets = {"verbmem": examples, "knowmem_f": examples[1:], "plain": examples[:1]}
    rules = {"verbmem": Continuation(9, target_tokens=3), "knowmem_f": Continuation(4, stop=("\n\n",))}
    protocol = Protocol("test", "1", dict.fromkeys(sets, "forget"), continuations=rules)
    records = collect(
        model, encoder, sets, config=AuditConfig(max_new_tokens=4, batch_tokens=500), protocol=protocol
    )  # fmt: skip
    # Each prompt is continued once, for the set that wants most of it, to the end where not all stop alike.
    assert asked == [("the boat", 9, ()), ("a boat", 9, ())]
    found = {(item.set, item.id): item for item in records.generated}
    three = tokenizer.decode(tokenizer(" the harbour at dawn")["input_ids"][:3])
    assert found["verbmem", "0"].target == three != examples[0].answer
    assert (found["verbmem", "0"].prediction, found["verbmem", "0"].finished) == ("left\n\n the boat", False)
    assert (found["knowmem_f", "2"].prediction, found["knowmem_f", "2"].finished) == ("left", True)
    assert found["plain", "0"].prediction == "left\n\n the"  # four tokens
    assert records.meta["counts"]["unique_prompts"] == 2
    assert records.meta["protocol"]["continuations"]["knowmem_f"]["stop"] == ("\n\n",)


@pytest.mark.real
@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260K weights are not beside the checkout")
def test_the_start_token_counts_in_the_cut_of_the_target():
    encoder = Encoder(load_tokenizer(STORIES), template="raw", max_length=512)
    text = "Once upon a time, there was a little girl named Lily."  # W1: 16 ids, the start token among them
    ids = encoder.tokenizer(text)["input_ids"]
    assert len(ids) == 16
    assert ids[0] == encoder.tokenizer.bos_token_id
    assert room._cut_target(text, 16, encoder) == text
    assert room._cut_target(text, 15, encoder) == text.removesuffix(".")
    assert room._cut_target(text, None, encoder) == text


def test_verbmem_and_knowmem_do_not_stem():  # T6
    target, words = "the cats are sitting on the mat", "the cat sat on a mat"
    records = Records([], [said(name, i, words, target) for name in ("verbmem", "knowmem_f") for i in range(3)])
    for compat, expected in (("fixed", 0.4615385), ("muse", 0.4615385), ("openunlearning", 0.6153846)):
        found = compute_metrics(records, protocol=NEWS, config=CONFIG.model_copy(update={"compat": compat}))
        assert found["verbmem"].value == pytest.approx(expected)
        assert (found["knowmem_f"].value, found["knowmem_f"].compat) == (pytest.approx(expected), compat)
    assert found["knowmem_r"].value is None
    assert "knowmem_r" in found["knowmem_r"].reason
    assert (found["verbmem"].direction, found["knowmem_r"].direction) == ("lower", "higher")


def test_leakage_in_both_orientations_against_the_published_and_a_measured_retrain():  # M1, M2
    ours = Records(chunks(FORGET, HOLDOUT), [])
    half = Records(chunks([[-1] * 5] * 2, [[-1] * 5] * 2), [])  # nothing tells the two sides apart
    expected = {"fixed": (-47.6110645, -50), "muse": (-47.6110645, -50), "paper": (43.4583014, 50)}
    for compat, (published, measured) in expected.items():
        config = CONFIG.model_copy(update={"compat": compat})
        found = compute_metrics(ours, protocol=NEWS, config=config, reference=half)
        assert found["privleak_published"].value == pytest.approx(published, abs=1e-6)
        assert found["privleak"].value == pytest.approx(measured)
        assert "published" in found["privleak_published"].reference
        assert "0.4772" in found["privleak_published"].reference
    assert found["membership.min_k.auc"].value == pytest.approx(0.75)
    alone = compute_metrics(ours, protocol=NEWS, config=CONFIG)
    assert alone["privleak"].value is None
    assert "reference" in alone["privleak"].reason


@pytest.mark.parametrize(("protocol", "auc", "expected"), [
    (NEWS, 1, -100), (NEWS, 0, 109.5557418), (BOOKS, 1, -100), (BOOKS, 0, 85.4255516),
])  # fmt: skip
def test_leakage_at_both_ends(protocol, auc, expected):  # M2
    high, low = [[-0.1] * 5] * 2, [[-3.0] * 5] * 2
    records = Records(chunks(high, low) if auc else chunks(low, high), [])
    found = compute_metrics(records, protocol=protocol, config=CONFIG)
    assert found["privleak_published"].value == pytest.approx(expected, abs=1e-6)


def test_no_leakage_where_it_has_no_meaning():  # M3
    short = Records(chunks([[-1, -2]] * 2, [[-1, -2]] * 2), [])
    config = CONFIG.model_copy(update={"compat": "muse"})
    assert "tokens" in compute_metrics(short, protocol=NEWS, config=config)["privleak_published"].reason
    other = CONFIG.model_copy(update={"privleak_k": 0.2})
    found = compute_metrics(Records(chunks(FORGET, HOLDOUT), []), protocol=NEWS, config=other)
    assert found["privleak_published"].value is None
    assert "Min-40%" in found["privleak_published"].reason


def test_only_chunks_are_members_and_only_muse_has_its_metrics():
    far = [scored(name, 0, [-9.0] * 5) for name in ("verbmem", "knowmem_f")]
    records = Records([*chunks(FORGET, HOLDOUT), *far], [])
    assert compute_metrics(records, protocol=NEWS, config=CONFIG)["membership.min_k.auc"].value == pytest.approx(0.75)
    pooled = Protocol("other", "1", ROLES)
    config = CONFIG.model_copy(update={"metrics": ("*",)})
    found = compute_metrics(records, protocol=pooled, config=config)
    assert found["membership.min_k.auc"].value < 0.75
    assert not {"verbmem", "knowmem_f", "knowmem_r", "privleak_published"} & set(found)


@pytest.mark.real
@pytest.mark.skipif(not LOGS.is_dir(), reason="the MUSE logs are not beside the checkout")
def test_published_logs_give_the_published_numbers():
    items, totals = [], {}
    for name, key in (("verbmem", "verbmem_f"), ("knowmem_f", "knowmem_f"), ("knowmem_r", "knowmem_r")):
        log = json.loads((LOGS / key / "log.json").read_text())
        items += [said(name, i, entry["response"], entry["gt"]) for i, entry in enumerate(log)]
        totals[name] = json.loads((LOGS / key / "agg.json").read_text())
    scores = json.loads((LOGS / "privleak/log_scores_only.json").read_text())
    sides = [[[-entry["Min-40%"]] for entry in scores[name]] for name in ("forget", "holdout")]
    records = Records(chunks(*sides), items)
    found = compute_metrics(records, protocol=BOOKS, config=CONFIG.model_copy(update={"bootstrap": 4000}))
    for name, total in totals.items():
        assert found[name].value == pytest.approx(total["mean_rougeL"], rel=1e-9)
        assert found[name].ci_low == pytest.approx(total["rougeL_ci_lo"], abs=5e-3)
        assert found[name].ci_high == pytest.approx(total["rougeL_ci_hi"], abs=5e-3)
    assert found["privleak_published"].value == pytest.approx(100 * (0.3349 - 0.5393) / 0.5393, rel=1e-9)


@pytest.mark.real
@pytest.mark.skipif(not (LOGS.is_dir() and DATA.is_dir()), reason="the MUSE files are not beside the checkout")
def test_prompts_equal_the_published_ones():
    found = MUSE.load(DATA, split="books")
    for name, key in (("knowmem_f", "knowmem_f"), ("knowmem_r", "knowmem_r")):
        log = json.loads((LOGS / key / "log.json").read_text())
        assert [example.prompt for example in found.sets[name]] == [entry["prompt"] for entry in log]
        assert [example.answer for example in found.sets[name]] == [entry["gt"] for entry in log]
    assert len(found.notes) == 3


@pytest.mark.real
@pytest.mark.skipif(not (DATA.is_dir() and STORIES.is_dir()), reason="the MUSE files are not beside the checkout")
def test_news_in_numbers():
    found = MUSE.load(DATA, split="news")
    assert {len(examples) for examples in found.sets.values()} == {100}
    assert not found.notes
    folds = forget_folds(DATA, "news")
    assert [len(fold) for fold in folds.values()] == [888, 889, 889, 887]
    tokenizer = load_tokenizer(STORIES)
    encoder = Encoder(tokenizer, template=found.template, max_length=1 << 20, **found.encoding)
    rows = encoder.encode_many(found.sets["verbmem"], where="verbmem")
    counts = [row.encoded.n_labels for row in rows]
    assert sum(counts) == 30153
    assert not any(row.encoded.ends_with_eos for row in rows)
    assert sum(row.encoded.n_labels for row in encoder.encode_many(folds["fold1"][:50], where="fold1")) > 50_000
