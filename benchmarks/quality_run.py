"""One seed of benchmarks/quality.py: choose settings by validation, train, evaluate everything."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from quality_scorers import (
    BLENDS,
    GRIDS,
    PLAIN,
    Settings,
    Shared,
    World,
    counted,
    fine_tuned,
    fitted_later,
    others_upstream,
    sampled,
    three_of_one,
    trained_mml,
)
from quality_summary import FUSION, OURS, Results
from torch import Tensor, nn
from tqdm import tqdm

from metarec.data import Dataset
from metarec.evaluation import evaluate
from metarec.functional.ranking import ndcg_at, ranks
from metarec.nn.record import record_of
from metarec.recipes import MML, Ensemble, mml_blend, with_inner_steps
from metarec.recipes.candidates import NEVER, CandidateScores
from metarec.recipes.components import Fitting, Setup
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.mml_blend import GROUPS
from metarec.recipes.nested_validation import NestedValidation, validation_split
from metarec.report import Report
from metarec.types import Examples, Method, Scored, Scorer

CLICKS = (1, 2, 3, 5, 10, 50)  # histories are cut to their last so many; 50 are all that a model reads
VALIDATED = 5  # last clicks of each validation user that fit the blends
PENALTIES = (1e-4, 1e-3, 1e-2)
BATCH = 256  # users whose scores of the catalogue are held at once


def say(text: str) -> None:
    """A line that no bar runs over."""
    tqdm.write(f"{time.strftime('%H:%M:%S')} {text}")


class Once(nn.Module):
    """A method that is asked about each batch once, however many blends it is part of.

    Args:
        method: in evaluation mode; its scores are kept until :meth:`forget`.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        said = record_of(method)
        self.information, self.fitted_until = said.information, said.fitted_until
        self.kept: dict[bytes, Scored] | None = {}

    def adapt(self, support: Examples) -> Scorer:
        """As the method does, or what it said before of the same query."""

        def score(examples: Examples) -> Scored:
            if self.kept is None:
                return self.method.adapt(support)(examples)
            asked = (examples.history, examples.position, examples.target)
            key = b"".join(tensor.cpu().numpy().tobytes() for tensor in asked)
            if key not in self.kept:
                self.kept[key] = self.method.adapt(support)(examples)
            kept, device = self.kept[key], examples.history.device  # counts are asked on the CPU too
            tensors: dict[str, Any] = {name: v.to(device) for name, v in vars(kept).items() if isinstance(v, Tensor)}
            return replace(kept, **tensors)

        return score

    def forget(self) -> None:
        """Keep nothing from now on."""
        self.kept = None


def one_seed(world: World, settings: Settings, seed: int, results: Results) -> None:
    """Train and evaluate everything with one seed."""
    earlier, later = validation_split(world.up)
    choose(replace(world, everything=world.up, up=earlier, down=later), results)
    shared = Shared()
    ours = our_blends(world, settings, seed, shared)
    penalties = PENALTIES if settings.everything else PENALTIES[1:2]
    fitted = other_blends(world, settings, seed, shared, penalties, results)
    model, steps = shared.fitted["MML"]["MML"], {}
    for name in model.learners:
        steps[name] = results.chosen[f"MML {name}, steps"] = model.config.steps(name)
    everything: dict[str, Method] = {**scorers(world, shared, results), **fitted, **ours}
    for name, method in everything.items():
        results.reports[name] = report(method, world.down, positions=settings.positions)
    results.weights = {name: weights_of(blend) for name, blend in {**fitted, **ours}.items()}
    adaptation(world, settings, model, steps, results)
    for clicks in CLICKS:
        results.slices["MML blend", "adapted", clicks] = report(ours["MML blend"], world.down, clicks=clicks)


def our_blends(world: World, settings: Settings, seed: int, shared: Shared) -> dict[str, Ensemble]:
    """What a user gets: :func:`metarec.recipes.mml_blend` as it is, of components that the others share."""
    how: dict[str, Any] = {"day": world.day, "sasrec_epochs": settings.sasrec_epochs, "seed": seed}
    return {
        name: mml_blend(
            world.up, settings.config, live=live, device=world.device, components=shared.of(*selected), **how
        )
        for name, live, selected in (
            (OURS["upstream"], None, GROUPS),
            (OURS["live"], world.everything, (*GROUPS, "live")),
        )
    }


def other_blends(
    world: World, settings: Settings, seed: int, shared: Shared, penalties: Sequence[float], results: Results
) -> dict[str, Ensemble]:
    """Ensembles of other selections of the same components.

    The penalty of each is chosen by cross-validation: half of the validation users judge what the others fitted.
    """
    setup = Setup(
        world.up, settings.config, world.everything, world.day, settings.sasrec_epochs, seed, device=world.device
    )
    out, once = {}, dict[str, Method]()
    for name, (selected, context) in BLENDS.items():
        found = NestedValidation(world.up, Fitting(shared.of(*selected), setup), clicks=VALIDATED, device=world.device)
        choose_penalty(name, found.candidates, penalties, results, context=context)
        found.parts = {part: once.setdefault(part, Once(method)) for part, method in found.parts.items()}
        out[name] = found.ensemble(context=context, penalty=results.chosen[f"{name}, penalty"])
    return out


