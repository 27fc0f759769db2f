"""What serving asks of the learners of a model before it computes what they do from tables."""

from __future__ import annotations

from metarec.meta.inspection import leads_back
from metarec.nn import ModalityLearner


def check_learner(learner: ModalityLearner) -> None:
    """See that a learner is what its class computes.

    Raises:
        TypeError: if the learner is of another class, whose losses and scores serving would pass over, or a copy of its
            encoder would compute with the original's parts.
    """
    if type(learner) is not ModalityLearner or any(
        hasattr(ModalityLearner, n) and callable(v) for n, v in vars(learner).items()
    ):
        raise TypeError(
            f"serving computes what a ModalityLearner does, got {type(learner).__name__} or one with methods of its "
            "own; serve it by metarec.Served, which calls the method itself"
        )
    if name := leads_back(learner.encoder):
        raise TypeError(
            f"encoder.{name} is a function that a copy would share with the original, whose weights it reads; write it "
            "into a class, as a method"
        )
