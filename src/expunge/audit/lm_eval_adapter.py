# SPDX-License-Identifier: Apache-2.0
"""Tasks of the lm-evaluation-harness, run on a model in memory and turned into estimates.

The package `lm_eval` is imported when a run starts; it comes with the extra `evals`.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expunge.audit.estimate import Estimate
from expunge.audit.lm_eval_results import from_results
from expunge.errors import InputDataError, RecipeError, nearest, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Task = str | Mapping[str, Any]
"""Name of a task, group or tag of the harness, or the configuration of a task of one's own."""


@dataclass(frozen=True, slots=True)
class HarnessRun:
    """What the harness found.

    Attributes:
        estimates: by name, `lm_eval.TASK.METRIC`; where a task has named filters, `lm_eval.TASK.METRIC.FILTER`.
        tasks: per task and group: `version`, `n`, `n_shot`, and for tasks `hash`, the SHA-256 over their documents,
            prompts and targets.
        seconds: how long it took.
        package: version of the harness.
        samples: what the harness kept of every item, by task; holds the texts.
    """

    estimates: Mapping[str, Estimate]
    tasks: Mapping[str, Mapping[str, Any]]
    seconds: float
    package: str
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = field(repr=False)

    def meta(self) -> dict[str, Any]:
        """Return what an audit document says of the run, as JSON values."""
        return {"package": self.package, "seconds": self.seconds, "tasks": {k: dict(v) for k, v in self.tasks.items()}}


def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    include: Path | None = None,
    apply_chat_template: bool = False,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> HarnessRun:
    """Run tasks of the lm-evaluation-harness on a model.

    The model and tokenizer are left as they were, and so are the global random generators.

    Args:
        model: a causal language model, with or without adapters.
        tokenizer: its tokenizer.
        tasks: names (`wmdp`, `mmlu`, `gsm8k`), patterns of names, or configurations.
        limit: take only the first so many items of every task.
        num_fewshot: worked examples before each item; None takes each task's own number.
        batch_size: sequences per forward.
        max_length: longest sequence in tokens; None takes the model's context.
        include: folder with further task files.
        apply_chat_template: put prompts into the tokenizer's chat template.
        bootstrap: replicates for metrics whose standard error has no formula.
        confidence: coverage of the intervals, value -+ z x standard error.
        seed: of the choice of worked examples.

    Raises:
        MissingDependency: without the package `lm_eval`.
        RecipeError: if a task is unknown, or none is named.
        InputDataError: if the data of a task cannot be had.
    """
    require("lm_eval", "evals")
    if not tasks:
        raise RecipeError("no task is named", field="lm_eval", remedy="Name at least one, such as wmdp")
    started = time.perf_counter()
    with _unchanged(model):
        # Indexing the harness's own thousands of tasks takes seconds: only where one is named.
        manager = import_module("lm_eval.tasks").TaskManager(
            include_path=None if include is None else str(include),
            include_defaults=any(isinstance(task, str) for task in tasks),
        )
        check_names(tasks, manager)
        wrapped = import_module("lm_eval.models.huggingface").HFLM(
            # The harness gives the tokenizer a padding token.
            pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, max_length=max_length,
            backend="causal",
        )  # fmt: skip
        try:
            found = import_module("lm_eval.evaluator").simple_evaluate(
                model=wrapped, tasks=[task if isinstance(task, str) else dict(task) for task in tasks], limit=limit,
                num_fewshot=num_fewshot, bootstrap_iters=bootstrap, apply_chat_template=apply_chat_template,
                task_manager=manager, log_samples=True, random_seed=seed, numpy_random_seed=seed,
                torch_random_seed=seed, fewshot_random_seed=seed,
            )  # fmt: skip
        except OSError as error:
            remedy = "Download its data set first; HF_HUB_OFFLINE must be unset for that"
            raise InputDataError(
                f"the data of a task cannot be had: {error}", field="lm_eval", remedy=remedy
            ) from error
    estimates, described = from_results(found, confidence=confidence)
    return HarnessRun(estimates, described, time.perf_counter() - started, version("lm_eval"), found.get("samples", {}))


def check_names(tasks: Sequence[Task], manager: Any) -> None:
    """Raise `RecipeError` for the first task that a task manager of the harness does not know."""
    for task in tasks:
        if isinstance(task, str) and not manager.match_tasks([task]) and not Path(task).is_file():
            raise RecipeError(
                "the harness has no such task", field="lm_eval", value=task, remedy=_closest(task, manager.all_tasks)
            )


def _closest(task: str, known: Sequence[str]) -> str:
    """Return the remedy without the list of thousands of names."""
    return f"{nearest(task, known).partition('Valid:')[0]}List them: lm-eval ls tasks"


@contextmanager
def _unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Put the model's mode and every global generator back as they were: the harness sets them."""
    was_training, python, numpy, torch_state = (
        model.training, random.getstate(), np.random.get_state(), torch.get_rng_state(),
    )  # fmt: skip
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        model.train(was_training)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
