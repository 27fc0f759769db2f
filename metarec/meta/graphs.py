"""CUDA graphs of meta-gradients, for small batches: one launch for thousands of kernels."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.meta.memory import free
from metarec.types import EpisodeBatch, Examples

_LOG = logging.getLogger("metarec")

MULTIPLE = 4  # that lengths are padded to
MOST = 64  # shapes that are kept; further ones run without a graph
BUDGET = 1 / 2  # of the free memory, at the first batch: what users may take at once
CAPTURED = 1 / 2  # of that budget, what a batch may need to be captured

Gradients = tuple[Tensor, list[Tensor], list[Tensor]]  # losses (B,), parameters, gradients of the losses' sum


class Trained(Protocol):
    """What is captured: gradients, such as those of a :class:`~metarec.meta.MetaLearner`.

    Attributes:
        multiple: lengths are padded to multiples of it, so that fewer shapes occur.
    """

    multiple: int

    @property
    def learner(self) -> torch.nn.Module:
        """What is trained."""
        ...

    def gradients(self, part: EpisodeBatch) -> Gradients:
        """Query losses, parameters and the gradients of the losses' sum, without waiting for the GPU."""
        ...


class Graphs:
    """CUDA graphs of one meta-learner by batch shape. A shape is captured when it comes the second time."""

    def __init__(self) -> None:
        self.captured: dict[Hashable, CapturedGraph | None] = {}
        self.refused: set[Hashable] = set()  # shapes that could not be captured
        self.pool: Any = None  # one memory pool for all: they run one after another
        self._budgets: dict[torch.device, int] = {}

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        """A copy captures its own: a graph reads the weights that it was captured with."""
        return Graphs, ()

    def budget(self, device: torch.device) -> int | None:
        """Bytes that users on a GPU may take at once, by the memory that is free when it is first asked for."""
        if device.type == "cuda" and device not in self._budgets:  # pragma: no cover
            self._budgets[device] = int(BUDGET * free(device))
        return self._budgets.get(device)

    def gradients(self, meta: Trained, part: EpisodeBatch, need: int) -> Gradients | None:
        """Replay a graph for a batch that needs so many bytes; None if it should run without one."""
        return self._replayed(meta, part, need) if part.user.device.type == "cuda" else None

    def _replayed(self, meta: Trained, part: EpisodeBatch, need: int) -> Gradients | None:  # pragma: no cover
        part = padded(part, getattr(meta.learner, "max_length", None), meta.multiple)
        key = (
            tuple(t.shape for t in _tensors(part)),
            meta.learner.training,
            tuple((p.data_ptr(), p.requires_grad) for p in meta.learner.parameters()),
        )
        if key in self.refused:
            return None
        if key not in self.captured:
            if len(self.captured) < MOST and need < CAPTURED * (self.budget(part.user.device) or 0):
                self.captured[key] = None
            return None
        graph = self.captured[key]
        if graph is None:
            state = torch.cuda.get_rng_state(part.user.device)
            try:
                graph = self.captured[key] = CapturedGraph(meta, part, self.pool)
            except RuntimeError as error:
                self.refused.add(key)
                _renew_generator(part.user.device, state)
                _LOG.warning("%d users run without a CUDA graph, which takes longer: %s", len(part), _first(error))
                return None
            self.pool = graph.graph.pool()
        return graph.replayed(part)


class CapturedGraph:  # pragma: no cover
    """A captured CUDA graph of one shape, with its static inputs and outputs; the next replay overwrites those."""

    def __init__(self, meta: Trained, part: EpisodeBatch, pool: Any) -> None:
        self.part = EpisodeBatch(part.user, _copied(part.support), _copied(part.query))
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(part.user.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                meta.gradients(self.part)  # kernels that these inputs need are compiled now: a capture may not load any
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads, which fetch the next batches, may go on using the GPU while this one captures.
            with torch.cuda.graph(self.graph, pool, stream, capture_error_mode="thread_local"):
                self.found = meta.gradients(self.part)

    def replayed(self, part: EpisodeBatch) -> Gradients:
        """Replay it for other users, padded to its shape."""
        for mine, given in zip(_tensors(self.part), _tensors(part), strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.found


def _renew_generator(device: torch.device, state: Tensor) -> None:  # pragma: no cover
    """Give a GPU a generator that is in no capture: after a failed one the old one would stay in it."""
    own = torch.cuda.default_generators[device.index]
    own.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
    torch.cuda.set_rng_state(state, device)


def _first(error: BaseException) -> BaseException:  # pragma: no cover
    """What went wrong in a capture; its end then fails as well."""
    return error if error.__context__ is None else _first(error.__context__)


def padded(part: EpisodeBatch, longest: int | None, multiple: int = MULTIPLE) -> EpisodeBatch:
    """Pad histories and examples to multiples, so that fewer shapes occur; histories to ``longest`` at most.

    Histories stay as they are where nobody says how long they may be.
    """
    return EpisodeBatch(part.user, _padded(part.support, longest, multiple), _padded(part.query, longest, multiple))


def _padded(examples: Examples, longest: int | None, multiple: int) -> Examples:
    length = examples.history.shape[1]
    more = 0 if longest is None else min(-length % multiple, max(0, longest - length))
    spare = -examples.target.shape[1] % multiple
    return Examples(
        F.pad(examples.history, (0, more)),
        F.pad(examples.position, (0, spare)),
        F.pad(examples.target, (0, spare)),
        F.pad(examples.negatives, (0, 0, 0, spare)),
        F.pad(examples.weight, (0, spare)),
    )


def _copied(examples: Examples) -> Examples:  # pragma: no cover
    return Examples(*(tensor.clone() for tensor in examples.tensors()))


def _tensors(part: EpisodeBatch) -> tuple[Tensor, ...]:  # pragma: no cover
    return part.support.tensors() + part.query.tensors()
