"""Frozen copies of modules for serving: in evaluation mode, in single precision, out of reach of later training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from metarec.functional.appending import appended, side_by_side
from metarec.functional.fusion import NotFiniteError
from metarec.nn.items import Items, TableItems
from metarec.nn.last_rows import rows_from

T = TypeVar("T", bound=nn.Module)


def wide(part: T) -> T:
    """Convert half precision to single, in place: in half, inner steps diverge and a CPU is slow.

    Example:
        >>> wide(nn.Linear(2, 2).half()).weight.dtype, wide(nn.Linear(2, 2).double()).weight.dtype
        (torch.float32, torch.float64)
    """
    half = {torch.float16, torch.bfloat16} & {tensor.dtype for tensor in [*part.parameters(), *part.buffers()]}
    return part.float() if half else part


def evaluated(module: T) -> T:
    """A copy in evaluation mode that shares its tensors; the given module stays in the mode it is in.

    Example:
        >>> layer = nn.Dropout()
        >>> evaluated(layer).training, layer.training
        (False, True)
    """
    out = copy.copy(module)
    out.training = False
    out._modules = {name: part and evaluated(part) for name, part in module._modules.items()}
    return out


@torch.no_grad()
def as_table(items: Items) -> TableItems:
    """Precompute item vectors in evaluation mode, as a table."""
    table = evaluated(items).table()  # type: ignore[type-var]
    return wide(TableItems(side_by_side([table]), items.known.clone()))


@torch.no_grad()
def longer_table(before: Items, items: Items) -> TableItems | None:
    """The table of items that are others and more after them, of which the last alone are computed.

    Args:
        before: the table of the others.
        items: all of them.

    Returns:
        None where the first is no table, or the class of the second cannot compute the last vectors alone.
    """
    if type(before) is not TableItems:
        return None
    rows = rows_from(evaluated(items), len(before.known))  # type: ignore[type-var]
    return None if rows is None else TableItems(appended(before.weight, rows), items.known.clone())


def check_vectors(name: str, vectors: Tensor, known: Tensor, ids: Sequence[str] | None = None, first: int = 0) -> None:
    """Check that the item vectors of a learner are finite.

    Args:
        name: of the learner, for messages.
        vectors: (I, D).
        known: (I,) bool.
        ids: of the items, one fewer than there are rows.
        first: the row from which on they are checked.

    Raises:
        ValueError: if one is not finite; names the learner and the item.
    """
    if bool(vectors[first:].sum().isfinite()):
        return
    broken = known & ~vectors.isfinite().all(1)
    if broken.any():
        code = int(broken.nonzero()[0])
        item = f"code {code}" if ids is None else repr(ids[code - 1])
        raise NotFiniteError(
            f"learner {name!r}: the vector of item {item} is not finite, so that nothing can be ranked; "
            "train again with a lower learning rate, or take a whole file of the model"
        )
