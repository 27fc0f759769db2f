"""The compiled encoder of ``encoder_kernel.c``, by ctypes: finding it, describing a pass to it, running it."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KERNEL = "post-norm transformer"  # what an encoder's class says of itself if the library computes just that
MOST_WIDE = 1024  # D; the library's MAX_WIDE
OBJECTIVES = {"bpr": 0, "sampled_softmax": 1}  # losses that the library knows
FORWARD, BACKWARD, STEP, DESCEND, LEARN, VALUES = range(6)  # what a job is to do

_LOG = logging.getLogger("metarec")
_SIZES = ("users", "length", "asked", "dim", "heads", "layers", "feedforward", "positions", "threads")
_MODES = ("stride", "what", "failed", "steps", "objective", "compared", "second")
_GIVEN = ("drop", "eps", "weights", "moved", "x", "keep", "bias", "at")
_MADE = ("saved", "state", "dstate", "dx", "dbias", "vectors", "weight", "dvectors", "losses", "query")

_COUNTED = [name for name in (*_GIVEN, *_MADE) if name != "query"]
_PLACE = {name: place for place, name in enumerate(_COUNTED)}
_KINDS = {"keep": torch.bool, "at": torch.int64}  # of the tensors that are not of the weights' type
SIZES, ADDRESSES, QUERY = 100, 200, 1000  # where the library's codes for errors begin


class Job(ctypes.Structure):
    """One pass of one encoder over B users; the ``Job`` of the C file.

    Attributes:
        users: B; length: L; asked: S; positions: rows of the position table.
        stride: numbers from one user's weights to the next's; 0 while all users share them.
        what: ``FORWARD``; ``BACKWARD``, which adds the gradients of the users' weights to rows of ``moved``, if any,
            one for each thread; ``STEP``, a backward pass that writes each user's stepped weights to its row of
            ``moved``; ``DESCEND``, all inner steps; ``LEARN``, loss and gradients at the weights that another job led
            to; ``VALUES``, a forward pass that no backward pass follows.
        failed: 1 if there was not enough memory, 2 if a position is out of range.
        rate: minus the step size, or 1.
        drop: (1 + layers) dropout probabilities; eps: (1 + 2 layers) of the norms.
        x: (B, L, D); keep: (B, L); bias: (B, L, L) or null; at: (B, S); state, dstate: (B, S, D); dx, dbias: like x and
            bias, or null where not wanted.
        saved: what the backward pass needs of the forward pass, of each user, or of each thread if one pass follows the
            other at once; in second order twice as much.
        steps: of ``DESCEND``.
        objective: a number from ``OBJECTIVES``; a loss of the products of the states with ``compared`` vectors (B, S,
            compared, D), of which the first is the target's, and with a weight (B, S) for each example.
        dvectors: like vectors; losses: (B,).
        query: of a job that descends, one that learns: with each user's weights as soon as they are found. ``moved``
            is then a row for each thread.
        second: 1 for gradients through the steps: then ``moved`` is ``steps + 1`` rows for each thread, and dx, dbias
            and dvectors of the support are added to.
        count: how many numbers lie at each address but ``query``. The library refuses a pass that would leave them.
    """

    _fields_ = (
        *((name, ctypes.c_int64) for name in (*_SIZES, *_MODES)),
        ("seed", ctypes.c_uint64),
        ("rate", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in (*_GIVEN, *_MADE)),
        ("count", ctypes.c_int64 * len(_COUNTED)),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where it was not built or this processor cannot run it, which is said once."""
    paths = (Path(__file__).with_name(f"_encoder_kernel{suffix}") for suffix in EXTENSION_SUFFIXES)
    found = next((_opened(path) for path in paths if path.exists()), None)
    if found is None:
        _LOG.warning(
            "the compiled kernel is not there, so a CPU adapts users at a third of the speed or less: install a wheel "
            "of metarec, or a C compiler and then `pip install --force-reinstall --no-deps --no-binary metarec metarec`"
        )
    elif not found.encoder_threads() and (os.cpu_count() or 1) > 1:
        _LOG.warning(
            "the compiled kernel runs on one thread, since no OpenMP runtime that it knows is loaded: install one "
            "(libgomp1 on Debian, libgomp on Fedora), or spread the work over processes"
        )
    return found


def has_threads() -> bool:
    """Whether the kernel is there and runs on more threads than the caller's."""
    found = library()
    return found is not None and bool(found.encoder_threads())


def _opened(path: Path) -> ctypes.CDLL | None:
    try:
        found = ctypes.CDLL(str(path))
    except OSError:
        return None
    job, number, place = ctypes.POINTER(Job), ctypes.c_int64, ctypes.c_void_p
    found.encoder_run.argtypes = [job, number]
    found.encoder_sizes.argtypes = [job, number, place]
    found.encoder_convert.argtypes = [job, number, place, number, place, place, number, number]
    return found if found.encoder_runs() else None


