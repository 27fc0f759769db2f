"""How files come to be: whole, on the disk, with the permissions of a file, and never by two writers at once."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metarec.files import read_header, read_tensors, replace_file, write_json, write_tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_threads_that_write_one_file_each_write_it_whole(tmp_path: Path) -> None:
    target, failures, contents = tmp_path / "x", [], [bytes([65 + n]) * (1 + 5000 * n) for n in range(4)]
    replace_file(target, contents[0])
    stop = threading.Event()

    def write(content: bytes) -> None:
        for _ in range(40):
            try:
                replace_file(target, content)
            except OSError as error:
                failures.append(error)

    def read() -> None:
        while not stop.is_set():
            if target.read_bytes() not in contents:
                failures.append(OSError("half a file"))

    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=(c,)) for c in contents]
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop.set()
    reader.join()
    assert failures == [] and names(tmp_path) == ["x"]


def test_a_file_reaches_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def seen(descriptor: int) -> None:
        done.append(("fsync", os.path.realpath(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append(("rename", str(self)))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(Path, "replace", renamed)
    write_tensors(tmp_path / "x", {"w": torch.ones(2)}, {})
    (first, temporary), second, third = done
    assert (first, second, third) == ("fsync", ("rename", temporary), ("fsync", str(tmp_path)))


def test_permissions_are_those_of_a_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "new", b"1")
        assert mode(tmp_path / "new") == 0o640
        for kept in (0o600, 0o664, 0o444):
            (tmp_path / "new").chmod(kept)
            replace_file(tmp_path / "new", b"2")
            assert mode(tmp_path / "new") == kept
    finally:
        os.umask(before)


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "latest").symlink_to(Path("runs") / "third")
    for content in (b"1", b"2"):
        replace_file(tmp_path / "latest", content)
        assert (tmp_path / "runs" / "third").read_bytes() == content
    assert (tmp_path / "latest").is_symlink() and names(tmp_path / "runs") == ["third"]


WRITER = """
import os, sys, time
from pathlib import Path
from metarec.files import replace_file
def hold(self, content):
    with self.open("wb") as file:
        file.write(content[:3])
    print("writing", flush=True)
    time.sleep(60)
Path.write_bytes = hold
replace_file(sys.argv[1], b"content")
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of writing ``x``."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "x")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path, writer: subprocess.Popen[bytes]
) -> None:
    (tmp_path / ".x.mine.tmp").write_text("somebody's")
    (tmp_path / ".xy.0123abcd.tmp").write_text("of another file")
    replace_file(tmp_path / "x", b"1")
    assert len(names(tmp_path)) == 4, "three and the living writer's"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(names(tmp_path)) == 4
    replace_file(tmp_path / "y", b"2")
    assert len(names(tmp_path)) == 5, "that of another file is not looked for"
    replace_file(tmp_path / "x", b"3")
    assert names(tmp_path) == [".x.mine.tmp", ".xy.0123abcd.tmp", "x", "y"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("step", ["write_bytes", "fsync", "replace"])
def test_a_write_that_breaks_off_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    replace_file(tmp_path / "x", b"old")

    def fails(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if step == "fsync" else Path, step, fails)
    with pytest.raises(OSError, match=rf"{os.strerror(number)}; what was there .*: '{tmp_path / 'x'}'") as caught:
        replace_file(tmp_path / "x", b"new")
    assert caught.value.errno == number
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"old"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match=rf"not .*replaced; .*{name}'"):
            replace_file(tmp_path / name, b"1")
    with pytest.raises(FileExistsError, match="inside'"):
        replace_file(Path(__file__) / "inside", b"1")
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError, match=rf"Permission denied; .*: '{tmp_path / 'x.json'}'"):
        write_json(tmp_path / "x.json", [1])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_neither_written_nor_read(tmp_path: Path, kind: torch.dtype, value: float) -> None:
    bad = torch.ones(3, 2)
    bad[2, 1] = value
    bad = bad.to(kind)
    with pytest.raises(ValueError, match=r"x: not written, as 'bad' holds .* at \[2, 1\] \(1 of its 6 numbers"):
        write_tensors(tmp_path / "x", {"good": torch.ones(2), "bad": bad}, {})
    assert names(tmp_path) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metarec.files._not_finite", lambda tensor: "")
        write_tensors(tmp_path / "x", {"good": torch.ones(2), "bad": bad}, {})
    with pytest.raises(ValueError, match=r"x: 'bad' holds .* at \[2, 1\] \(1 of its 6 numbers.*\)"):
        read_tensors(tmp_path / "x")


def test_tensors_without_values_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x: not written, as 'w' .*device"):
        write_tensors(tmp_path / "x", {"w": torch.ones(2, device="meta")}, {})
    with torch.inference_mode():
        inference = torch.ones(2)
    write_tensors(tmp_path / "x", {"w": inference}, {})
    assert read_tensors(tmp_path / "x")[0]["w"].tolist() == [1, 1]


class Trained(dict[str, torch.Tensor]):
    """Tensors that somebody trains while they are gone through."""

    def items(self) -> Any:
        for name, tensor in super().items():
            yield name, tensor
            self["last"].add_(1)


def test_tensors_that_are_trained_meanwhile_are_not_written(tmp_path: Path) -> None:
    tensors = Trained(first=torch.ones(2), last=torch.ones(2))
    with pytest.raises(RuntimeError, match=r"x: .*changed"):
        write_tensors(tmp_path / "x", tensors, {})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ({1, 2}, TypeError, "Object of type set is not JSON serializable"),
        ({"at": float("nan")}, ValueError, "Out of range float values are not JSON compliant"),
        (["\ud800"], ValueError, r"'\\ud800' is not valid text"),
    ],
)
def test_what_json_cannot_say_names_the_file(
    tmp_path: Path, value: object, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=rf"x: not written: {message}"):
        write_json(tmp_path / "x", value)
    with pytest.raises(kind, match=rf"x: not written: {message}"):
        write_tensors(tmp_path / "x", {}, {"value": value})
    assert names(tmp_path) == []


def test_the_header_alone(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", {"w": torch.ones(2)}, {"settings": {"a": "1"}})
    assert read_header(tmp_path / "x") == read_tensors(tmp_path / "x")[1]
    (tmp_path / "long").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    for other in ("long", "none", ".", __file__):
        assert read_header(tmp_path / other) == {}


@pytest.mark.parametrize("text", ['{"format": 2, "name": "\\ud800"}', '{"format": 2, "at": NaN}'])
def test_headers_that_are_no_json_text(tmp_path: Path, text: str) -> None:
    from safetensors.torch import save_file

    from metarec.files import checksum

    tensors = {"w": torch.ones(1)}
    save_file(tensors, tmp_path / "x", {"metarec": text, "sha256": checksum(tensors, text)})
    with pytest.raises(ValueError, match=r"x: .*whole"):
        read_tensors(tmp_path / "x")
