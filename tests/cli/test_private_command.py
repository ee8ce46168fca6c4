# SPDX-License-Identifier: Apache-2.0
"""`expunge train` with private steps and `expunge dp statement`: what they print, write and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_lab import Lab, expunge

from expunge.claims import lint
from expunge.models.loading import load_model
from expunge.runs import read_run

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")


def train(lab: Lab, folder: Path, *sets: str, data: str = "retain") -> list[str]:
    given = (
        "training.epochs=2",
        "training.batch_size=2",
        "data.template=question",
        "training.privacy.delta=1e-3",
        *sets,
    )
    options = [part for setting in given for part in ("--set", setting)]
    return ["train", "--model", lab.base, "--data", lab.file(data), "-o", str(folder), *options]


@pytest.fixture(scope="session")
def private(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private") / "run"
    done = expunge(*train(lab, folder, "training.privacy.epsilon=4", "training.privacy.clipping=ghost"))
    assert done.code == 0, done.stderr
    for text in ("privacy", "delta 0.001 (pld)", "rdp", "prv", "poisson, rate 0.25 of 8 units", "8 steps",
                 "one training sequence", "not covered"):  # fmt: skip
        assert text in done.stdout
    assert not lint(done.stdout)
    return folder


def test_the_run_says_what_it_spent(private: Path) -> None:
    found = read_run(private)["privacy"]
    assert 3.9 < found["epsilon"] <= 4.0 == found["wanted_epsilon"]
    assert found["epsilon"] == found["epsilon_by_accountant"]["pld"] <= found["epsilon_by_accountant"]["rdp"]
    assert (found["units"], found["steps"], found["sequences_per_example"]) == (8, 8, 1)
    load_model(private / "model")


def test_a_request_is_answered(private: Path) -> None:
    done = expunge("dp", "statement", str(private), "--records", "2", "--json")
    assert done.code == 0, done.stderr
    one = read_run(private)["privacy"]["epsilon"]
    assert done.document["epsilon"] == pytest.approx(2 * one)
    assert done.document["claim"] == "statistical"
    told = expunge("dp", "statement", str(private))
    assert told.code == 0
    for text in ("Guarantee", "Says not", "Assumes", "nothing was done to the weights"):
        assert text in " ".join(told.stdout.split())
    assert not lint(told.stdout)


def test_a_subject_is_one_unit_and_an_adapter_learns(lab: Lab, tmp_path: Path) -> None:
    sets = ("training.privacy.noise_multiplier=1", "training.privacy.unit=subject", "training.lora.r=2",
            "training.privacy.noise=secure")  # fmt: skip
    done = expunge(*train(lab, tmp_path / "run", *sets), "--json")
    assert done.code == 0, done.stderr
    subjects = {json.loads(line)["subject"] for line in Path(lab.file("retain")).read_text("utf-8").splitlines()}
    assert done.document["privacy"]["units"] == len(subjects) < 8
    assert done.document["privacy"]["noise"] == "secure"


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("training.privacy.noise_multiplier=1", "training.privacy.sampling=shuffle"), "training.privacy.sampling: no "
         "accountant here bounds batches"),
        (("training.privacy.epsilon=1", "training.privacy.delta=0.5"), "training.privacy.delta: with 8 units"),
        (("training.privacy.epsilon=1", "training.wrapper.name=sam"), "wrapper sam and privacy exclude each other"),
        ((), "give either epsilon or noise_multiplier"),
    ],
)  # fmt: skip
def test_what_proves_nothing_is_refused(lab: Lab, tmp_path: Path, sets: tuple[str, ...], said: str) -> None:
    done = expunge(*train(lab, tmp_path / "run", *sets))
    assert done.code == 2
    assert said in done.said


def test_without_the_packages_nothing_begins(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.api.privacy.require", _absent)
    done = expunge(*train(lab, tmp_path / "run", "training.privacy.epsilon=1"))
    assert (done.code, (tmp_path / "run").exists()) == (5, False)
    assert "pip install 'expunge[dp]'" in done.said


def _absent(module: str, extra: str) -> None:
    from expunge.errors import require

    require(f"{module}_that_is_not_there", extra)


def test_methods_take_no_private_steps(lab: Lab, tmp_path: Path) -> None:
    sets = ("training.privacy.epsilon=1", "training.privacy.delta=1e-3")
    done = expunge(*lab.run(tmp_path / "run", *(part for item in sets for part in ("--set", item))))
    assert done.code == 2
    assert "route of `expunge train`" in done.said


def test_only_a_private_run_has_a_statement(lab: Lab, finished: Path, private: Path) -> None:
    done = expunge("dp", "statement", str(finished))
    assert done.code == 6
    assert "no finished run of private training" in done.said
    assert expunge("dp", "statement", str(private), "--records", "9").code == 2


@pytest.mark.slow
@pytest.mark.parametrize("clipping", ["ghost", "per_sample"])
def test_a_killed_private_run_goes_on_with_its_account(lab: Lab, tmp_path: Path, clipping: str) -> None:
    """Killed without warning between two checkpoints, and resumed: the same epsilon, steps and weights."""
    sets = ("training.privacy.epsilon=4", f"training.privacy.clipping={clipping}", "training.epochs=30",
            "training.save_every=7", "data.template=question")  # fmt: skip
    whole = expunge(*train(lab, tmp_path / "whole", *sets))
    assert whole.code == 0, whole.stderr
    command = [sys.executable, "-m", "expunge", *train(lab, tmp_path / "killed", *sets)]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while len(list((tmp_path / "killed").rglob("step-*"))) == 0:
            assert started.poll() is None, "it ended before it wrote a checkpoint"
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        started.kill()
        started.wait()
    left = read_run(tmp_path / "killed")
    assert (left["status"], "privacy" in left, "model" in left) == ("running", False, False)
    assert expunge("dp", "statement", str(tmp_path / "killed")).code == 6
    done = expunge(*train(lab, tmp_path / "killed", *sets), "--resume")
    assert done.code == 0, done.stderr
    first, second = (read_run(tmp_path / name) for name in ("whole", "killed"))
    assert second["privacy"] == first["privacy"]
    assert second["steps"] == first["steps"] == 30 * 4
    assert second["model"]["result_digest"] == first["model"]["result_digest"]
