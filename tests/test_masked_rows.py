"""A row of attention that is masked whole: uniform in ours, and never given to a fused kernel: backends differ."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import metarec
from metarec.functional import attention

FUSED = {"scaled_dot_product_attention", "MultiheadAttention", "TransformerEncoder", "TransformerEncoderLayer"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_looks_at_all_tokens_alike(dtype):
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 4, 24, generator=draw).to(dtype).requires_grad_()
    keep = torch.tensor([[False, False, True, True], [True, True, True, False]])
    bias = torch.randn(2, 4, 4, generator=draw).to(dtype)
    out = attention.attend(qkv, 2, keep, bias)
    mean = qkv[0, :, 16:].float().mean(0)
    torch.testing.assert_close(out[0, :2].float(), mean.expand(2, -1), rtol=2e-2, atol=2e-2)
    (slope,) = torch.autograd.grad(out.float().square().sum(), qkv)
    assert torch.isfinite(out).all() and torch.isfinite(slope).all()


def test_no_module_of_ours_calls_a_fused_kernel():
    found = []
    for path in Path(metarec.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", ""))
            found += [f"{path.name}: {name}"] if name in FUSED else []
    assert found == []
