# SPDX-License-Identifier: Apache-2.0
"""A corpus that is larger than the memory the search may take: everything planted in it is found, within the bound."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")

#: MiB by which the process may grow over what it had with everything imported.
BOUND = 32
PLANTED = 100
NAME = "Wilhelmina Quist"

SEARCH = """
import json, sys
from expunge.desk.locate import lexical
from expunge.desk.locate.config import Corpus, LocateConfig, Subject
from expunge.desk.locate.search import locate
import datasketch, scipy.integrate

def memory(what):  # not ru_maxrss, which a new process takes over from the one that started it
    line, = [line for line in open("/proc/self/status") if line.startswith(what)]
    return int(line.split()[1]) / 1024

lexical.words("\u00e9")
before = memory("VmRSS")
subject = Subject.model_validate_json(open(sys.argv[2]).read())
found = locate(subject, [Corpus(name="web", path=sys.argv[1])], config=LocateConfig(memory_mb=int(sys.argv[3])),
               salt=b"salt")
json.dump({"rows": found.scope.corpora[0].rows, "by_way": found.scope.by_way, "grown": memory("VmHWM") - before,
           "found": {str(one.row): one.ways for one in found.found}}, sys.stdout)
"""


def plant(kind: int, sample: list[str], rng: Random, draw: list[str]) -> list[str]:
    """The sample as it is; a word in 25 changed; within other text; a name in other text."""
    if kind == 0:
        return sample
    if kind == 1:
        out = list(sample)
        for place in range(10, len(out), 25):
            out[place] = "changed"
        return out
    if kind == 2:
        return [*draw[:40], *sample, *draw[40:]]
    return [*draw[:20], NAME, *draw[20:]]


def write_corpus(path: Path, rows: int, samples: list[list[str]]) -> dict[int, int]:
    """Write rows of 30 to 90 words; return the kind of each planted row."""
    rng, vocabulary = Random(7), [f"w{number:x}" for number in range(20_000)]
    planted = {row: place % 4 for place, row in enumerate(sorted(rng.sample(range(1, rows + 1), 4 * PLANTED)))}
    with path.open("w") as file:
        for row in range(1, rows + 1):
            draw = rng.choices(vocabulary, k=rng.randrange(30, 90))
            text = plant(planted[row], samples[row % len(samples)], rng, draw) if row in planted else draw
            file.write(json.dumps({"text": " ".join(text)}) + "\n")
    return planted


def check(tmp_path: Path, rows: int) -> dict[str, object]:
    rng = Random(3)
    samples = [[f"s{rng.randrange(5000)}" for _ in range(60)] for _ in range(20)]
    planted = write_corpus(tmp_path / "web.jsonl", rows, samples)
    subject = {"identifiers": [NAME], "samples": [" ".join(sample) for sample in samples]}
    (tmp_path / "subject.json").write_text(json.dumps(subject))
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, tmp_path / "web.jsonl", tmp_path / "subject.json", str(BOUND)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    told: dict[str, object] = json.loads(done.stdout)
    ways = {0: ["exact", "ngram", "near"], 1: ["ngram", "near"], 2: ["ngram"], 3: ["identifier"]}
    assert told["rows"] == rows
    assert {int(row) for row in told["found"]} == set(planted)  # type: ignore[attr-defined]
    for row, kind in planted.items():
        assert set(told["found"][str(row)]) - {"near"} == set(ways[kind]) - {"near"}  # type: ignore[index]
        assert kind > 1 or "near" in told["found"][str(row)]  # type: ignore[index]
    return told


def test_everything_planted_is_found_within_the_bound(tmp_path: Path) -> None:
    told = check(tmp_path, 4000)
    assert told["grown"] <= BOUND  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_rows_are_searched_within_the_bound(tmp_path: Path) -> None:
    told = check(tmp_path, 1_000_000)
    assert told["grown"] <= BOUND  # type: ignore[operator]
    assert (tmp_path / "web.jsonl").stat().st_size > 3 * BOUND << 20
