"""RecTools' transformers as peers: trained until their validation no longer gains, with features beside the ids."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from peer_scores import READS, Array, Candidate, Fit, Scores, Tune, ndcg


def tune_transformer(kind: str) -> Tune:
    """Width and epochs of a transformer: each width is trained until its validation NDCG no longer rises."""

    def tuned(data: Mapping[str, Array]) -> tuple[Candidate, list[Any]]:
        tried = []
        for factors in data["widths"].tolist():
            watch = Watch(data)
            transformer(kind)(data, "earlier", {"factors": factors, "epochs": int(data["epochs"])}, watch)
            tried.append({"factors": factors, "epochs": watch.best_epoch, "ndcg": watch.best, "curve": watch.curve})
        best = max(tried, key=lambda row: float(row["ndcg"]))
        return {"factors": best["factors"], "epochs": best["epochs"]}, tried

    return tuned


class Watch:
    """Stops a training once the validation NDCG@10 has not risen for some epochs.

    Args:
        data: the job.
    """

    def __init__(self, data: Mapping[str, Array]) -> None:
        self.data, self.patience = data, int(data["patience"])
        self.best, self.best_epoch = -1.0, 0
        self.curve: list[float] = []

    def __deepcopy__(self, memory: object) -> Watch:
        return self  # RecTools copies its trainer, and with it what watches

    def __call__(self, scores: Scores) -> bool:
        """Whether to stop after this epoch."""
        found = ndcg(scores(self.data["validation_histories"]), scores.known, self.data)
        self.curve.append(round(found, 5))
        if found > self.best:
            self.best, self.best_epoch = found, len(self.curve)
        return len(self.curve) - self.best_epoch >= self.patience


def transformer(kind: str) -> Fit:
    """RecTools' SASRec, or its eSASRec: the same with LiGR blocks. Full softmax, features beside the ids."""

    def fit(data: Mapping[str, Array], side: str, candidate: Candidate, watch: Watch | None) -> Scores:
        sasrec = importlib.import_module("rectools.models.nn.transformers.sasrec")
        importlib.import_module("pytorch_lightning").seed_everything(int(data["seed"]), verbose=False)
        table = _features(data)
        kinds: dict[str, Any] = {"lightning_module_type": without_padding()}
        if kind == "eSASRec":
            ligr = importlib.import_module("rectools.models.nn.transformers.ligr")
            kinds["transformer_layers_type"] = ligr.LiGRLayers
        blocks = [importlib.import_module("rectools.models.nn.item_net").IdEmbeddingsItemNet]
        model = sasrec.SASRecModel(
            n_factors=candidate["factors"],
            n_blocks=2,
            n_heads=2,
            dropout_rate=0.2,
            session_max_len=READS,
            loss="softmax",
            lr=1e-3,
            batch_size=64,
            get_trainer_func=trainer(data, candidate, watch),
            recommend_torch_device="cpu",
            item_net_block_types=[*blocks, *([feature_net()] if table is not None else [])],
            **kinds,
        )
        model.fit(_dataset(data, side, table))
        return _scores(data, copy.deepcopy(model.torch_model), model.data_preparator)

    return fit


def trainer(data: Mapping[str, Array], candidate: Candidate, watch: Watch | None) -> Callable[[], Any]:
    """Makes Lightning's trainer, which asks ``watch`` after each epoch whether to stop."""
    lightning = importlib.import_module("pytorch_lightning")

    class Look(lightning.Callback):  # type: ignore[misc, name-defined, unused-ignore]
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if watch is not None:
                trainer.should_stop = watch(_scores(data, module.torch_model, module.data_preparator))
                module.train()

    def make() -> Any:
        off = ("enable_progress_bar", "enable_model_summary", "logger", "enable_checkpointing")
        how = {"max_epochs": candidate["epochs"], "min_epochs": 1, "devices": 1, "callbacks": [Look()]}
        return lightning.Trainer(**how, **dict.fromkeys(off, False))

    return make


