"""Late fusion: standardise the scores of several learners and take their weighted mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metarec.types import Scored

FLAT = 1e-6  # a deviation that is this small against the mean is its rounding


class NotFiniteError(ValueError):
    """A model's scores, states or weights are NaN or infinite: the model is at fault, not the request."""


def standardise(scores: Tensor, known: Tensor, fitted: int | None = None) -> Tensor:
    """Mean 0 and standard deviation 1 over the known candidates; unknown candidates get 0.

    The unit of the scores does not matter. Where they are all equal, but for rounding, every candidate gets 0.

    Args:
        scores: (..., C).
        known: (C,) or (..., C) bool.
        fitted: candidates that mean and deviation are taken from, the first so many; later ones are measured by them.
            All by default.

    Example:
        >>> standardise(torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([True, True, False]))
        tensor([[-1.,  1.,  0.]])
        >>> standardise(torch.tensor([[1.0, 3.0, 7.0]]), torch.ones(3) > 0, fitted=2)
        tensor([[-1.,  1.,  5.]])
    """
    own = known[..., :fitted]
    count = own.sum(-1, keepdim=True).clamp(min=1)
    mean = (torch.where(own, scores[..., :fitted], 0) / count).sum(-1, keepdim=True)
    centred = torch.where(known, scores - mean, 0)
    largest = torch.linalg.vector_norm(centred[..., :fitted].detach(), torch.inf, -1, keepdim=True)
    flat = largest <= FLAT * mean.detach().abs()
    unit = centred / torch.where(flat, 1, largest)  # its squares neither overflow nor vanish
    variance = (unit[..., :fitted] ** 2).sum(-1, keepdim=True) / count
    return unit * torch.where(flat, 0, torch.where(flat, 1, variance).rsqrt())


def fuse(scores: Tensor, weights: Tensor, known: Tensor, scale: Tensor | None = None) -> Tensor:
    """Weighted mean of the modalities' scores over the modalities that know each candidate.

    Args:
        scores: (..., M, C), on one scale (see :func:`standardise`).
        weights: (..., M), not negative.
        known: (M, C) bool.
        scale: (M,) that the scores are multiplied by; 1 by default.

    Returns:
        (..., C). A candidate that no weighted modality knows gets the lowest score of its row. What is not finite
        stays so.

    Example:
        >>> s = torch.tensor([[[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]])
        >>> fuse(s, torch.tensor([[0.5, 0.5]]), torch.tensor([[True, True, False], [True, False, False]]))
        tensor([[2., 2., 2.]])
    """
    total = weights @ known.to(weights.dtype)
    silent = total <= 0
    scaled = weights if scale is None else weights * scale
    mean = (scaled.unsqueeze(-2) @ torch.where(known, scores, 0)).squeeze(-2) / torch.where(silent, 1, total)
    lowest = mean.masked_fill(silent, torch.inf).amin(-1, keepdim=True)
    return torch.where(silent, torch.where(lowest == torch.inf, 0, lowest), mean)


def fuse_scored(
    scored: Sequence[Scored], weights: Tensor, scale: Tensor | None = None, names: Sequence[str] | None = None
) -> Tensor:
    """Fuse several learners' scores: standardise, scale, take the weighted mean.

    Args:
        scored: of M learners, over the same candidates.
        weights: (..., Q, M), not negative.
        scale: (M,) of each learner's standardised scores; 1 by default.
        names: of the learners, for messages.

    Returns:
        (..., Q, C) as :func:`fuse`.

    Raises:
        ValueError: if a score of a candidate that a learner knows, or a weight, is not finite. Not while exporting.

    Example:
        >>> one = Scored(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 4), torch.ones(2) > 0, torch.ones(1) > 0)
        >>> fuse_scored([one, one], torch.tensor([[0.5, 0.5]]))
        tensor([[-1.,  1.]])
    """
    scores = torch.stack([standardise(s.scores, s.item_mask, s.fitted) for s in scored], -2)
    out = fuse(scores, weights, torch.stack([s.item_mask for s in scored]), scale)
    if not torch.compiler.is_compiling() and not bool(out.detach().sum().isfinite()):
        _tell(scored, weights, out, names or [f"{m} of {len(scored)}" for m in range(len(scored))])
    return out


def check_scores(scored: Scored, name: str) -> None:
    """Check that the scores of known items are finite.

    Args:
        scored: of one method.
        name: of the method, for messages.

    Raises:
        ValueError: if one is not finite.
    """
    if not bool(scored.scores.detach().sum().isfinite()):
        _tell_one(scored, name)


def _tell(scored: Sequence[Scored], weights: Tensor, out: Tensor, names: Sequence[str]) -> None:
    for name, one in zip(names, scored, strict=True):
        _tell_one(one, name)
    for what, values in ((f"the fusion's weight of the learners {list(names)}", weights), ("the fused score", out)):
        bad = ~values.isfinite()
        if bad.any():
            where = bad.nonzero()[0].tolist()
            raise NotFiniteError(
                f"{what}: {float(values[tuple(where)].detach())} at {tuple(where)} (user, example, column) is not "
                "finite. Look for a diverged fusion, or scores that differ by more than float32 holds"
            )


def _tell_one(scored: Scored, name: str) -> None:
    bad = scored.item_mask & ~scored.scores.isfinite()
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise NotFiniteError(
            f"learner {name!r}: score {float(scored.scores[where].detach())} of item code {where[-1]} for user "
            f"{where[0]} of the batch is not finite. Look for a diverged step (a lower learning rate)"
        )
