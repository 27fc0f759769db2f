"""Kernels for many small matrices on a GPU, in Triton; imported only where they run.

Each equals a few lines of torch, which serve everywhere else: :func:`low_rank_add` and :func:`scaled_norm` those of
:mod:`metarec.meta.ops`, :func:`attend` those of :mod:`metarec.functional.attention`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from metarec.functional import attention
from metarec.meta import ops

LONGEST = 64  # tokens that one program of the attention kernel holds


def precision() -> str:
    """How tensor cores multiply: in TF32 if the user lets them, else as three such products, good to float32."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


# Numbers that change from batch to batch are not compiled into the kernels.
@triton.jit(do_not_specialize=["n", "rank"])
def _low_rank_kernel(
    y, x, X, G, n, rank, X_user, G_user, one,
    IN, OUT, ROWS: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    user = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    real = (row < n)[:, None]
    for start in range(0, rank, RANKS):
        r = start + tl.arange(0, RANKS)
        own = (r < rank)[:, None]
        near = tl.zeros((ROWS, RANKS), tl.float32)
        for i in range(0, IN, COLUMNS):
            mask = (i + column < IN)[None, :]
            some = tl.load(x + (user * n + row[:, None]) * IN + i + column[None, :], mask=real & mask, other=0.0)
            theirs = tl.load(X + user * X_user + r[:, None] * IN + i + column[None, :], mask=own & mask, other=0.0)
            near = tl.dot(some, tl.trans(theirs), near, input_precision=PRECISION)
        near += one
        for o in range(0, OUT, COLUMNS):
            mask = (o + column < OUT)[None, :]
            at = y + (user * n + row[:, None]) * OUT + o + column[None, :]
            theirs = tl.load(G + user * G_user + r[:, None] * OUT + o + column[None, :], mask=own & mask, other=0.0)
            total = tl.load(at, mask=real & mask, other=0.0)
            tl.store(at, tl.dot(near, theirs, total, input_precision=PRECISION), mask=real & mask)


def low_rank_add(y: Tensor, x: Tensor, X: Tensor, G: Tensor, one: float) -> None:
    """``y += (x X^T + one) G`` for each of B users.

    Args:
        y: (B, n, out), contiguous.
        x: (B, n, in), contiguous.
        X: (B, rank, in), rows contiguous.
        G: (B, rank, out), rows contiguous.
        one: added to every entry of x X^T.
    """
    users, n, width = x.shape
    rank, height = G.shape[1:]
    ranks = min(64, max(16, triton.next_power_of_2(rank)))
    warps = 2 if rank < 32 else 4
    with torch.cuda.device_of(y):
        _low_rank_kernel[(users, triton.cdiv(n, 16))](
            y, x, X, G, n, rank, X.stride(0), G.stride(0), one, width, height, 16, ranks, 64, precision(),
            num_warps=warps,
        )  # fmt: skip


@triton.jit
def _weights(
    qkv, keep, bias, user, head, L, scale, HEADS: tl.constexpr, d: tl.constexpr, TOKENS: tl.constexpr,
    BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Queries, keys, values, attention weights and what is visible, of one head of one user."""
    token = tl.arange(0, TOKENS)
    real = token < L
    at = qkv + (user * L + token[:, None]) * 3 * HEADS * d + head * d + tl.arange(0, d)[None, :]
    q = tl.load(at, mask=real[:, None], other=0.0)
    k = tl.load(at + HEADS * d, mask=real[:, None], other=0.0)
    v = tl.load(at + 2 * HEADS * d, mask=real[:, None], other=0.0)
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if BIAS:
        cell = (user * L + token[:, None]) * L + token[None, :]
        logits += tl.load(bias + cell, mask=real[:, None] & real[None, :], other=0.0)
    seen = tl.load(keep + user * L + token, mask=real, other=0) != 0
    visible = seen[None, :] & (token[None, :] <= token[:, None])
    logits = tl.where(visible, logits, -1e9)
    logits = tl.where(real[None, :], logits, -float("inf"))
    p = tl.exp(logits - tl.max(logits, 1)[:, None])
    return q, k, v, p / tl.sum(p, 1)[:, None], visible


@triton.jit
def _kept(seed, program, dropout, TOKENS: tl.constexpr):
    """What dropout multiplies the weights by: 0 or 1 / (1 - dropout)."""
    token = tl.arange(0, TOKENS)
    drawn = tl.rand(tl.load(seed), (program * TOKENS + token[:, None]) * TOKENS + token[None, :])
    return tl.where(drawn < dropout, 0.0, 1 / (1 - dropout))


@triton.jit(do_not_specialize=["L"])
def _attend_forward(
    out, qkv, keep, bias, seed, L, scale, dropout, HEADS: tl.constexpr, d: tl.constexpr, TOKENS: tl.constexpr,
    BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    user, head = program // HEADS, program % HEADS
    _q, _k, v, p, _visible = _weights(qkv, keep, bias, user, head, L, scale, HEADS, d, TOKENS, BIAS, PRECISION)
    if DROPOUT:
        p *= _kept(seed, program, dropout, TOKENS)
    token = tl.arange(0, TOKENS)
    at = out + (user * L + token[:, None]) * HEADS * d + head * d + tl.arange(0, d)[None, :]
    tl.store(at, tl.dot(p, v, input_precision=PRECISION), mask=(token < L)[:, None])


@triton.jit(do_not_specialize=["L"])
def _attend_backward(
    back, back_bias, gradient, qkv, keep, bias, seed, L, scale, dropout, HEADS: tl.constexpr, d: tl.constexpr,
    TOKENS: tl.constexpr, BIAS: tl.constexpr, BACK_BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    user, head = program // HEADS, program % HEADS
    q, k, v, p, visible = _weights(qkv, keep, bias, user, head, L, scale, HEADS, d, TOKENS, BIAS, PRECISION)
    token, column = tl.arange(0, TOKENS), tl.arange(0, d)
    real = token < L
    given = tl.load(
        gradient + (user * L + token[:, None]) * HEADS * d + head * d + column[None, :], mask=real[:, None], other=0.0
    )
    used = p
    back_p = tl.dot(given, tl.trans(v), input_precision=PRECISION)
    if DROPOUT:
        kept = _kept(seed, program, dropout, TOKENS)
        used = p * kept
        back_p *= kept
    logits = p * (back_p - tl.sum(back_p * p, 1)[:, None])
    logits = tl.where(visible & real[:, None], logits, 0.0)
    if BACK_BIAS:
        cell = ((user * HEADS + head) * L + token[:, None]) * L + token[None, :]
        tl.store(back_bias + cell, logits, mask=real[:, None] & real[None, :])
    at = back + (user * L + token[:, None]) * 3 * HEADS * d + head * d + column[None, :]
    tl.store(at, tl.dot(logits, k, input_precision=PRECISION) * scale, mask=real[:, None])
    tl.store(at + HEADS * d, tl.dot(tl.trans(logits), q, input_precision=PRECISION) * scale, mask=real[:, None])
    tl.store(at + 2 * HEADS * d, tl.dot(tl.trans(used), given, input_precision=PRECISION), mask=real[:, None])


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, heads: int, keep: Tensor, bias: Tensor | None, dropout: float, seed: Tensor
    ) -> Tensor:
        users, length, width = qkv.shape[0], qkv.shape[-2], qkv.shape[-1] // (3 * heads)
        ctx.save_for_backward(qkv, keep, bias, seed)
        tokens = max(16, triton.next_power_of_2(length))
        ctx.numbers = (length, width**-0.5, dropout, heads, width, tokens)
        out = qkv.new_empty(users, length, heads * width)
        with torch.cuda.device_of(qkv):
            _attend_forward[(users * heads,)](
                out, qkv, keep, bias, seed, *ctx.numbers, bias is not None, dropout > 0, precision(),
                num_warps=ctx.numbers[-1] // 16,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, Tensor | None, None, None]:
        qkv, keep, bias, seed = ctx.saved_tensors
        length, _, dropout, heads, _, _ = ctx.numbers
        back, wanted = torch.empty_like(qkv), ctx.needs_input_grad[3]
        back_bias = qkv.new_empty(len(qkv), heads, length, length) if wanted else None
        with torch.cuda.device_of(qkv):
            _attend_backward[(len(qkv) * heads,)](
                back, back_bias, gradient.contiguous(), qkv, keep, bias, seed, *ctx.numbers,
                bias is not None, wanted, dropout > 0, precision(), num_warps=ctx.numbers[-1] // 16,
            )  # fmt: skip
        return back, None, None, None if back_bias is None else back_bias.sum(1), None, None


def attend(
    qkv: Tensor, heads: int, keep: Tensor, bias: Tensor | None = None, at: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """:func:`metarec.functional.attend`, in one kernel where a user's history fits into one program."""
    width = qkv.shape[-1] // (3 * heads)
    if at is not None or qkv.ndim != 3 or qkv.shape[-2] > LONGEST or width not in (16, 32, 64, 128):
        return attention.attend(qkv, heads, keep, bias, at, dropout)
    seed = torch.randint(2**31 - 1, (1,), device=qkv.device)
    own_bias = None if bias is None else bias.contiguous()
    out: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
        qkv.contiguous(), heads, keep.contiguous().to(torch.uint8), own_bias, dropout, seed
    )
    return out


@triton.jit
def _normal(x, user, n, eps, D: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """One user's rows at mean 0 and variance 1, one over their standard deviations, and which cells are real."""
    token, column = tl.arange(0, TOKENS), tl.arange(0, COLUMNS)
    cells = (token < n)[:, None] & (column < D)[None, :]
    at = (user * n + token[:, None]) * D + column[None, :]
    value = tl.load(x + at, mask=cells, other=0.0)
    centred = tl.where(cells, value - (tl.sum(value, 1) / D)[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    return centred * inverse[:, None], inverse, cells, at


@triton.jit(do_not_specialize=["n"])
def _norm_forward(out, x, weight, bias, n, eps, D: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    user, column = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    normal, _inverse, cells, at = _normal(x, user, n, eps, D, TOKENS, COLUMNS)
    scale = tl.load(weight + user * D + column, mask=column < D, other=0.0)
    shift = tl.load(bias + user * D + column, mask=column < D, other=0.0)
    tl.store(out + at, normal * scale[None, :] + shift[None, :], mask=cells)


@triton.jit(do_not_specialize=["n"])
def _norm_backward(
    back, back_weight, back_bias, gradient, x, weight, n, eps, D: tl.constexpr, TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    user, column = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    normal, inverse, cells, at = _normal(x, user, n, eps, D, TOKENS, COLUMNS)
    given = tl.load(gradient + at, mask=cells, other=0.0)
    tl.store(back_weight + user * D + column, tl.sum(given * normal, 0), mask=column < D)
    tl.store(back_bias + user * D + column, tl.sum(given, 0), mask=column < D)
    given *= tl.load(weight + user * D + column, mask=column < D, other=0.0)[None, :]
    along = tl.sum(given * normal, 1) / D
    change = given - (tl.sum(given, 1) / D)[:, None] - normal * along[:, None]
    tl.store(back + at, change * inverse[:, None], mask=cells)


class _ScaledNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        users, n, width = x.shape
        ctx.numbers = (n, eps, width, max(16, triton.next_power_of_2(n)), triton.next_power_of_2(width))
        ctx.save_for_backward(x, weight)
        out = torch.empty_like(x)
        with torch.cuda.device_of(x):
            _norm_forward[(users,)](out, x, weight, bias, *ctx.numbers)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        back, back_weight, back_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        with torch.cuda.device_of(x):
            _norm_backward[(len(x),)](back, back_weight, back_bias, gradient.contiguous(), x, weight, *ctx.numbers)
        return back, back_weight, back_bias, None


def scaled_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """:func:`metarec.meta.ops.scaled_norm`, in one kernel where a user's rows fit into one program."""
    if x.ndim != 3 or len(shape) != 1 or x.shape[1] > LONGEST or x.shape[2] > 256:
        return ops.scaled_norm(x, shape, weight, bias, eps)
    out: Tensor = _ScaledNorm.apply(  # type: ignore[no-untyped-call]
        x.contiguous(), weight.contiguous(), bias.contiguous(), eps
    )
    return out
