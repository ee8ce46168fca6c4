# SPDX-License-Identifier: Apache-2.0
"""`expunge key`, `certify`, `verify` and `ledger`: evidence that another engineer can check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli import options as opt
from expunge.cli.streams import guarded, out, print_json
from expunge.cli.tables import print_facts
from expunge.errors import InputDataError, VerificationFailed

if TYPE_CHECKING:
    from expunge.ledger.store import Event

key_app = typer.Typer(no_args_is_help=True, help="Signing keys.")
ledger_app = typer.Typer(no_args_is_help=True, help="The append-only log of requests.")

LedgerUrl = Annotated[str, typer.Argument(metavar="LEDGER", help="Its file or URL, or an exported .jsonl file.")]
Trusted = Annotated[Path, typer.Option("--keys", help="Public key, or folder with those that are trusted.")]
Head = Annotated[Path | None, typer.Option("--head", help="Signed head of the ledger that was kept elsewhere.")]


@key_app.command("new", no_args_is_help=True)
@guarded
def new(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="File of the key; `.pub` is written beside.")],
) -> None:
    """Make an Ed25519 key; EXPUNGE_KEY_PASSPHRASE encrypts its file."""
    from expunge.ledger.keys import generate_key

    key = generate_key(path)
    print_facts(out(), [("Key", str(path)), ("Public half", f"{path}.pub"), ("Id", key.public.id)])


@guarded
def certify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    key: Annotated[Path, typer.Option("--key", help="File of the signing key.")],
    request: Annotated[str, typer.Option("--request", help="Id of the request.")],
    what: Annotated[str, typer.Option("--what", help="Its kind.")] = "erasure",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: certificate.dsse.json in RUN.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Sign what was done and measured in a run, over the digests of the model's files."""
    from expunge.audit.policy import Policy
    from expunge.errors import PolicyNotMet
    from expunge.ledger.dsse import seal
    from expunge.ledger.keys import load_key
    from expunge.ledger.statement import PAYLOAD_TYPE, statement_of_run
    from expunge.runs import read_run

    policy = Policy.model_validate((read_run(run).get("recipe") or {}).get("policy") or {})
    statement = statement_of_run(run, request=request, what=what, policy=policy)
    envelope = seal(statement.to_dict(), PAYLOAD_TYPE, load_key(key))
    path = output or run / "certificate.dsse.json"
    path.write_bytes(envelope.to_bytes())
    said = statement.predicate
    facts = {"certificate": str(path), "digest": envelope.digest, "claim": str(said.claim), "sentence": said.sentence,
             "policy_met": said.policy.met, "not_tested": list(said.attacks_not_tested)}  # fmt: skip
    if as_json:
        print_json(json.dumps(facts, indent=1))
    else:
        print_facts(out(), [("Certificate", str(path)), ("Digest", envelope.digest),
                            ("Claim", f"{said.claim}: {said.sentence}"),
                            ("Not tested", ", ".join(said.attacks_not_tested))])  # fmt: skip
    if not said.policy.met:
        unmet = [verdict.rule for verdict in said.policy.verdicts if not verdict.met]
        raise PolicyNotMet("the certificate says so", field="policy",
                           value=unmet or "no limits", remedy="See the report of the run")  # fmt: skip


@guarded
def verify(
    certificate: Annotated[Path, typer.Argument(metavar="CERT", help="The certificate.")],
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Folder of the model it is about.")],
    keys: Trusted,
    ledger: Annotated[str | None, typer.Option("--ledger", help="Ledger that must hold it, live or exported.")] = None,
    revocations: Annotated[Path | None, typer.Option("--revocations", help="Signed list of revocations.")] = None,
    head: Head = None,
    as_json: opt.Json = False,
) -> None:
    """Check who signed a certificate, over which bytes, and whether it still counts; exit code 4 if not."""
    from expunge.ledger.export import read_head
    from expunge.ledger.keys import trusted_keys
    from expunge.ledger.revocations import read_list
    from expunge.ledger.verify import verify_certificate

    trusted = trusted_keys(keys)
    try:
        raw = certificate.read_bytes()
    except OSError as error:
        raise InputDataError(f"cannot be read: {error.strerror}", field="CERT", value=str(certificate),
                             remedy="Check the path") from error  # fmt: skip
    found = verify_certificate(
        raw, model, trusted, revoked=None if revocations is None else read_list(revocations, trusted),
        events=None if ledger is None else _events(ledger), head=None if head is None else read_head(head, trusted),
    )  # fmt: skip
    if as_json:
        checks = [{"what": check.what, "holds": check.holds, "detail": check.detail} for check in found.checks]
        print_json(json.dumps({"verified": not found.failed, "key": found.key, "checks": checks}, indent=1))
    else:
        print_facts(out(), [(("✓ " if check.holds else "✗ ") + check.what, check.detail) for check in found.checks])
        if found.statement is not None and not found.failed:
            said = found.statement.predicate
            print_facts(out(), [("It says", f"{said.claim}: {said.sentence}"),
                                ("Not tested", ", ".join(said.attacks_not_tested))])  # fmt: skip
    found.raise_failed()


