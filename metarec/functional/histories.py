"""Masks over histories: positions an example may read, seen items, and the rule that excludes them."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.types import Examples

REPEATS = 0.02  # share of repeats from which on what a user has clicked is recommended again


def readable(examples: Examples) -> Tensor:
    """Causal mask (B, S, L): the positions of the history that each example may read, padding included.

    Example:
        >>> clicks = Examples(torch.tensor([[3, 1, 2]]), torch.tensor([[0, 1]]), torch.tensor([[1, 2]]),
        ...                   torch.tensor([[[4], [4]]]), torch.ones(1, 2))
        >>> readable(clicks)[0].tolist()
        [[True, False, False], [True, True, False]]
    """
    history = examples.history
    return torch.arange(history.shape[-1], device=history.device) <= examples.position[..., None]


def seen_items(examples: Examples, items: int) -> Tensor:
    """Mask of seen items (B, S, I): those of the history that each example may read; never the padding.

    Args:
        examples: of B users.
        items: I, padding included.

    Example:
        >>> clicks = Examples(torch.tensor([[3, 1, 0]]), torch.tensor([[0, 2]]), torch.tensor([[1, 2]]),
        ...                   torch.tensor([[[4], [4]]]), torch.ones(1, 2))
        >>> seen_items(clicks, 5)[0].int().tolist()
        [[0, 0, 0, 1, 0], [0, 1, 0, 1, 0]]
    """
    seen = torch.zeros(*examples.target.shape, items, dtype=torch.bool, device=examples.history.device)
    seen = seen.scatter(-1, examples.history[:, None] * readable(examples), value=True)
    seen[..., 0] = False
    return seen


def leaves_out_seen(repeat_share: float | None) -> bool:
    """Whether seen items are excluded from lists by default: where fewer than ``REPEATS`` of the clicks are repeats.

    Evaluation, recommendation, the fitting of blends, examples and benchmarks ask this, so that what is evaluated is
    what is served. A few doubled rows do not turn it.

    Args:
        repeat_share: :attr:`metarec.Dataset.repeat_share` upstream; None where it is not known.

    Example:
        >>> [leaves_out_seen(share) for share in (None, 0.0, 1e-5, 0.4)]
        [True, True, True, False]
    """
    return repeat_share is None or repeat_share < REPEATS


def check_exclude_seen(what: str, exclude_seen: object) -> None:
    """Check that ``exclude_seen`` is True, False or None.

    Args:
        what: is asked, to begin the message with.
        exclude_seen: True, False, or None for :func:`leaves_out_seen`.

    Raises:
        ValueError: if it is something else, such as ``"no"``, which would count as True.
    """
    if exclude_seen not in (None, True, False):
        raise ValueError(f"{what}: exclude_seen must be True, False or None, got {exclude_seen!r}")


def rule_in_words(exclude_seen: bool, repeat_share: float | None) -> str:
    """Describe in one line whether seen items are excluded, and why.

    Args:
        exclude_seen: whether they are left out.
        repeat_share: the number that decided it; None where it was asked for.

    Example:
        >>> rule_in_words(True, 1e-5)
        'seen items are left out: 0.0% of the clicks are repeats, less than 2%'
        >>> rule_in_words(False, None)
        'seen items are kept in, as asked for'
    """
    what = f"seen items are {'left out' if exclude_seen else 'kept in'}"
    if repeat_share is None:
        return f"{what}, as asked for"
    size = "less" if exclude_seen else "not less"
    return f"{what}: {repeat_share:.1%} of the clicks are repeats, {size} than {REPEATS:.0%}"
