# SPDX-License-Identifier: Apache-2.0
"""What people are told: the requester, those who received the model, and readers of the model card.

Every text is checked for sentences that may not be written, when the tests run and when it is written.
"""

from __future__ import annotations

from string import Template

from expunge.claims import MISMATCHES, lint
from expunge.desk.service import Desk
from expunge.errors import RecipeError
from expunge.ledger.statement import Statement
from expunge.ledger.store import RequestView
from expunge.runs import write_text

REQUESTER = Template("""# About your request $request

We received your request on $received. What we did, and what we can and cannot say about it:

- We found $records records that concern it in what we could search; $not_searched places could not be searched.
- Method: $method. $sentence
- $outcome
- Attacks that were run: $attacks. Not tested: $untested.
- The records are on a list that the next training leaves out.

What this does not say: $mismatches

A change of a model does not show at once in copies that others made of it. We told those whom we know to have one.
If you disagree with this outcome you may complain to the supervisory authority.
""")

RECIPIENTS = Template("""# Notice to those who received the model

A request of kind $what (ours: $request) concerned data that the model with these files was trained on. We applied
$method and issued a new model on $date. Please replace the old files, and those that you made from them: fine-tunes,
merges, quantised copies. A fine-tune of the old model carries over what it carried.

$outcome

Certificate: $certificate (SHA-256 of the signed file). Check it with `expunge verify CERTIFICATE MODEL_DIR`.
""")

CARD = Template("""## Data removal request $request

- Date: $date. Kind: $what. Claim: **$claim**. $sentence
- Method: $method. Records: $records; places not searched: $not_searched.
- $outcome
- Attacks run: $attacks. Not tested: $untested.
- Known limits: $mismatches
""")

TEMPLATES = {"notice.md": REQUESTER, "recipients.md": RECIPIENTS, "model-card-section.md": CARD}


def write_notices(desk: Desk, view: RequestView, statement: Statement, certificate: str) -> None:
    """Write the texts of a request into its folder.

    Args:
        desk: whose.
        view: the request.
        statement: what was certified, fully or in part.
        certificate: digest of the signed file.

    Raises:
        RecipeError: if one would say what may not be said; nothing is written then.
    """
    values = _values(view, statement) | {"certificate": certificate}
    texts = {name: template.substitute(values) for name, template in TEMPLATES.items()}
    for name, text in texts.items():
        check_text(text, name)
    for name, text in texts.items():
        write_text(desk.path(view.id, name), text)


def check_text(text: str, name: str) -> None:
    """Refuse a text that says what may not be said.

    Raises:
        RecipeError: naming the words.
    """
    for problem in lint(text):
        raise RecipeError(f"says what may not be said: {problem}", field=name, remedy="Say what was done and measured")


def _values(view: RequestView, statement: Statement) -> dict[str, str]:
    said, scope = statement.predicate, view.last("scope")
    policy = said.policy
    unmet = [verdict.rule for verdict in policy.verdicts if not verdict.met]
    outcome = (
        f"Every limit of the policy {policy.policy.name} {policy.policy.version}, fixed beforehand, was met; "
        f"runs tried: {policy.runs_tried}."
        if policy.met
        else f"Limits of the policy {policy.policy.name} {policy.policy.version} that were not met: "
        f"{'; '.join(unmet) or 'it has none'}."
    )
    return {
        "request": view.id, "what": view.what, "received": view.received[:10], "date": f"{said.signed:%Y-%m-%d}",
        "records": str(scope.body["records"]) if scope else "0",
        "not_searched": str(scope.body["not_searched"]) if scope else "all",
        "method": str(said.method.get("title", said.method["name"])), "claim": str(said.claim),
        "sentence": said.sentence, "outcome": outcome, "attacks": ", ".join(said.attacks_run) or "none",
        "untested": ", ".join(said.attacks_not_tested) or "none", "mismatches": " ".join(MISMATCHES),
    }  # fmt: skip
