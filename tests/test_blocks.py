"""Files read in many small blocks against a plain loop over their lines."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest

from metarec.data import events, load_atomic, table
from metarec.data.dataset import Dataset

HEADER = "user_id:token\tother:float\titem_id:token\ttimestamp:float"


@pytest.fixture(params=[1, 40, 300, 1 << 21], ids=lambda size: f"{size} bytes")
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(table, "BLOCK", request.param)
    monkeypatch.setattr(events, "FEW", 7)
    monkeypatch.setattr(events, "WAITING", 2)
    monkeypatch.setattr(events, "PART", request.param)
    return int(request.param)


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    path.write_bytes((end.join([HEADER, *lines])).encode())
    return path


def plain(data: Dataset) -> list[tuple[str, str, float]]:
    names = data.users.decode(data.user), data.catalog.items.decode(data.item)
    return list(zip(*names, data.time.tolist(), strict=True))


def by_loop(lines: list[str]) -> list[tuple[str, str, float]]:
    cells = [line.split("\t") for line in lines if line]
    whole = all(float(time).is_integer() for *_, time in cells)
    rows = [(user, item, int(float(time)) if whole else float(time)) for user, _, item, time in cells]
    return sorted(rows, key=lambda row: (row[0], row[2]))  # stable: ties in file order


def random_lines(seed: int, times: list[str]) -> list[str]:
    rng = random.Random(seed)
    users = [f"u{n}é" * rng.randrange(1, 4) for n in range(40)]
    items = [f"item number {n}" for n in range(90)]
    rows = [f"{rng.choice(users)}\t{n}\t{rng.choice(items)}\t{rng.choice(times)}" for n in range(400)]
    for place in (0, 5, 5, 380):
        rows.insert(place, "")
    return rows


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "times",
    [["3", "14", "1.0e1"], ["-2", "0.5", "7", "9.0"], ["-7", "4294967288", "4294967289", "9000000000000000000"]],
    ids=["whole", "fractions", "far apart"],
)
def test_the_rows_of_a_loop_whatever_the_block(tmp_path: Path, times: list[str], end: str) -> None:
    lines = random_lines(len(times), times)
    data = load_atomic(write(tmp_path / "d.inter", lines, end))
    assert plain(data) == by_loop(lines)
    assert data.users.ids == tuple(sorted({line.split("\t")[0] for line in lines if line}))
    assert data.catalog.items.ids == tuple(sorted({line.split("\t")[2] for line in lines if line}))
    assert data.time.dtype == (np.float64 if "0.5" in times else np.int64)
    assert (data.user.dtype, data.item.dtype) == (np.int64, np.int64)


@pytest.mark.usefixtures("block")
def test_one_late_fraction_makes_every_time_a_float(tmp_path: Path) -> None:
    lines = [f"u\t0\ti\t{1362062838000000001 + n}" for n in range(60)]
    assert load_atomic(write(tmp_path / "a.inter", lines)).time.tolist() == [1362062838000000001 + n for n in range(60)]
    with pytest.warns(UserWarning, match="1 lie outside 1973 to 2103, such as 0.25"):
        mixed = load_atomic(write(tmp_path / "b.inter", [*lines, "u\t0\ti\t0.25"]))
    assert mixed.time.tolist() == sorted([0.25, *(float(1362062838000000001 + n) for n in range(60))])


@pytest.mark.usefixtures("block")
def test_without_times_the_order_is_that_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "d.inter"
    rng = random.Random(5)
    rows = [(f"u{rng.randrange(5)}", f"i{rng.randrange(30)}") for _ in range(200)]
    path.write_text("\n".join(["user_id:token\titem_id:token", *map("\t".join, rows)]), encoding="utf-8")
    expected = sorted(((u, i, n) for n, (u, i) in enumerate(rows)), key=lambda row: (row[0], row[2]))
    assert plain(load_atomic(path)) == expected


@pytest.mark.usefixtures("block")
def test_gzipped_and_with_items_never_seen(tmp_path: Path) -> None:
    lines = random_lines(2, ["1", "2"])
    with gzip.open(tmp_path / "d.inter.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join([HEADER, *lines]))
    titles = {f"item number {n}": f"title {n}" for n in range(0, 120, 7)}
    text = "\n".join(["item_id:token\ttitle:token", *map("\t".join, titles.items())])
    (tmp_path / "d.item").write_text(text, encoding="utf-8")
    data = load_atomic(tmp_path)
    seen = {line.split("\t")[2] for line in lines if line}
    assert plain(data) == by_loop(lines)
    assert data.catalog.items.ids == tuple(sorted(seen | set(titles)))
    assert data.catalog.attributes["title"] == [titles.get(name, "") for name in data.catalog.items.ids]
    assert data.warm.tolist() == [False, *(name in seen for name in data.catalog.items.ids)]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            "u\t1\ti\tsoon",
            r"line 405, column 'timestamp': 'soon' .*seconds",
        ),
        ("u\t1\t\t4", r"line 405, column 'item_id': .*empty"),
        ("\t1\ti\t4", r"line 405, column 'user_id': .*empty"),
        ("u\t1\ti", r"line 405 has 3 tab-separated fields, expected 4 as in the header \(user_id, other, item_id"),
    ],
)
def test_a_wrong_cell_far_down_is_named(tmp_path: Path, bad: str, message: str) -> None:
    lines = random_lines(3, ["1"])[:403]
    path = write(tmp_path / "d.inter", [*lines, bad, *lines])
    with pytest.raises(ValueError, match=message) as caught:
        load_atomic(path)
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures("block")
def test_bytes_that_are_not_text_are_named_by_their_line(tmp_path: Path) -> None:
    lines = random_lines(4, ["1"])
    path = tmp_path / "d.inter"
    path.write_bytes("\n".join([HEADER, *lines]).encode() + b"\nu\xff\t1\ti\t2\n")
    with pytest.raises(ValueError, match=r"d\.inter: not a UTF-8 .*gzipped \(line 406: invalid"):
        load_atomic(path)


def test_a_gzipped_file_cut_short_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "d.inter.gz"
    path.write_bytes(gzip.compress("\n".join([HEADER, *random_lines(6, ["1"])]).encode())[:-40])
    with pytest.raises(ValueError, match=r"d\.inter\.gz: .*damaged \(.*\); .*again"):
        load_atomic(path)
