"""LightGCN: vectors smoothed over the graph of who clicked what.

Source: He et al., LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation, SIGIR 2020.
Deviations: the full softmax over the items seen upstream instead of BPR; a cold user, who is no node of the graph, is
read from the clicked items' vectors, as the propagation would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.data.dataset import Dataset
from metarec.files import expect_tensor
from metarec.functional.fusion import FLAT
from metarec.model import Saved, register
from metarec.nn import record
from metarec.recipes.click_log import check_codes
from metarec.recipes.counting import Counts, all_read, numbers, setting
from metarec.recipes.ease import distinct
from metarec.scoring import DenseScores, Scores, UserState
from metarec.types import Examples, Progress
from metarec.versions import kept


@register
class LightGCN(Counts, nn.Module):
    """The mean of a vector and its neighbours' neighbours', ``e^(k+1)_u = sum_i e^(k)_i / sqrt(n_u n_i)``.

    Args:
        data: the upstream side of a split: the graph.
        dim: D.
        layers: K, how often vectors are passed on.
        seed: of the initial vectors.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> model = LightGCN(up, dim=8)
        >>> [step.epoch for step in model.train_on_edges(epochs=2)][-1]
        2
    """

    user: Tensor
    item: Tensor
    norm: Tensor
    degree: Tensor
    known: Tensor

    def __init__(self, data: Dataset, *, dim: int = 64, layers: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.attach(data)
        user = torch.unique(torch.from_numpy(data.user), return_inverse=True)[1]
        user, item = torch.unique(torch.stack([user, torch.from_numpy(data.item)]), dim=1)
        generator = torch.Generator().manual_seed(seed)
        users = 0.1 * torch.randn(int(user.max()) + 1, dim, generator=generator)
        items = 0.1 * torch.randn(data.catalog.size, dim, generator=generator)
        self._begin(user, item, users, items, data.warm)
        self.layers, self.seed = layers, seed
        record.expect(self, "LightGCN")
        self.fitted_until = float(data.time.max())

    def _begin(self, user: Tensor, item: Tensor, users: Tensor, items: Tensor, warm: NDArray[Any]) -> None:
        """Note the graph's edges and the vectors."""
        clicked, degree = torch.bincount(user).float(), torch.bincount(item, minlength=len(items)).float()
        self.register_buffer("user", user, persistent=False)
        self.register_buffer("item", item, persistent=False)
        self.register_buffer("norm", (clicked[user] * degree[item]).rsqrt().unsqueeze(1), persistent=False)
        self.register_buffer("degree", degree, persistent=False)
        self.register_buffer("known", torch.from_numpy(warm.copy()), persistent=False)
        self.users, self.items = nn.Parameter(users), nn.Parameter(items)

    def propagated(self) -> tuple[Tensor, list[Tensor]]:
        """Users' final vectors (u, D), and the items' after each layer, each (I, D)."""
        user: Tensor = self.users
        item: Tensor = self.items
        users, items = user, [item]
        for _ in range(self.layers):
            next_user = torch.zeros_like(user).index_add(0, self.user, self.norm * item[self.item])
            item = torch.zeros_like(item).index_add(0, self.item, self.norm * user[self.user])
            user = next_user
            users = users + user
            items.append(item)
        return users / (self.layers + 1), items

    def train_on_edges(
        self, *, epochs: int = 100, lr: float = 3e-3, edges: int = 4096, decay: float = 1e-4
    ) -> Iterator[Progress]:
        """Cross-entropy of each click among the items seen upstream; Adam with weight decay."""
        optimizer = torch.optim.Adam(self.parameters(), lr=lr, weight_decay=decay)
        generator = torch.Generator().manual_seed(self.seed)
        count, total = len(self.user), len(self.users)
        for epoch in range(epochs):
            for edge in torch.randperm(count, generator=generator).to(self.user.device).split(edges):
                optimizer.zero_grad(set_to_none=True)
                users, items = self.propagated()
                scores = users[self.user[edge]] @ torch.stack(items).mean(0).T
                loss = F.cross_entropy(scores.masked_fill(~self.known, -torch.inf), self.item[edge])
                loss.backward()
                optimizer.step()
            yield Progress("LightGCN", epoch + 1, epochs, total, total, float(loss.detach()), 0.0)
        record.finish(self, "LightGCN")

    def item_mask(self) -> Tensor:
        """(I,) bool, the items clicked upstream."""
        return self.known

    def read(self, query: Examples) -> dict[str, Tensor]:
        """``history``, (N, L) int32; active is who clicked an item of the graph."""
        history = all_read(query)
        return {"active": self.known.to(history.device)[history.long()].any(1), "history": history}

    @torch.no_grad()
    def scores(self, state: UserState) -> Scores:
        """The products of the items' vectors and the user's, which is read from those of the clicked items."""
        table: _Table = kept(self, "table", self._table)
        history = state.tensors["history"].to(self.known.device).long()
        own, real, _ = distinct(torch.where(self.known[history], history, -1))
        each = table.read[own.clamp(min=0)].double() * real.unsqueeze(2)
        summed = each.cumsum(1)[:, -1]  # in the order of the items, however many the others have clicked
        return GraphScores(table, summed / real.sum(1, keepdim=True).clamp(min=1).sqrt())

    @torch.no_grad()
    def _table(self) -> _Table:
        layers = self.propagated()[1]
        items = torch.stack(layers).mean(0)
        read = torch.stack(layers[: self.layers]).sum(0) / (self.layers + 1)
        own = items[self.known].double()
        mean = own.sum(0) / max(1, len(own))
        centred = own - mean
        return _Table(
            items,
            read * self.degree.clamp(min=1).rsqrt().unsqueeze(1),
            self.known,
            mean,
            centred.T @ centred / max(1, len(own)),
            float(items.double().norm(dim=1).max()),
        )

    def _grow(self, items: int) -> None:
        more = items - len(self.known)
        for name in ("degree", "known"):
            own = getattr(self, name)
            setattr(self, name, torch.cat([own, own.new_zeros(more)]))
        self.users = nn.Parameter(self.users.detach().clone())
        self.items = nn.Parameter(F.pad(self.items.detach(), (0, 0, 0, more)))

    def _told(self) -> Saved:
        """The graph's edges and all vectors, so that it can be trained on."""
        settings = {
            "layers": self.layers,
            "seed": self.seed,
            "trained": list(record.record_of(self).trained),
            "untrained": list(record.record_of(self).untrained),
        }
        vectors = {"users": self.users.detach().float(), "items": self.items.detach().float()}
        return Saved(settings, {"user": self.user.int(), "item": self.item.int(), **vectors})

    def _take(self, saved: Saved) -> None:
        layers, seed = (setting(saved.settings, name, int) for name in ("layers", "seed"))
        if not 0 < (layers or 0) < 100 or seed is None:
            raise ValueError(f"expected layers in 1..99 and a seed, got {layers} and {seed}")
        self.layers, self.seed = layers, seed
        self._begin(*_graph(saved, len(self.warm), self.warm), self.warm)
        for name in ("trained", "untrained"):
            vars(self)[name] = _stages(saved.settings[name], name)
        record.remake(self)


