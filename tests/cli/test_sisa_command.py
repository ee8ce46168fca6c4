# SPDX-License-Identifier: Apache-2.0
"""`expunge sisa` as a user types it: train, forget, check, and measure the ensemble as one model."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from expunge.api.workspace import load
from expunge.cli.main import app
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.fictitious import Archive
from expunge.models.config import ModelConfig
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama
from expunge.signals.likelihood import score
from expunge.training.shards.stages import file_digest

LORA = ("--set", "training.lora.r=2")
QUICK = ("--set", "training.epochs=2", "--set", "training.batch_size=4", "--set", "training.learning_rate=0.01",
         "--processes", "1")  # fmt: skip


def call(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [*map(str, words)])
    return found.exit_code, found.output


def document(*words: object) -> Any:
    found = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, archive: Archive, encoder: Encoder) -> Path:
    """A folder with a model and 20 examples of five people."""
    folder = tmp_path_factory.mktemp("sisa-cli")
    model = build_llama(len(encoder.tokenizer), hidden_size=16, layers=1, heads=2, context=128)
    save_model(model, encoder.tokenizer, folder / "base")
    people = list(dict.fromkeys(e.subject for e in archive.training_examples("full") if e.subject))[:5]
    rows = [e for who in people for e in [e for e in archive.training_examples("full") if e.subject == who][:4]]
    write(folder / "train.jsonl", rows)
    for name, more in (("full", ()), ("lora", LORA)):
        done = call("sisa", "train", "--model", folder / "base", "--data", folder / "train.jsonl", "--shards", 2,
                    "--slices", 2, "-o", folder / name, *QUICK, *more)  # fmt: skip
        assert done[0] == 0, done[1]
    return folder


def write(path: Path, rows: list[Example]) -> None:
    lines = [{"id": e.id, "question": e.prompt, "answer": e.answer, "subject": e.subject} for e in rows]
    path.write_text("\n".join(json.dumps(line) for line in lines))


def copied(place: Path, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / name, tmp_path / name))


def files(folder: Path) -> dict[str, str]:
    found = [p for p in (folder / "shards").rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in found}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_subject_leaves_and_the_shard_is_the_one_trained_without_it(place: Path, tmp_path: Path, kind: str) -> None:
    folder, before = copied(place, kind, tmp_path), files(place / kind)
    manifest = json.loads((folder / "manifest.json").read_text())
    gone = manifest["places"][0]
    wanted = document("sisa", "forget", folder, "--subject", gone["subject"], "--dry-run")
    assert files(folder) == before
    told = document("sisa", "forget", folder, "--subject", gone["subject"], "--processes", 1)
    assert told == wanted
    assert told["examples"] == sum(p["subject"] == gone["subject"] for p in manifest["places"])
    assert list(told["shards"]) == [str(gone["shard"])]
    assert 0 < told["rows_read"] < told["rows_plain"]
    other = [name for name in before if not name.startswith(f"shards/{gone['shard']:03d}")]
    after = files(folder)
    assert {n: after[n] for n in other} == {n: before[n] for n in other}
    assert after != before
    told = document("sisa", "audit", folder, "--again", gone["shard"])
    assert (told["claim"], told["problems"], told["trained_again"]) == ("exact", [], [gone["shard"]])
    assert f'"{gone["subject"]}"' not in (folder / "manifest.json").read_text()


@pytest.mark.slow
def test_shards_trained_side_by_side_are_the_same(place: Path, tmp_path: Path) -> None:
    for kind, more in (("full", ()), ("lora", LORA)):
        code, said = call("sisa", "train", "--model", place / "base", "--data", place / "train.jsonl", "--shards", 2,
                          "--slices", 2, "-o", tmp_path / kind, *QUICK, "--processes", 2, *more)  # fmt: skip
        assert code == 0, said
        assert files(tmp_path / kind) == files(place / kind)


def test_what_left_need_not_be_in_the_data_any_more(place: Path, tmp_path: Path) -> None:
    folder = copied(place, "full", tmp_path)
    lines = (place / "train.jsonl").read_text().splitlines()
    first = json.loads(lines[0])["id"]
    (tmp_path / "less.jsonl").write_text("\n".join(lines[1:]))
    assert document("sisa", "forget", folder, "--id", first, "--data", tmp_path / "less.jsonl")["examples"] == 1
    code, said = call("sisa", "forget", folder, "--id", json.loads(lines[1])["id"], "--data", tmp_path / "no.jsonl")
    assert code == 6, said
    changed = [json.dumps({**json.loads(lines[2]), "answer": "another"}), *lines[3:], lines[1]]
    (tmp_path / "changed.jsonl").write_text("\n".join(changed))
    code, said = call(
        "sisa", "forget", folder, "--id", json.loads(lines[4])["id"], "--data", tmp_path / "changed.jsonl"
    )
    assert code == 6
    assert "not the one that was trained on" in said


def test_a_check_finds_what_does_not_follow(place: Path, tmp_path: Path) -> None:
    folder = copied(place, "full", tmp_path)
    (folder / "shards" / "000" / "old-copy").mkdir()
    (folder / "shards" / "000" / ".partial-stage-001").mkdir()
    code, said = call("sisa", "audit", folder)
    assert code == 4
    assert "old-copy is in no plan" in said
    assert "partial-stage-001 is in no plan" in said
    shutil.rmtree(folder / "shards" / "001" / "stage-001")
    assert "stage 1 does not follow" in call("sisa", "audit", folder)[1]
    assert call("sisa", "forget", folder)[0] == 2
    assert document("sisa", "forget", folder, "--resume")["rows_read"] > 0
    assert not (folder / "shards" / "000" / ".partial-stage-001").exists()
    assert files(folder) == files(place / "full")


def test_other_code_is_refused_unless_all_is_trained_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.api import sisa

    folder = copied(place, "full", tmp_path)
    monkeypatch.setattr(sisa, "code_identity", lambda: {"code": "another"})
    some = json.loads((folder / "manifest.json").read_text())["places"][0]["id"]
    assert call("sisa", "forget", folder, "--id", some)[0] == 2
    told = document("sisa", "forget", folder, "--id", some, "--again", "--processes", 1)
    assert told["rows_read"] == told["rows_plain"]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_folder_is_a_model_for_an_audit(place: Path, tmp_path: Path, kind: str) -> None:
    found = document("audit", place / kind, "--forget", place / "train.jsonl", "-o", tmp_path / "audit", "--set",
                     "audit.max_new_tokens=2", "--set", "data.limit=3")  # fmt: skip
    (model,) = found["models"].values()
    assert 0 < model["metrics"]["forget.probability"]["value"] < 1


def test_averaged_adapters_are_one_plain_model_with_the_mean_update(
    place: Path, tmp_path: Path, encoder: Encoder
) -> None:
    folder = copied(place, "lora", tmp_path)
    path = folder / "model" / "ensemble.json"
    config = ModelConfig(path=str(folder / "model"))
    joined = load(config, config.path, dtype="float32").model
    path.write_text(path.read_text().replace('"mean_probability"', '"average"'))
    plain = load(config, config.path, dtype="float32").model
    base = load(config, str(place / "base"), dtype="float32").model
    name = "model.layers.0.mlp.up_proj"
    layer = dict(joined.body.members[0].named_modules())[f"base_model.model.{name}"]
    mean = sum(layer.get_delta_weight(adapter) for adapter in ("default", "member1")) / 2
    wanted = base.get_submodule(name).weight + mean
    torch.testing.assert_close(plain.get_submodule(name).weight, wanted)
    assert not torch.equal(wanted, base.get_submodule(name).weight)
    items = [row.encoded for row in encoder.encode_many([Example(id="a", prompt="b", answer="c")], where="x")]
    assert len(score(plain, items, pad_id=0)) == 1
    assert asdict(items[0])


def test_weights_that_are_no_adapters_are_not_averaged(place: Path, tmp_path: Path) -> None:
    code, said = call("sisa", "train", "--model", place / "base", "--data", place / "train.jsonl", "-o", tmp_path / "a",
                      "--set", "sisa.aggregation=average", *QUICK)  # fmt: skip
    assert code == 2
    assert "adapters on one frozen base" in " ".join(said.split())


def test_a_member_whose_bytes_changed_is_not_loaded(place: Path, tmp_path: Path) -> None:
    folder = copied(place, "full", tmp_path)
    path = folder / "shards" / "000" / "stage-001" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    code, said = call("audit", folder, "--forget", place / "train.jsonl", "-o", tmp_path / "audit")
    assert code == 4
    assert "not what was written" in said
