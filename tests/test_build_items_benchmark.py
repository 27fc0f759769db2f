"""benchmarks/build_items.py: its recall, and a tiny run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from metarec.functional import nearest_items
from metarec.functional.neighbours import rows_at_once
from optional import imported

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("build_items")


def test_recall_is_the_share_of_the_right_ones(build: ModuleType) -> None:
    features, allowed = build.clustered(300, 8), torch.arange(301) > 0
    near = nearest_items(features, allowed, build.K)
    assert build.recall(near, features, allowed, 300) == 1
    half = near.clone()
    half[::2, 0] = 0  # every other item lacks one of five
    half[1::2, 3] = half[1::2, 4]
    sampled = build.recall(half, features, allowed, 300)
    assert 1 - 1 / build.K <= sampled < 1
    assert build.recall(torch.zeros_like(near), features, allowed, 20) == 0


@pytest.mark.skipif(imported("faiss") is None, reason="faiss is not installed")
def test_a_tiny_run(build: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "build.json"
    sizes = ["--items", "200", "--features", "8", "--sample", "20", "--threads", "1"]
    build.main([*sizes, "--device", "cpu", "--commit", "abc", "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["commit"] == "abc" and found["data"].keys() == {"movietweetings", "200"}
    assert found["data"]["200"]["recall@5"] == 1 and found["data"]["movietweetings"]["recall@5"] > 0.98
    assert found["data"]["movietweetings"]["items"] == 4235 and found["data"]["200"]["peak_gib"] > 0


@pytest.mark.parametrize("columns", [1, 1000, 3_000_000, 1 << 40])
def test_a_gpu_takes_whole_tiles_where_it_can(columns: int) -> None:
    rows = rows_at_once("cuda", columns)
    assert rows >= 1 and (rows == 1 or rows * columns <= 1 << 28)
    assert rows < 128 or rows % 128 == 0


@pytest.mark.parametrize("chunk", [1, 128, 1000])
def test_the_rows_at_once_change_nothing(chunk: int) -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randint(-3, 4, (700, 6), generator=draw).float()  # products of whole numbers are exact
    allowed = torch.rand(700, generator=draw) < 0.8
    assert torch.equal(nearest_items(features, allowed, 5, chunk), nearest_items(features, allowed, 5))
