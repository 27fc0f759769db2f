"""Segment functions against a Python loop, torch_scatter and finite differences."""

from collections.abc import Callable

import pytest
import torch
import torch_scatter
from torch import Tensor

from metarec.functional import segments
from metarec.functional.segments import segment_max, segment_mean, segment_sum

OURS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "sum": segment_sum,
    "mean": segment_mean,
    "max": segment_max,
}
SEGMENTS = 7


def make_rows(*shape: int, sort: bool) -> tuple[Tensor, Tensor]:
    """Distinct values (all negative in one segment) and an index that leaves segments 2 and 6 empty."""
    rng = torch.Generator().manual_seed(len(shape))
    values = torch.randn(40, *shape, generator=rng, dtype=torch.float64)
    index = torch.tensor([0, 1, 3, 4, 5])[torch.randint(0, 5, (40,), generator=rng)]
    values[index == 3] -= 10
    return values, index.sort().values if sort else index


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", OURS)
def test_values_are_those_of_a_loop(name: str, shape: tuple[int, ...], sort: bool) -> None:
    values, index = make_rows(*shape, sort=sort)
    expected = torch.zeros(SEGMENTS, *shape, dtype=torch.float64)
    for segment in sorted(set(index.tolist())):
        rows = values[index == segment]
        expected[segment] = {"sum": rows.sum(0), "mean": rows.mean(0), "max": rows.amax(0)}[name]
    torch.testing.assert_close(OURS[name](values, index, SEGMENTS), expected)


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("name", OURS)
def test_values_and_gradients_are_those_of_torch_scatter(name: str, sort: bool) -> None:
    values, index = make_rows(3, sort=sort)
    weight = torch.randn(SEGMENTS, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    results = []
    for function in (
        OURS[name],
        lambda v, i, n: torch_scatter.scatter(v, i, dim=0, dim_size=n, reduce=name),
    ):
        leaf = values.clone().requires_grad_()
        out = function(leaf, index, SEGMENTS)
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), leaf)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", OURS)
def test_first_and_second_order_gradients_are_those_of_finite_differences(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_has_torch_scatter", lambda: False)
    values, index = make_rows(2, sort=False)
    leaf = values[:8].clone().requires_grad_()

    def curved(rows: Tensor) -> Tensor:
        return OURS[name](rows**3, index[:8], SEGMENTS)

    assert torch.autograd.gradcheck(curved, leaf)
    assert torch.autograd.gradgradcheck(curved, leaf)


def test_second_order_of_the_maximum_by_torch_scatter_is_right_too() -> None:
    values, index = make_rows(2, sort=True)
    leaf = values[:8].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda rows: segment_max(rows**3, index[:8], SEGMENTS), leaf)


def test_torch_scatter_is_used_for_the_maximum_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch_scatter.segment_csr

    def spy(*args: Tensor, reduce: str) -> Tensor:
        calls.append(reduce)
        out: Tensor = original(*args, reduce=reduce)
        return out

    monkeypatch.setattr(torch_scatter, "segment_csr", spy)
    values, index = make_rows(3, sort=True)
    for name, function in OURS.items():
        function(values, index, SEGMENTS)  # no gradient
        function(values.clone().requires_grad_(), index.flip(0), SEGMENTS)  # not sorted
        assert calls == [], name
        function(values.clone().requires_grad_(), index, SEGMENTS)
        assert calls == (["max"] if name == "max" else [])
        calls.clear()


@pytest.mark.parametrize("name", OURS)
def test_vmap_over_users_is_a_loop_over_users(name: str) -> None:
    values, index = make_rows(3, sort=True)
    users = torch.stack([values, 2 * values, -values]).requires_grad_()
    together = torch.vmap(lambda rows: OURS[name](rows, index, SEGMENTS))(users)
    torch.testing.assert_close(together, torch.stack([OURS[name](rows, index, SEGMENTS) for rows in users]))


@pytest.mark.parametrize("name", OURS)
def test_edges(name: str) -> None:
    function = OURS[name]
    none = torch.zeros(0, 2, requires_grad=True)
    assert function(none, torch.zeros(0, dtype=torch.int64), 3).tolist() == [[0, 0]] * 3
    with pytest.raises(ValueError, match=r"segment_\w+: expected values \(n, ...\) and index \(n,\), got \(3,\) and"):
        function(torch.ones(3), torch.zeros(2, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"segments .*negative.* -1"):
        function(torch.ones(0), torch.zeros(0, dtype=torch.int64), -1)
    for grad in (False, True):
        with pytest.raises((RuntimeError, IndexError), match="out of"):  # torch's own words
            function(torch.ones(2, requires_grad=grad), torch.tensor([0, 3]), 3)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("index", [[0, 1, 2], [0, 2, 1], [2, 0, 0], [1, 1, 1]])
def test_segments_of_one_row_and_rows_out_of_order(name: str, index: list[int]) -> None:
    values = torch.tensor([[1.5], [-2.0], [4.0]], dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(3, 1, dtype=torch.float64)
    for segment in set(index):
        rows = values.detach()[torch.tensor(index) == segment]
        expected[segment] = {"sum": rows.sum(0), "mean": rows.mean(0), "max": rows.amax(0)}[name]
    torch.testing.assert_close(OURS[name](values, torch.tensor(index), 3).detach(), expected)


@pytest.mark.parametrize("name", OURS)
def test_sorted_rows_without_torch_scatter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, index = make_rows(3, sort=True)
    leaf = values.requires_grad_()
    expected = OURS[name](leaf, index, SEGMENTS)
    monkeypatch.setattr(segments, "_has_torch_scatter", lambda: False)
    monkeypatch.setattr(torch_scatter, "segment_csr", None)
    torch.testing.assert_close(OURS[name](leaf, index, SEGMENTS), expected)


@pytest.mark.parametrize("name", OURS)
def test_gradients_under_functorch_are_those_outside(name: str) -> None:
    values, index = make_rows(2, sort=True)
    total = lambda rows: (OURS[name](rows, index, SEGMENTS) ** 2).sum()  # noqa: E731
    leaf = values.clone().requires_grad_()
    outside = torch.autograd.grad(total(leaf), leaf)[0]
    torch.testing.assert_close(torch.func.grad(total)(values), outside)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(values[None]), outside[None])


@pytest.mark.parametrize("name", OURS)
def test_no_segments_and_an_index_past_the_ends(name: str) -> None:
    assert OURS[name](torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 0).shape == (0, 2)
    for outside in ([0, 1, 3], [-1, 0, 1]):
        with pytest.raises((RuntimeError, IndexError), match="out of"):
            OURS[name](torch.ones(3, requires_grad=True), torch.tensor(outside), 3)
    with pytest.raises(ValueError, match=rf"^segment_{name}: expected"):
        OURS[name](torch.ones(3), torch.zeros(2, dtype=torch.int64), 3)
