"""Models and parts of one's own: saved with their class named where it is registered, refused by name where not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from metarec import model as registry
from metarec.io import load, save
from metarec.model import Model, Saved, register
from metarec.nn import AdaptiveFusion, IdItems, ModalityLearner, SequenceEncoder
from metarec.recipes import MML, Ensemble, Popularity, Transitions
from metarec.scoring import DenseScores, UserState
from metarec.types import Examples
from saved_cases import CASES, LEARNERS, adapted, mml, plain, scores, spread
from tiny import CONFIG, UP


@pytest.fixture(autouse=True)
def _forget_classes() -> Iterator[None]:
    before = dict(registry._KINDS)
    yield
    registry._KINDS.clear()
    registry._KINDS.update(before)


class LastItem(Model):
    """Likes what has a code close to that of the last click."""

    def __init__(self, data: Any, far: Tensor, parts: Any = ()) -> None:
        self.far, self.inner = far, dict(parts)
        self.catalog, self.warm = data.catalog, data.warm

    def item_mask(self) -> Tensor:
        return torch.arange(len(self.far)) > 0

    def encode(self, support: Examples, query: Examples, **_: Any) -> UserState:
        last = query.history.gather(1, query.position).flatten()
        return UserState({"active": last > 0, "last": last})

    def scores(self, state: UserState) -> DenseScores:
        codes = torch.arange(len(self.far))
        return DenseScores(-(codes - state.tensors["last"][:, None]).abs() * self.far, self.item_mask())

    def members(self) -> Any:
        return self.inner

    def state(self) -> Saved:
        return Saved({"version": 1}, {"far": self.far}, self.inner)

    @classmethod
    def from_state(cls, saved: Saved, catalog: Any, warm: Any) -> Self:
        if saved.settings["version"] != 1:
            raise ZeroDivisionError("whatever goes wrong in a class of somebody's own")
        out = cls.__new__(cls)
        out.far, out.inner, out.catalog, out.warm = saved.tensors["far"], dict(saved.parts), catalog, warm
        return out


class Gru(nn.Module):
    """An encoder with a buffer that is in no state_dict."""

    takes_positions = False
    broadcasts = ()

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.dim, self.scale = dim, scale
        self.gru, self.act = nn.GRU(dim, dim, batch_first=True), lambda x: x.tanh()
        self.register_buffer("shift", torch.arange(dim) * 0.1, persistent=False)

    def settings(self) -> dict[str, Any]:
        return {"dim": self.dim, "scale": self.scale}

    def forward(self, x: Tensor, keep: Tensor, context: Tensor | None = None) -> Tensor:
        out: Tensor = self.act(self.gru(x)[0] * self.scale + self.shift)
        return out


class Sharper(AdaptiveFusion):
    """A fusion that is made as its base is."""

    def weights(self, scored: Any) -> Tensor:
        return super().weights(scored) ** 2


class Louder(ModalityLearner):
    """A learner that is made as its base is."""

    linear = False

    def score(self, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
        found, state, active = super().score(examples)
        return 2 * found, state, active


def last_item(parts: Any = ()) -> LastItem:
    return LastItem(UP, torch.linspace(1, 2, UP.catalog.size), parts)


def with_gru() -> ModalityLearner:
    return spread(ModalityLearner(IdItems(41, 8), Gru(8, scale=0.5)).attach(UP))  # type: ignore[no-any-return]


def with_own_fusion() -> MML:
    model = mml()
    model.fusion = spread(Sharper(3, 8, hidden=16))
    return model


def with_own_encoder() -> MML:
    model = mml()
    model.learner("text").encoder = spread(Gru(8))
    return model


OWN: dict[str, tuple[type, Callable[[], Any]]] = {
    "a model": (LastItem, last_item),
    "a model with parts": (LastItem, lambda: last_item({"a": mml(), "b": Popularity(UP)})),
    "a model in an ensemble": (LastItem, lambda: Ensemble({"mine": last_item(), "all": Popularity(UP)}, UP)),
    "an encoder": (Gru, with_gru),
    "an encoder that adapts": (Gru, lambda: Ensemble({"one": adapted(with_gru()), "all": Popularity(UP)}, UP)),
    "a fusion": (Sharper, with_own_fusion),
    "a fusion in an ensemble": (Sharper, lambda: Ensemble({"mml": with_own_fusion()}, UP)),
    "an encoder in MML": (Gru, with_own_encoder),
    "a learner": (Louder, lambda: spread(Louder(IdItems(41, 8), SequenceEncoder(8, layers=1)).attach(UP))),
}


@pytest.mark.filterwarnings("ignore:MetaLearner")
@pytest.mark.parametrize("case", OWN)
def test_a_class_of_ones_own_is_saved_once_it_is_registered(tmp_path: Path, case: str) -> None:
    cls, make = OWN[case]
    model = make()
    with pytest.raises(
        (TypeError, ValueError), match=rf"save: .*x: not written.*test_saved_own\.{cls.__name__}, which"
    ):
        save(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    register(cls)
    save(model, tmp_path / "x")
    expected = scores(model.eval() if isinstance(model, nn.Module) else model)
    assert torch.equal(scores(load(tmp_path / "x")), expected) and expected.std() > 0
    del registry._KINDS[cls.__name__]
    with pytest.raises(ValueError, match=rf"x: .*'{cls.__name__}' is registered.*metarec\.register\({cls.__name__}\)"):
        load(tmp_path / "x")


def test_a_part_that_is_no_model_is_named(tmp_path: Path) -> None:
    class Method:
        def adapt(self, support: Examples) -> None: ...

    inner = Ensemble({"strange": Method()}, UP)  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"part 'inner/strange' is a .*Method, .*metarec\.Model"):
        save(Ensemble({"inner": inner, "all": Popularity(UP)}, UP), tmp_path / "x")
    with pytest.raises(TypeError, match="got Linear"):
        save(nn.Linear(2, 2), tmp_path / "x")  # type: ignore[arg-type]

    @register
    class Silent(Model): ...

    @register
    class OneWay(LastItem):
        from_state = Model.from_state  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r"Silent says no state\(\)"):
        save(Silent().attach(UP), tmp_path / "x")
    with pytest.raises(TypeError, match=r"OneWay has no from_state\(\)"):
        save(OneWay(UP, torch.ones(41)), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_models_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    register(LastItem)
    model, deep = last_item(), last_item()
    model.inner["self"] = model
    for _ in range(20):
        deep = last_item({"a": deep})
    wide = last_item()
    for _ in range(9):
        wide = last_item({"a": wide, "b": wide})
    for each in (model, deep, wide):
        with pytest.raises(ValueError, match=r"nested more than 16 .*more.* 256"):
            save(each, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_parts_of_other_items_are_refused(tmp_path: Path) -> None:
    other = Popularity(UP)
    other.catalog = UP.catalog.add_items(type(UP.catalog)(type(UP.catalog.items)(["more"])))
    with pytest.raises(ValueError, match="part 'b' scores other items"):
        save(Ensemble({"a": Popularity(UP), "b": other}, UP), tmp_path / "x")
    with pytest.raises(ValueError, match=r"attach\(upstream\)"):
        save(ModalityLearner(IdItems(41, 8), SequenceEncoder(8)), tmp_path / "x")


def _encoder(model: Any) -> Any:
    return next(part for part in model.modules() if isinstance(part, SequenceEncoder))


def _own_forward(model: Any) -> None:
    usual = _encoder(model).norm.forward
    _encoder(model).norm.forward = lambda x: 2 * usual(x)


ALTERED: dict[str, tuple[Callable[[Any], object], str]] = {
    "a hook": (lambda m: _encoder(m).register_forward_hook(lambda *_: None), "encoder.* has a forward hook"),
    "a hook of the whole": (lambda m: m.register_forward_hook(lambda *_: None), "part '' has a forward hook"),
    "an epsilon": (lambda m: setattr(_encoder(m).norm, "eps", 1e-3), r"norm' has eps=0\.001"),
    "a scale": (lambda m: setattr(_encoder(m), "context_scale", 0.3), r"has context_scale=0\.3"),
    "an own forward": (_own_forward, r"norm' has forward=<function"),
    "another layer": (lambda m: setattr(_encoder(m), "norm", nn.Identity()), r"norm' is a torch\..*Identity"),
    "a layer more": (lambda m: _encoder(m).add_module("more", nn.Linear(2, 2)), "no part '.*more'"),
    "a parameter more": (lambda m: _encoder(m).register_parameter("p", nn.Parameter(torch.ones(1))), r"weight '.*p'"),
    "a buffer more": (lambda m: _encoder(m).register_buffer("p", torch.ones(1), persistent=False), r"tensor '.*p'"),
    "two types": (lambda m: _encoder(m).norm.double(), "of several types"),
    "no bias": (lambda m: setattr(_encoder(m).norm, "bias", None), "weight|part"),
}


@pytest.mark.parametrize("change", ALTERED)
def test_an_altered_learner_is_refused_by_name(tmp_path: Path, change: str) -> None:
    for case in [name for name in LEARNERS if name != "MetaTL" and not name.startswith("MML")]:
        model = CASES[case]()
        ALTERED[change][0](model)
        with pytest.raises(ValueError, match=rf"save: .*x: not written.*({ALTERED[change][1]})"):
            save(model, tmp_path / "x")
        with pytest.raises(ValueError, match=r"save: .*x: not written.*part 'odd'"):
            save(Ensemble({"fine": Transitions(UP), "odd": model}, UP), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_altered_part_of_ones_own_is_refused_too(tmp_path: Path) -> None:
    register(Gru)
    for change in (
        lambda e: setattr(e, "act", torch.relu),
        lambda e: setattr(e, "gru", nn.LSTM(8, 8)),
        lambda e: setattr(e, "settings", lambda: {"dim": 8}),
        lambda e: setattr(e, "settings", lambda: {"width": 8}),
        lambda e: setattr(e, "settings", lambda: [8]),
    ):
        model = with_gru()
        change(model.encoder)
        with pytest.raises(ValueError, match=r"x: not written"):
            save(model, tmp_path / "x")


def test_a_subclass_that_is_made_otherwise_is_refused(tmp_path: Path) -> None:
    @register
    class Wide(SequenceEncoder):
        def __init__(self, width: int) -> None:
            super().__init__(width, layers=1)

    learner = ModalityLearner(IdItems(41, 8), Wide(8)).attach(UP)
    with pytest.raises(ValueError, match=r"x: not written.*Wide"):
        save(learner, tmp_path / "x")


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    learner = plain("text")
    with torch.no_grad():
        learner.encoder.position[0, 0] = float("nan")  # type: ignore[index, operator]
    with pytest.raises(ValueError, match=r"x: not written, as 'model\.0\.encoder\.position' holds nan"):
        save(learner, tmp_path / "x")
    with pytest.raises(ValueError, match="device meta"):
        save(plain("id").to("meta"), tmp_path / "x")
    assert list(tmp_path.iterdir()) == [] and CONFIG.dim == 8
