"""LightGCN: vectors smoothed over the graph of who clicked what.

Source: He et al., LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation, SIGIR 2020.
Deviations: the full softmax over the items seen upstream instead of BPR; a cold user, who is no node of the graph, is
read from the clicked items' vectors, as the propagation would.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.data.dataset import Dataset
from metarec.functional.histories import seen_items
from metarec.nn import record
from metarec.types import Examples, Progress, Scored, Scorer


class LightGCN(nn.Module):
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

    information = "upstream"
    user: Tensor
    item: Tensor
    norm: Tensor
    degree: Tensor
    known: Tensor

    def __init__(self, data: Dataset, *, dim: int = 64, layers: int = 2, seed: int = 0) -> None:
        super().__init__()
        user = torch.unique(torch.from_numpy(data.user), return_inverse=True)[1]
        user, item = torch.unique(torch.stack([user, torch.from_numpy(data.item)]), dim=1)
        clicked, degree = torch.bincount(user).float(), torch.bincount(item, minlength=data.catalog.size).float()
        self.register_buffer("user", user, persistent=False)
        self.register_buffer("item", item, persistent=False)
        self.register_buffer("norm", (clicked[user] * degree[item]).rsqrt().unsqueeze(1), persistent=False)
        self.register_buffer("degree", degree, persistent=False)
        self.register_buffer("known", torch.from_numpy(data.warm), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        self.users = nn.Parameter(0.1 * torch.randn(len(clicked), dim, generator=generator))
        self.items = nn.Parameter(0.1 * torch.randn(data.catalog.size, dim, generator=generator))
        self.layers, self.seed = layers, seed
        record.expect(self, "LightGCN")
        self.fitted_until = float(data.time.max())

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

    def adapt(self, support: Examples) -> Scorer:
        """Nothing to adapt: the history is all it reads."""
        return self._score

    @torch.no_grad()
    def _score(self, examples: Examples) -> Scored:
        items = self.propagated()[1]
        seen = seen_items(examples, len(self.items)).to(self.items.dtype) * self.known
        weight = seen * self.degree.clamp(min=1).rsqrt() / seen.sum(-1, keepdim=True).clamp(min=1).sqrt()
        state = weight @ torch.stack(items[: self.layers]).sum(0) / (self.layers + 1)
        return Scored(state @ torch.stack(items).mean(0).T, state, self.known, seen.any(-1))
