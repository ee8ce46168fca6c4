# SPDX-License-Identifier: Apache-2.0
"""Scalability and sustainability, tiny: the right data at every step, curves that add up, and finished steps kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from expunge.audit.store import read_records
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.fictitious import Archive
from expunge.data.loaders import load_examples
from expunge.data.writing import write_examples
from expunge.errors import InputDataError, RecipeError
from expunge.models.loading import save_model
from expunge.studies import steps
from expunge.studies.criteria import run_criterion
from expunge.studies.points import read_study
from expunge.studies.scalability import nested, scalability
from expunge.studies.sustainability import sustainability

METRICS = ("forget.probability", "retain.probability")


@pytest.fixture
def settings(tmp_path: Path, archive: Archive, target: nn.Module, encoder: Encoder) -> dict[str, Any]:
    """A recipe on the last three of ten people, for a model that learned all ten."""
    save_model(target, encoder.tokenizer, tmp_path / "target")
    gone = [fact.example() for person in archive.people[-3:] for fact in person.facts]
    kept = [fact.example() for person in archive.people[:3] for fact in person.facts]
    return {
        "model": {"path": str(tmp_path / "target")},
        "data": {
            "forget": str(write_examples(gone, tmp_path / "forget.jsonl")),
            "retain": str(write_examples(kept, tmp_path / "retain.jsonl")), "template": "question",
        },
        "method": {"name": "grad_diff"}, "training": {"learning_rate": 1e-3, "epochs": 3, "batch_size": 16},
        "audit": {"bootstrap": 100, "generate": False, "metrics": METRICS},
    }  # fmt: skip


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that a run really worked in, in order."""
    seen: list[Path] = []
    real = steps.run

    def run(recipe: Any, **options: Any) -> Any:
        folder = options["output_dir"]
        before = (folder / "model" / "model.safetensors").exists()
        result = real(recipe, **options)
        if not before:
            seen.append(folder)
        return result

    monkeypatch.setattr(steps, "run", run)
    return seen


def people(archive: Archive, *which: int) -> list[Example]:
    return [fact.example() for i in which for fact in archive.people[i].facts]


def ids(path: Path) -> list[str]:
    return [example.id for example in load_examples(path, name="x")]


def test_fractions_keep_subjects_whole(archive: Archive) -> None:
    everyone = people(archive, 0, 1, 2, 3)
    sets = nested(everyone, (0.01, 0.5, 1.0))
    assert [len({example.subject for example in found}) for found in sets] == [1, 2, 4]
    assert sets[0] == everyone[: len(sets[0])]
    loners = [Example(id=str(i), prompt="q", answer=str(i)) for i in range(10)]
    assert [len(found) for found in nested(loners, (0.25, 0.34, 1.0))] == [3, 3, 10]
    with pytest.raises(RecipeError, match="fractions"):
        nested(everyone, (0.0,))


def test_scalability(tmp_path: Path, settings: dict[str, Any], archive: Archive, runs: list[Path]) -> None:
    folder = tmp_path / "study"
    study = scalability(settings, folder=folder, fractions=(0.3, 1.0), commands=("expunge benchmark ...",))
    assert runs == list(study.runs) == [folder / "seed-0/step-1", folder / "seed-0/step-2"]
    assert ids(folder / "data/forget-1.jsonl") == [example.id for example in people(archive, 7)]
    document = read_study(folder)
    points = document["points"]
    assert [point["examples"] for point in points] == [8, 24]
    assert 0 < points[0]["tokens"] < points[1]["tokens"]
    assert document["complete"]
    for point, run in zip(points, study.runs, strict=True):
        info = json.loads((run / "run.json").read_text())
        assert point["recipe_hash"] == info["recipe_hash"]
        assert info["recipe"]["model"]["path"] == settings["model"]["path"]  # each step from the original
        audit = json.loads((run / "audit.json").read_text())
        assert audit["models"]["grad_diff"]["metrics"]["forget.probability"]["value"] == pytest.approx(
            point["after"]["forget.probability"]["value"]
        )
    forgetting, utility = document["curves"]["forgetting"], document["curves"]["utility"]
    assert (forgetting["metric"], utility["metric"]) == ("forget.probability", "retain.probability")
    assert [place["x"] for place in forgetting["lines"]["unlearned"]] == [8, 24]
    assert all(a["value"] < b["value"] for a, b in zip(*forgetting["lines"].values(), strict=True))
    same = {place["value"] for place in utility["lines"]["before"]}
    assert max(same) == pytest.approx(min(same))
    page = study.report.read_text()
    assert "Not tested" in page
    assert page.count("<svg") == 4  # two curves in two widths


