# SPDX-License-Identifier: Apache-2.0
"""Where retraining can start: found from run folders, and never from a checkpoint that may have seen the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expunge.api.lineage import Link, content_digest, lineage, retraining_route, write_seen
from expunge.cli.main import app
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.errors import InputDataError
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama


def example(number: int) -> Example:
    return Example(id=f"e{number}", prompt=f"question {number}", answer=f"answer {number}")


def made(folder: Path, start: Path | str, seen: list[int] | None, *, epochs: int = 2, **digests: str) -> Path:
    """A run folder as `expunge train` leaves it; returns its model."""
    (folder / "model").mkdir(parents=True)
    info: dict[str, Any] = {"kind": "train", "model": {"path": str(start), **digests}, "data": {"train": {"n": 7}},
                            "recipe": {"training": {"epochs": epochs}}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(info))
    if seen is not None:
        write_seen(folder, [example(k) for k in seen])
    return folder / "model"


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Pretrained, then trained on 0 to 3, then on 4 and 5, then on 6."""
    one = made(tmp_path / "one", "hub/base", [0, 1, 2, 3])
    two = made(tmp_path / "two", one, [4, 5], epochs=3)
    return made(tmp_path / "three", two.parent, [6])


def test_what_counts_is_the_content() -> None:
    one = Example(id="a", prompt="p", answer="q", subject="s")
    assert content_digest(one) == content_digest(Example(id="b", prompt="p", answer="q", paraphrased_prompt="r"))
    assert content_digest(one) != content_digest(Example(id="a", prompt="p", answer="z"))
    assert content_digest(one) != content_digest(Example(id="a", prompt="p", answer="q", kind="completion"))


def test_the_last_checkpoint_that_never_saw_the_data(chain: Path, tmp_path: Path) -> None:
    route = retraining_route(str(chain), [example(5)])
    assert route is not None
    assert route.start == str(tmp_path / "one" / "model")
    assert route.runs == ((str(tmp_path / "two"), 1, 3), (str(tmp_path / "three"), 1, 2))
    assert (route.rows, route.assumes, route.scratch) == (1 * 3 + 1 * 2, "hub/base", False)


def test_from_scratch_where_the_first_run_saw_it(chain: Path) -> None:
    route = retraining_route(str(chain.parent), [example(5), example(0)])
    assert route is not None
    assert (route.start, route.assumes, route.scratch) == ("hub/base", "hub/base", True)
    assert route.rows == 3 * 2 + 1 * 3 + 1 * 2


def test_data_that_no_run_read_needs_no_retraining(chain: Path) -> None:
    route = retraining_route(str(chain), [example(9)])
    assert route is not None
    assert (route.start, route.runs, route.rows) == (str(chain), (), 0)


def test_a_run_that_does_not_say_counts_as_having_seen_it(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "one" / "seen.json").unlink()
    route = retraining_route(str(chain), [example(6)])
    assert route is not None
    assert route.start == "hub/base"
    assert [left for _, left, _ in route.runs] == [7, 2, 0]


def test_without_run_folders_nothing_is_known(tmp_path: Path) -> None:
    assert retraining_route("hub/base", [example(0)]) is None
    assert lineage(str(tmp_path)) == []


def test_a_start_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    one = made(tmp_path / "one", "hub/base", [0], result_digest="new")
    two = made(tmp_path / "two", one, [1], digest="old")
    with pytest.raises(InputDataError, match="next run started from"):
        lineage(str(two))


def test_links_name_run_and_method(chain: Path, tmp_path: Path) -> None:
    found = lineage(str(chain))
    assert [link.kind for link in found] == ["train"] * 3
    assert found[1] == Link(tmp_path / "two", str(tmp_path / "one" / "model"), "train",
                            frozenset(map(content_digest, [example(4), example(5)])), 3)  # fmt: skip


def test_a_dry_run_prints_the_route_beside_the_method(tmp_path: Path, encoder: Encoder) -> None:
    model = build_llama(len(encoder.tokenizer), hidden_size=16, layers=1, heads=2, context=64)
    save_model(model, encoder.tokenizer, tmp_path / "base")
    rows = [json.dumps({"id": str(k), "question": f"what is {k}", "answer": f"it is {k}"}) for k in range(6)]
    for name, part in (("first", rows[:4]), ("second", rows[4:]), ("forget", rows[4:5]), ("retain", rows[:4])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part))

    def call(*words: object) -> str:
        done = CliRunner().invoke(app, [*map(str, words)])
        assert done.exit_code == 0, done.output
        return done.stdout

    start: Path = tmp_path / "base"
    for name in ("first", "second"):
        call("train", "--model", start, "--data", tmp_path / f"{name}.jsonl", "-o", tmp_path / name, "--set",
             "training.epochs=1")  # fmt: skip
        start = tmp_path / name / "model"
    asked = ("run", "--model", start, "--forget", tmp_path / "forget.jsonl", "--retain", tmp_path / "retain.jsonl",
             "--method", "grad_diff", "--dry-run")  # fmt: skip
    found = json.loads(call(*asked, "--json"))["retraining"]
    assert found["start"] == str(tmp_path / "first" / "model")
    assert (found["rows"], found["assumes"]) == (1, str(tmp_path / "base"))
    assert found["seconds"] >= 0
    assert "1 runs, 1 rows read" in " ".join(call(*asked).split())