class Pass:
    """A job and the tensors that its addresses point to.

    Args:
        like: of the weights' type.
        sizes: of the encoder, by the names of :class:`Job`.
        drop: dropout probabilities.
        eps: of the norms.

    Raises:
        RuntimeError: if there is no compiled kernel.
    """

    def __init__(self, like: Tensor, sizes: Mapping[str, int], drop: Sequence[float], eps: Sequence[float]) -> None:
        found = library()
        if found is None:
            raise RuntimeError("the encoder's kernel was not built; installing builds it where there is a C compiler")
        self.library, self.job, self.wide = found, Job(), int(like.dtype == torch.float64)
        self.kind = like.dtype
        self.held: dict[str, Any] = {}
        self.set(**sizes)
        for name, numbers in (("drop", drop), ("eps", eps)):
            self.held[name] = (ctypes.c_double * len(numbers))(*numbers)
            self._put(name, ctypes.addressof(self.held[name]), len(numbers))

    def set(self, **numbers: float) -> None:
        """Set numbers of the job."""
        for name, number in numbers.items():
            setattr(self.job, name, number)

    def point(self, **tensors: Tensor | None) -> None:
        """Set addresses.

        Raises:
            ValueError: if a tensor is not contiguous, on a CPU and of the right type.
        """
        self.held.update(tensors)
        for name, tensor in tensors.items():
            if tensor is None:
                self._put(name, None, 0)
                continue
            kind = _KINDS.get(name, self.kind)
            if tensor.dtype != kind or not tensor.is_contiguous() or not tensor.is_cpu:
                raise ValueError(
                    f"the encoder's kernel: {name} must be contiguous {kind} on a CPU, got {tensor.dtype} on "
                    f"{tensor.device} with strides {tensor.stride()} of {tuple(tensor.shape)}"
                )
            self._put(name, tensor.data_ptr(), tensor.numel())

    def _put(self, name: str, address: int | None, count: int) -> None:
        setattr(self.job, name, address)
        self.job.count[_PLACE[name]] = count

    def followed(self, query: Pass) -> None:
        """Let another pass learn from the weights that this one leads to."""
        self.held["query"] = query
        self.job.query = ctypes.addressof(query.job)

    def sizes(self) -> tuple[int, int]:
        """Numbers of a row of weights and of what a forward pass saves, per user.

        Raises:
            ValueError: if there is no encoder of such sizes.
        """
        out = (ctypes.c_int64 * 2)()
        self._check(self.library.encoder_sizes(self.job, self.wide, out))
        return out[0], out[1]

    def convert(self, row: Tensor, parameters: Sequence[Tensor], *, back: bool) -> None:
        """Fill a row of weights from the encoder's parameters, or with ``back`` the parameters from a row.

        Raises:
            ValueError: if a parameter has not the size that the encoder's has, or is not contiguous.
        """
        places = (ctypes.c_void_p * len(parameters))(*(p.data_ptr() for p in parameters))
        whole = all(p.is_contiguous() and p.dtype == self.kind for p in (row, *parameters))
        counts = (ctypes.c_int64 * len(parameters))(*(p.numel() for p in parameters))
        ends = row.data_ptr(), row.numel(), places, counts, len(parameters)
        wrong = self.library.encoder_convert(self.job, self.wide, *ends, back) if whole else -1
        if wrong:
            raise ValueError(
                f"the encoder's kernel: {f'parameter {wrong - 1}' if wrong > 0 else 'the row of weights'} is not that "
                f"of the encoder, among {len(parameters)} parameters of {list(counts)} numbers and a row "
                f"of {row.numel()}"
            )

    def run(self) -> None:
        """The pass, on torch's number of threads.

        Raises:
            IndexError: if a position is not within the history.
            MemoryError: if there was no memory for what is at hand.
            ValueError: if a size is impossible, or a tensor has fewer numbers than the sizes say.
        """
        self._check(self.library.encoder_run(self.job, self.wide))

    def _check(self, failed: int) -> None:
        """Raise what a code of the library means."""
        if failed == 1:
            raise MemoryError("the encoder's kernel got no memory for its scratch numbers")
        if failed == 2:
            raise IndexError(f"encoder: positions must be from 0 to {self.job.length - 1}, got others")
        if failed:
            job = self.held["query"].job if failed >= QUERY else self.job
            of, code = ("the query's " if failed >= QUERY else ""), failed % QUERY
            sizes = {name: getattr(job, name) for name in _SIZES}
            if code >= ADDRESSES:
                name = _COUNTED[code - ADDRESSES]
                raise ValueError(
                    f"the encoder's kernel: {of}{name} has only {job.count[_PLACE[name]]} numbers for {sizes}"
                )
            name = (*_SIZES, *_MODES)[code - SIZES]
            raise ValueError(f"the encoder's kernel: {of}{name} cannot be {getattr(job, name)}, in a pass of {sizes}")
