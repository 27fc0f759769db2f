"""How models become plain JSON and tensors, and come back; :mod:`metarec.io` writes and reads the files."""

from metarec.saving import learner_kinds, part_kinds  # they register what they know

__all__ = ["learner_kinds", "part_kinds"]
