"""The draws of :mod:`metarec.data.negatives` in one kernel on a GPU, in Triton; imported only where it runs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from metarec.types import Examples

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
FIRST_FACTOR = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND_FACTOR = tl.constexpr(0x94D049BB133111EB)
BLOCK = 256  # negatives that one program draws


@triton.jit
def _mixed(key):
    """The finaliser of splitmix64, of unsigned numbers."""
    key = key + GOLDEN
    key = (key ^ (key >> 30)) * FIRST_FACTOR
    key = (key ^ (key >> 27)) * SECOND_FACTOR
    return key ^ (key >> 31)


@triton.jit(do_not_specialize=["salt", "points", "S", "N"])
def _draw_kernel(out, user, position, target, weight, first, pool, salt, points, S, N, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    stream = _mixed((tl.load(user + row // S) ^ salt).to(tl.uint64, bitcast=True))
    counter = (tl.load(position + row) << 32) + number
    bits = _mixed(counter.to(tl.uint64, bitcast=True) * GOLDEN + stream)
    code = tl.load(target + row)
    own = tl.load(first + code)
    width = tl.load(first + code + 1) - own
    left = tl.maximum(points - width, 1)
    point = ((bits >> 1) % left.to(tl.uint64)).to(tl.int64)
    point = tl.where(point >= own, point + width, point)
    mask = number < N
    found = tl.load(pool + point, mask=mask, other=0)
    real = tl.load(weight + row) > 0
    tl.store(out + row * N + number, tl.where(real, found, 0), mask=mask)


def drawn(examples: Examples, user: Tensor, salt: int, first: Tensor, pool: Tensor, negatives: int) -> Tensor:
    """Negatives (B, S, N) of examples, 0 where they are padding.

    Args:
        examples: of B users.
        user: (B,) whole numbers that stand for them.
        salt: of seed and epoch, an int64.
        first: (I + 1,) int64, where the points of each item begin.
        pool: (P,) int64, the item of each point.
        negatives: N.
    """
    users, each = examples.target.shape
    out = torch.empty(users, each, negatives, dtype=torch.int64, device=user.device)
    columns = [t.contiguous() for t in (user, examples.position, examples.target, examples.weight)]
    if out.numel():
        with torch.cuda.device_of(out):
            _draw_kernel[(users * each, triton.cdiv(negatives, BLOCK))](
                out, *columns, first, pool, salt, len(pool), each, negatives, BLOCK
            )
    return out
