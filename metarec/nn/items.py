"""Item embeddings: a trained table, projected features, or a precomputed table.

Every class here answers the same four questions: the vectors of some ids, the scores of a state against the whole
catalogue, which items it knows, and ``frozen()``, the same items with their vectors computed once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.functional.appending import appended
from metarec.types import Modality


class Items(Protocol):
    """Interface of item embeddings.

    A class whose vectors are the same at every call says ``deterministic = True``; without it, each loss computes the
    whole catalogue once, so that history, target and candidates are of one draw.

    Attributes:
        known: (I,) bool, the items whose vectors mean something.
        adapts_rows: whether a user adapts single rows (a table) rather than shared weights (a projection).
    """

    known: Tensor
    adapts_rows: bool

    def __call__(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of item codes (...)."""
        ...

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        """Scores of states (..., D) against the whole catalogue, (..., I), or against ids (C,), (..., C)."""
        ...

    def table(self) -> Tensor:
        """Vectors of the whole catalogue, (I, D)."""
        ...

    def frozen(self) -> Items:
        """The same vectors, computed once, with their gradients but without parameters of their own."""
        ...


def drawn_once(items: Items) -> Items:
    """Draw stochastic item embeddings once, so that all lookups of a loss agree; deterministic ones stay as they are.

    A subclass that overrides ``forward`` or ``frozen`` of a deterministic class must say so again.

    Example:
        >>> table = TableItems(torch.eye(3), torch.ones(3, dtype=torch.bool))
        >>> drawn_once(table) is table
        True
    """
    for names in (vars(items), *map(vars, type(items).__mro__)):
        if names.get("deterministic"):
            return items
        if "frozen" in names:
            break
        if "forward" in names:  # overridden in a subclass whose frozen() does not know of it
            return TableItems(items(torch.arange(len(items.known), device=items.known.device)), items.known)
    return items.frozen()


