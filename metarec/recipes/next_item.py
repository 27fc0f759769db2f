"""Next-item training by the full softmax: the cross-entropy of every click among all candidates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from metarec.functional.losses import logsumexp_of_products, softmax_beside
from metarec.nn import ModalityLearner, TableItems
from metarec.nn.items import drawn_once
from metarec.types import EpisodeBatch, Examples

CPU_USERS = 32  # users of one pass on a CPU: what its caches hold


def every_click(batch: EpisodeBatch, since: float = -math.inf) -> Examples:
    """Support and query as one: every click of a user after the first is asked for from those before it.

    Args:
        batch: the users.
        since: ask only for clicks from this time on; a click whose time is not known is asked for.
    """
    both = (batch.support, batch.query)
    out = Examples(
        batch.query.history,
        *(torch.cat([getattr(e, name) for e in both], 1) for name in ("position", "target", "negatives", "weight")),
    )
    times = [e.time for e in both if e.time is not None]
    if since == -math.inf or len(times) < len(both):
        return out
    return replace(out, weight=out.weight * (torch.cat(times, 1) >= since))


def backward_softmax(
    learner: ModalityLearner, batch: EpisodeBatch, examples: Callable[[EpisodeBatch], Examples] = every_click
) -> float:
    """Add the gradient of the mean of the users' mean losses; returns the loss.

    The item vectors are drawn once. On a CPU, users with histories of about one length go through the encoder together.

    Args:
        learner: on the batch's device.
        batch: of B users.
        examples: what a batch asks for.
    """
    table = drawn_once(learner.items).table()
    items = TableItems(table.detach().requires_grad_(), learner.items.known)
    candidates = items.weight[learner.candidate_codes()]
    shared = candidates.detach().requires_grad_()
    if batch.user.device.type == "cpu":
        order = (batch.query.history > 0).sum(-1).argsort(stable=True)
        batch = EpisodeBatch(batch.user[order], batch.support[order], batch.query[order])
    total = 0.0
    for part in batch.chunks(CPU_USERS if batch.user.device.type == "cpu" else len(batch)):
        loss = _softmax(learner, examples(part), items, shared) / len(batch)
        loss.backward()
        total += float(loss.detach())
    candidates.backward(shared.grad)
    if table.requires_grad:
        table.backward(items.weight.grad)
    return total


def _softmax(learner: ModalityLearner, examples: Examples, items: TableItems, candidates: Tensor) -> Tensor:
    """The sum of the users' mean losses, of real examples alone."""
    share = examples.weight / examples.weight.sum(-1, keepdim=True).clamp(min=1)
    real = examples.weight > 0
    state, target = learner.states(examples, items)[real], examples.target[real]
    others = logsumexp_of_products(state, candidates)
    each = softmax_beside((state * items(target)).sum(-1), others, learner.candidates[target])
    return (each * share[real]).sum()
