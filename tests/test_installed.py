"""What is said of an installation: engine, threads, extras; a missing kernel or single thread once, with the cure."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metarec import installed
from metarec.meta import library as kernel
from optional import needs_kernel


def said() -> dict[str, str]:
    return dict(line.split(": ", 1) for line in installed.in_use().splitlines())


@needs_kernel
def test_the_engine_the_threads_and_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: name == "onnx" or None)
    assert said() == {"engine": "compiled kernel", "threads": str(torch.get_num_threads()), "extras": "export"}
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(installed, "library", lambda: None)
    monkeypatch.setattr(installed, "has_threads", lambda: False)
    assert "without" in said()["engine"] and said()["extras"] == "none"
    monkeypatch.setattr(installed, "library", lambda: object())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert said()["threads"] == "1 of 4"


def test_a_missing_kernel_is_said_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernel, "__file__", str(tmp_path / "library.py"))
    assert kernel.library.__wrapped__() is None
    (record,) = caplog.records
    assert "pip install" in record.getMessage()


@pytest.mark.parametrize(("threads", "cores", "told"), [(0, 2, True), (1, 2, False), (0, 1, False)])
def test_a_single_thread_is_said_where_there_are_more_cores(
    threads: int, cores: int, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found: Any = SimpleNamespace(encoder_threads=lambda: threads)
    monkeypatch.setattr(kernel, "_opened", lambda path: found)
    monkeypatch.setattr(kernel, "EXTENSION_SUFFIXES", [".py"])
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert kernel.library.__wrapped__() is found
    assert ["OpenMP" in record.getMessage() for record in caplog.records] == [True] * told


def test_it_is_said_once() -> None:
    before = kernel.library.cache_info().misses
    kernel.library()
    kernel.library()
    assert kernel.library.cache_info().misses <= before + 1
