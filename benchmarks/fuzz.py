"""Damaged and hostile files: each must be refused by a ValueError that names it, or load as what it says.

Usage::

    python benchmarks/fuzz.py --files 10000 --out fuzz.json

Half of the files are damaged as disks and networks damage them; the other half is made by somebody who computes the
checksum again. Only the latter may load as another model than the one that was saved: one that the file describes in
full, like any file that somebody else has written. Models, adapted users and training checkpoints are tried in turn.
"""

from __future__ import annotations

import json
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import add_numbers, command_line, stamp
from safetensors.torch import save as pack
from torch import Tensor
from tqdm import tqdm

import metarec as mr
from metarec.files import checksum, read_tensors, write_json
from metarec.recipes.mml import warm_up
from metarec.recipes.training import TrainingRun, settings_of, stages_of

SLOW = 10.0  # seconds that no file may take
SAME, OTHER, REFUSED = "loaded as saved", "loaded as the other model that it describes", "refused"
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 31, 1 << 62, 10**30, 1.5, 1e308, "", "x", "\ud800".encode("utf-8", "replace").decode(),
    [], [0], ["x"] * 3, {}, {"x": 0}, {"default": 1e30}, [[[]]],
)  # fmt: skip


def damaged(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A file as a disk or a network would damage it, and how."""
    header = 8 + int.from_bytes(content[:8], "little")
    changed = bytearray(content)
    kind = draw.choice(
        ["cut off", "bit in the header", "bit in the body", "header length", "zeroed", "inserted", "moved"]
    )
    place = draw.randrange(len(content))
    if kind == "cut off":
        del changed[place:]
    elif kind == "bit in the header":
        changed[draw.randrange(8, header)] ^= 1 << draw.randrange(8)
    elif kind == "bit in the body":
        changed[draw.randrange(header, len(content))] ^= 1 << draw.randrange(8)
    elif kind == "header length":
        changed[:8] = draw.choice([draw.getrandbits(64), draw.randrange(2 * len(content)), 2**63, 0]).to_bytes(
            8, "little"
        )
    elif kind == "zeroed":
        end = min(len(content), place + draw.randrange(1, 4096))
        changed[place:end] = bytes(end - place)
    elif kind == "inserted":
        changed[place:place] = draw.randbytes(draw.randrange(1, 64))
    else:
        size = draw.randrange(1, 512)
        changed[place : place + size], other = b"", bytes(changed[place : place + size])
        at = draw.randrange(len(changed) + 1)
        changed[at:at] = other
    return kind, bytes(changed)


def forged(tensors: Mapping[str, Tensor], header: Mapping[str, Any], draw: random.Random) -> tuple[str, bytes]:
    """A file made by somebody who computes the checksum again, and how."""
    new, said = dict(tensors), json.loads(json.dumps(header))
    name, other = draw.sample(sorted(new), 2)
    kind = draw.choice(list(_FORGERIES))
    text = _FORGERIES[kind](new, said, name, other, draw)
    text = json.dumps(said) if text is None else text
    seal = draw.choice([checksum(new, text)] * 9 + ["0" * 64])
    content = pack({n: t.contiguous() for n, t in new.items()}, {"metarec": text, "sha256": seal})
    return (kind, content) if kind != "huge shape" else (kind, _stretched(content, name, draw))


def _swap(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    new[name], new[other] = new[other], new[name]


def _drop(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    del new[name]


def _reshape(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    flat = new[name].flatten()
    new[name] = draw.choice([flat, flat.unsqueeze(0), flat[: len(flat) // 2], flat.repeat(3), flat[:0], flat.sum()])


def _retype(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    kinds = [torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.int8]
    new[name] = new[name].to(draw.choice(kinds))


def _values(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    changed = new[name].clone().flatten()
    if len(changed):
        value = draw.choice([-1, 2**31 - 1, 0, 1, 255]) if not changed.is_floating_point() else float("nan")
        changed[draw.randrange(len(changed))] = value % 256 if changed.dtype == torch.uint8 else value
        new[name] = changed.view(new[name].shape)


def _header(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    inner = said.get("config", said.get("settings", said))
    target = inner if draw.random() < 0.7 else said
    key = draw.choice(sorted(target))
    if draw.random() < 0.1:
        del target[key]
    else:
        target[key] = draw.choice(STRANGE)


def _nested(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> str:
    depth = draw.choice([100, 1000, 100_000])
    return draw.choice(["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "9" * depth])


def _stretch(new: dict[str, Tensor], said: dict[str, Any], name: str, other: str, draw: random.Random) -> None:
    """Done to the packed bytes."""


_FORGERIES: dict[str, Callable[..., str | None]] = {
    "tensors swapped": _swap,
    "tensor missing": _drop,
    "tensor reshaped": _reshape,
    "tensor of another type": _retype,
    "value out of range": _values,
    "JSON of another type": _header,
    "deep nesting": _nested,
    "huge shape": _stretch,
}


def _stretched(content: bytes, name: str, draw: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    said = json.loads(content[8 : 8 + size])
    entry = said[name]
    entry["shape"] = draw.choice(
        [[2**62], [2**40, 2**40], [0, 2**63 - 1], [10**30], [-1], [1] * 10_000, entry["shape"] + [0]]
    )
    if draw.random() < 0.5:
        entry["data_offsets"] = draw.choice([[0, 2**62], [2**62, 2**63], [-1, 4], [0, 0], [5, 1]])
    packed = json.dumps(said).encode()
    return len(packed).to_bytes(8, "little") + packed + content[8 + size :]


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


SAVED = {"models": saved_model, "users": saved_users, "checkpoints": saved_checkpoint}


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
        "files": (10_000, "mutated files of each of models, users and checkpoints"),
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
