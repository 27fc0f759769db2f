"""The meta-training loop of the released MML code, run from a checkout of it; nothing of it is part of this project.

The checkout holds a package named ``recbole`` and wants what that imports (pandas, scipy, scikit-learn, colorlog,
colorama, tensorboard). Its own trainer runs its own SASRec on the same users, one after the other: SGD steps of a copy
on the support, the adapted modules copied back, the query's gradient added up. Width, depth, steps and rate are those
of the comparison; dropout is off. Its model differs a little (item features in the attention, the initial weights), so
only its speed is compared, not its gradient. Histories are padded to the longest here, to 50 clicks as released.
"""

from __future__ import annotations

import copy
import importlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from metarec.types import EpisodeBatch, Examples

ADAPTS = ("position_embedding", "trm_encoder", "LayerNorm")  # as in its settings
FEATURES = 64  # columns of the random item features that its model asks for


def released_loop(
    checkout: Path, users: EpisodeBatch, shape: Mapping[str, int], steps: int, lr: float
) -> Callable[[], object]:
    """What meta-trains the users once, as the released code does.

    Args:
        checkout: of the released code.
        users: all of one epoch, in one batch.
        shape: clicks, dim, layers, heads, feedforward and items.
        steps: inner steps.
        lr: inner step size.

    Raises:
        FileNotFoundError: if the path is no such checkout.
    """
    if not (checkout / "recbole" / "trainer" / "trainer.py").is_file():
        raise FileNotFoundError(f"--released {checkout}: expected a checkout with recbole/trainer/trainer.py in it")
    sys.path.insert(0, str(checkout))
    trainer = _trainer(_model(shape, users.user.device), steps, lr)
    interaction = importlib.import_module("recbole.data.interaction").Interaction
    tasks = {}
    for number, user in enumerate(users.chunks(1)):
        support, query = (interaction(rows(part, shape["clicks"])) for part in (user.support, user.query))
        tasks[number] = ([support], _Query([query]))
    return lambda: trainer._meta_train_epoch([tasks], 0)


def rows(examples: Examples, length: int) -> dict[str, Tensor]:
    """One user's examples as padded prefixes, a row each, by the column names of the released code."""
    size, prefixes = examples.position[0] + 1, examples.history.new_zeros(examples.position.shape[1], length)
    for row, n in zip(prefixes, size.tolist(), strict=True):
        row[:n] = examples.history[0, :n]
    clicks = {"item_id": examples.target[0], "neg_item_id": examples.negatives[0, :, 0]}
    return {"item_id_list": prefixes, "item_length": size, **clicks}


class _Query(list[Any]):
    """Batches of a query, with how many examples they hold together."""

    @property
    def pr_end(self) -> int:
        return sum(map(len, self))


def _model(shape: Mapping[str, int], device: torch.device) -> Any:
    config: dict[str, Any] = {
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_",
        "ITEM_LIST_LENGTH_FIELD": "item_length", "MAX_ITEM_LIST_LENGTH": shape["clicks"], "device": device,
        "n_layers": shape["layers"], "n_heads": shape["heads"], "hidden_size": shape["dim"],
        "inner_size": shape["feedforward"], "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "initializer_range": 0.02, "loss_type": "BPR",
    }  # fmt: skip
    size = shape["items"] + 1
    with tempfile.TemporaryDirectory() as folder:
        config["item_feat_emb"] = str(Path(folder) / "features.pth")
        torch.save(torch.randn(size, FEATURES), config["item_feat_emb"])
        kind = importlib.import_module("recbole.model.sequential_recommender.sasrec").SASRec
        return kind(config, SimpleNamespace(num=lambda field: size)).to(device)


def _trainer(model: Any, steps: int, lr: float) -> Any:
    """Its trainer with what the loop reads; its constructor would ask for files and a configuration."""
    kind = importlib.import_module("recbole.trainer.trainer").MetaLearningTrainer
    trainer: Any = kind.__new__(kind)
    trainer.model, trainer.local_model, trainer.device = model, copy.deepcopy(model), model.device
    for name, module in trainer.local_model.named_children():
        module.requires_grad_(name in ADAPTS)
    adapting = [p for p in trainer.local_model.parameters() if p.requires_grad]
    trainer.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer.local_optimizer = torch.optim.SGD(adapting, lr=lr)
    trainer.local_modules, trainer.num_local_update = set(ADAPTS), steps
    trainer.clip_grad_norm, trainer.gpu_available = None, False
    return trainer
