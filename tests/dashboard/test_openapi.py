# SPDX-License-Identifier: Apache-2.0
"""The API under generated requests: whatever is sent, the server does not break, and answers are what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the dashboard needs the extra `serve`")
pytest.importorskip("schemathesis", reason="needs the package schemathesis")

import schemathesis
from dashboard_world import Door, hand_in, light_desk
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from expunge.dashboard.roles import Role
from expunge.ledger.states import State

#: Requests that the generator is told of, so that it comes past the first check.
KNOWN = ("r1", "r2", "r3")


@pytest.mark.parametrize("examples", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_generated_requests_find_no_server_error(tmp_path: Path, examples: int) -> None:
    desk = light_desk(tmp_path / "desk")
    for name, state in zip(KNOWN, (State.RECEIVED, State.LOCATED, State.PLANNED), strict=True):
        hand_in(desk, name, upto=state)
    door = Door(desk)
    headers = {"Authorization": f"Bearer {door.tokens[Role.AUDITOR]}", "Host": "127.0.0.1"}
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", door.app, headers=headers)
    seen: set[int] = set()
    for operation in (found.ok() for found in schema.get_all_operations()):
        for mode in GenerationMode:
            _try(door, operation.as_strategy(generation_mode=mode), seen, examples)
    assert {200, 401, 403, 404, 409, 422} <= seen
    assert desk.ledger.verify() == []


def _try(door: Door, strategy: Any, seen: set[int], examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=strategy)
    def tried(case: Any) -> None:
        for place, role in enumerate((*Role, None)):
            if "request_id" in (case.path_parameters or {}):
                case.path_parameters["request_id"] = KNOWN[place % len(KNOWN)]
            token = "forged" if role is None else door.tokens[role]
            answer = case.call(headers={"Authorization": f"Bearer {token}", "Host": "127.0.0.1"})
            seen.add(answer.status_code)
            case.validate_response(answer, checks=[not_a_server_error, response_schema_conformance,
                                                   status_code_conformance])  # fmt: skip

    tried()
