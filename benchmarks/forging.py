"""Saved files as a disk or a network damages them, or as somebody makes them who computes the checksum again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import save as pack
from torch import Tensor

from metarec.files import checksum

STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 31, 1 << 62, 10**30, 1.5, 1e308, "", "x", "\ud800".encode("utf-8", "replace").decode(),
    [], [0], ["x"] * 3, {}, {"x": 0}, {"default": 1e30}, [[[]]],
)  # fmt: skip


def damaged(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A file as a disk or a network would damage it, and how."""
    header = 8 + int.from_bytes(content[:8], "little")
    changed = bytearray(content)
    kind = draw.choice(
        ["cut off", "bit in the header", "bit in the body", "header length", "zeroed", "inserted", "moved"]
    )
    place = draw.randrange(len(content))
    if kind == "cut off":
        del changed[place:]
    elif kind == "bit in the header":
        changed[draw.randrange(8, header)] ^= 1 << draw.randrange(8)
    elif kind == "bit in the body":
        changed[draw.randrange(header, len(content))] ^= 1 << draw.randrange(8)
    elif kind == "header length":
        changed[:8] = draw.choice([draw.getrandbits(64), draw.randrange(2 * len(content)), 2**63, 0]).to_bytes(
            8, "little"
        )
    elif kind == "zeroed":
        end = min(len(content), place + draw.randrange(1, 4096))
        changed[place:end] = bytes(end - place)
    elif kind == "inserted":
        changed[place:place] = draw.randbytes(draw.randrange(1, 64))
    else:
        size = draw.randrange(1, 512)
        changed[place : place + size], other = b"", bytes(changed[place : place + size])
        at = draw.randrange(len(changed) + 1)
        changed[at:at] = other
    return kind, bytes(changed)


def forged(tensors: Mapping[str, Tensor], header: Mapping[str, Any], draw: random.Random) -> tuple[str, bytes]:
    """A file made by somebody who computes the checksum again, and how."""
    new, said = dict(tensors), json.loads(json.dumps(header))
    name, other = draw.sample(sorted(new), 2)
    kind = draw.choice(list(_FORGERIES))
    text = _FORGERIES[kind](new, said, name, other, draw)
    text = json.dumps(said) if text is None else text
    seal = draw.choice([checksum(new, text)] * 9 + ["0" * 64])
    content = pack({n: t.contiguous() for n, t in new.items()}, {"metarec": text, "sha256": seal})
    return (kind, content) if kind != "huge shape" else (kind, _stretched(content, name, draw))


def _swap(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    new[name], new[other] = new[other], new[name]


def _drop(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    del new[name]


def _reshape(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    flat = new[name].flatten()
    new[name] = draw.choice([flat, flat.unsqueeze(0), flat[: len(flat) // 2], flat.repeat(3), flat[:0], flat.sum()])


def _retype(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    kinds = [torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.int8]
    new[name] = new[name].to(draw.choice(kinds))


def _values(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    changed = new[name].clone().flatten()
    if len(changed):
        value = draw.choice([-1, 2**31 - 1, 0, 1, 255]) if not changed.is_floating_point() else float("nan")
        changed[draw.randrange(len(changed))] = value % 256 if changed.dtype == torch.uint8 else value
        new[name] = changed.view(new[name].shape)


def _header(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    target: Any = said
    while (inner := [v for v in _values_of(target) if v and isinstance(v, dict | list)]) and draw.random() < 0.7:
        target = draw.choice(inner)
    key = draw.choice(sorted(target) if isinstance(target, dict) else range(len(target)))
    if draw.random() < 0.1:
        del target[key]
    else:
        target[key] = draw.choice(STRANGE)


def _values_of(said: dict[str, Any] | list[Any]) -> list[Any]:
    return list(said.values() if isinstance(said, dict) else said)


def _nested(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> str:
    depth = draw.choice([100, 1000, 100_000])
    return draw.choice(["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "9" * depth])


def _stretch(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    """Done to the packed bytes."""


_FORGERIES: dict[str, Callable[..., str | None]] = {
    "tensors swapped": _swap,
    "tensor missing": _drop,
    "tensor reshaped": _reshape,
    "tensor of another type": _retype,
    "value out of range": _values,
    "JSON of another type": _header,
    "deep nesting": _nested,
    "huge shape": _stretch,
}


def _stretched(content: bytes, name: str, draw: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    said = json.loads(content[8 : 8 + size])
    entry = said[name]
    entry["shape"] = draw.choice(
        [[2**62], [2**40, 2**40], [0, 2**63 - 1], [10**30], [-1], [1] * 10_000, entry["shape"] + [0]]
    )
    if draw.random() < 0.5:
        entry["data_offsets"] = draw.choice([[0, 2**62], [2**62, 2**63], [-1, 4], [0, 0], [5, 1]])
    packed = json.dumps(said).encode()
    return len(packed).to_bytes(8, "little") + packed + content[8 + size :]
