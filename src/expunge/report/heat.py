# SPDX-License-Identifier: Apache-2.0
"""Heat maps: a grid of numbers, each written into its cell; shade and marks only help to find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.report.svg import canvas, group, rect, text, text_width

#: Shades from none to the darkest; the number in a cell stays readable on each.
SHADES = 6
_ROW, _TOP = 34.0, 22.0


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One cell: what is written in it, how dark it is in 0..1, and what its tooltip says."""

    written: str
    shade: float | None
    about: str


def heat_map(
    label: str, rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[int, int], HeatCell], *,
    axes: tuple[str, str], style: str, width: float = 460,
) -> str:  # fmt: skip
    """Return a grid of cells with its rows and columns named.

    Args:
        label: what the map shows, in words.
        rows: names from top to bottom.
        columns: names from left to right.
        cells: by (row, column); others are left empty.
        axes: what the rows and the columns are.
        style: `lost` or `left`: which colour the shades have.
        width: of the drawing.
    """
    left = max(text_width(name, 12) for name in (*rows, axes[0])) + 12
    step = min((width - left) / max(len(columns), 1), 96.0)
    bottom = _TOP + _ROW * len(rows)
    parts = [text(0, 12, f"↓ {axes[0]}", "label")]
    parts += [text(left - 8, _TOP + _ROW * (i + 0.5) + 4, name, "tick", "end") for i, name in enumerate(rows)]
    parts += [text(left + step * (j + 0.5), bottom + 16, name, "tick", "middle") for j, name in enumerate(columns)]
    parts.append(text(left + step * len(columns) / 2, bottom + 36, f"{axes[1]} →", "label", "middle"))
    for (i, j), cell in cells.items():
        parts.append(_cell(cell, left + step * j, _TOP + _ROW * i, step, style))
    said = "; ".join(f"{rows[i]}, {columns[j]}: {cell.written}" for (i, j), cell in cells.items())
    return canvas(left + step * len(columns) + 4, bottom + 44, parts, f"{label}: {said}", "heat")


def _cell(cell: HeatCell, x: float, y: float, step: float, style: str) -> str:
    box = rect(x + 1, y + 1, step - 2, _ROW - 2, "cell", 4)
    if cell.shade is not None:
        level = round(max(0.0, min(cell.shade, 1.0)) * (SHADES - 1))
        box += rect(x + 1, y + 1, step - 2, _ROW - 2, f"{style} q{level}", 4)
    return group([box, text(x + step / 2, y + _ROW / 2 + 4, cell.written, "value", "middle")], title=cell.about)
