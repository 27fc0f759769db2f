"""Training that was stopped and continued against training that was not."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from metarec.data import Dataset, EpisodeSampler, Modality
from metarec.datasets import planted
from metarec.io import load, save
from metarec.recipes import MML, mml
from metarec.types import Progress
from tiny import TWO_LEARNERS as CONFIG
from tiny import UP, same_weights, trained

STAGES = ["id warm-up", "id", "text warm-up", "text", "id generator", "text generator", "fusion"]
FUSION = 36  # steps before it: six stages of two epochs of three batches
STEPS = FUSION + 3

Step = tuple[str, int, int, float]


def train(model: MML, checkpoint: Path | None, data: Dataset = UP, **settings: Any) -> Iterator[Progress]:
    epochs = settings.pop("epochs", None)
    return mml.train(model, EpisodeSampler(data, **settings), checkpoint=checkpoint, epochs=epochs)


def step(progress: Progress) -> Step:
    """Everything but the speed."""
    return progress.stage, progress.epoch, progress.users, progress.loss


def stop(model: MML, checkpoint: Path, after: int) -> list[Step]:
    """Train for some steps, then close the generator."""
    training = train(model, checkpoint)
    done = [step(progress) for progress in islice(training, after)]
    training.close()  # type: ignore[attr-defined]
    return done


@pytest.fixture(scope="module")
def whole() -> MML:
    return trained(CONFIG)


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    return [step(progress) for progress in train(MML.build(UP, CONFIG), None)]


@pytest.fixture(scope="module")
def checkpoint_of_ten_steps(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("run") / "run.safetensors"
    stop(MML.build(UP, CONFIG), path, 10)
    return path.read_bytes()


@pytest.fixture
def started(tmp_path: Path, checkpoint_of_ten_steps: bytes) -> Path:
    """A checkpoint of a training that was stopped in its second stage."""
    (tmp_path / "run.safetensors").write_bytes(checkpoint_of_ten_steps)
    return tmp_path / "run.safetensors"


def test_the_stages_and_their_epochs(steps: list[Step]) -> None:
    assert [name for name, _ in groupby(name for name, *_ in steps)] == STAGES
    users = len(UP.user_codes) - 10  # at least ten are kept for the fusion
    for start in range(0, FUSION, 6):
        stage = [(epoch, seen) for _, epoch, seen, _ in steps[start : start + 6]]
        assert stage == [(1, 16), (1, 32), (1, users), (2, 16), (2, 32), (2, users)]
    assert len(steps) == STEPS


@pytest.mark.parametrize("after", [0, 3, 4, 8, 13, 26, 36, 37, STEPS])
def test_stopped_and_continued_in_a_fresh_model(tmp_path: Path, whole: MML, steps: list[Step], after: int) -> None:
    path = tmp_path / "run.safetensors"
    assert stop(MML.build(UP, CONFIG), path, after) == steps[:after]
    model = MML.build(UP, CONFIG)
    again = [step(progress) for progress in train(model, path)]
    assert again == steps[min(FUSION, 3 * max(0, (after - 1) // 3)) :], "the epoch that was cut short comes again"
    assert same_weights(model, whole)
    assert not any(part.training for part in model.modules())


def test_stopped_again_and_again(tmp_path: Path, whole: MML) -> None:
    path = tmp_path / "run.safetensors"
    model = MML.build(UP, CONFIG)
    while len(stop(model, path, 10)) == 10:
        torch.rand(3)  # other random numbers in between
        model = MML.build(UP, CONFIG)
    assert same_weights(model, whole)


def test_a_finished_training_has_nothing_left_to_do(tmp_path: Path, whole: MML) -> None:
    path = tmp_path / "run.safetensors"
    assert len(list(train(MML.build(UP, CONFIG), path))) == STEPS
    before, model = path.read_bytes(), MML.build(UP, CONFIG)
    assert list(train(model, path)) == []
    assert same_weights(model, whole) and path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from metarec.data import EpisodeSampler
from metarec.recipes import MML, mml
from tiny import TWO_LEARNERS as CONFIG
from tiny import UP
for step in mml.train(MML.build(UP, CONFIG), EpisodeSampler(UP), checkpoint=sys.argv[1]):
    sys.stdout.write("step\\n")
    sys.stdout.flush()
"""


