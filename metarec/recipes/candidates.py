"""Candidate scores: what models say of clicks that really came and of sampled candidates beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from metarec.functional import top_k
from metarec.functional.histories import seen_items
from metarec.model import Model
from metarec.recipes.ensemble_scores import check
from metarec.recipes.user_context import user_context
from metarec.scoring import Scores
from metarec.types import EpisodeBatch, Method
from metarec.wrapped import as_model

CANDIDATES = 8192  # items of a larger catalogue that a click is compared with
NEVER = -1e9  # the log importance of what is no candidate
COLUMNS = ("user", "target", "z", "unknown", "context", "log_importance", "repeat")  # by click


@dataclass(frozen=True)
class CandidateScores:
    """Standardised scores of S models for n real clicks and C sampled candidates of each.

    The candidates are all items; of a catalogue larger than ``CANDIDATES``, each model's best and a sample of the
    others, with importance weights. A uniform sample would miss the few popular items that are ranked highest.

    Attributes:
        names: of the models.
        user: (n,) codes.
        target: (n,) columns of the items that were clicked.
        z: (n, S, C) standardised scores.
        unknown: (n, S, C) bool, items that a model does not know.
        context: (n, 3), see :func:`~metarec.recipes.user_context.user_context`.
        log_importance: (n, C) log of how many items a candidate stands for; ``NEVER`` for padding and for what the user
            has clicked already, but for the target.
        repeat: (n, C) bool, candidates that the user has clicked before; none where those are left out.
        until: time of the last of the clicks; inf if not known.
    """

    names: tuple[str, ...]
    user: Tensor
    target: Tensor
    z: Tensor
    unknown: Tensor
    context: Tensor
    log_importance: Tensor
    repeat: Tensor
    until: float = field(default=math.inf, kw_only=True)

    def of(self, names: Iterable[str]) -> CandidateScores:
        """Some of the models only.

        Raises:
            ValueError: if one of them was not asked.
        """
        names = tuple(names)
        if strange := [name for name in names if name not in self.names]:
            raise ValueError(f"candidate scores: none of {strange}, only of {list(self.names)}")
        if names == self.names:
            return self
        index = [self.names.index(name) for name in names]
        return replace(self, names=names, z=self.z[:, index], unknown=self.unknown[:, index])

    def on(self, rows: Tensor | slice) -> CandidateScores:
        """Some of the clicks only; ``rows`` is an (n,) bool mask or a slice."""
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def ndcg(self, scores: Tensor, length: int = 10) -> Tensor:
        """(n,) NDCG of the targets by scores (n, C); a candidate that stands for several items counts so often.

        Ties are broken at random on average: a tied item counts half.
        """
        scores = scores.masked_fill(self.unknown.all(1), -torch.inf)
        own = scores.gather(1, self.target[:, None])
        above = (scores > own).double() + 0.5 * (scores == own).double()
        above.scatter_(1, self.target[:, None], 0)
        rank = 1 + (above * self.log_importance.double().exp()).sum(1)
        return torch.where((rank <= length) & own.squeeze(1).isfinite(), 1 / (1 + rank).log2(), 0)

    def split(self, size: int) -> Iterator[CandidateScores]:
        """So many clicks at a time."""
        for start in range(0, len(self.z), size):
            yield self.on(slice(start, start + size))


@torch.no_grad()
def candidate_scores(
    models: Mapping[str, Method],
    warm: Tensor,
    episodes: Iterable[EpisodeBatch],
    *,
    items: Tensor | None = None,
    exclude_seen: bool = True,
    most: int = CANDIDATES,
) -> CandidateScores:
    """Score the queries of some users, and sampled candidates, with every model.

    Args:
        models: by name.
        warm: (I,) bool, items seen upstream; where it is, the scores are kept: 5 bytes for each click, model and
            candidate.
        episodes: the users.
        items: (I,) bool, what candidates are taken from, beside the targets; all by default.
        exclude_seen: leave what a user has clicked out of the candidates, and clicks on it out of the targets.
        most: candidates of a click; of a larger catalogue, a sample.

    Raises:
        ValueError: if there is no query, or a score is not finite.
    """
    draw = torch.Generator(warm.device).manual_seed(0)
    asked = {name: as_model(method) for name, method in models.items()}
    rows, until = [], -math.inf
    for batch in episodes:
        rows.append(_rows(asked, warm, items, batch.to(warm.device), (draw, most), exclude_seen=exclude_seen))
        time = batch.query.time
        until = max(until, math.inf if time is None else float(time.max()))
    if not rows or not sum(len(found[0]) for found in rows):
        raise ValueError("candidate scores: expected users with queries, got none")
    return CandidateScores(tuple(models), *(torch.cat(column) for column in zip(*rows, strict=True)), until=until)


def _rows(
    models: Mapping[str, Model],
    warm: Tensor,
    items: Tensor | None,
    batch: EpisodeBatch,
    sample: tuple[torch.Generator, int],
    *,
    exclude_seen: bool,
) -> tuple[Tensor, ...]:
    """The ``COLUMNS`` of the real queries of one batch."""
    query, real = batch.query, batch.query.weight > 0
    clicked = seen_items(query, len(warm))
    seen = clicked & exclude_seen
    real = real & ~seen.gather(-1, query.target.unsqueeze(-1)).squeeze(-1)
    found, unknown = [], []
    for name, model in models.items():
        state = model.encode(batch.support, query)
        scores = model.scores(state)
        unknown.append(~model.item_mask().to(warm.device))
        found.append(standardised(scores, ~unknown[-1], name)[real.flatten()])
    z = torch.stack(found, 1)
    target = query.target[real]
    allowed = ~seen[real] if items is None else items & ~seen[real]
    allowed[:, 0] = False
    allowed.scatter_(1, target[:, None], True)
    candidate, log_importance = _candidates(z, allowed, target, *sample)
    z = z.gather(2, candidate[:, None].expand(-1, len(models), -1))
    user = batch.user[:, None].expand_as(real)[real]
    column = (candidate == target[:, None]).int().argmax(-1)
    repeat = (clicked & ~seen)[real].gather(1, candidate)
    silent = torch.stack(unknown)[:, candidate].transpose(0, 1)
    return user, column, z, silent, user_context(query, warm)[real], log_importance, repeat


def _candidates(z: Tensor, allowed: Tensor, target: Tensor, draw: torch.Generator, most: int) -> tuple[Tensor, Tensor]:
    """Codes (n, C) of the candidates of n clicks, the target among them, and their log importance weights."""
    n, models, size = z.shape
    if size <= most:
        every = torch.arange(size, device=z.device).expand(n, -1)
        return every, torch.where(allowed, 0.0, NEVER)
    best = top_k(z.masked_fill(~allowed[:, None], -torch.inf), most // (2 * models))[1]
    key = torch.rand(n, size, generator=draw, device=z.device).scatter(1, best.flatten(1), 2.0)
    key = key.scatter(1, target[:, None], 2.0).masked_fill(~allowed, -1.0)
    others = ((key >= 0) & (key < 2)).sum(-1, keepdim=True)
    taken, candidate = key.topk(most, -1)
    drawn = (taken >= 0) & (taken < 2)
    share = (others / drawn.sum(-1, keepdim=True)).log()
    return candidate, torch.where(drawn, share, torch.where(taken < 0, NEVER, 0.0))


def standardised(scores: Scores, known: Tensor, name: str) -> Tensor:
    """(N, I) float32 scores of mean 0 and deviation 1 over the known items; unknown ones get 0.

    Raises:
        ValueError: if a score is not finite; names the model.
    """
    values = scores.approximate(0, len(known))
    check(values, known, name)
    mean, deviation = scores.moments()
    scale = torch.where(deviation > 0, 1 / deviation, 0)
    z = (values - mean.unsqueeze(1).to(values)) * scale.unsqueeze(1).to(values)
    return torch.where(known, z, 0)
