# SPDX-License-Identifier: Apache-2.0
"""Numbers and settings in words, and the gate that keeps out sentences that must not be written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

from expunge.claims import lint
from expunge.errors import ExpungeError
from expunge.report.view import EstimateDict

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_VOID = {"meta", "br", "hr", "input", "link", "img", "col", "wbr"}
_INLINE = {"span", "em", "strong", "b", "i", "code", "abbr", "sup", "sub", "a", "small", "q", "tspan", "wbr"}
_SETTING_WORDS = {
    "lr": "learning rate", "learning_rate": "learning rate", "epochs": "epochs", "max_steps": "steps",
    "batch_size": "batch size", "grad_accum": "gradient accumulation", "weight_decay": "weight decay",
    "forget_weight": "forget weight", "retain_weight": "retain weight", "dtype": "number format", "seed": "seed",
}  # fmt: skip


def number(value: float, like: float | None = None) -> str:
    """Format one number for people, with as many decimals as `like` gets; powers of ten when tiny or huge."""
    if not math.isfinite(value):
        raise ValueError(f"a report cannot show {value}")
    size = abs(value)
    if size and (size < 0.00005 or size >= 1e6):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")
    if like is None and 0 < size < 0.0005:
        return f"{value:.4f}".replace("-", "−")
    size = size if like is None else max(abs(like), 0.001)
    decimals = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:,.{decimals}f}".replace("-", "−").replace(",", "\u202f")


def interval(estimate: EstimateDict) -> str:
    """Format the interval of an estimate, "" where it has none."""
    low, high = estimate.get("ci_low"), estimate.get("ci_high")
    if low is None or high is None:
        return ""
    like = max(abs(low), abs(high))
    dash = "–" if low >= 0 else " to "
    return f"{number(low, like)}{dash}{number(high, like)}"


def duration(seconds: float) -> str:
    """Format seconds as the two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def moment(text: str) -> str:
    """Format an ISO time for people; a text of another form stays as it is."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:\d\d(?:\.\d+)?)?(Z|\+00:00)", text)
    return f"{found[1]} {found[2]} UTC" if found else text


def plain(value: Any) -> str:
    """Format a setting, a version or a nested value as short text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(inner) for inner in value)
    return "none" if value is None else str(value)


def listed(items: Sequence[str]) -> str:
    """Join names as a sentence does: a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def settings_sentence(settings: Mapping[str, Any]) -> str:
    """Say the settings that matter most in one sentence ("" where none is known)."""
    said: dict[str, str] = {}
    for dotted, value in flat(settings).items():
        words = _SETTING_WORDS.get(dotted.rpartition(".")[2])
        if words and value is not None:
            counted = words in ("epochs", "steps")
            said.setdefault(words, f"{plain(value)} {words}" if counted else f"{words} {plain(value)}")
    return f"It ran with {listed(list(said.values()))}." if said else ""


class _Spoken(HTMLParser):
    """Collects the words a page says itself: text, tooltips and labels, outside quotations, styles and scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._quiet: list[bool] = [False]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        quiet = self._quiet[-1] or "data-quote" in named or tag in ("style", "script")
        if tag not in _VOID:
            self._quiet.append(quiet)
        if not quiet:
            self.parts += [f" | {named[key]} | " for key in ("title", "aria-label", "alt") if named.get(key)]
        if tag not in _INLINE:
            self.parts.append(" | ")

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID and len(self._quiet) > 1:
            self._quiet.pop()
        if tag not in _INLINE:
            self.parts.append(" | ")

    def handle_data(self, data: str) -> None:
        if not self._quiet[-1]:
            self.parts.append(data)


def check(text: str) -> str:
    """Return `text` unchanged, or raise if it holds a sentence that must not be written.

    Raises:
        ExpungeError: naming the sentence.
    """
    found = lint(text)
    if found:
        raise ExpungeError(
            "a sentence that must not be written",
            field="report",
            value="; ".join(found),
            remedy="Say what was applied and what was measured instead",
        )
    return text


def check_page(page: str) -> str:
    """Apply `check` to what a page says itself; elements marked `data-quote` are other people's words."""
    spoken = _Spoken()
    spoken.feed(page)
    check("".join(spoken.parts))
    return page
