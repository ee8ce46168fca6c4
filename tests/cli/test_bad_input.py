# SPDX-License-Identifier: Apache-2.0
"""What goes wrong: a message that names field, value and remedy, the right exit code, and nothing half-written."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_lab import Lab, expunge, tree

#: Rows of a forget file (None: there is no such file), and what the error must say.
FILES: dict[str, tuple[bytes | None, tuple[str, ...]]] = {
    "missing": (None, ("data.forget: no such file", "Check the path")),
    "empty": (b"", ("data.forget: holds no examples", "Give at least one row")),
    "not UTF-8": (b'{"question": "q", "answer": "\xff"}\n', ("not UTF-8 at byte offset 29", "iconv")),
    "not JSON": (
        b'{"question": "q", "answer": "a"}\n{"question"\n',
        ("line 2 is not valid JSON", "one JSON object a line"),
    ),
    "wrong columns": (b'{"query": "q", "reply": "a"}\n', ("line 1 has the columns query, reply", "{question, answer}")),
    "empty answer": (
        b'{"question": "q", "answer": "a"}\n{"question": "q2", "answer": " "}\n',
        ("line 2, column 'answer' is empty", "Fill it or leave the row out"),
    ),
    "too long": (
        json.dumps({"question": "q", "answer": "word " * 400}).encode(),
        ("max_length is 128", "--set data.too_long=truncate"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_forget_file_that_cannot_be_used(case: str, lab: Lab, tmp_path: Path) -> None:
    content, says = FILES[case]
    file = tmp_path / "forget.jsonl"
    if content is not None:
        file.write_bytes(content)
    before = tree(tmp_path)
    done = expunge(*lab.run(tmp_path / "out", forget=str(file)))
    assert done.code == 6
    assert "error: data.forget: " in done.said
    for text in says:
        assert text in done.said
    assert "word word" not in done.stderr  # no text of an example
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_forget_and_retain_overlap(lab: Lab, tmp_path: Path) -> None:
    done = expunge(*lab.run(tmp_path / "out", retain=lab.file("forget")))
    assert done.code == 6
    assert "data.retain: 8 of 8 examples in retain are also in forget" in done.said
    assert "Take them out of retain" in done.said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("data.noise.kind=mask", "data.noise.rate=1.5"), "data.noise.rate: input should be less than or equal to 1"),
        (("data.noise.kind=mask", "data.noise.rate=-1"), "data.noise.rate: input should be greater than or equal to 0"),
        (("data.noise.kind=masks", "data.noise.rate=0.1"), "Did you mean 'mask'?"),
        (("data.noise.rate=0.1",), "rate says how much, but kind is none"),
        (("data.robust.overlap=0",), "data.robust.overlap: input should be greater than 0"),
        (("data.robust.memorised=all",), "Valid: base, holdout, none"),
    ],
)
def test_noise_and_guards_that_cannot_be_meant(given: tuple[str, ...], says: str, lab: Lab, tmp_path: Path) -> None:
    more = [part for setting in given for part in ("--set", setting)]
    done = expunge(*lab.run(tmp_path / "out", *more))
    assert done.code == 2
    assert says in done.said
    assert not (tmp_path / "out").exists()


def without(lab: Lab, folder: Path, *patterns: str) -> str:
    """A copy of the model folder that lacks some files."""
    shutil.copytree(lab.base, folder)
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink()
    return str(folder)


@pytest.mark.parametrize("role", ["model", "reference", "base"])
def test_a_model_folder_without_a_tokenizer(role: str, lab: Lab, tmp_path: Path) -> None:
    folder = without(lab, tmp_path / "model", "tokenizer*")
    done = expunge(*lab.run(tmp_path / "out", **{role: folder}))
    assert done.code == 6
    assert f"model: no tokenizer files in this folder (got '{folder}')" in done.said
    assert "tokenizer.save_pretrained(folder)" in done.said
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there(lab: Lab, tmp_path: Path) -> None:
    for more in ((), ("--dry-run",)):
        done = expunge(*lab.run(tmp_path / "out", *more, model=str(tmp_path / "nothing")))
        assert done.code == 6
        assert f"model: no such folder (got '{tmp_path / 'nothing'}')" in done.said
    assert list(tmp_path.iterdir()) == []


SETTINGS = {
    "method": (["--method", "npoo"], "method.name: no such method (got 'npoo')", "Did you mean 'npo'?"),
    "key of the method": (["--set", "method.retian=kl"], "method.retian: no such key", "Did you mean 'retain'?"),
    "key of a section": (["--set", "training.learning_rat=1"], "training.learning_rat: no such key", "'learning_rate'"),
    "nested key": (["--set", "training.optimizer.weight_decy=1"], "training.optimizer.weight_decy", "'weight_decay'"),
    "section": (["--set", "trainin.epochs=1"], "trainin: no such key", "Did you mean 'training'?"),
    "choice": (["--set", "training.schedule=cosin"], "training.schedule: no such value (got 'cosin')", "'cosine'"),
    "range": (["--set", "training.epochs=0"], "training.epochs: input should be greater", "(got 0)"),
    "kind": (["--set", "training.learning_rate=fast"], "training.learning_rate: input should be a valid", "'fast'"),
    "metric": (["--set", "audit.metrics=[forget.probabilty]"], "no metric has this name", "forget.probability"),
    "form": (["--set", "training.epochs"], "--set: must have the form key.sub=value", "'training.epochs'"),
    "device": (["--device", "cuda:7"], "model.device: no GPU is visible (got 'cuda:7')", "model.device=cpu"),
    "length": (["--set", "data.max_length=4096"], "data.max_length: the model's context has 128 tokens", "at most 128"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_an_unknown_name_or_value(case: str, lab: Lab, tmp_path: Path) -> None:
    given, problem, remedy = SETTINGS[case]
    done = expunge(*lab.run(tmp_path / "out", *given))
    assert done.code == 2
    assert problem in done.said
    assert remedy in done.said
    assert not (tmp_path / "out").exists()


MISSING = {
    "model.path": (["--forget", "f.jsonl", "--method", "ga"], "Give --model DIR"),
    "data.forget": (["--model", "m", "--method", "ga"], "Give --forget FILE"),
    "method.name": (["--model", "m", "--forget", "f.jsonl"], "Give --method NAME"),
}


@pytest.mark.parametrize("key", MISSING)
def test_what_a_run_cannot_do_without(key: str) -> None:
    given, remedy = MISSING[key]
    done = expunge("run", *given)
    assert done.code == 2
    assert f"{key}: is missing" in done.said
    assert remedy in done.said


def test_an_input_that_the_method_needs(lab: Lab, tmp_path: Path) -> None:
    given = ["run", "--model", lab.base, "--forget", lab.file("forget"), "-o", str(tmp_path / "out")]
    retain = expunge(*given, "--method", "npo")
    assert retain.code == 2
    assert "data.retain: method 'npo' needs a retain set. Give" not in retain.said  # the remedy has its own line
    assert "Give --retain FILE" in retain.said
    base = expunge(*given, "--method", "retrain", "--retain", lab.file("retain"))
    assert base.code == 2
    assert "Give --base DIR" in base.said
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_no_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    assert expunge("validate", str(file)).code == 2
    for text, says in (("a: [", "is not valid YAML"), ("- 1", "must be a mapping"), ("name: x", "method.name")):
        file.write_text(text, "utf-8")
        done = expunge("validate", str(file))
        assert done.code == 2
        assert says in done.said
        assert done.stdout == ""


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [
        "training.learning_rate=1e30",
        "training.save_every=1",
        "training.warmup_ratio=0",
        "training.schedule=constant",
    ]
    done = expunge(*lab.run(out, *[part for text in settings for part in ("--set", text)], method="ga"))
    assert done.code == 1
    assert "became nan at step 2" in done.said
    assert f"the last good checkpoint is {out}/checkpoints/step-00000001" in done.said
    assert "training.learning_rate" in done.said
    assert "(got 1e+30)" in done.said
    info = json.loads((out / "run.json").read_text("utf-8"))
    assert info["status"] == "failed"
    assert "became nan" in info["error"]
    assert (out / "checkpoints" / "step-00000001" / "weights.safetensors").exists()
    assert not (out / "model").exists()
    assert not (out / "audit.json").exists()
    assert "did not finish" in (out / "report.html").read_text("utf-8")
    assert not [name for name in tree(out) if "partial" in name]


@pytest.mark.parametrize("place", ["below a file", "in /proc"])
def test_a_folder_that_cannot_be_written(place: str, lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    out = tmp_path / "file" / "out" if place == "below a file" else Path("/proc/expunge/out")
    done = expunge(*lab.run(out))
    assert done.code == 2
    assert "output_dir: cannot be written" in done.said
    assert f"(got '{out}')" in done.said
    assert "Choose a folder you may write to" in done.said
    assert tree(tmp_path) == ["file"]


def test_an_output_folder_that_exists(lab: Lab, finished: Path, tmp_path: Path) -> None:
    before = {name: (finished / name).read_bytes() for name in tree(finished)}
    run = expunge(*lab.run(finished))
    assert run.code == 2
    assert f"output_dir: already holds a run (got '{finished}')" in run.said
    assert "--overwrite to start again or --resume to go on" in run.said
    other = expunge(*lab.run(finished, "--resume", "--seed", "9"))
    assert other.code == 2
    assert "made with another recipe" in other.said
    assert {name: (finished / name).read_bytes() for name in tree(finished)} == before
    (tmp_path / "precious").write_text("mine", "utf-8")
    for flags in ([], ["--overwrite"], ["--resume"]):
        foreign = expunge(*lab.run(tmp_path, *flags))
        assert foreign.code == 2
        assert "holds no run" in foreign.said
    assert tree(tmp_path) == ["precious"]
    assert expunge(*lab.run(finished, "--overwrite", "--resume")).code == 2


def test_overwriting_waits_until_the_input_is_known_to_be_good(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert expunge(*lab.run(out)).code == 0
    before = tree(out)
    (tmp_path / "long.jsonl").write_text(json.dumps({"question": "q", "answer": "word " * 400}), "utf-8")
    assert expunge(*lab.run(out, "--overwrite", forget=str(tmp_path / "long.jsonl"))).code == 6
    assert tree(out) == before
    assert expunge(*lab.run(out, "--overwrite")).code == 0


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write files beyond a size: what a full disk does, without one."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("size", [22_000, 60_000], ids=["at the checkpoint", "at the optimiser's state"])
def test_a_disk_without_room_for_a_checkpoint(size: int, lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with largest_file(size):
        done = expunge(*lab.run(out, "--set", "training.save_every=1"))
    assert done.code == 1, done.stderr
    assert "output_dir: the disk is full" in done.said
    assert "Free space, then go on with --resume" in done.said
    assert json.loads((out / "run.json").read_text("utf-8"))["status"] == "failed"
    assert not (out / "model").exists()
    assert not [name for name in tree(out) if "partial" in name]
    resumed = expunge(*lab.run(out, "--set", "training.save_every=1", "--resume"))
    assert resumed.code == 0, resumed.stderr
    assert (out / "model" / "model.safetensors").exists()


def test_a_disk_that_is_full_from_the_start(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any, **_named: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        done = expunge(*lab.run(tmp_path / "out"))
    assert done.code == 1
    assert "the disk is full: No space left on device" in done.said
    assert tree(tmp_path) == []


def test_a_page_that_cannot_be_written(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    done = expunge("compare", str(finished), "-o", str(tmp_path / "file" / "page.html"))
    assert done.code == 2
    assert "cannot be written" in done.said


def steps_in(log: Path) -> int:
    return sum('"lr"' in line for line in log.read_text("utf-8").splitlines()) if log.exists() else 0


def test_an_interrupted_run_goes_on_to_the_same_bytes(lab: Lab, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    changes = ("training.epochs=60", "training.save_every=1000", "audit.metrics=[forget.probability]")
    settings = [part for change in changes for part in ("--set", change)]
    started = subprocess.Popen(
        [sys.executable, "-m", "expunge", *lab.run(out, *settings)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while steps_in(out / "metrics.jsonl") < 3 and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130, said
    assert "interrupted: after step" in said
    assert "its state is saved" in said
    assert "Go on with --resume" in said
    info = json.loads((out / "run.json").read_text("utf-8"))
    assert info["status"] == "interrupted"
    assert not (out / "model").exists()
    stopped_at = steps_in(out / "metrics.jsonl")
    assert 3 <= stopped_at < 120
    resumed = expunge(*lab.run(out, *settings, "--resume"))
    assert resumed.code == 0, resumed.stderr
    assert expunge(*lab.run(whole, *settings)).code == 0
    assert steps_in(out / "metrics.jsonl") == 120
    assert json.loads((out / "run.json").read_text("utf-8"))["error"] is None
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (out, whole)]
    assert weights[0] == weights[1]


def test_an_interrupt_outside_the_loop_is_recorded(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: Any, **_named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("expunge.api.job.save_model", interrupt)
        done = expunge(*lab.run(tmp_path / "out"))
    assert done.code == 130
    assert f"what was done is saved in {tmp_path / 'out'}" in done.said
    assert json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["status"] == "interrupted"
    assert expunge(*lab.run(tmp_path / "out", "--resume")).code == 0
    with monkeypatch.context() as patched:
        patched.setattr("expunge.api.job.load_data", interrupt)
        early = expunge(*lab.run(tmp_path / "other"))
    assert (early.code, (tmp_path / "other").exists()) == (130, False)
    assert "nothing was written" in early.said


def test_audit_of_what_is_not_there(lab: Lab, tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "out")]
    assert expunge("audit", str(tmp_path / "none"), "--forget", lab.file("forget"), *out).code == 6
    nothing = expunge("audit", lab.base, *out)
    assert (nothing.code, "nothing to audit on" in nothing.said) == (2, True)
    twice = expunge("audit", lab.base, lab.base, "--forget", lab.file("forget"), *out)
    assert (twice.code, "a model is named twice" in twice.said) == (6, True)
    form = expunge("audit", lab.base, "--extra", "more", *out)
    assert (form.code, "--extra: must have the form NAME=FILE (got 'more')" in form.said) == (2, True)
    assert tree(tmp_path) == []


def test_reference_records_of_other_data_are_refused(lab: Lab, finished: Path, tmp_path: Path) -> None:
    records = next(path for path in (finished / "records").iterdir() if path.name.startswith("target"))
    done = expunge(
        "audit", str(finished), "--reference", str(records), "--forget", lab.file("retain"), "-o", str(tmp_path / "out")
    )
    assert done.code == 6
    assert "the records are of another forget set" in done.said


def test_a_demo_that_cannot_be(tmp_path: Path) -> None:
    for given, says in (
        (["--methods", "npoo"], "Did you mean 'npo'?"), (["--people", "3"], "Take at least 10"),
    ):  # fmt: skip
        done = expunge("demo", "-o", str(tmp_path / "demo"), *given)
        assert (done.code, says in done.said) == (2, True), done.stderr
    assert not (tmp_path / "demo").exists()
