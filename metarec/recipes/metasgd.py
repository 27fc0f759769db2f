"""Meta-SGD: the inner step size of every single weight is learned with the weights.

Source: Li et al., Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, 2017. Deviations: several steps with the
same rates; first order by default; what is learned is each rate's multiple of ``lr``, which is of the size that Adam's
steps are made for. Rates may turn negative, as in the paper.

With inner gradients ``g_k`` taken as constants, ``w_K = w_0 - sum_k rate * g_k``, so the gradient of a rate is
``-(sum_k g_k) * G``, elementwise, with G the outer gradient at the adapted weights: a rate grows where the steps that
it scaled went down the outer loss.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from metarec.meta import Adapted, Learner, TaskStack
from metarec.meta.adapting import AdaptingModel
from metarec.meta.calling import exclusive
from metarec.meta.memory import chunk_sizes
from metarec.meta.users import check_objectives
from metarec.nn import record
from metarec.types import EpisodeBatch, Examples


class MetaSGD(AdaptingModel, nn.Module):
    """A :class:`~metarec.meta.MetaLearner` of the encoder whose step sizes are parameters too.

    Train it with :func:`metarec.recipes.metalearned.maml`.

    Args:
        learner: e.g. a :class:`~metarec.nn.ModalityLearner`.
        lr: every rate at first.
        steps: inner steps.
        second_order: differentiate through the inner steps.
        objectives: inner and outer loss.

    Raises:
        ValueError: if ``steps`` or ``lr`` is negative, or an objective is not one of the learner's.

    Example:
        >>> from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
        >>> meta = MetaSGD(ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8)), lr=0.1, steps=2)
        >>> meta.rates()["encoder.norm.bias"]
        tensor([0.1000, 0.1000, 0.1000, 0.1000, 0.1000, 0.1000, 0.1000, 0.1000])
    """

    def __init__(
        self,
        learner: Learner,
        *,
        lr: float = 1e-2,
        steps: int = 1,
        second_order: bool = False,
        objectives: tuple[str, str] = ("softmax", "softmax"),
    ) -> None:
        super().__init__()
        if steps < 0 or lr < 0:
            raise ValueError(f"MetaSGD: steps and lr must not be negative, got steps={steps} and lr={lr}")
        self.learner: Any = learner
        check_objectives(learner, objectives)
        self.lr, self.steps, self.second_order, self.objectives = lr, steps, second_order, objectives
        adapting = dict(learner.task_view("encoder").named_parameters())
        self.scale = nn.ParameterDict({_key(name): torch.ones_like(p) for name, p in adapting.items()})
        record.expect(self.scale)

    def rates(self) -> dict[str, Tensor]:
        """The step size of every weight, by the weights' names in the task view."""
        return {name.replace("/", "."): (self.lr * scale).detach() for name, scale in self.scale.items()}

    def adapt(self, support: Examples) -> Adapted:
        """Adapt to B users at once; the shared weights and the rates stay as they are."""
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            view, stacks, start = self.learner.task_view("encoder"), [], 0
            with exclusive(view):
                for size in chunk_sizes(view, support, max(1, self.steps) if keep_graph else 1):
                    part = support[start : start + size].trim()
                    stack = self._adapted(TaskStack(view, size, view.task_tensors(part)), part)
                    stacks.append(stack if keep_graph else stack.detached())
                    start += size
        return Adapted(stacks, view.items.known)

    def _adapted(self, stack: TaskStack, support: Examples) -> TaskStack:
        for _ in range(self.steps):
            weights = stack.adapting()
            loss = stack("loss", support, self.objectives[0]).sum()
            gradients = torch.autograd.grad(
                loss, list(weights.values()), create_graph=self.second_order, allow_unused=True
            )
            moved = ((name, w, g) for (name, w), g in zip(weights.items(), gradients, strict=True))
            stack = stack.with_weights(
                {name: w if g is None else w - self.lr * self.scale[_key(name)] * g for name, w, g in moved}
            )
        return stack

    def backward(self, episodes: EpisodeBatch) -> float:
        """Add the gradient of the mean query loss over users to ``.grad``; returns that loss.

        Raises:
            FloatingPointError: if it is not finite.
        """
        loss = self.adapt(episodes.support).loss(episodes.query, self.objectives[1]).mean()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"MetaSGD: the query loss is {value}; lower lr, {self.lr}, or the outer one")
        loss.backward()
        return value


def _key(name: str) -> str:
    """A parameter's name without dots, which ``nn.ParameterDict`` refuses."""
    return name.replace(".", "/")
