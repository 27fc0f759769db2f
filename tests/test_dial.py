"""benchmarks/dial.py on worlds small enough for a test, and its pooling of worlds against numbers by hand."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from metarec.report import Report

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def dial() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("dial", BENCHMARKS / "dial.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_worlds_are_put_together_without_mixing_their_users(dial: ModuleType) -> None:
    user = np.array([0, 2])
    one, two = (Report(user, user, np.array(rank), user > 0, k=(10,)) for rank in ([1.0, 20.0], [3.0, 4.0]))
    both = dial.joined([one, two])
    assert len(set(both.user.tolist())) == 4 and both.rank.tolist() == [1, 20, 3, 4]
    assert both.metrics["recall@10"].mean == 0.75


def test_adapting_helps_where_rules_are_personal_only(
    dial: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "DIAL", (0.0, 1.0))
    out = tmp_path / "dial.json"
    dial.main(["--out", str(out), "--seeds", "1", "--users", "1000", "--epochs", "9"])
    shared, personal = json.loads(out.read_text())["rows"]
    assert shared["users"] == personal["users"] == 200
    assert personal["relative_gain"] > 0.3 and personal["interval_low"] > 0
    assert personal["beside_sasrec"]["interval_low"] > 0
    assert shared["beside_sasrec"]["interval_low"] <= 0, "one rule for all: nothing to adapt to"
