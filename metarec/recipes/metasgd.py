"""Meta-SGD: the inner step size of every single weight is learned with the weights.

Source: Li et al., Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, 2017. Deviations: several steps with the
same rates; first order by default; what is learned is each rate's multiple of ``lr``, which is of the size that Adam's
steps are made for. Rates may turn negative, as in the paper.

With inner gradients ``g_k`` taken as constants, ``w_K = w_0 - sum_k rate * g_k``, so the gradient of a rate is
``-(sum_k g_k) * G``, elementwise, with G the outer gradient at the adapted weights: a rate grows where the steps that
it scaled went down the outer loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarec.meta import Learner, MetaLearner
from metarec.nn import record


class MetaSGD(MetaLearner):
    """A :class:`~metarec.meta.MetaLearner` whose step sizes are parameters too, one for every weight.

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
        super().__init__(learner, lr=lr, steps=steps, second_order=second_order, objectives=objectives)
        adapting = dict(self.learner.task_view(self.adapts).named_parameters())
        self.scale = nn.ParameterDict({_key(name): torch.ones_like(p) for name, p in adapting.items()})
        record.expect(self.scale)

    def rate(self) -> dict[str, Tensor]:
        """The step size of every weight, by the weights' names in the task view; gradients reach ``scale``."""
        return {name.replace("/", "."): self.lr * scale for name, scale in self.scale.items()}

    def rates(self) -> dict[str, Tensor]:
        """The same as plain values."""
        return {name: rate.detach() for name, rate in self.rate().items()}


def _key(name: str) -> str:
    """A parameter's name without dots, which ``nn.ParameterDict`` refuses."""
    return name.replace(".", "/")
