"""Steps of an optimizer over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from metarec import distributed
from metarec.types import EpisodeBatch

Backward = Callable[[EpisodeBatch], float | Tensor]


def steps(
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    batches: Iterable[EpisodeBatch],
    backward: Backward,
    mark: Callable[[], None],
) -> Iterator[tuple[float, int]]:
    """Loss and users of each step; a step whose loss is not finite leaves the weights alone, as do all after it.

    Where the loss is a tensor, the next step is launched before it is read, so that a GPU need not wait.

    Args:
        optimizer: of the parameters, fused.
        parameters: what has gradients.
        batches: of the users of this process.
        backward: adds the gradient of a batch's loss and returns the loss.
        mark: called after each step.
    """
    behind: tuple[Tensor, int] | None = None
    failed: Tensor | None = None
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        loss, count = distributed.backward_own(backward, batch, parameters)
        if not isinstance(loss, Tensor):
            if math.isfinite(loss):
                optimizer.step()
                mark()
            yield loss, count
            continue
        wrong = loss.isfinite().logical_not().float()
        failed = wrong if failed is None else torch.maximum(failed, wrong)
        optimizer.found_inf = failed  # type: ignore[attr-defined]
        optimizer.step()
        mark()
        if behind is not None:
            yield float(behind[0]), behind[1]
        behind = loss.clone(), count
    if behind is not None:
        yield float(behind[0]), behind[1]


def as_large(value: Tensor, parameter: Tensor, key: str) -> Tensor:
    """An optimizer's tensor for a parameter that may have got more rows since."""
    if key == "step":
        return value
    out = torch.zeros_like(parameter.detach())
    out[: len(value)] = value
    return out


def adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.Adam:
    """Fused Adam whose steps raise the versions of the weights, by which kept tables are stale; torch's do not.

    Tables whose rows lie in several processes are a group of their own, and so are their moments.
    """
    groups = [[p for p in parameters if distributed.is_sharded(p) is sharded] for sharded in (False, True)]
    out = torch.optim.Adam([{"params": group} for group in groups if group], lr=lr, fused=True)
    out.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(parameters))
    return out
