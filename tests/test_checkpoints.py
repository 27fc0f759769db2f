"""Checkpoints: whose they are, and every way in which one can be damaged."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarec.data import EpisodeSampler
from metarec.files import read_tensors, write_tensors
from metarec.io import save
from metarec.recipes import MML, mml
from metarec.recipes.training import TrainingRun
from tiny import TWO_LEARNERS as CONFIG
from tiny import UP, same_weights, trained


def train(model: MML, checkpoint: Path) -> Any:
    return mml.train(model, EpisodeSampler(UP), checkpoint=checkpoint)


def stop(model: MML, checkpoint: Path, after: int) -> int:
    training = train(model, checkpoint)
    steps = len(list(islice(training, after)))
    training.close()
    return steps


def weights(model: MML) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def whole() -> MML:
    return trained(CONFIG)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint holds that stands after one epoch of the second stage."""
    path = tmp_path_factory.mktemp("run") / "run"
    assert stop(MML.build(UP, CONFIG), path, 10) == 10
    tensors, header = read_tensors(path)
    assert (header["done"], header["stage"], header["epoch"]) == (["id warm-up"], "id", 1)
    return tensors, {name: value for name, value in header.items() if name != "format"}


def refused(path: Path, model: MML, message: str) -> None:
    content, before, state = path.read_bytes(), weights(model), torch.random.get_rng_state()
    with pytest.raises(ValueError, match=message) as caught:
        next(train(model, path))
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


OTHER = r"with other initial weights \(there \w{16}, here \w{16}\); .*built"


@pytest.mark.parametrize("after", [1, 10, 1000])
def test_another_initial_model_is_refused(tmp_path: Path, after: int) -> None:
    path = tmp_path / "run"
    stop(MML.build(UP, CONFIG), path, after)
    refused(path, MML.build(UP, CONFIG, seed=1), OTHER)
    one_weight = MML.build(UP, CONFIG)
    with torch.no_grad():
        one_weight.fusion.bias[1] += 1e-6
    refused(path, one_weight, OTHER)
    refused(path, MML.build(UP, CONFIG).double(), OTHER)
    model = MML.build(UP, CONFIG)
    stop(model, path, after)
    with torch.no_grad():
        model.fusion.bias += 1  # the model that the training has left, changed since
    refused(path, model, OTHER)


@pytest.mark.parametrize("after", [0, 1, 3, 13, 26, 37])
def test_the_same_model_goes_on_where_it_was_broken_off(tmp_path: Path, whole: MML, after: int) -> None:
    path, model = tmp_path / "run", MML.build(UP, CONFIG)
    assert stop(model, path, after) == after
    suspended = train(model, path)
    next(suspended)
    assert list(train(model, path))
    assert same_weights(model, whole) and all(p.requires_grad for p in model.parameters())
    assert list(train(model, path)) == [] and same_weights(model, whole)


def test_a_checkpoint_without_its_initial_model_is_refused(tmp_path: Path, parts: Any) -> None:
    tensors, header = parts
    settings = {name: value for name, value in header["settings"].items() if name != "initial weights"}
    write_tensors(tmp_path / "old", tensors, {**header, "settings": settings})
    refused(tmp_path / "old", MML.build(UP, CONFIG), r"with other initial weights \(there None, here")


