# SPDX-License-Identifier: Apache-2.0
"""Requests and evidence from the command line, as an engineer types them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from expunge.cli.main import app

sys.path.insert(0, str(Path(__file__).parents[1] / "desk"))

from desk_world import bring_in, open_desk


def call(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [*map(str, words)])
    return found.exit_code, " ".join(found.output.split())


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A desk on which one request was worked off."""
    folder = tmp_path_factory.mktemp("office") / "desk"
    made = open_desk(folder)
    bring_in(made, "r1", 0)
    code, said = call("work", "--desk", folder)
    assert code == 0, said
    assert "certified" in said
    return folder


def model_of(desk: Path) -> Path:
    return next((desk / "runs").iterdir()) / "model"


def certificate(desk: Path) -> Path:
    return desk / "requests" / "r1" / "certificate.dsse.json"


def test_a_request_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "desk"
    open_desk(folder)
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps({"case": "c-1", "name": "Somebody Else", "id": "r9"}))
    words = ("--desk", folder, "--as", "op")
    code, said = call("request", "add", file, *words, "--column", "requester=case", "--column", "identifiers=name")
    assert code == 0, said
    assert "r9 erasure received c-1" in said
    code, said = call("request", "move", "r9", "verified", *words)
    assert (code, "verified" in said) == (0, True)
    code, said = call("request", "move", "r9", "certified", *words)
    assert code == 2
    assert "by work, not by hand" in said
    code, said = call("request", "plan", "r9", "--method", "npo", *words)
    assert code == 2
    assert "verified cannot become planned" in said
    code, said = call("request", "extend", "r9", *words, "--reason", "many systems")
    assert code == 0
    code, said = call("request", "move", "r9", "refused", *words, "--reason", "the data was deleted")
    assert code == 2
    assert "may not be said" in said
    code, said = call("request", "show", "r9", "--desk", folder)
    assert "extension by op" in said
    code, said = call("request", "list", "--desk", folder, "--state", "verified", "--json")
    assert [entry["id"] for entry in json.loads(said)] == ["r9"]
    code, said = call("request", "shred", "r9", *words)
    assert code == 0
    code, said = call("ledger", "verify", folder / "ledger.db")
    assert (code, "the chain holds" in said) == (0, True)


def test_verify_says_what_holds(desk: Path) -> None:
    words = ("verify", certificate(desk), model_of(desk), "--keys", desk / "keys", "--ledger", desk / "ledger.db")
    code, said = call(*words)
    assert code == 0, said
    assert "✓ signature" in said
    assert "Not tested" in said
    code, said = call(*words, "--json")
    assert json.loads(said)["verified"] is True


