# SPDX-License-Identifier: Apache-2.0
"""`expunge train` with private steps and `expunge dp statement`: what they print, write and refuse."""

from __future__ import annotations

import json
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
