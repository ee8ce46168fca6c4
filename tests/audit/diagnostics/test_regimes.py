# SPDX-License-Identifier: Apache-2.0
"""The verdict: numbers by hand, each of the four regimes, and intervals that settle nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from expunge.audit.columns import Column
from expunge.audit.config import AuditConfig
from expunge.audit.protocol import Protocol
from expunge.audit.records import Records, ScoredItem
from expunge.audit.regimes import (
    NO_CONTROL,
    NOT_FORGOTTEN,
    NOT_TESTED,
    UNDECIDED,
    Measured,
    Regime,
    Thresholds,
    judge_regime,
    regime_of_records,
)

CONFIG = AuditConfig(bootstrap=500)
N = 40


def column(mean: float, spread: float = 0.02, n: int = N, clusters: int = 20) -> Column:
    """Values around a mean, several items a subject; the spread is the same in every column."""
    noise = np.tile([-spread, spread], n // 2)
    ids = tuple(f"i{k}" for k in range(n))
    return Column(ids, tuple(f"subject:{k % clusters}" for k in range(n)), np.clip(mean + noise, 0, 1))


def judged(fu: float, ru: float, fr: float | None = None, control: float | None = None, spread: float = 0.02) -> Regime:
    def maybe(value: float | None) -> Column | None:
        return None if value is None else column(value, spread)

    found = Measured(
        forget_before=column(0.9, 0.0), forget_after=column(fu, spread), retain_before=column(0.8, 0.0),
        retain_after=column(ru, spread), relearned=maybe(fr), control=maybe(control),
    )  # fmt: skip
    return judge_regime(found, config=CONFIG)


def test_numbers_by_hand() -> None:
    found = judged(fu=0.3, ru=0.6, fr=0.75)
    assert found.forget_drop.value == pytest.approx(0.6 / 0.9)
    assert found.retain_drop.value == pytest.approx(0.2 / 0.8)
    assert found.residue.value == pytest.approx(0.15 / 0.6)
    assert found.recovery.value == pytest.approx(0.75)
    assert found.recovery.ci_low is not None
    assert found.recovery.ci_low == pytest.approx(1 - found.residue.ci_high)
    assert found.means["forget"] == pytest.approx({"before": 0.9, "after": 0.3, "relearned": 0.75})


@pytest.mark.parametrize(
    ("fu", "ru", "fr", "label"),
    [
        (0.1, 0.2, 0.89, "reversible, catastrophic"),
        (0.1, 0.79, 0.89, "reversible, non-catastrophic"),
        (0.1, 0.2, 0.3, "irreversible, catastrophic"),
        (0.1, 0.79, 0.3, "irreversible, non-catastrophic"),
    ],
)
def test_the_four_regimes(fu: float, ru: float, fr: float, label: str) -> None:
    assert judged(fu, ru, fr).label == label


def test_an_interval_on_both_sides_of_its_threshold_settles_nothing() -> None:
    found = judged(fu=0.1, ru=0.2, fr=0.82, spread=0.1)
    assert found.residue.ci_low < 0.1 < found.residue.ci_high
    assert found.reversible is None
    assert found.label == f"reversibility {UNDECIDED}; catastrophic"
    harm = judged(fu=0.1, ru=0.72, fr=0.89, spread=0.05)
    assert harm.catastrophic is None
    assert harm.label == f"reversible; collateral damage {UNDECIDED}"
    assert judged(fu=0.81, ru=0.8, fr=0.9, spread=0.05).label == f"forgetting {UNDECIDED}; non-catastrophic"


def test_what_was_not_lost_cannot_come_back() -> None:
    found = judged(fu=0.9, ru=0.8, fr=0.9)
    assert found.label == f"reversibility {NOT_FORGOTTEN}; non-catastrophic"
    assert found.reversible is None


def test_without_a_relearned_model_reversibility_is_not_tested() -> None:
    found = judged(fu=0.1, ru=0.2)
    assert found.label == f"catastrophic; reversibility {NOT_TESTED}"
    assert (found.recovery.value, found.recovery.reason) == (None, NOT_TESTED)
    assert found.caveats == ()


def test_the_control_is_set_beside_and_missed_where_it_is_absent() -> None:
    assert judged(fu=0.1, ru=0.8, fr=0.85).caveats == (NO_CONTROL,)
    found = judged(fu=0.1, ru=0.8, fr=0.85, control=0.55)
    assert found.caveats == ()
    assert found.control.value == pytest.approx(0.3)
    assert found.control.ci_low == pytest.approx(0.3)  # the same items: their spread cancels


def test_excess_recovery_takes_out_what_the_control_learned() -> None:
    # By hand, E before 0.9: (0.7 - 0.5) / (0.9 - 0.5), though the plain recovery is (0.7 - 0.1) / (0.9 - 0.1).
    found = judged(fu=0.1, ru=0.8, fr=0.7, control=0.5)
    assert found.excess_recovery.value == pytest.approx(0.5)
    assert found.recovery.value == pytest.approx(0.75)
    assert found.excess_recovery.ci_low < 0.5 < found.excess_recovery.ci_high
    # Far back, and all of it learned anew: nothing of it was there.
    assert judged(fu=0.1, ru=0.8, fr=0.7, control=0.7).excess_recovery.value == pytest.approx(0.0)
    assert judged(fu=0.1, ru=0.8, fr=0.9, control=0.5, spread=0.0).excess_recovery.value == pytest.approx(1.0)
    assert judged(fu=0.1, ru=0.8, fr=0.4, control=0.5).excess_recovery.value == pytest.approx(-0.25)
    alone = judged(fu=0.1, ru=0.8, fr=0.7).excess_recovery
    assert (alone.value, alone.reason) == (None, "no control was given")
    assert judged(fu=0.1, ru=0.8).excess_recovery.reason == NOT_TESTED
    taught = judged(fu=0.1, ru=0.8, fr=0.9, control=0.95).excess_recovery
    assert taught.value is None
    assert "the control learned" in taught.reason


def test_intervals_redraw_subjects_and_not_items() -> None:
    half = np.repeat([0.0, 1.0], N // 2)
    ids = tuple(f"i{k}" for k in range(N))
    base = Column(ids, ids, np.ones(N))
    widths = []
    for clusters in (N, 4):
        names = tuple(f"c{k * clusters // N}" for k in range(N))
        found = Measured(
            forget_before=Column(ids, names, base.values), forget_after=Column(ids, names, half),
            retain_before=base, retain_after=base,
        )  # fmt: skip
        drop = judge_regime(found, config=CONFIG).forget_drop
        widths.append(drop.ci_high - drop.ci_low)
    assert widths[1] > 2 * widths[0]


def test_one_subject_has_no_interval_and_no_verdict() -> None:
    one = Column(("a", "b"), ("s", "s"), np.array([1.0, 1.0]))
    gone = Column(("a", "b"), ("s", "s"), np.array([0.0, 0.1]))
    found = judge_regime(
        Measured(forget_before=one, forget_after=gone, retain_before=one, retain_after=one), config=CONFIG
    )
    assert found.forgotten is None
    assert "only one subject" in found.label


def test_thresholds_are_those_asked_for_and_are_printed() -> None:
    found = Measured(forget_before=column(0.9, 0), forget_after=column(0.1, 0), retain_before=column(0.8, 0),
                     retain_after=column(0.6, 0), relearned=column(0.7, 0))  # fmt: skip
    strict = judge_regime(found, config=CONFIG)
    loose = judge_regime(found, config=CONFIG, thresholds=Thresholds(collateral=0.3, residue=0.3))
    assert (strict.label, loose.label) == ("irreversible, catastrophic", "reversible, non-catastrophic")
    document = json.loads(json.dumps(loose.to_dict(), allow_nan=False))
    assert document["thresholds"] == {"forgotten": 0.1, "collateral": 0.3, "residue": 0.3}


def test_the_same_items_are_needed() -> None:
    with pytest.raises(ValueError, match="same items"):
        judge_regime(
            Measured(forget_before=column(0.9), forget_after=column(0.9, n=20), retain_before=column(0.8),
                     retain_after=column(0.8)), config=CONFIG,
        )  # fmt: skip


def records(hits: dict[str, list[list[int]]]) -> Records:
    scored = [
        ScoredItem(
            set=name, id=f"{name}-{k}", subject=f"s{k}", variant="answer", variant_index=0, ids_hash="",
            logp=[-0.1] * len(flags), correct=flags, mu=[], sigma2=[], ends_with_eos=False, zlib_bytes=1,
        )
        for name, items in hits.items()
        for k, flags in enumerate(items)
    ]  # fmt: skip
    return Records(scored, [])


def test_from_records() -> None:
    known, gone = [[1, 1, 1, 1]] * 4, [[1, 0, 0, 0]] * 4
    protocol = Protocol("t", "1", {"forget": "forget", "retain": "retain"})
    found = regime_of_records(
        records({"forget": known, "retain": known}), records({"forget": gone, "retain": known}),
        records({"forget": [[1, 1, 0, 0]] * 4, "retain": known}), protocol=protocol, config=CONFIG,
    )  # fmt: skip
    assert found.recovery.value == pytest.approx((0.5 - 0.25) / 0.75)
    assert found.label == "irreversible, non-catastrophic"
