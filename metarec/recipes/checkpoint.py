"""Training checkpoints, and the check that one fits the training that resumes from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor, nn

from metarec.files import checksum, read_header, write_tensors

INITIAL = "initial weights"  # the setting that holds their checksum
_ADAM = {"step", "exp_avg", "exp_avg_sq"}
_MOST = 8.0  # |mean| is at most 7.3 root mean squares with Adam's usual betas, by Cauchy and Schwarz
_TINY = 1e-18  # squares of smaller numbers may be lost


@dataclass(frozen=True)
class Checkpoint:
    """A training checkpoint: weights, optimiser state and progress.

    Attributes:
        settings: what must be the same for the training to go on, by name.
        done: the stages that are finished, in order.
        stage: the one in which the training is; "" between two.
        epoch: epochs done of it.
        model: its state.
        optimizer: Adam's state, as ``"<parameter's name>.<key>"``.
    """

    settings: Mapping[str, str]
    done: tuple[str, ...]
    stage: str
    epoch: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]

    @classmethod
    def of(cls, path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Checkpoint:
        """What a file holds.

        Raises:
            ValueError: if the file is no checkpoint.
        """
        settings, done, stage, epoch = (header.get(name) for name in ("settings", "done", "stage", "epoch"))
        if not isinstance(settings, dict):
            raise ValueError(f"{path}: not a checkpoint of a training; choose another file")
        listed = done if isinstance(done, list) else [done]
        if listed is not done or type(epoch) is not int or not all(isinstance(name, str) for name in [*done, stage]):
            raise _damaged(path, f"it stands at done={short(done)}, stage={short(stage)}, epoch={short(epoch)}")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise _damaged(path, f"tensor {name!r} is neither the model's nor the optimizer's")
            parts[part][rest] = tensor
        return cls(settings, tuple(listed), str(stage), epoch, **parts)

    def write(self, path: str | Path) -> None:
        """Write it, unless something else than this training has written there.

        Raises:
            ValueError: if the file is not this training's, or a weight is not finite.
            OSError: if it cannot be written.
        """
        if Path(path).exists() and read_header(path).get("settings") != self.settings:
            raise ValueError(
                f"{path}: this file is no longer the checkpoint of this training; another process, or save(), has "
                "written there: give each training a checkpoint file of its own"
            )
        parts = {"model": self.model, "optimizer": self.optimizer}
        tensors = {f"{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
        where = {"done": list(self.done), "stage": self.stage, "epoch": self.epoch}
        write_tensors(path, tensors, {"settings": dict(self.settings), **where})

    def check(self, path: Path, settings: Mapping[str, str], model: nn.Module, stages: Mapping[str, int]) -> None:
        """Refuse what does not fit a training; nothing is changed.

        Args:
            path: for messages.
            settings: of the training.
            model: that is trained.
            stages: epochs of all stages, in order; none where they are not known.

        Raises:
            ValueError: if it is of another training, or damaged.
        """
        if self.settings != settings:
            names = sorted(n for n in {*self.settings, *settings} if self.settings.get(n) != settings.get(n))
            names = [name for name in names if name != INITIAL] or names
            what = ", ".join(f"{n} (there {_plain(self.settings.get(n))}, here {settings.get(n)})" for n in names)
            again = "build the model as it was built then, with the same seed, or " if names == [INITIAL] else ""
            raise ValueError(
                f"{path}: this checkpoint is of another training, with other {what}; "
                f"{again}choose another checkpoint file, or delete it to start again"
            )
        problem = self._misplaced(stages) or _misfit(self.model, model.state_dict()) or self._misfit_adam(model)
        if problem:
            raise _damaged(path, problem)

    def _misplaced(self, stages: Mapping[str, int]) -> str:
        """What is wrong with the place in the training, if something is."""
        order = list(stages)
        known = not stages or (
            list(self.done) == order[: len(self.done)]
            and (not self.stage or self.stage in order[len(self.done) : len(self.done) + 1])
            and self.epoch <= stages.get(self.stage, 0)
        )
        right = len({*self.done, self.stage}) == len(self.done) + 1 and (self.epoch > 0) == bool(self.stage)
        if known and right and self.epoch >= 0 and "" not in self.done:
            return ""
        where = f"epoch {short(self.epoch)} of stage {short(self.stage)} after {short(self.done)}"
        return f"it stands at {where}, of the stages {order}"

    def _misfit_adam(self, model: nn.Module) -> str:
        """What is wrong with the optimizer's state, if something is."""
        if self.optimizer and not self.stage:
            return "it has an optimizer's state between two stages"
        parameters = dict(model.named_parameters())
        found: dict[str, dict[str, Tensor]] = {}
        for whole, tensor in self.optimizer.items():
            name, _, key = whole.rpartition(".")
            found.setdefault(name, {})[key] = tensor
        for name, state in found.items():
            if name not in parameters or state.keys() != _ADAM:
                return f"the optimizer's state of {name!r} has {sorted(state)}, expected {sorted(_ADAM)} of a parameter"
            like = dict.fromkeys(_ADAM - {"step"}, parameters[name])
            if problem := _misfit(state, {**like, "step": torch.zeros(())}):
                return f"the optimizer's state of {name!r}: {problem}"
            steps, mean, square = float(state["step"]), state["exp_avg"], state["exp_avg_sq"]
            if steps < 1 or steps % 1 or bool((square < 0).any()):
                return f"the optimizer's state of {name!r} has step {steps} or a negative square"
            if bool((mean.abs() > _MOST * square.sqrt() + _TINY).any()):
                return f"the optimizer's state of {name!r} has a mean that no gradients of such squares have"
        return ""


def initial_weights(model: nn.Module) -> str:
    """The first 16 digits of a checksum over a model's weights."""
    return checksum({name: t.detach().cpu() for name, t in model.state_dict().items()}, "")[:16]


def _misfit(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """How tensors differ from others in names, shapes and types, in words; nothing if they do not."""
    names = sorted(given.keys() ^ expected.keys())
    if names:
        return f"tensor {names[0]!r} is {'not expected' if names[0] in given else 'missing'}"
    for name, tensor in expected.items():
        if given[name].shape != tensor.shape or given[name].dtype != tensor.dtype:
            got, wanted = (f"{tuple(t.shape)} of {t.dtype}" for t in (given[name], tensor))
            return f"tensor {name!r} has {got}, expected {wanted}"
    return ""


def _plain(value: object) -> str:
    """A setting as it is in the file, cut where it is long."""
    return f"{value}"[:200]


def _damaged(path: Path, problem: str) -> ValueError:
    return ValueError(
        f"{path}: this checkpoint is damaged, or of another version: {problem}; take another copy, or delete it to "
        "start again"
    )
