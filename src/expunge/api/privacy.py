# SPDX-License-Identifier: Apache-2.0
"""Private training as a route of `train`, and what a finished private run answers to a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.data.encoding import EncodedRow
from expunge.data.examples import Example
from expunge.errors import InputDataError, require
from expunge.runs import read_run
from expunge.training.config import TrainingConfig
from expunge.training.privacy_statement import answer_request, statement
from expunge.training.private_task import PoissonTask, plan_privacy, units_of


def check_packages(config: TrainingConfig) -> None:
    """Raise, before any work, what private training needs and is not there.

    Raises:
        MissingDependency: without the extra `dp`.
    """
    if config.privacy is not None:
        for package in ("opacus", "dp_accounting"):
            require(package, "dp")


def private_task(
    rows: Sequence[EncodedRow], examples: Sequence[Example], config: TrainingConfig, seed: int
) -> PoissonTask:
    """Return the task of a private run, its noise found.

    Raises:
        RecipeError: for a plan that proves nothing.
        InputDataError: if the unit is a subject and an example has none.
    """
    assert config.privacy is not None, "the caller asked for privacy"
    units = units_of(rows, examples, config.privacy.unit)
    return PoissonTask(units, plan_privacy(config, units), seed=seed)


def spent_by(task: PoissonTask, rows: Sequence[EncodedRow]) -> dict[str, Any]:
    """Return the statement of a run that trained on these rows."""
    return statement(task, sequences_per_example=max(Counter(row.index for row in rows).values()))


def dp_statement(run: Path, records: int = 1) -> dict[str, Any]:
    """Return what a finished private run guarantees for a request about some records, see `answer_request`.

    Raises:
        InputDataError: if the folder holds no finished run with a privacy statement.
    """
    info = read_run(run)
    if info.get("status") != "finished" or not info.get("privacy"):
        raise InputDataError(
            "holds no finished run of private training", field="RUN", value=str(run),
            remedy="Give the folder of an `expunge train` with training.privacy",
        )  # fmt: skip
    model = {key: info["model"][key] for key in ("result_digest",)}
    return {**answer_request(info["privacy"], records), "model": model, "run": info["name"]}
