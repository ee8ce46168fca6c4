# SPDX-License-Identifier: Apache-2.0
"""Limits of a policy: what meets them, what does not, and the reason that is given."""

from __future__ import annotations

import pytest

from expunge.audit.estimate import Estimate
from expunge.audit.policy import Bound, Policy, Verdict


def found(**more: object) -> Estimate:
    return Estimate(**{"value": 0.5, "n": 10, "direction": "reference", **more})  # type: ignore[arg-type]


def verdict(estimate: Estimate | None, **limits: float) -> Verdict:
    metrics = {} if estimate is None else {"canary.one_run": estimate}
    (one,) = Policy(bounds={"canary.one_run": Bound(**limits)}).check(metrics)  # type: ignore[arg-type]
    return one


@pytest.mark.parametrize(("most", "limit", "met"), [(None, 1.0, True), (3.0, 1.0, True), (1.0, 1.0, False),
                                                    (0.0, 1.0, False), (3.0, 0.4, False)])  # fmt: skip
def test_a_limit_counts_only_where_it_could_have_been_missed(most: float | None, limit: float, met: bool) -> None:
    one = verdict(found(most=most), max=limit)
    assert (one.met, one.measured) == (met, 0.5)
    assert bool(one.reason) is (most is not None and most <= limit)


def test_a_smallest_value_needs_no_power() -> None:
    assert verdict(found(most=0.7), min=0.4) == Verdict("canary.one_run at least 0.4", 0.5, True)


def test_what_has_no_number_says_why() -> None:
    assert "names the manifest" in verdict(None, max=1.0).reason
    assert verdict(found(value=None, reason="why"), max=1.0) == Verdict("canary.one_run at most 1", None, False, "why")
    assert verdict(found(caveat="assumed"), max=1.0) == Verdict("canary.one_run at most 1", None, False, "assumed")
    (other,) = Policy(bounds={"forget.rogue": Bound(max=1.0)}).check({})
    assert other.reason == "the audit has no metric of this name"


def test_an_estimate_writes_its_most_only_if_it_has_one() -> None:
    assert found(most=0.0).to_dict()["most"] == 0.0
    assert "most" not in found().to_dict()
    with pytest.raises(ValueError, match="most must be finite"):
        found(most=float("inf"))
