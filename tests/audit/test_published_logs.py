# SPDX-License-Identifier: Apache-2.0
"""Published per-example logs run through the same functions give the published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from audit_records import generated, scored

from expunge.audit.config import AuditConfig
from expunge.audit.metrics import compute_metrics
from expunge.audit.overlap import rouge_l
from expunge.audit.probability import log_truth_ratio
from expunge.audit.protocol import Protocol
from expunge.audit.quality import privleak
from expunge.audit.records import Records
from expunge.audit.statistics import auc, harmonic_mean
from expunge.data.refusals import REFUSALS

SHARED = Path(__file__).parents[2] / "../shared/data"
TOFU, MUSE = SHARED / "tofu_eval_logs", SHARED / "muse_eval_logs"
SETS = {
    "forget": "eval_log_forget.json", "retain": "eval_log.json", "authors": "eval_real_author_wo_options.json",
    "facts": "eval_real_world_wo_options.json",
}  # fmt: skip
PROTOCOL = Protocol("tofu", "1", {"forget": "forget", "retain": "retain", "authors": "options", "facts": "options"})

UTILITY = [f"{name}.{part}" for name in SETS if name != "forget" for part in ("probability", "truth_ratio", "rouge_l")]

pytestmark = pytest.mark.real
needs_tofu = pytest.mark.skipif(not TOFU.is_dir(), reason="the TOFU logs are not beside the checkout")
needs_muse = pytest.mark.skipif(not MUSE.is_dir(), reason="the MUSE logs are not beside the checkout")


def tofu_log(name):
    return json.loads((TOFU / f"ft_epoch5_lr1e-05_llama2-7b_{name}_wd0.01.json").read_text())


def tofu_records(log, options_from="avg_gt_loss"):
    """One token per answer carries the logged mean log-probability; the options were scored twice in low precision."""
    items, texts = [], []
    for name, key in SETS.items():
        part = log[key]
        for i, (_, said, target) in part["generated_text"].items():
            loss = part["avg_gt_loss" if name in ("forget", "retain") else options_from][i]
            items.append(scored(name, i, [-loss]))
            items.append(scored(name, i, [-part["avg_paraphrased_loss"][i]], variant="paraphrase"))
            items += [
                scored(name, i, [-loss], variant="perturbed", index=j)
                for j, loss in enumerate(part["average_perturb_loss"][i])
            ]
            texts.append(generated(name, i, said, target))
    return Records(items, texts)


@pytest.fixture(scope="module")
def full():
    return tofu_records(tofu_log("full"))


@needs_tofu
def test_truth_ratio_of_the_first_item():  # T7
    part = tofu_log("full")[SETS["forget"]]
    wrong = [-loss for loss in part["average_perturb_loss"]["0"]]
    assert np.exp(log_truth_ratio(-part["avg_paraphrased_loss"]["0"], wrong)) == pytest.approx(0.2452337, abs=1e-6)
    for i, logged in part["truth_ratio"].items():
        wrong = [-loss for loss in part["average_perturb_loss"][i]]
        assert np.exp(log_truth_ratio(-part["avg_paraphrased_loss"][i], wrong)) == pytest.approx(logged, rel=1e-4)


@needs_tofu
def test_rouge_of_every_logged_generation():
    log = tofu_log("full")
    for key in SETS.values():
        for i, (_, said, target) in log[key]["generated_text"].items():
            assert rouge_l(target, said).recall == pytest.approx(log[key]["rougeL_recall"][i])


@needs_tofu
@pytest.mark.parametrize(
    ("other", "fixed", "paper"),
    [("retain90", 1.834066e-21, 6.0319e-23), ("retain95", 6.504459e-16, None), ("retain99", 2.345177e-06, None)],
)
def test_forget_quality_between_published_models(full, other, fixed, paper):  # T8
    reference = tofu_records(tofu_log(other))
    for compat, expected in (("fixed", fixed), ("paper", paper)):
        if expected is None:
            continue
        config = AuditConfig(metrics=("forget_quality*",), bootstrap=200, compat=compat)
        found = compute_metrics(full, protocol=PROTOCOL, config=config, reference=reference, reference_name=other)
        assert found["forget_quality"].value == pytest.approx(expected, rel=1e-3)
        if (other, compat) == ("retain90", "fixed"):
            assert found["forget_quality_ks"].value == pytest.approx(0.3966667, abs=1e-6)


@needs_tofu
@pytest.mark.parametrize(
    ("model", "geometric", "arithmetic"),
    [
        ("full", 0.6227, 0.5859),
        ("retain90", 0.6137, 0.5752),
        ("retain95", 0.6006, 0.5613),
        ("retain99", 0.6207, 0.5812),
    ],
)
def test_model_utility_of_published_models(model, geometric, arithmetic):  # T8
    log = tofu_log(model)
    records, second = tofu_records(log), tofu_records(log, "avg_paraphrased_loss")
    for compat, expected in (("fixed", geometric), ("paper", arithmetic)):
        config = AuditConfig(metrics=("model_utility", *UTILITY), bootstrap=200, compat=compat)
        found = compute_metrics(records, protocol=PROTOCOL, config=config)
        utility = found["model_utility"]
        assert utility.value == pytest.approx(expected, abs=3e-4)
        assert utility.ci_low < utility.value < utility.ci_high
        # The authors took the truth ratio of the options from their second pass; with that, every digit agrees.
        again = compute_metrics(second, protocol=PROTOCOL, config=config)
        parts = [(again if "truth" in name else found)[name].value for name in found if name in UTILITY]
        assert harmonic_mean(parts) == pytest.approx(expected, abs=5.5e-5)


@needs_tofu
def test_the_nine_parts_and_the_forget_set(full):
    config = AuditConfig(metrics=("*.probability", "*.rouge_l", "*.truth_ratio"), bootstrap=200)
    found = compute_metrics(full, protocol=PROTOCOL, config=config)
    expected = {
        "retain": (0.9895, 0.9857, 0.4747), "authors": (0.4555, 0.9330, 0.5962), "facts": (0.4186, 0.8825, 0.5390),
        "forget": (0.9909, 0.9854, 0.516),
    }  # fmt: skip
    for name, values in expected.items():
        parts = [found[f"{name}.{part}"].value for part in ("probability", "rouge_l", "truth_ratio")]
        assert parts == pytest.approx(values, abs=1e-3), name


@needs_tofu
def test_our_refusal_sentences_are_our_own():
    theirs = set((TOFU / "idontknow.jsonl").read_text().splitlines())
    assert not theirs & set(REFUSALS)


@needs_muse
def test_min_k_auc_of_the_published_scores():  # M4
    folder = MUSE / "ga_klr/privleak"
    scores = json.loads((folder / "log_scores_only.json").read_text())
    logged = json.loads((folder / "auc.json").read_text())
    for attack in ("Min-40%", "Min-20%", "PPL", "PPL/zlib"):
        sides = [[-entry[attack] for entry in scores[name]] for name in ("forget", "holdout")]
        assert 1 - auc(*sides) == pytest.approx(logged[f"forget_holdout_{attack}"], abs=1e-9)
    assert logged["forget_holdout_Min-40%"] == pytest.approx(0.3349)
    assert privleak(1 - 0.3349, 1 - 0.5393, compat="muse") == pytest.approx(-37.9010, abs=1e-3)


@needs_muse
def test_rouge_f1_without_stemmer_of_the_published_generations():
    for name in ("knowmem_f", "knowmem_r", "verbmem_f"):
        log = json.loads((MUSE / f"ga_klr/{name}/log.json").read_text())
        ours = [rouge_l(entry["gt"], entry["response"], stemmer=False).f1 for entry in log]
        assert ours == pytest.approx([entry["rougeL"] for entry in log])
        total = json.loads((MUSE / f"ga_klr/{name}/agg.json").read_text())
        assert np.mean(ours) == pytest.approx(total["mean_rougeL"])
