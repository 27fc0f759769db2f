"""The steps of a learner whose item table is sharded by rows: every process takes part in each, with as many users."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec import distributed
from metarec.nn import ModalityLearner
from metarec.types import EpisodeBatch, Examples

ANY = 1  # an item, for histories that must not be empty


def is_sharded(learner: ModalityLearner) -> bool:
    """Whether rows of a learner's item table lie in several processes."""
    return any(map(distributed.is_sharded, learner.parameters()))


def sharded_backward(
    learner: ModalityLearner, objective: str, loss: Callable[[EpisodeBatch], Tensor], users: int
) -> Callable[[EpisodeBatch], Tensor]:
    """What adds a process's part of the gradient of the mean loss of all users, and returns its part of the loss.

    Args:
        learner: the batches are sent to its device.
        objective: what the loss is called.
        loss: the mean over the users of a batch, 0 for those without examples.
        users: of a step, all processes together; a batch that has fewer is filled up.

    Raises:
        ValueError: if the loss compares with all items.
    """
    if objective == "softmax":
        raise ValueError(
            "objective 'softmax' compares with all items, and their table is sharded; choose 'sampled_softmax', 'gbce' "
            "or 'bpr'"
        )
    device, most = learner.candidates.device, -(-users // distributed.processes())

    def backward(batch: EpisodeBatch) -> Tensor:
        everybody = distributed.total(torch.full((), float(len(batch)), dtype=torch.float64, device=device))
        mean = loss(filled(batch.to(device), most))
        part = mean * (most / everybody).to(mean)
        part.backward()
        return part.detach()

    return backward


def filled(batch: EpisodeBatch, users: int) -> EpisodeBatch:
    """A batch of so many users, the last of whom may have no examples, and one item in the history."""
    more = users - len(batch)
    if not more:
        return batch

    def longer(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])

    def with_more(examples: Examples) -> Examples:
        out = examples.each(longer)
        for history in (out.history, out.events):
            if history is not None:
                history[-more:, :1] = ANY
        return out

    return EpisodeBatch(longer(batch.user), with_more(batch.support), with_more(batch.query))
