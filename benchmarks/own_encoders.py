"""Encoders of somebody's own, as people write them; for altered_encoders.py and its test."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM = 8


class Own(nn.Module):
    """An encoder that nobody has said anything about: one layer, a sum over what came before, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.m, self.n = nn.Linear(DIM, DIM), nn.LayerNorm(DIM)

    def mixed(self, x: Tensor) -> Tensor:
        """Every row by itself."""
        return torch.tanh(self.m(x))

    def forward(self, x: Tensor, keep: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., L, D) -> (..., L, D)."""
        out: Tensor = self.n(self.mixed(x).cumsum(-2))
        return out


class ReadsWeight(Own):
    """Reads the weight of its layer."""

    def mixed(self, x: Tensor) -> Tensor:
        """Without the bias."""
        return torch.tanh(F.linear(x, self.m.weight))


class Reshapes(Own):
    """Takes all tokens for one batch."""

    def mixed(self, x: Tensor) -> Tensor:
        """(tokens, D) at once."""
        out: Tensor = torch.tanh(self.m(x.reshape(-1, DIM))).reshape(x.shape)
        return out


class Twice(Own):
    """Calls its layer twice."""

    def mixed(self, x: Tensor) -> Tensor:
        """One layer after itself."""
        return torch.tanh(self.m(torch.tanh(self.m(x))))


class Tied(Own):
    """Has its layer under two names, and its weight under a third."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.m
        self.other = nn.Linear(DIM, DIM)
        self.other.weight = self.m.weight

    def mixed(self, x: Tensor) -> Tensor:
        """All three."""
        return torch.tanh(self.other(torch.tanh(self.again(self.m(x)))))


class Listed(Own):
    """Calls its layers from a plain list, by a function that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(DIM, DIM, bias=False)
        self.order, self.act = [self.m, self.second], torch.tanh

    def mixed(self, x: Tensor) -> Tensor:
        """One after the other."""
        for layer in self.order:
            x = self.act(layer(x))
        return x


class Decides(Own):
    """Looks at a number on its way."""

    def mixed(self, x: Tensor) -> Tensor:
        """Another function where the numbers are large."""
        out: Tensor = self.m(x)
        return torch.tanh(out) if out.abs().max().item() > 1 else torch.sigmoid(out)


class Batched(Own):
    """A batch norm over a user's tokens, and a counter; three axes are taken for granted."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.over = nn.BatchNorm1d(DIM)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def mixed(self, x: Tensor) -> Tensor:
        """(B, L, D)."""
        users, length, width = x.shape
        self.seen += 1
        out: Tensor = self.over(torch.tanh(self.m(x)).transpose(1, 2)).transpose(1, 2)
        return out.view(users, length, width)


class Recurrent(Own):
    """One of torch's recurrent layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn: nn.Module = getattr(nn, kind)(DIM, DIM, batch_first=True)

    def mixed(self, x: Tensor) -> Tensor:
        """(B, L, D)."""
        out: Tensor = self.rnn(self.m(x))[0]
        return out


class Convolved(Own):
    """A causal convolution and torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv1d(DIM, DIM, 2)
        self.far = nn.MultiheadAttention(DIM, 2, batch_first=True)

    def mixed(self, x: Tensor) -> Tensor:
        """(B, L, D)."""
        x = x + self.near(F.pad(self.m(x).transpose(1, 2), (1, 0))).transpose(1, 2)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        out: Tensor = self.far(x, x, x, attn_mask=later, need_weights=True)[0]
        return out


OWN: dict[str, Callable[[], nn.Module]] = {
    **{kind.__name__: kind for kind in (Own, ReadsWeight, Reshapes, Twice, Tied, Listed, Decides, Batched, Convolved)},
    **{kind: lambda kind=kind: Recurrent(kind) for kind in ("GRU", "LSTM", "RNN")},  # type: ignore[misc]
}