def choose_penalty(
    name: str, seen: CandidateScores, penalties: Sequence[float], results: Results, *, context: bool
) -> None:
    """The penalty under which half of the users judge best what the other half fitted; one is not judged."""
    if len(penalties) == 1:
        results.chosen[f"{name}, penalty"] = penalties[0]
        return
    users = seen.user.unique()
    drawn = torch.randperm(len(users), generator=torch.Generator().manual_seed(results.seed)).to(users.device)
    half = torch.isin(seen.user, users[drawn[: len(users) // 2]])
    values = {}
    for penalty in penalties:
        ndcg = []
        for judged in (half, ~half):
            trial = ContextWeights(seen.names, context=context).to(seen.z.device)
            trial.fit(seen.on(~judged), penalty=penalty)
            part = seen.on(judged)
            with torch.no_grad():
                scores = trial.fuse(part.z, part.unknown, part.context)
            ndcg.append(ndcg_at(ranks(scores, part.target, allowed=part.log_importance > NEVER), 10))
        values[penalty] = float(torch.cat(ndcg).mean())
        row = {"method": name, "penalty": penalty, "seed": results.seed}
        results.tried.append({**row, "cross-validated ndcg@10": values[penalty]})
    results.chosen[f"{name}, penalty"] = max(values, key=values.__getitem__)


def choose(validation: World, results: Results) -> None:
    """The setting of each method without random numbers that validates best."""
    for name, make in counted(validation).items():
        scores = {}
        for setting in GRIDS[name]:
            found = report(make(setting), validation.down)
            results.try_out(name, {"setting": setting}, found)
            scores[setting] = found.metrics["ndcg@10"].mean
        results.chosen[name] = max(scores, key=scores.__getitem__)


def scorers(world: World, shared: Shared, results: Results) -> dict[str, Method]:
    """Single models by name: components, MML's parts and fusions, counts with the settings that validated best."""
    out = {name: model for models in shared.fitted.values() for name, model in models.items()}
    out |= {f"MML {name}": method for name, method in out.pop("MML").methods().items()}
    out[PLAIN] = out.pop("SASRec id")
    out["SASRec id, fine-tuned (trans)"] = fine_tuned(out[PLAIN])
    return out | {name: make(results.chosen[name]) for name, make in counted(world).items()}


def others(world: World, settings: Settings, seed: int, results: Results) -> None:
    """What only a full run trains, and what no blend is made of."""
    for train in (three_of_one, others_upstream, sampled, fitted_later):
        for name, method in train(world, settings, seed).items():
            results.reports[name] = report(method, world.down, positions=settings.positions)
    if settings.paper is not None:
        paper = trained_mml(world, settings.paper, seed, "MML as released")
        for steps in (settings.paper.steps("id"), 0):
            results.reports[f"MML as released, {steps} steps"] = report(with_inner_steps(paper, steps), world.down)


def adaptation(world: World, settings: Settings, model: MML, steps: Mapping[str, int], results: Results) -> None:
    """What the gradient steps give by number of clicks: always taken, and taken by the learners to whom they pay.

    Beside them 0 steps and an inner rate of 0.
    """
    always, rate_0 = copy.copy(model), copy.copy(model)
    always.config, rate_0.config = settings.config, replace(settings.config, test_lr=0.0)
    ways = {
        "always": always,
        "adapted": with_inner_steps(model, steps),
        "0 steps": with_inner_steps(model, 0),
        "rate 0": rate_0,
    }
    for clicks in CLICKS:
        for way, method in ways.items():
            results.slices[FUSION, way, clicks] = report(method, world.down, clicks=clicks)
    for way in ("always", "0 steps", "rate 0"):
        results.reports[f"{FUSION}, {way}"] = report(ways[way], world.down, positions=settings.positions)


def report(method: Method, data: Dataset, *, positions: int = 1, clicks: int | None = None) -> Report:
    """The protocol of every figure; with ``clicks``, every history is cut to its last so many."""
    if clicks is None:
        return evaluate(method, data, positions=positions, users_per_batch=BATCH)
    return evaluate(method, data, part="serving", max_length=clicks, users_per_batch=BATCH)


def weights_of(model: Ensemble) -> list[dict[str, object]]:
    """The weight of each method, by clicks so far, the share of them on items unseen upstream, and the gap.

    The gap before the click asked for is in deviations of its log from what is usual.
    """
    rows: list[dict[str, object]] = []
    mean, deviation = model.weights.usual.tolist()
    for clicks, cold, gap in product(CLICKS, (0.0, 0.5, 1.0), (-1.0, 0.0, 1.0)):
        context = torch.tensor([float(clicks), cold, mean + gap * deviation], device=model.weights.usual.device)
        values = (model.weights.features(context) @ model.weights.weight).tolist()
        said = {"clicks": clicks, "cold_share": cold, "gap": gap}
        rows.append({**said, "weights": dict(zip(model.weights.names, values, strict=True))})
    return rows
