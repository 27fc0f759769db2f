"""An item table sharded by rows over two and three processes trains as the whole one does in one; gloo."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import metarec as mr
from helpers import ragged_episodes
from metarec import distributed
from metarec.files import read_tensors
from metarec.functional.kinds import coded
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from metarec.nn.sharded import gather_items, shard_items
from metarec.recipes import sasrec
from metarec.recipes.sharded import filled
from metarec.types import EpisodeBatch
from sharded_worlds import DATA, OBJECTIVES, trained

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
ROWS = {2: [21, 20], 3: [14, 14, 13]}
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
import metarec as mr
from metarec import distributed
from metarec.files import write_tensors
from metarec.nn.sharded import gather_items, shard_items
from metarec.recipes import sasrec
from metarec.recipes.next_item import GraphedLoss
from sharded_worlds import DATA, OBJECTIVES, trained
from two_processes import gloo_threads

torch.set_num_threads(1)
distributed.PIECE = 200  # of which a shard has several
device, folder, told = distributed.start("cpu"), Path(sys.argv[1]), {}

def sizes(optimizer, *_):
    for parameter, state in optimizer.state.items():
        if distributed.is_sharded(parameter):
            held = [parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]]
            told["rows"] = [len(distributed.own_rows(tensor)) for tensor in held]

register_optimizer_step_post_hook(sizes)
for dtype in (torch.float32, torch.float64):
    for objective in OBJECTIVES:
        learner, steps = trained(objective, dtype, lambda one: shard_items(one, device), gather_items)
        told[f"{objective} {dtype}"] = steps
        whole = gather_items(learner)
        assert (whole is learner) != distributed.is_first()
        if distributed.is_first():
            write_tensors(folder / f"{objective} {dtype}", whole.state_dict(), {})

def refused(what):
    try:
        what()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

told["graphs"] = GraphedLoss(learner, lambda batch: batch).graphs is not None
told["softmax"] = refused(lambda: next(sasrec.train(learner, DATA)))
told["serve"] = refused(lambda: mr.Recommender(learner).adapt(DATA.catalog.items.ids[:2]))
told["save"] = refused(lambda: mr.save(learner, folder / "no"))
told["score"] = refused(lambda: learner.items.scores(torch.zeros(1, 8)))
(folder / f"told {distributed.rank()}").write_text(json.dumps(told))
whole = gather_items(learner)
if distributed.leave():
    mr.save(whole, folder / "model")
assert not gloo_threads()
"""


@pytest.fixture(scope="module", params=[2, 3])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What so many processes have left, and what each of them tells."""
    place = tmp_path_factory.mktemp("sharded")
    (place / "train.py").write_text(SCRIPT, encoding="utf-8")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [*TORCHRUN, "--nproc-per-node", str(request.param), str(place / "train.py"), str(place)]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=here, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place, [json.loads((place / f"told {rank}").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_losses_and_weights_are_those_of_one_process(
    run: tuple[Path, list[dict[str, Any]]], objective: str, dtype: torch.dtype, within: float
) -> None:
    folder, told = run
    learner, steps = trained(objective, dtype)
    for one in told:
        found = one[f"{objective} {dtype}"]
        assert [users for users, _ in found] == [users for users, _ in steps]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in steps], abs=within)
    weights, _ = read_tensors(folder / f"{objective} {dtype}")
    assert set(weights) == set(learner.state_dict())
    for name, expected in learner.state_dict().items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=10 * within, msg=name)
    assert not weights["items.weight"][0].any()


def test_rows_gradients_and_moments_lie_in_shares(run: tuple[Path, list[dict[str, Any]]]) -> None:
    _, told = run
    assert [one["rows"] for one in told] == [[rows] * 4 for rows in ROWS[len(told)]]


def test_a_gathered_learner_is_loaded_by_one_process(run: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = run
    expected, _ = trained(OBJECTIVES[-1], torch.float64)
    loaded, asked = mr.load(folder / "model"), next(mr.EpisodeSampler(DATA).epoch(0)).query
    torch.testing.assert_close(loaded(asked).scores, expected(asked).scores, rtol=0, atol=1e-10)
    assert mr.nn.record.record_of(loaded) == mr.nn.record.record_of(expected)


def test_what_wants_the_whole_table_says_what_to_do(run: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, told = run
    for one in told:
        assert not one["graphs"]
        assert one["softmax"].startswith("ValueError") and "'sampled_softmax'" in one["softmax"]
        for name in ("serve", "save", "score"):
            assert one[name].startswith("RuntimeError") and "gather_items(learner)" in one[name]
    assert not (folder / "no").exists()


def test_other_items_and_too_many_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"IdItems\), got SummedItems"):
        shard_items(sasrec.build(DATA, ("id", "text"), dim=8), "cpu")
    monkeypatch.setattr(distributed, "processes", lambda: 4)
    few = ModalityLearner(IdItems(5, 4), SequenceEncoder(dim=4))
    with pytest.raises(ValueError, match="5 rows do not fill 4 shards"):
        shard_items(few, "cpu")


def test_one_process_has_the_whole_table() -> None:
    learner = sasrec.build(DATA, dim=8)
    assert gather_items(shard_items(learner, "cpu")) is learner and type(learner.items) is IdItems


@pytest.mark.parametrize("users", [3, 5])
def test_users_that_fill_a_batch_add_nothing(users: int) -> None:
    """Nor does a whole batch of them, to a loss or a gradient."""
    batch = ragged_episodes([9, 3, 5])
    query = batch.query
    events = query.history + torch.where(query.history % 2 > 0, coded(0, 1), 0)
    query = mr.types.Examples(*query.tensors(), events=events, read=query.position)
    batch = EpisodeBatch(batch.user, batch.support, query)
    learner = ModalityLearner(IdItems(40, 8), SequenceEncoder(dim=8, dropout=0.0)).double()
    more = filled(batch, users)
    assert len(more) == users and (more.query.history[3:, 0] == 1).all() and (more.query.events[3:, 0] == 1).all()
    plain, other = copy.deepcopy(learner), copy.deepcopy(learner)
    plain.loss(batch.query).sum().backward()
    other.loss(more.query).sum().backward()
    for own, expected in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)
    nobody = filled(EpisodeBatch(batch.user[:0], batch.support[:0], batch.query[:0]), 2)
    assert learner.loss(nobody.query).tolist() == [0.0, 0.0]
