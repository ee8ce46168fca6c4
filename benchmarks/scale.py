# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with one size while the others stay: Expunge alone, every point in a process of its own."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ours
from benchmarks.measure import Peak, apart
from benchmarks.settings import ALL_METRICS, Job, Moment
from benchmarks.sizes import FULL, Sizes
from benchmarks.workload import build_workload

#: A small model, so that all points together take minutes; nothing is generated.
BASE = FULL.changed(
    layers=4, width=128, heads=4, intermediate=344, vocabulary=4096, forget=16, retain=16, authors=2, facts=2,
    holdout=16, batch=8, epochs=2, read=3, generated=0,
)  # fmt: skip
#: Metrics that need no generation.
SCORED = tuple(name for name in ALL_METRICS if not name.endswith(("rouge_l", "model_utility", "gradient_norm.auc")))
#: Measured repetitions of a point.
REPEATS = 3


def _sets(count: int) -> dict[str, int]:
    return {"forget": count, "retain": count, "holdout": count}


def _shape(layers: int, width: int) -> dict[str, int]:
    return {"layers": layers, "width": width, "intermediate": width * 8 // 3, "heads": width // 32, "read": layers - 1}


def _long(tokens: int) -> dict[str, Any]:
    prompt, answer = tokens * 6 // 10, tokens - tokens * 6 // 10
    return {"prompt": prompt, "question": prompt // 3, "answer": answer}


#: For each axis: what it is called, and the changes to `BASE`.
AXES: Mapping[str, tuple[str, Sequence[dict[str, Any]]]] = {
    "forget set": ("examples", [_sets(n) for n in (16, 32, 64, 128)]),
    "model": ("parameters", [_shape(*shape) for shape in ((2, 64), (4, 128), (8, 256), (12, 384))]),
    "vocabulary": ("entries", [{"vocabulary": size} for size in (1024, 4096, 16384, 65536, 131072)]),
    "sequence length": ("tokens", [_long(tokens) for tokens in (64, 128, 256, 512)]),
    "metrics": ("metrics", [{"metrics": count} for count in (1, 2, 4, 8, len(SCORED))]),
}


def scaled(axis: str) -> dict[str, Any]:
    """Measure the points of an axis and return them, relative to the first, with the slopes of a log-log fit."""
    unit, changes = AXES[axis]
    points = []
    for change in changes:
        metrics = change.get("metrics", len(SCORED))
        sizes = BASE.changed(**{key: value for key, value in change.items() if key != "metrics"})
        points.append(apart(_point, sizes, metrics, axis))
    kinds = [key for key in points[0] if key != "x"]
    xs = [point["x"] for point in points]
    return {
        "unit": unit, "x": xs,
        "relative": {key: [round(point[key] / points[0][key], 3) for point in points] for key in kinds},
        "slopes": {key: round(slope(xs, [point[key] for point in points]), 3) for key in kinds},
    }  # fmt: skip


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the slope of the least-squares line through (log x, log y)."""
    along, up = [math.log(x) for x in xs], [math.log(y) for y in ys]
    middle, level = sum(along) / len(along), sum(up) / len(up)
    covariance = sum((a - middle) * (b - level) for a, b in zip(along, up, strict=True))
    return covariance / sum((a - middle) ** 2 for a in along)


def _point(sizes: Sizes, metrics: int, axis: str) -> dict[str, float]:
    """Return where a point is, and time and memory of scoring and of an NPO run (a step, for the other axes)."""
    with tempfile.TemporaryDirectory() as folder:
        workload = build_workload(Path(folder), sizes)
        scoring, score_peak = apart(_scoring, folder, sizes, metrics)
        out = {"x": float(_place(axis, sizes, metrics)), "scoring time": scoring, "scoring memory": score_peak}
        if axis != "metrics":
            step, run, peak = apart(_training, folder, sizes)
            out |= {"NPO run time" if axis == "forget set" else "NPO step time": run if axis == "forget set" else step}
            out["NPO memory"] = peak
        del workload
    return out


def _place(axis: str, sizes: Sizes, metrics: int) -> int:
    parameters = sizes.layers * (4 * sizes.width**2 + 3 * sizes.width * sizes.intermediate)
    return {
        "forget set": sizes.forget, "model": parameters + 2 * sizes.vocabulary * sizes.width,
        "vocabulary": sizes.vocabulary, "sequence length": sizes.prompt + sizes.answer, "metrics": metrics,
    }[axis]  # fmt: skip


def _scoring(folder: str, sizes: Sizes, metrics: int) -> tuple[float, int]:
    from benchmarks.workload import Workload

    peak, workload = Peak(), Workload(Path(folder), sizes)
    model, tokenizer = workload.load()
    ours.audit(workload, SCORED[:metrics], model, tokenizer)
    seconds = []
    for _ in range(REPEATS):
        started = Moment.now()
        ours.audit(workload, SCORED[:metrics], model, tokenizer)
        seconds.append((Moment.now() - started).cpu)
    return median(seconds), peak.bytes()


def _training(folder: str, sizes: Sizes) -> tuple[float, float, int]:
    from benchmarks.workload import Workload

    peak, workload = Peak(), Workload(Path(folder), sizes)
    logs = []
    for _ in range(REPEATS):
        model, tokenizer = workload.load()
        logs.append(ours.train(Job("npo", workload), model, tokenizer))
        if len(logs) == 1:
            highest = peak.bytes()
    return median(log.step.cpu for log in logs), median(log.whole.cpu for log in logs), highest
