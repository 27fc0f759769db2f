"""MetaTL: a cold user is one vector that translates each clicked item to the next.

Source: Wang, Ding and Caverlee, Sequential Recommendation for Cold-start Users with Meta Transitional Learning, SIGIR
2021. The vector starts as the mean of what a small network says of the user's transitions, takes a gradient step on
them, and is judged on the query. Deviation: beside the paper's margin loss there is the full softmax over the items
seen upstream, which the other recipes are trained with too.
"""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.data.dataset import Catalog, Dataset
from metarec.functional.losses import softmax_among, weighted_mean
from metarec.nn import IdItems, record
from metarec.nn.add_items import larger
from metarec.nn.former import FormerNames
from metarec.nn.items import more_items
from metarec.nn.learner import TOLD
from metarec.types import Examples

Loss = Literal["margin", "softmax"]


class TransitionLearner(FormerNames, nn.Module):
    """Scores item j after item i by ``-|i + r - j|^2``, r the user's own vector.

    Only r adapts. Make it a method by ``MetaLearner(learner, lr=..., steps=1, objectives=...)`` and
    train that with :func:`metarec.recipes.metalearned.maml`.

    Args:
        data: the upstream side of a split.
        dim: D.
        margin: by how much the margin loss wants a target nearer than a negative.
        seed: of the initial weights.

    Example:
        >>> from metarec.data import EpisodeSampler
        >>> from metarec.datasets import planted
        >>> from metarec.meta import MetaLearner
        >>> from metarec.recipes.metalearned import maml
        >>> data = planted(users=60, items=40)
        >>> learner = TransitionLearner(data, dim=8)
        >>> meta = MetaLearner(learner, lr=0.1, steps=1, objectives=("softmax", "softmax"))
        >>> [step.epoch for step in maml(meta, EpisodeSampler(data, queries=0.5), epochs=2)]
        [1, 2]
    """

    objectives = ("margin", "softmax")
    candidates: Tensor
    relation: Tensor

    def __init__(self, data: Dataset, *, dim: int = 64, margin: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        warm = torch.from_numpy(data.warm)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.items = IdItems(data.catalog.size, dim, known=warm)
            self.transition = nn.Sequential(nn.Linear(2 * dim, dim), nn.LeakyReLU(), nn.Linear(dim, dim))
        self.margin = margin
        self.register_buffer("candidates", warm.nonzero().squeeze(-1), persistent=False)
        self.register_buffer("relation", torch.zeros(dim), persistent=False)
        record.expect(self)
        self.catalog, self.warm, self.second = data.catalog, data.warm, data.second
        self.repeat_share = data.known_repeat_share

    def add_items(self, added: Catalog) -> TransitionLearner:
        """The same learner with more items, of which it knows nothing; its weights are shared."""
        out, catalog = copy.copy(self), larger(self, added)
        out._modules = {**self._modules, "items": more_items(self.items, catalog.size, {})}  # type: ignore[dict-item]
        out.catalog, out.warm = catalog, np.append(self.warm, np.zeros(len(added.items), dtype=np.bool_))
        return out

    def encode_queries(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Encode each query: user states ``i + r`` (..., S, D) for the last item i, has a known history (..., S)."""
        last = examples.history.gather(-1, examples.position)
        return self.items(last) + self.relation, self.items.known[last]

    def score(self, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
        """Score the catalogue: scores (..., S, I), user states (..., S, D), has a known history (..., S)."""
        state, active = self.encode_queries(examples)
        table = self.items.table()
        return nearness(state @ table.T, table.square().sum(-1)), state, active

    def loss(self, examples: Examples, objective: Loss = "margin") -> Tensor:
        """Mean loss of each user's examples, (...).

        Raises:
            ValueError: if the objective is not one of the two.
        """
        state, _ = self.encode_queries(examples)
        target = self.items(examples.target)
        positive = nearness((state * target).sum(-1), target.square().sum(-1))
        if objective == "softmax":
            among = self.items.table()[self.candidates]
            others = nearness(state @ among.T, among.square().sum(-1))
            each = softmax_among(positive, others, self.items.known[examples.target])
        elif objective == "margin":
            drawn = self.items(examples.negatives)
            negative = nearness((state.unsqueeze(-2) * drawn).sum(-1), drawn.square().sum(-1))
            each = F.relu(self.margin - positive.unsqueeze(-1) + negative).mean(-1)
        else:
            raise ValueError(f"MetaTL: objective must be 'margin' or 'softmax', got {objective!r}")
        return weighted_mean(each, examples.weight)

    def task_view(self, adapts: str = "encoder") -> TransitionLearner:
        """The learner as one user's task: its vector is the parameter, whatever is asked for."""
        view = copy.copy(self)
        for name in TOLD:
            vars(view).pop(name, None)
        view._modules = {"items": self.items.frozen()}
        view._buffers = {"candidates": self.candidates}
        view._parameters = {"relation": nn.Parameter(torch.zeros_like(self.relation))}
        object.__setattr__(view, "task_tensors", self.task_tensors)
        return view

    def task_tensors(self, support: Examples) -> dict[str, Tensor]:
        """What each of B users starts from: ``relation`` (B, D), the mean over its transitions; 0 without any."""
        last = support.history.gather(-1, support.position)
        both = torch.cat([self.items(last), self.items(support.target)], -1)
        each = self.transition(both) * support.weight.to(both.dtype).unsqueeze(-1)
        return {"relation": each.sum(-2) / support.weight.sum(-1, keepdim=True).clamp(min=1).to(both.dtype)}


def nearness(product: Tensor, square: Tensor) -> Tensor:
    """Minus the squared distances of states and items but for the states' own squares, which all items share.

    Args:
        product: of states and items.
        square: of the items.
    """
    return 2 * product - square
