# SPDX-License-Identifier: Apache-2.0
"""Records and documents on disk."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from audit_records import full_records, scored
from pydantic import ValidationError

from expunge.audit.config import AuditConfig
from expunge.audit.document import (
    AuditDocument,
    EstimateEntry,
    environment,
    estimates,
    json_schema,
    model_entry,
    read_audit,
    to_json,
    write_json,
)
from expunge.audit.estimate import Estimate
from expunge.audit.metrics import compute_metrics
from expunge.audit.protocol import Protocol
from expunge.audit.records import Records
from expunge.audit.store import read_records, write_records
from expunge.errors import InputDataError

ARRAYS = ("logp", "correct", "mu", "sigma2")


def same_records(one, two):
    assert [dataclasses.asdict(g) for g in one.generated] == [dataclasses.asdict(g) for g in two.generated]
    assert one.meta == two.meta
    for a, b in zip(one.scored, two.scored, strict=True):
        for field in dataclasses.fields(a):
            left, right = getattr(a, field.name), getattr(b, field.name)
            if field.name in ARRAYS:
                np.testing.assert_array_equal(left, right)
            else:
                assert left == right, field.name


def test_round_trip_is_exact(tmp_path):
    records = full_records(0, n=5)
    narrow = [dataclasses.replace(i, logp=np.asarray(i.logp, np.float32)) for i in records.scored]
    records = Records(narrow, records.generated, {"dtype": "float32", "counts": {"pairs": 3}, "name": "Zoë"})
    kept = read_records(write_records(records, tmp_path / "a"))
    same_records(records, kept)
    assert kept.scored[0].logp.dtype == np.float32
    assert kept.scored[0].correct.dtype == np.uint8


def test_numbers_that_need_float64_keep_it(tmp_path):
    records = Records([scored("forget", "a", [-0.1, -1 / 3]), scored("forget", "b", [])], [])
    kept = read_records(write_records(records, tmp_path))
    same_records(records, kept)
    assert kept.scored[0].logp.dtype == np.float64
    assert len(kept.scored[1].logp) == 0


def test_empty_and_odd_records(tmp_path):
    same_records(Records([], []), read_records(write_records(Records([], []), tmp_path / "empty")))
    odd = Records([scored("forget", "a", [-np.inf, np.nan], mu=[], sigma2=[])], [])
    same_records(odd, read_records(write_records(odd, tmp_path / "odd")))


def test_a_folder_that_is_not_records_is_refused(tmp_path):
    with pytest.raises(InputDataError, match=r"meta\.json"):
        read_records(tmp_path)
    folder = write_records(full_records(0, n=1), tmp_path / "r")
    (folder / "meta.json").write_text('{"records_version": 99, "meta": {}}')
    with pytest.raises(InputDataError, match="another version"):
        read_records(folder)
    (folder / "generated.parquet").unlink()
    with pytest.raises(InputDataError, match=r"generated\.parquet"):
        read_records(folder)


@pytest.fixture
def document():
    metrics = compute_metrics(
        full_records(0, n=8),
        protocol=Protocol("t", "1", {"forget": "forget", "retain": "retain", "holdout": "holdout", "facts": "options"}),
        config=AuditConfig(bootstrap=100),
    )
    return AuditDocument(environment=environment(), models={"before": model_entry(metrics, role="target", seconds=1.5)})


def test_document_round_trip_and_no_nan(document, tmp_path):
    path = write_json(document, tmp_path / "deep" / "audit.json")
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert read_audit(path) == document
    plain = json.loads(text)
    assert plain["schema_version"] == 1
    found = plain["models"]["before"]["metrics"]
    assert found["forget_quality"]["value"] is None
    assert "reference" in found["forget_quality"]["reason"]
    assert "reason" not in found["forget.probability"]
    assert list(tmp_path.rglob("*.part")) == []


def test_estimates_come_back_equal():
    given = {"a": Estimate(value=0.5, ci_low=0.4, ci_high=0.6, n=3, direction="lower", reference="r", compat="muse")}
    given["b"] = Estimate.missing("nothing there", direction="higher")
    assert estimates(model_entry(given)) == given


def test_loose_payloads_lose_their_nan():
    plain = json.loads(to_json({"a": float("nan"), "b": [1.0, float("-inf")], "c": {"d": (float("inf"), "x")}}))
    assert plain == {"a": None, "b": [1.0, None], "c": {"d": [None, "x"]}}


def test_schema_names_the_fields_and_refuses_others(document):
    schema = json_schema()
    assert set(schema["properties"]) >= {"schema_version", "environment", "models", "attacks_run"}
    assert set(schema["$defs"]["EstimateEntry"]["properties"]) == set(EstimateEntry.model_fields)
    with pytest.raises(ValidationError):
        EstimateEntry(value=float("nan"), n=1, direction="lower")
    with pytest.raises(ValidationError):
        AuditDocument.model_validate({"schema_version": 2})
    with pytest.raises(ValidationError):
        AuditDocument.model_validate({"model": {}})


def test_reading_metrics_needs_neither_torch_nor_pyarrow():
    code = (
        "import sys, expunge.audit.metrics, expunge.audit.document as d, expunge.audit.store; d.environment();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'pyarrow', 'rouge_score')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
