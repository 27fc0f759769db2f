"""Late fusion of any scorers, with weights that depend on how much of a user is known.

``score_i = sum_s w_s z_si + b_s [s does not know i]``, where z is the scorer's standardised score. Each of w and b is a
constant plus a linear function of the user's context: the log of the clicks so far, the share of them on items unseen
upstream, and the time since the last click (its log, standardised, and the square of that). So a scorer that knows
nothing of an item says how much that means, instead of the item's being buried, and it says so more or less loudly for
a user of new items; and someone who clicks one old favourite after another is served otherwise than someone who comes
back after a week.

The weights are fitted to clicks that no scorer was fitted on. Most clicks nobody can foresee, and their likelihood is
all in the depths of the list; so the loss is one that a click far down hardly moves, and the weights serve the top of
the list. Where cold items and time matter, those should be clicks of users who come after a split, as the cold users
do: see :mod:`metarec.recipes.rehearsal`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from metarec.functional import standardise, top_k
from metarec.functional.fusion import check_scores
from metarec.functional.histories import readable, seen_items
from metarec.nn.record import INFORMATION, record_of
from metarec.recipes.observed import NEVER, Observed
from metarec.types import EpisodeBatch, Examples, Method, Scored, Scorer

RIVALS = 8192  # items of a larger catalogue that a click is compared with
AT_ONCE = 512  # clicks whose loss is computed at once
FEATURES = 5  # that the weights are linear in
FARTHEST = 3.0  # deviations of the gap's log that count


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
        >>> blend.fit(observe(blend.methods, blend.warm, EpisodeSampler(up, part="serving").epoch(0)))
        >>> batch = next(EpisodeSampler(down, part="serving").epoch(0))
        >>> blend.adapt(batch.support)(batch.query).scores.shape, blend.information
        (torch.Size([12, 1, 41]), 'upstream')
    """

    warm: Tensor
    usual: Tensor

    def __init__(self, methods: dict[str, Method], warm: Tensor, *, context: bool = True) -> None:
        super().__init__()
        if not methods:
            raise ValueError("Blend: expected at least one method, got none")
        self.methods = dict(methods)
        self.parts = nn.ModuleList(m for m in methods.values() if isinstance(m, nn.Module))
        self.register_buffer("warm", warm, persistent=False)
        self.register_buffer("usual", torch.tensor([0.0, 1.0]))  # mean and deviation of the log of the gap
        self._fitted: float | None = None  # time of the last click that the weights were fitted to, inf if unknown
        columns = FEATURES if context else 1
        self.weight = nn.Parameter(torch.zeros(columns, len(methods)))
        self.unknown = nn.Parameter(torch.zeros(columns, len(methods)))
        with torch.no_grad():
            self.weight[0] = 1 / len(methods)

    @property
    def information(self) -> str:
        """The richest information of the methods; ``"later"`` if the weights were fitted to clicks of unknown times."""
        if self._fitted == math.inf:
            return "later"
        return max((record_of(method).information for method in self.methods.values()), key=INFORMATION.index)

    @property
    def fitted_until(self) -> float | None:
        """The latest time that a method, or the weights, were fitted on; None if none says."""
        said = [self._fitted, *(record_of(method).fitted_until for method in self.methods.values())]
        return max((until for until in said if until not in (None, math.inf)), default=None)

    def adapt(self, support: Examples) -> Scorer:
        """Adapt every method to B users; scoring raises ``ValueError`` where a method's score is not finite."""
        scorers = [method.adapt(support) for method in self.methods.values()]

        def score(examples: Examples) -> Scored:
            features = self.features(self.context(examples))
            weight, missing = features @ self.weight, features @ self.unknown
            total, known, active = torch.zeros(()), torch.zeros(()) > 0, torch.zeros(()) > 0
            fitted = None
            # One by one: the scores of all of them would take much memory.
            for number, (name, scorer) in enumerate(zip(self.methods, scorers, strict=True)):
                scored = scorer(examples)
                check_scores(scored, name)
                fitted = fitted or scored.fitted
                z = standardise(scored.scores, scored.known, scored.fitted)
                own = weight[..., number, None] * z + missing[..., number, None] * ~scored.known
                total, known, active = total + own, known | scored.known, active | scored.active
            out = Scored(scores=total, state=weight, known=known, active=active, fitted=fitted)
            check_scores(out, "blend")
            return out

        return score

    def context(self, examples: Examples) -> Tensor:
        """(B, Q, 3): clicks so far, share of them that is cold, log of the time since the last (NaN if not known)."""
        read = readable(examples) & (examples.history > 0)[:, None]
        clicks = read.sum(-1).clamp(min=1).float()
        cold = (read & ~self.warm[examples.history][:, None]).sum(-1) / clicks
        gap = torch.full_like(clicks, torch.nan) if examples.gap is None else examples.gap.clamp(min=0).log1p().float()
        return torch.stack([clicks, cold, gap], -1)

    def features(self, context: Tensor) -> Tensor:
        """(..., 1 or 5) that the weights are linear in, from contexts (..., 3). What is not known is as usual."""
        clicks, cold, gap = context.unbind(-1)
        z = ((gap - self.usual[0]) / self.usual[1]).clamp(-FARTHEST, FARTHEST)
        full = [torch.ones_like(clicks), clicks.log() - 1.5, cold, z.nan_to_num(), (z**2 - 1).nan_to_num()]
        return torch.stack(full, -1)[..., : len(self.weight)]

    def fuse(self, z: Tensor, unknown: Tensor, context: Tensor) -> Tensor:
        """(n, S, C) and (n, S, C) bool, with contexts (n, 3), to fused scores (n, C)."""
        features = self.features(context)
        weight, missing = (features @ self.weight).unsqueeze(-2), (features @ self.unknown).unsqueeze(-2)
        return (weight @ z + missing @ unknown.to(z.dtype)).squeeze(-2)

    def fit(self, seen: Observed, *, penalty: float = 1e-3, top: float = 0.4, iterations: int = 40) -> None:
        """Choose the weights that foresee these clicks best, by L-BFGS.

        Args:
            seen: clicks that no method was fitted on, from :func:`observe`, of these methods at least.
            penalty: of the squared weights.
            top: q of the loss ``(1 - p^q) / q``, p the probability of a click: how much more it counts to foresee what
                can be foreseen. 0 for the likelihood.
            iterations: of L-BFGS.

        Raises:
            ValueError: if there is no click, or a method is not among those that were asked.

        Source of the loss: Zhang and Sabuncu, "Generalized Cross Entropy Loss", NeurIPS 2018.
        """
        seen = seen.of(self.methods)
        if not len(seen.z):
            raise ValueError("Blend.fit: expected clicks to fit to, got none")
        gap = seen.context[:, 2][~seen.context[:, 2].isnan()]
        if len(gap) > 1:
            self.usual.copy_(torch.stack([gap.mean(), gap.std().clamp(min=1e-3)]))
        optimizer = torch.optim.LBFGS(self._own(), max_iter=iterations, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = penalty * torch.stack([(p**2).sum() for p in self._own()]).sum()
            loss.backward()
            for part in seen.split(AT_ONCE):
                scores = self.fuse(part.z, part.unknown, part.context) + part.stands_for
                likely = scores.gather(1, part.target[:, None]).squeeze(1) - scores.logsumexp(-1)
                lost = (-likely if top == 0 else (1 - (top * likely).exp()) / top).sum() / len(seen.z)
                lost.backward()
                loss = loss.detach() + lost.detach()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        self._fitted = seen.until if self._fitted is None else max(self._fitted, seen.until)

    def take_weights(self, other: Blend) -> None:
        """Blend as another one does, whose methods have the same names.

        Raises:
            ValueError: if they have not.
        """
        if list(self.methods) != list(other.methods):
            raise ValueError(f"Blend: expected the methods {list(self.methods)}, got {list(other.methods)}")
        self._fitted = other._fitted
        with torch.no_grad():
            for mine, theirs in zip([*self._own(), self.usual], [*other._own(), other.usual], strict=True):
                mine.copy_(theirs)

    def _own(self) -> list[nn.Parameter]:
        return [self.weight, self.unknown]


@torch.no_grad()
def observe(
    methods: Mapping[str, Method], warm: Tensor, episodes: Iterable[EpisodeBatch], *, exclude_seen: bool = True
) -> Observed:
    """Ask every method about the queries of some users.

    Args:
        methods: by name.
        warm: (I,) bool, items seen upstream; where it is, what was observed is kept: 5 bytes for each click, method and
            rival.
        episodes: the users.
        exclude_seen: leave what a user has clicked out of the rivals, and clicks on it out of what is observed.

    Raises:
        ValueError: if there is no query.
    """
    blend = Blend(dict(methods), warm).eval()
    draw = torch.Generator(warm.device).manual_seed(0)
    rows, until = [], -math.inf
    for batch in episodes:
        rows.append(_rows(blend, batch.to(warm.device), draw, exclude_seen=exclude_seen))
        time = batch.query.time
        until = max(until, math.inf if time is None else float(time.max()))
    if not rows or not sum(len(found[0]) for found in rows):
        raise ValueError("Blend: expected users with queries to observe, got none")
    return Observed(tuple(methods), *(torch.cat(column) for column in zip(*rows, strict=True)), until=until)


def _rows(blend: Blend, batch: EpisodeBatch, draw: torch.Generator, *, exclude_seen: bool) -> tuple[Tensor, ...]:
    """The ``COLUMNS`` of the real queries of one batch."""
    query, real = batch.query, batch.query.weight > 0
    seen = seen_items(query, len(blend.warm)) & exclude_seen
    real = real & ~seen.gather(-1, query.target.unsqueeze(-1)).squeeze(-1)
    scored = [method.adapt(batch.support)(query) for method in blend.methods.values()]
    for name, own in zip(blend.methods, scored, strict=True):
        check_scores(own, name)
    z = torch.stack([standardise(s.scores, s.known, s.fitted)[real] for s in scored], 1)
    target = query.target[real]
    allowed = ~seen[real]
    allowed[:, 0] = False
    rival, stands_for = _rivals(z, allowed, target, draw)
    unknown = torch.stack([~s.known for s in scored])[:, rival].transpose(0, 1)
    z = z.gather(2, rival[:, None].expand(-1, len(scored), -1))
    user = batch.user[:, None].expand_as(real)[real]
    return user, (rival == target[:, None]).int().argmax(-1), z, unknown, blend.context(query)[real], stands_for


def _rivals(z: Tensor, allowed: Tensor, target: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codes (n, C) of the rivals of n clicks, the target among them, and the log of how many items each stands for."""
    n, methods, size = z.shape
    if size <= RIVALS:
        rival = torch.arange(size, device=z.device).expand(n, -1)
        return rival, torch.where(allowed, 0.0, NEVER)
    best = top_k(z.masked_fill(~allowed[:, None], -torch.inf), RIVALS // (2 * methods))[1]
    key = torch.rand(n, size, generator=draw, device=z.device).scatter(1, best.flatten(1), 2.0)
    key = key.scatter(1, target[:, None], 2.0).masked_fill(~allowed, -1.0)
    others = ((key >= 0) & (key < 2)).sum(-1, keepdim=True)
    taken, rival = key.topk(RIVALS, -1)
    drawn = (taken >= 0) & (taken < 2)
    share = (others / drawn.sum(-1, keepdim=True)).log()
    return rival, torch.where(drawn, share, torch.where(taken < 0, NEVER, 0.0))
