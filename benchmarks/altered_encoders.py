"""Altered encoders: whether every engine gives what a loop over users in plain torch gives, or says that it cannot.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/altered_encoders.py --examples 20000 --out altered_encoders.json

An example is a random encoder with random parts altered (``altering.py`` lists how), adapted to a few users in first or
second order. Compared are weights, scores, query losses and the gradients of an outer loss, to 1e-6 in float64 and 2e-3
in float32, relative to the largest number; and everything in the encoder before and after. Examples run in processes of
their own, so that a crash is counted and the rest goes on.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from altering import altered
from machine import add_machine_options, add_numbers, command_line, stamp
from own_encoders import DIM
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from metarec.files import write_json
from metarec.meta import MetaLearner
from metarec.nn import IdItems, ModalityLearner
from metarec.nn.learner import Objective
from metarec.types import Examples

ITEMS, LR = 9, 0.3
CLOSE = {torch.float64: 1e-6, torch.float32: 2e-3}
STEP_OF_INT8 = 5e-2  # a quantised layer may round a number up or down


class _Called(nn.Module):
    """Lets ``functional_call`` reach a learner's loss and scores."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, method: str, *given: Any) -> Any:
        """``learner.method(*given)``."""
        return getattr(self.learner, method)(*given)


def users(draw: torch.Generator, dtype: torch.dtype) -> tuple[Examples, Examples]:
    """Support and query of two users with histories of unlike lengths."""
    lengths = torch.randint(2, 6, (2,), generator=draw)
    real = torch.arange(5) < lengths[:, None]
    click = torch.randint(1, ITEMS, (2, 6), generator=draw)
    drawn = torch.randint(1, ITEMS, (2, 5, 2), generator=draw)
    support = Examples(click[:, :5] * real, torch.arange(5) * real, click[:, 1:] * real, drawn, real.to(dtype))
    query = Examples(
        click[:, :5] * real, lengths[:, None] - 1, click[:, 5:], drawn[:, :1], torch.ones(2, 1, dtype=dtype)
    )
    return support, query


def expected(
    learner: ModalityLearner, support: Examples, query: Examples, steps: int, objectives: tuple[Objective, Objective]
) -> dict[str, Tensor]:
    """First order: each user steps in the learner itself, whose weights are put back afterwards."""
    shared = [p for p in learner.encoder.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in shared]
    kept = [(b, b.clone()) for b in learner.buffers()]
    trained, totals, out = _trained(learner), [0 * p for p in _trained(learner)], []
    for user in range(len(support)):
        for _ in range(steps):
            loss = learner.loss(support[user : user + 1], objectives[0]).sum()
            slopes = torch.autograd.grad(loss, shared, allow_unused=True) if shared and loss.requires_grad else ()
            for p, slope in zip(shared, slopes, strict=False):
                if slope is not None:
                    p.data = p.data - LR * slope
        loss = learner.loss(query[user : user + 1], objectives[1]).sum()
        slopes = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else ()
        totals = [t if s is None else t + s for t, s in zip(totals, slopes or [None] * len(totals), strict=True)]
        with torch.no_grad():
            scores = learner.score(query[user : user + 1])[0]
        weights = torch.cat([p.detach().flatten() for p in learner.encoder.parameters()])
        out.append((scores[0], loss.detach(), weights))
        for p, value in zip(shared, before, strict=True):
            p.data = value.clone()
        for buffer, value in kept:
            buffer.data.copy_(value)
    return _named(out, totals)


def expected_second(
    learner: ModalityLearner, support: Examples, query: Examples, steps: int, objectives: tuple[Objective, Objective]
) -> dict[str, Tensor]:
    """Second order: each user's weights as functions of the shared ones."""
    called, trained = _Called(learner), _trained(learner)
    names = {f"learner.encoder.{n}": p for n, p in learner.encoder.named_parameters()}
    out, totals = [], [0 * p for p in trained]
    for user in range(len(support)):
        own: dict[str, Tensor] = dict(names)
        moving = [n for n, p in names.items() if p.requires_grad]
        for _ in range(steps):
            loss = functional_call(called, own, ("loss", support[user : user + 1], objectives[0])).sum()
            if moving and loss.requires_grad:
                slopes = torch.autograd.grad(loss, [own[n] for n in moving], create_graph=True, allow_unused=True)
                own |= {n: own[n] - LR * s for n, s in zip(moving, slopes, strict=True) if s is not None}
        loss = functional_call(called, own, ("loss", query[user : user + 1], objectives[1])).sum()
        slopes = torch.autograd.grad(loss, trained, allow_unused=True, retain_graph=True)
        totals = [t if s is None else t + s for t, s in zip(totals, slopes, strict=True)]
        with torch.no_grad():
            scores = functional_call(called, own, ("score", query[user : user + 1]))[0]
        out.append((scores[0], loss.detach(), torch.cat([own[n].detach().flatten() for n in names])))
    return _named(out, totals)


def found(
    meta: MetaLearner, learner: ModalityLearner, support: Examples, query: Examples, order: Sequence[str]
) -> dict[str, Tensor]:
    """The same from a MetaLearner."""
    with torch.no_grad():
        adapted = meta.adapt(support)
        scores, weights = adapted.score(query)[0], adapted.weights()
    losses = meta.adapt(support).loss(query, meta.objectives[1])
    trained = _trained(learner)
    slopes = torch.autograd.grad(losses.sum(), trained, allow_unused=True) if losses.requires_grad else [None] * 99
    flat = torch.cat([weights[f"encoder.{name}"].flatten(1) for name in order], 1)
    gradient = [0 * p if s is None else s for p, s in zip(trained, slopes, strict=False)]
    return {"scores": scores, "loss": losses.detach(), "weights": flat, "gradient": _flat(gradient)}


