"""The second example, from a folder of files to a list."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from example_files import load_script, write_world
from metarec.data import load_atomic, split_by_time, split_time

SCRIPT = Path(__file__).parents[1] / "examples" / "mml_blend.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return load_script(SCRIPT)


@pytest.mark.parametrize("more", [[], ["--live"]])
def test_from_files_to_a_list(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    folder = write_world(tmp_path / "toy", 100)
    script.main(["--data", str(folder), "--day", "4000", "--clicks", "item3", "item14", *more])
    printed = capsys.readouterr().out
    assert "features: image, text" in printed and "toy: 79 users upstream, 20 cold users" in printed
    assert "Dataset(toy upstream: " in printed and "Dataset(toy downstream: " in printed  # with what was left out
    assert ("method (live)" if more else "method (upstream)") in printed
    assert "The item3, The item14" in printed
    listed = [line.split(". ")[1] for line in printed.splitlines() if line[:3].strip().isdecimal()]
    assert len(set(listed)) == 10
    data = load_atomic(folder)
    share = split_by_time(data, at=split_time(data, cold_users=0.2))[0].repeat_share
    assert f": {share:.1%} of the clicks" in printed
