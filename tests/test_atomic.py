"""load_atomic against files written here and a reader that is a plain loop."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from metarec.data import Dataset, find_modalities, load_atomic

INTER = "user_id:token\titem_id:token\ttimestamp:float"


def write(folder: Path, name: str, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(data: Dataset) -> list[tuple[str, str, float]]:
    return list(
        zip(data.users.decode(data.user), data.catalog.items.decode(data.item), data.time.tolist(), strict=True)
    )


def test_rows_are_those_of_a_plain_loop_sorted_by_user_then_time(tmp_path: Path) -> None:
    rng = random.Random(0)
    events = [(f"u{rng.randrange(9)}", f"i{rng.randrange(30):02}", rng.randrange(20)) for _ in range(300)]
    write(tmp_path / "d", "d.inter", INTER, *(f"{u}\t{i}\t{t}" for u, i, t in events))
    data = load_atomic(tmp_path / "d")
    assert rows(data) == sorted(events, key=lambda e: (e[0], e[2]))  # sorted() is stable: ties in file order
    assert data.users.ids == tuple(sorted({u for u, _, _ in events}))
    assert data.catalog.items.ids == tuple(sorted({i for _, i, _ in events}))
    assert data.name == "d"
    assert data.warm[1:].all()
    assert not data.warm[0]
    assert data.dropped == {}


def test_codes_do_not_depend_on_row_order(tmp_path: Path) -> None:
    lines = [f"u{i % 7}\ti{i * 5 % 23}\t{i}" for i in range(60)]
    write(tmp_path / "a", "a.inter", INTER, *lines)
    write(tmp_path / "b", "b.inter", INTER, *random.Random(1).sample(lines, len(lines)))
    a, b = load_atomic(tmp_path / "a"), load_atomic(tmp_path / "b")
    assert a.users == b.users
    assert a.catalog.items == b.catalog.items
    assert rows(a) == rows(b)


@pytest.mark.parametrize(
    ("written", "expected", "kind"),
    [
        (["1362062838", "1362062839"], [1362062838, 1362062839], np.int64),
        (["1362062838.0", "1362062839"], [1362062838, 1362062839], np.int64),
        (["1362062838000000001", "1362062838000000002"], [1362062838000000001, 1362062838000000002], np.int64),
        (["1362062838000000001", "1.5e18"], [1362062838000000001, 1500000000000000000], np.int64),
        (["-3", " 4 "], [-3, 4], np.int64),
        (["1362062838.25", "1362062839"], [1362062838.25, 1362062839.0], np.float64),
        (["1e300", "2e300"], [1e300, 2e300], np.float64),
    ],
)
def test_times_keep_full_precision(tmp_path: Path, written: list[str], expected: list[float], kind: type) -> None:
    write(tmp_path / "d", "d.inter", INTER, *(f"u\ti\t{t}" for t in written))
    time = load_atomic(tmp_path / "d").time
    assert time.tolist() == expected
    assert time.dtype == kind


def test_time_field_named_default_and_absent(tmp_path: Path) -> None:
    header = "item_id:token\tlabel:float\texposure_time:float\tuser_id:token\tother:float"
    write(tmp_path / "d", "d.inter", header, "a\t1\t5\tu\t1", "b\t1\t3\tu\t2", "c\t1\t4\tu\t3")
    assert [i for _, i, _ in rows(load_atomic(tmp_path / "d"))] == ["b", "c", "a"]
    assert [i for _, i, _ in rows(load_atomic(tmp_path / "d", time_field="other"))] == ["a", "b", "c"]
    write(tmp_path / "e", "e.inter", "user_id:token\titem_id:token", "v\tc", "u\tb", "v\ta")
    assert rows(load_atomic(tmp_path / "e")) == [("u", "b", 1), ("v", "c", 0), ("v", "a", 2)]
    with pytest.raises(ValueError, match=r"e\.inter: no column 'when'; .*float.*-separated header, got user_id"):
        load_atomic(tmp_path / "e", time_field="when")


def test_where_the_inter_file_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "odd [1]"
    folder.mkdir()
    with gzip.open(folder / "x.inter.gz", "wt") as file:
        file.write(f"{INTER}\nu\ti\t1\n")
    for path in (folder, str(folder), folder / "x.inter.gz"):
        data = load_atomic(path)
        assert (data.name, rows(data)) == ("x", [("u", "i", 1)])
    write(folder, "y.inter", INTER, "u\tj\t1")
    with pytest.raises(FileNotFoundError, match=r"found \['x\.inter\.gz', 'y\.inter'\]; .*itself"):
        load_atomic(folder)
    write(folder, "odd [1].inter", INTER, "u\tk\t1")
    monkeypatch.chdir(folder)
    assert rows(load_atomic(".")) == [("u", "k", 1)]


def test_windows_lines_byte_order_mark_blank_lines_and_quotes(tmp_path: Path) -> None:
    text = f'\ufeff{INTER}\r\nu\t"a\t1\r\n\r\nu\té b\t2\r\n'
    (tmp_path / "d.inter").write_bytes(text.encode())
    assert rows(load_atomic(tmp_path / "d.inter")) == [("u", '"a', 1), ("u", "é b", 2)]


def test_items_attributes_and_items_never_seen(tmp_path: Path) -> None:
    write(tmp_path / "d", "d.inter", INTER, "u\tb\t1", "u\tc\t2")
    header = "title:token_seq\titem_id:token\tprice:float\ttext:float_seq\tkind:token"
    write(tmp_path / "d", "d.item", header, "Tea for two\tz\t1.50\t1 2\tx", "\tb\t\t3 4\ty")
    data = load_atomic(tmp_path / "d")
    assert data.catalog.items.ids == ("b", "c", "z")
    expected = {"title": ["", "", "Tea for two"], "price": ["", "", "1.50"], "kind": ["y", "", "x"]}
    assert data.catalog.attributes == expected
    assert data.warm.tolist() == [False, True, True, False]
    assert load_atomic(tmp_path / "d").catalog.modalities == {}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["item_id:token\ttimestamp:float", "a\t1"],
            r"no column 'user_id'; expected user_id:token in the tab-separated header, got item_id:token",
        ),
        (["user_id:token\ttimestamp:float", "a\t1"], r"no column 'item_id'; expected item_id:token"),
        (["user_id:token\titem_id:token\tuser_id:token", "a\t1\ta"], r"column 'user_id' appears"),
        (["user_id\titem_id:token", "a\t1"], r"header column 'user_id' .*token, "),
        (["user_id:token\titem_id:str", "a\t1"], r"header column 'item_id:str' is not name:type"),
        (
            ["user_id:token,item_id:token", "a,1"],
            r"the .*separated.* 'user_id:token,item_id:token'",
        ),
        (
            ["user_id:float\titem_id:token", "1\t1"],
            r"'user_id' .*wrong.* user_id:token .*user_id:fl",
        ),
        (
            ["user_id:token\titem_id:token\ttimestamp:token", "a\t1\t1"],
            r"column 'timestamp:token' looks.* load_atomic",
        ),
        ([INTER, "u\ti\t1", "", "u\ti\tsoon"], r"line 4, column 'timestamp': 'soon' .*number"),
        ([INTER, "u\ti\t1", "u\ti\t"], r"line 3, column 'timestamp': '' .*number"),
        ([INTER, "u\ti\tnan"], r"line 2, column 'timestamp': 'nan' .*number"),
        ([INTER, "u\ti\t1", "u\ti\tinf"], r"line 3, column 'timestamp': 'inf' .*number"),
        ([INTER, "u\ti\t1", "u\ti"], r"line 3 has 2 tab-separated fields, expected 3 as in the header \(user_id, item"),
        ([INTER, "u\ti\t1\t9", "u\ti\t2"], r"line 2 has 4 tab-separated fields, expected 3"),
        ([INTER, "u\ti\t1", "u\t\t2"], r"line 3, column 'item_id': .*empty"),
        ([INTER, "\ti\t1"], r"line 2, column 'user_id': is empty"),
        ([INTER], r"no interactions"),
        ([""], r"header column '' is not name:type|the file is empty"),
    ],
)
def test_bad_interactions(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write(tmp_path / "d", "d.inter", *lines)
    with pytest.raises(ValueError, match=message) as caught:
        load_atomic(tmp_path / "d")
    assert str(path) in str(caught.value)


def test_files_missing_empty_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: .*holding NAME\.inter"):
        load_atomic(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"looked for .*\.inter, .*\.inter\.gz .*single .*; found none"):
        load_atomic(tmp_path)
    (tmp_path / "d.inter").write_bytes(b"")
    with pytest.raises(ValueError, match=r"d\.inter: .*header"):
        load_atomic(tmp_path)
    (tmp_path / "d.inter").write_bytes(b"user_id:token\titem_id:token\n\xff\xfe\tx\n")
    with pytest.raises(ValueError, match=r"d\.inter: not a UTF-8 text file"):
        load_atomic(tmp_path)
    with pytest.raises(ValueError, match=r"d\.csv: expected an \.inter or \.inter\.gz file"):
        load_atomic(write(tmp_path, "d.csv", INTER))


def test_bad_item_files(tmp_path: Path) -> None:
    write(tmp_path / "d", "d.inter", INTER, "u\tb\t1")
    write(tmp_path / "d", "d.item", "item_id:token\ttitle:token", "a\tA", "b\tB", "", "a\tC")
    with pytest.raises(ValueError, match=r"d\.item: line 5, column 'item_id': 'a' stands on line 2 already"):
        load_atomic(tmp_path / "d")
    write(tmp_path / "d", "d.item", "id:token\ttitle:token", "a\tA")
    with pytest.raises(ValueError, match=r"d\.item: no column 'item_id'"):
        load_atomic(tmp_path / "d")


def test_modalities_must_be_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got the string 'text'; write \('text',\)"):
        load_atomic(tmp_path, "text")


def test_modalities_are_found_in_every_form_and_nothing_else_is(tmp_path: Path) -> None:
    folder = tmp_path / "d.1"
    write(folder, "d.1.inter", INTER, "u\ta\t1")
    assert find_modalities(folder) == ()
    write(folder, "d.1.item", "item_id:token\tprice:float\ttags:float_seq", "a\t1\t1 2")
    for name in ("d.1.text", "sound.item", "smell.tsv"):
        write(folder, name, "item_id:token\temb:float_seq", "a\t1 2")
    np.savez(folder / "image.npz", ids=["a"], feat=[[1.0]])
    np.save(folder / "touch.npy", [[1.0]])
    write(folder, "touch.ids.txt", "a")
    np.save(folder / "touch.ids.npy", ["a"])
    torch.save({"a": torch.ones(2)}, folder / "taste.pth")
    torch.save({"item_id": ["a"], "embs": torch.ones(1, 2)}, folder / "heat.pt")
    write(folder, "d.1.user", "user_id:token\tage:float", "u\t3")
    write(folder, "notes.tsv", "a table of something else")
    write(folder, "README.md", "item_id:token")
    (folder / "d.1.old").mkdir()
    (folder / "d.1.bin").write_bytes(b"\xff\xfe\x00")
    found = find_modalities(folder)
    assert found == ("heat", "image", "smell", "sound", "tags", "taste", "text", "touch")
    assert tuple(sorted(load_atomic(folder, found).catalog.modalities)) == found  # load_atomic finds them too
    assert find_modalities(folder / "d.1.inter") == found
    with pytest.raises(FileNotFoundError, match=r"no .*folder"):
        find_modalities(tmp_path / "none")
