"""Files that are whole or not there: tensors with a JSON header, written to a temporary file and renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

FORMAT = 2
READABLE = (1, 2)  # format versions that this release reads
HEADER_BYTES = 100_000_000  # safetensors reads no longer header


def replace_file(path: str | Path, content: bytes) -> None:
    """Write a file in one step: a temporary file in the same folder, flushed to the disk, then a rename.

    The file keeps its permissions, or gets those of any new file; a link stays, and what it leads to is replaced.
    Temporary files that killed writers of the same file have left are removed; those of living ones are locked.

    Raises:
        OSError: if the folder cannot be written to, or something else than a file is there; all is as it was.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            kind = errno.EISDIR if target.is_dir() else errno.EINVAL
            raise OSError(kind, f"{os.strerror(kind)}: not a file that could be replaced")
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        with _temporary(target) as temporary:
            temporary.write_bytes(content)
            with temporary.open("rb+") as file:
                if target.exists():
                    temporary.chmod(stat.S_IMODE(target.stat().st_mode))
                os.fsync(file.fileno())
            temporary.replace(target)
        _flush_folder(target.parent)
    except OSError as error:
        what = f"{error.strerror or error}; what was there before is as it was"
        raise OSError(error.errno or errno.EIO, what, str(path)) from error


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A new file beside another, locked for as long as its writer lives."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        holder = temporary.open("xb")
        if not _lock(holder, wait=True):
            holder.close()
            break
        if os.fstat(holder.fileno()).st_nlink:
            break
        holder.close()  # another writer took it for abandoned before it was locked
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        holder.close()


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Lock a file for as long as it is open; False if another has, or the system has no such locks."""
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary files of a target that nobody holds locked."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.tmp")
    with contextlib.suppress(OSError):  # a folder that cannot be listed; a file that is gone, or somebody else's
        for path in [path for path in target.parent.iterdir() if name.fullmatch(path.name)]:
            with path.open("rb+") as file:
                if _lock(file, wait=False):
                    path.unlink()


def _flush_folder(folder: Path) -> None:
    """Let a rename reach the disk, where the file system has that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | Path, value: object) -> None:
    """Write a value as JSON, in one step.

    Raises:
        TypeError: if the value has something that JSON cannot say.
        ValueError: if it has a NaN or an infinity, or text with half a character.
        OSError: as for :func:`replace_file`.
    """
    replace_file(path, (_json(path, value, indent=1) + "\n").encode())


def _json(path: str | Path, value: object, **how: Any) -> str:
    """A value as JSON, or an error that names the file that it was for."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, **how)
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: not written: {error.object[error.start]!r} is not valid text") from error
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: not written: {error}") from error
    return text


def write_png(path: str | Path, figure: Any, **how: Any) -> None:
    """Write a matplotlib figure, whole or not at all."""
    image = io.BytesIO()
    figure.savefig(image, format="png", **how)
    replace_file(path, image.getvalue())


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header as one safetensors file with a checksum over both.

    Args:
        path: the file; replaced in one step.
        tensors: by name; finite.
        header: anything JSON can say.

    Raises:
        TypeError: if the header has something that JSON cannot say.
        ValueError: if a number is not finite, or a tensor has no values (device ``meta``); nothing is written.
        RuntimeError: if the tensors change while they are copied; nothing is written.
        OSError: as for :func:`replace_file`.
    """
    from safetensors.torch import save

    text = _json(path, {"format": FORMAT, **header}, sort_keys=True)
    whole = _copied(path, tensors)
    for name, tensor in whole.items():
        if problem := _not_finite(tensor):
            raise ValueError(
                f"{path}: not written, as {name!r} holds {problem}; lower the learning rates and train again"
            )
    replace_file(path, save(whole, {"metarec": text, "sha256": checksum(whole, text)}))


