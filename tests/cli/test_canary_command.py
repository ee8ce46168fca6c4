# SPDX-License-Identifier: Apache-2.0
"""`expunge canary` on an untrained model: files, table, document, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_lab import Called, Lab, expunge

from expunge.claims import lint
from expunge.data.canary_manifest import read_manifest
from expunge.data.fictitious import Archive
from expunge.models.loading import load_model


@pytest.fixture(scope="session")
def source(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> str:
    archive.write_jsonl(folder := tmp_path_factory.mktemp("archive"))
    return str(folder / "train_full.jsonl")


def plant(lab: Lab, source: str, folder: Path, *more: str) -> list[str]:
    given = ["--model", lab.base, "-o", str(folder), "--n", "24", "--seed", "5", "--set", "data.template=question"]
    return ["canary", "plant", source, *given, *more]


@pytest.fixture(scope="session")
def bigram(lab: Lab, source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four canaries of a design that leaves the model as it is."""
    folder = tmp_path_factory.mktemp("planted") / "bigram"
    done = expunge(*plant(lab, source, folder, "--design", "bigram"))
    assert done.code == 0, done.stderr
    assert "Note the seal" in done.stdout
    return folder


def test_plant_and_audit_new_tokens(lab: Lab, source: str, tmp_path: Path) -> None:
    done = expunge(*plant(lab, source, tmp_path / "p"), "--json")
    assert done.code == 0, done.stderr
    folder, manifest = tmp_path / "p", read_manifest(done.document["manifest"], seal=done.document["seal"])
    inserted = [entry for entry in manifest.canaries if entry.inserted]
    assert done.document["n_inserted"] == len(inserted)
    assert len((folder / "train/inserted.jsonl").read_text("utf-8").splitlines()) == len(inserted)
    assert not list((folder / "train").glob("*manifest*"))
    text = (folder / "train/train.jsonl").read_text("utf-8")
    for entry in manifest.canaries:
        assert (entry.row["answer"] in text) is entry.inserted
    audited = expunge(
        "canary", "audit", str(folder / "model"), "--manifest", done.document["manifest"], "--json",
        "--seal", done.document["seal"],
    )  # fmt: skip
    assert audited.code == 0, audited.stderr
    model = audited.document["models"]["p"]
    assert set(model["epsilon"]) == {"one_run", "clopper_pearson", "fdp_one_run", "gdp"}
    assert {model["epsilon"][name]["kind"] for name in ("one_run", "clopper_pearson")} == {"bound"}
    assert {model["epsilon"][name]["kind"] for name in ("fdp_one_run", "gdp")} == {"estimate"}
    assert "100 are needed" in model["tpr_at_1_fpr"]["reason"]
    assert not lint(audited.stdout)
    assert "secret" not in json.dumps(audited.document["models"])
    loaded, tokenizer = load_model(folder / "model")
    assert loaded.config.vocab_size == len(tokenizer) == 24 + len(load_model(lab.base).tokenizer)


def test_target_unlearned_and_reference_in_one_table(lab: Lab, bigram: Path, finished: Path) -> None:
    given = ["canary", "audit", str(finished), "--manifest", str(bigram / "manifest/manifest.json")]
    done = expunge(*given, "--target", lab.base, "--json")
    assert done.code == 0, done.stderr
    assert [model["role"] for model in done.document["models"].values()] == ["target", "other"]
    told = expunge(*given, "--reference", lab.base)
    assert told.code == 0
    for text in ("TPR at 1 % FPR", "one run", "reference", "could have shown epsilon", "Assumed"):
        assert text in told.stdout
    assert "at most" not in told.stdout


def test_the_report_of_a_run_shows_the_canaries(lab: Lab, bigram: Path, tmp_path: Path) -> None:
    manifest = str(bigram / "manifest/manifest.json")
    done = expunge(*lab.run(tmp_path / "run", "--reference", lab.base, "--set", f"audit.canaries={manifest}"), "--json")
    assert done.code == 0, done.stderr
    assert list(done.document["canaries"]["models"]) == ["target", "reference", "grad_diff"]
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert 'id="canaries"' in page
    assert "could have shown epsilon" in page
    audited = expunge(
        "audit", str(tmp_path / "run/model"), "--forget", lab.file("forget"), "-o", str(tmp_path / "audit"),
        "--set", f"audit.canaries={manifest}", "--set", "data.template=question", "--set", "audit.generate=false",
        "--set", "audit.bootstrap=100", "--json",
    )  # fmt: skip
    assert audited.code == 0, audited.stderr
    assert [model["role"] for model in audited.document["canaries"]["models"].values()] == ["method"]
    shown = done.document["canaries"]["models"]["grad_diff"]
    for name, metrics in ((n, m["metrics"]) for n, m in done.document["models"].items()):
        own = done.document["canaries"]["models"][name]
        assert metrics["canary.auc"]["value"] == own["auc"]["value"]
        assert metrics["canary.one_run"]["value"] == own["epsilon"]["one_run"]["value"]
        assert metrics["canary.one_run"]["most"] == own["epsilon"]["one_run"]["power"]
        assert metrics["canary.gdp"]["caveat"].startswith("an estimate, not a bound")
        assert metrics["canary.tpr_at_1_fpr"]["value"] is None
    joined = expunge("compare", str(tmp_path / "run"), "-o", str(tmp_path / "compare.html"), "--json")
    assert joined.code == 0, joined.stderr
    assert joined.document["models"]["grad_diff"]["metrics"]["canary.auc"]["value"] == shown["auc"]["value"]


