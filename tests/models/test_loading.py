# SPDX-License-Identifier: Apache-2.0
"""Loading and saving: what comes back is what went in, and a folder that lacks something says what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, MambaConfig, PreTrainedTokenizerFast

from expunge.errors import InputDataError, RecipeError
from expunge.models.adapters import LoraSettings, add_lora, is_lora, merge_lora
from expunge.models.digests import model_digest
from expunge.models.loading import context_length, load_model, save_model
from expunge.models.tiny import build_llama, build_tokenizer

STORIES = Path(__file__).parents[2] / "../shared/weights/stories260K/hf"
IDS = torch.tensor([[5, 9, 40, 7]])


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(["a small text of few words"], vocab_size=270)


@pytest.fixture
def model() -> LlamaForCausalLM:
    return build_llama(270, hidden_size=16, layers=2, heads=2, context=32)


@pytest.fixture
def saved(tmp_path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(saved: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    again, read = load_model(saved)
    assert model_digest(again) == model_digest(model)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert read("few words")["input_ids"] == tokenizer("few words")["input_ids"]
    assert not again.training
    assert context_length(again) == 32
    names = {path.name for path in saved.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype(saved: Path, dtype: str) -> None:
    assert {p.dtype for p in load_model(str(saved), dtype=dtype).model.parameters()} == {getattr(torch, dtype)}


def test_saving_does_not_overwrite_unless_told(saved: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    other = build_llama(270, hidden_size=16, layers=2, heads=2, context=32, seed=1)
    with pytest.raises(InputDataError, match="is not empty"):
        save_model(other, tokenizer, saved)
    save_model(other, tokenizer, saved, overwrite=True)
    assert model_digest(load_model(saved).model) == model_digest(other)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_model_and_nothing_else(
    saved: Path, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            assert (folder / "model.safetensors").exists()  # the failure comes after the weights
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_model(model, Broken(), saved, overwrite=True)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    load_model(saved)


def test_adapter_folder_loads_as_base_plus_adapter(
    saved: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    adapted = add_lora(load_model(saved).model, LoraSettings(r=2, alpha=4.0))
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    expected = adapted(IDS).logits.detach()
    save_model(adapted, tokenizer, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again, _ = load_model(tmp_path / "adapter")
    assert is_lora(again)
    assert torch.equal(again(IDS).logits, expected)
    merged = merge_lora(again)
    assert isinstance(merged, LlamaForCausalLM)
    assert not is_lora(merged)
    assert torch.allclose(merged(IDS).logits, expected, atol=1e-6)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputDataError, match="no adapter weights"):
        load_model(tmp_path / "adapter")


def test_lora_starts_as_identity_and_refuses_misuse(model: LlamaForCausalLM) -> None:
    before = model(IDS).logits.detach()
    with pytest.raises(RecipeError, match="no adapter to merge"):
        merge_lora(model)
    with pytest.raises(RecipeError, match=r"lora\.target_modules"):
        add_lora(model, LoraSettings(target_modules=("nowhere",)))
    adapted = add_lora(model, LoraSettings())
    assert torch.equal(adapted(IDS).logits, before)
    with pytest.raises(RecipeError, match="adapter already"):
        add_lora(adapted, LoraSettings())


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def more_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))


def wrong_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))


def lost_shard(folder: Path) -> None:
    remove_weights(folder)
    (folder / "model-00001-of-00002.safetensors").touch()
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (remove_config, "no config.json"),
        (remove_weights, "no weights"),
        (remove_tokenizer, "no tokenizer files"),
        (cut_weights, "cannot be loaded"),
        (more_layers, "the weights lack 9 tensors"),
        (wrong_type, "cannot be loaded"),
        (lost_shard, "1 of 2 weight files are missing, such as model-00002"),
    ],
)
def test_damaged_folders_say_what_is_wrong(saved: Path, damage: object, message: str) -> None:
    damage(saved)  # type: ignore[operator]
    with pytest.raises(InputDataError) as caught:
        load_model(saved)
    assert message in str(caught.value)
    assert str(saved) in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "nowhere/", "models/a/b", "../x"])
def test_paths_are_not_taken_for_hub_ids(name: str) -> None:
    with pytest.raises(InputDataError, match="no such folder"):
        load_model(name)


def test_unreachable_hub_id_and_wrong_options(saved: Path) -> None:
    with pytest.raises(InputDataError, match="neither a folder nor a model the hub gives"):
        load_model("nobody/nothing-here")
    with pytest.raises(InputDataError, match="is a file"):
        load_model(saved / "config.json")
    with pytest.raises(RecipeError, match=r"Did you mean 'bfloat16'"):
        load_model(saved, dtype="bfloat")
    with pytest.raises(RecipeError, match="unknown device"):
        load_model(saved, device="gpu")


def test_context_length_must_be_named(model: LlamaForCausalLM) -> None:
    model.config = MambaConfig()  # a recurrent model has none
    with pytest.raises(InputDataError, match="names no context length"):
        context_length(model)


@pytest.mark.real
@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared stories260K folder is absent")
def test_real_stories_model() -> None:
    model, tokenizer = load_model(STORIES)
    assert sum(p.numel() for p in model.parameters()) == 260_032
    assert context_length(model) == 512
    ids = tokenizer("Once upon a time, there was a little girl named Lily.", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 16)
    loss = model(ids, labels=ids).loss.item()
    assert loss == pytest.approx(0.10014, abs=1e-3)
