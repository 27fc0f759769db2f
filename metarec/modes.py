"""Models in evaluation mode for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


@contextmanager
def evaluating(method: object) -> Iterator[torch.device]:
    """The device of the method; a module is in evaluation mode meanwhile, until the last of several threads is done."""
    if not isinstance(method, nn.Module):
        yield torch.device("cpu")
        return
    module, parts = method, list(method.modules())
    with _modes_lock:
        for part in parts:
            asked, training = _modes.get(part, (0, part.training))
            _modes[part] = asked + 1, training
            part.training = False
    try:
        yield next((t.device for t in chain(module.parameters(), module.buffers())), torch.device("cpu"))
    finally:
        with _modes_lock:
            for part in parts:
                asked, training = _modes.pop(part)
                if asked > 1:
                    _modes[part] = asked - 1, training
                else:
                    part.training = training


_modes: dict[nn.Module, tuple[int, bool]] = {}  # how many threads evaluate a module, and the mode it goes back to
_modes_lock = threading.Lock()
