"""The benchmarks of ranking, of cost curves, of several processes and of sharded tables run and say what they claim."""

from __future__ import annotations

import argparse
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
RUN = {"settings", "threads", "commit", "machine", "date"}


@pytest.fixture(autouse=True)
def _benchmarks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def run(name: str, out: Path, arguments: str) -> dict[str, Any]:
    """What a benchmark writes, run from its command line."""
    importlib.import_module(name).main(["--out", str(out), "--device", "cpu", "--commit", "abc", *arguments.split()])
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def test_ranking_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run("ranking", tmp_path / "new" / "r.json", "--users 5 --items 40 --clicks 4 --dim 8 --steps 2 --k 3")
    assert set(result) == RUN | {
        "seconds",
        "users_per_second",
        "parts",
        "peak_bytes",
        "before_bytes",
        "users_by_items_bytes",
    }
    assert result["commit"] == "abc" and result["settings"]["steps"] == 2
    parts = result["parts"]
    assert result["seconds"] == pytest.approx(parts["adapt_seconds"] + parts["rank_seconds"])
    assert result["users_per_second"] == pytest.approx(5 / result["seconds"])
    assert result["users_by_items_bytes"] == 4 * 5 * 41 and result["peak_bytes"] >= result["before_bytes"] > 0
    assert "5 users, 2 steps of all weights, 40 items" in capsys.readouterr().out


def test_ranked_lists_are_those_of_the_whole_score_matrix() -> None:
    ranking = importlib.import_module("ranking")
    model = ranking.make_model(argparse.Namespace(items=60, dim=8, clicks=5, steps=4))
    users = importlib.import_module("inner_loop").make_users(7, 5, 60)
    codes, _ = ranking.ranked(model, users, model.encode(users.support, users.query), 6)
    with torch.no_grad():
        scores = model.adapt(users.support)(users.query).scores[:, 0]
    scores[:, 0] = -torch.inf
    scores.scatter_(1, users.query.history, -torch.inf)
    assert codes.tolist() == scores.topk(6).indices.tolist()
    without_steps = ranking.make_model(argparse.Namespace(items=60, dim=8, clicks=5, steps=0))
    state = without_steps.encode(users.support, users.query)
    assert codes.tolist() != ranking.ranked(without_steps, users, state, 6)[0].tolist()


def test_curves_have_speeds_and_floors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves, floor = importlib.import_module("curves"), importlib.import_module("floor")
    result = run("curves", tmp_path / "c.json", "--quick --repeats 1")
    assert set(result) == RUN | {"curves", "ceilings"}
    assert {axis: [point["value"] for point in points] for axis, points in result["curves"].items()} == curves.QUICK
    speed = result["ceilings"]["matmul_flops_per_second"]
    copies = {int(size): rate for size, rate in result["ceilings"]["copy_bytes_per_second"].items()}
    base = result["settings"]
    for axis, points in result["curves"].items():
        for point in points:
            what = {**base, axis: point["value"]}
            work = floor.work(floor.Shape(what["dim"], what["layers"], 4 * what["dim"], what["clicks"], what["steps"]))
            least = max(work["flops"] / speed, (work["weight_bytes"] + work["activation_bytes"]) / max(copies.values()))
            assert point["floor_users_per_second"] == pytest.approx(1 / least)
            assert point["users_per_second"] == pytest.approx(what["users"] / point["repeats"][0])
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ranking", "--items 30", "--items must be at least 33, got 30"),
        ("ranking", "--steps 0", "--steps must be at least 1, got 0"),
        ("ranking", "--device tpu", "--device 'tpu': expected one of"),
        ("curves", "--repeats 0", "--repeats must be at least 1, got 0"),
        ("curves", "--device tpu", "--device 'tpu': expected one of"),
        ("peers", "--loop-users 0", "--loop-users must be at least 1, got 0"),
        ("distributed", "--processes 0", "--processes must be at least 1, got 0"),
        ("sharded", "--users 8 0", "--users must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(
    name: str, arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(["--out", str(tmp_path / "x.json"), *arguments.split()])
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_processes_are_measured_one_number_after_another(tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    result = run("distributed", out, "--processes 1 2 --users 3 --items 20 --repeats 1")
    assert set(result) == RUN - {"threads"} | {"users_per_second", "speed_up", "runs", "backend", "threads_per_process"}
    assert result["backend"] == "gloo" and result["commit"] == "abc"
    speed = result["users_per_second"]
    assert list(speed) == ["1", "2"]
    assert result["speed_up"] == {"1": 1.0, "2": pytest.approx(speed["2"] / speed["1"])}
    for found in result["runs"]:
        assert speed[str(found["processes"])] == pytest.approx(3 / found["repeats"][0])
        blocks = 2 * (64 * 192 + 192 + 64 * 64 + 64 + 2 * 64 * 256 + 256 + 64 + 4 * 64)
        assert found["message_bytes"] == 4 * (21 * 64 + blocks + 12 * 64 + 2 * 64)  # items, blocks, positions, a norm


def test_a_sharded_table_is_measured_beside_a_whole_one(tmp_path: Path) -> None:
    sizes = "--items 50 --small 30 --users 4 6 --steps 2"
    result = run("sharded", tmp_path / "s.json", f"--processes 1 2 {sizes}")
    told = {"users_per_second", "speed_up", "peak_gib", "equal", "runs", "backend", "threads_per_process"}
    assert set(result) == RUN - {"threads"} | told
    speed = result["users_per_second"]
    assert list(speed) == ["1", "2"] and list(speed["1"]) == list(speed["2"]) == ["4", "6"]
    assert result["speed_up"]["2"] == pytest.approx({users: speed["2"][users] / speed["1"][users] for users in "46"})
    assert result["peak_gib"] == {"1": [None], "2": [None, None]}
    equal = result["equal"]
    assert equal["items"] == 30 and equal["first_loss"] == pytest.approx(math.log(65), rel=0.1)
    assert 0 < equal["processes"]["2"]["loss_difference"] < 1e-5
    assert equal["processes"]["1"] == {"loss_difference": 0.0, "score_difference": 0.0}
    assert 0 < equal["processes"]["2"]["score_difference"] < 1e-3


def test_items_of_the_sharded_benchmark_are_all_drawn_from() -> None:
    data = importlib.import_module("sharded").clicks(7, 11)
    assert data.warm[1:].all() and not data.warm[0] and set(data.item.tolist()) == set(range(1, 8))
    assert set(torch.bincount(torch.from_numpy(data.user))[1:].tolist()) == {20} and len(data.user_codes) == 11
    assert not {"_code", "ids"} & {*vars(data.catalog.items)}


def test_peers_compute_the_same_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = importlib.import_module("peers")
    monkeypatch.setattr(peers, "SHAPE", {**peers.SHAPE, "clicks": 4, "dim": 8, "feedforward": 16, "items": 20})
    result = run("peers", tmp_path / "p.json", "--users 3 --loop-users 2 --repeats 1")
    ways = {"metarec", "torch.func", "learn2learn"}
    assert set(result["users_per_second"]) == set(result["gradient_error"]) == set(result["repeats"]) == ways
    assert all(0 < error < 1e-5 for error in result["gradient_error"].values())
    for name, speed in result["users_per_second"].items():
        assert speed == pytest.approx((2 if name == "learn2learn" else 3) / result["repeats"][name][0])
        ratio = result["users_per_second"]["metarec"] / speed
        assert result["times_slower_than_metarec"][name] == pytest.approx(ratio)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
