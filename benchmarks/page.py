# SPDX-License-Identifier: Apache-2.0
"""`docs/performance.md`: every ratio with the counted work that explains it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What a profile is of.
TITLES: Mapping[str, str] = {
    "npo": "NPO", "grad_diff_kl": "GradDiff + KL", "rmu": "RMU", "audit_default": "audit, default metrics",
}  # fmt: skip
#: What each ratio should at least be (memory and start: at most), against the plain side and beside OpenUnlearning.
GOALS: Mapping[str, tuple[str, str]] = {
    "npo": ("≥ 1.8", "≥ 2"), "grad_diff_kl": ("≥ 1.8", "≥ 2"), "rmu": ("≥ 5", "≥ 5"),
    "audit_default": ("≥ 5", "≥ 6"), "audit_all": ("≥ 8", "≥ 10"), "memory_npo": ("≤ 0.55", "≤ 0.5"),
    "start_audit": ("", "≤ 0.4"),
}  # fmt: skip

_HEAD = """# Performance

How much less work Expunge does for the same numbers, measured. `make bench` runs both sides in turn on one model and
one data set, first checks that they compute equal numbers and only then prints a ratio; `make bench-quick` does the
same with a tiny model in under a minute. This page is made from the results by `python -m benchmarks page`.
"""

_HOW = """## What is compared

**The plain side** (`benchmarks/plain_training.py`, `benchmarks/plain_audit.py`) is what one writes with transformers
alone: a `Trainer` whose `compute_loss` forwards forget and retain rows apart, padded on the right, with all logits,
beside a frozen second model; and an evaluation that computes one metric at a time, each with passes of its own through
`model(**batch)` and `model.generate`. It is written to be fast in that form: fused AdamW, rows tokenised once,
cross-entropy over flat logits, inference mode, no gradients for what does not train, Min-K%++ from one forward, and
what two metrics name alike is computed once. Its evaluation batches have 32 rows; 8 and 16 take as long.

**Equal numbers.** The loss of every optimiser step must agree to 1e-5 of its value over the whole run, every metric to
1e-4; otherwise the command stops. Every pair is checked, not only the first.

**A ratio** is the median over pairs of runs that follow each other directly, with the smallest and the largest. Time is
the processor time of the process, which other programs on the machine disturb least; the wall clock stands beside it.
A first pair warms up and is counted, not timed. Of the steps of a run the first is left out, and the median taken.
*Run* is the whole run with its preparation: reading and tokenising, Expunge's reference answers, the copy of the model.

**Memory** is the largest resident memory above what the process holds after all imports, each side in a process
of its own, forked before any model was loaded.

