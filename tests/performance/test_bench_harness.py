# SPDX-License-Identifier: Apache-2.0
"""The benchmark counts what runs, refuses unequal numbers, and its two sides agree on a tiny model."""

from __future__ import annotations

import json
import math
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.counting import counted
from benchmarks.figures import write_figures
from benchmarks.measure import Peak, Ratio, Unequal, apart, largest_loss_difference, largest_metric_difference, speedup
from benchmarks.page import write_page
from benchmarks.plain_audit import PlainAudit
from benchmarks.profiling import kind
from benchmarks.scale import slope
from benchmarks.settings import ALL_METRICS, Job, Moment, TrainingLog
from benchmarks.sizes import ANSWERS, FULL, QUESTIONS, QUICK, Sizes, length
from benchmarks.workload import Workload, build_workload, open_workload, token_counts, words
from torch.nn import functional

from benchmarks import ours, plain_training
from expunge.models.tiny import build_llama

ROOT = Path(__file__).resolve().parents[2]
TINY = QUICK.changed(
    layers=3, width=32, heads=2, intermediate=48, vocabulary=300, prompt=12, question=6, answer=6, forget=4, retain=4,
    authors=2, facts=2, holdout=4, batch=2, epochs=2, read=2, generated=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return build_workload(tmp_path_factory.mktemp("workload"), TINY)


def test_a_ratio_is_taken_pair_by_pair() -> None:
    assert Ratio.of([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == Ratio(1.0, 2.0, 3.0)
    found = speedup([Moment(1, 2), Moment(1, 1)], [Moment(3, 4), Moment(2, 5)])
    assert found == {"cpu": [2.0, 3.5, 5.0], "wall": [2.0, 2.5, 3.0]}


def test_steps_are_timed_without_the_first() -> None:
    stamps = [Moment(5, 5), Moment(6, 7), Moment(9, 8), Moment(11, 9.5)]
    log = TrainingLog([0.0] * 4, stamps, Moment(1, 1), Moment(12, 10))
    assert log.step == Moment(2, 1.5)
    assert log.whole == Moment(11, 9)


def test_unequal_numbers_have_no_ratio() -> None:
    assert largest_loss_difference([2.0, -4.0], [2.0, -4.00002]) == pytest.approx(5e-6, rel=1e-3)
    assert largest_metric_difference({"a": 0.5}, {"a": 0.50005}) == pytest.approx(5e-5)
    for first, second in (([1.0], [1.0001]), ([1.0, 1.0], [1.0]), ([math.nan], [1.0])):
        with pytest.raises(Unequal):
            largest_loss_difference(first, second)
    for other in ({"a": 0.5002}, {"b": 0.5}, {"a": math.nan}):
        with pytest.raises(Unequal):
            largest_metric_difference({"a": 0.5}, other)


def test_counted_work_of_a_step_is_what_was_run() -> None:
    model = build_llama(300, hidden_size=32, layers=3, heads=2, context=64)
    ids = torch.arange(2 * 7).view(2, 7)
    with counted(model) as work:
        with torch.no_grad():
            model.model(ids)
        model(ids, labels=ids).loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    parameters = sum(p.numel() for p in model.parameters())
    assert (work.forwarded, work.trained, work.blocks) == (14 * 3, 14 * 3, 14 * 3 + 3 * 14 * 3)
    assert (work.logits, work.trained_logits, work.forwards) == (0, 14, 2)
    assert (work.updated, work.graded) == (parameters, parameters)
    model(ids)
    assert work.forwards == 2


def test_texts_have_the_lengths_asked_for(workload: Workload) -> None:
    _, tokenizer = workload.load()
    assert len(set(words(7000))) == 7000
    most, template = TINY.longest, TINY.prompt - TINY.question
    for row in workload.rows("forget"):
        for answer in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]):
            both = plain_training.tokenised(tokenizer, row["question"], answer)
            said = int((both["labels"] != -100).sum())
            assert 2 <= said <= most[1]
            assert template + 3 <= len(both["labels"]) - said <= most[0]
        assert row["question"].split()[: template - 2] == workload.rows("retain")[0]["question"].split()[: template - 2]
    assert token_counts(workload, tokenizer).keys() == {"prompt", "answer"}
    assert open_workload(workload.folder) == workload


def test_the_plain_likelihood_is_that_of_the_definition(workload: Workload) -> None:
    model, tokenizer = workload.load()
    row = workload.rows("forget")[0]
    one = plain_training.tokenised(tokenizer, row["question"], row["answer"])
    logp = functional.log_softmax(model(one["input_ids"][None]).logits[0].detach(), -1)
    start = int((one["labels"] == -100).sum())
    wanted = -sum(float(logp[t - 1, one["input_ids"][t]]) for t in range(start, len(one["input_ids"])))
    short = plain_training.tokenised(tokenizer, "bababa", row["answer"].split()[0])
    batch = plain_training.collated([short, one], tokenizer.pad_token_id)
    assert float(plain_training.sequence_nll(model, batch)[1].detach()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("method", ["npo", "grad_diff_kl", "rmu"])
def test_both_sides_train_alike(workload: Workload, method: str) -> None:
    logs = []
    for train in (ours.train, plain_training.train):
        model, tokenizer = workload.load()
        logs.append(train(Job(method, workload), model, tokenizer))
    assert len(logs[0].losses) == 4
    assert len(set(logs[0].losses)) == 4
    largest_loss_difference(logs[0].losses, logs[1].losses)


def test_both_sides_audit_alike(workload: Workload) -> None:
    model, tokenizer = workload.load()
    found = ours.audit(workload, ALL_METRICS, model, tokenizer)
    largest_metric_difference(found, PlainAudit(workload, model, tokenizer).values(ALL_METRICS))
    assert 0 < found["forget.exact_memorization"] < 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_that_of_the_forked_process_alone() -> None:
    before = Peak()
    small, large = (apart(_hold, megabytes) for megabytes in (8, 64))
    assert 55 << 20 < large - small < 60 << 20
    assert before.bytes() < 8 << 20


def _hold(megabytes: int) -> int:
    peak = Peak()
    with mmap.mmap(-1, megabytes << 20) as pages:  # fresh pages: an allocator may hand out some it kept
        for start in range(0, megabytes << 20, mmap.PAGESIZE):
            pages[start] = 1
    return peak.bytes()


def test_a_power_law_has_its_exponent_as_slope() -> None:
    assert slope([1, 2, 4, 8], [3, 3 * 2**1.5, 3 * 4**1.5, 3 * 8**1.5]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("aten::addmm", "matrix products"), ("aten::_fused_adamw_", "optimiser"), ("aten::mul", "elementwise, norms"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"), ("aten::copy_", "copies and indices"),
        ("aten::_log_softmax", "softmax and losses"),
    ],
)  # fmt: skip
def test_operations_are_sorted_by_kind(name: str, wanted: str) -> None:
    assert kind(name) == wanted


def test_lengths_have_the_mean_asked_for_and_the_spread_of_tofu() -> None:
    drawn = np.array([[length(20, QUESTIONS, share), length(40, ANSWERS, share)] for share in np.linspace(0, 1, 2001)])
    assert drawn.mean(0) == pytest.approx([20, 40], rel=0.01)
    assert drawn.std(0) / drawn.mean(0) == pytest.approx([4.8 / 15.8, 12.2 / 33.0], abs=0.03)
    assert FULL.longest == (102, 93)


def test_sizes_survive_json() -> None:
    assert Sizes.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


def test_the_page_states_every_ratio(tmp_path: Path) -> None:
    work: dict[str, Any] = {
        "forwarded": 10, "trained": 30, "logits": 2, "trained_logits": 3, "forwards": 4, "updated": 5, "graded": 6,
        "blocks": 100, "steps": 7,
    }  # fmt: skip
    ratio = {"cpu": [1.0, 2.25, 3.0], "wall": [1.0, 2.0, 3.0]}
    both = {"ours": work, "plain": work | {"blocks": 150}}
    found: dict[str, Any] = {
        "environment": {"date": "2030-01-01", "processor": "P", "cores": 2, "threads": 1, "capability": "AVX2",
                        "load_average": 0.1, "load_average_after": 0.2,
                        "packages": {"torch": "2", "transformers": "5"}},
        "sizes": QUICK.to_dict(), "tokens": {"prompt": 60.0, "answer": 40.0},
        "rows": {
            "npo": {"title": "NPO step", "ratio": ratio, "whole_run": ratio, "work": both},
            "audit_all": {"title": "Audit", "ratio": ratio, "work": both},
            "memory_npo": {"title": "Memory", "ratio": {"memory": [0.5, 0.6, 0.7]},
                           "in_weights": {"ours": 5.0, "plain": 9.0}},
        },
        "profiles": {"npo": {"ours": {"matrix products": 0.8}, "plain": {"matrix products": 0.7, "optimiser": 0.1}}},
        "scale": {"model": {"unit": "parameters", "x": [1e6, 4e6], "relative": {"scoring time": [1.0, 3.0]},
                            "slopes": {"scoring time": 0.79}}},
    }  # fmt: skip
    beside = {
        "tool": "Other",
        "commit": "abc1234",
        "how": "How.",
        "notes": ["Note."],
        "rows": {"npo": {"ratio": ratio}},
    }
    write_page(found, beside, tmp_path / "performance.md", "results.json")
    write_figures(found["scale"], tmp_path)
    text = (tmp_path / "performance.md").read_text("utf-8")
    for said in ("**2.25** (1.00 to 3.00)", "**0.60** (0.50 to 0.70)", "1.50 times", "80 %", "`abc1234`", "time 0.79"):
        assert said in text
    assert (tmp_path / "performance-scale.svg").read_text("utf-8").count("<path") == 3


@pytest.mark.slow
def test_the_quick_benchmark_runs_to_its_end() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "run", "--preset", "quick"], cwd=ROOT, capture_output=True, text=True,
        check=True, timeout=540,
    )  # fmt: skip
    assert done.stdout.count("equal to") == 6
