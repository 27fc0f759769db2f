"""Damaged and hostile files: each must be refused by a ValueError that names it, or load as what it says.

Usage::

    python benchmarks/fuzz.py --files 10000 --out fuzz.json

Half of the files are damaged as disks and networks damage them; the other half is made by somebody who computes the
checksum again. Only the latter may load as another model than the one that was saved: one that the file describes in
full, like any file that somebody else has written. Models, ensembles of all kinds, adapted users and training
checkpoints are tried in turn.
"""

from __future__ import annotations

import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from forging import damaged, forged
from machine import add_numbers, command_line, stamp
from tqdm import tqdm

import metarec as mr
from metarec.files import read_tensors, write_json
from metarec.recipes.anil import HeadLearner
from metarec.recipes.metasgd import MetaSGD
from metarec.recipes.metatl import TransitionLearner
from metarec.recipes.mml import warm_up
from metarec.recipes.training import TrainingRun, settings_of, stages_of

SLOW = 10.0  # seconds that no file may take
SAME, OTHER, REFUSED = "loaded as saved", "loaded as the other model that it describes", "refused"


def outcome(path: Path, alike: Callable[[Path], bool], *, sealed: bool) -> str:
    """What comes of reading a file: one of the three good ends, or what went wrong."""
    began = time.perf_counter()
    try:
        as_saved = alike(path)
    except ValueError as error:
        end = REFUSED if str(path) in str(error) else f"refused without a name: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        end = f"{type(error).__name__}: {error}"
    else:
        end = SAME if as_saved else OTHER if sealed else "another content than was saved"
    return end if time.perf_counter() - began < SLOW else f"more than {SLOW} s"


