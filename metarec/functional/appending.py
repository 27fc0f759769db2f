"""Tables with room behind their last row, so that rows are added without copying those that are there."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_SPARE = 16  # one row of room for so many rows; memory that nobody writes to is not taken
_LEAST = 64
_lock = threading.Lock()


@dataclass
class _Room:
    """Memory of which the first ``used`` rows are taken; rows are those of the first axis."""

    buffer: Tensor
    used: int
    latest: weakref.ref[Tensor] | None = None  # the table that ends where the room does


_rooms = WeakTensorKeyDictionary()  # table -> the room that it is the beginning of


def roomy(rows: int, *shape: int, like: Tensor, by_column: bool = False) -> Tensor:
    """An uninitialised table (rows, ...) with room for more rows, of the type and on the device of another tensor.

    Args:
        rows: of the table.
        shape: of a row.
        like: the other tensor.
        by_column: of a matrix, the numbers of a column lie side by side.

    Example:
        >>> roomy(5, 2, like=torch.zeros(1)).shape
        torch.Size([5, 2])
    """
    with _lock:
        return _taken(_Room(_memory(rows, shape, like, by_column), 0), rows)


def side_by_side(tables: Sequence[Tensor]) -> Tensor:
    """The columns of several tables (n, F) of the same rows in one, with room for more rows.

    Example:
        >>> side_by_side([torch.ones(2, 1), torch.zeros(2, 2)]).tolist()
        [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    out = roomy(len(tables[0]), sum(table.shape[1] for table in tables), like=tables[0])
    torch.cat([table.detach() for table in tables], 1, out=out)
    return out


def appended(table: Tensor, rows: Tensor) -> Tensor:
    """The rows of a table (n, ...) and others (m, ...) after them, as one tensor (n + m, ...); neither changes.

    It shares its memory with the table where there is room behind that one: then only the m rows are written. Else all
    are copied once, to where there is room. So a change in place of the one is a change of the other.

    Example:
        >>> table = appended(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]]))
        >>> longer = appended(table, torch.tensor([[4.0]]))
        >>> longer.tolist(), longer.data_ptr() == table.data_ptr(), len(table)
        ([[1.0], [2.0], [3.0], [4.0]], True, 3)
    """
    rows, first, last = rows.detach().to(table), len(table), len(table) + len(rows)
    with _lock:
        room = _rooms.get(table)
        if room is not None and last <= len(room.buffer):
            behind = room.buffer.data[first:last]  # whose changes count against no table
            if room.used == first:
                behind.copy_(rows)
                return _taken(room, last)
            if room.used >= last and torch.equal(behind, rows):  # somebody added the same
                return _taken(room, last)
        by_column = table.ndim == 2 and table.shape[1] > 1 and table.stride(0) == 1
        room = _Room(_memory(last, table.shape[1:], table, by_column), 0)
        room.buffer[:first], room.buffer[first:last] = table.detach(), rows
        return _taken(room, last)


def _memory(rows: int, shape: Sequence[int], like: Tensor, by_column: bool) -> Tensor:
    size = rows + rows // _SPARE + _LEAST, *shape
    out = torch.empty(size[::-1] if by_column else size, dtype=like.dtype, device=like.device)
    return out.T if by_column else out


def _taken(room: _Room, rows: int) -> Tensor:
    """The first rows of a room; all that were taken of it share a count of changes in place."""
    out = None if room.latest is None or room.used != rows else room.latest()
    if out is not None:
        return out
    out = room.buffer[:rows]
    if rows >= room.used:
        room.used, room.latest = rows, weakref.ref(out)
    _rooms[out] = room
    return out
