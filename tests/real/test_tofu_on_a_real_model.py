# SPDX-License-Identifier: Apache-2.0
"""A real pretrained Llama (260k parameters) and real TOFU rows, from the command line: train, run, audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.models.loading import load_model

pytestmark = pytest.mark.real

#: Short sequences keep this quick: the vocabulary has 512 tokens, so answers are two or three times as long as usual.
SHORT = ("data.template=question", "data.too_long=truncate", "data.max_length=160")


def expunge(*arguments: str, sets: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run one command with --json and return its document."""
    options = [part for item in (*SHORT, *sets) for part in ("--set", item)]
    result = CliRunner().invoke(app, [*arguments, *options, "--json"])
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture(scope="module")
def world(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tofu")
    tofu = shared / "data/tofu"
    forget = (tofu / "forget01_perturbed.json").read_text().splitlines()[:20]
    retain = (tofu / "retain_perturbed.json").read_text().splitlines()[:20]
    for name, rows in {"forget": forget, "retain": retain, "full": forget + retain}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "holdout.jsonl").write_text("\n".join((tofu / "retain99.json").read_text().splitlines()[400:420]) + "\n")
    training = ("training.learning_rate=5e-3", "training.epochs=24", "training.batch_size=8",
                "training.schedule=cosine", "training.optimizer.weight_decay=0")  # fmt: skip
    for name, data in (("target", "full"), ("reference", "retain")):
        expunge("train", "--model", str(shared / "weights/stories260K/hf"), "--data", str(folder / f"{data}.jsonl"),
                "--output-dir", str(folder / name), sets=training)  # fmt: skip
    return folder


@pytest.mark.parametrize("method", ["npo", "idk"])
@pytest.mark.parametrize("lora", [False, True])
def test_unlearning_tofu_rows(world: Path, method: str, lora: bool) -> None:
    folder = world / f"{method}-{lora}"
    rate = "5e-3" if lora else "2e-3"
    sets = (f"training.learning_rate={rate}", "training.epochs=6", "training.batch_size=8", "audit.max_new_tokens=24")
    document = expunge(
        "run", "--model", str(world / "target/model"), "--reference", str(world / "reference/model"),
        "--forget", str(world / "forget.jsonl"), "--retain", str(world / "retain.jsonl"),
        "--holdout", str(world / "holdout.jsonl"), "--method", method, "--output-dir", str(folder),
        sets=(*sets, *(("training.lora.r=8",) if lora else ())),
    )  # fmt: skip
    values = {name: entry["metrics"]["forget.probability"]["value"] for name, entry in document["models"].items()}
    assert values["target"] > 10 * values["reference"]
    assert values[method] < 0.95 * values["target"]
    assert (folder / "model/adapter_config.json").exists() == lora
    assert load_model(folder / "model").tokenizer.vocab_size == 512
    audited = expunge(
        "audit", str(folder / "model"), "--forget", str(world / "forget.jsonl"), "-o", str(folder / "audit"),
        sets=("audit.max_new_tokens=24",),
    )  # fmt: skip
    (entry,) = audited["models"].values()
    assert entry["metrics"]["forget.probability"]["value"] == pytest.approx(values[method], rel=1e-4)
