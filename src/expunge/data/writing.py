# SPDX-License-Identifier: Apache-2.0
"""Write examples as JSONL that the loader reads back as the same examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.data.examples import Example
from expunge.errors import InputDataError


def example_row(example: Example) -> dict[str, Any]:
    """Return an example under our column names; what it does not have is left out."""
    if example.kind == "text":
        row: dict[str, Any] = {"text": example.answer}
    elif example.kind == "completion":
        row = {"prompt": example.prompt, "completion": example.answer}
    elif example.kind == "chat":
        turns = [{"role": turn.role, "content": turn.content} for turn in example.turns]
        row = {"messages": [*turns, {"role": "assistant", "content": example.answer}]}
    else:
        row = {"question": example.prompt, "answer": example.answer}
    optional = {
        "id": example.id,
        "subject": example.subject,
        "paraphrased_question": example.paraphrased_prompt,
        "paraphrased_answer": example.paraphrased_answer,
        "perturbed_answer": list(example.perturbed_answers),
    }
    return row | {name: value for name, value in optional.items() if value}


def write_examples(examples: Sequence[Example], path: Path, *, columns: Mapping[str, str] | None = None) -> Path:
    """Write examples of one kind to a JSONL file and return its path.

    Args:
        examples: what to write.
        path: the file; its folder is created.
        columns: our column name to the name to write, where they differ.

    Raises:
        InputDataError: if the examples are of several kinds, which one file cannot hold.
    """
    kinds = sorted({example.kind for example in examples})
    if len(kinds) > 1:
        raise InputDataError(
            "one set holds examples of several kinds", field=path.stem, value=", ".join(kinds),
            remedy="Bring all of its sources into one form",
        )  # fmt: skip
    named = columns or {}
    rows = ({named.get(key, key): value for key, value in example_row(example).items()} for example in examples)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
