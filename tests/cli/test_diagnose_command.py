# SPDX-License-Identifier: Apache-2.0
"""`expunge diagnose` on two copies of an untrained model: streams, files and bad usage."""

from __future__ import annotations

from pathlib import Path

from cli_lab import Lab, expunge

QUICK = (
    "--set", "data.template=question", "--set", "diagnose.bootstrap=100", "--set", "diagnose.fisher_texts=2",
    "--set", "diagnose.texts=6",
)  # fmt: skip


def test_diagnose(lab: Lab, tmp_path: Path) -> None:
    given = [lab.base, lab.base, "--forget", lab.file("forget"), "--retain", lab.file("retain"), *QUICK]
    done = expunge("diagnose", *given, "-o", str(tmp_path / "out"), "--json")
    assert done.code == 0, done.stderr
    assert done.document["kind"] == "diagnostics"
    assert (tmp_path / "out/diagnostics.html").exists()
    again = expunge("diagnose", *given, "-o", str(tmp_path / "out"))
    assert (again.code, "--overwrite" in again.said) == (2, True)
    told = expunge("diagnose", *given, "-o", str(tmp_path / "out"), "--overwrite")
    assert told.code == 0
    assert "Thresholds" in told.stdout
    assert "ours" in told.stdout
    assert "diagnostics.html" in told.stdout


def test_bad_usage(lab: Lab, tmp_path: Path) -> None:
    given = [lab.base, lab.base, "--forget", lab.file("forget"), "-o", str(tmp_path / "out")]
    missing = expunge("diagnose", *given)
    assert (missing.code, "data.retain" in missing.said) == (2, True)
    for setting, said in (
        ("diagnose.text=3", "'texts'"), ("diagnose.compat=study", "published"),
        ("training.epochs=1", "no such section"),
    ):  # fmt: skip
        wrong = expunge("diagnose", *given, "--retain", lab.file("retain"), "--set", setting)
        assert wrong.code == 2
        assert said in wrong.said
    assert not (tmp_path / "out").exists()
