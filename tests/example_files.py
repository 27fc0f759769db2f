"""The planted world as files, and how the main example is run on it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

import metarec as mr

SCRIPT = Path(__file__).parents[1] / "examples" / "mml_hangzhou.py"
QUICK = ("--preset", "mml", "--epochs", "1", "--warmup-epochs", "1")
AT = ("--split-time", str(mr.datasets.PLANTED_SPLIT))


def load_script(path: Path = SCRIPT) -> ModuleType:
    """An example as a module; the main job by default."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_example", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def world(users: int) -> mr.Dataset:
    return mr.datasets.planted(users=users, items=40)


def write_world(folder: Path, users: int = 60, *, features: bool = True, later: int = 0) -> Path:
    """The planted world as atomic files and arrays, its times moved by ``later``."""
    data = world(users)
    folder.mkdir(parents=True)
    rows = zip(data.users.decode(data.user), data.catalog.items.decode(data.item), data.time + later, strict=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *(f"{u}\t{i}\t{t}" for u, i, t in rows)]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines))
    if features:
        titles = ["item_id:token\ttitle:token_seq", *(f"{name}\tThe {name}" for name in data.catalog.items.ids)]
        (folder / f"{folder.name}.item").write_text("\n".join(titles))
        for name, modality in data.catalog.modalities.items():
            np.savez(folder / f"{name}.npz", ids=data.catalog.items.ids, feat=modality.features[1:].numpy())
    return folder