**Work** is counted with hooks: positions × decoder blocks, padding included, a backward counted as two forwards;
positions whose logits were computed; parameters that the optimiser moved.
"""


def write_page(found: Mapping[str, Any], beside: Mapping[str, Any] | None, path: Path, source: str) -> None:
    """Write the page.

    Args:
        found: what `run` returned.
        beside: ratios against another tool, measured elsewhere.
        path: the page.
        source: name of the results file.
    """
    parts = [_HEAD, _measured_on(found, source), _table(found["rows"], beside), _HOW, _reasons(found)]
    if found.get("profiles"):
        parts.append(_profiles(found["profiles"], found["rows"]))
    if found.get("scale"):
        parts.append(_scale(found["scale"]))
    if beside is not None:
        parts.append(_other(beside))
    path.write_text("\n".join(parts), "utf-8")


def _measured_on(found: Mapping[str, Any], source: str) -> str:
    where, sizes, tokens = found["environment"], found["sizes"], found["tokens"]
    versions = where["packages"]
    return (
        f"Measured on {where['date']}: {where['processor']}, {where['cores']} cores, {where['threads']} thread, "
        f"{where['capability']}, torch {versions['torch']}, transformers {versions['transformers']}; load average "
        f"{where['load_average']} before and {where['load_average_after']} after. Model: Llama of {sizes['layers']} "
        f"blocks, width {sizes['width']}, {sizes['vocabulary']} tokens, float32, random weights. Data: "
        f"{sizes['forget']} forget, {sizes['retain']} retain, {sizes['authors']} + {sizes['facts']} utility and "
        f"{sizes['holdout']} holdout questions shaped like TOFU's, "
        f"{tokens['prompt']:.0f} prompt and {tokens['answer']:.0f} answer tokens on average, whose lengths vary as in "
        f"its forget10 but for the {sizes['prompt'] - sizes['question']} tokens of a template in every prompt; batch "
        f"{sizes['batch']} + {sizes['batch']}; generations up to {sizes['generated']} tokens. Everything is in "
        f"`benchmarks/results/{source}`.\n"
    )


def _spread(ratio: list[float]) -> str:
    low, middle, high = ratio
    return f"**{middle:.2f}** ({low:.2f} to {high:.2f})"


def _table(rows: Mapping[str, Any], beside: Mapping[str, Any] | None) -> str:
    others = beside["rows"] if beside else {}
    lines = [
        "| work | against plain code | wall clock | goal | beside OpenUnlearning | goal |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratio, goal = row["ratio"], GOALS[name]
        main = _spread(ratio.get("cpu") or ratio["memory"])
        wall = f"{ratio['wall'][1]:.2f}" if "wall" in ratio else ""
        other = others.get(name, {}).get("ratio")
        told = _spread(other.get("cpu") or other["memory"]) if other else "not measured"
        lines.append(f"| {row['title']} | {main} | {wall} | {goal[0]} | {told} | {goal[1]} |")
    lines.append(
        "\nSteps and audits: how many times as long the other side takes. Memory and start: Expunge's share of it.\n"
    )
    unmet = [f"{rows[name]['title']} ({GOALS[name][0]})" for name in rows if not _met(rows[name], GOALS[name][0])]
    if unmet:
        lines.append(f"Goals against plain code that are not met: {'; '.join(unmet)}.\n")
    return "\n".join(lines)


def _met(row: Mapping[str, Any], goal: str) -> bool:
    """Return whether the median is on the right side of a goal; an empty one asks for nothing."""
    if not goal:
        return True
    limit = float(goal[2:])
    return _ratio(row) >= limit if goal[0] == "≥" else _ratio(row) <= limit


def _ratio(row: Mapping[str, Any]) -> float:
    return float((row["ratio"].get("cpu") or row["ratio"]["memory"])[1])


def _reasons(found: Mapping[str, Any]) -> str:
    lines = ["## Where each ratio comes from\n"]
    lines += [_training_reason(row) for row in found["rows"].values() if "whole_run" in row]
    lines += [_audit_reason(row) for name, row in found["rows"].items() if name.startswith("audit")]
    memory = found["rows"].get("memory_npo")
    if memory is not None:
        held = memory["in_weights"]
        lines.append(
            f"**{memory['title']}.** In units of the model's weights: {held['ours']:.1f} against {held['plain']:.1f}. "
            "Both sides hold weights, gradients and two moments, four units; the plain side holds the second model as "
            "the fifth, and logits for every position. What is left over are the activations of one step.\n"
        )
    return "\n".join(lines)


def _times(plain: float, ours: float) -> str:
    return f"{plain / ours:.2f} times" if ours else "none here"


def _training_reason(row: Mapping[str, Any]) -> str:
    ours, plain = row["work"]["ours"], row["work"]["plain"]
    logits = (plain["logits"] + plain["trained_logits"], ours["logits"] + ours["trained_logits"])
    return (
        f"**{row['title']}.** Whole run: {_spread(row['whole_run']['cpu'])}. Counted over {plain['steps']} steps and "
        f"their preparation, the plain side does {_times(plain['blocks'], ours['blocks'])} the block work "
        f"({plain['forwarded']:,} positions × blocks without gradients and {plain['trained']:,} with, against "
        f"{ours['forwarded']:,} and {ours['trained']:,}) and computes logits at {logits[0]:,} positions against "
        f"{logits[1]:,}. Gradients are formed of {plain['graded']:,} parameters against {ours['graded']:,}, and the "
        f"optimiser moves {plain['updated']:,} against {ours['updated']:,}: work that both must do bounds the ratio.\n"
    )


def _audit_reason(row: Mapping[str, Any]) -> str:
    ours, plain = row["work"]["ours"], row["work"]["plain"]
    return (
        f"**{row['title']}.** The plain side runs {plain['forwards']:,} forwards against {ours['forwards']:,}, "
        f"{plain['blocks']:,} positions × blocks against {ours['blocks']:,} "
        f"({_times(plain['blocks'], ours['blocks'])}), and logits at {plain['logits'] + plain['trained_logits']:,} "
        f"positions against {ours['logits'] + ours['trained_logits']:,}. One new token of a generation counts like one "
        "position of a scored text but costs more: its forward is as short as the batch is small. Every token that no "
        "other answer to the same prompt shares has to go through every block once, so that at equal numbers no audit "
        "can be faster than that count allows, beyond padding, logits and the rate of the products.\n"
    )


def _profiles(found: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    kinds = dict.fromkeys(kind for sides in found.values() for side in sides.values() for kind in side)
    lines = ["## What stops more\n", "Share of the time inside torch's operations, from `torch.profiler`:\n",
             f"| work | side | {' | '.join(kinds)} |", "|---|---|" + "---|" * len(kinds)]  # fmt: skip
    for name, sides in found.items():
        for side, shares in sides.items():
            cells = " | ".join(f"{100 * shares.get(kind, 0.0):.0f} %" for kind in kinds)
            lines.append(f"| {TITLES[name]} | {'Expunge' if side == 'ours' else 'plain'} | {cells} |")
    lines.append("")
    for name, sides in found.items():
        (first, most), *_ = sides["ours"].items()
        moving = 100 * sides["ours"].get("optimiser", 0.0)
        shares = f"{first} take {100 * most:.0f} % of Expunge's time, the optimiser {moving:.0f} %"
        products = sides["ours"].get("matrix products")
        if name in rows and products:
            shares += f"; were all but the matrix products free, the ratio would be {_ratio(rows[name]) / products:.1f}"
        lines.append(f"- {TITLES[name]}: {shares}.")
    lines.append("")
    return "\n".join(lines)


def _scale(found: Mapping[str, Any]) -> str:
    lines = [
        "## Growth\n",
        "Expunge alone, on a smaller model, one size changed at a time; every point in a process of its own, relative "
        "to the smallest. A slope of 1 on the two logarithmic scales is linear growth; below 1, a fixed cost is still "
        "visible.\n",
        "![Time and memory against each size](performance-scale.svg)\n",
        "| grows | from | to | slopes |",
        "|---|---|---|---|",
    ]
    for axis, one in found.items():
        slopes = ", ".join(f"{key} {value:.2f}" for key, value in one["slopes"].items())
        lines.append(f"| {axis} ({one['unit']}) | {one['x'][0]:,.0f} | {one['x'][-1]:,.0f} | {slopes} |")
    lines.append("")
    return "\n".join(lines)


def _other(beside: Mapping[str, Any]) -> str:
    lines = [
        f"## Beside {beside['tool']}\n",
        f"Commit `{beside['commit']}`, measured on the same model and data, outside this repository, none of whose "
        f"files come from it. {beside['how']}\n",
    ]
    lines += [f"- {note}" for note in beside["notes"]]
    lines.append("")
    return "\n".join(lines)
