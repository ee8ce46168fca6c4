# SPDX-License-Identifier: Apache-2.0
"""Published per-example logs, read by the package, give the published numbers; broken ones give none."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from expunge.api.from_records import audit_records, name_records
from expunge.audit.config import AuditConfig
from expunge.audit.document import to_json
from expunge.audit.metrics import compute_metrics
from expunge.audit.probability import log_truth_ratio
from expunge.audit.protocol import Protocol
from expunge.audit.published import load_records
from expunge.audit.quality import privleak
from expunge.audit.store import read_records, write_records
from expunge.data.refusals import REFUSALS
from expunge.errors import InputDataError, RecipeError

SHARED = Path(__file__).parents[2] / "../shared/data"
TOFU, MUSE = SHARED / "tofu_eval_logs", SHARED / "muse_eval_logs"
needs_tofu = pytest.mark.skipif(not TOFU.is_dir(), reason="the TOFU logs are not beside the checkout")
needs_muse = pytest.mark.skipif(not MUSE.is_dir(), reason="the MUSE logs are not beside the checkout")
PARTS = ("probability", "rouge_l", "truth_ratio")


def tofu_file(name):
    return TOFU / f"ft_epoch5_lr1e-05_llama2-7b_{name}_wd0.01.json"


def audited(paths, reference=None, *, metrics=("*",), compat="locuslab", **settings):
    """Return the metrics of every model."""
    config = AuditConfig(metrics=metrics, compat=compat, bootstrap=100, **settings)
    document = audit_records(paths, reference=reference, config=config)
    assert json.loads(to_json(document))["models"].keys() == document.models.keys()
    return {name: model.metrics for name, model in document.models.items()}


def values(metrics, *names):
    return [metrics[name].value for name in names]


# --- TOFU: the table of published models -----------------------------------------------------------------------------

TABLE = {
    "full": (0.6227, 0.5859, 0.9909, 0.9854, 0.516),
    "retain90": (0.6137, 0.5752, 0.1476, 0.4082, 0.674),
    "retain95": (0.6006, 0.5613, 0.1547, 0.398, 0.674),
    "retain99": (0.6207, 0.5812, 0.1795, 0.3972, 0.685),
}


@needs_tofu
def test_the_reference_table_of_published_models():
    paths = {name: tofu_file(name) for name in TABLE}
    names = ("model_utility", *(f"forget.{part}" for part in PARTS))
    geometric = audited(paths, metrics=names)
    arithmetic = audited(paths, metrics=("model_utility",), compat="paper")
    for name, (utility, other, *forget) in TABLE.items():
        found = values(geometric[name], *names)
        assert found[0] == pytest.approx(utility, abs=5.1e-5)
        assert found[1:] == pytest.approx(forget, abs=5.1e-4)
        assert arithmetic[name]["model_utility"].value == pytest.approx(other, abs=5.1e-5)
    assert geometric["full"]["model_utility"].value == pytest.approx(0.6227, rel=1e-4)


@needs_tofu
@pytest.mark.parametrize(
    ("other", "geometric", "arithmetic"),
    [("retain90", 1.834066e-21, 6.0319e-23), ("retain95", 6.504459e-16, None), ("retain99", 2.345177e-06, None)],
)
def test_forget_quality_between_published_models(other, geometric, arithmetic):  # T8
    for compat, expected in (("locuslab", geometric), ("paper", arithmetic)):
        if expected is None:
            continue
        found = audited({"full": tofu_file("full")}, tofu_file(other), metrics=("forget_quality*",), compat=compat)
        assert found["full"]["forget_quality"].value == pytest.approx(expected, rel=1e-4)
        if (other, compat) == ("retain90", "locuslab"):
            assert found["full"]["forget_quality_ks"].value == pytest.approx(0.3966667, abs=1e-6)
        # The logs of the smaller requests ask fewer questions, other ones: the number exists, with a warning.
        asked_alike = other == "retain90"
        assert (found["full"]["forget_quality"].caveat == "") is asked_alike
        assert found["reference"]["forget_quality"].value == 1.0


@needs_tofu
def test_the_nine_parts_and_their_intervals():
    found = audited({"full": tofu_file("full")}, metrics=tuple(f"*.{part}" for part in PARTS))["full"]
    expected = {
        "retain": (0.9895, 0.9857, 0.4747), "real_authors": (0.4555, 0.9330, 0.5962),
        "world_facts": (0.4186, 0.8825, 0.5390),
    }  # fmt: skip
    for name, numbers in expected.items():
        assert values(found, *(f"{name}.{part}" for part in PARTS)) == pytest.approx(numbers, abs=5.1e-5), name
    assert [found[f"{name}.probability"].n for name in expected] == [300, 100, 117]
    one = found["retain.truth_ratio"]
    assert one.ci_low < one.value < one.ci_high


@needs_tofu
def test_truth_ratio_of_every_item_is_the_logged_one():  # T7
    part = json.loads(tofu_file("full").read_text())["eval_log_forget.json"]
    ratios = {
        i: np.exp(log_truth_ratio(-part["avg_paraphrased_loss"][i], [-x for x in part["average_perturb_loss"][i]]))
        for i in part["truth_ratio"]
    }
    assert ratios["0"] == pytest.approx(0.2452337, abs=1e-6)
    assert [ratios[i] for i in part["truth_ratio"]] == pytest.approx(list(part["truth_ratio"].values()), rel=1e-4)


@needs_tofu
def test_rouge_is_recomputed_and_agrees_with_what_the_log_states():
    config = AuditConfig(metrics=("*.rouge_?",), bootstrap=100)
    document = audit_records({"full": tofu_file("full")}, config=config)
    checks = document.models["full"].meta["published"]
    assert len(checks) == 8
    for check in checks.values():
        assert check["computed"] == pytest.approx(check["stated"], abs=1e-12)


@needs_tofu
def test_what_needs_tokens_has_no_number_and_says_why():
    found = audited({"full": tofu_file("full")}, tofu_file("retain90"))["full"]
    for name in ("forget.extraction_strength", "forget.exact_memorization", "aggregate.memorization"):
        assert found[name].value is None
        assert "log without token log-probabilities" in found[name].reason
    assert found["membership.loss.auc"].value is None
    assert found["privleak"].value is None
    losses = json.loads(tofu_file("full").read_text())["eval_log_forget.json"]["avg_paraphrased_loss"].values()
    said = np.mean(np.exp(-np.array(list(losses))))
    assert found["forget.paraphrased_answer_probability"].value == pytest.approx(said)
    items = load_records(tofu_file("full")).scored
    assert all(len(item.logp) == len(item.mu) == len(item.correct) == 0 for item in items)
    assert {item.summary.n_tokens for item in items if item.set == "forget" and item.id == "forget-1"} == {17, 15, 16}


@needs_tofu
def test_records_of_a_log_survive_the_disk(tmp_path):
    records = load_records(tofu_file("retain99"))
    folder = write_records(records, tmp_path / "kept")
    assert read_records(folder).scored[5].summary == records.scored[5].summary
    both = audited({"log": tofu_file("retain99"), "kept": folder}, metrics=("model_utility", "forget.*"))
    assert both["kept"] == both["log"]
    assert both["log"]["forget.truth_ratio"].n == 40


@needs_tofu
def test_a_folder_of_sections_is_one_log(tmp_path):
    log = json.loads(tofu_file("retain99").read_text())
    for name, section in log.items():
        (tmp_path / name).write_text(json.dumps(section))
    names = ("model_utility", "forget.truth_ratio")
    apart = audited({"m": tmp_path}, metrics=names)["m"]
    assert apart == audited({"m": tofu_file("retain99")}, metrics=names)["m"]
    alone = audited({"m": tmp_path / "eval_log_forget.json"}, metrics=names)["m"]
    assert alone["forget.truth_ratio"] == apart["forget.truth_ratio"]
    assert "no section about retain" in alone["model_utility"].reason


@needs_tofu
def test_our_refusal_sentences_are_our_own():
    theirs = set((TOFU / "idontknow.jsonl").read_text().splitlines())
    assert not theirs & set(REFUSALS)


# --- logs made by hand ------------------------------------------------------------------------------------------------


def section(n=3, *, right=0.5, options=False):
    """Return a section whose numbers are known: losses .5 for the answer, `right`, and 1, 2, 3 for the wrong ones."""
    said = {str(i): ["prompt", f"Ann wrote book {i}", f"Ann wrote book {i}"] for i in range(n)}
    return {
        "average_perturb_loss": {str(i): [1.0, 2.0, 3.0] for i in range(n)},
        "avg_gt_loss": {str(i): 0.5 for i in range(n)},
        "avg_paraphrased_loss": {str(i): right for i in range(n)},
        "generated_text": said,
    }


def log(**changes):
    found = {
        "eval_log_forget.json": section(4), "eval_log.json": section(5), "eval_real_author_wo_options.json": section(3),
        "eval_real_world_wo_options.json": section(2),
    }  # fmt: skip
    return found | changes


@pytest.fixture
def save(tmp_path):
    def write(value, name="eval_log_aggregated.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    return write


def test_numbers_worked_by_hand(save):
    path = save(log())
    found = audited({"m": path}, metrics=("*.probability", "*.truth_ratio", "model_utility"))["m"]
    assert found["forget.probability"].value == pytest.approx(math.exp(-0.5))
    assert found["forget.truth_ratio"].value == pytest.approx(math.exp(0.5 - 2.0))  # geometric mean of 1, 2, 3 is e^-2
    options = math.exp(-0.5) / sum(math.exp(-x) for x in (0.5, 1.0, 2.0, 3.0))
    assert found["world_facts.probability"].value == pytest.approx(options)
    assert found["world_facts.truth_ratio"].value == pytest.approx(1 - math.exp(-1.5))
    nine = [math.exp(-0.5), 1.0, 1 - math.exp(-1.5)] + 2 * [options, 1.0, 1 - math.exp(-1.5)]
    assert found["model_utility"].value == pytest.approx(9 / sum(1 / x for x in nine))
    paper = audited({"m": path}, metrics=("forget.truth_ratio",), compat="paper")["m"]["forget.truth_ratio"].value
    assert paper == pytest.approx(sum(math.exp(-x) for x in (1, 2, 3)) / 3 / math.exp(-0.5))


def test_key_order_lists_and_sums_do_not_matter(save):
    names = ("*.probability", "*.truth_ratio", "*.rouge_l", "model_utility")
    plain = audited({"m": save(log())}, metrics=names)["m"]
    shuffled = {name: dict(reversed(part.items())) for name, part in reversed(log().items())}
    for part in shuffled.values():
        part["avg_gt_loss"] = [0.5] * len(part["avg_gt_loss"])
        part["perturb_loss"] = {i: [7.0, 14.0, 21.0] for i in part["average_perturb_loss"]}
        part["num_token_perturb"] = {key: [7, 7, 7] for key in part.pop("average_perturb_loss")}
    other = audited({"m": save(shuffled, "other.json")}, metrics=names)["m"]
    assert {name: one.value for name, one in other.items()} == pytest.approx({n: one.value for n, one in plain.items()})


def test_the_truth_ratio_of_options_uses_the_pass_that_scored_the_wrong_ones(save):
    path = save(log(**{"eval_real_world_wo_options.json": section(2, right=0.7)}))
    found = audited({"m": path}, metrics=("world_facts.*",))["m"]
    assert found["world_facts.truth_ratio"].value == pytest.approx(1 - math.exp(0.7 - 2.0))
    assert found["world_facts.probability"].value == pytest.approx(
        math.exp(-0.5) / sum(math.exp(-x) for x in (0.5, 1.0, 2.0, 3.0))
    )


def test_missing_sections_and_fields_are_null_with_the_reason(save):
    short = section(4)
    del short["avg_paraphrased_loss"], short["generated_text"]
    found = audited({"m": save({"eval_log_forget.json": short, "notes.json": 3})}, metrics=("*",))["m"]
    assert found["forget.probability"].value == pytest.approx(math.exp(-0.5))
    assert "no avg_paraphrased_loss" in found["forget.truth_ratio"].reason
    assert "no generated_text" in found["forget.rouge_l"].reason
    assert "no section about retain" in found["retain.probability"].reason
    assert "no section about world_facts" in found["model_utility"].reason
    assert "no records of a reference" in found["forget_quality"].reason


def test_no_items_one_item_and_equal_items(save):
    none = audited({"m": save(log(**{"eval_log_forget.json": section(0)}))}, metrics=("forget.*",))["m"]
    assert none["forget.probability"].value is None
    assert "no avg_gt_loss" in none["forget.probability"].reason
    one = audited({"m": save(log(**{"eval_log_forget.json": section(1)}))}, save(log()), metrics=("forget*",))["m"]
    assert one["forget.truth_ratio"].value is not None
    assert one["forget.truth_ratio"].ci_low is None
    assert "only one subject" in one["forget.truth_ratio"].reason
    tied = audited({"m": save(log())}, save(log()), metrics=("forget_quality*",))["m"]
    assert values(tied, "forget_quality", "forget_quality_ks") == [1.0, 0.0]


def test_an_empty_generation_scores_zero_and_counts_as_refusal(save):
    part = section(2)
    part["generated_text"]["0"][1] = " "
    found = audited({"m": save(log(**{"eval_log_forget.json": part}))}, metrics=("forget.*",))["m"]
    assert values(found, "forget.rouge_l", "forget.empty_rate", "forget.refusal_rate") == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "0.5", True])
def test_a_value_that_is_no_number_stops_and_names_the_item(save, bad):
    broken = log()
    broken["eval_log.json"]["avg_gt_loss"]["3"] = bad
    with pytest.raises(InputDataError, match=r"eval_log\.json: avg_gt_loss, item 3"):
        load_records(save(broken))


def test_unusable_values_are_refused_with_their_place(save):
    twice = log() | {"eval_log_retain.json": section()}
    with pytest.raises(InputDataError, match="both about the retain set"):
        load_records(save(twice))
    sums = {"gt_loss": {"0": 3.0}, "num_token_gt": {"0": 0}}
    with pytest.raises(InputDataError, match="number of tokens"):
        load_records(save({"eval_log_forget.json": sums}))
    text = log()
    text["eval_log.json"]["generated_text"]["0"] = "just a text"
    with pytest.raises(InputDataError, match="item 0"):
        load_records(save(text))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"a": 1, "b": [2]}', "an object with the keys a, b"), ("[1, 2]", "a list of 2"), ("{", "not JSON"),
        ("[]", "a list of 0"), ('{"mean_rougeL": 0.5}', "MUSE whose part is not known"),
    ],
)  # fmt: skip
def test_an_unknown_format_names_what_was_found(tmp_path, content, found):
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(InputDataError, match=found):
        load_records(path)


def test_unknown_folders_and_paths(tmp_path, save):
    with pytest.raises(InputDataError, match="no such file"):
        load_records(tmp_path / "nothing")
    with pytest.raises(InputDataError, match="a folder with nothing"):
        load_records(tmp_path)
    save(log(), "one/eval_log_aggregated.json")
    assert len(load_records(tmp_path).generated) == 14
    save(log(), "two/eval_log_aggregated.json")
    with pytest.raises(InputDataError, match="holds several logs"):
        load_records(tmp_path)


def test_models_of_one_audit_share_a_protocol(save):
    texts = save([{"gt": "a b", "response": "a c"}], "verbmem_f/log.json")
    with pytest.raises(InputDataError, match="different protocols"):
        audit_records({"a": save(log()), "b": texts}, config=AuditConfig())
    with pytest.raises(RecipeError, match="at least one model"):
        audit_records({}, config=AuditConfig())


def test_a_protocol_survives_the_document(save):
    document = audit_records({"m": save(log())}, config=AuditConfig(metrics=("forget.*",), bootstrap=100))
    assert Protocol.from_dict(document.protocol).roles["world_facts"] == "options"
    with pytest.raises(InputDataError, match="not a protocol"):
        Protocol.from_dict({"name": "x"})


# --- OpenUnlearning ---------------------------------------------------------------------------------------------------


def scores(losses):
    return {"agg_value": 0.5, "value_by_index": {str(i): {"prob": 0.5, "avg_loss": one} for i, one in losses.items()}}


def open_log():
    said = {"input": "q", "generation": "Ann", "ground_truth": "Ann wrote", "rougeL_recall": 0.5}
    out = {}
    for prefix in ("forget", "retain", "ra", "wf"):
        out[f"{prefix}_Q_A_Prob"] = scores({0: 0.5, 1: 0.7})
        out[f"{prefix}_Q_A_PERT_Prob"] = scores({0: [1.0, 2.0, 3.0], 1: [1.0, 1.0, 1.0]})
        out[f"{prefix}_Q_A_ROUGE"] = {"agg_value": 0.5, "value_by_index": {"0": said, "1": said}}
    for prefix in ("forget", "retain"):
        out[f"{prefix}_Q_A_PARA_Prob"] = scores({0: 0.6, 1: 0.8})
    stated = {"extraction_strength": 0.25, "mia_min_k": 0.9, "privleak": -12.5, "forget_quality": None}
    return out | {name: {"agg_value": value} for name, value in stated.items()}


def test_an_openunlearning_log(save):
    names = ("forget.*", "model_utility", "membership.min_k.auc", "privleak", "forget_quality")
    path = save(open_log(), "TOFU_EVAL.json")
    found = audited({"m": path.parent}, metrics=names, compat="openunlearning", min_k=0.4)["m"]
    ratios = [math.exp(-2.0) / (math.exp(-0.6) + 1e-10), math.exp(-1.0) / (math.exp(-0.8) + 1e-10)]
    assert found["forget.truth_ratio"].value == pytest.approx(sum(ratios) / 2)
    assert found["forget.probability"].value == pytest.approx((math.exp(-0.5) + math.exp(-0.7)) / 2)
    wrong = (sum(math.exp(-x) for x in (1, 2, 3)), 3 * math.exp(-1))
    options = np.mean([math.exp(-a) / (math.exp(-a) + b) for a, b in zip((0.5, 0.7), wrong, strict=True)])
    plain = np.mean([1 - math.exp(-2.0 + 0.5), 1 - math.exp(-1.0 + 0.7)])
    retain = [np.mean(np.exp([-0.5, -0.7])), 0.5, np.mean([1 - math.exp(-2.0 + 0.6), 1 - math.exp(-1.0 + 0.8)])]
    nine = [*retain, *(2 * [options, 0.5, plain])]
    assert found["model_utility"].value == pytest.approx(9 / sum(1 / x for x in nine), rel=1e-6)
    stated = values(found, "forget.extraction_strength", "membership.min_k.auc", "privleak")
    assert stated == [0.25, 0.9, -12.5]
    assert all(found[name].caveat for name in ("forget.extraction_strength", "membership.min_k.auc", "privleak"))
    assert found["forget_quality"].value is None


def test_null_items_of_an_openunlearning_log_are_left_out_and_bad_ones_refused(save):
    some = open_log()
    some["forget_Q_A_Prob"]["value_by_index"]["1"] = None
    found = audited({"m": save(some)}, metrics=("forget.probability",))["m"]["forget.probability"]
    assert (found.value, found.n) == (pytest.approx(math.exp(-0.5)), 1)
    some["forget_Q_A_Prob"]["value_by_index"]["1"] = {"prob": 0.5}
    with pytest.raises(InputDataError, match="forget_Q_A_Prob, item 1"):
        load_records(save(some))


# --- names ------------------------------------------------------------------------------------------------------------


def test_models_are_named_by_what_tells_them_apart(tmp_path):
    logs = [f"{model}/eval_results/ds_size300/eval_log_aggregated.json" for model in ("ga", "npo", "reference")]
    for log_path in logs:
        (tmp_path / log_path).parent.mkdir(parents=True)
        (tmp_path / log_path).touch()
    named = name_records([tmp_path / log_path for log_path in logs])
    assert list(named) == ["ga", "npo", f"{tmp_path.name}-reference"]
    (tmp_path / "a/x").mkdir(parents=True)
    (tmp_path / "b/x").mkdir(parents=True)
    assert list(name_records([tmp_path / "a/x", tmp_path / "b/x", tmp_path / "a"])) == ["a-x", "b-x", "a"]
    with pytest.raises(InputDataError, match="given twice"):
        name_records([tmp_path / "a", tmp_path / "a"])


# --- MUSE -------------------------------------------------------------------------------------------------------------


@needs_muse
def test_the_published_muse_model():  # M4
    names = ("verbmem", "knowmem_?", "privleak_auc")
    found = audited({"m": MUSE / "ga_klr"}, metrics=names, compat="muse")["m"]
    assert found["privleak_auc"].value == pytest.approx(0.3349, abs=1e-9)
    expected = {
        part: json.loads((MUSE / f"ga_klr/{folder}/agg.json").read_text())["mean_rougeL"]
        for part, folder in (("verbmem", "verbmem_f"), ("knowmem_f", "knowmem_f"), ("knowmem_r", "knowmem_r"))
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    standard = audited({"m": MUSE / "ga_klr"}, metrics=("privleak_auc",), compat="fixed")["m"]["privleak_auc"]
    assert standard.value == pytest.approx(1 - 0.3349, abs=1e-9)
    assert standard.ci_low < standard.value < standard.ci_high
    assert (standard.n, standard.compat) == (200, "fixed")


@needs_muse
@pytest.mark.parametrize(("k", "name"), [(0.05, "Min-5%"), (0.2, "Min-20%"), (0.4, "Min-40%"), (0.6, "Min-60%")])
def test_every_published_auc_is_reproduced(k, name):
    logged = json.loads((MUSE / "ga_klr/privleak/auc.json").read_text())
    found = audited({"m": MUSE / "ga_klr"}, metrics=("membership.*.auc",), compat="muse", min_k=k)["m"]
    for attack, theirs in (("loss", "PPL"), ("zlib", "PPL/zlib"), ("lowercase", "PPL/lower"), ("min_k", name)):
        assert 1 - found[f"membership.{attack}.auc"].value == pytest.approx(logged[f"forget_holdout_{theirs}"]), attack


@needs_muse
def test_logs_that_only_state_means_are_reported_as_stated():
    paths = {name: MUSE / name for name in ("ga", "npo_klr", "tv")}
    found = audited(paths, MUSE / "ga_klr", metrics=("verbmem", "knowmem_f", "privleak*"), compat="muse")
    stated = found["npo_klr"]["verbmem"]
    assert stated.value == pytest.approx(0.11667652, abs=1e-7)
    assert stated.ci_low < stated.value < stated.ci_high
    assert "states it" in stated.caveat
    for name, metrics in found.items():
        auc = json.loads((MUSE / (name if name != "reference" else "ga_klr") / "privleak/auc.json").read_text())
        value = auc["forget_holdout_Min-40%"]
        assert metrics["privleak_auc"].value == pytest.approx(value)
        assert metrics["privleak"].value == pytest.approx(privleak(1 - value, 1 - 0.3349, compat="muse"))


@needs_muse
def test_one_part_of_muse_is_enough(tmp_path):
    whole = audited({"m": MUSE / "ga_klr"}, metrics=("privleak_auc",), compat="muse")["m"]
    for path in (MUSE / "ga_klr/privleak", MUSE / "ga_klr/privleak/log_scores_only.json"):
        part = audited({"m": path}, metrics=("privleak_auc", "verbmem"), compat="muse")["m"]
        assert part["privleak_auc"] == whole["privleak_auc"]
        assert "no items of part verbmem_f" in part["verbmem"].reason
    only = audited({"m": MUSE / "ga_klr/privleak/auc.json"}, metrics=("privleak_auc",), compat="muse")["m"]
    assert only["privleak_auc"].value == pytest.approx(0.3349)
    assert only["privleak_auc"].ci_low is None
    shutil.copytree(MUSE / "ga_klr", tmp_path / "m")
    shutil.copy(tmp_path / "m/privleak/log_scores_only.json", tmp_path / "m/privleak/log.json")
    assert len(load_records(tmp_path / "m").scored) == len(load_records(MUSE / "ga_klr").scored)


def test_chunks_worked_by_hand(save):
    rows = {
        "forget": [{"PPL": 2.0, "PPL/zlib": 0.02, "PPL/lower": 0.5, "Min-40%": 4.0, "Min-5%": math.nan}],
        "retain": [], "holdout": [{"PPL": 1.0, "PPL/zlib": 0.03, "Min-40%": 5.0, "text": "abc"}],
    }  # fmt: skip
    path = save(rows, "privleak/log.json")
    items = {(i.set, i.variant): i for i in load_records(path).scored}
    forget, low, holdout = items["forget", "answer"], items["forget", "lowercase"], items["holdout", "answer"]
    assert (forget.summary.mean_logp, forget.zlib_bytes, low.summary.mean_logp) == (-2.0, 100, -4.0)
    assert forget.summary.scores == {"min_k@0.4": -4.0}
    assert holdout.zlib_bytes > 3  # from the text, not from the ratio, which is that of no whole number
    found = audited({"m": path}, metrics=("membership.*.auc", "privleak_auc"), compat="muse", min_k=0.05)["m"]
    assert values(found, "membership.loss.auc", "privleak_auc") == [0.0, 0.0]  # 1 - AUC: the forget chunk ranks first
    assert "holds no min_k@0.05" in found["membership.min_k.auc"].reason
    assert found["membership.lowercase.auc"].value is None
    assert "only one subject" in found["membership.loss.auc"].reason


def test_no_holdout_no_membership(save):
    rows = {"forget": [{"PPL": 2.0, "Min-40%": 4.0}], "holdout": []}
    found = audited({"m": save(rows, "privleak/log.json")}, metrics=("membership.*.auc", "privleak*"))["m"]
    assert all(one.value is None and one.reason for one in found.values())
    assert "no items of part privleak" in found["privleak_auc"].reason


def test_what_muse_logs_hold_is_checked(save):
    row = {"gt": "a b", "response": "a c"}
    with pytest.raises(InputDataError, match="item 2"):
        load_records(save([row, {**row, "gt": 3}], "knowmem_f/log.json"))
    with pytest.raises(InputDataError, match="does not hold what that part does"):
        load_records(save([row], "privleak/log.json"))
    broken = {"forget": [{"PPL": math.inf}], "holdout": [{"PPL": 1.0}]}
    with pytest.raises(InputDataError, match="forget 1: PPL"):
        load_records(save(broken, "m/privleak/log.json"))


def test_rouge_variants_of_a_muse_log(save):
    path = save([{"gt": "the cats are sitting", "response": "the cat sat"}], "verbmem_f/log.json")
    stem, plain = 4 / 7, 2 / 7  # of 4 and 3 words, `the` and, stemmed, `cat` agree
    for compat, expected in (("muse", plain), ("fixed", plain), ("openunlearning", stem)):
        found = audited({"m": path}, metrics=("verbmem",), compat=compat)["m"]["verbmem"]
        assert found.value == pytest.approx(expected), compat


def test_a_log_is_not_changed_by_reading_it(save):
    value = log()
    before = copy.deepcopy(value)
    records = load_records(save(value))
    compute_metrics(records, protocol=Protocol.from_dict(records.meta["protocol"]), config=AuditConfig(bootstrap=100))
    assert value == before
