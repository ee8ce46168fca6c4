# SPDX-License-Identifier: Apache-2.0
"""A few examples before and after, for a report that redacts them unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expunge.audit.overlap import rouge_l
from expunge.audit.records import GeneratedItem, Records
from expunge.data.examples import Example


def shown_examples(
    examples: Sequence[Example], before: Records, after: Records, reference: Records | None, *, limit: int = 6
) -> list[dict[str, Any]]:
    """Return up to `limit` forget examples, evenly spaced, with every model's answer and its ROUGE-L recall."""
    answers = {"before": _answers(before), "after": _answers(after)}
    if reference is not None:
        answers["reference"] = _answers(reference)
    prompts = {example.id: example.prompt for example in examples}
    keys = list(answers["after"])
    chosen = [keys[i * len(keys) // limit] for i in range(limit)] if len(keys) > limit else keys
    out = []
    for key in chosen:
        item = answers["after"][key]
        said = {who: found[key].prediction for who, found in answers.items() if key in found}
        shown = {"set": item.set, "id": item.id, "prompt": prompts[key], "target": item.target}
        overlap = {who: rouge_l(item.target, text).recall for who, text in said.items()}
        out.append(shown | said | {"overlap": overlap})
    return out


def _answers(records: Records) -> dict[str, GeneratedItem]:
    items = (item for item in records.generated if item.set == "forget" and item.prompt_variant == "question")
    return {item.id: item for item in items}
