"""What cannot be built again is not saved, and what a file's own tensors do not bear out is not built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from metarec.data import Catalog, EpisodeSampler, Modality, Vocabulary
from metarec.files import read_tensors, write_tensors
from metarec.io import load, save
from metarec.nn import SequenceEncoder
from metarec.recipes import MML, MMLConfig
from tiny import CONFIG, DOWN, UP, same_weights


def scores(model: MML) -> Tensor:
    batch = next(EpisodeSampler(DOWN, part="test").epoch(0))
    with torch.no_grad():
        return model.adapt(batch.support)(batch.query).scores


class Encoder(SequenceEncoder):
    """One of the user's own."""


class Own(MML):
    """One of the user's own."""


def encoder(model: MML) -> Any:
    return model.learner("text").encoder


def replaced_encoder(model: MML) -> None:
    model.learner("text").encoder = Encoder(8, max_length=50, layers=1)


def lora(model: MML) -> None:
    linear = encoder(model).blocks[0].feedforward_in
    encoder(model).blocks[0].feedforward_in = nn.Sequential(linear, nn.Linear(linear.out_features, linear.out_features))


def own_forward(model: MML) -> None:
    usual = encoder(model).norm.forward
    encoder(model).norm.forward = lambda x: 2 * usual(x)


def doubled(part: nn.Module, given: Any, out: Tensor) -> Tensor:
    return 2 * out


def without_bias(model: MML) -> None:
    encoder(model).blocks[0].attention_out = nn.Linear(8, 8, bias=False)


def tied(model: MML) -> None:
    encoder(model).blocks[0].attention_norm = encoder(model).blocks[0].feedforward_norm


def tied_weight(model: MML) -> None:
    model.learner("text").encoder.position = model.learner("image").encoder.position


def other_fusion(model: MML) -> None:
    model.fusion.gate = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))


def learner_less(model: MML) -> None:
    del model.learners["image"]


def known(model: MML) -> None:
    model.learner("text").items.known[3] = False


ALTERED: dict[str, tuple[Callable[[MML], object], str]] = {
    "an encoder of one's own": (
        replaced_encoder,
        r"'learners\.text\.encoder' is a test_saved_models\.Encoder, which is not registered",
    ),
    "another layer": (lora, r"'learners\.text\.encoder\.blocks\.0\.feedforward_in' is a torch\.\S*Sequential"),
    "an own forward": (own_forward, r"part 'learners\.text\.encoder\.norm' has forward=<function"),
    "a hook": (lambda m: m.fusion.register_forward_hook(doubled), "part 'fusion' has a forward hook"),
    "an earlier hook": (lambda m: encoder(m).register_forward_pre_hook(print), "encoder' has a forward hook"),
    "a scale": (lambda m: setattr(encoder(m), "context_scale", 0.3), "has context_scale=0.3, its settings make 0.001"),
    "an epsilon": (lambda m: setattr(encoder(m).norm, "eps", 1e-3), r"norm' has eps=0\.001, its settings make 1e-12"),
    "heads": (lambda m: setattr(encoder(m).blocks[0], "heads", 1), "has heads=1, its settings make 2"),
    "the generator's form": (lambda m: setattr(m.learner("id").items, "variant", "paper"), "has variant='paper'"),
    "settings": (lambda m: setattr(m, "config", replace(m.config, heads=4)), "has heads=2, its settings make 4"),
    "no bias": (without_bias, r"no part|weight '.*attention_out\.bias'|has bias=None"),
    "a part more": (lambda m: m.add_module("extra", nn.Linear(2, 2)), r"no part 'extra' \(Linear\)"),
    "a parameter more": (lambda m: m.register_parameter("p", nn.Parameter(torch.ones(1))), "no weight 'p'"),
    "a buffer more": (lambda m: m.fusion.register_buffer("p", torch.ones(1)), r"no weight 'fusion\.p'"),
    "a part less": (learner_less, r"learners \['id', 'text'\], the settings make \['id', 'text', 'image'\]"),
    "parametrised": (lambda m: parametrizations.weight_norm(encoder(m).blocks[0].attention_out), "Parametrized"),
    "pruned": (lambda m: prune.l1_unstructured(encoder(m).blocks[0].attention_out, "weight", 2), "forward hook"),
    "another fusion": (other_fusion, r"part 'fusion\.gate\.1' has out_features=4, its settings make 128"),
    "other candidates": (known, r"tensor 'learners\.text\.items\.known' .*catalogue"),
    "two types": (lambda m: m.fusion.double(), "its .*several"),
}


@pytest.mark.parametrize("case", ALTERED)
def test_what_load_would_not_build_is_not_saved(tmp_path: Path, case: str) -> None:
    change, message = ALTERED[case]
    model, path = MML.build(UP, CONFIG), tmp_path / "mml"
    change(model)
    with pytest.raises(ValueError, match=rf"save: .*mml: not written.*({message}).*save model\.state_dict\(\)"):
        save(model, path)
    assert list(tmp_path.iterdir()) == []


def test_a_class_of_ones_own_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"save: .*x: .*test_saved_models\.Own, .*metarec\.register\(Own\)"):
        save(Own.build(UP, CONFIG), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [tied, tied_weight])
