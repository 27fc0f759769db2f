"""benchmarks/profiles.py: gains against numbers by hand, and a planted world in which profiles say something."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def profiles() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("profiles", BENCHMARKS / "profiles.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gain_of_a_list_is_the_mean_of_each_click_alone(profiles: ModuleType) -> None:
    codes = np.array([7, 3, 9, 0])
    assert profiles._ndcg(codes, np.array([3, 8])) == pytest.approx(0.5 / math.log2(3))
    assert profiles._ndcg(codes, np.array([7])) == 1
    assert profiles._ndcg(codes, np.array([], dtype=int)) == 0


def test_profiles_gain_where_tastes_depend_on_them(profiles: ModuleType) -> None:
    rows = profiles.one(*profiles.planted(400), epochs=1)
    assert [row["clicks"] for row in rows] == [0, 1, 3] and all(row["users"] == 80 for row in rows)
    assert rows[0]["gain"]["popularity"][1] > 0
    assert rows[0]["ndcg@10"]["group"] > rows[0]["ndcg@10"]["popularity"]


def test_the_result_has_both_worlds() -> None:
    result = json.loads((BENCHMARKS / "results" / "profiles.json").read_text(encoding="utf-8"))
    assert set(result["worlds"]) == {"MovieLens-100K", "planted"} and result["commit"]
    for rows in result["worlds"].values():
        assert rows[0]["gain"]["popularity"][1] > 0, "a user without clicks is served better with a profile"
