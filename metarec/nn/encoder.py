"""Causal self-attention over a history: the state after every prefix, in one pass."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.functional.attention import attend, rows

ALIGN = 4  # matrix kernels are slow on row lengths that are no multiple of it


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each followed by dropout, the residual and a layer norm (post-norm).

    Args:
        dim: D.
        heads: attention heads; must divide D.
        feedforward: width of the hidden layer.
        dropout: of hidden layers and attention weights.
    """

    broadcasts = ()
    attend = staticmethod(attend)

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=1e-12)
        self.feedforward_in = nn.Linear(dim, feedforward)
        self.feedforward_out = nn.Linear(feedforward, dim)
        self.feedforward_norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keep: Tensor, bias: Tensor | None, at: Tensor | None = None) -> Tensor:
        """(..., L, D) -> (..., L, D), or (..., Q, D) at positions (..., Q)."""
        dropout = self.dropout.p if self.training else 0.0
        read = self.attend(self.query_key_value(x), self.heads, keep, bias, at, dropout)
        x = x if at is None else rows(x, at)
        x = self.attention_norm(x + self.dropout(self.attention_out(read)))
        hidden = self.feedforward_out(F.gelu(self.feedforward_in(x)))
        out: Tensor = self.feedforward_norm(x + self.dropout(hidden))
        return out


class SequenceEncoder(nn.Module):
    """SASRec-type causal encoder (Kang and McAuley, ICDM 2018), post-norm as in the released MML code.

    ``x = Dropout(LN(item vector + position))``, then blocks of self-attention. Because position l sees positions
    up to l only, one pass gives the state after every prefix. With ``context`` vectors c the attention is
    feature-aware: ``0.001 * (c_i . c_j)`` is added to its logits.

    Args:
        dim: D.
        max_length: longest history L.
        layers: blocks.
        heads: attention heads; must divide ``dim``.
        feedforward: width of the blocks' hidden layer; default 4 * dim.
        dropout: of embeddings, hidden layers and attention weights.

    Raises:
        ValueError: if ``heads`` does not divide ``dim``.

    Example:
        >>> encoder = SequenceEncoder(dim=8, max_length=5)
        >>> encoder(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 3, 8])
    """

    context_scale = 0.001
    broadcasts = ("position",)
    takes_positions = True
    kernel = "post-norm transformer"  # the compiled kernel that computes just this, as long as it is unaltered

    def __init__(
        self,
        dim: int = 64,
        *,
        max_length: int = 50,
        layers: int = 2,
        heads: int = 2,
        feedforward: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"SequenceEncoder: heads must divide dim, got dim={dim} and heads={heads}")
        self.position = nn.Parameter(torch.empty(max_length, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(EncoderBlock(dim, heads, feedforward or 4 * dim, dropout) for _ in range(layers))
        if self.position.is_meta:  # there are no numbers; drawing them loads half of torch
            return
        nn.init.normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def max_length(self) -> int:
        """The longest history."""
        return self.position.shape[-2]

    def unaltered(self) -> SequenceEncoder:
        """A new encoder of the same sizes, without numbers: an engine compares this one with it before it relies on it.

        Example:
            >>> SequenceEncoder(dim=8, max_length=5).unaltered().position.device
            device(type='meta')
        """
        block = cast(EncoderBlock, self.blocks[0])
        return _sized(*self.position.shape, len(self.blocks), block.heads, block.feedforward_in.out_features)

    def forward(self, x: Tensor, keep: Tensor, context: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """State after each prefix, or after those asked for.

        Args:
            x: (..., L, D) item vectors of the history.
            keep: (..., L) bool, False at padding.
            context: (..., L, E) feature vectors for feature-aware attention.
            at: (..., S) positions; the last block runs only there. All L by default.

        Returns:
            (..., S, D).

        Raises:
            ValueError: if L is more than ``max_length``.
        """
        length = x.shape[-2]
        if length > self.max_length:
            raise ValueError(f"SequenceEncoder: history of {length} items, but max_length is {self.max_length}")
        x = self.dropout(self.norm(x + self.position[..., :length, :]))
        bias = None if context is None else self.context_scale * (context @ context.transpose(-2, -1))
        spare = -length % ALIGN
        if spare:
            x, keep = F.pad(x, (0, 0, 0, spare)), F.pad(keep, (0, spare))
            bias = None if bias is None else F.pad(bias, (0, spare, 0, spare))
        few = at if at is not None and at.shape[-1] < length else None
        for number, block in enumerate(self.blocks, 1):
            x = block(x, keep, bias, few if number == len(self.blocks) else None)
        if few is not None:
            return x
        return x[..., :length, :] if at is None else rows(x, at)


@lru_cache(maxsize=32)
def _sized(max_length: int, dim: int, layers: int, heads: int, feedforward: int) -> SequenceEncoder:
    with torch.device("meta"):
        return SequenceEncoder(dim, max_length=max_length, layers=layers, heads=heads, feedforward=feedforward)