def without_padding() -> Any:
    """RecTools' training with the same loss, but logits of clicks only: it computes those of the padding, too."""
    base = importlib.import_module("rectools.models.nn.transformers.lightning").TransformerLightningModule

    class Training(base):  # type: ignore[misc, valid-type, unused-ignore]
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            model, real = self.torch_model, batch["y"] > 0
            table = model.item_model.get_all_embeddings()
            state = model.encode_sessions(batch, table)[real].unsqueeze(0)
            logits = model.similarity_module(state, table) / self.logits_t
            loss: torch.Tensor = self.loss_calculator(logits, batch["y"][real][None], batch["yw"][real][None])
            return loss

    return Training


def feature_net() -> Any:
    """A block for RecTools' sum of embeddings: a linear map of dense features, which it has no block of its own for."""
    base = importlib.import_module("rectools.models.nn.item_net").ItemNetBase

    class FeaturesNet(base):  # type: ignore[misc, valid-type, unused-ignore]
        def __init__(self, table: torch.Tensor, n_factors: int, dropout_rate: float) -> None:
            super().__init__()
            self.register_buffer("table", table)
            self.project, self.dropout = torch.nn.Linear(table.shape[1], n_factors), torch.nn.Dropout(dropout_rate)

        def forward(self, items: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.dropout(self.project(self.table[items]))
            return out

        @property
        def out_dim(self) -> int:
            return int(self.project.out_features)

        @classmethod
        def from_dataset(cls, dataset: Any, n_factors: int, dropout_rate: float, **rest: object) -> Any:
            return cls(torch.from_numpy(dataset.item_features.values).float(), n_factors, dropout_rate)

    return FeaturesNet


def _features(data: Mapping[str, Array]) -> Array | None:
    """(I, F) standardised features of all items, None where there are none."""
    table = data["features"]
    return (table - table.mean(0)) / (table.std(0) + 1e-6) / np.sqrt(table.shape[1]) if table.shape[1] else None


def _dataset(data: Mapping[str, Array], side: str, table: Array | None) -> Any:
    """Clicks for RecTools. Ties in time stay in our order, for the rows are numbered in time."""
    pandas: Any = importlib.import_module("pandas")
    user, item = data[f"{side}_user"], data[f"{side}_item"]
    order = pandas.to_datetime(np.arange(len(user)), unit="s")
    clicks = pandas.DataFrame({"user_id": user, "item_id": item, "weight": 1.0, "datetime": order})
    features = None
    if table is not None:
        features = pandas.DataFrame(table, columns=[f"f{number}" for number in range(table.shape[1])]).assign(
            id=np.arange(len(table))
        )
        features = features[features["id"].isin(np.unique(item))]
    return importlib.import_module("rectools.dataset").Dataset.construct(
        clicks, item_features_df=features, make_dense_item_features=True
    )


def _scores(data: Mapping[str, Array], model: Any, prepared: Any) -> Scores:
    """The transformer's own scores for any history, by our codes; items that it has not fitted are left out of it."""
    items, tokens = int(data["items"]), prepared.n_item_extra_tokens
    ours = np.asarray(prepared.get_known_item_ids()).astype(np.int64)
    inside = np.zeros(items, dtype=np.int64)
    inside[ours] = np.arange(tokens, tokens + len(ours))

    @torch.no_grad()
    def answer(histories: Array) -> Array:
        model.eval()
        x = np.zeros((len(histories), READS), dtype=np.int64)
        for row, history in enumerate(inside[histories]):
            clicks = history[history > 0][-READS:]
            x[row, READS - len(clicks) :] = clicks
        table = model.item_model.get_all_embeddings()
        state = model.encode_sessions({"x": torch.from_numpy(x).to(table.device)}, table)[:, -1]
        state, table = (
            model.similarity_module.session_tower_forward(state),
            model.similarity_module.item_tower_forward(table),
        )
        out = np.zeros((len(histories), items), dtype=np.float32)
        out[:, ours] = (state @ table[tokens:].T).cpu().numpy()
        out[~x.any(1)] = 0.0  # it says nothing of who clicked nothing that it knows: all items are equal
        return out

    return Scores(answer, np.isin(np.arange(items), ours))
