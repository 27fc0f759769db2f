"""The released code's loop gets the same users as the other ways: a stand-in hands back what it is given."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHAPE = {"clicks": 4, "dim": 8, "layers": 1, "heads": 2, "feedforward": 16, "items": 20}
STAND_IN = {
    "trainer/trainer.py": """
class MetaLearningTrainer:
    def __init__(self):
        raise AssertionError("it would ask for a configuration")
    def _meta_train_epoch(self, data, epoch):
        return self, data
""",
    "__init__.py": "",
    "data/interaction.py": """
class Interaction(dict):
    def __len__(self):
        return len(self["item_id"])
""",
    "model/sequential_recommender/sasrec.py": """
import torch
class SASRec(torch.nn.Module):
    def __init__(self, config, dataset):
        super().__init__()
        self.device, self.config = config["device"], config
        assert torch.load(config["item_feat_emb"]).shape[0] == dataset.num("item_id")
        self.item_embedding, self.trm_encoder = torch.nn.Embedding(3, 2), torch.nn.Linear(2, 2)
""",
}


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for name, text in STAND_IN.items():
        file = tmp_path / "recbole" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield importlib.import_module("released")
    for name in [name for name in sys.modules if name.partition(".")[0] == "recbole"]:
        del sys.modules[name]


def test_every_user_comes_as_padded_prefixes(released: ModuleType, tmp_path: Path) -> None:
    users = importlib.import_module("inner_loop").make_users(3, 4, 20)
    run = released.released_loop(tmp_path, users, SHAPE, 5, 0.1)
    trainer, (tasks,) = run()
    assert len(tasks) == 3 and trainer.num_local_update == 5 and trainer.model.config["MAX_ITEM_LIST_LENGTH"] == 4
    own: Any = trainer.local_model
    assert own.trm_encoder.weight.requires_grad and not own.item_embedding.weight.requires_grad
    assert trainer.local_optimizer.param_groups[0]["lr"] == 0.1
    for user, ((support,), query) in tasks.items():
        clicks = users.query.history[user].tolist()
        assert support["item_id_list"].tolist() == [[*clicks[:n], *[0] * (4 - n)] for n in (1, 2, 3)]
        assert support["item_length"].tolist() == [1, 2, 3] and support["item_id"].tolist() == clicks[1:]
        assert torch.equal(support["neg_item_id"], users.support.negatives[user, :, 0])
        assert query.pr_end == 1 and query[0]["item_id_list"].tolist() == [clicks]
        assert query[0]["item_id"].tolist() == users.query.target[user].tolist()


def test_another_folder_is_refused(released: ModuleType, tmp_path: Path) -> None:
    users = importlib.import_module("inner_loop").make_users(1, 4, 20)
    with pytest.raises(FileNotFoundError, match=r"expected .*checkout"):
        released.released_loop(tmp_path / "recbole", users, SHAPE, 5, 0.1)
