"""The benchmarks of serving: a tiny run of each part, and the cases of new items against a loop over the clicks."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from metarec.data import split_by_time
from metarec.datasets import PLANTED_SPLIT, planted

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import serving

    return serving


@pytest.fixture
def new_items(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import new_items

    return new_items


def test_the_parts_join_to_the_promised_keys(
    serving: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "FEATURES", {"text": 8, "image": 8})
    monkeypatch.setattr(serving, "MEMORY_USERS", (5, 10))
    for part in ("one", "bulk"):
        serving.main([*f"--part {part} --items 60 --users 4 --bulk-users 30 --k 5 --out".split(), str(tmp_path / part)])
    fuzz = tmp_path / "fuzz"
    fuzz.write_text(json.dumps({"files": 2, "outcomes": {"refused": 2}, "kinds": {}}))
    load = tmp_path / "load"
    load.write_text(json.dumps({"levels": [{"clients": 8, "p99_ms": 3.0}]}))
    files = [str(tmp_path / part) for part in ("one", "bulk")]
    serving.main(["--part", "join", "--out", str(tmp_path / "all"), *files, str(fuzz), str(load)])
    found = json.loads((tmp_path / "all").read_text())
    assert 0 < found["adapt_recommend_p50_ms"] <= found["adapt_recommend_p99_ms"]
    assert found["bulk_ratio"] == found["bulk_users_per_second"] / found["beside_users_per_second"]
    assert found["bulk_ratio_to_plain_loop"] > 0 and found["bulk_ratio_at_most"] > 0
    assert found["gpu_users_per_second"] is None and found["fuzz"]["files"] == 2
    assert found["service"]["levels"] == [{"clients": 8, "p99_ms": 3.0}]
    assert found["runs"]["one cpu"]["settings"]["items"] == 60 and found["commit"]
    assert "written to" in capsys.readouterr().out


def test_users_of_the_benchmark_click_three_to_twenty_times(serving: ModuleType) -> None:
    everybody = list(serving.histories(200, 30))
    counts = [len(history) for history in everybody]
    assert min(counts) == 3 and max(counts) == 20
    assert everybody == list(serving.histories(200, 30)) and {i for h in everybody for i in h} == set(
        map(str, range(30))
    )


def test_the_catalogue_without_new_items(new_items: ModuleType) -> None:
    up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
    known = new_items.without_new(up)
    assert len(known.catalog.items) == up.warm.sum() < 40 and known.warm[1:].all()
    names = up.catalog.items.decode(up.item)
    assert known.catalog.items.decode(known.item) == names
    for name in set(names):
        (old,), (new,) = up.catalog.items.encode([name]), known.catalog.items.encode([name])
        assert torch.equal(known.catalog["text"].features[new], up.catalog["text"].features[old])
        assert known.catalog.attributes["cluster"][new - 1] == up.catalog.attributes["cluster"][old - 1]
    expected = []
    for user in down.user_codes:
        seen: list[int] = []
        for item in down.item[down.user == user].tolist():
            if not down.warm[item] and item not in seen and len(seen) >= 2:
                expected.append((down.catalog.items.decode(seen), item))
            seen.append(item)
    cases = new_items.cases_of(down)
    assert [(h, t) for h, t in zip(cases.histories, cases.target.tolist(), strict=True)] == expected
    assert len(expected) > 5


def test_the_standard_error_counts_users(new_items: ModuleType) -> None:
    values, user = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0]), np.array([0, 0, 1, 1, 2, 3])
    sums = [1.0, -1.0, 0.5, -0.5]
    assert new_items.clustered(values, user) == pytest.approx(np.sqrt(sum(s**2 for s in sums)) / 6)


def test_nearest_by_features(new_items: ModuleType) -> None:
    catalog = planted(users=60, items=40).catalog
    cases = new_items.Cases([["item3"], ["item3", "item13"]], np.array([1, 1]), np.array([0, 1]))
    scores = new_items.nearest(catalog, cases)
    cluster = np.array([-1, *map(int, catalog.attributes["cluster"])])
    top = scores[:, 1:].argsort(dim=1, descending=True)[:, :4] + 1
    assert (cluster[top.numpy()] == 3).mean() > 0.7


def test_the_chosen_share_finds_most_new_items_at_little_cost_with_every_model(new_items: ModuleType) -> None:
    def row(recall: list[float], ndcg: list[float], new: float) -> dict[str, list[float]]:
        return {"recall@10 known": recall, "ndcg@10 known": ndcg, "recall@10 new": [new - 0.01, new + 0.01]}

    none = {"none": row([0.1, 0.2], [0.05, 0.06], 0.05)}
    dear = {str(share): row([0.05, 0.2], [0.05, 0.06], 0.9) for share in new_items.SHARES}
    assert new_items.chosen(none | dear) is None, "each costs one of the models half of its recall"
    little = {"0.02": row([0.0991, 0.1981], [0.0496, 0.07], 0.06), "0.05": row([0.2, 0.2], [0.0496, 0.0595], 0.07)}
    much = {"0.1": row([0.2, 0.1979], [0.06, 0.06], 0.08), "0.2": row([0.2, 0.2], [0.0494, 0.07], 0.08)}
    assert new_items.chosen(none | dear | little | much) == 0.05
    assert new_items.chosen({**none, "none": row([0.1, 0.2], [0.05, 0.06], 0.071)} | dear | little | much) is None


def test_the_least_work_of_a_user(serving: ModuleType) -> None:
    """One learner of one block without steps: the last click's row through its matrices, and the catalogue."""
    with FlopCounterMode(display=False) as counted:
        torch.randn(1, 8) @ torch.randn(8, 3 * 8 + 8 + 4 * 8)  # queries, keys, values; output; hidden layer
        torch.randn(1, 4 * 8) @ torch.randn(4 * 8, 8)
        torch.randn(1, 8) @ torch.randn(8, 100)
    assert serving.least_work(100, dim=8, layers=1, learners=1, steps=0) == counted.get_total_flops()
