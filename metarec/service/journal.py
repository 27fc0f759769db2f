"""The journal: changes on disk, in one order, written before they are answered."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
_LAST = (1 << 63) - 1  # the largest number that SQLite has
_NEW = """
CREATE TABLE about (format INTEGER NOT NULL, model TEXT NOT NULL) STRICT;
CREATE TABLE changes (
    number INTEGER PRIMARY KEY, key TEXT UNIQUE, kind TEXT NOT NULL, body TEXT NOT NULL, answer TEXT NOT NULL,
    digest BLOB NOT NULL
) STRICT;
"""


class JournalError(Exception):
    """The journal cannot be read or written at present: a full disk, or a file that was taken away."""


class DamagedError(JournalError, ValueError):
    """The journal is not as it was written."""


@dataclass(frozen=True)
class Change:
    """What a client asked to be changed.

    Attributes:
        kind: ``clicks``, ``add``, ``remove`` or ``restore``.
        body: its fields, as JSON.
        key: the client's own name for the request, by which a repetition is known; None if it gave none.
    """

    kind: str
    body: str
    key: str | None = None

    @classmethod
    def of(cls, kind: str, fields: Any, key: str | None = None) -> Change:
        """A change of these fields."""
        return cls(kind, json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")), key)

    @property
    def fields(self) -> Any:
        """What the body says."""
        return json.loads(self.body)


class Journal:
    """Changes in an SQLite file (write-ahead log, synchronous commits), each with its number and what was answered.

    One process writes at a time, by SQLite's lock; any number follow. Each row carries a SHA-256 over itself and the
    row before, so that what was changed or taken out of the file is found when it is read.

    Args:
        path: the file; made if there is none, and beside it ``-wal`` and ``-shm``, which belong to it.
        model: the fingerprint of the model that the changes were made to.
        seconds: to wait for another process that is writing.

    Raises:
        ValueError: if the file is damaged, no journal, of another version, or of another model; names it.
        OSError: if it cannot be opened.

    Attributes:
        number: of the last change that was read or written here.

    Example:
        >>> import tempfile
        >>> journal = Journal(Path(tempfile.mkdtemp()) / "shop.journal", model="0a1b")
        >>> with journal.writing():
        ...     journal.append(Change.of("remove", {"ids": ["B004"]}, key="k1"), answer="{}")
        >>> journal.find("k1")[1], journal.number
        ('{}', 1)
    """

    def __init__(self, path: str | Path, model: str, *, seconds: float = 10.0) -> None:
        self.path, self.model, self.number = Path(path), model, 0
        self._seconds, self._digest = seconds, model.encode()
        try:
            self._write, self._read = self._open(), self._open()
            self._begin()
            self._seen = self._version()
        except (sqlite3.OperationalError, JournalError) as error:
            if isinstance(error, DamagedError):
                raise
            raise OSError(f"{path}: the journal cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _open(self) -> sqlite3.Connection:
        found = sqlite3.connect(self.path, self._seconds, isolation_level=None, check_same_thread=False)
        if found.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
            raise sqlite3.OperationalError("its folder allows no write-ahead log")
        found.execute("PRAGMA synchronous=FULL")
        return found

    def _begin(self) -> None:
        """Make the tables, or check those that are there."""
        with self.writing():
            tables = {name for (name,) in self._write.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                for statement in _NEW.split(";"):
                    self._write.execute(statement)
                self._write.execute("INSERT INTO about VALUES (?, ?)", (FORMAT, self.model))
            elif not {"about", "changes"} <= tables:
                raise sqlite3.DatabaseError("it has other tables")
        if (found := self._write.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
            raise sqlite3.DatabaseError(str(found[0]))
        about = self._write.execute("SELECT format, model FROM about").fetchall()
        if len(about) != 1:
            raise sqlite3.DatabaseError("it does not say which model it belongs to")
        if about[0][0] != FORMAT:
            raise ValueError(f"{self.path}: a journal of version {about[0][0]}; this metarec reads {FORMAT}")
        if about[0][1] != self.model:
            raise ValueError(
                f"{self.path}: the journal of another model ({about[0][1][:12]}, not {self.model[:12]}); serve the "
                "model that it belongs to, or give this one a journal of its own"
            )

    def _damaged(self, why: object) -> DamagedError:
        return DamagedError(
            f"{self.path}: the journal is damaged ({why}); take another copy, or move it away to begin a new one, "
            "without the changes in it"
        )

    def behind(self) -> bool:
        """Whether another connection has written since this was asked last; costs some microseconds."""
        with self._errors():
            before, self._seen = self._seen, self._version()
        return before != self._seen

    def _version(self) -> int:
        found: tuple[int] = self._read.execute("PRAGMA data_version").fetchone()
        return found[0]

    def further(self, *, writing: bool = False, until: int | None = None) -> Iterator[Change]:
        """The changes after those that were read or written here, in order.

        Args:
            writing: within :meth:`writing`.
            until: the last one; by default all there are.

        Raises:
            DamagedError: if one was changed in the file, or is missing.
            JournalError: if they cannot be read.
        """
        with self._errors():
            rows = (self._write if writing else self._read).execute(
                "SELECT number, key, kind, body, answer, digest FROM changes WHERE number > ? AND number <= ? "
                "ORDER BY number",
                (self.number, _LAST if until is None else until),
            )
            for number, key, kind, body, answer, digest in rows:
                change = Change(kind, body, key)
                if number != self.number + 1 or digest != self._signed(change, answer):
                    raise self._damaged(f"change {number} is not as it was written")
                self.number, self._digest = number, digest
                yield change

    def between(self, first: int, last: int) -> Iterator[Change]:
        """The changes after one, up to another, all of which were read here before; in any thread.

        Raises:
            JournalError: if they cannot be read.
        """
        with self._errors(), closing(sqlite3.connect(self.path, self._seconds)) as own:
            query = "SELECT kind, body, key FROM changes WHERE number > ? AND number <= ? ORDER BY number"
            for kind, body, key in own.execute(query, (first, last)):
                yield Change(kind, body, key)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: nobody else writes meanwhile, and at its end all is on the disk, or nothing is.

        Raises:
            JournalError: if another process writes for too long, or nothing can be written.
        """
        before = self.number, self._digest
        try:
            with self._errors():
                self._write.execute("BEGIN IMMEDIATE")
                yield
                self._write.execute("COMMIT")
        except BaseException:
            self.number, self._digest = before
            with suppress(sqlite3.Error):
                self._write.execute("ROLLBACK")
            raise

    def find(self, key: str) -> tuple[Change, str] | None:
        """The change that was made under a key, and what was answered."""
        sought = self._write.execute("SELECT kind, body, answer FROM changes WHERE key = ?", (key,)).fetchone()
        return None if sought is None else (Change(sought[0], sought[1], key), sought[2])

    def append(self, change: Change, answer: str) -> None:
        """Write the next change, within :meth:`writing`, after all others were read."""
        digest = self._signed(change, answer)
        row = (self.number + 1, change.key, change.kind, change.body, answer, digest)
        self._write.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?)", row)
        self.number, self._digest = self.number + 1, digest

    def _signed(self, change: Change, answer: str) -> bytes:
        whole = json.dumps([self.number + 1, change.key, change.kind, change.body, answer]).encode()
        return hashlib.sha256(self._digest + whole).digest()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What SQLite says, in our words."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise JournalError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def restart(self) -> None:
        """Read from the beginning again."""
        self.number, self._digest = 0, self.model.encode()

    def close(self) -> None:
        """Let go of the file."""
        self._write.close()
        self._read.close()


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a model's file, which its journal belongs to."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