def compare(seed: int) -> tuple[str, str]:
    """One example: ``same``, ``refused``, ``different`` or, in plain torch too, ``impossible``, and what it was."""
    draw = random.Random(-1 - seed)
    dtype = draw.choice((torch.float64, torch.float64, torch.float32))
    encoder, told = altered(seed, dtype)
    items = IdItems(ITEMS, DIM)
    items.weight.data.mul_(30)
    learner = ModalityLearner(items, encoder).to(dtype)
    support, query = users(torch.Generator().manual_seed(seed), dtype)
    losses: tuple[Objective, ...] = ("bpr", "softmax")
    steps, objectives = draw.choice((0, 1, 3)), (draw.choice(losses), draw.choice(losses))
    tied = len(list(encoder.named_parameters(remove_duplicate=False))) > len(list(encoder.parameters()))
    own = any(callable(v) for m in encoder.modules() for v in vars(m).values())
    second = draw.random() < 0.3 and not tied and not own
    told += f"; {dtype}, {steps} steps, {objectives}, {'second' if second else 'first'} order"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            want = (expected_second if second else expected)(learner, support, query, steps, objectives)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            return "impossible", f"{told}: not even plain torch: {error}"
        state = _state(learner)
        names = [name for name, _ in encoder.named_parameters()]
        meta = MetaLearner(learner, lr=LR, steps=steps, second_order=second, objectives=objectives)
        try:
            got = found(meta, learner, support, query, names)
        except TypeError as error:
            return ("refused" if "TorchScript" in str(error) else "different"), f"{told}: {error}"
        except (RuntimeError, ValueError, AttributeError) as error:
            return "different", f"{told}: {type(error).__name__}: {error}"
    if _state(learner) != state:
        return "different", f"{told}: the encoder was left changed"
    for name, value in want.items():
        off = float((got[name] - value).abs().max() / value.abs().max().clamp(min=1)) if value.numel() else 0.0
        if not off <= (STEP_OF_INT8 if "quantised" in told and dtype == torch.float32 else CLOSE[dtype]):
            return "different", f"{told}: {name} by {off:.1e}"
    return "same", told


def _trained(learner: nn.Module) -> list[nn.Parameter]:
    return [p for p in learner.parameters() if p.requires_grad]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def _named(out: list[tuple[Tensor, Tensor, Tensor]], gradient: Sequence[Tensor]) -> dict[str, Tensor]:
    scores, losses, weights = (torch.stack(part) for part in zip(*out, strict=True))
    return {"scores": scores, "loss": losses, "weights": weights, "gradient": _flat(gradient)}


def _state(learner: nn.Module) -> list[Any]:
    """Everything in a module, by identity, and the numbers of its tensors."""
    kept = [
        (n, id(m), {k: (id(v) if isinstance(v, Tensor | nn.Module) else str(type(v))) for k, v in vars(m).items()})
        for n, m in learner.named_modules()
    ]
    tensors = [
        (n, id(t), t.detach().numpy().tobytes()) for n, t in (*learner.named_parameters(), *learner.named_buffers())
    ]
    return [kept, tensors]


def run(seeds: range) -> dict[str, Any]:
    """Many examples: how many were how, and which were different."""
    outcomes = [compare(seed) for seed in seeds]
    kinds = [kind for kind, _ in outcomes]
    told = [f"{seed}: {text}" for seed, (kind, text) in zip(seeds, outcomes, strict=True) if kind == "different"]
    tried = len(kinds) - kinds.count("impossible")
    return {"tried": tried, "refused": kinds.count("refused"), "differences": len(told), "different": told}


def _apart(seeds: range) -> dict[str, Any]:
    """The same in a process of its own; if that dies, in halves, so that the examples that kill it are counted."""
    command = [sys.executable, __file__, "--seeds", str(seeds.start), str(seeds.stop), "--out", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return {**json.loads(done.stdout.splitlines()[-1]), "crashes": 0}
    if len(seeds) == 1:
        told = f"{seeds.start}: exit {done.returncode} {done.stderr[-300:]}"
        return {"tried": 1, "refused": 0, "differences": 0, "different": [told], "crashes": 1}
    middle = len(seeds) // 2
    parts = [_apart(seeds[:middle]), _apart(seeds[middle:])]
    return {name: sum((part[name] for part in parts), type(parts[0][name])()) for name in parts[0]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run the examples, write the JSON, print a summary."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True, metavar="FILE.json", help="where the result goes")
    parser.add_argument("--seeds", type=int, nargs=2, metavar="N", help="run these examples here and print the result")
    add_numbers(parser, {"examples": (20_000, "encoders to try"), "each": (1000, "examples in one process")})
    add_machine_options(parser, "cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.seeds:
        print(json.dumps(run(range(*options.seeds))))
        return
    starts = range(0, options.examples, options.each)
    blocks = [range(start, min(start + options.each, options.examples)) for start in starts]
    results = [_apart(block) for block in tqdm(blocks, desc="altered encoders", unit="block")]
    total = {name: sum(r[name] for r in results) for name in ("tried", "crashes", "differences", "refused")}
    different = [text for r in results for text in r["different"]][:20]
    write_json(Path(options.out), {**total, "different": different, **stamp(options.device, options.commit)})
    print(", ".join(f"{name} {value:,}" for name, value in total.items()), f"written to {options.out}", sep="\n")


if __name__ == "__main__":
    main()
