"""Changes made to a recommender while it is served: each once, in one order, none that the journal does not hold."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from metarec.recommender import Recommender
from metarec.service.journal import Change, DamagedError, Journal

T = TypeVar("T")
Call = Callable[[Callable[[], Any]], Any]
_TOGETHER = 1000  # requests whose clicks are counted at once when they are read back


class Changes:
    """A recommender with the changes of a journal, those that other processes write too.

    A change is made in memory within the transaction that writes it, so that what the recommender refuses is not
    written, and answered once the transaction is on the disk. Where the disk then refuses, the recommender is made
    again from what the journal holds.

    Args:
        recommender: as the model's file has it.
        journal: None, if changes are to be forgotten when the process ends; keys of requests are then not known again.

    Raises:
        DamagedError: if a change of the journal does not fit the model.

    Attributes:
        recommender: with all changes so far.

    Example:
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import MML, MMLConfig
        >>> changes = Changes(Recommender(MML.build(planted(users=60, items=40), MMLConfig(dim=8))))
        >>> changes.commit([Change.of("remove", {"ids": ["item3"]})], lambda work: work())
        ['{"items":40,"removed":1}']
    """

    def __init__(self, recommender: Recommender, journal: Journal | None = None) -> None:
        self.recommender, self.journal = recommender, journal
        self._torn = False
        if journal is not None:
            self._first = copy.copy(recommender)
            self.follow()

    @property
    def not_counted(self) -> int:
        """Clicks so far that moved no count, as their users clicked too often that day."""
        return self.recommender._histories.not_counted

    def behind(self) -> bool:
        """Whether there is something to :meth:`follow`."""
        return self.journal is not None and (self.journal.behind() or self._torn)

    def follow(self, *, writing: bool = False) -> None:
        """Make the changes that other processes have written meanwhile.

        Raises:
            JournalError: if the journal cannot be read, or a change in it does not fit the model.
        """
        if self.journal is None:
            return
        recommender = self.recommender
        if self._torn:
            recommender = copy.copy(self._first)
            self.journal.restart()
        self._torn = True  # until all that was read is made
        make(recommender, self.journal.further(writing=writing), self.journal.path)
        self.recommender, self._torn = recommender, False

    def commit(self, changes: Sequence[Change], model: Call) -> list[str | Exception]:
        """Make and write changes, all in one transaction, and give the answer to each, or why it is refused.

        Args:
            changes: of requests of the same moment.
            model: calls a function where the recommender may be changed.

        Raises:
            JournalError: if they cannot be written; none of them has been made then.
        """
        if self.journal is None:
            return model(lambda: [self._answer(change) for change in changes])  # type: ignore[no-any-return]
        begun = False
        try:
            with self.journal.writing():
                begun = True
                return model(lambda: self._all(changes))  # type: ignore[no-any-return]
        except BaseException:
            self._torn = self._torn or begun
            raise

    def _all(self, changes: Sequence[Change]) -> list[str | Exception]:
        self.follow(writing=True)
        return [self._answer(change) for change in changes]

    def _answer(self, change: Change) -> str | Exception:
        if self.journal is not None and change.key is not None and (known := self.journal.find(change.key)):
            if known[0] == change:
                return known[1]
            return ValueError(f"Idempotency-Key: {change.key!r} was the key of another request; give each its own")
        try:
            answer = json.dumps(_made(self.recommender, change.kind, change.fields), separators=(",", ":"))
        except (ValueError, TypeError) as error:
            return error
        if self.journal is not None:
            self.journal.append(change, answer)
        return answer


def make(recommender: Recommender, changes: Iterable[Change], path: Path) -> None:
    """Make changes of a journal.

    Args:
        recommender: is changed.
        changes: in order.
        path: of the journal.

    Raises:
        DamagedError: if one does not fit the model.
    """
    for kind, some in groupby(changes, key=lambda change: change.kind):
        for fields in joined(some) if kind == "clicks" else (change.fields for change in some):
            try:
                _made(recommender, kind, fields)
            except (ValueError, TypeError) as error:
                raise DamagedError(f"{path}: a change of the journal does not fit the model: {error}") from error


def joined(changes: Iterable[Change]) -> Iterable[dict[str, list[Any]]]:
    """The clicks of many requests as those of a few."""
    columns: dict[str, list[Any]] = {}
    for count, change in enumerate(changes, start=1):
        for name, column in change.fields.items():
            columns.setdefault(name, []).extend(column)
        if count % _TOGETHER == 0:
            yield columns
            columns = {}
    if columns:
        yield columns


def _made(recommender: Recommender, kind: str, fields: Any) -> dict[str, Any]:
    """Make a change, and say what came of it."""
    if kind == "clicks":
        seen = recommender.observe(fields)
        return {"clicks": seen.clicks, "new_users": list(seen.new_users), "not_counted": seen.not_counted}
    if kind == "add":
        given = {str(name): name for name in fields["ids"]}  # JSON's objects have keys of text
        vectors = {
            name: {given.get(item, item): vector for item, vector in own.items()}
            for name, own in fields["vectors"].items()
        }
        recommender.add_items(fields["ids"], vectors, attributes=fields["attributes"])
    else:
        {"remove": recommender.remove_items, "restore": recommender.restore_items}[kind](fields["ids"])
    return {"items": len(recommender.catalog.items), "removed": len(recommender.catalog.hidden)}