def test_a_killed_process_is_continued(tmp_path: Path, whole: MML) -> None:
    path, here = tmp_path / "run.safetensors", Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(path), str(here)]
    with subprocess.Popen(command, cwd=here.parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(17)] == [b"step\n"] * 17
        process.kill()
    model = MML.build(UP, CONFIG)
    assert 0 < len(list(train(model, path))) <= STEPS - 15
    assert same_weights(model, whole)


def test_without_a_checkpoint_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(list(train(MML.build(UP, CONFIG), None))) == STEPS
    assert list(tmp_path.iterdir()) == []


def refused(path: Path, message: str, model: MML | None = None, data: Dataset = UP, **settings: Any) -> None:
    before, model = path.read_bytes(), model or MML.build(data, CONFIG)
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        next(train(model, path, data, **settings))
    assert path.read_bytes() == before
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())


def test_other_settings_are_refused(started: Path) -> None:
    other = MML.build(UP, replace(CONFIG, inner_lr=0.2))
    refused(started, r"run\.safetensors: .* other config\.inner_lr \(there 0\.1, here 0\.2\); choose another", other)
    refused(started, r"with other config\.dim \(there 8, here 4\);", MML.build(UP, replace(CONFIG, dim=4)))
    refused(started, r"with other epochs \(there None, here 5\);", epochs=5)
    refused(started, r"with other seed \(there 0, here 1\);", seed=1)
    refused(
        started, r"with other negative_sampling \(there 'uniform', here 'popularity'\);", negative_sampling="popularity"
    )


def other_data() -> dict[str, Dataset]:
    """Data of the same name and size."""
    item, warm, catalog = UP.item.copy(), UP.warm.copy(), UP.catalog
    item[:2] = item[1::-1]
    warm[1] = False
    text = Modality("text", catalog["text"].features.flip(1), catalog["text"].present)
    return {
        "two clicks in another order": replace(UP, item=item),
        "another item cold": replace(UP, warm=warm),
        "other features": replace(UP, catalog=replace(catalog, modalities={**catalog.modalities, "text": text})),
    }


@pytest.mark.parametrize("data", other_data().values(), ids=other_data())
def test_other_data_of_the_same_size_are_refused(started: Path, data: Dataset) -> None:
    assert repr(data) == repr(UP)
    refused(started, "with other data", data=data)


def test_other_users_of_the_same_data_are_refused(started: Path, tmp_path: Path) -> None:
    refused(started, "with other data", only=UP.user_codes[:30])
    path = tmp_path / "half"
    next(training := train(MML.build(UP, CONFIG), path, only=UP.user_codes[:16]))
    next(training)
    refused(path, "with other data", only=UP.user_codes[1:17])


def test_a_damaged_checkpoint_is_refused(started: Path) -> None:
    content, draw = started.read_bytes(), random.Random(0)
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        started.write_bytes(content[:length])
        refused(started, r"run\.safetensors: .*whole")
    for _ in range(20):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content) // 2, len(content))] ^= 1 << draw.randrange(8)
        started.write_bytes(damaged)
        refused(started, r"run\.safetensors: .*checksum")


def test_models_and_checkpoints_are_not_taken_for_each_other(started: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got None; .*checkpoint"):
        load(started)
    save(MML.build(UP, CONFIG), tmp_path / "model")
    refused(tmp_path / "model", "model: .*checkpoint")


def test_a_sampler_of_other_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"built for Vocabulary\(50 item ids\), and the sampler's data 'planted upstream' have other items",
    ):
        next(train(MML.build(planted(users=60, items=50), CONFIG), tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_weights_that_changed_have_another_version() -> None:
    """In every stage: by their versions it is told what was trained, and that tables which are kept are stale."""
    model = MML.build(UP, CONFIG)
    own = dict(model.named_parameters())
    seen, stages = {name: (p.detach().clone(), p._version) for name, p in own.items()}, set()
    for step in mml.train(model, EpisodeSampler(UP)):
        moved = {name for name, p in own.items() if not torch.equal(p, seen[name][0])}
        assert all(own[name]._version > seen[name][1] for name in moved), step
        stages |= {step.stage} if moved else set()
        seen |= {name: (own[name].detach().clone(), own[name]._version) for name in moved}
    assert stages == {*(f"{n}{how}" for n in model.learners for how in (" warm-up", "", " generator")), "fusion"}
