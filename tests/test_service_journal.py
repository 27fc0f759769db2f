"""The journal of the service: what was acknowledged is there after any end, once, and nothing else is."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from journal_cases import LATER, MODEL, OPEN, clicks, commit, counts, opened, served, state
from metarec import Recommender, save
from metarec.service import Build, Journal, Limits
from metarec.service.core import Service
from metarec.service.journal import Change, DamagedError, JournalError


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def test_what_is_read_back_equals_what_was_made(tmp_path: Path) -> None:
    first = served(tmp_path / "j")
    for number in range(1, 6):
        assert commit(first, Change.of("clicks", clicks(f"item{number}", "item7", time=LATER + number)))
        commit(first, Change.of("remove", {"ids": [f"item{number}"]}))
    commit(first, Change.of("restore", {"ids": ["item2"]}))
    again = served(tmp_path / "j")
    assert state(again) == state(first)
    assert again.recommender.user("ann").history == tuple(i for n in range(1, 6) for i in (f"item{n}", "item7"))
    direct = Recommender(counts())
    for number in range(1, 6):
        direct.observe(clicks(f"item{number}", "item7", time=LATER + number))
    assert again.recommender.adapt(["item3", "item9"]).scores.tolist() == pytest.approx(
        direct.adapt(["item3", "item9"]).scores.tolist(), abs=1e-6
    )


def test_a_key_is_made_once_and_answered_as_before(tmp_path: Path) -> None:
    asked = Change.of("clicks", clicks("item3", "item4"), "k1")
    first = served(tmp_path / "j")
    one, two = commit(first, asked, asked)
    assert json.loads(str(one)) == {"clicks": 2, "new_users": ["ann"], "not_counted": 0} and one == two
    again = served(tmp_path / "j")
    assert commit(again, asked) == [one]
    assert again.recommender.user("ann").history == ("item3", "item4")
    [other] = commit(again, Change.of("clicks", clicks("item5"), "k1"))
    assert isinstance(other, ValueError) and "k1" in str(other)


def test_what_is_refused_is_not_written(tmp_path: Path) -> None:
    first = served(tmp_path / "j")
    good = Change.of("clicks", clicks("item3", time=LATER + 5))
    early, unknown = Change.of("clicks", clicks("item3", user="bob")), Change.of("remove", {"ids": ["nothing"]})
    answers = commit(first, good, early, unknown)
    assert [type(answer) for answer in answers] == [str, ValueError, ValueError]
    assert "bob" in str(answers[1]) and str(LATER) in str(answers[1])
    assert list(opened(tmp_path / "j").further()) == [good]


def test_where_the_disk_refuses_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = served(tmp_path / "j")
    commit(first, Change.of("clicks", clicks("item3")))
    before = state(first)

    class Full:
        """A connection whose commits fail, as on a full disk."""

        def __init__(self, real: sqlite3.Connection) -> None:
            self.real = real

        def execute(self, statement: str, *values: Any) -> Any:
            if statement == "COMMIT":
                raise sqlite3.OperationalError("database or disk is full")
            return self.real.execute(statement, *values)

    assert first.journal is not None
    with monkeypatch.context() as patch:
        patch.setattr(first.journal, "_write", Full(first.journal._write))
        with pytest.raises(JournalError, match="disk is full"):
            commit(first, Change.of("clicks", clicks("item9")), Change.of("remove", {"ids": ["item1"]}))
    assert first.behind()
    first.follow()
    assert state(first) == before
    commit(first, Change.of("clicks", clicks("item4")))
    assert first.recommender.user("ann").history == ("item3", "item4")
    assert state(served(tmp_path / "j")) == state(first)


def test_another_process_follows_by_number(tmp_path: Path) -> None:
    one, two = served(tmp_path / "j"), served(tmp_path / "j")
    commit(one, Change.of("clicks", clicks("item3"), "k1"))
    assert two.behind()
    two.follow()
    assert not two.behind() and state(two) == state(one)
    commit(two, Change.of("remove", {"ids": ["item5"]}), Change.of("clicks", clicks("item4"), "k1"))
    commit(one, Change.of("restore", {"ids": ["item5"]}), Change.of("clicks", clicks("item6")))
    two.follow()
    assert state(two) == state(one) and one.recommender.user("ann").history == ("item3", "item6")
    assert one.journal is not None and two.journal is not None
    assert one.journal.number == two.journal.number == 4


def test_writers_at_the_same_time_take_turns(tmp_path: Path) -> None:
    writers = [served(tmp_path / "j") for _ in range(3)]

    def work(number: int) -> None:
        for step in range(10):
            commit(writers[number], Change.of("clicks", clicks(f"item{1 + step}", user=f"u{number}")))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = served(tmp_path / "j")
    expected = tuple(f"item{1 + step}" for step in range(10))
    assert [last.recommender.user(f"u{number}").history for number in range(3)] == [expected] * 3


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    Journal(tmp_path / "shop.journal", MODEL).close()
    with pytest.raises(ValueError, match=r"shop\.journal.*another model"):
        Journal(tmp_path / "shop.journal", "1" * 64)
    save(counts(), tmp_path / "model.safetensors")
    build = Build(tmp_path / "model.safetensors", Limits(), journal=tmp_path / "shop.journal")
    with pytest.raises(ValueError, match=r"shop\.journal.*another model"):
        build()


def damage(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as found:
        found.execute(statement)
    found.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE changes SET body = replace(body, 'item4', 'item5') WHERE number = 2",
        "UPDATE changes SET answer = '{}' WHERE number = 1",
        "DELETE FROM changes WHERE number = 2",
        "UPDATE changes SET key = 'x' WHERE number = 3",
        "DELETE FROM about",
        "DROP TABLE about",
        "DROP TABLE changes",
    ],
)
def test_a_changed_journal_is_refused_by_name(tmp_path: Path, statement: str) -> None:
    first = served(tmp_path / "shop.journal")
    commit(first, *(Change.of("clicks", clicks(f"item{n}")) for n in (3, 4, 5)))
    assert first.journal is not None
    first.journal.close()
    damage(tmp_path / "shop.journal", statement)
    with pytest.raises(DamagedError, match=r"shop\.journal"):
        served(tmp_path / "shop.journal")


@pytest.mark.parametrize("how", ["text", "cut", "bytes"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, how: str) -> None:
    path = tmp_path / "shop.journal"
    first = served(path)
    for _ in range(60):
        commit(first, Change.of("clicks", clicks(*["item3"] * 50)))
    assert first.journal is not None
    first.journal.close()
    content = path.read_bytes()
    assert len(content) > 30_000
    damaged = {"text": b"no journal " * 1000, "cut": content[:20_000], "bytes": content[:12_000] + b"\xff" * 9000}
    path.write_bytes(damaged[how] + (content[21_000:] if how == "bytes" else b""))
    with pytest.raises(DamagedError, match=r"shop\.journal"):
        served(path)


def test_a_cut_tail_of_the_log_is_what_was_not_acknowledged(tmp_path: Path) -> None:
    path, log = tmp_path / "j", tmp_path / "j-wal"
    first = served(path)
    sizes = [log.stat().st_size]
    for number in range(1, 4):
        commit(first, Change.of("clicks", clicks(f"item{number}")))
        sizes.append(log.stat().st_size)
    for cut in (sizes[2], sizes[2] + 1, (sizes[2] + sizes[3]) // 2, sizes[3] - 1):
        for part in (path, log):
            (tmp_path / f"copy{part.name[1:]}").write_bytes(part.read_bytes())
        (tmp_path / "copy-wal").write_bytes(log.read_bytes()[:cut])
        again = served(tmp_path / "copy")
        assert again.recommender.user("ann").history == ("item1", "item2")
        assert again.journal is not None
        again.journal.close()


def test_the_file_says_its_version_and_whose_it_is(tmp_path: Path) -> None:
    """Files of this version are out there: another number would refuse them."""
    opened(tmp_path / "j")
    found = sqlite3.connect(tmp_path / "j")
    assert found.execute("SELECT format, model FROM about").fetchall() == [(1, MODEL)]
    found.close()


def test_changes_of_others_are_read_beside_the_connection_that_writes(tmp_path: Path) -> None:
    """It may be in the middle of a transaction of another thread."""
    first, other = served(tmp_path / "j"), served(tmp_path / "j")
    commit(other, Change.of("clicks", clicks("item3")))
    writes, first.journal._write = first.journal._write, None  # type: ignore[union-attr, assignment]
    first.follow()
    first.journal._write = writes  # type: ignore[union-attr]
    assert state(first) == state(other)


@pytest.mark.parametrize("with_journal", [True, False])
def test_a_service_lets_go_of_its_journal_at_the_end(tmp_path: Path, with_journal: bool) -> None:
    journal = opened(tmp_path / "j") if with_journal else None
    service = Service(Recommender(counts()), Limits(), max_batch=4, version="", journal=journal)

    async def run() -> None:
        async with service.running(None):
            assert journal is None or journal.find("k1") is None

    asyncio.run(run())
    if journal is not None:
        with pytest.raises(sqlite3.ProgrammingError):
            journal.find("k1")
