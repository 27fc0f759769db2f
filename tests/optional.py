"""What is compiled or optional, and marks for the tests that need it: without it they alone are skipped."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from metarec.meta.library import library


def imported(name: str) -> Any:
    """A library, or None where it is not there or not built for the installed numpy."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


learn2learn = imported("learn2learn")
needs_learn2learn = pytest.mark.skipif(learn2learn is None, reason="no compiled learn2learn here")
needs_kernel = pytest.mark.skipif(library() is None, reason="no C compiler when metarec was installed")
