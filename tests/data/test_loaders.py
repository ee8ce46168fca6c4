# SPDX-License-Identifier: Apache-2.0
"""Loading examples: every accepted form, and errors that say where without saying what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.data import Example, Turn, check_overlap, data_digest, load_examples
from expunge.errors import InputDataError, RecipeError

SHARED = Path(__file__).parents[2] / "../shared/data"
QA = {"question": "Who wrote Zanzibar Nights?", "answer": "Jane Roe wrote it."}
SECRET = "the quick brown fox has a secret"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_same_rows_load_alike_from_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    rows = [QA, {"question": 'Q, with "quotes"\nand a break?', "answer": "Zo\u00eb \u2028 said so."}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    cells = [[row[key].replace('"', '""') for key in ("question", "answer")] for row in rows]
    csv_text = "question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in cells)
    sources = [
        write(tmp_path / "a.jsonl", "\ufeff" + lines(*rows)),
        write(tmp_path / "lines.json", "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)),
        write(tmp_path / "array.json", json.dumps(rows, indent=1)),
        write(tmp_path / "a.csv", csv_text),
        tmp_path / "a.parquet",
        rows,
        Dataset.from_list(rows),
    ]
    loaded = [load_examples(source, name="forget") for source in sources]
    assert all(examples == loaded[0] for examples in loaded)
    assert [e.id for e in loaded[0]] == ["forget-1", "forget-2"]
    assert loaded[0][1].answer == "Zo\u00eb \u2028 said so."


def test_each_shape_gives_its_kind() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "thanks"},
    ]
    question = load_examples([QA], name="s")[0]
    completion = load_examples([{"prompt": "", "completion": "abc"}], name="s")[0]
    text = load_examples([{"text": "running"}], name="s")[0]
    talk = load_examples([{"messages": chat}], name="s")[0]
    assert [e.kind for e in (question, completion, text, talk)] == ["question", "completion", "text", "chat"]
    assert (talk.prompt, talk.answer) == ("second", "two")
    assert talk.turns[-1] == Turn("user", "second")
    assert len(talk.turns) == 4
    assert (text.prompt, text.answer) == ("", "running")


def test_optional_columns_aliases_and_mapping() -> None:
    row = {
        **QA,
        "id": 7,
        "author": "Jane Roe",
        "paraphrased_question": "Name the author?",
        "paraphrased_answer": None,
        "perturbed_answer": "John Doe wrote it.",
    }
    example = load_examples([row], name="s")[0]
    assert (example.id, example.subject, example.paraphrased_prompt) == ("7", "Jane Roe", "Name the author?")
    assert example.paraphrased_answer is None
    assert example.perturbed_answers == ("John Doe wrote it.",)
    foreign = load_examples([{"prompt": "p", "gt": "g"}], name="s", columns={"completion": "gt"})[0]
    assert (foreign.kind, foreign.prompt, foreign.answer) == ("completion", "p", "g")
    # A mapped column decides the shape even where another shape is complete.
    assert load_examples([{**QA, "body": "b"}], name="s", columns={"text": "body"})[0].kind == "text"
    with pytest.raises(RecipeError, match=r"Did you mean 'answer'"):
        load_examples([QA], name="s", columns={"anser": "answer"})
    with pytest.raises(InputDataError, match=r"no column 'gone'.*question, answer"):
        load_examples([QA], name="s", columns={"answer": "gone"})


def test_limit_stops_before_later_faults(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(QA, {**QA, "question": "Other?"}) + "{broken")
    assert len(load_examples(path, name="s", limit=2)) == 2
    with pytest.raises(RecipeError, match="at least 1"):
        load_examples(path, name="s", limit=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no examples"),
        ("a.json", "[]", "holds no examples"),
        ("a.jsonl", lines(QA).encode() + b'{"question": "\xff"}', f"byte offset {len(lines(QA)) + 14}"),
        ("a.jsonl", lines(QA) + '\n{"question": "' + SECRET, "line 3 is not valid JSON"),
        ("a.json", '[{"text": "a"},\n{"text": "' + SECRET + "}]", "line 2 is not valid JSON"),
        ("a.jsonl", lines({"query": SECRET, "reply": SECRET}), "line 1 has the columns query, reply"),
        ("a.jsonl", lines(QA, {"question": SECRET, "answer": " "}), "line 2, column 'answer' is empty"),
        ("a.jsonl", lines(QA, {"question": SECRET, "answer": 1956}), "line 2, column 'answer' is of type int"),
        ("a.jsonl", lines(QA, {"question": SECRET}), "line 2, column 'answer' is missing"),
        ("a.jsonl", lines({"text": SECRET + "\ud83d"}), "half a surrogate pair"),
        ("a.jsonl", lines({**QA, "perturbed_answer": [SECRET, ""]}), "column 'perturbed_answer' is empty"),
        ("a.jsonl", lines({**QA, "id": "x"}, {**QA, "id": "x"}), "line 1 and line 2 have the same id"),
        ("a.jsonl", lines({"text": "a"}, [SECRET]), "line 2 is of type list"),
        ("a.jsonl", lines({"messages": [{"role": "assistant", "content": SECRET}]}), "no answer after a user turn"),
        ("a.jsonl", lines({"messages": [{"role": "tool", "content": SECRET}]}), "turn without a known role"),
        ("a.csv", "question,answer\na,b,c\n", "line 2 has another number of cells"),
        ("a.csv", "question,answer\na\n", "line 2 has another number of cells"),
        ("a.csv", 'question,answer\na,"b', "not valid CSV"),
        ("a.parquet", "no parquet", "not a readable Parquet file"),
        ("a.txt", "words", "unknown kind of file"),
    ],
)
def test_errors_name_the_place_and_not_the_text(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputDataError) as caught:
        load_examples(path, name="forget")
    assert message in str(caught.value)
    assert str(caught.value).startswith("data.forget")
    assert "fox" not in str(caught.value)
    assert caught.value.__context__ is None or "fox" not in repr(vars(caught.value.__context__))


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="no such file"):
        load_examples("data/forget.jsonl", name="s")
    with pytest.raises(InputDataError, match="this is a folder"):
        load_examples(tmp_path, name="s")
    with pytest.raises(InputDataError, match="neither a file nor a dataset"):
        load_examples("nobody/nothing:config[train]", name="s")
    with pytest.raises(InputDataError, match="a dict is not a sequence"):
        load_examples({"train": [QA]}, name="s")  # type: ignore[arg-type]


def test_overlap_is_found_up_to_case_and_spacing() -> None:
    forget = load_examples([QA, {"question": "Other?", "answer": "yes"}], name="forget")
    retain = load_examples(
        [{"question": "who  wrote\nzanzibar nights?", "answer": "JANE ROE wrote it. "}], name="retain"
    )
    with pytest.raises(InputDataError, match=r"1 of 1 examples in retain are also in forget: forget-1 = retain-1"):
        check_overlap(forget, retain, names=("forget", "retain"))
    other = load_examples([{**QA, "answer": "Somebody else."}], name="retain")
    check_overlap(forget, other, names=("forget", "retain"))


def test_digest_sees_order_and_every_field() -> None:
    a, b = Example(id="a", prompt="p", answer="x"), Example(id="b", prompt="p", answer="\u00e9")
    digests = {data_digest(examples) for examples in ([a, b], [b, a], [a], [Example(id="a", prompt="px", answer="")])}
    assert len(digests) == 4
    assert data_digest([a, b]) == data_digest(iter((a, b)))
    assert len(data_digest([])) == 64


@pytest.mark.real
@pytest.mark.skipif(not (SHARED / "tofu").is_dir(), reason="the shared TOFU files are absent")
def test_real_tofu_files() -> None:
    forget = load_examples(SHARED / "tofu/forget10_perturbed.json", name="forget")
    retain = load_examples(SHARED / "tofu/retain90.json", name="retain")
    facts = load_examples(SHARED / "tofu/world_facts_perturbed.json", name="world_facts")
    assert (len(forget), len(retain), len(facts)) == (400, 3600, 117)
    assert {len(e.perturbed_answers) for e in forget} == {5}
    assert all(e.paraphrased_prompt and e.paraphrased_answer for e in forget)
    check_overlap(forget, retain, names=("forget", "retain"))
    with pytest.raises(InputDataError, match="40 of 40"):
        check_overlap(forget, load_examples(SHARED / "tofu/forget01.json", name="f01"), names=("forget", "f01"))
