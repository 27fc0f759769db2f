"""Stages of training that report their progress and go on where they were stopped."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec import distributed
from metarec.data.sampler import EpisodeSampler
from metarec.distributed import own_rows
from metarec.files import checksum, read_tensors
from metarec.nn import record
from metarec.recipes.checkpoint import INITIAL, Checkpoint, initial_weights
from metarec.recipes.config import MMLConfig
from metarec.recipes.optimizing import Backward, adam, as_large, steps
from metarec.types import EpisodeBatch, Progress

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of Adam, for each parameter
LOWER = "lower the learning rates"
_Versions = list[tuple[int, int]]
_BEGUN: WeakKeyDictionary[nn.Module, tuple[_Versions, str]] = WeakKeyDictionary()  # what a model began with


class TrainingRun:
    """The stages of one training, and the checkpoint that a later run resumes from.

    Every epoch starts from a random state that is a function of (seed, stage, epoch), so a resumed run goes through
    the same numbers as one that was never stopped. Where :func:`metarec.distributed.start` joined several processes,
    each computes its share of every batch, and the first one reads and writes the checkpoint. What is begun and done is
    noted on the model; :func:`metarec.nn.record.begin` notes until when it saw clicks.

    A checkpoint is resumed by the training that wrote it: with the same settings, data and initial weights. The file
    is written before the first step, so that what cannot be written is known at once, and a second training that is
    given the same file finds it taken.

    Args:
        model: what is trained; all of it is in the checkpoint.
        seed: of dropout and other draws.
        settings: what must be the same for a checkpoint to be resumed, by name.
        checkpoint: file written after every epoch and resumed from if it exists; None to keep none.
        stages: epochs of every stage, in order, where they are known beforehand; a checkpoint that stands elsewhere
            is refused.
        moments: an optimizer's state to go on with, by names of parameters; None to begin anew.

    Attributes:
        moments: the optimizer's state of the stages that are done, to go on with another time.

    Raises:
        ValueError: if the checkpoint is damaged or belongs to another training; the model is as it was.
        OSError: if it cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        seed: int,
        settings: Mapping[str, str],
        checkpoint: str | Path | None = None,
        stages: Mapping[str, int] | None = None,
        moments: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self._given = model, dict(moments or {})
        self.moments: dict[str, Tensor] = {}
        self.seed = seed
        self.settings = dict(settings)
        self.checkpoint = checkpoint
        self._done: list[str] = []
        self._current: tuple[str, int] = ("", 0)
        self._optimizer: Mapping[str, Tensor] = {}
        if checkpoint is not None:
            self._begin(Path(checkpoint), stages or {})
        distributed.copy_first(model)
        self.mark()
        for name in self._done:
            record.finish(model, name)

    def _begin(self, path: Path, stages: Mapping[str, int]) -> None:
        """Go on from the checkpoint, or write the first one."""
        versions, begun = _BEGUN.get(self.model, ([], ""))
        own = distributed.from_first(lambda: initial_weights(self.model))
        remembered = distributed.from_first(lambda: begun if versions == _versions(self.model) else own)
        found = distributed.from_first(lambda: read_tensors(path) if path.exists() else None)
        self.settings[INITIAL] = own
        if found is None:
            self._save("", 0, None)
            return
        held = Checkpoint.of(path, *found)
        if held.settings.get(INITIAL) == remembered:  # the same model, in the same process, where it was broken off
            self.settings[INITIAL] = remembered
        held.check(path, self.settings, self.model, stages)
        self.model.load_state_dict(held.model)
        self._optimizer, self._done, self._current = held.optimizer, list(held.done), (held.stage, held.epoch)

    def mark(self) -> None:
        """Note that the weights are as this training has left them: its checkpoint may go on with them."""
        if self.checkpoint is not None:
            _BEGUN[self.model] = _versions(self.model), self.settings[INITIAL]

    def stage(
        self,
        name: str,
        epochs: int,
        parameters: Iterable[nn.Parameter],
        lr: float,
        batches: Callable[[int, slice], Iterator[EpisodeBatch]],
        users: int,
        backward: Backward,
        after: Callable[[int], bool] | None = None,
    ) -> Iterator[Progress]:
        """Train some parameters with Adam for some epochs, or for what is left of them.

        Args:
            name: of the stage, in the progress and the checkpoint.
            epochs: in total.
            parameters: what the optimizer moves.
            lr: its learning rate.
            batches: the batches of an epoch, of which a process asks for its own users: ``sampler.prefetch``.
            users: in one epoch.
            backward: adds the gradient of a batch's loss and returns the loss, a tensor if it is to be read later.
            after: called with the number of epochs done after each; where it returns True, the stage is over.

        Raises:
            ValueError: if the checkpoint has epochs or an optimizer's state that this stage does not have.
            FloatingPointError: if a loss is not finite, in which case the weights are as before that step, or a weight
                is not after an epoch.
        """
        if name in self._done:
            return
        record.begin_stage(self.model, name)
        parameters = list(parameters)
        optimizer = adam(parameters, lr)
        self._go_on(optimizer, parameters)
        start = self._start(name, epochs, optimizer, parameters)
        for epoch in range(start, epochs):
            self.reseed(name, epoch)
            began, seen = time.perf_counter(), 0
            for loss, count in steps(optimizer, parameters, batches(epoch, distributed.own()), backward, self.mark):
                if not math.isfinite(loss):
                    raise FloatingPointError(f"loss {loss} in epoch {epoch + 1} of stage {name!r}; {LOWER}")
                seen += count
                speed = seen / max(time.perf_counter() - began, 1e-9)
                yield Progress(name, epoch + 1, epochs, seen, users, loss, speed)
            if not all(bool(torch.isfinite(own_rows(parameter)).all()) for parameter in parameters):
                raise FloatingPointError(
                    f"epoch {epoch + 1} of stage {name!r} left weights that are not finite; {LOWER}"
                )
            self._save(name, epoch + 1, optimizer)
            if after is not None and after(epoch + 1):
                break
        self.moments |= self._moments_of(optimizer)
        self.finish(name)

    def _start(self, name: str, epochs: int, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> int:
        """Epochs that the checkpoint has of a stage; the optimizer goes on from there."""
        if self._current[0] != name:
            return 0
        start = self._current[1]
        self._load_optimizer(optimizer, parameters)
        if start > epochs:
            raise ValueError(f"{self.checkpoint}: epoch {start} of {epochs} of stage {name!r}; take another copy")
        return start

    def reseed(self, name: str, epoch: int) -> None:
        """Start the random numbers of one epoch."""
        torch.manual_seed(zlib.crc32(f"{self.seed} {name} {epoch}".encode()))

    def is_done(self, name: str) -> bool:
        """Whether a stage was finished before."""
        return name in self._done

    def finish(self, name: str) -> None:
        """Mark a stage as finished."""
        self._done.append(name)
        self.mark()
        record.finish(self.model, name)
        self._save("", 0, None)

    def _save(self, stage: str, epoch: int, optimizer: torch.optim.Optimizer | None) -> None:
        if self.checkpoint is None or not distributed.is_first():
            return
        kept = {} if optimizer is None else self._moments_of(optimizer)
        Checkpoint(self.settings, tuple(self._done), stage, epoch, self.model.state_dict(), kept).write(self.checkpoint)

    def _moments_of(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Its state by names of parameters."""
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, parameter in self.model.named_parameters()
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def _go_on(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        """Give an optimizer the state that it is to go on with; rows of items that came later begin at 0."""
        if not self._given:
            return
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        state: dict[int, dict[str, Tensor]] = {}
        for index, parameter in enumerate(parameters):
            own = {key: self._given.get(f"{names.get(parameter)}.{key}") for key in MOMENTS}
            known = {key: value.clone() for key, value in own.items() if value is not None}
            if len(known) == len(MOMENTS):
                state[index] = {key: as_large(value, parameter, key) for key, value in known.items()}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _load_optimizer(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        state: dict[int, dict[str, Tensor]] = {}
        left = dict(self._optimizer)
        for index, parameter in enumerate(parameters):
            keys = [key for key in left if key.rpartition(".")[0] == names.get(parameter)]
            if keys:
                state[index] = {key.rpartition(".")[2]: left.pop(key) for key in keys}
        if left:
            raise ValueError(
                f"{self.checkpoint}: it has an optimizer's state {min(left)!r} of no parameter of this stage; "
                "take another copy, or delete it to start again"
            )
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _versions(model: nn.Module) -> _Versions:
    """Where a model's weights are, and how often they have been changed in place."""
    return [(tensor.data_ptr(), tensor._version) for tensor in model.state_dict().values()]


@contextmanager
def training_only(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Freeze everything else for a while; all is as it was afterwards."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, trains in before:
            parameter.requires_grad_(trains)


def settings_of(config: MMLConfig, sampler: EpisodeSampler, epochs: int | None) -> dict[str, str]:
    """Everything but the initial weights that decides the result of a training, by name."""
    chosen = {"epochs": epochs, "seed": sampler.seed, "negative_sampling": sampler.negative_sampling}
    given = {f"config.{f.name}": getattr(config, f.name) for f in fields(config)}
    return {n: repr(v) for n, v in {**given, **chosen}.items()} | {"data": fingerprint(sampler)}


def stages_of(config: MMLConfig, learners: Sequence[str], generating: Sequence[str], epochs: int) -> dict[str, int]:
    """The epochs of every stage of an MML, in order; the fusion is trained in one go.

    Args:
        config: the settings.
        learners: their names.
        generating: those with a generator.
        epochs: of meta-training.
    """
    learning = {n: e for name in learners for n, e in ((f"{name} warm-up", config.warmup_epochs), (name, epochs))}
    return {**learning, **{f"{name} generator": config.generator_epochs for name in generating}, "fusion": 0}


def fingerprint(sampler: EpisodeSampler) -> str:
    """The first 16 digits of a checksum over everything that a training reads of its sampler's data."""
    data = sampler.data
    arrays: dict[str, NDArray[Any]] = {"user": data.user, "item": data.item, "warm": data.warm}
    arrays |= {"sampled": sampler.user_codes}
    arrays |= {} if data.weight is None else {"weight": data.weight}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for name, modality in data.catalog.modalities.items():
        tensors |= {f"{name}.features": modality.features.cpu(), f"{name}.present": modality.present.cpu()}
    return checksum(tensors, "\n".join(data.catalog.items.texts))[:16]