def _stages(names: object, what: str) -> tuple[str, ...]:
    """Stages of training in a file."""
    if not isinstance(names, list) or set(names) - {"LightGCN"}:
        raise ValueError(f"{what}: expected [] or ['LightGCN'], got {names!r}")
    return tuple(names)


def _graph(saved: Saved, size: int, warm: NDArray[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The edges and the vectors in a file, checked."""
    user = expect_tensor(saved.tensors, "user", torch.int32, 1)
    item = torch.from_numpy(numbers(saved.tensors, "item", torch.int32, len(user)))
    users = expect_tensor(saved.tensors, "users", torch.float32, 2)
    width = users.shape[1]
    numbers(saved.tensors, "users", torch.float32, *users.shape)
    items = torch.from_numpy(numbers(saved.tensors, "items", torch.float32, size, width))
    check_codes("item", item.numpy(), size)
    edge = user.long() * size + item
    if not width or not len(edge) or (edge.diff() <= 0).any() or torch.unique(user).tolist() != list(range(len(users))):
        raise ValueError(f"user and item must be edges in ascending order, of each of {len(users)} users")
    if not warm[item.numpy()].all():
        raise ValueError("item must be items clicked upstream")
    return user.long(), item.long(), users, items


@dataclass(frozen=True, eq=False)
class _Table:
    """What scoring needs of a graph: vectors to be read as (I, D), and the items' own, their moments and longest."""

    items: Tensor
    read: Tensor
    known: Tensor
    mean: Tensor
    covariance: Tensor
    longest: float


@dataclass(frozen=True, eq=False)
class GraphScores:
    """Scores of N users as products of vectors.

    Attributes:
        table: the items.
        user: (N, D) float64.
    """

    table: _Table
    user: Tensor

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users."""
        return type(self)(self.table, self.user[users])

    def error(self) -> Tensor:
        """(N,) float64, a bound on a product of D rounded numbers."""
        length: Tensor = self.user.norm(dim=1)
        return length * (self.table.longest * (self.user.shape[1] + 2) * 2**-23)

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) of a piece of the catalogue."""
        items = self.table.items[start:stop]
        products: Tensor = self.user.to(items.dtype) @ items.T
        return products

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K)."""
        terms: Tensor = self.table.items[codes].double() * self.user.unsqueeze(1)
        total: Tensor = terms.cumsum(2)[..., -1]  # in one order, however many the codes
        return total

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation over the known items, from the mean and the covariance of their vectors."""
        mean = self.user @ self.table.mean
        deviation = ((self.user @ self.table.covariance) * self.user).sum(1).clamp(min=0).sqrt()
        for user in (deviation <= FLAT * mean.abs()).nonzero().flatten().tolist():  # flat, or nearly so
            own = self.table.items.double() @ self.user[user]
            mean[user], deviation[user] = torch.cat(DenseScores(own.unsqueeze(0), self.table.known).moments())
        return mean, deviation
