"""New weights for a service that runs: read from the learner's file, they take the old ones' place between batches."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from metarec.files import read_header
from metarec.modes import device_of
from metarec.recommender import Recommender
from metarec.service.changes import Changes, make

LESSON = "lesson"  # the header of a learner's file has it


def status_of(learned: Path) -> Path:
    """The file beside a learner's in which the learner, or what keeps it running, says how it is."""
    return learned.with_name(f"{learned.name}.json")


@dataclass(frozen=True)
class Lesson:
    """What a learner's file says of itself.

    Attributes:
        model: fingerprint of the file that the service was started with.
        ends: by step, the number of the last change of the journal that it was given.
        learned: what came of the last step, by part.

    Example:
        >>> Lesson("0a1b", (17, 40)).version, Lesson("0a1b", (17, 40)).number
        (2, 40)
    """

    model: str
    ends: tuple[int, ...] = ()
    learned: Mapping[str, Any] | None = None

    @property
    def version(self) -> int:
        """How many steps were made."""
        return len(self.ends)

    @property
    def number(self) -> int:
        """The last change that was learned from."""
        return self.ends[-1] if self.ends else 0

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "ends": list(self.ends)}

    @classmethod
    def of(cls, path: Path, model: str) -> Self:
        """What a file says.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, of no learner, or of another model.
        """
        said = read_header(path).get(LESSON)
        if said is None and not path.exists():
            raise FileNotFoundError(f"{path}: nothing was learned yet")
        said = said if isinstance(said, dict) else {}
        ends = said.get("ends")
        if not isinstance(ends, list) or not all(type(end) is int and end > 0 for end in ends) or sorted(ends) != ends:
            raise ValueError(f"{path}: expected what a learner wrote; move it away to learn anew")
        if said.get("model") != model:
            raise ValueError(f"{path}: learned from another model; move it away, or serve that model")
        return cls(model, tuple(ends), said.get("learned"))


class Handover:
    """Watches a learner's file, and makes a service serve what is in it, with the changes of the journal since.

    Args:
        changes: of the service.
        path: the file that the learner writes.

    Raises:
        ValueError: if the service has no journal.

    Attributes:
        lesson: of the weights that were taken over last.
    """

    def __init__(self, changes: Changes, path: Path) -> None:
        if changes.journal is None:
            raise ValueError("a service that learns needs a journal: allow_changes=True, or journal=")
        self.changes, self.journal, self.path = changes, changes.journal, path
        self._given = weakref.ref[Recommender](changes.recommender)
        self.lesson = Lesson(self.journal.model)
        self._tried, self._problem = (0, 0), ""

    @property
    def version(self) -> int:
        """Of the weights that answer: 0 for those of the model's own file."""
        return self.lesson.version if self.changes.recommender is self._given() else 0

    @property
    def unlearned(self) -> int:
        """How many changes of the journal the weights that answer have not learned from."""
        return self.journal.number - (self.lesson.number if self.version else 0)

    def newer(self) -> bool:
        """Whether there is a file that was not tried, or what it gave was lost."""
        return self._stamp() != self._tried or (self.lesson.version > 0 and self.version == 0)

    def _stamp(self) -> tuple[int, int]:
        with suppress(OSError):
            found = self.path.stat()
            return found.st_mtime_ns, found.st_ino
        return 0, 0

    def read(self) -> tuple[Recommender, Lesson, int] | None:
        """A recommender with the new weights, what is said of it, and the last change that it knows; None if refused.

        It may be called while the service answers.
        """
        self._tried, self._problem = self._stamp(), ""
        try:
            lesson = Lesson.of(self.path, self.journal.model)
            device = device_of(self.changes.recommender.model)
            found, until = Recommender.load(self.path, device=device), self.journal.number
            if lesson.number > until:
                raise ValueError(f"{self.path}: learned from changes that the journal does not hold")
            make(found, self.journal.between(lesson.number, until), self.journal.path)
            found.adapt([])  # computes what is computed once
        except (OSError, ValueError, TypeError) as error:
            self._problem = str(error)
            return None
        return found, lesson, until

    def take(self, found: Recommender, lesson: Lesson, until: int) -> None:
        """Put it in the place of the recommender that answers; called where that may be changed, between commits."""
        self.changes.follow()
        make(found, self.journal.between(until, self.journal.number), self.journal.path)
        found._histories = self.changes.recommender._histories
        self.changes.recommender, self._given = found, weakref.ref(found)
        self.lesson = lesson

    def told(self) -> dict[str, Any]:
        """How the learner is, which weights answer, and how many changes they have not learned from."""
        said: dict[str, Any] = {"status": "starting"}
        with suppress(OSError, ValueError):
            said = json.loads(status_of(self.path).read_text())
        if self._problem:
            said |= {"status": "refused", "why": self._problem}
        return {**said, "serving": self.version, "unlearned": self.unlearned}