def test_one_changed_byte_exits_with_4_and_says_which(desk: Path, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(model_of(desk), model)
    raw = bytearray((model / "model.safetensors").read_bytes())
    raw[len(raw) // 2] ^= 4
    (model / "model.safetensors").write_bytes(raw)
    code, said = call("verify", certificate(desk), model, "--keys", desk / "keys")
    assert code == 4
    assert "model file model.safetensors" in said
    cert = tmp_path / "cert.json"
    raw = bytearray(certificate(desk).read_bytes())
    raw[200] ^= 1
    cert.write_bytes(raw)
    code, said = call("verify", cert, model_of(desk), "--keys", desk / "keys")
    assert code == 4
    assert "certificate" in said
    log = tmp_path / "ledger.jsonl"
    code, said = call("ledger", "export", desk / "ledger.db", "-o", log, "--key", desk / "keys" / "desk")
    assert code == 0, said
    head = ("--keys", desk / "keys", "--head", tmp_path / "ledger.head.json")
    assert call("ledger", "verify", log, *head)[0] == 0
    raw = bytearray(log.read_bytes())
    raw[300] ^= 1
    log.write_bytes(raw)
    code, said = call("ledger", "verify", log, *head)
    assert code == 4
    assert "entry 1" in said


def test_certify_a_run_and_revoke_it(desk: Path, tmp_path: Path) -> None:
    run = model_of(desk).parent
    code, said = call("key", "new", tmp_path / "key")
    assert code == 0
    assert call("key", "new", tmp_path / "key")[0] == 2
    path = tmp_path / "cert.json"
    code, said = call("certify", run, "--key", tmp_path / "key", "--request", "r1", "-o", path)
    assert code == 0, said
    assert "Not tested" in said
    assert call("verify", path, run / "model", "--keys", tmp_path / "key.pub")[0] == 0
    code, said = call("verify", path, run / "model", "--keys", desk / "keys")
    assert code == 4
    assert "no trusted key" in said
    import shutil

    from expunge.ledger.dsse import read_envelope

    shutil.copy(desk / "ledger.db", tmp_path / "ledger.db")
    digest = read_envelope(path.read_bytes()).digest
    code, said = call("ledger", "revoke", tmp_path / "ledger.db", "certificate", digest,
                      "--as", "boss", "--reason", "wrong scope", "--key", tmp_path / "key",
                      "-o", tmp_path / "revoked.json")  # fmt: skip
    assert code == 0, said
    code, said = call("verify", path, run / "model", "--keys", tmp_path / "key.pub", "--revocations",
                      tmp_path / "revoked.json")  # fmt: skip
    assert code == 4
    assert "was revoked" in said


def test_a_run_without_limits_is_certified_as_not_met(desk: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(model_of(desk).parent, run)
    facts = json.loads((run / "run.json").read_text())
    facts["recipe"]["policy"] = {"name": "none", "version": "1", "bounds": {}}
    (run / "run.json").write_text(json.dumps(facts))
    assert call("certify", run, "--key", desk / "keys" / "desk", "--request", "r1")[0] == 3
    assert (run / "certificate.dsse.json").exists()


def test_wrong_paths_make_nothing(tmp_path: Path) -> None:
    for words, code in (
        (("ledger", "verify", tmp_path / "none.db"), 6), (("work", "--desk", tmp_path), 2),
        (("verify", tmp_path / "c", tmp_path, "--keys", tmp_path / "k"), 4),
        (("request", "list", "--desk", tmp_path), 2), (("desk", "init", tmp_path, "--settings", tmp_path / "x"), 2),
    ):  # fmt: skip
        assert call(*words)[0] == code, words
    assert list(tmp_path.iterdir()) == []


def test_one_changed_byte_of_a_ledger_or_a_key_exits_with_4_and_says_which(desk: Path, tmp_path: Path) -> None:
    import shutil
    import sqlite3

    book = tmp_path / "ledger.db"
    with sqlite3.connect(desk / "ledger.db") as source, sqlite3.connect(book) as copy:
        source.backup(copy)
    raw = bytearray(book.read_bytes())
    raw[raw.index(b'"to":"verified"') + 6] ^= 1
    book.write_bytes(raw)
    words = ("verify", certificate(desk), model_of(desk), "--keys", desk / "keys", "--ledger", book)
    for code, said in (call("ledger", "verify", book), call(*words)):
        assert code == 4, said
        assert "entry 2" in said or "entry: was changed after it was written" in said
    shutil.copy(desk / "keys" / "desk.pub", tmp_path / "desk.pub")
    raw = bytearray((tmp_path / "desk.pub").read_bytes())
    raw[40] ^= 1
    (tmp_path / "desk.pub").write_bytes(raw)
    code, said = call("verify", certificate(desk), model_of(desk), "--keys", tmp_path / "desk.pub")
    assert code == 4, said
    assert "desk.pub" in said or "no trusted key" in said
    raw = bytearray(book.read_bytes())
    raw[:16] = b"not SQLite at al"
    book.write_bytes(raw)
    code, said = call("ledger", "verify", book)
    assert code == 4, said
    assert "cannot be read" in said