def _copied(path: str | Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one moment, on the CPU."""
    empty = sorted(name for name, t in tensors.items() if t.is_meta)
    if empty:
        raise ValueError(f"{path}: not written, as {empty[0]!r} is on the device meta, without values; load them first")
    before = _versions(tensors)
    whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    if _versions(tensors) != before:
        raise RuntimeError(
            f"{path}: not written, as the tensors changed while they were copied: something trains them in another "
            "thread; save between two steps of it"
        )
    return whole


def _versions(tensors: Mapping[str, Tensor]) -> list[int]:
    """How often each tensor has been changed in place, as far as torch counts it."""
    return [0 if t.is_inference() else t._version for t in tensors.values()]


def _not_finite(tensor: Tensor) -> str:
    """What a tensor holds beside finite numbers, in words; nothing if it holds none."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return ""
    bad = ~torch.isfinite(tensor if tensor.itemsize > 1 else tensor.float())
    if not bool(bad.any()):
        return ""
    first = bad.nonzero()[0].tolist()
    return f"{tensor[tuple(first)].item()} at {first} ({int(bad.sum())} of its {bad.numel()} numbers are not finite)"


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header alone, without the tensors and without the checksum; empty if there is none to be read."""
    try:
        with Path(path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            found = _header(file.read(size))[0] if size <= HEADER_BYTES else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _header(packed: bytes) -> tuple[Any, str, str]:
    """A file's header as JSON and as its text, and the checksum that it gives."""
    metadata = json.loads(packed)["__metadata__"]
    text, expected = metadata["metarec"], metadata["sha256"]
    header = json.loads(text)
    json.dumps(header, ensure_ascii=False, allow_nan=False).encode()  # no lone surrogates, no NaN
    return header, text, expected


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut off, changed, of another format version, not metarec's, or holds numbers that
            are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; save() or train(..., checkpoint=...) writes one")
    content = source.read_bytes()
    try:
        tensors = load(content)
        header, text, expected = _header(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{source}: not a whole metarec file ({type(error).__name__}: {error}); it is cut off, damaged or "
            "something else: save it again or take another copy"
        ) from error
    version = header.get("format") if isinstance(header, dict) else None
    if type(version) is not int or version not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise ValueError(
            f"{source}: format version {short(version)}, this metarec reads versions {known}; save it again"
        )
    if checksum(tensors, text) != expected:
        raise ValueError(f"{source}: the checksum does not match; a byte has changed: take another copy")
    for name, tensor in tensors.items():
        if problem := _not_finite(tensor):
            raise ValueError(f"{source}: {name!r} holds {problem}; take another copy, or make the file again")
    return tensors, header


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over a text and the names, types, shapes and bytes of tensors on the CPU."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def expect_tensor(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, dimensions: int) -> Tensor:
    """A tensor of this name.

    Raises:
        KeyError: if there is none.
        ValueError: if it has another type or number of dimensions.
    """
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.ndim != dimensions:
        raise ValueError(
            f"{name} must be {dtype} with {dimensions} dimensions, got {tensor.dtype} {tuple(tensor.shape)}"
        )
    return tensor


def pack_strings(name: str, strings: Sequence[str]) -> dict[str, Tensor]:
    """Strings as two tensors: all their UTF-8 bytes, (bytes,) uint8, and where each ends, (strings,) int64."""
    encoded = [string.encode() for string in strings]
    ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
    joined = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return {f"{name}.bytes": torch.from_numpy(joined), f"{name}.ends": torch.from_numpy(ends)}


def unpack_strings(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """The strings that :func:`pack_strings` put away.

    Raises:
        KeyError, ValueError: if these are not such tensors.
    """
    joined = expect_tensor(tensors, f"{name}.bytes", torch.uint8, 1).numpy().tobytes()
    ends = [0, *expect_tensor(tensors, f"{name}.ends", torch.int64, 1).tolist()]
    if ends[-1] != len(joined) or any(start > end for start, end in itertools.pairwise(ends)):
        raise ValueError(f"{name}.ends does not divide its {len(joined)} bytes")
    return [joined[start:end].decode() for start, end in itertools.pairwise(ends)]