class TableItems(nn.Module):
    """Item vectors given as a tensor; gradients flow to whatever made it.

    Args:
        table: (I, D).
        known: (I,) bool.

    Example:
        >>> TableItems(torch.eye(3), torch.ones(3, dtype=torch.bool))(torch.tensor([2]))
        tensor([[0., 0., 1.]])
    """

    adapts_rows = True
    deterministic = True
    weight: Tensor
    known: Tensor

    def __init__(self, table: Tensor, known: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", table, persistent=False)
        self.register_buffer("known", known, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of item codes (...)."""
        return F.embedding(ids, self.weight, padding_idx=0)

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        """Scores (..., I) of states (..., D), or (..., C) against ids (C,)."""
        return state @ (self.weight if ids is None else self.weight[ids]).T

    def table(self) -> Tensor:
        """The table, (I, D)."""
        return self.weight

    def rows_from(self, first: int) -> Tensor:
        """The last rows of the table, (I - first, D)."""
        return self.weight[first:]

    def frozen(self) -> TableItems:
        """Itself: there is nothing left to compute."""
        return self


class IdItems(nn.Module):
    """One trained vector per item. It knows only the items that training has seen.

    Args:
        size: I, catalogue rows including padding.
        dim: D.
        known: (I,) bool, items seen in training; default: all but padding.

    Example:
        >>> IdItems(size=5, dim=3)(torch.tensor([[1, 4]])).shape
        torch.Size([1, 2, 3])
    """

    adapts_rows = True
    deterministic = True
    known: Tensor

    def __init__(self, size: int, dim: int, known: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dim))
        nn.init.normal_(self.weight, std=0.02)
        with torch.no_grad():
            self.weight[0] = 0
        default = torch.arange(size, device=None if known is None else known.device) > 0
        self.register_buffer("known", default if known is None else known & default, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of item codes (...)."""
        return F.embedding(ids, self.weight, padding_idx=0)

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        """Scores (..., I) of states (..., D), or (..., C) against ids (C,)."""
        return state @ (self.weight if ids is None else self.weight[ids]).T

    def table(self) -> Tensor:
        """The table, (I, D)."""
        return self.weight

    def with_more(self, size: int, modalities: Mapping[str, Modality]) -> IdItems:
        """The same items and more after them, which have no vector yet and are not known; weights are copied."""
        out = copy.copy(self)
        out._buffers, out._parameters = dict(self._buffers), dict(self._parameters)
        more = size - len(self.weight)
        out.weight = nn.Parameter(F.pad(self.weight.detach(), (0, 0, 0, more)), self.weight.requires_grad)
        out.known = F.pad(self.known, (0, more))
        return out

    def rows_from(self, first: int) -> Tensor:
        """The last rows of the table, (I - first, D)."""
        return self.weight[first:]

    @torch.no_grad()
    def begin_rows(self, new: Tensor, vectors: Tensor) -> None:
        """Know more items, in place: those of ``new`` (I,) bool begin with their ``vectors`` (I, D)."""
        self.weight[new] = vectors[new].to(self.weight)
        self.known = self.known | new

    def frozen(self) -> TableItems:
        """The table without the parameter."""
        return TableItems(self.weight, self.known)


class FeatureItems(nn.Module):
    """Item vectors projected from features, ``W f + b``; an item without features gets ``b``.

    Args:
        modality: the features, which are not trained, and which items have them.
        dim: D.
        train_features: train the features too (the released MML code does), starting from the given ones.

    Example:
        >>> text = Modality("text", torch.randn(5, 7), torch.tensor([False, True, True, True, True]))
        >>> items = FeatureItems(text, dim=3)
        >>> items(torch.tensor([1, 2])).shape, items.scores(torch.zeros(2, 3)).shape
        (torch.Size([2, 3]), torch.Size([2, 5]))
    """

    adapts_rows = False
    deterministic = True
    known: Tensor
    features: Tensor

    def __init__(self, modality: Modality, dim: int, *, train_features: bool = False) -> None:
        super().__init__()
        self.named = modality.name
        if train_features:
            self.features = nn.Parameter(modality.features.clone())
        else:
            self.register_buffer("features", modality.features, persistent=False)
        self.register_buffer("known", modality.present, persistent=False)
        self.projection = nn.Linear(modality.dim, dim)
        nn.init.normal_(self.projection.weight, std=0.02)
        nn.init.zeros_(self.projection.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of item codes (...)."""
        out: Tensor = self.projection(F.embedding(ids, self.features, padding_idx=0))
        return out

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        """Scores (..., I) of states (..., D), or (..., C) against ids (C,).

        By way of F, so that a user's own W never makes a table per user.
        """
        features = self.features if ids is None else self.features[ids]
        return (state @ self.projection.weight) @ features.T + (state @ self.projection.bias).unsqueeze(-1)

    def table(self) -> Tensor:
        """The projected catalogue, (I, D)."""
        out: Tensor = self.projection(self.features)
        return out

    def with_more(self, size: int, modalities: Mapping[str, Modality]) -> FeatureItems:
        """The same projection, shared, of more items.

        Args:
            size: I, rows of the larger catalogue.
            modalities: the features of the items that it has, and of others after them, by name, as its own were made.

        Raises:
            TypeError: if its own are not among them.
        """
        if self.named not in modalities:
            raise TypeError(f"add_items: nothing says how the features {self.named!r} of new items are standardised")
        modality = modalities[self.named]
        out = copy.copy(self)
        out._buffers, out._parameters = dict(self._buffers), dict(self._parameters)
        more = modality.rows_from(len(self.features))
        if isinstance(self.features, nn.Parameter):
            both = torch.cat([self.features.detach(), more.to(self.features)])
            out.features = nn.Parameter(both, self.features.requires_grad)
        else:
            out.features = appended(self.features, more)
        out.known = modality.present.to(self.known.device)
        return out

    def rows_from(self, first: int) -> Tensor:
        """The last rows of the projected catalogue, (I - first, D)."""
        out: Tensor = self.projection(self.features[first:])
        return out

    def frozen(self) -> TableItems:
        """The projected catalogue, computed once."""
        return TableItems(self.table(), self.known)


def has_rows(items: object) -> bool:
    """Whether some of what makes item vectors has a trained row for each item.

    Example:
        >>> has_rows(IdItems(size=3, dim=2)), has_rows(TableItems(torch.eye(3), torch.ones(3, dtype=torch.bool)))
        (True, False)
    """
    return isinstance(items, nn.Module) and any(isinstance(part, IdItems) for part in items.modules())


def more_items(items: Items, size: int, modalities: Mapping[str, Modality]) -> Items:
    """The same items and more after them, by their method ``with_more(size, modalities)``.

    Args:
        items: of any class.
        size: I, rows of the larger catalogue.
        modalities: the features of all items by name, standardised as those of the learner were.

    Raises:
        TypeError: if they take in no more.

    Example:
        >>> more_items(IdItems(size=3, dim=2), 5, {}).known.tolist()
        [False, True, True, False, False]
    """
    if not hasattr(items, "with_more"):
        raise TypeError(f"add_items: {type(items).__name__} take in no items; give them with_more(size, modalities)")
    out: Items = items.with_more(size, modalities)
    return out