def test_a_policy_names_what_canaries_show(lab: Lab, bigram: Path, tmp_path: Path) -> None:
    def audited(name: str, *more: str) -> Called:
        given = ["audit", lab.base, "--forget", lab.file("forget"), "-o", str(tmp_path / name), "--json"]
        sets = ["data.template=question", "audit.generate=false", "audit.bootstrap=100", *more]
        return expunge(*given, *(part for item in sets for part in ("--set", item)))

    planted = f"audit.canaries={bigram / 'manifest/manifest.json'}"
    low, high = (f"policy.bounds={{canary.one_run: {{max: {limit}}}}}" for limit in (0.01, 5.0))
    for bound, met in ((low, True), (high, False)):  # 24 canaries cannot show an epsilon of 5
        done = audited(f"limit-{met}", planted, bound)
        (rule,) = done.document["policy"]["rules"]
        assert (done.code, rule["met"], rule["measured"]) == (0 if met else 3, met, 0.0)
        assert ("could not have shown more than" in rule["reason"]) is not met
    none = audited("without", low)
    (rule,) = none.document["policy"]["rules"]
    assert (none.code, rule["measured"]) == (3, None)
    assert "names the manifest" in rule["reason"]
    assert "not measured (no canaries were scored" in (tmp_path / "without/report.html").read_text("utf-8")
    asked = audited("asked", "audit.metrics=[canary.*]")
    metrics = next(iter(asked.document["models"].values()))["metrics"]
    assert {found["value"] for found in metrics.values()} == {None}
    assert all("names the manifest" in found["reason"] for found in metrics.values())
    plain = audited("plain")
    assert not any(name.startswith("canary") for name in next(iter(plain.document["models"].values()))["metrics"])


def test_bad_input(lab: Lab, source: str, bigram: Path, tmp_path: Path) -> None:
    manifest = bigram / "manifest/manifest.json"
    wrong_template = expunge(
        *lab.run(tmp_path / "run"), "--set", f"audit.canaries={manifest}", "--set", "data.template=raw"
    )
    assert (wrong_template.code, "data.template" in wrong_template.said) == (6, True)
    assert not (tmp_path / "run").exists()
    grown = expunge(*plant(lab, source, tmp_path / "p"))
    assert grown.code == 0
    other = expunge("canary", "audit", str(tmp_path / "p/model"), "--manifest", str(manifest))
    assert (other.code, "another vocabulary" in other.said) == (6, True)
    broken = json.loads(manifest.read_text("utf-8"))
    broken["canaries"][0]["inserted"] ^= True
    (tmp_path / "broken.json").write_text(json.dumps(broken), "utf-8")
    sealed = expunge("canary", "audit", lab.base, "--manifest", str(tmp_path / "broken.json"))
    assert (sealed.code, "seal is broken" in sealed.said) == (4, True)
    noted = expunge("canary", "audit", lab.base, "--manifest", str(manifest), "--seal", "ab" * 32)
    assert noted.code == 4
    none = expunge("canary", "audit", "--manifest", str(manifest))
    assert (none.code, "--target" in none.said) == (2, True)
    range_ = expunge("canary", "audit", lab.base, "--manifest", str(manifest), "--delta", "2")
    assert (range_.code, "--delta" in range_.said) == (2, True)
    for more, code, said in (
        (("--design", "trigram"), 2, "design"), (("--n", "1"), 2, "n"), (("--n", "99999"), 6, "beginnings"),
    ):  # fmt: skip
        done = expunge(*plant(lab, source, tmp_path / "bad"), *more)
        assert (done.code, said in done.said) == (code, True)
    again = expunge(*plant(lab, source, tmp_path / "p"))
    assert (again.code, "not empty" in again.said) == (2, True)
    assert not (tmp_path / "bad").exists()


def test_too_few_canaries_say_so(lab: Lab, source: str, tmp_path: Path) -> None:
    done = expunge(*plant(lab, source, tmp_path / "p", "--design", "random", "--n", "6"))
    assert done.code == 0, done.stderr
    told = expunge("canary", "audit", lab.base, "--manifest", str(tmp_path / "p/manifest/manifest.json"))
    assert told.code == 0
    assert "Too few canaries for a bound" in told.stdout
