# SPDX-License-Identifier: Apache-2.0
"""`expunge demo --request`: a person's request goes through a desk, and every step is printed when it is done."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.cli.progress import display
from expunge.cli.streams import out, print_json
from expunge.cli.tables import print_facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from expunge.desk.demo import Moment, Walked
    from expunge.ledger.statement import Held, Predicate


def demo_request(folder: Path, overwrite: bool, people: int, seed: int, as_json: bool) -> None:
    """Make the invented world and a desk in it, bring one request through, and print what came of it."""
    from expunge.desk.demo import Timeline, demo_settings, walk
    from expunge.desk.intake import RequestFile
    from expunge.desk.service import Desk
    from expunge.studies.demo import request_world

    with display() as watcher:
        timeline = Timeline((lambda moment: None) if as_json else _tell)
        world = request_world(folder, overwrite=overwrite, people=people, seed=seed, watcher=watcher)
        paths = world.paths
        timeline.add("prepared", f"a model that learned {people} invented people, and one that never saw one of them")
        desk = Desk.create(folder / "desk", demo_settings(
            model=str(Path(paths.model("target")).absolute()), corpus=str(Path(paths.source("train_full")).absolute()),
            reference=str(Path(paths.model("reference")).absolute()),
            holdout=str(Path(paths.source("holdout")).absolute()),
            evaluate={"forget": str(Path(paths.source("forget01")).absolute()),
                      "retain": str(Path(paths.source("retain99")).absolute())},
            extra={"world_facts": str(Path(paths.source("world_facts")).absolute())},
        ))  # fmt: skip
        file = RequestFile(id="demo-1", requester="case-1", basis="GDPR art. 17", identifiers=(world.person,),
                           samples=(world.sample,))  # fmt: skip
        found = walk(desk, file, timeline=timeline, watcher=watcher)
    if as_json:
        print_json(json.dumps(_facts(found), indent=1))
    else:
        _print(found, folder)


def _tell(moment: Moment) -> None:
    minutes, seconds = divmod(int(moment.seconds), 60)
    print_facts(out(), [(f"{minutes}:{seconds:02d}  {moment.what:<10}", moment.detail)])


def _print(found: Walked, folder: Path) -> None:
    said = found.statement.predicate
    console = out()
    console.print()
    print_facts(console, [("Limit", _limit(verdict, said)) for verdict in said.policy.verdicts])
    print_facts(console, [("Came back", line) for line in _came_back(said.attacks_run)])
    print_facts(console, [("May be said", f"{said.claim}: {said.sentence}"),
                          ("Not tested", ", ".join(said.attacks_not_tested)),
                          ("Not shown", " ".join(said.mismatches))])  # fmt: skip
    run = found.model.parent
    print_facts(console, [("Certificate", str(found.certificate)), ("Model", str(found.model)),
                          ("Report", str(run / "report.html")),
                          ("Notice", str(found.certificate.with_name("notice.md"))),
                          ("Check again", f"expunge verify {found.certificate} {found.model} "
                           f"--keys {folder / 'desk' / 'keys'} --ledger {found.ledger}")])  # fmt: skip


def _limit(verdict: Held, said: Predicate) -> str:
    measured = "not measured" if verdict.measured is None else f"{verdict.measured:.3g}"
    estimate = said.results.get(verdict.rule.split(" ")[0])
    why = "" if estimate is None or estimate.ci_low is not None else f" (no interval: {estimate.reason})"
    return f"{'✓' if verdict.met else '✗'} {verdict.rule}: {measured}{why}"


def _came_back(attacks: Mapping[str, Any]) -> Iterator[str]:
    """Yield, for each attack, where the model rose furthest above the reference that was attacked alike."""
    for name, attack in attacks.items():
        told = [f for f in attack["findings"] if f["differences"].get("reference", {}).get("value") is not None]
        if told:
            most = max(told, key=lambda finding: finding["differences"]["reference"]["value"])
            reference = most["controls"]["reference"]["value"]
            yield (f"{name} ({most['setting']}): {most['metric']} {most['value']['value']:.3g}; "
                   f"the reference, attacked alike, {reference:.3g}")  # fmt: skip


def _facts(found: Walked) -> dict[str, object]:
    said = found.statement.predicate
    return {
        "request": found.request, "state": str(found.state), "claim": str(said.claim), "sentence": said.sentence,
        "met": said.policy.met, "unmet": found.unmet, "attacks_run": list(said.attacks_run),
        "came_back": list(_came_back(said.attacks_run)),
        "not_tested": list(said.attacks_not_tested), "timeline": [asdict(moment) for moment in found.timeline],
        "routes": [{"name": r.name, "possible": r.possible, "why_not": r.why_not} for r in found.routes],
        "certificate": str(found.certificate), "model": str(found.model), "ledger": str(found.ledger),
    }  # fmt: skip
