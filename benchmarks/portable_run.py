"""One data set with one seed: what the recipe chose, each of its parts alone, adapting or not, and other libraries.

What is found is kept in a file for each section, so that a run that is cut off goes on where it was.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from portable_data import Split, facts
from portable_peers import PEERS, peer_reports
from tqdm import tqdm

from metarec.data import Dataset
from metarec.evaluation import evaluate
from metarec.files import write_json
from metarec.functional.histories import leaves_out_seen
from metarec.nn.record import record_of
from metarec.recipes import Ensemble, MMLConfig, mml_blend
from metarec.recipes.components import Fitting, Setup, of_groups
from metarec.recipes.fit import fit
from metarec.recipes.nested_validation import NestedValidation
from metarec.report import Report
from metarec.types import Method

POSITIONS = 3  # last clicks of each cold user that are asked for
CLICKS = (1, 2, 3, 5, 10, 50)  # known of a user, where adapting is looked at
INFORMATION = ("upstream", "live")
ENSEMBLE = "fitted"
BATCH = 256
Section = dict[str, Any]


class Recipe(Protocol):
    """What is evaluated: fits an ensemble to an upstream side, as ``metarec.fit`` does."""

    def __call__(self, upstream: Dataset, *, live: Dataset | None, seed: int, device: torch.device | str) -> Ensemble:
        """The ensemble; with ``live`` it may count all clicks until the moment of each question."""
        ...


def blend(upstream: Dataset, *, live: Dataset | None, seed: int, device: torch.device | str) -> Ensemble:
    """The released recipe with its defaults, or without modalities where the items have none."""
    modalities = None if upstream.catalog.modalities else ()
    return mml_blend(upstream, MMLConfig(modalities=modalities), live=live, seed=seed, device=device)


def counts(upstream: Dataset, *, live: Dataset | None, seed: int, device: torch.device | str) -> Ensemble:
    """Counts alone, for a look at a data set in seconds."""
    setup = Setup(upstream, live=live, seed=seed, device=device)
    components = of_groups("counts", *([] if live is None else ["live"]))
    return NestedValidation(upstream, Fitting(components, setup), device=device).ensemble(context=False)


RECIPES: dict[str, Recipe] = {"fit": fit, "mml_blend": blend, "counts": counts}


class Runs:
    """Sections of results, each computed once and kept in a file, as long as the data set stays what it is.

    Args:
        folder: where they are kept: those of ours by the recipe's name, those of the peers for all recipes.
        recipe: its name.
        commit: what runs now, noted in each.
    """

    def __init__(self, folder: Path, recipe: str, commit: str) -> None:
        self.folder, self.recipe, self.commit = folder, recipe, commit

    def section(self, split: Split, seed: int, name: str, make: Callable[[], Section]) -> Section:
        """What was kept, or what ``make`` finds now."""
        path = self.folder / ("peers" if name in PEERS else self.recipe) / split.name / f"{seed}-{name}.json"
        sign = signature(split)
        if path.exists():
            found: Section = json.loads(path.read_text(encoding="utf-8"))
            if found["signature"] == sign:
                say(f"{split.name}, seed {seed}, {name}: kept from {found['commit'][:10]}")
                return found
        began = time.perf_counter()
        found = {"commit": self.commit, "signature": sign, **make()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        say(f"{split.name}, seed {seed}, {name}: {time.perf_counter() - began:.0f} s")
        return found


def signature(split: Split) -> str:
    """Tells one state of a data set from another."""
    columns = [getattr(side, name) for side in (split.up, split.down) for name in ("user", "item", "time")]
    views = [view.features.numpy() for _, view in sorted(split.data.catalog.modalities.items())]
    digest = hashlib.sha256()
    for column in (*columns, *views):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def say(text: str) -> None:
    """A line that no bar runs over."""
    tqdm.write(f"{time.strftime('%H:%M:%S')} {text}")


def one(
    split: Split, seed: int, recipe: Recipe, runs: Runs, *, device: torch.device, peers: Path | None, **settings: Any
) -> Section:
    """All sections of one data set with one seed.

    Args:
        split: the data.
        seed: of weights and draws.
        recipe: what is evaluated.
        runs: where sections are kept.
        device: of ours.
        peers: the Python of the environment that has the peers, None for none.
        settings: of the peers' training.
    """
    out: Section = {"data": split.name, "seed": seed, "facts": facts(split)}
    known: tuple[str, ...] = ()
    for information in INFORMATION:
        live = split.data if information == "live" else None

        def make(live: Dataset | None = live, known: tuple[str, ...] = known) -> Section:
            return ours(split, live, seed, recipe, device, known)

        out[information] = runs.section(split, seed, information, make)
        known = tuple(out[information]["reports"]["ranks"])
    if peers is not None:
        out["peers"] = others(split, seed, runs, peers, settings)
    return out


def ours(
    split: Split, live: Dataset | None, seed: int, recipe: Recipe, device: torch.device, known: Sequence[str]
) -> Section:
    """The ensemble, and each part alone; those that are known already and count nothing live are left out.

    Counts that the ensemble does without are parts, too, or the best in hindsight could be one that nobody looked at.
    """
    began = time.perf_counter()
    model = recipe(split.up, live=live, seed=seed, device=device)
    seconds = time.perf_counter() - began
    reports: dict[str, Report] = {ENSEMBLE: report(model, split.down)}
    adaptation = []
    for name, part in model.members().items():
        if name not in known or record_of(inner(part)).information == "live":
            reports[name] = report(part, split.down)
        if live is None:
            adaptation += adapting(name, part, split)
    for name, count in other_counts(split, live, seed, device, [*reports, *known]):
        reports[name] = report(count, split.down)
    chosen = plain(getattr(model, "report", None))
    return {"seconds": seconds, "chosen": chosen, "reports": packed(reports), "adaptation": adaptation}


def other_counts(
    split: Split, live: Dataset | None, seed: int, device: torch.device, known: Sequence[str]
) -> Iterator[tuple[str, Method]]:
    """The counts that are not known, fitted on the upstream side, or those of live clicks."""
    setup = Setup(split.up, live=live, seed=seed, device=device)
    repeats = not leaves_out_seen(split.up.known_repeat_share)
    groups = ("counts", "more", *(["repeats"] if repeats else [])) if live is None else ("live",)
    for component in of_groups(*groups):
        if component.name in known:
            continue
        try:
            yield from component.fit(setup).items()
        except ValueError as error:  # it counts days, and nothing says how long they are
            say(f"{split.name}: {component.name} left out: {error}")


def adapting(name: str, part: Method, split: Split) -> list[Section]:
    """A part with its inner steps and without, by clicks known; nothing of a part that takes none."""
    still = unadapted(part)
    if still is None:
        return []
    out = []
    for clicks in CLICKS:
        pair = {"adapted": part, "unadapted": still}
        reports = {
            way: evaluate(method, split.down, k=(10,), part="serving", max_length=clicks, users_per_batch=BATCH)
            for way, method in pair.items()
        }
        out.append({"part": name, "clicks": clicks, "reports": packed(reports)})
    return out


def unadapted(part: Method) -> Method | None:
    """The same weights without inner steps; None for what takes none."""
    learner = inner(part)
    steps = getattr(learner, "steps", 0)
    if not isinstance(steps, int) or not steps:
        return None
    still: Any = copy.copy(learner)
    still.steps = 0
    return still  # type: ignore[no-any-return]


def inner(part: Method) -> Method:
    """The method inside a model that wraps one."""
    found: Method = getattr(part, "method", part)
    return found


def others(split: Split, seed: int, runs: Runs, python: Path, settings: Mapping[str, Any]) -> Section:
    """The peers, on the same questions; a section each."""
    reports, told = dict[str, Report](), {}
    for peer in PEERS:

        def make(peer: str = peer) -> Section:
            answered = peer_reports(split, seed, python, POSITIONS, [peer], **settings)[peer]
            return {"reports": packed({peer: answered.report}), "told": dict(answered.told)}

        found = runs.section(split, seed, peer, make)
        reports |= unpacked(found["reports"])
        told[peer] = found["told"]
    return {"reports": packed(reports), "told": told}


def report(method: Method, data: Dataset) -> Report:
    """The protocol of every figure."""
    return evaluate(method, data, k=(10,), positions=POSITIONS, users_per_batch=BATCH)


def packed(reports: Mapping[str, Report]) -> Section:
    """Reports of the same clicks as plain values.

    Raises:
        ValueError: if they are of other clicks.
    """
    first = next(iter(reports.values()))
    for name, other in reports.items():
        if not (np.array_equal(first.user, other.user) and np.array_equal(first.target, other.target)):
            raise ValueError(f"{name} was asked for other clicks than {next(iter(reports))}")
    columns = {name: getattr(first, name).tolist() for name in ("user", "target", "is_cold", "is_repeat")}
    infos = {name: dict(other.info) for name, other in reports.items()}
    ranks = {n: [rank if math.isfinite(rank) else None for rank in r.rank.tolist()] for n, r in reports.items()}
    return {**columns, "infos": infos, "ranks": ranks}


def unpacked(section: Section) -> dict[str, Report]:
    """Reports as they were before :func:`packed`."""
    columns: dict[str, Any] = {name: np.array(section[name]) for name in ("user", "target", "is_cold", "is_repeat")}
    return {
        name: Report(
            rank=np.array([math.inf if rank is None else rank for rank in ranks]),
            k=(10,),
            info=section["infos"][name],
            **columns,
        )
        for name, ranks in section["ranks"].items()
    }


def plain(value: Any) -> Any:
    """What a recipe says of its choice, as JSON can hold it."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return value if isinstance(value, dict | list | str | int | float | bool | None) else str(value)
