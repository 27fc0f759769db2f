"""A service that is killed under load, again and again: what it acknowledged is there afterwards, once."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_killed_under_load_nothing_acknowledged_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(root))
    from kills import killed_often, small_ensemble

    found = killed_often(small_ensemble(tmp_path / "model.safetensors"), tmp_path, 5)
    assert (found["tried"], found["lost"], found["doubled"]) == (5, 0, 0) and found["acknowledged"] > 0