@ledger_app.command("verify", no_args_is_help=True)
@guarded
def verify_ledger(
    ledger: LedgerUrl,
    keys: Annotated[Path | None, typer.Option("--keys", help="Public keys, to read --head.")] = None,
    head: Head = None,
) -> None:
    """Check that no entry was changed, left out or put in between; exit code 4 if one was."""
    from expunge.errors import RecipeError
    from expunge.ledger.export import check_export, read_head
    from expunge.ledger.keys import trusted_keys
    from expunge.ledger.store import Ledger

    if head is not None and keys is None:
        raise RecipeError("is signed", field="--head", value=str(head), remedy="Give --keys")
    kept = None if head is None or keys is None else read_head(head, trusted_keys(keys))
    if ledger.endswith(".jsonl"):
        problems = check_export(Path(ledger), head=kept)
    else:
        problems = Ledger(_existing(ledger)).verify(head=kept)
    if problems:
        raise VerificationFailed("; ".join(f"entry {p.seq} {p.what}" for p in problems[:5]), field="ledger",
                                 value=ledger, remedy="Keep this copy, and compare it with an export")  # fmt: skip
    print_facts(out(), [("Ledger", f"{ledger}: the chain holds")])


@ledger_app.command("export", no_args_is_help=True)
@guarded
def export(
    ledger: LedgerUrl,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .jsonl file.")],
    key: Annotated[Path | None, typer.Option("--key", help="Signs the head, written beside as .head.json.")] = None,
) -> None:
    """Write the ledger as JSON Lines, and its signed head to keep where the ledger is not."""
    from expunge.ledger.export import export_ledger
    from expunge.ledger.keys import load_key
    from expunge.ledger.store import Ledger

    head = export_ledger(Ledger(_existing(ledger)), output, key=None if key is None else load_key(key))
    print_facts(out(), [("Ledger", str(output)), ("Signed head", str(head or ""))])


@ledger_app.command("revoke", no_args_is_help=True)
@guarded
def revoke(
    ledger: LedgerUrl,
    what: Annotated[str, typer.Argument(metavar="certificate|key")],
    digest: Annotated[str, typer.Argument(help="Digest of the certificate, or id of the key.")],
    actor: Annotated[str, typer.Option("--as", envvar="EXPUNGE_ACTOR", help="Who does it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why.")],
    key: Annotated[Path, typer.Option("--key", help="Signs the list.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the signed list goes.")],
) -> None:
    """End trust in a certificate or a key, and write the signed list of all that no longer count."""
    from expunge.ledger.bodies import parsed
    from expunge.ledger.keys import load_key
    from expunge.ledger.revocations import revocation_list, sign_list
    from expunge.ledger.store import Ledger

    book, signing = Ledger(_existing(ledger)), load_key(key)
    book.append(parsed("revocation", {"what": what, "digest": digest, "reason": reason}), actor=actor)
    output.write_bytes(sign_list(revocation_list(book.events()), signing).to_bytes())
    print_facts(out(), [("Revoked", f"{what} {digest[:16]}"), ("List", str(output))])


def _events(ledger: str) -> Iterator[Event]:
    from expunge.ledger.export import exported_events
    from expunge.ledger.store import Ledger

    return exported_events(Path(ledger)) if ledger.endswith(".jsonl") else Ledger(_existing(ledger)).events()


def _existing(ledger: str) -> str:
    """A ledger that is read must be there: a wrong path must not make an empty one."""
    if "://" not in ledger and not Path(ledger).is_file():
        raise InputDataError("no such ledger", field="LEDGER", value=ledger, remedy="Check the path")
    return ledger
