# SPDX-License-Identifier: Apache-2.0
"""HTML elements as strings; everything that comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape


def tag(name: str, content: str = "", style: str = "", more: Mapping[str, str] | None = None) -> str:
    """Return an element around `content`, which must be markup already; attribute values are escaped."""
    attributes = {"class": style} if style else {}
    attributes.update(more or {})
    inside = "".join(f' {key}="{escape(value)}"' if value else f" {key}" for key, value in attributes.items())
    return f"<{name}{inside}>{content}</{name}>"


def para(text: str, style: str = "") -> str:
    """Return a paragraph of plain text."""
    return tag("p", escape(text), style)


def bullets(items: Iterable[str], style: str = "") -> str:
    """Return a list of plain texts."""
    return tag("ul", "".join(tag("li", escape(item)) for item in items), style)


def pairs(rows: Iterable[tuple[str, str]], style: str = "facts") -> str:
    """Return a list of terms and plain texts."""
    return tag("dl", "".join(tag("div", tag("dt", escape(k)) + tag("dd", escape(v))) for k, v in rows), style)


def quote(text: str, name: str = "span", style: str = "") -> str:
    """Return other people's words, marked so that the gate on our own sentences leaves them alone."""
    return tag(name, escape(text), style, {"data-quote": ""})


def details(summary: str, content: str, opened: bool = False, style: str = "") -> str:
    """Return a fold; `summary` and `content` are markup."""
    return tag("details", tag("summary", summary) + content, style, {"open": ""} if opened else None)


def scroll(content: str, label: str) -> str:
    """Return a box that scrolls sideways by itself and can be reached with the keyboard."""
    return tag("div", content, "scroll", {"role": "region", "aria-label": label, "tabindex": "0"})


def hidden(text: str) -> str:
    """Return text for screen readers only."""
    return tag("span", escape(text), "sr")
