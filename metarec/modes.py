"""Evaluation mode as a context manager."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


@contextmanager
def evaluating(method: object) -> Iterator[None]:
    """Put a module in evaluation mode for a while, until the last of several threads is done."""
    if not isinstance(method, nn.Module):
        yield
        return
    parts = _parts(method)
    with _modes_lock:
        still = not any(part.training or part in _modes for part in parts)  # neither here nor in another thread
        for part in () if still else parts:
            asked, training = _modes.get(part, (0, part.training))
            _modes[part] = asked + 1, training
            part.training = False
    try:
        yield
    finally:
        with _modes_lock:
            for part in () if still else parts:
                asked, training = _modes.pop(part)
                if asked > 1:
                    _modes[part] = asked - 1, training
                else:
                    part.training = training


def device_of(method: object) -> torch.device:
    """Where a module is; the CPU for anything else."""
    if isinstance(method, nn.Module):
        for tensor in chain(method.parameters(), method.buffers()):
            return tensor.device
    return torch.device("cpu")


def _parts(module: nn.Module) -> list[nn.Module]:
    """A module and its parts, each once."""
    found: dict[nn.Module, None] = {module: None}
    waiting = [module]
    for part in waiting:  # which grow meanwhile
        for own in part._modules.values():
            if own is not None and own not in found:
                found[own] = None
                waiting.append(own)
    return waiting


_modes: dict[nn.Module, tuple[int, bool]] = {}  # how many threads evaluate a module, and the mode it goes back to
_modes_lock = threading.Lock()
