"""Nearest items where not all are compared with all: few rows exactly, many by an index with a high recall."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import metarec as mr
from metarec.functional import nearest_items, neighbour_index, neighbours
from metarec.functional.neighbour_index import indexed_items, near_items
from metarec.recipes.features import joined, scales_of, standardised
from optional import imported

needs_faiss = pytest.mark.skipif(imported("faiss") is None, reason="faiss is not installed")


def clustered(items: int, width: int = 32) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(items // 50, width, generator=draw)
    return centres[torch.randint(len(centres), (items,), generator=draw)] + 0.5 * torch.randn(
        items, width, generator=draw
    )


def films() -> Tensor:
    catalog = mr.datasets.movietweetings().catalog
    return joined(standardised(catalog, scales_of(catalog, sorted(catalog.modalities), catalog.size))).features


def recall(found: Tensor, exact: Tensor) -> float:
    """The share of the nearest that was found."""
    same = (found.unsqueeze(-1) == exact.unsqueeze(-2)) & (exact > 0).unsqueeze(-2)
    return float(same.any(-2).sum() / (exact > 0).sum())


@needs_faiss
@pytest.mark.parametrize("make", [lambda: clustered(4000), films])
def test_the_index_finds_nearly_all(make: object) -> None:
    features = make()  # type: ignore[operator]
    allowed = torch.arange(len(features)) % 5 != 0
    found, exact = indexed_items(features, allowed, 5), nearest_items(features, allowed, 5)
    assert recall(found, exact) >= 0.98
    assert allowed[found[found > 0]].all() and not (found == torch.arange(len(found)).unsqueeze(-1))[1:].any()


@needs_faiss
def test_equal_items_unusable_ones_and_fewer_than_asked_for() -> None:
    features = clustered(600, width=8)
    features[torch.arange(600) % 3 == 0] = features[3].clone()
    features[1:50:7] = 0
    features[2] = torch.nan
    allowed = torch.arange(600) % 4 != 0
    found, exact = indexed_items(features, allowed, 4), nearest_items(features, allowed, 4)
    assert recall(found, exact) >= 0.99
    assert torch.equal(found[found.sum(1) == 0], exact[exact.sum(1) == 0])
    few = allowed & (torch.arange(600) < 8)
    assert torch.equal(indexed_items(features, few, 9), nearest_items(features, few, 9))


@needs_faiss
def test_it_is_taken_for_many_items_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    features, asked = clustered(300), []
    monkeypatch.setattr(neighbour_index, "indexed_items", lambda *given: asked.append(given) or nearest_items(*given))
    near_items(features, torch.arange(300) > 0, 3)
    assert not asked
    monkeypatch.setattr(neighbour_index, "MANY", 299)
    near_items(features, torch.arange(300) > 0, 3)
    assert len(asked) == 1


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_few_rows_among_many_get_what_they_get_among_all(rows: int) -> None:
    features = clustered(1000, width=6)
    features[torch.arange(1000) % 9 == 0] = features[9].clone()
    features[-1] = features[9].clone()
    allowed = torch.arange(1000) % 4 != 0
    whole = nearest_items(features, allowed, 30)
    assert torch.equal(nearest_items(features, allowed, 30, first=1000 - rows), whole[-rows:])


def test_what_takes_long_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = iter(range(0, 4000, 2))
    monkeypatch.setattr(neighbours.time, "perf_counter", lambda: float(next(now)))
    nearest_items(clustered(400), torch.arange(400) > 0, 3, chunk=10)
    (record,) = caplog.records
    assert "400" in record.getMessage() and "metarec[index]" in record.getMessage()
