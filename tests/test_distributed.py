"""Two processes over gloo against one: the same losses, the same weights, one checkpoint; float64, without dropout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from example_files import AT, QUICK, SCRIPT, write_world
from helpers import ragged_episodes
from metarec import distributed
from metarec.data import EpisodeSampler
from metarec.files import read_tensors
from metarec.recipes import MML
from tiny import UP
from two_processes import EXACT, exact_training, parts

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]


def together(processes: int, script: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A script in several processes; the tests' folder is on its path."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [*TORCHRUN, "--nproc-per-node", str(processes), script, *arguments]
    return subprocess.run(command, env=here, cwd=cwd, capture_output=True, text=True, check=False)


TRAINED = """
import sys
from pathlib import Path
import torch
from metarec import distributed
from metarec.files import write_tensors
from two_processes import EXACT, exact_training, gloo_threads, parts

torch.set_num_threads(1)
distributed.start("cpu")
first, folder = distributed.is_first(), Path(sys.argv[1])
model, steps = exact_training(EXACT, folder / f"checkpoint of {first}")
write_tensors(folder / f"parts {first}", parts(), {})
losses = torch.tensor([step.loss for step in steps], dtype=torch.float64)
users = torch.tensor([step.users for step in steps])
write_tensors(folder / f"first {first}", {"losses": losses, "users": users, **model.state_dict()}, {})
assert distributed.leave() == first
assert not gloo_threads()  # one that holds a tensor when Python ends aborts the process
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left."""
    place = tmp_path_factory.mktemp("two")
    (place / "train.py").write_text(TRAINED)
    done = together(2, str(place / "train.py"), str(place))
    assert done.returncode == 0, done.stderr
    return place


def test_two_processes_do_what_one_does(folder: Path) -> None:
    model, steps = exact_training(EXACT)
    found, _ = read_tensors(folder / "first True")
    assert found.pop("users").tolist() == [step.users for step in steps]
    expected = torch.tensor([step.loss for step in steps], dtype=torch.float64)
    torch.testing.assert_close(found.pop("losses"), expected, rtol=1e-9, atol=0)
    start, end = MML.build(UP, EXACT).double().state_dict(), model.state_dict()
    assert set(found) == set(end)
    for name, weights in end.items():
        assert not torch.equal(weights, start[name]) or not weights.is_floating_point(), f"{name} was trained"
        torch.testing.assert_close(found[name] - start[name], weights - start[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("first", [True, False])
def test_gradients_and_values_are_those_of_the_whole_batch(folder: Path, first: bool) -> None:
    found, _ = read_tensors(folder / f"parts {first}")
    expected = parts()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-13)


def test_shares_are_every_user_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, users = ragged_episodes([8, 6, 5, 5, 4]), []
    monkeypatch.setattr(distributed, "processes", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own = distributed.share(batch)
        assert own.support.history.equal(batch.support.history[own.user])
        assert own.query.target.equal(batch.query.target[own.user])
        assert distributed.share(batch.user).equal(own.user)
        users.append(own.user.tolist())
    assert users == [[0, 3], [1, 4], [2]]


def test_a_sampler_cuts_the_same_users_for_one_process_as_for_all() -> None:
    sampler = EpisodeSampler(UP, users_per_batch=23, negatives=3, seed=2)  # 48 users: two are left for the last batch
    assert [len(batch) for batch in sampler.epoch(1)] == [23, 23, 2]
    for rank in range(3):
        parts = sampler.epoch(1, slice(rank, None, 3))
        for whole, part in zip(sampler.epoch(1), parts, strict=True):
            assert part.user.equal(whole.user[rank::3])
            for mine, theirs in ((part.support, whole.support), (part.query, whole.query)):
                assert all(a.equal(b[rank::3]) for a, b in zip(mine.tensors(), theirs.tensors(), strict=True))
                assert mine.time is not None and theirs.time is not None and mine.time.equal(theirs.time[rank::3])


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"process 1 .*machine.* GPU, there are 1: --nproc-per-node 1"):
        distributed.start("cuda")


def test_both_processes_end_with_the_same_weights(folder: Path) -> None:
    first, second = (read_tensors(folder / f"first {which}")[0] for which in (True, False))
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_first_process_alone_writes_checkpoints(folder: Path) -> None:
    assert sorted(path.name for path in folder.glob("checkpoint*")) == ["checkpoint of True"]


def test_the_main_job_under_torchrun(tmp_path: Path) -> None:
    data, out = write_world(tmp_path / "toy"), tmp_path / "out"
    options = [*AT, *QUICK, "--modalities", "none", "--device", "cpu", "--out", str(out)]
    done = together(2, str(SCRIPT), "--data", str(data), *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cold users, mean ± standard error") == done.stdout.count("recommended:") == 1
    assert sorted(path.name for path in out.iterdir()) == ["figure.png", "model.safetensors", "results.json"]
    refused = together(2, str(SCRIPT), "--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "no"))
    assert refused.returncode != 0
    assert "mml_hangzhou: " in refused.stderr
    assert not (tmp_path / "no").exists()
