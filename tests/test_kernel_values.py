"""States of the compiled encoder without gradients, against those of its gradient path and of the module."""

from __future__ import annotations

import pytest
import torch

from metarec.meta.kernel import KernelEncoder
from metarec.nn import SequenceEncoder
from optional import needs_kernel

pytestmark = needs_kernel


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("asked", [1, 4])
@pytest.mark.parametrize("shape", [{"dim": 8, "heads": 2}, {"dim": 64, "heads": 2}, {"dim": 12, "heads": 3}])
@pytest.mark.parametrize("context", [False, True])
def test_values_are_the_states_of_the_gradient_path(dtype, asked, shape, context):
    torch.manual_seed(0)
    base = SequenceEncoder(max_length=9, dropout=0.3, **shape).to(dtype).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw, dtype=dtype))
    users, length = 5, 7
    x = torch.randn(users, length, shape["dim"], generator=draw, dtype=dtype)
    keep = torch.arange(length) < torch.tensor([[7], [3], [1], [7], [0]])
    features = torch.randn(users, length, 6, generator=draw, dtype=dtype) if context else None
    at = torch.randint(0, length, (users, asked), generator=draw)
    compiled = KernelEncoder(base, users)
    compiled.mode = "values"
    with torch.no_grad():
        values = compiled(x, keep, features, at)
        expected = base(x, keep, features).gather(1, at[..., None].expand(-1, -1, shape["dim"]))
    compiled.mode = "graph"
    differentiable = compiled(x, keep, features, at)
    assert differentiable.requires_grad and not values.requires_grad
    assert torch.equal(values, differentiable.detach())
    kept = keep.any(1)
    near = {"atol": 1e-10, "rtol": 1e-9} if dtype == torch.float64 else {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(values[kept], expected[kept], **near)
