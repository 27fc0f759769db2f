"""Saving and loading under their former names; see :mod:`metarec.io`."""

from __future__ import annotations

import warnings
from typing import Any

from metarec.io import load as _load
from metarec.io import save as _save

_NAMES = {"load": _load, "save": _save}


def __getattr__(name: str) -> Any:
    """What :mod:`metarec.io` has under this name, with a warning.

    Raises:
        AttributeError: if it has none.
    """
    if name not in _NAMES:
        raise AttributeError(f"module 'metarec.serialization' has no attribute {name!r}")
    warnings.warn(f"metarec.serialization.{name} is now metarec.{name}", DeprecationWarning, stacklevel=2)
    return _NAMES[name]
