# SPDX-License-Identifier: Apache-2.0
"""Load examples from files, the hub or memory, and check that sets do not share them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from expunge.data.columns import check_mapping, kind_of, rename, shown, to_example
from expunge.data.examples import Example
from expunge.data.sources import Source, read_rows
from expunge.errors import InputDataError, RecipeError


def load_examples(
    source: Source, *, name: str, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> list[Example]:
    """Return the examples of one set.

    Rows hold {question, answer}, {prompt, completion}, {messages} (the last assistant turn is the answer) or {text};
    optional are id, subject (or author), paraphrased_question, paraphrased_answer and perturbed_answer. The first row
    decides which of the four forms the whole set has. A row without an id gets `name-N`, N its number from 1.

    Args:
        source: path to JSONL, JSON, Parquet or CSV; hub id `owner/name` with optional `:config` and `[split]`;
            or a sequence of mappings or examples.
        name: name of the set (`forget`, `retain`...), used in ids and errors.
        columns: our column name to the name in the source, where they differ.
        limit: take only the first rows.

    Raises:
        InputDataError: if the source is missing, empty, not UTF-8, not valid JSON, has other columns, empty or
            non-string texts, or repeats an id.
        RecipeError: if `columns` or `limit` cannot be meant.
    """
    field = f"data.{name}"
    if limit is not None and limit < 1:
        raise RecipeError("must be at least 1", field=f"{field}.limit", value=limit, remedy="Leave it out to take all")
    places: dict[str, str] = {}
    examples = []
    for place, example in islice(_stream(source, name, columns or {}), limit):
        if example.id in places:
            raise InputDataError(
                f"{places[example.id]} and {place} have the same id",
                field=field,
                value=shown([example.id]),
                remedy="Make ids unique, or leave them out to number the rows",
            )
        places[example.id] = place
        examples.append(example)
    if not examples:
        where = source if isinstance(source, str) else None
        raise InputDataError("holds no examples", field=field, value=where, remedy="Give at least one row")
    return examples


def stream_examples(source: Source, *, name: str, columns: Mapping[str, str] | None = None) -> Iterator[Example]:
    """Yield the examples of one set, one in memory at a time: as `load_examples`, but ids may occur twice.

    Raises:
        InputDataError, RecipeError: as `load_examples`, at the row that is wrong.
    """
    yield from (example for _, example in _stream(source, name, columns or {}))


def check_overlap(forget: Sequence[Example], other: Sequence[Example], *, names: tuple[str, str]) -> None:
    """Raise if a pair of prompt and answer occurs in both sets, up to case and spacing.

    Args:
        forget: the examples to unlearn.
        other: the retain or holdout examples.
        names: names of the two sets, for the error.

    Raises:
        InputDataError: naming how many pairs are shared and the ids of the first few.
    """
    known = {_key(example): example.id for example in forget}
    shared = [(known[key], example.id) for example in other if (key := _key(example)) in known]
    if shared:
        pairs = shown([f"{left} = {right}" for left, right in shared], most=5)
        raise InputDataError(
            f"{len(shared)} of {len(other)} examples in {names[1]} are also in {names[0]}: {pairs}",
            field=f"data.{names[1]}",
            remedy=f"Take them out of {names[1]}: the same answer cannot be unlearned and kept",
        )


def _stream(source: Source, name: str, columns: Mapping[str, str]) -> Iterator[tuple[str, Example]]:
    """Yield places and examples."""
    field, kind = f"data.{name}", ""
    check_mapping(columns, field=field)
    rows = read_rows(source, field=field)
    for number, (place, value) in enumerate(rows, start=1):
        if isinstance(value, Example):
            if not value.answer.strip():
                raise InputDataError(f"{place} has an empty answer", field=field, remedy="Leave it out")
            yield place, value
            continue
        cells = rename(value, columns, field=field, place=place)
        kind = kind or kind_of(cells, columns)
        yield place, to_example(cells, kind, default_id=f"{name}-{number}")


def _key(example: Example) -> tuple[str, ...]:
    context = [turn.content for turn in example.turns] or [example.prompt]
    return tuple(" ".join(text.casefold().split()) for text in (*context, example.answer))
