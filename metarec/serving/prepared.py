"""What a snapshot does to the parts of a model before it serves from them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from metarec.data.dataset import Catalog
from metarec.functional.fusion import NotFiniteError
from metarec.nn import Items

T = TypeVar("T", bound=nn.Module)


def wide(part: T) -> T:
    """A part in single precision where it was in half, in which steps diverge and a CPU is slow; changed in place.

    Example:
        >>> wide(nn.Linear(2, 2).half()).weight.dtype, wide(nn.Linear(2, 2).double()).weight.dtype
        (torch.float32, torch.float64)
    """
    half = {torch.float16, torch.bfloat16} & {tensor.dtype for tensor in [*part.parameters(), *part.buffers()]}
    return part.float() if half else part


def check_table(name: str, items: Items, catalog: Catalog) -> None:
    """See that the item vectors of a learner are numbers.

    Raises:
        ValueError: if one is not finite; names the learner and the item.
    """
    table = items.table()
    if bool(table.sum().isfinite()):
        return
    broken = items.known & ~table.isfinite().all(1)
    if broken.any():
        code = int(broken.nonzero()[0])
        raise NotFiniteError(
            f"Recommender: learner {name!r}: the vector of item {catalog.items.ids[code - 1]!r} is not finite, so that "
            "nothing can be ranked; train again with a lower learning rate, or take a whole file of the model"
        )
