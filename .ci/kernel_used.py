"""Proves that an installed metarec adapts users by the compiled kernel that came with it, and says where from."""

import sys

import torch

import metarec as mr
from metarec.meta.compiled import CompiledUsers
from metarec.meta.library import library
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from metarec.types import Examples

if library() is None:
    raise SystemExit("the wheel has no kernel that this machine can run")
learner = ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8, dropout=0.0))
support = Examples(
    torch.tensor([[3, 1, 2]]),
    torch.tensor([[0, 1]]),
    torch.tensor([[1, 2]]),
    torch.full((1, 2, 1), 4),
    torch.ones(1, 2),
)
found = mr.MetaLearner(learner, lr=0.1, steps=2).adapt(support)
if not all(isinstance(users, CompiledUsers) for users in found.stacks):
    raise SystemExit(f"users were adapted by {[type(users).__name__ for users in found.stacks]}")
sys.stdout.write(f"the compiled kernel of {mr.__file__}\n")
