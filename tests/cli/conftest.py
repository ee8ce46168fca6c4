# SPDX-License-Identifier: Apache-2.0
"""One tiny model and one finished run, made once for all tests of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_lab import Lab, expunge

from expunge.data.fictitious import Archive
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama, build_tokenizer


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, archive: Archive) -> Lab:
    """The model folder and the three sets."""
    root = tmp_path_factory.mktemp("lab")
    tokenizer = build_tokenizer(archive.texts(), vocab_size=300)
    save_model(build_llama(len(tokenizer), hidden_size=16, layers=1, heads=2, context=128), tokenizer, root / "base")
    (root / "data").mkdir()
    for name, which in (("forget", "forget10"), ("retain", "retain90"), ("holdout", "holdout")):
        rows = archive.rows(which)[:8]
        (root / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return Lab(root)


@pytest.fixture(scope="session")
def finished(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run, for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished") / "one"
    done = expunge(*lab.run(folder, "--reference", lab.base, "--holdout", lab.file("holdout")))
    assert done.code == 0, done.stderr
    return folder
