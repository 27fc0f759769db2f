"""The encoder against one row per prefix and against torch's own transformer layers; attention against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.functional import attend, causal_attention, merge_heads, split_heads
from metarec.nn import SequenceEncoder

DIM, LENGTH, HEADS, CONTEXT = 8, 7, 2, 5
REAL = torch.tensor([7, 1, 4, 6])  # items of each user's history
KEEP = torch.arange(LENGTH) < REAL.unsqueeze(1)


def encoder(*, seed: int = 0, dropout: float = 0.0) -> SequenceEncoder:
    """A float64 encoder with weights and a feature-aware bias far from their tiny initial values."""
    torch.manual_seed(seed)
    made = SequenceEncoder(DIM, max_length=10, heads=HEADS, feedforward=12, dropout=dropout).double()
    made.context_scale = 0.3
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made.eval()


def inputs(*shape: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Item vectors and context of histories; what stands at padding is not zero, so that it would be noticed."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, width, generator=generator).double() for width in (DIM, CONTEXT))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("with_context", [True, False])
def test_one_pass_equals_one_padded_row_per_prefix(with_context):
    model, (x, context) = encoder(), inputs(len(REAL), LENGTH)
    states = model(x, KEEP, context if with_context else None)
    for user, real in enumerate(REAL.tolist()):
        for length in range(1, real + 1):
            keep = torch.arange(LENGTH) < length
            junk_x, junk_c = inputs(LENGTH, seed=50 + length)
            row_x = torch.where(keep[:, None], x[user], junk_x)
            row_c = torch.where(keep[:, None], context[user], junk_c) if with_context else None
            row = model(row_x[None], keep[None], None if row_c is None else row_c[None])
            close(states[user, length - 1], row[0, length - 1])


def test_padding_and_batch_mates_change_nothing():
    model, (x, context) = encoder(), inputs(len(REAL), LENGTH)
    together = model(x, KEEP, context)
    for user, real in enumerate(REAL.tolist()):
        alone = model(x[user, :real], torch.ones(real, dtype=torch.bool), context[user, :real])
        close(together[user, :real], alone)


def test_user_order_and_leading_dimensions_change_nothing():
    model, (x, context) = encoder(), inputs(len(REAL), LENGTH)
    order = torch.tensor([2, 0, 3, 1])
    states = model(x, KEEP, context)
    close(model(x[order], KEEP[order], context[order]), states[order])
    grid = model(x.unflatten(0, (2, 2)), KEEP.unflatten(0, (2, 2)), context.unflatten(0, (2, 2)))
    close(grid.flatten(0, 1), states)


def test_vmap_equals_the_batch():
    model, (x, context) = encoder(), inputs(len(REAL), LENGTH)
    close(torch.func.vmap(model)(x, KEEP, context), model(x, KEEP, context))


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize("at", [[[5], [0], [2], [5]], [[5, 0], [1, 1], [2, 0], [3, 4]], [[0, 1, 2, 3, 4, 5, 6, 0]] * 4])
def test_states_at_some_positions_are_those_of_the_whole_pass(at, with_context):
    model, (x, context) = encoder(), inputs(len(REAL), LENGTH)
    given = context if with_context else None
    whole, some = model(x, KEEP, given), model(x, KEEP, given, torch.tensor(at))
    for user, positions in enumerate(at):
        for row, position in enumerate(positions):
            close(some[user, row], whole[user, position])


def test_a_later_click_leaves_earlier_states_alone():
    model, (x, context) = encoder(), inputs(1, LENGTH)
    keep = torch.ones(1, LENGTH, dtype=torch.bool)
    before = model(x, keep, context)
    changed, changed_context = x.clone(), context.clone()
    changed[:, 4] += 1
    changed_context[:, 4] += 1
    after = model(changed, keep, changed_context)
    close(before[:, :4], after[:, :4])
    assert ((before - after)[:, 4:].abs().amax(-1) > 1e-3).all(), "later states must see the change"


def torch_layers(model: SequenceEncoder) -> nn.ModuleList:
    """torch's own post-norm transformer layers with the same weights."""
    layers = nn.ModuleList()
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            DIM, HEADS, 12, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        ).double()
        with torch.no_grad():
            layer.self_attn.in_proj_weight.copy_(block.query_key_value.weight)
            layer.self_attn.in_proj_bias.copy_(block.query_key_value.bias)
        for theirs, ours in (
            (layer.self_attn.out_proj, block.attention_out),
            (layer.norm1, block.attention_norm),
            (layer.linear1, block.feedforward_in),
            (layer.linear2, block.feedforward_out),
            (layer.norm2, block.feedforward_norm),
        ):
            theirs.load_state_dict(ours.state_dict())
        layers.append(layer)
    return layers


def float_mask(keep: Tensor, bias: Tensor) -> Tensor:
    """(B, L, L): the bias where a position may look, minus infinity elsewhere, filled cell by cell."""
    mask = torch.full_like(bias, -torch.inf)
    for user in range(len(keep)):
        for query in range(keep.shape[1]):
            for key in range(query + 1):
                if keep[user, key]:
                    mask[user, query, key] = bias[user, query, key]
    return mask


