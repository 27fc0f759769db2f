"""Stages of training that report their progress and go on where they were stopped."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarec import distributed
from metarec.data.prefetch import prefetched
from metarec.data.sampler import EpisodeSampler
from metarec.files import checksum, read_tensors, write_tensors
from metarec.nn import record
from metarec.recipes.config import MMLConfig
from metarec.types import EpisodeBatch, Progress


class TrainingRun:
    """The stages of one training, and the checkpoint that a later run resumes from.

    Every epoch starts from a random state that is a function of (seed, stage, epoch), so a resumed run goes through
    the same numbers as one that was never stopped. Where :func:`metarec.distributed.start` joined several processes,
    each computes its share of every batch, and the first one reads and writes the checkpoint. What is begun and done is
    noted on the model; :func:`metarec.nn.record.begin` notes until when it saw clicks.

    Args:
        model: what is trained; all of it is in the checkpoint.
        seed: of dropout and other draws.
        settings: what must be the same for a checkpoint to be resumed, by name.
        checkpoint: file written after every epoch and resumed from if it exists; None to keep none.

    Raises:
        ValueError: if the checkpoint is damaged or belongs to other settings.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        seed: int,
        settings: Mapping[str, str],
        checkpoint: str | Path | None = None,
    ) -> None:
        self.model = model
        self.seed = seed
        self.settings = dict(settings)
        self.checkpoint = checkpoint
        self._done: list[str] = []
        self._current: tuple[str, int] = ("", 0)
        self._optimizer: dict[str, Tensor] = {}
        if checkpoint is not None:
            path = Path(checkpoint)
            found = distributed.from_first(lambda: read_tensors(path) if path.exists() else None)
            if found is not None:
                self._resume(path, *found)
        distributed.copy_first(model)
        for name in self._done:
            record.finish(model, name)

    def _resume(self, path: Path, tensors: dict[str, Tensor], header: Mapping[str, Any]) -> None:
        if not isinstance(found := header.get("settings"), dict):
            raise ValueError(f"{path}: not a checkpoint of a training; choose another file")
        if found != self.settings:
            names = sorted(n for n in {*found, *self.settings} if found.get(n) != self.settings.get(n))
            what = ", ".join(f"{n} (there {found.get(n)}, here {self.settings.get(n)})" for n in names)
            raise ValueError(
                f"{path}: this checkpoint is of another training, with other {what}; "
                "choose another checkpoint file, or delete it to start again"
            )
        own = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        self.model.load_state_dict(own)
        self._optimizer = {n.removeprefix("optimizer."): t for n, t in tensors.items() if n.startswith("optimizer.")}
        self._done, self._current = list(header["done"]), (header["stage"], int(header["epoch"]))

    def stage(
        self,
        name: str,
        epochs: int,
        parameters: Iterable[nn.Parameter],
        lr: float,
        batches: Callable[[int, slice], Iterator[EpisodeBatch]],
        users: int,
        backward: Callable[[EpisodeBatch], float],
    ) -> Iterator[Progress]:
        """Train some parameters with Adam for some epochs, or for what is left of them.

        Args:
            name: of the stage, in the progress and the checkpoint.
            epochs: in total.
            parameters: what the optimizer moves.
            lr: its learning rate.
            batches: the batches of an epoch, of which a process asks for its own users: ``sampler.epoch``.
            users: in one epoch.
            backward: adds the gradient of a batch's loss and returns the loss.
        """
        if name in self._done:
            return
        record.begin_stage(self.model, name)
        parameters = list(parameters)
        optimizer = torch.optim.Adam(parameters, lr=lr)
        start = 0
        if self._current[0] == name:
            start = self._current[1]
            _load_optimizer(optimizer, self._optimizer)
        for epoch in range(start, epochs):
            self.reseed(name, epoch)
            began, seen = time.perf_counter(), 0
            for batch in prefetched(batches(epoch, distributed.own())):
                optimizer.zero_grad(set_to_none=True)
                loss, count = distributed.backward_own(backward, batch, parameters)
                optimizer.step()
                seen += count
                speed = seen / max(time.perf_counter() - began, 1e-9)
                yield Progress(name, epoch + 1, epochs, seen, users, loss, speed)
            self._save(name, epoch + 1, optimizer)
        self.finish(name)

    def reseed(self, name: str, epoch: int) -> None:
        """Start the random numbers of one epoch."""
        torch.manual_seed(zlib.crc32(f"{self.seed} {name} {epoch}".encode()))

    def is_done(self, name: str) -> bool:
        """Whether a stage was finished before."""
        return name in self._done

    def finish(self, name: str) -> None:
        """Mark a stage as finished."""
        self._done.append(name)
        record.finish(self.model, name)
        self._save("", 0, None)

    def _save(self, stage: str, epoch: int, optimizer: torch.optim.Optimizer | None) -> None:
        if self.checkpoint is None or not distributed.is_first():
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if optimizer is not None:
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        header = {"settings": self.settings, "done": self._done, "stage": stage, "epoch": epoch}
        write_tensors(self.checkpoint, tensors, header)


def settings_of(config: MMLConfig, sampler: EpisodeSampler, epochs: int | None) -> dict[str, str]:
    """Everything that decides the result of a training, by name."""
    chosen = {"epochs": epochs, "seed": sampler.seed, "negative_sampling": sampler.negative_sampling}
    given = {f"config.{f.name}": getattr(config, f.name) for f in fields(config)}
    return {n: repr(v) for n, v in {**given, **chosen}.items()} | {"data": fingerprint(sampler)}


def fingerprint(sampler: EpisodeSampler) -> str:
    """The first 16 digits of a checksum over everything that a training reads of its sampler's data."""
    data = sampler.data
    arrays = {"user": data.user, "item": data.item, "warm": data.warm, "sampled": sampler.user_codes}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for name, modality in data.catalog.modalities.items():
        tensors |= {f"{name}.features": modality.features.cpu(), f"{name}.present": modality.present.cpu()}
    return checksum(tensors, "\n".join(data.catalog.items.ids))[:16]


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in saved.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
