"""One seed of benchmarks/quality.py: rehearse, train, evaluate everything."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from quality_scorers import (
    GRIDS,
    Settings,
    World,
    counted,
    fitted_later,
    others_upstream,
    recipes_of_blends,
    sampled,
    sasrecs,
    three_of_one,
    trained_mml,
)
from quality_summary import FUSION, Results
from torch import Tensor, nn
from tqdm import tqdm

from metarec.data import Dataset
from metarec.evaluation import evaluate
from metarec.functional.histories import leaves_out_seen
from metarec.functional.ranking import ndcg_at, ranks
from metarec.nn.record import record_of
from metarec.recipes import MML, CoClicks, Popularity, Transitions, paying_steps, with_steps
from metarec.recipes.blend import Blend, observe
from metarec.recipes.observed import NEVER, Observed
from metarec.recipes.rehearsal import last_clicks, rehearsal_split
from metarec.report import Report
from metarec.types import Examples, Method, Scored, Scorer

CLICKS = (1, 2, 3, 5, 10, 50)  # histories are cut to their last so many; 50 are all that a model reads
REHEARSED = 5  # last clicks of each validation user that fit the blends
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
    earlier, later = rehearsal_split(world.up)
    rehearsal = replace(world, everything=world.up, up=earlier, down=later)
    choose(rehearsal, results)
    rehearsed, model = scorers(rehearsal, settings, seed, results)
    steps = choose_steps(rehearsal, model, results)
    rehearsed |= mml_methods(with_steps(model, steps))
    trained, model = scorers(world, settings, seed, results)
    trained |= mml_methods(with_steps(model, steps))
    final = {name: Once(method) for name, method in trained.items()}
    penalties = PENALTIES if settings.everything else PENALTIES[1:2]
    fitted = blended(world, final, rehearsal, rehearsed, penalties, results)
    everything: dict[str, Method] = {**final, **fitted}
    for name, method in everything.items():
        results.reports[name] = report(method, world.down, positions=settings.positions)
    for method in final.values():
        method.forget()
    results.weights = {name: weights_of(blend) for name, blend in fitted.items()}
    adaptation(world, settings, model, steps, results)
    for clicks in CLICKS:
        results.slices["MML blend", "adapted", clicks] = report(fitted["MML blend"], world.down, clicks=clicks)


def blended(
    world: World,
    final: Mapping[str, Method],
    rehearsal: World,
    rehearsed: dict[str, Method],
    penalties: Sequence[float],
    results: Results,
) -> dict[str, Blend]:
    """The fusions of the final methods, with weights fitted to what the rehearsed ones say.

    The penalty of each is chosen by cross-validation: half of the validation users judge what the others fitted.
    """
    warm = torch.from_numpy(rehearsal.up.warm).to(world.device)
    recipes = recipes_of_blends(rehearsed, world.up.catalog.modalities)
    used = {part: rehearsed[part] for parts, _ in recipes.values() for part in parts}
    clicks = last_clicks(rehearsal.down, REHEARSED)
    seen = observe(used, warm, clicks, exclude_seen=leaves_out_seen(world.up.known_repeat_share))
    out = {}
    for name, (parts, context) in recipes.items():
        blend = Blend({part: rehearsed[part] for part in parts}, warm, context=context).to(world.device)
        choose_penalty(name, blend, seen.of(parts), penalties, results)
        blend.fit(seen, penalty=results.chosen[f"{name}, penalty"])
        out[name] = Blend({part: final[part] for part in parts}, torch.from_numpy(world.up.warm), context=context)
        out[name].to(world.device).take_weights(blend)
    return out


def choose_penalty(name: str, blend: Blend, seen: Observed, penalties: Sequence[float], results: Results) -> None:
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
            trial = Blend(blend.methods, blend.warm, context=len(blend.weight) > 1).to(blend.warm.device)
            trial.fit(seen.on(~judged), penalty=penalty)
            part = seen.on(judged)
            with torch.no_grad():
                scores = trial.fuse(part.z, part.unknown, part.context)
            ndcg.append(ndcg_at(ranks(scores, part.target, allowed=part.stands_for > NEVER), 10))
        values[penalty] = float(torch.cat(ndcg).mean())
        row = {"method": name, "penalty": penalty, "seed": results.seed}
        results.tried.append({**row, "cross-validated ndcg@10": values[penalty]})
    results.chosen[f"{name}, penalty"] = max(values, key=values.__getitem__)


def choose(rehearsal: World, results: Results) -> None:
    """The setting of each method without random numbers that validates best."""
    for name, make in counted(rehearsal).items():
        scores = {}
        for setting in GRIDS[name]:
            found = report(make(setting), rehearsal.down)
            results.try_out(name, {"setting": setting}, found)
            scores[setting] = found.metrics["ndcg@10"].mean
        results.chosen[name] = max(scores, key=scores.__getitem__)


def scorers(world: World, settings: Settings, seed: int, results: Results) -> tuple[dict[str, Method], MML]:
    """Everything trained on one upstream side: the baselines by name, and MML."""
    out: dict[str, Method] = {
        "popularity, all": Popularity(world.up),
        "transitions": Transitions(world.up).to(world.device),
        "co-clicks": CoClicks(world.up).to(world.device),
        "co-clicks, live": CoClicks(world.everything, live=True).to(world.device),
    }
    out |= {name: make(results.chosen[name]) for name, make in counted(world).items()}
    out |= sasrecs(world, settings, seed)
    model = trained_mml(world, settings.config, seed, "MML")
    return out, model


def mml_methods(model: MML) -> dict[str, Method]:
    """The parts and fusions of MML, by name."""
    return {f"MML {name}": method for name, method in model.methods().items()}


def choose_steps(rehearsal: World, model: MML, results: Results) -> dict[str, int]:
    """The steps of each learner for new users, if they pay in the rehearsal."""
    steps = paying_steps(model, rehearsal.down, clicks=REHEARSED)
    results.chosen |= {f"MML {name}, steps": number for name, number in steps.items()}
    return steps


def others(world: World, settings: Settings, seed: int, results: Results) -> None:
    """What only a full run trains, and what no blend is made of."""
    for train in (three_of_one, others_upstream, sampled, fitted_later):
        for name, method in train(world, settings, seed).items():
            results.reports[name] = report(method, world.down, positions=settings.positions)
    if settings.paper is not None:
        paper = trained_mml(world, settings.paper, seed, "MML as released")
        for steps in (settings.paper.steps("id"), 0):
            results.reports[f"MML as released, {steps} steps"] = report(with_steps(paper, steps), world.down)


def adaptation(world: World, settings: Settings, model: MML, steps: Mapping[str, int], results: Results) -> None:
    """What the gradient steps give by number of clicks: always taken, and taken by the learners to whom they pay.

    Beside them 0 steps and an inner rate of 0.
    """
    rate_0 = copy.copy(model)
    rate_0.config = replace(model.config, test_lr=0.0)
    ways = {"always": model, "adapted": with_steps(model, steps), "0 steps": with_steps(model, 0), "rate 0": rate_0}
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


def weights_of(blend: Blend) -> list[dict[str, object]]:
    """The weight of each method, by clicks so far, the share of them on items unseen upstream, and the gap.

    The gap before the click asked for is in deviations of its log from what is usual.
    """
    rows: list[dict[str, object]] = []
    mean, deviation = blend.usual.tolist()
    for clicks, cold, gap in product(CLICKS, (0.0, 0.5, 1.0), (-1.0, 0.0, 1.0)):
        context = torch.tensor([float(clicks), cold, mean + gap * deviation], device=blend.weight.device)
        values = (blend.features(context) @ blend.weight).tolist()
        said = {"clicks": clicks, "cold_share": cold, "gap": gap}
        rows.append({**said, "weights": dict(zip(blend.methods, values, strict=True))})
    return rows