@pytest.mark.parametrize("with_context", [True, False])
def test_equals_torchs_transformer_layers(with_context):
    model, (x, context) = encoder(), inputs(len(REAL), LENGTH)
    bias = 0.3 * torch.einsum("bie,bje->bij", context, context) if with_context else torch.zeros(4, LENGTH, LENGTH)
    mask = float_mask(KEEP, bias.double()).repeat_interleave(HEADS, 0)
    expected = F.layer_norm(x + model.position[:LENGTH], (DIM,), model.norm.weight, model.norm.bias, 1e-12)
    for layer in torch_layers(model).train():
        expected = layer(expected, src_mask=mask)
    found = model(x, KEEP, context if with_context else None)
    close(found[KEEP], expected[KEEP])


def attention_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (len(REAL), HEADS, LENGTH, DIM // HEADS)
    query, key, value = (torch.randn(*shape, generator=generator).double() for _ in range(3))
    return query, key, value, torch.randn(len(REAL), LENGTH, LENGTH, generator=generator).double()


@pytest.mark.parametrize("with_bias", [True, False])
def test_attention_equals_torchs(with_bias):
    query, key, value, bias = attention_inputs()
    bias = bias if with_bias else torch.zeros_like(bias)
    weights = causal_attention(query, key, KEEP, bias if with_bias else None)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=float_mask(KEEP, bias)[:, None])
    close(weights @ value, expected)
    close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


def test_attention_drops_the_given_share_of_its_weights_and_none_by_default():
    users, length, share = 400, 4, 0.3
    keep = torch.ones(users, length, dtype=torch.bool)
    logits = torch.zeros(users, length, 2 * length).double()  # all alike: position l gives 1 / (l + 1) to each
    qkv = torch.cat([logits, torch.eye(length).double().expand(users, -1, -1)], -1)  # the values show the weights
    even = torch.ones(length, length).double().tril() / torch.arange(1, length + 1).unsqueeze(1)
    close(attend(qkv, 1, keep), even.expand(users, -1, -1))
    torch.manual_seed(0)
    ratio = (attend(qkv, 1, keep, dropout=share) / even)[:, even > 0]
    dropped = ratio == 0
    close(ratio[~dropped], torch.full_like(ratio[~dropped], 1 / (1 - share)))
    error = (share * (1 - share) / dropped.numel()) ** 0.5
    assert abs(float(dropped.double().mean()) - share) < 4 * error


def test_attention_at_some_positions_is_a_part_of_the_whole_whatever_stands_before_it():
    generator = torch.Generator().manual_seed(4)
    qkv = torch.randn(3, 2, LENGTH, 3 * DIM, generator=generator).double()
    bias = torch.randn(3, 2, LENGTH, LENGTH, generator=generator).double()
    keep = torch.arange(LENGTH) < torch.tensor([[7, 1], [4, 6], [2, 5]]).unsqueeze(-1)
    at = torch.randint(0, LENGTH, (3, 2, 5), generator=generator)
    whole, some = attend(qkv, HEADS, keep, bias), attend(qkv, HEADS, keep, bias, at)
    for where in np.ndindex(3, 2, 5):
        close(some[where], whole[where[:2]][at[where]])


def test_attention_of_a_row_that_sees_nothing_is_finite():
    query, key, _, _ = attention_inputs()
    weights = causal_attention(query, key, torch.zeros_like(KEEP))
    assert torch.isfinite(weights).all()


def test_attention_has_first_and_second_derivatives():
    query, key, _, bias = (t[:2, ..., :3, :].requires_grad_() for t in attention_inputs())
    bias = bias.detach()[..., :3].requires_grad_()
    keep = torch.tensor([[True, True, True], [True, True, False]])
    call = lambda q, k, b: causal_attention(q, k, keep, b)  # noqa: E731
    assert torch.autograd.gradcheck(call, (query, key, bias))
    assert torch.autograd.gradgradcheck(call, (query, key, bias))


def test_heads_are_split_in_the_order_of_the_columns():
    x = torch.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    split = split_heads(x, 2)
    for user in range(2):
        for position in range(3):
            for head in range(2):
                assert torch.equal(split[user, head, position], x[user, position, 4 * head : 4 * head + 4])
    assert torch.equal(merge_heads(split), x)


def test_dropout_only_in_training():
    model, (x, _) = encoder(dropout=0.5), inputs(len(REAL), LENGTH)
    close(model(x, KEEP), model(x, KEEP))
    model.train()
    assert not torch.allclose(model(x, KEEP), model(x, KEEP))


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"heads .*divide.* dim=8 and heads=3"):
        SequenceEncoder(8, heads=3)
    with pytest.raises(ValueError, match="history of 11 items, but max_length is 10"):
        encoder()(torch.zeros(1, 11, DIM).double(), torch.ones(1, 11, dtype=torch.bool))
