# SPDX-License-Identifier: Apache-2.0
"""Memory foretold from recipe, data and shape against what a process really took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.api.footprint import moving_parameters
from expunge.api.plan import plan
from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive
from expunge.models.loading import save_model
from expunge.recipe import build_recipe

#: Width, inner width, blocks, vocabulary: 12, 33 and 87 million parameters.
SIZES = {"small": (256, 688, 12, 8192), "middle": (512, 1376, 8, 16384), "large": (768, 2064, 10, 20480)}
METHODS: dict[str, dict[str, Any]] = {
    "npo": {"name": "npo"},
    "grad_diff with kl": {"name": "grad_diff", "retain": "kl"},
    "rmu": {"name": "rmu", "layer": 4},
}
CHILD = """
import json, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from expunge.api.job import run
from expunge.recipe import build_recipe
run(build_recipe(json.loads(sys.argv[1])), output_dir=Path(sys.argv[2]))
"""


def save(folder: Path, encoder: Encoder, size: tuple[int, int, int, int]) -> None:
    width, inner, layers, vocabulary = size
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=128,
        tie_word_embeddings=True,
    )  # fmt: skip
    save_model(LlamaForCausalLM(config), encoder.tokenizer, folder)


def settings(folder: Path, model: Path, method: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model), "device": "cpu"},
        "data": {"forget": str(folder / "forget10.jsonl"), "retain": str(folder / "retain90.jsonl"),
                 "template": "question"},
        "method": method,
        "training": {"epochs": 3, "max_steps": 3, "batch_size": 8, "learning_rate": 1e-5, **training},
        "audit": {"generate": False, "bootstrap": 100, "limit": 4},
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_dry_run_foretells_the_peak_within_a_fifth(
    size: str, tmp_path: Path, archive: Archive, encoder: Encoder
) -> None:
    archive.write_jsonl(tmp_path)
    save(tmp_path / "model", encoder, SIZES[size])
    found = {}
    for number, (name, method) in enumerate(METHODS.items()):
        recipe, out = settings(tmp_path, tmp_path / "model", method), tmp_path / f"run{number}"
        foretold = plan(build_recipe(recipe))["memory_mb"]
        subprocess.run([sys.executable, "-c", CHILD, json.dumps(recipe), str(out)], check=True, timeout=550)
        found[name] = (foretold, json.loads((out / "run.json").read_text("utf-8"))["peak_memory_mb"])
    apart = {name: foretold / measured for name, (foretold, measured) in found.items()}
    assert all(0.8 <= ratio <= 1.2 for ratio in apart.values()), found


def test_the_weights_that_move_are_counted(tmp_path: Path, archive: Archive, encoder: Encoder) -> None:
    archive.write_jsonl(tmp_path)
    width, inner, layers, vocabulary = size = (64, 96, 3, 512)
    save(tmp_path / "model", encoder, size)
    block = 4 * width**2 + 3 * width * inner + 2 * width

    def moving(method: dict[str, Any], **training: Any) -> int:
        return moving_parameters(build_recipe(settings(tmp_path, tmp_path / "model", method, **training)))

    assert moving({"name": "npo"}) == layers * block + width + vocabulary * width
    assert moving({"name": "npo"}, trainable=("layers.2",)) == block
    assert moving({"name": "npo"}, lora={"r": 2}) == layers * 2 * (4 * 2 * width + 3 * (width + inner))
    assert moving({"name": "rmu", "trained_blocks": 2}) == 2 * block
    assert moving({"name": "rmu", "trained_blocks": 2, "tensors": "mlp_output"}) == 2 * width * inner
