"""The full softmax of many users, by one product of all their states with all candidates."""

from __future__ import annotations

from torch import Tensor

from metarec.functional.losses import LEAST, softmax_sum
from metarec.nn.items import TableItems
from metarec.types import Examples


def users_softmax(
    state: Tensor, examples: Examples, items: TableItems, vectors: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Each user's mean cross-entropy of its examples among all candidates, and the sum over the users.

    On a CPU the real examples alone are computed; finding them would make a GPU wait.

    Args:
        state: (B, S, D) of the examples.
        examples: of B users.
        items: where the targets' vectors come from.
        vectors: (C, D) of the candidates.
        candidates: (I,) bool, which items they are.

    Returns:
        the sum, with one derivative, and the losses (B,), without gradients.

    Example:
        >>> import torch
        >>> examples = Examples(torch.tensor([[3, 1]]), torch.tensor([[0, 1]]), torch.tensor([[1, 2]]),
        ...                     torch.empty(1, 2, 0, dtype=torch.int64), torch.ones(1, 2))
        >>> every = torch.arange(4) > 0
        >>> users_softmax(torch.zeros(1, 2, 5), examples, TableItems(torch.ones(4, 5), every), torch.ones(3, 5), every)
        (tensor(1.0986), tensor([1.0986]))
    """
    share = (examples.weight / examples.weight.sum(-1, keepdim=True).clamp(min=LEAST)).to(state.dtype)
    real = (share > 0).flatten().nonzero().squeeze(-1) if state.is_cpu else slice(None)
    own, target, part = state.flatten(0, 1)[real], examples.target.flatten()[real], share.flatten()[real]
    positive = (own * items(target)).sum(-1)
    total, each = softmax_sum(own, vectors, positive, candidates[target], part)
    losses = share.new_zeros(share.numel())
    losses[real] = each * part
    return total, losses.view_as(share).sum(-1)
