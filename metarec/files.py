"""Files that are whole or not there: tensors with a JSON header, written to a temporary file and renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 2
READABLE = (1, 2)  # format versions that this release reads


def replace_file(path: str | Path, content: bytes) -> None:
    """Write a file in one step: a temporary file in the same folder, then a rename.

    Raises:
        OSError: if the folder cannot be written to; the old file, if any, is as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write a value as JSON, in one step.

    Raises:
        TypeError: if the value has something that JSON cannot say.
        ValueError: if it has a NaN or an infinity.
    """
    replace_file(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header as one safetensors file with a checksum over both.

    Args:
        path: the file; replaced in one step.
        tensors: by name.
        header: anything JSON can say.
    """
    from safetensors.torch import save

    whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True, ensure_ascii=False)
    replace_file(path, save(whole, {"metarec": text, "sha256": checksum(whole, text)}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut off, changed, of another format version, or not metarec's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; save() or train(..., checkpoint=...) writes one")
    content = source.read_bytes()
    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        text, expected = metadata["metarec"], metadata["sha256"]
        header = json.loads(text)
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{source}: not a whole metarec file ({type(error).__name__}: {error}); it is cut off, damaged or "
            "something else: save it again or take another copy"
        ) from error
    version = header.get("format") if isinstance(header, dict) else None
    if type(version) is not int or version not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise ValueError(f"{source}: format version {version!r}, this metarec reads versions {known}; save it again")
    if checksum(tensors, text) != expected:
        raise ValueError(f"{source}: the checksum does not match; a byte has changed: take another copy")
    return tensors, header


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over a text and the names, types, shapes and bytes of tensors on the CPU."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
