# SPDX-License-Identifier: Apache-2.0
"""The queue: what it does with approved requests, in which order, and that nothing is done twice or lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from desk_world import FAILS, bring_in, open_desk

from expunge.claims import lint
from expunge.desk.intake import RequestFile
from expunge.desk.queue import current_model, recipe_of, text_of, work
from expunge.desk.service import Desk
from expunge.errors import InputDataError, RecipeError
from expunge.ledger.bodies import Deployed, Started
from expunge.ledger.keys import trusted_keys
from expunge.ledger.states import State
from expunge.ledger.verify import verify_certificate


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return open_desk(tmp_path / "desk")


def test_a_request_goes_from_intake_to_a_verified_certificate(desk: Desk) -> None:
    bring_in(desk, "r1", 0)
    done = work(desk)
    view = desk.ledger.request("r1")
    assert [unit.requests for unit in done] == [("r1",)]
    assert view.state is State.CERTIFIED
    assert [event.kind for event in view.events] == [
        "request", "move", "scope", "plan", "approval", "run", "audit", "certificate",
    ]  # fmt: skip
    raw = desk.path("r1", "certificate.dsse.json").read_bytes()
    model = desk.folder / "runs" / done[0].name / "model"
    found = verify_certificate(raw, model, trusted_keys(desk.folder / "keys"), events=desk.ledger.events())
    assert found.failed == ()
    assert found.statement is not None
    assert found.statement.predicate.policy.runs_tried == 1
    assert desk.ledger.verify() == []
    assert current_model(desk) == str(model)
    for name in ("notice.md", "recipients.md", "model-card-section.md"):
        text = desk.path("r1", name).read_text()
        assert not lint(text)
        assert "r1" in text


def test_the_next_request_starts_from_what_the_last_one_left_and_retains_nothing_of_it(desk: Desk) -> None:
    bring_in(desk, "r1", 0)
    bring_in(desk, "r2", 1)
    first, second = work(desk)
    assert second.model == str(desk.folder / "runs" / first.name / "model")
    assert second.model_digest == desk.ledger.request("r1").last("audit").body["model_after"]
    retain = (desk.folder / "units" / second.name / "retain.jsonl").read_text()
    for name in ("r1", "r2"):
        for line in desk.path(name, "forget.jsonl").read_text().splitlines():
            assert json.loads(line)["answer"] not in retain
    suppressed = json.loads((desk.folder / "suppression.json").read_text())["digests"]
    gone = [e for n in ("r1", "r2") for e in desk.corpora()["archive"] if json.dumps(e.answer) in
            desk.path(n, "forget.jsonl").read_text()]  # fmt: skip
    assert {desk.suppressed(text_of(e)) for e in gone} == set(suppressed)


def test_requests_with_equal_plans_share_one_run(desk: Desk) -> None:
    for k in range(3):
        bring_in(desk, f"r{k}", k)
    units = work(desk, batch=2)
    assert [unit.requests for unit in units] == [("r0", "r1"), ("r2",)]
    assert all(desk.ledger.request(f"r{k}").state is State.CERTIFIED for k in range(3))
    assert desk.ledger.verify() == []


def test_an_unmet_policy_ends_in_a_partial_result_that_nothing_is_built_on(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "desk", policy=FAILS)
    bring_in(desk, "r1", 0)
    work(desk)
    view = desk.ledger.request("r1")
    assert view.state is State.PARTIAL
    assert view.last("partial").body["unmet"] == ["forget.probability at least 0.999"]
    assert current_model(desk).endswith("base")
    assert "not met" in desk.path("r1", "notice.md").read_text()


def test_a_spent_budget_of_utility_is_an_unmet_limit(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "desk", budget={"metric": "forget.probability", "share": 0.0})
    bring_in(desk, "r1", 0)
    desk.plan("r1", "ga", actor="op", settings={"training": {"learning_rate": 1e-2}})
    desk.approve("r1", actor="boss")
    work(desk)
    assert desk.ledger.request("r1").last("partial").body["unmet"] == ["forget.probability at least 1 of what it was"]


def test_a_run_that_ends_in_an_error_is_a_failure_and_the_queue_goes_on(desk: Desk) -> None:
    bring_in(desk, "r1", 0)
    bring_in(desk, "r2", 1, upto=State.LOCATED)
    desk.plan("r2", "npo", actor="op", settings={"training": {"learning_rate": 1e30}})
    desk.approve("r2", actor="boss")
    bring_in(desk, "r3", 2)
    work(desk)
    states = {name: desk.ledger.request(name).state for name in ("r1", "r2", "r3")}
    assert states == {"r1": State.CERTIFIED, "r2": State.FAILED, "r3": State.CERTIFIED}
    assert desk.ledger.request("r2").last("failure").body["exit_code"] >= 1


def test_an_empty_queue_does_nothing(desk: Desk) -> None:
    bring_in(desk, "r1", 0, upto=State.LOCATED)
    head = desk.ledger.head()
    assert work(desk) == []
    assert desk.ledger.head() == head


def test_a_second_worker_is_turned_away(desk: Desk) -> None:
    import fcntl

    with (desk.folder / "work.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RecipeError, match="another worker"):
            work(desk)


def test_changed_files_are_noticed(desk: Desk) -> None:
    bring_in(desk, "r1", 0)
    path = next(desk.path("r1").glob("plan-*.json"))
    path.write_text(path.read_text().replace("0.001", "0.1"))
    with pytest.raises(InputDataError, match="plan was changed"):
        work(desk)
    request = desk.path("r1", "request.json")
    request.write_text(request.read_text().replace("case-r1", "case-r9"))
    with pytest.raises(InputDataError, match="changed after it came in"):
        desk.request_file("r1")


def test_a_second_request_about_the_same_subject_is_a_duplicate(desk: Desk) -> None:
    bring_in(desk, "r1", 0, upto=State.RECEIVED)
    bring_in(desk, "r2", 0, upto=State.RECEIVED)
    bring_in(desk, "r3", 1, upto=State.RECEIVED)
    assert [desk.ledger.request(f"r{k}").state for k in (1, 2, 3)] == [
        State.RECEIVED, State.DUPLICATE, State.RECEIVED,
    ]  # fmt: skip
    with pytest.raises(RecipeError, match="of that id"):
        bring_in(desk, "r1", 2, upto=State.RECEIVED)


def test_the_ledger_holds_nothing_of_the_person(desk: Desk) -> None:
    bring_in(desk, "r1", 0)
    work(desk)
    person = desk.request_file("r1").identifiers[0]
    answers = [json.loads(line)["answer"] for line in desk.path("r1", "forget.jsonl").read_text().splitlines()]
    told = json.dumps([event.body for event in desk.ledger.events()])
    desk.ledger.close()
    raw = b"".join(path.read_bytes() for path in desk.folder.glob("ledger.db*"))
    for text in (person, *answers):
        assert text not in told
        assert text.encode() not in raw
    assert (desk.folder.stat().st_mode & 0o777) == 0o700


def test_deadlines_are_extended_once_with_a_reason(desk: Desk) -> None:
    from datetime import UTC, datetime

    file = RequestFile(id="r1", requester="c", identifiers=("x",), received=datetime(2026, 1, 31, tzinfo=UTC))
    assert desk.intake(file, actor="op").due == datetime(2026, 2, 28, tzinfo=UTC)
    with pytest.raises(RecipeError, match="needs a reason"):
        desk.extend("r1", actor="op", reason=" ")
    desk.extend("r1", actor="op", reason="many systems are concerned")
    assert desk.ledger.request("r1").due == datetime(2026, 4, 30, tzinfo=UTC)


def test_work_is_not_done_by_hand(desk: Desk) -> None:
    bring_in(desk, "r1", 0)
    for state in (State.RUNNING, State.CERTIFIED, State.AUDITED):
        with pytest.raises(RecipeError, match="by work, not by hand"):
            desk.move("r1", state, actor="op")


def test_the_recipe_of_a_unit_does_not_depend_on_when_it_is_made(desk: Desk) -> None:
    bring_in(desk, "r1", 0)
    from expunge.desk.queue import _next

    unit = _next(desk, 1)
    assert unit is not None
    assert recipe_of(desk, unit).hash == recipe_of(desk, unit).hash


def test_a_failed_request_planned_again_alike_is_run_again(desk: Desk) -> None:
    bring_in(desk, "r1", 0, upto=State.LOCATED)
    for tries in (1, 2):
        desk.plan("r1", "npo", actor="op", settings={"training": {"learning_rate": 1e30}})
        desk.approve("r1", actor="boss")
        assert len(work(desk)) == 1
        assert desk.ledger.request("r1").state is State.FAILED
        assert sum(event.kind == "run" for event in desk.ledger.request("r1").events) == tries
    assert desk.ledger.verify() == []


def test_a_unit_that_was_only_written_down_binds_nobody(desk: Desk) -> None:
    """A worker that dies before the ledger says that a unit was begun leaves its requests free to be stopped."""
    from expunge.desk.queue import _next

    bring_in(desk, "r0", 0)
    bring_in(desk, "r1", 1)
    left = _next(desk, 2)
    assert left is not None
    assert left.requests == ("r0", "r1")
    desk.move("r0", State.WITHDRAWN, actor="op", reason="the requester wrote again")
    assert [unit.requests for unit in work(desk, batch=2)] == [("r1",)]
    assert desk.ledger.request("r0").state is State.WITHDRAWN


def test_a_unit_held_back_does_not_go_on_from_an_older_model(desk: Desk) -> None:
    from expunge.desk.queue import _next

    bring_in(desk, "r0", 0)
    assert _next(desk, 1) is not None
    desk.move("r0", State.ON_HOLD, actor="op", reason="a question")
    bring_in(desk, "r1", 1)
    (first,) = work(desk)
    desk.move("r0", State.APPROVED, actor="op")
    (second,) = work(desk)
    assert second.model == str(desk.folder / "runs" / first.name / "model")


def test_the_model_in_use_is_that_of_the_certificate_not_of_a_later_failure(desk: Desk) -> None:
    bring_in(desk, "r0", 0)
    (unit,) = work(desk)
    desk.ledger.append(Deployed(model="a" * 64, where="production"), actor="op", request="r0")
    desk.move("r0", State.MONITORED, actor="op")
    desk.plan("r0", "npo", actor="op", settings={"training": {"learning_rate": 1e30}})
    desk.approve("r0", actor="boss")
    work(desk)
    assert desk.ledger.request("r0").state is State.FAILED
    assert current_model(desk) == str(desk.folder / "runs" / unit.name / "model")


def test_another_plan_than_the_approved_one_is_not_begun(desk: Desk) -> None:
    bring_in(desk, "r0", 0)
    with pytest.raises(RecipeError, match="not the plan that was approved"):
        desk.ledger.append(Started(plan_digest="b" * 64, run="u1", recipe_hash="c" * 64, model_before="d" * 64),
                           actor="worker", request="r0")  # fmt: skip


def test_attacks_are_named_by_kind_and_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind stands for its attacks, and what was attacked before a kill is not attacked again."""
    from expunge.desk import queue

    desk = open_desk(tmp_path / "desk", attacks=["trace detection"], reference="base")
    bring_in(desk, "r0", 0)
    asked: list[list[str]] = []
    whole, certified = queue.attack_folders, queue._certified

    def counted(model: str, **given: Any) -> Any:
        asked.append(list(given["attacks"]))
        return whole(model, **given)

    def dies(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "attack_folders", counted)
    monkeypatch.setattr(queue, "_certified", dies)
    with pytest.raises(KeyboardInterrupt):
        work(desk)
    monkeypatch.setattr(queue, "_certified", certified)
    work(desk)
    assert asked == [["traces"]]
    assert desk.ledger.request("r0").state is State.CERTIFIED


def test_what_was_stopped_is_taken_up_from_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.desk import queue

    bring_in(open_desk(tmp_path / "desk"), "r0", 0)

    def dies(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "_certified", dies)
        with pytest.raises(KeyboardInterrupt):
            work(Desk(Path("desk")))
    monkeypatch.chdir(tmp_path / "desk")
    desk = Desk(Path("."))
    work(desk)
    assert desk.ledger.request("r0").state is State.CERTIFIED
