# SPDX-License-Identifier: Apache-2.0
"""Certificates: what they say, who can check them, and that one changed byte anywhere is noticed and named."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from expunge.audit.document import AuditDocument, EstimateEntry, ModelEntry, read_audit, write_json
from expunge.audit.policy import Bound, Policy
from expunge.claims import ClaimKind
from expunge.errors import InputDataError, RecipeError, VerificationFailed
from expunge.ledger.bodies import Approved, Audited, Certified, Moved, Planned, Received, Revoked, Scoped, Started
from expunge.ledger.dsse import check_signature, pre_authentication, read_envelope, seal
from expunge.ledger.export import check_export, export_ledger, exported_events, read_head
from expunge.ledger.keys import PASSPHRASE, SigningKey, generate_key, load_key, trusted_keys
from expunge.ledger.revocations import read_list, revocation_list, sign_list
from expunge.ledger.statement import PAYLOAD_TYPE, Statement, statement_of_run
from expunge.ledger.states import State
from expunge.ledger.store import Ledger
from expunge.ledger.verify import Verification, verify_certificate

A, B = "a" * 64, "b" * 64
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
POLICY = Policy(name="house", version="2", bounds={"forget_quality": Bound(min=0.05, whole_interval=False)})


def entry(value: float) -> EstimateEntry:
    return EstimateEntry(value=value, ci_low=value / 2, ci_high=value * 1.5, n=32, direction="higher")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(bytes(range(256)) * 4)
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    facts: dict[str, Any] = {
        "schema_version": 1, "status": "finished", "kind": "run", "name": "npo", "claim": "approximate",
        "method": {"name": "npo", "title": "Negative preference optimisation", "claim": "approximate"},
        "recipe_hash": A, "recipe": {"seed": 7, "policy": {}},
        "data": {"forget": {"n": 32, "digest": B}}, "model": {"digest": B}, "runs_tried": None,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    models = {"target": ModelEntry(role="target", metrics={"forget_quality": entry(1e-12)}),
              "npo": ModelEntry(role="method", metrics={"forget_quality": entry(0.84)})}  # fmt: skip
    write_json(AuditDocument(models=models, attacks_run=["relearning"]), folder / "audit.json")
    return folder


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return generate_key(tmp_path / "keys" / "one")


def statement(run: Path, **more: Any) -> Statement:
    return statement_of_run(run, request="r1", what="erasure", policy=POLICY, now=NOW, **more)


def certified(run: Path, key: SigningKey) -> bytes:
    return seal(statement(run).to_dict(), PAYLOAD_TYPE, key).to_bytes()


def checked(raw: bytes, run: Path, key: SigningKey, **more: Any) -> Verification:
    return verify_certificate(raw, run / "model", {key.public.id: key.public}, **more)


def test_what_a_certificate_says(run: Path, key: SigningKey) -> None:
    found = statement(run).to_dict()
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert [s["name"] for s in found["subject"]] == ["config.json", "model.safetensors"]
    said = found["predicate"]
    assert said["claim"] == "approximate"
    assert "not tested" in said["sentence"]
    assert "quantisation" in said["attacks_not_tested"]
    assert "relearning" not in said["attacks_not_tested"]
    assert said["policy"]["met"] is True
    assert said["policy"]["verdicts"] == [{"rule": "forget_quality at least 0.05", "measured": 0.84, "met": True}]
    assert said["compared_with"]["target"]["forget_quality"]["value"] == 1e-12
    assert len(said["mismatches"]) == 5
    assert checked(certified(run, key), run, key).failed == ()


def test_another_implementation_verifies_it(run: Path, key: SigningKey) -> None:
    dsse = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    raw = certified(run, key)
    envelope = dsse.Envelope.from_dict(json.loads(raw))
    theirs = signer.SSlibKey.from_crypto(key.public.key, keyid=key.public.id)
    assert list(envelope.verify([theirs], 1)) == [key.public.id]
    assert envelope.pae() == pre_authentication(PAYLOAD_TYPE, read_envelope(raw).payload)


def test_we_verify_what_another_implementation_signs(key: SigningKey) -> None:
    dsse = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    other = signer.CryptoSigner.generate_ed25519()
    envelope = dsse.Envelope(b'{"a":1}', PAYLOAD_TYPE, {})
    envelope.sign(other)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from expunge.ledger.canonical import canonical
    from expunge.ledger.keys import PublicKey

    public = PublicKey(Ed25519PublicKey.from_public_bytes(bytes.fromhex(other.public_key.keyval["public"])))
    read = read_envelope(canonical(envelope.to_dict()) + b"\n")
    check_signature(read, {other.public_key.keyid: public}, payload_type=PAYLOAD_TYPE)
    with pytest.raises(VerificationFailed, match="no trusted key"):
        check_signature(read, {key.public.id: key.public}, payload_type=PAYLOAD_TYPE)


def test_any_changed_byte_of_a_certificate_is_noticed(run: Path, key: SigningKey) -> None:
    raw, draw = certified(run, key), random.Random(0)
    for place in [0, len(raw) - 1, *draw.sample(range(len(raw)), 300)]:
        changed = bytearray(raw)
        changed[place] ^= 1 << draw.randrange(8)
        found = checked(bytes(changed), run, key)
        assert found.failed, place
        assert found.failed[0].what == "certificate"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_any_changed_byte_of_the_model_is_named(run: Path, key: SigningKey, name: str) -> None:
    raw, draw, path = certified(run, key), random.Random(1), run / "model" / name
    whole = path.read_bytes()
    for place in draw.sample(range(len(whole)), 20):
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        found = checked(raw, run, key)
        assert [check.what for check in found.failed] == [f"model file {name}"]
        with pytest.raises(VerificationFailed, match=name) as told:
            found.raise_failed()
        assert told.value.exit_code == 4


def test_files_that_are_missing_or_new_are_named(run: Path, key: SigningKey) -> None:
    raw = certified(run, key)
    (run / "model" / "config.json").unlink()
    (run / "model" / "modeling_evil.py").write_text("print('hello')")
    found = {check.what: check.detail for check in checked(raw, run, key).failed}
    assert found == {
        "model file config.json": "is missing", "model file modeling_evil.py": "is not in the certificate",
    }  # fmt: skip
    assert checked(raw, run / "nowhere", key).failed[0].what == "model"


def test_verdicts_that_do_not_follow_from_the_results_are_noticed(run: Path, key: SigningKey) -> None:
    value = statement(run).to_dict()
    value["predicate"]["results"]["forget_quality"]["value"] = 0.01
    forged = seal(value, PAYLOAD_TYPE, key).to_bytes()
    assert [check.what for check in checked(forged, run, key).failed] == ["policy"]


def test_a_policy_of_several_limits_in_any_order_verifies(run: Path, key: SigningKey) -> None:
    document = read_audit(run / "audit.json")
    for entries in document.models.values():
        entries.metrics["a_metric"] = entry(0.5)
    write_json(document, run / "audit.json")
    bounds = {"forget_quality": Bound(min=0.05, whole_interval=False), "a_metric": Bound(max=0.9)}
    found = statement_of_run(run, request="r1", what="erasure", policy=Policy(name="house", bounds=bounds), now=NOW)
    assert next(verdict.rule for verdict in found.predicate.policy.verdicts).startswith("forget_quality")
    raw = seal(found.to_dict(), PAYLOAD_TYPE, key).to_bytes()
    assert checked(raw, run, key).failed == ()


def test_words_that_may_not_be_said_are_refused(run: Path, key: SigningKey) -> None:
    facts = json.loads((run / "run.json").read_text())
    facts["method"]["notes"] = "the data has been fully removed"
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(RecipeError, match=r"predicate\.method\.notes"):
        statement(run)


def test_a_policy_after_the_fact_is_refused(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    own = Policy(name="strict", bounds={"forget_quality": Bound(min=0.9)})
    facts["recipe"]["policy"] = own.model_dump(mode="json")
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(RecipeError, match="another policy"):
        statement(run)


def test_an_unfinished_run_has_no_certificate(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text()) | {"status": "failed"}
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(InputDataError, match="no finished run"):
        statement(run)


def test_key_files(tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys" / "one"
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path).public.id == key.public.id
    assert list(trusted_keys(tmp_path / "keys")) == [key.public.id]
    with pytest.raises(RecipeError, match="never overwritten"):
        generate_key(path)
    path.chmod(0o640)
    with pytest.raises(RecipeError, match="mode 640"):
        load_key(path)
    monkeypatch.setenv(PASSPHRASE, "quince")
    other = generate_key(tmp_path / "keys" / "two")
    assert load_key(tmp_path / "keys" / "two").public.id == other.public.id
    monkeypatch.delenv(PASSPHRASE)
    with pytest.raises(RecipeError, match="cannot be opened"):
        load_key(tmp_path / "keys" / "two")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_key(tmp_path / "nowhere")
    assert set(trusted_keys(tmp_path / "keys")) == {key.public.id, other.public.id}
    (tmp_path / "empty").mkdir()
    with pytest.raises(VerificationFailed, match="no public key"):
        trusted_keys(tmp_path / "empty")


def test_rotation_keeps_what_was_signed_before(tmp_path: Path, run: Path, key: SigningKey) -> None:
    old = certified(run, key)
    new = generate_key(tmp_path / "keys" / "two")
    trusted = trusted_keys(tmp_path / "keys")
    for raw in (old, certified(run, new)):
        assert verify_certificate(raw, run / "model", trusted).failed == ()


def book(path: Path, run: Path, key: SigningKey) -> tuple[Ledger, bytes]:
    """A ledger in which a request went all the way to a certificate."""
    times = iter(NOW + timedelta(days=k) for k in range(100))
    ledger = Ledger(path, clock=lambda: next(times))
    plan = Planned(plan_digest=A, route="approximate", method="npo", claim=ClaimKind.APPROXIMATE,
                   policy="house-2", policy_digest=B)  # fmt: skip
    for body, actor in (
        (Received(due=NOW, requester="case-1", subject_digest=A), "op"), (Moved(to=State.VERIFIED), "op"),
        (Scoped(scope_digest=A, records=1, artefacts=1, not_searched=0), "op"), (plan, "op"),
        (Approved(plan_digest=A), "boss"), (Started(plan_digest=A, run="npo-1", recipe_hash=B, model_before=B), "w"),
        (Audited(audit_digest=A, model_after=B, policy_met=True, runs_tried=1), "w"),
    ):  # fmt: skip
        ledger.append(body, actor=actor, request="r1")
    envelope = seal(statement(run, head=ledger.head()).to_dict(), PAYLOAD_TYPE, key)
    issued = Certified(certificate_digest=envelope.digest, key=key.public.id, claim=ClaimKind.APPROXIMATE)
    ledger.append(issued, actor="w", request="r1")
    return ledger, envelope.to_bytes()


def test_a_certificate_is_looked_up_in_the_ledger(tmp_path: Path, run: Path, key: SigningKey) -> None:
    ledger, raw = book(tmp_path / "ledger.db", run, key)
    assert checked(raw, run, key, events=ledger.events()).failed == ()
    other = certified(run, key)
    assert [c.what for c in checked(other, run, key, events=ledger.events()).failed] == ["ledger entry"]


def test_any_changed_byte_of_an_exported_ledger_is_noticed(tmp_path: Path, run: Path, key: SigningKey) -> None:
    ledger, raw = book(tmp_path / "ledger.db", run, key)
    path = tmp_path / "ledger.jsonl"
    head_file = export_ledger(ledger, path, key=key)
    assert head_file is not None
    head = read_head(head_file, {key.public.id: key.public})
    assert head == ledger.head()
    assert check_export(path, head=head) == []
    assert checked(raw, run, key, events=exported_events(path), head=head).failed == ()
    whole, draw = path.read_bytes(), random.Random(2)
    for place in [0, len(whole) - 1, *draw.sample(range(len(whole)), 200)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        assert check_export(path, head=head), place
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert "ends at 7" in check_export(path, head=head)[0].what


def test_revocations(tmp_path: Path, run: Path, key: SigningKey) -> None:
    ledger, raw = book(tmp_path / "ledger.db", run, key)
    new = generate_key(tmp_path / "keys" / "two")
    trusted = trusted_keys(tmp_path / "keys")
    ledger.append(Revoked(what="key", digest=key.public.id, reason="laptop lost"), actor="boss")
    path = tmp_path / "revoked.json"
    path.write_bytes(sign_list(revocation_list(ledger.events()), new).to_bytes())
    revoked = read_list(path, trusted)
    # The ledger shows that the certificate was issued while its key still counted; without the ledger nothing does.
    assert checked(raw, run, key, revoked=revoked, events=ledger.events()).failed == ()
    assert [c.what for c in checked(raw, run, key, revoked=revoked).failed] == ["revocation"]
    path.write_bytes(sign_list(revocation_list(ledger.events()), key).to_bytes())
    with pytest.raises(VerificationFailed, match="a key that it revokes"):
        read_list(path, trusted)
    ledger.append(Revoked(what="certificate", digest=read_envelope(raw).digest, reason="wrong scope"), actor="boss")
    revoked = revocation_list(ledger.events())
    assert {c.what for c in checked(raw, run, key, revoked=revoked, events=ledger.events()).failed} == {"revocation"}
