"""Cold-start item embeddings, generated from features and the nearest warm items."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.functional.appending import appended
from metarec.functional.neighbour_index import near_items
from metarec.functional.neighbours_of_added import nearest_of_added
from metarec.functional.remembering import Remembered
from metarec.nn.items import IdItems, Items, TableItems, has_rows, more_items
from metarec.nn.last_rows import rows_from
from metarec.types import Modality

Variant = Literal["metarec", "paper"]
_neighbours: Remembered[Tensor] = Remembered()


def warm_neighbours(
    modalities: Sequence[Modality], warm: Tensor, k: int, device: torch.device | str | None = None
) -> Tensor:
    """The k warm items nearest to each item by all its features, (I, k); 0 where there are fewer.

    Args:
        modalities: the features.
        warm: (I,) bool.
        k: how many.
        device: where they are looked for; by default where the features are.

    Example:
        >>> text = Modality("text", torch.tensor([[0.0], [1.0], [2.0]]), torch.arange(3) > 0)
        >>> warm_neighbours([text], torch.arange(3) > 0, k=1)[1:].tolist()
        [[2], [1]]
    """
    described = torch.stack([m.present for m in modalities]).any(0) & (torch.arange(len(warm), device=warm.device) > 0)
    allowed, features = described & warm, [m.features for m in modalities]
    told = k, str(device), allowed.cpu().numpy().tobytes()  # several learners ask the same

    def find() -> Tensor:
        there = torch.device(device or warm.device)
        found = near_items(torch.cat([each.to(there) for each in features], dim=1), allowed.to(there), k)
        return found.to(warm.device)

    return _neighbours.of(features, told, find)


class ColdItemGenerator(nn.Module):
    """Generates the vectors of cold items from their features; warm items keep their own.

    Per modality ``e_i = W f_i + sum_k a_k W f_k`` over the K nearest warm items k of i by the dot product of all
    features, averaged over the modalities that the item has. ``a = softmax_k(leaky_relu(v . [W f_i ; W f_k]))``.
    ``variant="paper"`` is MML's form (Pan et al., CIKM 2022, as released): no leaky_relu, so that the item's own term
    cancels in the softmax, and a ReLU at the end, so that no generated vector has a negative entry.

    Args:
        items: the items it stands in front of.
        modalities: the features that vectors are generated from.
        warm: (I,) bool, items that training has seen; they are the neighbours, and the rest with features is cold.
        dim: D.
        neighbours: K, or the neighbours themselves, (I, K) item codes; see :func:`warm_neighbours`.
        probability: with which a warm item is treated as cold in training, in all its roles at once (as history,
            target and candidate, or a generated vector would only ever grow).
        variant: ``"metarec"`` or ``"paper"``.

    Raises:
        ValueError: if there is no modality.

    Example:
        >>> from metarec.nn import IdItems
        >>> warm = torch.tensor([False, True, True, True, False])
        >>> text = Modality("text", torch.randn(5, 3), torch.arange(5) > 0)
        >>> items = ColdItemGenerator(IdItems(5, 8, known=warm), [text], warm, dim=8)
        >>> items.known.tolist()   # the cold item 4 can be ranked
        [False, True, True, True, True]
        >>> items(torch.tensor([[1, 4]])).shape
        torch.Size([1, 2, 8])
    """

    adapts_rows = True
    neighbours: Tensor
    cold: Tensor
    replaceable: Tensor
    known: Tensor

    def __init__(
        self,
        items: Items,
        modalities: Sequence[Modality],
        warm: Tensor,
        *,
        dim: int = 64,
        neighbours: int | Tensor = 5,
        probability: float = 0.1,
        variant: Variant = "metarec",
    ) -> None:
        super().__init__()
        if not modalities:
            raise ValueError("ColdItemGenerator: needs at least one modality to generate vectors from, got none")
        self.items = items
        self.probability = probability
        self.variant = variant
        self.named = tuple(modality.name for modality in modalities)
        self.projections = nn.ModuleList(nn.Linear(m.dim, dim) for m in modalities)
        self.attentions = nn.ModuleList(nn.Linear(2 * dim, 1) for _ in modalities)
        for index, modality in enumerate(modalities):
            projection = cast(nn.Linear, self.projections[index])
            nn.init.normal_(projection.weight, std=0.02)
            nn.init.zeros_(projection.bias)
            self.register_buffer(f"features_{index}", modality.features, persistent=False)
            self.register_buffer(f"present_{index}", modality.present, persistent=False)
        present = torch.stack([m.present for m in modalities]).any(0)
        described = present & (torch.arange(len(warm), device=warm.device) > 0)
        near = warm_neighbours(modalities, warm, neighbours) if isinstance(neighbours, int) else neighbours
        self.register_buffer("neighbours", near, persistent=False)
        self.register_buffer("cold", described & ~warm, persistent=False)
        self.register_buffer("replaceable", described & warm, persistent=False)
        self.register_buffer("known", items.known | self.cold, persistent=False)

    def with_more(self, size: int, modalities: Mapping[str, Modality]) -> ColdItemGenerator:
        """The same generator, its weights shared, in front of more items; the new ones are cold.

        Vectors of the items that it has do not change: neighbours are warm items only.

        Args:
            size: I, rows of the larger catalogue.
            modalities: the features of the items that it has, and of others after them, by name.

        Raises:
            TypeError: if what stands behind it takes in no items, or some of its features are missing.
        """
        items = more_items(self.items, size, modalities)
        if not set(self.named) <= set(modalities):
            raise TypeError(f"add_items: nothing says how the features {self.named} of new items are standardised")
        out = copy.copy(self)
        out._buffers, out._modules = dict(self._buffers), {**self._modules, "items": cast(nn.Module, items)}
        before, device = len(self.cold), self.cold.device
        for index, modality in enumerate(modalities[name] for name in self.named):
            features = self.get_buffer(f"features_{index}")
            out._buffers[f"features_{index}"] = appended(features, modality.rows_from(before))
            out._buffers[f"present_{index}"] = modality.present.to(device)
        described = torch.stack([modalities[name].present for name in self.named]).any(0).to(device)
        out.cold = torch.cat([self.cold, described[before:]])
        out.replaceable = F.pad(self.replaceable, (0, len(described) - before))
        near = nearest_of_added(self._features(), out._features(), out.replaceable, self.neighbours.shape[1])
        out.neighbours = appended(self.neighbours, near)
        out.known = items.known | out.cold
        return out

    def _features(self) -> list[Tensor]:
        return [self.get_buffer(f"features_{index}") for index in range(len(self.named))]

    def rows_from(self, first: int) -> Tensor | None:
        """The last rows of the table, (I - first, D), none of them drawn; None if the items do not give theirs."""
        own = rows_from(self.items, first)
        if own is None:
            return None
        return torch.where(self.cold[first:].unsqueeze(-1), self._generated_from(first), own)

    def _generated_from(self, first: int) -> Tensor:
        """The last rows of :meth:`generated`, by the features of these and of their neighbours alone."""
        near = self.neighbours[first:]
        codes = torch.cat([torch.arange(first, first + len(near), device=near.device), near.flatten()])
        if len(codes) >= len(self.neighbours):
            return self.generated()[first:]
        place = torch.arange(len(near), len(codes), device=near.device).view_as(near)
        present = [self.get_buffer(f"present_{index}")[codes] for index in range(len(self.named))]
        return self._generate([features[codes] for features in self._features()], present, place, near > 0)

    @torch.no_grad()
    def begin_rows(self, new: Tensor, vectors: Tensor) -> None:
        """Know more items as warm, in place: their own vectors begin as ``vectors`` (I, D), where the items have rows.

        Where they are made from features alone, nothing changes: the generator goes on for these items. Neighbours stay
        the same items, so no other item's vector changes.

        Args:
            new: (I,) bool.
            vectors: e.g. those that were generated.
        """
        if not has_rows(self.items):
            return
        cast(IdItems, self.items).begin_rows(new, vectors)
        self.replaceable = self.replaceable | (self.cold & new)
        self.cold = self.cold & ~new
        self.known = self.items.known | self.cold

    def generated(self) -> Tensor:
        """Generated vectors of the whole catalogue, (I, D); zero for items without features."""
        present = [self.get_buffer(f"present_{index}") for index in range(len(self.named))]
        return self._generate(self._features(), present, self.neighbours, self.neighbours > 0)

    def _generate(self, features: Sequence[Tensor], present: Sequence[Tensor], near: Tensor, real: Tensor) -> Tensor:
        """Of n items, vectors (m, D) of the first m.

        Args:
            features: (n, F) by modality.
            present: (n,) bool by modality, who has them.
            near: (m, K) places of neighbours among the n.
            real: (m, K) bool, which of these are neighbours.
        """
        total: Tensor | float = 0.0
        count: Tensor | float = 0.0
        for index, (projection, attention) in enumerate(zip(self.projections, self.attentions, strict=True)):
            usable, has = present[index][near] & real, present[index][: len(near)]
            vectors = self._one_modality(projection(features[index]), usable, cast(nn.Linear, attention), near)
            total = total + vectors * has.unsqueeze(-1)
            count = count + has.to(vectors.dtype)
        mean: Tensor = total / torch.as_tensor(count).clamp(min=1).unsqueeze(-1)
        return mean

    def _one_modality(self, each: Tensor, usable: Tensor, attention: nn.Linear, near: Tensor) -> Tensor:
        """(n, D) projections -> (m, D) of the first m plus the attended neighbours'."""
        own = each[: len(near)]
        mine, theirs = (each @ attention.weight.view(2, -1).T).split(1, -1)  # v . [W f_i ; W f_k], item by item
        logits = mine[: len(near)] + F.embedding(near, theirs).squeeze(-1) + attention.bias
        if self.variant == "metarec":
            logits = F.leaky_relu(logits, 0.2)
        weights = logits.masked_fill(~usable, torch.finfo(logits.dtype).min).softmax(-1) * usable
        if torch.is_grad_enabled():  # embedding_bag has no second derivative by its weights
            out = own + (weights.unsqueeze(-1) * F.embedding(near, each)).sum(1)
        else:
            out = own + F.embedding_bag(near, each, per_sample_weights=weights, mode="sum")
        return F.relu(out) if self.variant == "paper" else out

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of item codes (...)."""
        return F.embedding(ids, self.table(), padding_idx=0)

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        """Scores (..., I) of states (..., D), or (..., C) against ids (C,)."""
        return self.frozen().scores(state, ids)

    def table(self) -> Tensor:
        """(I, D): generated rows for cold items, the items' own otherwise. In training each call draws anew."""
        takes = self.cold
        if self.training and self.probability > 0:
            drawn = torch.rand(len(takes), device=takes.device) < self.probability
            takes = takes | (drawn & self.replaceable)
        return torch.where(takes.unsqueeze(-1), self.generated(), self.items.table())

    def frozen(self) -> TableItems:
        """The table, drawn and computed once: an item is cold in all its roles, or in none."""
        return TableItems(self.table(), self.known)