def test_tied_weights_come_back_tied(tmp_path: Path, change: Callable[[MML], None]) -> None:
    model = MML.build(UP, CONFIG)
    change(model)
    save(model, tmp_path / "mml")
    again = load(tmp_path / "mml")
    names = lambda m: list(dict(m.named_parameters()))  # noqa: E731  each weight under its first name
    assert names(again) == names(model) and len(names(model)) < len(names(MML.build(UP, CONFIG)))
    assert torch.equal(scores(again), scores(model.eval()))


def column_major(model: MML) -> MML:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.T.contiguous().T
    return model


def one_memory(model: MML) -> MML:
    whole = torch.cat([p.detach().flatten() for p in model.parameters()])
    for parameter, part in zip(model.parameters(), whole.split([p.numel() for p in model.parameters()]), strict=True):
        parameter.data = part.view(parameter.shape)
    return model


def grown(model: MML) -> MML:
    text = Modality("text", torch.randn(3, 24), torch.tensor([False, True, True]))
    return model.add_items(Catalog(Vocabulary(["new", "newer"]), {"text": text}))


SAVED: dict[str, Callable[[MML], MML]] = {
    "in training": lambda model: model.train(),
    "double": lambda model: model.double(),
    "column-major": column_major,
    "views of one tensor": one_memory,
    "grown": grown,
    "with records": lambda model: setattr(model, "fitted_until", 3.0) or model,  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("case", SAVED)
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, modalities=()), replace(CONFIG, variant="paper")], ids=str)
def test_models_that_are_what_their_settings_make_are_saved(tmp_path: Path, case: str, config: MMLConfig) -> None:
    if case == "grown" and config.modalities is not None:
        config = replace(config, modalities=("text",))
    model = SAVED[case](MML.build(UP, config))
    save(model, tmp_path / "mml")
    again = load(tmp_path / "mml")
    assert same_weights(again, model)
    if case != "grown":  # on some processors products of matrices that lie otherwise round otherwise
        rounding = 1e-6 if case == "column-major" else 0.0
        torch.testing.assert_close(scores(again), scores(model.eval()), rtol=0, atol=rounding)
    assert again.catalog.items == model.catalog.items


def test_a_loaded_model_is_saved_as_it_was(tmp_path: Path) -> None:
    save(grown(MML.build(UP, CONFIG)), tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    (first, header), (second, again) = (read_tensors(tmp_path / name) for name in "ab")
    assert header == again and first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_frozen_weights_come_back_frozen(tmp_path: Path) -> None:
    model = MML.build(UP, CONFIG)
    model.learner("text").encoder.requires_grad_(False)
    save(model, tmp_path / "mml")
    again = load(tmp_path / "mml")
    frozen = [name for name, p in again.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, p in model.named_parameters() if name.startswith("learners.text.encoder.")]
    write_tensors(
        tmp_path / "x", read_tensors(tmp_path / "mml")[0], {**read_tensors(tmp_path / "mml")[1], "frozen": ["x"]}
    )
    with pytest.raises(ValueError, match=r"x: .*contents.* MML"):
        load(tmp_path / "x")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_served_in_single(tmp_path: Path, kind: torch.dtype) -> None:
    model = MML.build(UP, CONFIG)
    half = MML.build(UP, CONFIG).to(kind)
    save(half, tmp_path / "half")
    again = load(tmp_path / "half")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for name, tensor in half.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.float())
    model.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    assert torch.equal(scores(again), scores(model.eval()))


def test_values_that_are_not_there_or_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = MML.build(UP, CONFIG)
    with pytest.raises(ValueError, match="device meta"):
        save(MML.build(UP, CONFIG).to("meta"), tmp_path / "x")
    for name, parameter in list(model.named_parameters())[::20]:
        with torch.no_grad():
            parameter.view(-1)[-1] = float("nan")
        with pytest.raises(ValueError, match=rf"x: not written, as 'weights\.{name}' holds nan at"):
            save(model, tmp_path / "x")
        with torch.no_grad():
            parameter.view(-1)[-1] = 0
    assert list(tmp_path.iterdir()) == []


def test_saving_leaves_the_random_numbers_and_the_model_alone(tmp_path: Path) -> None:
    model = MML.build(UP, CONFIG).train()
    before, weights = torch.random.get_rng_state(), {name: t.clone() for name, t in model.state_dict().items()}
    save(model, tmp_path / "mml")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(part.training for part in model.modules())


def test_a_rate_that_is_missing_is_missed_when_the_model_is_made() -> None:
    for setting in ("lr", "test_lr", "test_steps"):
        with pytest.raises(ValueError, match=rf"{setting} has n\w+ .*for 'image' and no 'default'"):
            MML.build(UP, replace(CONFIG, **{setting: {"id": 1, "text": 1}}))


def test_numbers_of_numpy_are_settings(tmp_path: Path) -> None:
    config = replace(CONFIG, dim=np.int64(8), inner_lr=np.float64(0.1), test_steps={"default": np.int32(2)})
    assert config == replace(CONFIG, dim=8, inner_lr=0.1, test_steps={"default": 2})
    save(MML.build(UP, replace(config, modalities=["text"])), tmp_path / "mml")  # type: ignore[arg-type]
    assert load(tmp_path / "mml").config == replace(config, modalities=("text",))
