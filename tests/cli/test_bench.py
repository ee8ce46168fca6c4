# SPDX-License-Identifier: Apache-2.0
"""`benchmark`, `sweep` and `audit --from-records`: documents, exit codes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_lab import Lab, expunge, quick


def test_benchmark_on_the_archive_measures_every_set(lab: Lab, tmp_path: Path) -> None:
    done = expunge(
        "benchmark", "fictitious", str(lab.base), "-o", str(tmp_path / "b"), "--json",
        "--set", "audit.limit=4", "--set", "audit.bootstrap=100", "--set", "audit.max_new_tokens=3",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert done.document["protocol"]["name"] == "fictitious"
    (entry,) = done.document["models"].values()
    assert entry["metrics"]["forget.probability"]["n"] == 4
    assert entry["metrics"]["world_facts.probability"]["value"] is not None
    assert (tmp_path / "b/report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("benchmark", "tofoo", "x"), "'tofu'"),
        (("benchmark", "tofu", "x"), "--data"),
        (("benchmark", "tofu"), "MODEL"),
        (("benchmark", "fictitious", "--criterion", "scalability"), "--method"),
        (("benchmark", "fictitious", "--criterion", "collapse", "--method", "ga", "--rates", "fast"), "--rates"),
        (("benchmark", "muse", "--criterion", "collapse", "--method", "ga", "--rates", "1e-3"), "fictitious"),
        (("sweep", "--set", "model.path=x"), "data.forget"),
    ],
)
def test_what_is_missing_is_named(arguments: tuple[str, ...], said: str) -> None:
    done = expunge(*arguments)
    assert done.code in (2, 6)
    assert said in done.said


def test_a_collapse_map_of_the_archive(lab: Lab, tmp_path: Path) -> None:
    sets = quick("model.path=" + str(lab.base), "audit.generate=false",
                 "audit.metrics=[forget.probability,retain.probability]")  # fmt: skip
    done = expunge(
        "benchmark", "fictitious", "--criterion", "collapse", "--method", "ga", "--rates", "1e-3,1e-5",
        "--requests", "1", "--people", "10", *sets, "-o", str(tmp_path / "map"), "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert done.document["complete"]
    assert [(cell["way"], cell["rate"]) for cell in done.document["cells"]] == [
        ("single", 1e-5), ("continual", 1e-5), ("single", 1e-3), ("continual", 1e-3),
    ]  # fmt: skip
    assert (tmp_path / "map/collapse.html").exists()
    assert not (tmp_path / "map-world/target").exists()


def test_sweep_prints_every_run_and_the_choice(lab: Lab, tmp_path: Path) -> None:
    sets = quick("model.path=" + str(lab.base), "data.forget=" + lab.file("forget"),
                 "data.retain=" + lab.file("retain"), "method.name=grad_diff", "audit.generate=false")  # fmt: skip
    done = expunge(
        "sweep", *sets, "--grid", "training.learning_rate=1e-4,1e-3", "--maximise=-forget.probability",
        "--keep", "retain.probability", "-o", str(tmp_path / "s"),
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "training.learning_rate=1e-4" in done.stdout
    assert json.loads((tmp_path / "s/sweep.json").read_text())["runs_tried"] == 2


def test_records_of_a_run_give_the_same_numbers_again(finished: Path) -> None:
    first = json.loads((finished / "audit.json").read_text())["models"]
    (method,) = set(first) - {"target", "reference"}
    (records,) = (finished / "records").glob(f"{method}-*")
    # In this lab the reference is the target itself, so that its records were found and not made again.
    (reference,) = (finished / "records").glob("target-*")
    done = expunge("audit", "--from-records", str(records), "--reference", str(reference), "--json",
                   "--set", "audit.bootstrap=100")  # fmt: skip
    assert done.code == 0, done.stderr
    again = done.document["models"][records.name]["metrics"]
    for name in ("forget.probability", "forget_quality", "membership.min_k.auc"):
        assert again[name]["value"] == first[method]["metrics"][name]["value"]


@pytest.mark.real
def test_published_log_gives_the_published_numbers(shared: Path) -> None:
    logs = shared / "data/tofu_eval_logs"
    done = expunge(
        "audit", "--from-records", str(logs / "ft_epoch5_lr1e-05_llama2-7b_full_wd0.01.json"), "--json",
        "--reference", str(logs / "ft_epoch5_lr1e-05_llama2-7b_retain90_wd0.01.json"), "--compat", "locuslab",
    )  # fmt: skip
    (name,) = [name for name in done.document["models"] if name != "reference"]
    metrics = done.document["models"][name]["metrics"]
    assert metrics["model_utility"]["value"] == pytest.approx(0.6227, rel=1e-3)
    assert metrics["forget_quality"]["value"] == pytest.approx(1.834066e-21, rel=1e-3)
