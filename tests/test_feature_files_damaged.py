"""Damaged files of data: what is loaded is a value, or a ValueError or FileNotFoundError that begins with the path."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metarec.data import Vocabulary, load_atomic
from metarec.data.features import load_modality

ITEMS = Vocabulary(["a", "b", "c", "é"])
FEAT = np.arange(8, dtype=np.float64).reshape(4, 2) + 0.5
STRANGE = (
    b"\x00",
    b"\xff\xfe",
    b"\t",
    b"\n",
    b"\r",
    b"nan",
    b"1e999",
    b"-",
    b"9" * 40,
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"(",
    b"'",
)


def npz(path: Path) -> Path:
    np.savez(path / "x.npz", ids=np.array(ITEMS.ids), feat=FEAT)
    return path / "x.npz"


def packed(path: Path) -> Path:
    np.savez_compressed(path / "y.npz", ids=np.array(ITEMS.ids), feat=FEAT.astype(np.float16))
    return path / "y.npz"


def npy(path: Path) -> Path:
    np.save(path / "x.npy", FEAT)
    (path / "x.ids.txt").write_text("\n".join(ITEMS.ids), "utf-8")
    return path / "x.npy"


def ids(path: Path) -> Path:
    np.save(path / "z.npy", FEAT)
    np.save(path / "z.ids.npy", np.array(ITEMS.ids))
    return path / "z.ids.npy"


def pth(path: Path) -> Path:
    torch.save({name: torch.from_numpy(row) for name, row in zip(ITEMS.ids, FEAT, strict=True)}, path / "x.pth")
    return path / "x.pth"


def stacked(path: Path) -> Path:
    held = {"item_id": list(ITEMS.ids), "embs": torch.from_numpy(FEAT)}
    torch.save(held, path / "x.pt", _use_new_zipfile_serialization=False)
    return path / "x.pt"


def table(path: Path) -> Path:
    rows = [f"{name}\t{row[0]} {row[1]}" for name, row in zip(ITEMS.ids, FEAT, strict=True)]
    (path / "x.item").write_text("\n".join(["item_id:token\tx:float_seq", *rows]), "utf-8")
    return path / "x.item"


def inter(path: Path) -> Path:
    rows = [f"u{row % 3}\t{name}\t{row % 2}\t{1_600_000_000 + row}" for row, name in enumerate(ITEMS.ids * 3)]
    (path / "d.inter").write_text("\n".join(["user_id:token\titem_id:token\tlabel:float\ttime:float", *rows]), "utf-8")
    return path / "d.inter"


def damaged(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        place = draw.randrange(len(changed) + 1)
        match draw.randrange(5):
            case 0 if changed:
                changed[min(place, len(changed) - 1)] ^= 1 << draw.randrange(8)
            case 1:
                changed[place : place + draw.randrange(1, 9)] = b""
            case 2:
                changed[place:place] = draw.choice(STRANGE)
            case 3:
                del changed[place:]
            case _:
                changed[place : place + 4] = draw.randbytes(4)
    return bytes(changed)


def outcome(form: Callable[[Path], Path], path: Path, positive: dict[str, float]) -> str:
    try:
        if form is inter:
            load_atomic(path, positive=positive)
        else:
            load_modality("x", path, ITEMS)
    except (ValueError, FileNotFoundError) as error:
        return "refused" if str(error).startswith(str(path)) else repr(error)
    return "read"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [npz, packed, npy, ids, pth, stacked, table, inter])
def test_a_damaged_file_is_read_or_refused_by_its_name(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    path = form(tmp_path)
    content, draw, ends = path.read_bytes(), random.Random(form.__name__), Counter[str]()
    asked = path.with_name("z.npy") if form is ids else path
    for _ in range(200):
        path.write_bytes(damaged(content, draw))
        ends[outcome(form, asked, positive={"label": 1} if draw.random() < 0.5 else {})] += 1
    assert set(ends) == {"read", "refused"} and ends["refused"] > 20, ends