def test_a_folder_that_cannot_be_written_to_stops_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = MML.build(UP, CONFIG)
    before = weights(model)
    with pytest.raises(OSError, match=r"file/run'"):
        next(train(model, tmp_path / "file" / "run"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


PROCESS = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from dataclasses import replace
from metarec.data import EpisodeSampler
from metarec.recipes import MML, mml
from tiny import TWO_LEARNERS, UP
model = MML.build(UP, replace(TWO_LEARNERS, inner_lr=0.2))
for step in mml.train(model, EpisodeSampler(UP), checkpoint=sys.argv[1]):
    print("step", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_with_other_settings_do_not_write_over_each_other(tmp_path: Path, whole: MML) -> None:
    path, here = tmp_path / "run", Path(__file__).parent
    command = [sys.executable, "-c", PROCESS, str(path), str(here)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=here.parent, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"step\n"
        refused(path, MML.build(UP, CONFIG), r"of .*training.*\.inner_lr \(there 0\.2")
        path.unlink()  # as if both had begun at once: this one writes last
        model = MML.build(UP, CONFIG)
        training = train(model, path)
        next(training)
        content = path.read_bytes()
        _, error = process.communicate(b"\n" * 100)
        assert process.returncode == 1
        assert b"run: " in error
        assert path.read_bytes() == content
    assert len(list(training)) > 30 and same_weights(model, whole)


@pytest.mark.parametrize("written", ["model", "text"])
def test_what_somebody_else_wrote_there_is_not_written_over(tmp_path: Path, written: str) -> None:
    path, model = tmp_path / "run", MML.build(UP, CONFIG)
    training = train(model, path)
    next(training)
    path.unlink()
    if written == "model":
        save(model, path)
    else:
        path.write_text("notes")
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"run: .*checkpoint .* or save\(\), has written"):
        list(training)
    assert path.read_bytes() == content


ADAM = "optimizer.learners.id.encoder.position."
Change = Callable[[dict[str, Tensor], dict[str, Any]], object]
DAMAGED: dict[str, tuple[Change, str]] = {
    "no settings": (lambda t, h: h.pop("settings"), "not .*checkpoint"),
    "no stages": (lambda t, h: h.pop("done"), "it stands at done=None"),
    "stages as text": (lambda t, h: h.update(done="id warm-up"), "it stands at done='id warm-up'"),
    "a stage as a number": (lambda t, h: h.update(done=[1]), "it stands at"),
    "a stage that there is not": (lambda t, h: h.update(stage="x"), "it stands at epoch 1 of stage 'x'"),
    "stages in another order": (lambda t, h: h.update(done=["id", "id warm-up"], stage="text"), "it stands at"),
    "a stage twice": (lambda t, h: h.update(done=["id warm-up"] * 2), "it stands at"),
    "a stage that is done": (lambda t, h: h.update(done=["id warm-up", "id"]), "it stands at"),
    "a later stage": (lambda t, h: h.update(stage="text"), "it stands at"),
    "an epoch as text": (lambda t, h: h.update(epoch="1"), "epoch='1'"),
    "an epoch that is true": (lambda t, h: h.update(epoch=True), "epoch=True"),
    "a fraction of an epoch": (lambda t, h: h.update(epoch=1.5), "epoch=1.5"),
    "an epoch too many": (lambda t, h: h.update(epoch=3), "it stands at epoch 3 of stage 'id'"),
    "an epoch before the first": (lambda t, h: h.update(epoch=-1), "it stands at epoch -1"),
    "an endless epoch": (lambda t, h: h.update(epoch=10**30), "it stands at epoch 1000"),
    "an epoch of no stage": (lambda t, h: h.update(stage=""), "it stands at"),
    "a weight is missing": (lambda t, h: t.pop("model.fusion.bias"), "tensor 'fusion.bias' is missing"),
    "a weight too many": (lambda t, h: t.update({"model.x": torch.ones(1)}), "tensor 'x' is not expected"),
    "another shape": (lambda t, h: t.update({"model.fusion.bias": torch.ones(3)}), r"has \(3,\) of torch.float32"),
    "another type": (lambda t, h: t.update({"model.fusion.bias": torch.ones(2).long()}), r"of torch.int64, expected"),
    "half a type": (lambda t, h: t.update({"model.fusion.bias": torch.ones(2).half()}), r"of torch.float16, expected"),
    "a strange tensor": (lambda t, h: t.update({"x": torch.ones(1)}), "'x' is neither the model's nor the opt"),
    "a moment is missing": (lambda t, h: t.pop(ADAM + "exp_avg"), r"has \['exp_avg_sq', 'step'\], expected"),
    "the step is missing": (lambda t, h: t.pop(ADAM + "step"), r"has \['exp_avg', 'exp_avg_sq'\], expected"),
    "of no parameter": (lambda t, h: t.update({"optimizer.0.step": torch.ones(())}), "state of '0'"),
    "of another shape": (lambda t, h: t.update({ADAM + "exp_avg": torch.ones(1)}), "exp_avg' has"),
    "of another type": (lambda t, h: t.update({ADAM + "step": torch.tensor(3)}), "of torch.int64, expected"),
    "no step yet": (lambda t, h: t.update({ADAM + "step": torch.tensor(0.0)}), "step 0.0"),
    "half a step": (lambda t, h: t.update({ADAM + "step": torch.tensor(1.5)}), "step 1.5"),
    "a negative square": (lambda t, h: t[ADAM + "exp_avg_sq"].neg_().sub_(1), "negative square"),
    "a mean too large": (lambda t, h: t[ADAM + "exp_avg"].fill_(1e30), "a .*gradients"),
    "a state between stages": (lambda t, h: h.update(stage="", epoch=0), "an optimizer's .*between"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_checkpoint_is_refused_and_the_model_is_as_it_was(tmp_path: Path, parts: Any, case: str) -> None:
    change, message = DAMAGED[case]
    tensors, header = {name: t.clone() for name, t in parts[0].items()}, json.loads(json.dumps(parts[1]))
    change(tensors, header)
    write_tensors(tmp_path / "run", tensors, header)
    refused(tmp_path / "run", MML.build(UP, CONFIG), message)


def test_the_state_of_a_parameter_of_another_stage_is_refused(tmp_path: Path, parts: Any) -> None:
    tensors, header = parts
    other = {f"optimizer.fusion.bias.{key}": torch.ones(() if key == "step" else 2) for key in ("step", "exp_avg")}
    write_tensors(tmp_path / "run", {**tensors, **other, "optimizer.fusion.bias.exp_avg_sq": torch.ones(2)}, header)
    with pytest.raises(ValueError, match=r"run: .*state 'fusion\.bias\.\w+' of no parameter"):
        next(train(MML.build(UP, CONFIG), tmp_path / "run"))


def test_a_training_of_ones_own_need_not_say_its_stages(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 1)
    for run in (TrainingRun(module, seed=0, settings={}, checkpoint=tmp_path / "x") for _ in range(2)):
        found = run.is_done("one")
        run.finish("two" if found else "one")
    assert read_tensors(tmp_path / "x")[1]["done"] == ["one", "two"]


STRANGE = (None, True, -1, 0, 1 << 62, 1.5, "", "x", "fusion", [], [0], ["fusion"], {}, {"x": 0})


def mutated(parts: Any, draw: random.Random) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint with one to three changes, of its header or its tensors."""
    tensors, header = dict(parts[0]), json.loads(json.dumps(parts[1]))
    for _ in range(draw.choice([1, 1, 2, 3])):
        name, other = draw.sample(sorted(tensors), 2)
        tensor = tensors[name].clone()
        kind = draw.randrange(7)
        if kind == 0:
            target = draw.choice([header, header["settings"]]) if isinstance(header.get("settings"), dict) else header
            target[draw.choice(sorted(target))] = draw.choice(STRANGE)
        elif kind == 1 and len(header) > 1:
            del header[draw.choice(sorted(header))]
        elif kind == 2:
            del tensors[name]
        elif kind == 3:
            tensors[name] = tensor.to(draw.choice([torch.float64, torch.int64, torch.float16, torch.bool]))
        elif kind == 4:
            tensors[name] = draw.choice([tensor.flatten()[:1], tensor.unsqueeze(0), tensor.sum(), tensor.repeat(2, 1)])
        elif kind == 5:
            tensors[name], tensors[other] = tensors[other], tensors[name]
        else:
            value = draw.choice([float("nan"), float("inf"), -1.0, 1e38, 0.0])
            tensors[name] = torch.full_like(tensor, value) if tensor.is_floating_point() else tensor
    return tensors, header


def test_mutated_checkpoints_are_refused_or_train_to_finite_weights(
    tmp_path: Path, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, path, ends = random.Random(0), tmp_path / "run", {"refused": 0, "stopped": 0, "resumed": 0}
    model = MML.build(UP, CONFIG)
    before = weights(model)
    for _ in range(120):
        with monkeypatch.context() as patch:
            patch.setattr("metarec.files._not_finite", lambda tensor: "")
            write_tensors(path, *mutated(parts, draw))
        training = train(model, path)
        try:
            steps = len(list(islice(training, 4)))  # the first of another epoch
        except ValueError as error:
            ends["refused"] += str(path) in str(error)
        except FloatingPointError:
            ends["stopped"] += 1
        else:
            training.close()
            ends["resumed"] += steps == 4 and all(bool(tensor.isfinite().all()) for tensor in weights(model).values())
        model.load_state_dict(before)
    assert sum(ends.values()) == 120 and ends["refused"] > 80 and ends["resumed"] > 3, ends
