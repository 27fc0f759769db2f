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
from metarec.meta.graphs import Gradients, Graphs
from metarec.meta.inspection import library_only
from metarec.meta.memory import activations, compared
from metarec.nn import ModalityLearner, TableItems
from metarec.nn.full_softmax import users_softmax
from metarec.nn.items import drawn_once
from metarec.recipes.sharded import is_sharded
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
    loss = softmax_loss(learner, batch, examples)
    loss.backward()
    return float(loss.detach())


def softmax_loss(
    learner: ModalityLearner, batch: EpisodeBatch, examples: Callable[[EpisodeBatch], Examples] = every_click
) -> Tensor:
    """The mean of the users' mean losses, of which :func:`backward_softmax` adds the gradient."""
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
    return torch.stack(sums).sum() / len(batch)


class GraphedLoss:
    """Adds the gradient of a loss of whole batches on a GPU, by one CUDA graph for each shape of batch.

    Launching the kernels of a small batch costs many times more than running them. Without graphs run learners with
    parts of the user's own, whose Python code may do otherwise at each call, those that read events of other kinds, and
    those whose item table is sharded, as the processes that hold it wait for each other.

    Args:
        learner: what is trained.
        loss: of a batch.
        timeless: whether the loss looks at no times: a graph is not given any.
    """

    multiple = 1  # in a batch of many users the longest history is mostly as long as they may be

    def __init__(
        self, learner: ModalityLearner, loss: Callable[[EpisodeBatch], Tensor], *, timeless: bool = True
    ) -> None:
        self.learner, self.loss = learner, loss
        alone = timeless and learner.kinds is None and library_only(learner) and not is_sharded(learner)
        self.graphs = Graphs() if alone else None

    def backward(self, batch: EpisodeBatch) -> Tensor:
        """Add the gradient; returns the loss, which the next call may overwrite."""
        found = self.graphs.gradients(self, batch, self._bytes(batch)) if self.graphs else None
        loss, parameters, gradients = found or self.gradients(batch)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return loss

    def gradients(self, part: EpisodeBatch) -> Gradients:
        """The loss, the parameters that it depends on, and their gradients."""
        trained = [p for p in self.learner.parameters() if p.requires_grad]
        loss = self.loss(part)
        pairs = zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True)
        used = [(parameter, gradient) for parameter, gradient in pairs if gradient is not None]
        return loss.detach(), [parameter for parameter, _ in used], [gradient for _, gradient in used]

    def _bytes(self, batch: EpisodeBatch) -> int:
        """About what a batch needs: activations, vectors of targets and negatives, gradients of all weights."""
        sizes = [p.numel() for p in self.learner.parameters()]
        asked = compared(batch.support) + compared(batch.query)
        length = batch.query.history.shape[-1]
        return 4 * (len(batch) * activations(self.learner.encoder, length, asked) + 3 * sum(sizes))


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
