"""Late fusion of any scorers, with weights that depend on how much of a user is known.

``score_i = sum_s w_s z_si + b_s [s does not know i]``, where z is the scorer's standardised score. Each of w and b is a
constant plus a linear function of the user's context: the log of the clicks so far, and the share of them on items
unseen upstream. So a scorer that knows nothing of an item says how much that means, instead of the item's being
buried, and it says so more or less loudly for a user of new items.

The weights maximise the likelihood of clicks that no scorer was fitted on. Where cold items and time matter, those
should be clicks of users who come after a split, as the cold users do: see :mod:`metarec.recipes.rehearsal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.functional import standardise
from metarec.types import EpisodeBatch, Examples, Method, Scored, Scorer

INFORMATION = ("upstream", "live", "later")  # what each knows, the next knows too


class Blend(nn.Module):
    """Any methods as one. Its information is the richest of theirs.

    Args:
        methods: name -> method. Those that are modules are parts of this one.
        warm: (I,) bool, items seen upstream.
        context: let the weights depend on the user; otherwise they are the same for all.

    Raises:
        ValueError: if there is no method.

    Example:
        >>> from metarec.data import EpisodeSampler, split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import EASE, Popularity
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> blend = Blend({"ease": EASE(up), "popularity": Popularity(up)}, torch.from_numpy(up.warm))
        >>> blend.fit(EpisodeSampler(up, part="serving").epoch(0))
        >>> next(EpisodeSampler(down, part="serving").epoch(0)).query.target.shape, blend.information
        (torch.Size([12, 1]), 'upstream')
    """

    warm: Tensor

    def __init__(self, methods: dict[str, Method], warm: Tensor, *, context: bool = True) -> None:
        super().__init__()
        if not methods:
            raise ValueError("Blend: expected at least one method, got none")
        self.methods = dict(methods)
        self.parts = nn.ModuleList(m for m in methods.values() if isinstance(m, nn.Module))
        self.register_buffer("warm", warm, persistent=False)
        columns = 3 if context else 1
        self.weight = nn.Parameter(torch.zeros(columns, len(methods)))
        self.unknown = nn.Parameter(torch.zeros(columns, len(methods)))
        with torch.no_grad():
            self.weight[0] = 1 / len(methods)

    @property
    def information(self) -> str:
        """The richest information of the methods."""
        return max((str(getattr(m, "information", "upstream")) for m in self.methods.values()), key=INFORMATION.index)

    @property
    def fitted_until(self) -> float | None:
        """The latest time that a method was fitted on; None if none says."""
        said = [getattr(m, "fitted_until", None) for m in self.methods.values()]
        return max((until for until in said if until is not None), default=None)

    def adapt(self, support: Examples) -> Scorer:
        """Adapt every method to B users."""
        scorers = [method.adapt(support) for method in self.methods.values()]

        def score(examples: Examples) -> Scored:
            scored = [scorer(examples) for scorer in scorers]
            context = self.context(examples)
            z, unknown = self.stacked(scored)
            return Scored(
                scores=self.fuse(z, unknown, context),
                state=context @ self.weight,
                known=torch.stack([s.known for s in scored]).any(0),
                active=torch.stack([s.active for s in scored]).any(0),
            )

        return score

    def context(self, examples: Examples) -> Tensor:
        """(B, Q, 1 or 3): 1, log of the clicks so far about their mean of about 5, share of them that is cold."""
        read = torch.arange(examples.history.shape[1], device=examples.history.device) <= examples.position[..., None]
        read = read & (examples.history > 0)[:, None]
        clicks = read.sum(-1).clamp(min=1).float()
        cold = (read & ~self.warm[examples.history][:, None]).sum(-1) / clicks
        full = torch.stack([torch.ones_like(clicks), clicks.log() - 1.5, cold], -1)
        return full[..., : len(self.weight)]

    def stacked(self, scored: Sequence[Scored]) -> tuple[Tensor, Tensor]:
        """Standardised scores (B, Q, S, I), and who does not know what, (S, I)."""
        z = torch.stack([standardise(s.scores, s.known) for s in scored], -2)
        return z, torch.stack([~s.known for s in scored]).to(z.dtype)

    def fuse(self, z: Tensor, unknown: Tensor, context: Tensor) -> Tensor:
        """(..., S, C) and (..., S, C) or (S, C), with contexts (..., G), to fused scores (..., C)."""
        weight, missing = (context @ self.weight).unsqueeze(-2), (context @ self.unknown).unsqueeze(-2)
        return (weight @ z + missing @ unknown).squeeze(-2)

    def fit(
        self,
        episodes: Iterable[EpisodeBatch],
        *,
        candidates: int | None = None,
        penalty: float = 3e-3,
        iterations: int = 40,
        seed: int = 0,
    ) -> None:
        """Choose the weights under which the queries of these users are most likely, by L-BFGS.

        Args:
            episodes: users whose queries no method was fitted on.
            candidates: items drawn once, uniformly, that each target competes with; None for all.
            penalty: of the squared weights.
            iterations: of L-BFGS.
            seed: of the draw.

        Raises:
            ValueError: if there is no query.
        """
        generator = torch.Generator().manual_seed(seed)
        rivals = torch.randperm(len(self.warm) - 1, generator=generator)[:candidates] + 1
        rows = [self._rows(batch.to(self.warm.device), rivals.to(self.warm.device)) for batch in episodes]
        if not rows or not sum(len(row[0]) for row in rows):
            raise ValueError("Blend.fit: expected users with queries, got none")
        z, unknown, context, excluded = (torch.cat(column) for column in zip(*rows, strict=True))
        target = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        optimizer = torch.optim.LBFGS(self._own(), max_iter=iterations, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            scores = self.fuse(z, unknown, context).masked_fill(excluded, -1e9)
            loss = F.cross_entropy(scores, target) + penalty * sum((p**2).sum() for p in self._own())
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)

    def take_weights(self, other: Blend) -> None:
        """Blend as another one does, whose methods have the same names.

        Raises:
            ValueError: if they have not.
        """
        if list(self.methods) != list(other.methods):
            raise ValueError(f"Blend: expected the methods {list(self.methods)}, got {list(other.methods)}")
        with torch.no_grad():
            for mine, theirs in zip(self._own(), other._own(), strict=True):
                mine.copy_(theirs)

    def _own(self) -> list[nn.Parameter]:
        return [self.weight, self.unknown]

    @torch.no_grad()
    def _rows(self, batch: EpisodeBatch, rivals: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each real query: scores of the target and its rivals, who knows them, the context, who is left out."""
        scorers = [method.adapt(batch.support) for method in self.methods.values()]
        query, real = batch.query, batch.query.weight > 0
        z, unknown = self.stacked([scorer(query) for scorer in scorers])
        z, target = z[real], query.target[real]
        ids = torch.cat([target[:, None], rivals.expand(len(target), -1)], 1)
        history = query.history[:, None].expand(*query.target.shape, -1)[real]
        seen = (ids[:, :, None] == history[:, None]).any(-1) | (ids == target[:, None])
        seen[:, 0] = False
        columns = ids[:, None].expand(-1, z.shape[1], -1)
        return z.gather(2, columns), unknown[:, ids].transpose(0, 1), self.context(query)[real], seen
