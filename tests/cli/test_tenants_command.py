# SPDX-License-Identifier: Apache-2.0
"""`expunge tenants`: a tenant's removal leaves what training without it gives, and the proof is a digest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from typer.testing import CliRunner

from expunge.api.routing import Router
from expunge.api.workspace import load
from expunge.audit.document import read_audit
from expunge.cli.main import app
from expunge.data.encoding import Encoder
from expunge.errors import InputDataError, VerificationFailed
from expunge.models.config import ModelConfig
from expunge.models.digests import folder_digest, model_digest
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama
from expunge.training.shards.reserve import Reserve

QUICK = ("--set", "training.epochs=2", "--set", "training.batch_size=2", "--set", "training.learning_rate=0.01",
         "--processes", "1")  # fmt: skip
WAYS: dict[str, tuple[str, ...]] = {"adapters": ("--set", "training.lora.r=2"), "weights": ("--reserve-weights",)}


def call(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [*map(str, words)])
    return found.exit_code, found.output


def document(*words: object) -> Any:
    found = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    """Three tenants in both ways, on one model."""
    folder = tmp_path_factory.mktemp("tenants")
    model = build_llama(len(encoder.tokenizer), hidden_size=16, layers=1, heads=2, context=64)
    save_model(model, encoder.tokenizer, folder / "base")
    rows = [{"id": f"{who}-{k}", "question": f"What is {k} of {who}", "answer": f"{k} {who[::-1]}", "subject": who}
            for who in ("ash", "birch", "cedar") for k in ("one", "two", "three")]  # fmt: skip
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for way in WAYS:
        code, said = trained(folder, "all.jsonl", folder / way, way)
        assert code == 0, said
    return folder


def trained(folder: Path, data: str, out: Path, way: str) -> tuple[int, str]:
    return call("tenants", "train", "--model", folder / "base", "--data", folder / data, "-o", out, *QUICK, *WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_removal_deletes_one_file_and_leaves_the_others(office: Path, tmp_path: Path, way: str) -> None:
    folder = Path(shutil.copytree(office / way, tmp_path / way))
    before = folder_digest(folder / "shards")
    done = document("tenants", "remove", folder, "birch")
    assert (done["shard"], done["examples"]) == (1, 3)
    assert folder_digest(folder / "shards") == {n: d for n, d in before.items() if not n.startswith("001/")}
    assert done["files"] == [d for n, d in before.items() if n.startswith("001/") and n.endswith("safetensors")]
    told = document("tenants", "verify", folder)
    assert (told["problems"], len(told["removals"]), told["claim"]) == ([], 1, "exact")
    assert '"birch"' not in (folder / "manifest.json").read_text()
    assert call("tenants", "remove", folder, "birch")[0] == 6


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_is_the_model_that_never_had_the_tenant(office: Path, tmp_path: Path, way: str) -> None:
    """The plan with its places, the tenant's texts replaced by others: the result has the same bytes."""
    folder = Path(shutil.copytree(office / way, tmp_path / way))
    rows = [json.loads(line) for line in (office / "all.jsonl").read_text().splitlines()]
    other = [{**r, "answer": "something else"} if r["subject"] == "birch" else r for r in rows]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, other)))
    (tmp_path / "base").symlink_to(office / "base")
    assert trained(tmp_path, "other.jsonl", tmp_path / "never", way)[0] == 0
    found = []
    for one in (folder, tmp_path / "never"):
        document("tenants", "remove", one, "birch")
        found.append(model_digest(opened(one)))
    assert found[0] == found[1] != model_digest(opened(office / way))


def opened(folder: Path) -> Any:
    config = ModelConfig(path=str(folder / "model"))
    return load(config, config.path, dtype="float32").model


def test_weights_kept_elsewhere_in_the_folder_are_found(office: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(office / "adapters", tmp_path / "a"))
    shutil.copy(folder / "shards" / "002" / "stage-000" / "weights.safetensors", folder / "backup.bin")
    document("tenants", "remove", folder, "cedar")
    code, said = call("tenants", "verify", folder)
    assert code == 4
    assert "still in backup.bin" in " ".join(said.split())


def test_reserved_weights_are_disjoint_and_the_rest_is_the_base(office: Path, tmp_path: Path) -> None:
    base, joined = opened_base(office), opened(office / "weights")
    folder = Path(shutil.copytree(office / "weights", tmp_path / "w"))
    document("tenants", "remove", folder, "ash")
    without = opened(folder)
    moved = 0
    for name, start in base.named_parameters():
        masks = torch.stack([Reserve(k, 3).mask(name, start.shape) for k in range(3)])
        assert (masks.sum(0) == 1).all()
        left, full = without.get_parameter(name), joined.get_parameter(name)
        assert torch.equal(left[masks[0]], start[masks[0]])
        assert torch.equal(left[~masks[0]], full[~masks[0]])
        moved += int((full != start)[masks[0]].sum())
        assert torch.equal(full, start) == ("layers" not in name or "norm" in name)
    assert moved > 0


def opened_base(office: Path) -> Any:
    config = ModelConfig(path=str(office / "base"))
    return load(config, config.path, dtype="float32").model


