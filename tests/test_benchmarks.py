"""The benchmarks run and say what they claim: keys, commit, machine, and the work of a user against a count by hand."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "inner_loop.py"
TINY = "--clicks 4 --dim 8 --layers 1 --feedforward 16 --items 20 --steps 2 --loop-users 2 --repeats 2 --device cpu"
SPEEDS = {"users_per_second", "learn2learn_users_per_second", "ratio_to_learn2learn"}
FLOORS = {"floor_users_per_second", "share_of_floor", "floors", "work_per_user"}
ERRORS = {"gradient_error", "learn2learn_gradient_error", "gradient_reference"}
BLOCK = SPEEDS | FLOORS | ERRORS | {"repeats", "memory"}
RUN = {"second_order", "stages", "ceilings", "settings", "threads", "commit", "machine", "date"}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """One tiny run from the command line."""
    out = tmp_path_factory.mktemp("benchmark") / "new" / "tiny.json"
    command = [sys.executable, str(SCRIPT), "--users", "4", "--out", str(out), *TINY.split()]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "learn2learn" in done.stdout and "second order" in done.stdout
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture
def speed_modules(monkeypatch):
    """The benchmark's modules."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import floor
    import inner_loop

    return inner_loop, floor


def test_keys(result):
    assert set(result) == BLOCK | RUN
    assert set(result["second_order"]) == BLOCK
    assert set(result["floors"]) == {"flops", "traffic", "memory"}
    assert result["settings"]["users"] == 4 and result["settings"]["clicks"] == 4
    assert {"cpu", "cores", "device", "torch"} <= set(result["machine"])


@pytest.mark.parametrize("order", ["first", "second"])
def test_numbers_belong_together(result, order):
    block = result if order == "first" else result["second_order"]
    native, loop = block["repeats"]["native"], block["repeats"]["learn2learn"]
    assert len(native) == len(loop) == 2 and min(native + loop) > 0
    assert block["users_per_second"] == pytest.approx(4 / (sum(native) / 2))
    assert block["learn2learn_users_per_second"] == pytest.approx(2 / (sum(loop) / 2))
    ratio = block["users_per_second"] / block["learn2learn_users_per_second"]
    assert block["ratio_to_learn2learn"] == pytest.approx(ratio)
    assert all(math.isfinite(value) and value > 0 for value in block["floors"].values())
    assert block["floor_users_per_second"] == min(block["floors"]["flops"], block["floors"]["traffic"])
    assert block["share_of_floor"] == pytest.approx(block["users_per_second"] / block["floor_users_per_second"])
    ceilings = result["ceilings"]
    assert block["floors"]["flops"] * block["work_per_user"]["flops"] == pytest.approx(
        ceilings["matmul_flops_per_second"]
    )


@pytest.mark.parametrize("order", ["first", "second"])
def test_both_ways_compute_the_same_meta_gradient(result, order):
    block = result if order == "first" else result["second_order"]
    assert block["gradient_reference"] == "learn2learn loop in float64"
    assert 0 < block["gradient_error"] < 1e-5
    assert 0 < block["learn2learn_gradient_error"] < 1e-5


def test_users_are_cut_into_support_and_query(speed_modules):
    inner_loop, _ = speed_modules
    users = inner_loop.make_users(50, 4, 3)
    support, query = users.support, users.query
    assert support.history.shape == support.target.shape == (50, 3) and query.history.shape == (50, 4)
    assert support.history.equal(query.history[:, :3]) and support.target.equal(query.history[:, 1:])
    for examples in (support, query):
        assert not (examples.negatives == examples.target.unsqueeze(-1)).any()
        assert set(examples.negatives.unique().tolist()) == {1, 2, 3}
    assert (query.position == 3).all() and support.position[0].tolist() == [0, 1, 2]


def test_commit_is_the_one_checked_out(result):
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    expected = asked.stdout.strip() if asked.returncode == 0 else "unknown"
    assert result["commit"].removesuffix("-dirty") == expected


# Counted by hand: D = 8, F = 16, one block, T = 3 support and U = 4 query tokens, n = 2 steps.
# Linear layers 8x24, 8x8, 8x16, 16x8 (full 192, 64, 128, 128; in + out 32, 16, 24, 24); the query reads 4 tokens in the
# first and 1 in the others.
# FLOPs: steps 2 * 6 * 3 * 512, query 6 * (4 * 192 + 320), attention 6 * 8 * (2 * 3 * 4 + 2 * 4). Factors save 12 * full
#   and cost (36 + 24 * tokens of the query) * (in + out) more: 96 are saved in each of the last two layers.
# Floats: factors 6 * out + 18 * (in + out) = 720 + 336 + 528 + 480, against 6 * full as matrices (1152, 384, 768, 768)
#   and 6 * out + 12 * (in + out) + 3 * full with a switch after two steps (1104, 432, 768, 720);
#   norms and positions 6 * 8 * (4 + 2 + 3); activations 2 * ((6 * 8 + 16 + 8) * 2 * 3 + (3 * 8 + 8) * 4 + 3 * 8 + 16).
FIRST = {
    "flops": 18_432 + 6_528 + 1_536 - 192,
    "weight_bytes": 4 * (2_064 + 432),
    "activation_bytes": 4 * 1_200,
}
# Second order: two inner steps twice more, the weights 8 times more, activations 3 times more in the inner steps.
SECOND = {
    "flops": 18_432 + 6_528 + 1_536 + 2 * (18_432 + 6 * 8 * 24),
    "weight_bytes": 4 * (6 * 512 + 6 * 72 + 8 * (512 + 72)),
    "activation_bytes": 4 * (1_200 + 3 * 72 * 6),
}


