# SPDX-License-Identifier: Apache-2.0
"""`expunge linear` as a user types it, on features and on texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.methods.linear.artefact import load_artefact
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama, build_tokenizer

SETTINGS = ("--noise-std", "100", "--ridge", "0.05")


def call(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["linear", *map(str, words)])
    return found.exit_code, found.output


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.array(["ash", "birch", "cedar"])[(x @ draw.normal(size=(6, 3))).argmax(1)]
    path = tmp_path / "rows.jsonl"
    lines = [{"id": f"r{k}", "features": list(x[k]), "label": str(labels[k])} for k in range(200)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def fitted(tmp_path: Path, rows: Path, *more: object) -> Path:
    code, said = call("fit", rows, "-o", tmp_path / "m", *SETTINGS, *more)
    assert code == 0, said
    return tmp_path / "m"


def test_a_head_is_fitted_and_rows_leave_it(tmp_path: Path, rows: Path) -> None:
    model = fitted(tmp_path, rows)
    code, said = call("remove", model, rows, "-o", tmp_path / "m2", "--id", "r3", "--id", "r77", "--json")
    assert code == 0, said
    told = json.loads(said)
    assert (told["claim"], told["rows"], told["rows_removed"], told["requests"]) == ("statistical", 198, 2, 1)
    assert 0 < max(told["spent"]) < told["budget"]
    assert told["noise_digest"] in json.loads((tmp_path / "noise-used.json").read_text())
    assert load_artefact(model).fitted.n == 200  # the model before stays as it was
    code, said = call("certificate", tmp_path / "m2")
    assert code == 0
    assert "epsilon 1, delta 0.0001, over all removals" in said
    assert "Assumes" in said


def test_ridge_without_rows_equals_ridge_fitted_without_them(tmp_path: Path, rows: Path) -> None:
    model = fitted(tmp_path, rows, "--kind", "ridge")
    (tmp_path / "ids").write_text("r3\nr77\n")
    code, said = call("remove", model, rows, "-o", tmp_path / "m2", "--ids-file", tmp_path / "ids")
    assert code == 0, said
    kept = [line for line in rows.read_text().splitlines() if json.loads(line)["id"] not in ("r3", "r77")]
    (tmp_path / "kept.jsonl").write_text("\n".join(kept))
    call("fit", tmp_path / "kept.jsonl", "-o", tmp_path / "anew", "--kind", "ridge", "--ridge", "0.05")
    one, two = load_artefact(tmp_path / "m2").fitted, load_artefact(tmp_path / "anew").fitted
    np.testing.assert_allclose(one.weights, two.weights, atol=1e-10)


def test_texts_through_a_language_model(tmp_path: Path) -> None:
    texts = [f"the {word} grows on hill {k}" for k in range(10) for word in ("ash", "birch")]
    tokenizer = build_tokenizer(texts)
    save_model(build_llama(len(tokenizer), hidden_size=16, layers=2, heads=2, context=32), tokenizer, tmp_path / "lm")
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"id": str(k), "text": t, "label": t.split()[1]})
                              for k, t in enumerate(texts)))  # fmt: skip
    model = fitted(tmp_path, path, "--model", tmp_path / "lm", "--ridge", "5")
    told = load_artefact(model)
    assert told.features.startswith("block -1 of the model with weights")
    code, said = call("remove", model, path, "-o", tmp_path / "m2", "--id", "3", "--model", tmp_path / "lm")
    assert code == 0, said
    code, said = call("remove", model, path, "-o", tmp_path / "m3", "--id", "3", "--model", tmp_path / "lm",
                      "--layer", "0")  # fmt: skip
    assert code == 6
    assert "other features" in said


def test_what_cannot_be_done_is_said(tmp_path: Path, rows: Path) -> None:
    model = fitted(tmp_path, rows, "--seed", "4")
    for words, code, told in (
        (("fit", rows, "-o", model), 2, "already holds"),
        (
            ("fit", rows, "-o", tmp_path / "x", "--noise-std", "100", "--ridge", "0.05", "--seed", "4"),
            2,
            "another head",
        ),
        (("fit", rows, "-o", tmp_path / "x", "--kind", "svm"), 2, "no such kind"),
        (("fit", tmp_path / "none.jsonl", "-o", tmp_path / "x"), 6, "no such file"),
        (("remove", model, rows, "-o", tmp_path / "y", "--id", "r999"), 6, "no row has this id"),
        (("remove", model, rows, "-o", tmp_path / "y"), 2, "names no row"),
        (("certificate", tmp_path / "nowhere"), 6, "holds no linear model"),
    ):
        found = call(*words)
        assert found[0] == code, found
        assert told in found[1].replace("\n", " ")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


def test_a_spent_budget_ends_with_code_3_and_writes_nothing(tmp_path: Path, rows: Path) -> None:
    code, said = call("fit", rows, "-o", tmp_path / "m", "--noise-std", "0.5", "--ridge", "0.05")
    assert code == 0, said
    words = [word for k in range(60) for word in ("--id", f"r{k}")]
    code, said = call("remove", tmp_path / "m", rows, "-o", tmp_path / "m2", *words)
    assert code == 3
    assert "passes the budget" in said
    assert not (tmp_path / "m2").exists()


def test_a_changed_file_is_noticed(tmp_path: Path, rows: Path) -> None:
    model = fitted(tmp_path, rows)
    raw = bytearray((model / "linear.npz").read_bytes())
    raw[len(raw) // 2] ^= 1
    (model / "linear.npz").write_bytes(raw)
    code, said = call("certificate", model)
    assert code == 6
    assert "is not the file" in said