def test_all_tenants_may_leave(office: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(office / "adapters", tmp_path / "a"))
    for who in ("ash", "birch", "cedar"):
        document("tenants", "remove", folder, who)
    assert not (folder / "model").exists()
    assert document("tenants", "verify", folder)["problems"] == []


def test_tenants_are_never_mixed(office: Path, tmp_path: Path) -> None:
    (tmp_path / "no.jsonl").write_text('{"id": "a", "question": "b", "answer": "c"}')
    assert (
        call("tenants", "train", "--model", office / "base", "--data", tmp_path / "no.jsonl", "-o", tmp_path / "x")[0]
        == 2
    )
    code, said = call("tenants", "train", "--model", office / "base", "--data", office / "all.jsonl", "--set",
                      "sisa.split=balanced")  # fmt: skip
    assert code == 2
    assert "mix tenants" in said


def rows_of(office: Path, who: str) -> list[dict[str, str]]:
    rows = [json.loads(line) for line in (office / "all.jsonl").read_text().splitlines()]
    return [row for row in rows if row["subject"] == who]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return cast(torch.Tensor, model(torch.arange(3, 33)[None]).logits)


def alone(office: Path, tmp_path: Path, who: str, way: str) -> Path:
    """The first tenant trained as the only one: the same seed, so the same weights. Shares of weights would differ."""
    (office / f"{who}.jsonl").write_text("\n".join(map(json.dumps, rows_of(office, who))))
    assert trained(office, f"{who}.jsonl", tmp_path / "alone", way)[0] == 0
    return tmp_path / "alone"


def test_a_tenant_answers_with_its_own_weights_and_others_with_none(office: Path, tmp_path: Path) -> None:
    own, base = logits(opened(alone(office, tmp_path, "ash", "adapters"))), logits(opened_base(office))
    router = Router(office / "adapters")
    assert router.tenants == ("ash", "birch", "cedar")
    found = [logits(router.at(who)) for who in (None, "ash", "birch", None, "ash")]
    assert torch.equal(found[0], base)
    assert torch.equal(found[3], base)
    torch.testing.assert_close(found[1].log_softmax(-1), own.log_softmax(-1), atol=1e-5, rtol=1e-5)
    assert torch.equal(found[4], found[1])
    assert (found[2] - found[1]).abs().max() > 1e-3
    with pytest.raises(InputDataError, match="no such tenant"):
        router.at("oak")


def test_reserved_weights_are_routed_alone(office: Path) -> None:
    router, base = Router(office / "weights"), dict(opened_base(office).named_parameters())
    for who, shard in (("cedar", 2), ("ash", 0)):
        for name, own in router.at(who).named_parameters():
            mask = Reserve(shard, 3).mask(name, own.shape)
            assert torch.equal(own[~mask], base[name][~mask])
    assert torch.equal(logits(router.at(None)), logits(opened_base(office)))


def test_examples_are_answered_and_measured_by_tenant(office: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(office / "adapters", tmp_path / "a"))
    only = alone(office, tmp_path, "ash", "adapters")
    document("tenants", "remove", folder, "birch")
    code, said = call("tenants", "answer", folder, "--data", office / "all.jsonl", "--max-new-tokens", 4,
                      "-o", tmp_path / "said.jsonl")  # fmt: skip
    assert code == 0, said
    told = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["tenant"] for row in told] == ["ash"] * 3 + [""] * 3 + ["cedar"] * 3
    assert [row["id"] for row in told][:3] == ["ash-one", "ash-two", "ash-three"]
    others = [row for who in ("birch", "cedar") for row in rows_of(office, who)]
    (tmp_path / "others.jsonl").write_text("\n".join(map(json.dumps, others)))
    more = ("--set", "audit.max_new_tokens=4", "--set", "audit.bootstrap=100")
    routed = document("tenants", "audit", folder, "--forget", office / "ash.jsonl", "--retain",
                      tmp_path / "others.jsonl", *more, "-o", tmp_path / "routed.json")  # fmt: skip
    assert read_audit(tmp_path / "routed.json").models["tenants"].meta["routes"] == {"ash": 3, "": 3, "cedar": 3}
    single = document("audit", only, "--forget", office / "ash.jsonl", *more, "--set", "data.template=question",
                      "-o", tmp_path / "single")  # fmt: skip
    (one,), (two,) = routed["models"].values(), single["models"].values()
    for name in ("forget.probability", "forget.rouge_l", "forget.extraction_strength"):
        assert one["metrics"][name]["value"] == pytest.approx(two["metrics"][name]["value"], abs=1e-6), name
    assert one["meta"]["data"]["retain"]["n"] == 6


def test_shards_of_many_and_changed_weights_are_not_routed(office: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(office / "adapters", tmp_path / "a"))
    shutil.copy(
        folder / "shards/000/stage-000/weights.safetensors", folder / "shards/001/stage-000/weights.safetensors"
    )
    router = Router(folder)
    router.at("ash")
    with pytest.raises(VerificationFailed, match="not what was written"):
        router.at("birch")
    for who in ("ash", "birch", "cedar"):
        document("tenants", "remove", folder, who)
    assert call("tenants", "answer", folder, "--data", office / "all.jsonl")[0] == 6
