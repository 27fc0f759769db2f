"""Counts told as plain values and read back: equal, going on, and refused where something is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from count_worlds import ALL, LIVE, arrivals, asked, every_score, world
from metarec.data.dataset import Catalog, Vocabulary
from metarec.files import read_tensors, write_tensors
from metarec.model import Model, Saved, kind_of
from metarec.nn.record import record_of
from metarec.recipes.lightgcn import LightGCN

PAST = [0.0, 17.0, 200.0, 399.0, 400.0, 1000.0]


def again(model: Model, saved: Saved) -> Model:
    assert model.catalog is not None and model.warm is not None
    return kind_of(type(model).__name__).from_state(saved, model.catalog, model.warm)


def through_a_file(model: Model, path: Path) -> Model:
    saved = model.state()
    assert not saved.parts
    write_tensors(path, saved.tensors, {"settings": dict(saved.settings)})
    tensors, header = read_tensors(path)
    return again(model, Saved(header["settings"], tensors))


@pytest.mark.parametrize("name", ALL)
def test_a_file_gives_an_equal_model(name: str, tmp_path: Path) -> None:
    model = ALL[name](world(1))
    for number in range(2):
        other = through_a_file(model, tmp_path / f"{number}.safetensors")
        assert type(other) is type(model) and other.item_mask().tolist() == model.item_mask().tolist()
        for query in (asked(1), asked(2, time=PAST)):
            assert torch.equal(every_score(other, query), every_score(model, query))
            assert torch.equal(other.encode(query, query).active, model.encode(query, query).active)
        assert record_of(other) == record_of(model)
        assert json.dumps(other.state().settings) == json.dumps(model.state().settings)
        assert all(torch.equal(t, other.state().tensors[n]) for n, t in model.state().tensors.items())
        model = model.add_items(Catalog(Vocabulary([f"new{number}", "newer"[number:]])))


@pytest.mark.parametrize("name", LIVE)
def test_what_is_read_back_goes_on(name: str, tmp_path: Path) -> None:
    data, calls = arrivals(world(3), 3, calls=6, first=150)
    model = LIVE[name](calls[0])
    for number, call in enumerate(calls[1:]):
        model = through_a_file(model.observe(call), tmp_path / f"{number}.safetensors")
    for query in (asked(3), asked(4, time=PAST)):
        torch.testing.assert_close(
            every_score(model, query), every_score(LIVE[name](data), query), atol=1e-6, rtol=1e-6
        )
    ids = model.state().tensors.get("users.ends")
    assert ids is None or len(ids) == len(data.user_codes), "users who never clicked are not kept"


def test_the_older_of_two_copies_is_told_without_the_others_clicks() -> None:
    import copy

    _, calls = arrivals(world(5), 5, calls=3, first=100)
    for make in LIVE.values():
        old = make(calls[0])
        copy.copy(old).observe(calls[1])
        other = again(old, old.state())
        assert torch.equal(every_score(other, asked(5)), every_score(make(calls[0]), asked(5)))
        one, two = (model.observe(calls[2]) for model in (other, make(calls[0])))
        assert torch.equal(every_score(one, asked(5)), every_score(two, asked(5)))


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "of another type": lambda t: t.to(torch.float16 if t.dtype != torch.float16 else torch.float32),
    "wider": lambda t: t.to(
        torch.float64 if t.dtype == torch.float32 else torch.int64 if t.dtype == torch.int32 else torch.int16
    ),
    "one dimension more": lambda t: t.unsqueeze(0),
    "one row less": lambda t: t[:-1],
    "one row more": lambda t: torch.cat([t, t[-1:]]),
    "empty": lambda t: t[:0],
    "a number": lambda t: t.flatten()[0],
}


@pytest.mark.parametrize("damage", SHAPES)
@pytest.mark.parametrize("name", ALL)
def test_tensors_of_another_shape_are_refused(name: str, damage: str) -> None:
    model = ALL[name](world(6))
    saved = model.state()
    for tensor in saved.tensors:
        wrong = {**saved.tensors, tensor: SHAPES[damage](saved.tensors[tensor])}
        with pytest.raises(ValueError, match=type(model).__name__):
            again(model, Saved(saved.settings, wrong))
        with pytest.raises(ValueError, match=tensor.replace(".", r"\.")):
            again(model, Saved(saved.settings, {n: t for n, t in saved.tensors.items() if n != tensor}))


def set_one(tensor: Tensor, place: int, value: float) -> Tensor:
    out = tensor.clone()
    out.view(-1)[place] = value
    return out


@pytest.mark.parametrize("name", ALL)
def test_numbers_out_of_range_are_refused(name: str) -> None:
    """Or, where another number could be true, it is one that can be scored with."""
    model = ALL[name](world(7))
    saved, refused = model.state(), 0
    for tensor, own in saved.tensors.items():
        for place in (0, own.numel() // 2, own.numel() - 1):
            values = [-5, 31, 120, 255 if own.dtype == torch.uint8 else 2**31 - 1]
            values += [float("nan"), float("inf"), -1e30] if own.is_floating_point() else []
            for value in values:
                wrong = {
                    **saved.tensors,
                    tensor: set_one(own, place, value % 256 if own.dtype == torch.uint8 else value),
                }
                try:
                    found = again(model, Saved(saved.settings, wrong))
                except ValueError:
                    refused += 1
                else:
                    scores = [every_score(found, query) for query in (asked(7), asked(8, time=PAST))]
                    assert all(bool(one.isfinite().all()) for one in scores), (tensor, place, value)
    assert refused >= 3 * len(saved.tensors)


def test_what_would_be_read_wrongly_is_refused() -> None:
    def refused(name: str, tensor: str, change: Callable[[Tensor], Tensor], match: str) -> None:
        model = ALL[name](world(8))
        saved = model.state()
        with pytest.raises(ValueError, match=match):
            again(model, Saved(saved.settings, {**saved.tensors, tensor: change(saved.tensors[tensor])}))

    for live in LIVE:
        refused(live, "time", lambda t: t.flip(0), "time")
        refused(live, "item", lambda t: t * 0, "item 0")
    for live in ("transitions, live", "co-clicks, live"):
        refused(live, "before", lambda t: t.flip(0), "before")
        refused(live, "before", lambda t: torch.where(t >= 0, 0, t), "lead .*click")
        refused(live, "before", lambda t: torch.full_like(t, -1), "lead .*click")
        refused(live, "before", lambda t: torch.where(t < 0, -2, t), "before")
        refused(live, "last", lambda t: t.new_zeros(len(t)), "lead .*click")
        refused(live, "users.ends", lambda t: t.flip(0), "users.ends")
        refused(live, "users.bytes", lambda t: t * 0 + 255, "decode")
    for rows in ("transitions", "co-clicks"):
        refused(rows, "start", lambda t: t.flip(0), "start")
        refused(rows, "item", lambda t: t.flip(0), "ascending|once")
        refused(rows, "count", lambda t: t * 0, "above 0")
    refused("EASE", "codes", lambda t: t.flip(0), "codes")
    refused("EASE", "diagonal", lambda t: -t, "diagonal")
    refused("ItemKNN", "value", lambda t: -t, "value")
    refused("ItemKNN", "codes", lambda t: t.flip(0), "codes")
    refused("LightGCN", "user", lambda t: t * 0, "user")
    refused("LightGCN", "item", lambda t: t.flip(0), "user and item")


@pytest.mark.parametrize("name", ALL)
def test_settings_that_are_wrong_are_refused(name: str) -> None:
    model = ALL[name](world(9))
    saved = model.state()
    for setting in saved.settings:
        wrongs: list[Any] = ["1", [], {}, float("nan"), float("inf")]
        wrongs += [-1.0, 0.0] if setting in ("window", "half_life") else []
        wrongs += [0, 10**9, 1.5, True] if setting == "layers" else []
        wrongs += [0, 1.5, True] if setting == "decay" else []
        for wrong in wrongs:
            if wrong == saved.settings[setting] or (setting == "untrained" and wrong == []):
                continue
            with pytest.raises(ValueError, match=setting):
                again(model, Saved({**saved.settings, setting: wrong}, saved.tensors))
        without = Saved({k: v for k, v in saved.settings.items() if k != setting}, saved.tensors)
        if setting == "decay":
            assert again(model, without).decay == 1  # older files do not say it
            continue
        with pytest.raises(ValueError, match=setting):
            again(model, without)
    assert model.catalog is not None and model.warm is not None
    smaller = Catalog(Vocabulary([f"i{n}" for n in range(3)]))
    for catalog, warm in (
        (smaller, model.warm[:4]),
        (model.catalog, model.warm[:-1]),
        (model.catalog, model.warm * 1),
    ):
        with pytest.raises(ValueError, match=type(model).__name__):
            type(model).from_state(saved, catalog, warm)


def test_settings_that_no_constructor_would_take() -> None:
    for name, changed in (("co-clicks, live", {"half_life": 3.0}), ("transitions", {"half_life": 3.0})):
        model = ALL[name](world(10))
        saved = model.state()
        with pytest.raises(ValueError, match="half_life"):
            again(model, Saved({**saved.settings, **changed}, saved.tensors))


def test_a_graph_that_was_read_back_is_trained_on(tmp_path: Path) -> None:
    model = LightGCN(world(11), dim=4)
    list(model.train_on_edges(epochs=1))
    assert record_of(model).trained == ("LightGCN",)
    other = through_a_file(model, tmp_path / "graph.safetensors")
    assert isinstance(other, LightGCN) and record_of(other) == record_of(model)
    one, two = (list(graph.train_on_edges(epochs=2)) for graph in (model, other))
    assert [step.loss for step in one] == [step.loss for step in two]
    assert torch.equal(every_score(model, asked(11)), every_score(other, asked(11)))
    before = every_score(model, asked(11))
    larger = model.add_items(Catalog(Vocabulary(["new"])))
    assert isinstance(larger, LightGCN)
    list(larger.train_on_edges(epochs=1))
    assert torch.equal(every_score(model, asked(11)), before)
    assert not torch.equal(every_score(larger, asked(11))[:, :31], before)


def test_a_file_of_ease_has_half_of_the_weights() -> None:
    model = ALL["EASE"](world(12))
    count = int(model.item_mask().sum())
    assert sum(t.nbytes for t in model.state().tensors.values()) == 4 * count * (count - 1) // 2 + 8 * count
