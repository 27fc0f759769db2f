"""Next-item training by the full softmax: the cross-entropy of every click among all candidates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from metarec.functional.kinds import items_of
from metarec.meta.compiled import in_kernel
from metarec.nn import ModalityLearner, TableItems
from metarec.nn.full_softmax import users_softmax
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
    reads = [e.read for e in both if e.read is not None]
    if len(reads) == len(both):
        out = replace(out, events=batch.query.events, read=torch.cat(reads, 1))
    times = [e.time for e in both if e.time is not None]
    if since == -math.inf or len(times) < len(both):
        return out
    return replace(out, weight=out.weight * (torch.cat(times, 1) >= since))


def backward_softmax(
    learner: ModalityLearner, batch: EpisodeBatch, examples: Callable[[EpisodeBatch], Examples] = every_click
) -> float:
    """Add the gradient of the mean of the users' mean losses; returns the loss.

    The item vectors are drawn once. On a CPU the compiled kernel runs the encoder; without it, users with histories of
    about one length go through the encoder together.

    Args:
        learner: on the batch's device.
        batch: of B users.
        examples: what a batch asks for.
    """
    items = TableItems(drawn_once(learner.items).table(), learner.items.known)
    batch = EpisodeBatch(batch.user, learner.reading(batch.support), learner.reading(batch.query))
    vectors = items.weight.index_select(0, learner.candidate_codes())
    compiled = in_kernel(learner, len(batch))
    view = learner if compiled is None else compiled
    parts: Iterable[EpisodeBatch] = [batch]
    if batch.user.is_cpu:
        view = _with_rows(view, batch.query.history)
        parts = _by_length(batch) if compiled is None else parts
    asked = map(examples, parts)
    sums = [users_softmax(view.states(p, items), p, items, vectors, learner.candidates)[0] for p in asked]
    loss = torch.stack(sums).sum() / len(batch)
    loss.backward()
    return float(loss.detach())


def _with_rows(learner: ModalityLearner, history: Tensor) -> ModalityLearner:
    """A copy of a learner whose context is computed for each item of a history once, and for no other item."""
    if learner.context is None:
        return learner
    codes = items_of(history.unique()).unique()
    rows, out = learner.context(codes), copy.copy(learner)
    table = rows.new_zeros(len(learner.context.known), rows.shape[-1]).index_copy(0, codes, rows)
    out._modules = {**learner._modules, "context": TableItems(table, learner.context.known)}
    return out


def _by_length(batch: EpisodeBatch) -> Iterable[EpisodeBatch]:
    """A few users at a time, those with the shortest histories first."""
    order = (batch.query.history > 0).sum(-1).argsort(stable=True)
    return EpisodeBatch(batch.user[order], batch.support[order], batch.query[order]).chunks(CPU_USERS)