def test_work_of_a_tiny_user_equals_the_count_by_hand(result):
    assert result["work_per_user"] == FIRST
    assert result["second_order"]["work_per_user"] == SECOND


def test_factors_are_taken_where_they_are_cheaper(speed_modules):
    _, floor = speed_modules
    short = floor.Shape(dim=64, layers=1, feedforward=256, clicks=2, steps=1)
    matrix, factors = (floor.matrix_flops(short, 64, 64, 2, switch) for switch in (0, 2))
    assert matrix == (12 + 6) * 64 * 64
    assert factors == (12 + 4) * 64 * 64 + 4 * 2 * 128


@pytest.mark.parametrize("second_order", [False, True])
def test_dense_flops_equal_those_that_torch_counts_in_the_loop(speed_modules, second_order, tmp_path):
    inner_loop, floor = speed_modules
    options = inner_loop._parse(["--users", "1", "--out", str(tmp_path / "x.json"), "--device", "cpu"])
    learner, users = inner_loop.make_learner(options), inner_loop.make_users(1, 12, 4000)
    with FlopCounterMode(display=False) as counter:
        inner_loop.loop(learner, users, 5, second_order)
    shape = floor.Shape(dim=64, layers=2, feedforward=256, clicks=12, steps=5)
    factor = 3 if second_order else 1
    first, rest = 3 * 64 * 64, 64 * 64 + 2 * 64 * 256  # weights of query, key and value; of what comes after
    query = 12 * (2 * first + rest) + rest  # the last block goes on with the last position alone
    padded = 12  # tokens of the 11 clicks of support
    linear = 6 * (factor * 5 * padded * 2 * (first + rest) + query)
    attention = 12 * 64 * (factor * 5 * 2 * padded**2 + 12**2 + 12)  # all pairs; the floor counts the causal ones
    assert counter.get_total_flops() == linear + attention
    least = 6 * (factor * 5 * 11 * 2 * (first + rest) + query)
    causal = 6 * 64 * (factor * 5 * 2 * 11 * 12 + 12 * 13 + 2 * 12)
    found = floor.work(shape, second_order=second_order)["flops"]
    if second_order:
        assert found == least + causal
    else:
        assert sum(floor.matrix_flops(shape, *matrix, 0) for matrix in shape.matrices()) == least
        assert 0.98 * (least + causal) < found < least + causal  # where factors need less


def test_the_page_names_the_work_of_the_default_shape(speed_modules):
    _, floor = speed_modules
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    shape = floor.Shape(dim=64, layers=2, feedforward=256, clicks=12, steps=5)
    for title, second_order in (("first order", False), ("second order", True)):
        row = " | ".join(f"{value:,}" for value in floor.work(shape, second_order=second_order).values())
        assert f"| {title} | {row} |" in page


def test_without_learn2learn(speed_modules, tmp_path, monkeypatch, capsys):
    inner_loop, _ = speed_modules
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "learn2learn" else find(name))
    arguments = ["--users", "2", "--out", str(tmp_path / "alone.json"), "--commit", "abc", *TINY.split()]
    with pytest.raises(SystemExit):
        inner_loop.main(arguments)
    assert "`make extras` installs it, --skip-learn2learn does without" in capsys.readouterr().err
    assert not (tmp_path / "alone.json").exists()
    inner_loop.main([*arguments, "--skip-learn2learn"])
    result = json.loads((tmp_path / "alone.json").read_text(encoding="utf-8"))
    assert result["commit"] == "abc"
    assert set(result["repeats"]) == {"native"}
    for block in (result, result["second_order"]):
        assert block["ratio_to_learn2learn"] is block["learn2learn_users_per_second"] is None
        assert block["gradient_reference"] == "native loop in float64" and block["gradient_error"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--users 0", "--users must be at least 1, got 0"),
        ("--clicks 1", "--clicks must be at least 2, got 1"),
        ("--loop-users 0", "--loop-users must be at least 1, got 0"),
        ("--heads 3", "--heads must divide --dim, got 3 and 64"),
        ("--device tpu", "--device 'tpu': expected one of"),
        ("--tf32 --device cpu", "--tf32 needs a GPU"),
    ],
)
def test_bad_arguments_are_refused(speed_modules, tmp_path, capsys, arguments, message):
    inner_loop, _ = speed_modules
    with pytest.raises(SystemExit):
        inner_loop.main(["--out", str(tmp_path / "x.json"), *arguments.split()])
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
