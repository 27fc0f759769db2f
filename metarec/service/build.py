"""From a model's file to the application that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from fastapi import FastAPI

from metarec.recommender import Recommender
from metarec.service.app import create_app
from metarec.service.journal import Journal, fingerprint
from metarec.service.limits import Limits


@dataclass(frozen=True)
class Build:
    """How each process makes its application; what ``metarec serve`` was told.

    Attributes:
        model: a file that ``metarec.save`` or ``Recommender.save`` wrote.
        limits: on requests.
        device: where the model runs.
        max_batch: users adapted together.
        allow_changes: let clients tell of clicks, and add and remove items.
        journal: where changes are; None for a file beside the model where changes are allowed, and for none elsewhere.
        version: of the software.
        learn: seconds between two steps of learning on, by a process of its own; None for none.
    """

    model: Path
    limits: Limits
    device: torch.device | str = "cpu"
    max_batch: int = 64
    allow_changes: bool = False
    journal: Path | None = None
    version: str = ""
    learn: float | None = None

    @property
    def learned(self) -> Path:
        """The file that the learner writes, beside the model."""
        return self.model.with_name(f"{self.model.name}.learned")

    def __call__(self) -> FastAPI:
        """The application, with the changes of the journal.

        Raises:
            FileNotFoundError: if there is no such model.
            ValueError: as for ``metarec.load`` and :class:`Journal`.
            OSError: as for :class:`Journal`.
        """
        return create_app(
            Recommender.load(self.model, device=self.device),
            limits=self.limits,
            max_batch=self.max_batch,
            allow_changes=self.allow_changes,
            version=self.version,
            journal=self.open_journal(),
            learned=None if self.learn is None else self.learned,
        )

    def open_journal(self) -> Journal | None:
        """The journal, if there is to be one.

        Raises:
            FileNotFoundError: if there is no such model.
            ValueError, OSError: as for :class:`Journal`.
        """
        beside = self.model.with_name(f"{self.model.name}.journal") if self.allow_changes else None
        path = self.journal or beside
        return None if path is None else Journal(path, fingerprint(self.model), seconds=self.limits.seconds)
