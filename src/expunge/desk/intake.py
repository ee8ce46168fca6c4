# SPDX-License-Identifier: Apache-2.0
"""Request files: what a person asks for, in whatever columns it comes, kept by the desk and never by the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from expunge.data.sources import read_rows
from expunge.errors import InputDataError
from expunge.ledger.salts import normalised

#: Bytes of a request file; more is no request but a data set, and belongs to the corpora.
LARGEST = 5_000_000
_LISTS = ("identifiers", "record_ids", "samples")


class RequestFile(BaseModel):
    """One request.

    Attributes:
        id: a name for it, letters, digits and `._-`; made by the desk if not given.
        what: kind of the request.
        requester: pseudonym of who asks.
        basis: reference of the legal basis.
        received: when it came in; now if not given.
        identifiers: names, numbers and addresses to look for.
        record_ids: ids of records that are meant.
        samples: texts that are meant.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    what: Literal["erasure", "rectification", "copyright", "contract", "safety"] = "erasure"
    requester: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")
    basis: str = Field("", max_length=500)
    received: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    identifiers: tuple[str, ...] = ()
    record_ids: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()

    @field_validator(*_LISTS, mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [str(value)] if isinstance(value, str | int) else value

    @model_validator(mode="after")
    def _something(self) -> RequestFile:
        if not any(text.strip() for name in _LISTS for text in getattr(self, name)):
            raise ValueError("names nobody and nothing: give identifiers, record_ids or samples")
        return self

    def subject(self) -> str:
        """Return what the request is about as one text, the same for the same subject however it is written."""
        parts = [sorted({normalised(text) for text in getattr(self, name)}) for name in _LISTS]
        return "\x1e".join("\x1f".join(part) for part in parts)


def read_requests(path: Path, *, columns: Mapping[str, str] | None = None, defaults: Mapping[str, Any] | None = None
                  ) -> list[RequestFile]:  # fmt: skip
    """Return the requests of a JSON, JSON Lines, CSV or Parquet file; errors name rows, never what is in them.

    Args:
        path: of the file.
        columns: our column to the one in the file, such as {"samples": "biography", "identifiers": "full_name"}.
            Columns that are neither ours nor mapped are left out.
        defaults: values of columns that no row has, such as {"requester": "bulk-7"}.

    Raises:
        InputDataError: for a file that is missing, too large or empty, or a row that is no request.
    """
    if path.is_file() and path.stat().st_size > LARGEST:
        raise InputDataError(f"is larger than {LARGEST:,} bytes", field="request", value=path.name,
                             remedy="A request names what is meant; data sets belong to the corpora")  # fmt: skip
    mapping = dict(columns or {})
    unknown = sorted(set(mapping) - set(RequestFile.model_fields))
    if unknown:
        raise InputDataError("is no column of a request", field="columns", value=unknown[0],
                             remedy=f"Ours: {', '.join(RequestFile.model_fields)}")  # fmt: skip
    found = []
    for place, value in read_rows(str(path), field="request"):
        row = value if isinstance(value, Mapping) else {}
        found.append(_request({**(defaults or {}), **_named(row, mapping)}, place))
    if not found:
        raise InputDataError("holds no request", field="request", value=path.name, remedy="Give at least one")
    return found


def _named(row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    own = {name: mapping.get(name, name) for name in RequestFile.model_fields}
    return {name: row[column] for name, column in own.items() if row.get(column) not in (None, "", [])}


def _request(values: dict[str, Any], place: str) -> RequestFile:
    try:
        return RequestFile.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "request"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise InputDataError(f"{place}: {message}", field=where,
                             remedy="Give requester, and identifiers, record_ids or samples") from None  # fmt: skip