def same(a: mr.MML, b: mr.MML) -> bool:
    """Whether two models are equal, bit for bit."""
    first, second = a.state_dict(), b.state_dict()
    if a.config != b.config or a.catalog.items != b.catalog.items or list(first) != list(second):
        return False
    kept = (
        {n: m.features for n, m in a.catalog.modalities.items()},
        {n: m.features for n, m in b.catalog.modalities.items()},
    )
    pairs = [*zip(first.values(), second.values(), strict=True), *((kept[0][n], kept[1].get(n)) for n in kept[0])]
    return all(y is not None and x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def small_model() -> mr.MML:
    """A model of a few kilobytes with everything that a file can hold."""
    return mr.MML.build(_small_data(), mr.MMLConfig(dim=4, layers=1, max_length=5)).eval()


def _small_data() -> mr.Dataset:
    return mr.split_by_time(mr.datasets.planted(users=60, items=20), at=mr.datasets.PLANTED_SPLIT)[0]


def saved_model(path: Path) -> Callable[[Path], bool]:
    """Writes a model; what is returned reads a file and says whether it holds the same one."""
    model = small_model()
    mr.save(model, path)
    return lambda file: same(mr.load(file), model)


def saved_ensemble(path: Path) -> Callable[[Path], bool]:
    """The same for an ensemble of learners that share weights, of what adapts them, and of counts."""
    data, model, recipes = _small_data(), small_model(), mr.recipes
    learners = {"id": model.meta("id"), "text": model.meta("text"), "MML": model}
    plain = recipes.sasrec.build(data, ("id", "text"), dim=4, layers=1, max_length=5)
    learners |= {"sum": plain, "anil": mr.MetaLearner(HeadLearner(plain)), "sgd": MetaSGD(plain)}
    learners["tl"] = mr.MetaLearner(TransitionLearner(data, dim=4), objectives=("softmax", "softmax"))
    live = recipes.LivePopularity(data, window=1e6), recipes.Transitions(data, live=True)
    counts = [mr.Popularity(data), recipes.EASE(data), recipes.CoClicks(data), recipes.ItemKNN(data), *live]
    parts = {**learners, **{f"{type(c).__name__} {n}": c for n, c in enumerate(counts)}}
    mr.save(recipes.Ensemble({"all": recipes.Ensemble(parts, data), "again": model}, data).eval(), path)
    expected, said = read_tensors(path)

    def alike(file: Path) -> bool:
        mr.save(mr.load(file), file)
        found, header = read_tensors(file)
        equal = found.keys() == expected.keys() and all(torch.equal(t, expected[name]) for name, t in found.items())
        return equal and header == said

    return alike


def saved_users(path: Path) -> Callable[[Path], bool]:
    """The same for adapted users, whose lists must be finite."""
    recommender = mr.Recommender(small_model())
    users = recommender.adapt([["item1", "item2", "item3"], [], ["item4"]])
    users.save(path)

    def alike(file: Path) -> bool:
        read = recommender.load_users(file)
        if len(read):
            read.recommend(3, exclude_seen=False)
        found, expected = read.state.tensors.values(), users.state.tensors.values()
        equal = all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        return equal and read.clicks.codes.tolist() == users.clicks.codes.tolist()

    return alike


def saved_checkpoint(path: Path) -> Callable[[Path], bool]:
    """The same for a training after an epoch of its first stage; what goes on must have finite weights."""
    data = _small_data()
    config = mr.MMLConfig(dim=4, layers=1, max_length=5, modalities=("text",), warmup_epochs=2)
    stages = stages_of(config, ["id", "text"], ["id", "text"], 1)

    def begun(file: Path, model: mr.MML) -> TrainingRun:
        settings = settings_of(config, mr.EpisodeSampler(data), None)
        return TrainingRun(model, seed=0, settings=settings, checkpoint=file, stages=stages)

    def go_on(run: TrainingRun, model: mr.MML) -> Iterator[mr.Progress]:
        return warm_up(model, "id", mr.EpisodeSampler(data, max_length=5), run)

    first = mr.MML.build(data, config)
    training = go_on(begun(path, first), first)
    while next(training).epoch == 1:
        pass
    expected, _ = read_tensors(path)

    def alike(file: Path) -> bool:
        model = mr.MML.build(data, config)
        run = begun(file, model)
        equal = all(torch.equal(tensor, expected[f"model.{name}"]) for name, tensor in model.state_dict().items())
        next(go_on(run, model), None)
        return equal

    return alike


SAVED = {"models": saved_model, "ensembles": saved_ensemble, "users": saved_users, "checkpoints": saved_checkpoint}


def attack(files: int, seed: int, *, what: str = "models", progress: bool = True) -> dict[str, Counter[str]]:
    """Read that many mutated files; how each kind of them ended."""
    draw, found = random.Random(seed), dict[str, Counter[str]]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.safetensors"
        alike = SAVED[what](path)
        content, (tensors, header) = path.read_bytes(), read_tensors(path)
        for number in tqdm(range(files), desc=what, unit=" files", disable=not progress):
            sealed = number % 2 == 1
            kind, changed = forged(tensors, header, draw) if sealed else damaged(content, draw)
            path.write_bytes(changed)
            found.setdefault(kind, Counter())[outcome(path, alike, sealed=sealed)] += 1
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, attack, write the JSON."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    numbers = {
        "files": (10_000, "mutated files of each of models, ensembles, users and checkpoints"),
        "seed": (0, "of the mutations"),
    }
    add_numbers(parser, numbers, least={"seed": 0})
    options = parser.parse_args(arguments)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    each = {what: attack(options.files, options.seed, what=what) for what in SAVED}
    total = sum((ends for found in each.values() for ends in found.values()), Counter[str]())
    bad = {end: n for end, n in total.items() if end not in (SAME, OTHER, REFUSED)}
    result = {
        "files": len(SAVED) * options.files,
        "outcomes": dict(total),
        "bad": bad,
        "kinds": {f"{what}: {kind}": dict(ends) for what in each for kind, ends in sorted(each[what].items())},
        "peak_rss_growth_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "seconds": time.perf_counter() - began,
        "seed": options.seed,
        **stamp(torch.device("cpu")),
    }
    write_json(options.out, result)
    print(f"{result['files']} files: {dict(total)}; bad: {bad or 'none'}; written to {options.out}")


if __name__ == "__main__":
    main()