def test_finished_steps_are_kept_and_a_dead_study_goes_on(
    tmp_path: Path, settings: dict[str, Any], runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, counted = tmp_path / "study", steps.run

    def dies(recipe: Any, **options: Any) -> Any:
        if options["output_dir"].name == "step-2":
            raise OSError("the machine went away")
        return counted(recipe, **options)

    monkeypatch.setattr(steps, "run", dies)
    with pytest.raises(OSError, match="went away"):
        scalability(settings, folder=folder, fractions=(0.3, 1.0))
    half = read_study(folder)
    assert (len(half["points"]), half["complete"]) == (1, False)
    assert "not complete" in (folder / "report.html").read_text()
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    monkeypatch.setattr(steps, "run", counted)
    whole = scalability(settings, folder=folder, fractions=(0.3, 1.0))
    assert [path.name for path in runs] == ["step-1", "step-2"]
    assert whole.document["points"][0]["after"] == half["points"][0]["after"]
    with pytest.raises(RecipeError, match="another recipe"):
        scalability(settings, folder=folder, fractions=(0.5, 1.0))


def test_sustainability(tmp_path: Path, settings: dict[str, Any], archive: Archive) -> None:
    requests = [people(archive, 7), people(archive, 8, 9)]
    study = sustainability(settings, requests=requests, folder=tmp_path / "study")
    first, second = study.runs
    recipe = json.loads((second / "run.json").read_text())["recipe"]
    assert recipe["model"]["path"] == str(first / "model")  # each step from the one before
    assert ids(Path(recipe["data"]["forget"])) == [example.id for example in requests[1]]
    assert ids(Path(recipe["data"]["evaluate"]["forget"])) == [example.id for group in requests for example in group]
    document = study.document
    lines = document["curves"]["forgetting"]["lines"]["unlearned"]
    assert [place["x"] for place in lines] == [0, 1, 2]
    assert lines[0]["value"] > lines[1]["value"]
    asked = document["curves"]["requests"]["lines"]
    assert {name: [place["x"] for place in line] for name, line in asked.items()} == {
        "request 1": [1, 2], "request 2": [2],
    }  # fmt: skip
    assert asked["request 1"][0]["value"] == pytest.approx(lines[1]["value"])
    # By hand from the records: the mean over both requests is that over everything asked so far.
    both = [asked["request 1"][1]["value"], asked["request 2"][0]["value"]]
    assert np.average(both, weights=[8, 16]) == pytest.approx(lines[2]["value"])
    digest = document["points"][1]["model_digest"]
    records = [r for r in map(read_records, (tmp_path / "study/records").iterdir()) if r.meta["model_digest"] == digest]
    own = [item for item in records[0].scored if item.set == "forget" and item.variant == "answer"]
    firsts = [np.exp(np.mean(item.logp)) for item in own if item.id in {example.id for example in requests[0]}]
    assert both[0] == pytest.approx(np.mean(firsts))


def test_several_seeds_have_lines_of_their_own(tmp_path: Path, settings: dict[str, Any], archive: Archive) -> None:
    settings["training"]["epochs"] = 1
    study = scalability(settings, sources=[people(archive, 9)], folder=tmp_path / "study", seeds=(0, 1))
    assert list(study.document["curves"]["utility"]["lines"]) == ["unlearned, seed 0", "before", "unlearned, seed 1"]
    assert [point["seed"] for point in study.document["points"]] == [0, 1]


def test_what_cannot_be_a_study(tmp_path: Path, settings: dict[str, Any], archive: Archive) -> None:
    folder = tmp_path / "study"
    with pytest.raises(RecipeError, match="growing"):
        scalability(settings, sources=[people(archive, 8), people(archive, 9)], folder=folder)
    with pytest.raises(RecipeError, match=r"data\.limit"):
        scalability({**settings, "data": {**settings["data"], "limit": 5}}, folder=folder)
    with pytest.raises(RecipeError, match="fractions"):
        scalability(settings, sources=[people(archive, 8)], fractions=(0.5,), folder=folder)
    with pytest.raises(InputDataError, match="several requests"):
        sustainability(settings, requests=[people(archive, 8), people(archive, 8)], folder=folder)
    with pytest.raises(RecipeError, match="criterion"):
        run_criterion("muse", "stability", settings, folder=folder)
    with pytest.raises(RecipeError, match="benchmark"):
        run_criterion("tofu", "scalability", settings, folder=folder)
    with pytest.raises(RecipeError, match="benchmark"):
        run_criterion("muse", "collapse", settings, folder=folder)
    with pytest.raises(RecipeError, match=r"1 to 5"):
        run_criterion("fictitious", "scalability", settings, folder=folder, people=10, requests=6)
    assert not folder.exists()


def test_requests_that_share_examples_are_noted(tmp_path: Path, settings: dict[str, Any], archive: Archive) -> None:
    one = people(archive, 9)
    again = [Example(id=f"again-{e.id}", prompt=e.prompt, answer=e.answer, subject=e.subject) for e in one[:3]]
    settings["training"]["epochs"] = 1
    study = sustainability(settings, requests=[one, again], folder=tmp_path / "study")
    assert study.document["notes"] == ["Requests 1 and 2 share 3 different examples."]


def test_the_fictitious_study_takes_a_given_model(tmp_path: Path, settings: dict[str, Any]) -> None:
    own = {**settings, "seed": 1, "data": {}, "training": {**settings["training"], "epochs": 1}}
    study = run_criterion(
        "fictitious", "sustainability", own, folder=tmp_path / "study", people=10, requests=2
    )  # fmt: skip
    assert [point["new_examples"] for point in study.document["points"]] == [8, 8]
    assert not (tmp_path / "study-world/target").exists()
    before = study.document["points"][0]["before"]["forget.probability"]["value"]
    assert before > 0.5  # the archive of this seed is the one the model learned


def test_muse_folds_by_the_same_command(
    tmp_path: Path, encoder: Encoder, fresh: Callable[[], nn.Module], settings: dict[str, Any]
) -> None:
    save_model(fresh(), encoder.tokenizer, tmp_path / "fresh")
    corpus = tmp_path / "muse/news"
    files: dict[str, Any] = {"raw/forget": ["Ann sells boats.", "", "Bob has a tree."]}
    files |= {f"sust/forget_{k}": [f"Text {k} of the river.", f"More of text {k}."] for k in (2, 3, 4)}
    files |= {f"privleak/{part}": [f"{part} {i} by the sea." for i in range(3)] for part in ("forget", "holdout")}
    files["verbmem/forget"] = [{"prompt": "Ann sells", "gt": " boats."}, {"prompt": "Bob has", "gt": " a tree."}]
    for part in ("forget", "retain"):
        files[f"knowmem/{part}_qa"] = [{"question": f"{part} {i}?", "answer": "a boat"} for i in range(2)]
        files[f"knowmem/{part}_qa_icl"] = [{"question": "a?", "answer": "b"}]
    for name, value in files.items():
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / f"{name}.json").write_text(json.dumps(value))
    own = {
        "model": {"path": str(tmp_path / "fresh")}, "method": {"name": "ga"},
        "training": {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4}, "audit": {"bootstrap": 100},
    }  # fmt: skip
    study = run_criterion(
        "muse", "scalability", own, folder=tmp_path / "study", data_dir=tmp_path / "muse", requests=2
    )  # fmt: skip
    document = study.document
    assert [point["examples"] for point in document["points"]] == [2, 4]
    assert document["protocol"]["name"] == "muse-news"
    assert (document["curves"]["forgetting"]["metric"], document["curves"]["utility"]["metric"]) == (
        "knowmem_f", "knowmem_r",
    )  # fmt: skip
    assert "union" in " ".join(document["notes"])
    audit = json.loads((study.runs[1] / "audit.json").read_text())
    found = audit["models"]["ga"]["metrics"]
    assert {name for name in ("verbmem", "privleak_published") if found[name]["value"] is not None} == {
        "verbmem", "privleak_published",
    }  # fmt: skip
    assert audit["protocol"]["members"] == ["forget"]
