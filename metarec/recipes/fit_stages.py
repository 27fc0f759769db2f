"""The stages of a fit: what is done is kept in a folder, and the time that is left is watched."""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from metarec.files import read_header, read_tensors, write_tensors
from metarec.types import Progress

SEARCH = 0.5  # share of the budget in which everything is chosen; what is chosen is fitted again in the rest


@dataclass(frozen=True)
class FitProgress:
    """Where a fit stands.

    Attributes:
        stage: what is being done.
        done: share of all work, about.
        seconds_left: about; inf before anything tells.
        step: of the training that is under way, if one is.
    """

    stage: str
    done: float
    seconds_left: float
    step: Progress | None = None


class Stages:
    """Goes through the stages of a fit.

    Args:
        folder: where the results of stages are kept, None for nowhere.
        key: says what is fitted on what.
        budget: minutes.
        on_progress: told of every step.

    Raises:
        ValueError: if the folder is that of another fit, or the budget is not above 0.
    """

    def __init__(
        self,
        folder: str | Path | None,
        key: str,
        *,
        budget: float | None,
        on_progress: Callable[[FitProgress], None] | None,
    ) -> None:
        if budget is not None and not budget > 0:
            raise ValueError(f"fit: budget must be above 0 minutes, got {budget}")
        self.folder, self.key, self.on_progress = None if folder is None else Path(folder), key, on_progress
        self.began, self.seconds = time.monotonic(), float("inf") if budget is None else budget * 60
        for path in [] if self.folder is None else sorted(self.folder.glob("*.safetensors")):
            self._expect_own(path, read_header(path))  # before any work
        self._left: dict[str, float] = {}
        self._finished = self._found = self._within = 0.0  # work; what of it was kept, and what the current stage did

    def plan(self, stages: Mapping[str, float]) -> None:
        """Say what is to come, and how much work each is beside the others."""
        self._left |= stages

    def skip(self, stages: Iterable[str]) -> None:
        """Say what is not to come after all."""
        for stage in stages:
            self._left.pop(stage, None)

    def begin(self, stage: str) -> None:
        """Say what is being done."""
        self._tell(stage, None)

    def step(self, stage: str, step: Progress) -> None:
        """Say what the training of a stage has done."""
        share = (step.epoch - 1 + step.users / max(1, step.total_users)) / max(1, step.epochs)
        self._within = max(self._within, share * self._left.get(stage, 0.0))
        self._tell(stage, step)

    def finish(self, stage: str) -> None:
        """Say that a stage is done."""
        self._within = 0.0
        self._finished += self._left.pop(stage, 0.0)

    def end(self) -> None:
        """Say that all is done."""
        self._left.clear()
        self._finished = max(self._finished, 1.0)
        self._tell("done", None)

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def search_is_over(self, *, share: float = 1.0) -> bool:
        """Whether a share of the time for choosing is spent."""
        return self.elapsed() > self.seconds * SEARCH * share

    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.elapsed() > self.seconds

    def kept(
        self, stage: str, make: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Tensors and plain data of a stage: from the folder, or made and kept there.

        Raises:
            ValueError: if the folder is that of another fit, or a file is damaged.
        """
        self.begin(stage)
        path = None if self.folder is None else self.folder / _file(stage)
        if path is not None and path.exists():
            found, header = read_tensors(path)
            self._expect_own(path, {"key": None, **header})
            self._found += self._left.get(stage, 0.0)
            self.finish(stage)
            return found, json.loads(header["told"])
        tensors, told = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, {"key": self.key, "stage": stage, "told": json.dumps(told)})
        self.finish(stage)
        return tensors, told

    def _expect_own(self, path: Path, header: Mapping[str, Any]) -> None:
        if header.get("key", self.key) != self.key:
            raise ValueError(f"{path}: kept by a fit of other data or settings; give another folder or delete it")

    def _tell(self, stage: str, step: Progress | None) -> None:
        if self.on_progress is None:
            return
        done = self._finished + self._within
        total = self._finished + sum(self._left.values())
        work = done - self._found
        left = self.elapsed() * (total - done) / work if work else float("inf" if total > done else 0)
        share = done / total if total else 0.0
        self.on_progress(FitProgress(stage, share, min(left, max(0.0, self.seconds - self.elapsed())), step))


def _file(stage: str) -> str:
    """The name of a stage's file; stages that differ in other than plain letters have different ones."""
    return f"{re.sub('[^a-z0-9]+', '-', stage.lower())}-{zlib.crc32(stage.encode()):08x}.safetensors"
