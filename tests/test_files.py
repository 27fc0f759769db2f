"""Files against safetensors and json themselves, against every cut and every changed byte, and a full disk."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metarec import files
from metarec.files import read_tensors, replace_file, write_json, write_tensors

BASE = torch.arange(12.0).reshape(3, 4)
TENSORS = {
    "float": BASE,
    "turned": BASE.T,
    "the same memory": BASE,
    "double": torch.tensor([1e-300, -0.0], dtype=torch.float64),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "int": torch.tensor([2**62, -1]),
    "bool": torch.tensor([True, False]),
    "byte": torch.tensor([0, 255], dtype=torch.uint8),
    "scalar": torch.tensor(7.0),
    "empty": torch.zeros(0),
    "empty rows": torch.zeros(3, 0, dtype=torch.int64),
}
HEADER = {"nested": {"list": [1, 2.5, None, True]}, "text": 'Amélie "\\" 映画'}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@contextmanager
def full_disk() -> Iterator[None]:
    """The system refuses to write a file beyond 100 bytes; what fits is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("tensors", [TENSORS, {}, {"only": torch.zeros(0, 2)}], ids=["all kinds", "none", "empty"])
def test_what_is_written_is_read(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_tensors(tmp_path / "x.safetensors", tensors, HEADER)
    found, header = read_tensors(tmp_path / "x.safetensors")
    assert equal(found, tensors)
    assert {name: header[name] for name in HEADER} == HEADER


def test_the_file_is_plain_safetensors_with_json(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS, HEADER)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert equal({name: file.get_tensor(name) for name in file.keys()}, TENSORS)  # noqa: SIM118
        assert json.loads(file.metadata()["metarec"]) == {"format": 2, **HEADER}


def test_gradients_and_views_are_written_as_values(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    write_tensors(tmp_path / "x", {"part": weight[:, 1]}, {})
    assert read_tensors(tmp_path / "x")[0]["part"].tolist() == [1.0] * 4


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "small", {"w": torch.tensor([1.0, 2.0]), "mask": torch.tensor([True])}, {"name": "é"})
    return tmp_path / "small"


def test_every_cut_is_noticed(small: Path) -> None:
    content = small.read_bytes()
    for length in range(len(content)):
        small.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"small: .*whole"):
            read_tensors(small)
    small.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"small: .*whole"):
        read_tensors(small)


def test_every_changed_byte_is_noticed_or_changes_nothing(small: Path) -> None:
    content, draw, harmless = small.read_bytes(), random.Random(0), 0
    expected, header = read_tensors(small)
    for position in range(len(content)):
        for change in (1 << draw.randrange(8), draw.randrange(1, 256)):
            damaged = bytearray(content)
            damaged[position] ^= change
            small.write_bytes(damaged)
            try:
                found = read_tensors(small)
            except ValueError:
                continue
            harmless += 1  # e.g. one kind of JSON blank for another
            assert equal(found[0], expected) and found[1] == header
    assert harmless < 10


def test_another_format_version(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "READABLE", (3, 4))
    with pytest.raises(ValueError, match=r"small: format version 2, .*versions 3 and 4"):
        read_tensors(small)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04zip", b"\x80\x02pickle", b"\xff" * 64])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match=r"other: .*whole"):
        read_tensors(tmp_path / "other")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"metarec": "[]", "sha256": ""}])
def test_safetensors_of_others(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "other", metadata)
    with pytest.raises(ValueError, match=r"other: (.*whole|format version)"):
        read_tensors(tmp_path / "other")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{path.name}: no such file"):
            read_tensors(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(small: Path) -> None:
    before = small.read_bytes()
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_tensors(small, {"w": torch.zeros(1000)}, {})
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_json(small.parent / "new.json", list(range(1000)))
    assert small.read_bytes() == before
    assert list(small.parent.iterdir()) == [small]


def test_what_json_cannot_say_leaves_the_old_file(small: Path) -> None:
    before = small.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_tensors(small, {}, {"set": {1}})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(small, {1})
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(small, [number])
    assert small.read_bytes() == before
    assert list(small.parent.iterdir()) == [small]


def test_write_json_is_read_by_json(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "folder" / "x.json", HEADER)
    text = (tmp_path / "new" / "folder" / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == HEADER
    assert "映画" in text and text.endswith("}\n")


def test_replace_file_takes_the_place_of_files_only(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"1")
    replace_file(str(tmp_path / "a"), b"2")
    assert (tmp_path / "a").read_bytes() == b"2"
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        replace_file(tmp_path / "folder", b"3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder"]
