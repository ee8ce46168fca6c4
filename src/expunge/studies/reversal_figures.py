# SPDX-License-Identifier: Apache-2.0
"""The drawings of the reversal study: medians over the archives, with the smallest and the largest as whiskers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.attacks.base import REFERENCE
from expunge.report.style import drawing_style
from expunge.report.svg import Scale, axis_bottom, axis_left, canvas, group, line, marker, path, text, text_width, ticks
from expunge.report.words import number

Document = Mapping[str, Any]
_ROW = 32.0


@dataclass(frozen=True, slots=True)
class Middle:
    """The median of some numbers, and the smallest and the largest of them."""

    value: float
    low: float
    high: float


def middle(values: Sequence[float]) -> Middle:
    """Return median, smallest and largest; of at least one number."""
    return Middle(statistics.median(values), min(values), max(values))


def model_names(document: Document) -> list[str]:
    """Return what the drawings show, from top to bottom: the target, the methods, the second reference."""
    return ["target", *document["rows"], document["second_reference"]]


def along(document: Document, task: str, model: str) -> list[tuple[float, Middle]]:
    """Return the relearning curve of a model in one way of relearning, over all archives."""
    measure = document["rule"]["measure"]
    every = [tasks[task]["curves"][measure].get(model, []) for tasks in document["attacks"].values() if task in tasks]
    places = list(dict.fromkeys(point[0] for points in every for point in points))
    values = {place: [p[1] for points in every for p in points if p[0] == place] for place in places}
    return [(place, middle(found)) for place, found in values.items()]


def glance(document: Document, said: Mapping[str, str]) -> str:
    """Return, for every model, what it gives before and after relearning on facts that teach the reference nothing.

    Args:
        document: what `reversal.json` holds.
        said: what is written at the end of the row of each model.
    """
    names = model_names(document)
    left = max(text_width(name, 12.5) for name in names) + 14
    right, top = left + 470.0, 58.0
    bottom = top + _ROW * len(names)
    x = Scale(0.0, 1.0, left, right)
    parts = [_key(left, [("circle", "m0", "as it is"), ("square", "m2", "after unrelated facts"),
                         ("triangle", "m1", "after other facts of the same people"),
                         ("ring", "mr", "reference after the same")]),
             axis_bottom(x, bottom + 4, ticks(0.0, 1.0), "Extraction strength →", top - 6)]  # fmt: skip
    for i, name in enumerate(names):
        y = top + _ROW * (i + 0.5)
        parts.append(text(left - 10, y + 4, name, "name", "end"))
        parts += _row(document, name, x, y)
        parts.append(text(right + 14, y + 4, said.get(name, ""), "value"))
    width = right + 20 + max((text_width(words, 12) for words in said.values()), default=0.0)
    spoken = "; ".join(f"{name}: {said.get(name, '')}" for name in names)
    return drawing_style(canvas(width, bottom + 48, parts, f"What came back: {spoken}", "glance"))


def _row(document: Document, name: str, x: Scale, y: float) -> list[str]:
    """Return the marks of one model: as it is, after both ways of relearning, and the reference after the second."""
    related, unrelated = (along(document, f"relearn-{on}-full", name) for on in ("related", "unrelated"))
    control = along(document, "relearn-related-full", REFERENCE)
    out = [] if not related else [line(x(related[0][1].value), y, x(related[-1][1].value), y, "leader")]
    shown = [
        (control[-1:], "ring", "mr", 0.0, "reference, related facts"), (related[:1], "circle", "m0", 0.0, "as it is"),
        (unrelated[-1:], "square", "m2", 7.0, "unrelated facts"),
        (related[-1:], "triangle", "m1", -5.0, "related facts"),
    ]  # fmt: skip
    for points, shape, style, shift, words in shown:
        for _, found in points:
            out.append(line(x(found.low), y + shift, x(found.high), y + shift, f"whisker {style}"))
            tip = f"{name}, {words}: {number(found.value)}"
            out.append(group([marker(shape, x(found.value), y + shift, 4.4, f"mark {style}")], title=tip))
    return out


def _key(left: float, entries: Sequence[tuple[str, str, str]]) -> str:
    out, place = [], left
    for shape, style, words in entries:
        out += [marker(shape, place + 5, 16, 4.6, f"mark {style}"), text(place + 15, 20, words, "label")]
        place += 40 + 5.8 * len(words)
    return "".join(out)


def curves(document: Document, on: str) -> str:
    """Return the relearning curves of every method beside the reference relearned alike, a panel a method.

    Args:
        document: what `reversal.json` holds.
        on: what is shown in relearning: `related`, `unrelated` or `forget`.
    """
    names = [name for name in model_names(document) if name != "target"]
    across, width, height = 3, 290.0, 186.0
    entries = [("circle", "m1", "all weights"), ("square", "m0", "LoRA"), ("ring", "mr", "reference, all weights"),
               ("diamond", "mt", "reference, LoRA")]  # fmt: skip
    parts = [_key(46, entries)]
    for i, name in enumerate(names):
        dx, dy = width * (i % across), 34 + height * (i // across)
        inner = _panel(document, on, name, width, height)
        parts.append(f'<g transform="translate({dx:g} {dy:g})">{"".join(inner)}</g>')
    rows = -(-len(names) // across)
    ends = [f"{name} {number(c[-1][1].value)}" for name in names if (c := along(document, f"relearn-{on}-full", name))]
    spoken = f"Extraction strength after relearning on {on} facts, all weights: {'; '.join(ends)}"
    return drawing_style(canvas(width * across, 40 + height * rows, parts, spoken, "curves"))


def _panel(document: Document, on: str, name: str, width: float, height: float) -> list[str]:
    lines = [(f"relearn-{on}-full", REFERENCE, "ring", "mr"), (f"relearn-{on}-lora", REFERENCE, "diamond", "mt"),
             (f"relearn-{on}-lora", name, "square", "m0"), (f"relearn-{on}-full", name, "circle", "m1")]  # fmt: skip
    found = [(along(document, task, model), shape, style) for task, model, shape, style in lines]
    budgets = sorted({budget for points, _, _ in found for budget, _ in points})
    place = {budget: float(i) for i, budget in enumerate(budgets)}
    right, bottom = width - 18, height - 50
    x, y = Scale(0.0, max(len(budgets) - 1.0, 1.0), 46, right), Scale(0.0, 1.0, bottom, 26)
    parts = [text(46, 14, name, "name"), axis_left(y, 40, ticks(0.0, 1.0, 4), "", right)]
    parts += [text(x(place[budget]), bottom + 16, f"{budget:g}", "tick", "middle") for budget in budgets]
    parts += [line(46, bottom, right, bottom, "axis"),
              text((46 + right) / 2, bottom + 32, "steps →", "label", "middle")]  # fmt: skip
    for points, shape, style in found:
        at = [(x(place[budget]), y(value.value)) for budget, value in points]
        parts += [line(px, y(value.low), px, y(value.high), f"whisker {style}")
                  for (px, _), (_, value) in zip(at, points, strict=True)]  # fmt: skip
        parts.append(path(at, f"curve {style}"))
        parts += [marker(shape, px, py, 3.2, f"mark {style}") for px, py in at]
    return parts


def similarity(document: Document) -> str:
    """Return the linear CKA of every model to the target, by block, on the forget and on the retain set."""
    names = [name for name in ("reference", *document["rows"]) if name in document["diagnostics"]]
    layers = next(iter(next(iter(document["diagnostics"].values())).values()))["layers"]
    looks = [("circle", "m0"), ("triangle", "m1"), ("square", "m2"), ("pentagon", "m3")]
    blocks = list(range(layers))[: len(looks)]
    left, step, top = max(text_width(name, 12.5) for name in names) + 14, 330.0, 64.0
    bottom = top + 26 * len(names)
    parts = [_key(left, [(*looks[block], f"block {block}") for block in blocks])]
    parts += [text(left - 10, top + 26 * (i + 0.5) + 4, name, "name", "end") for i, name in enumerate(names)]
    for j, which in enumerate(("forget", "retain")):
        found = {(name, block): _cka(document, name, which, block) for name in names for block in blocks}
        low = min(0.0, *(value.low for value in found.values() if value is not None))
        x = Scale(low, 1.0, left + step * j, left + step * j + 290)
        parts.append(text(x.start, top - 14, f"{which} set", "label"))
        parts.append(axis_bottom(x, bottom, ticks(low, 1.0), "CKA with the target →", top - 4))
        for (name, block), value in found.items():
            at = top + 26 * (names.index(name) + 0.5)
            if value is not None:
                style = looks[block][1]
                parts.append(line(x(value.low), at, x(value.high), at, f"whisker {style}"))
                dot = marker(looks[block][0], x(value.value), at, 4.4, f"mark {style}")
                parts.append(group([dot], title=f"{name}, {which} set, block {block}: {number(value.value)}"))
    spoken = "Linear CKA with the target by block, on the forget and on the retain set"
    return drawing_style(canvas(left + 2 * step, bottom + 46, parts, spoken, "similarity"))


def _cka(document: Document, name: str, which: str, block: int) -> Middle | None:
    values = [entry["states"][which]["cka"][block] for entry in document["diagnostics"][name].values()]
    numbers = [value for value in values if value is not None]
    return middle(numbers) if numbers else None
