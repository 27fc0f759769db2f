"""The scoring path of a trained model, as a ``torch.export`` program or an ONNX file.

ONNX is optional: ``pip install 'metarec[export]'``. What is exported reads item codes and ranks the catalogue: the
learners' encoders, their scores and the fusion, with tables of item vectors computed beforehand, generated ones
included. The numbers of users and of clicks stay free.

What cannot be exported is the inner loop itself. It takes gradients of each user's own loss, and neither format has
gradients: an ONNX file holds no backward pass, and ``torch.export`` traces a forward pass only. So a file scores
either with the shared weights (every user unadapted), or with the adapted weights of one user, who is given when the
file is made. To serve strangers adapted, run a :class:`~metarec.Recommender` or ``metarec serve``.

An MML, a fusion of learners, one learner (a SASRec, say) and one under MAML can be exported; counts and ensembles,
which count clicks or weigh by the time since the last one, are refused by name.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.data.dataset import Catalog
from metarec.data.histories import Clicks
from metarec.data.support import SupportMaker
from metarec.files import replace_file
from metarec.functional import top_k
from metarec.functional.neighbours import first_equal
from metarec.meta.adapting import AdaptingModel
from metarec.modes import evaluating
from metarec.nn import ModalityLearner
from metarec.nn.record import longest_history
from metarec.recipes.fusing import FusedModel, fused
from metarec.types import Examples

Exportable = FusedModel | AdaptingModel | ModalityLearner
_PROTOBUF = 2**31 - 1  # bytes that one ONNX file can have


class Scoring(nn.Module):
    """Histories in, scores out: what is exported, as an ordinary module with nothing left to train.

    Args:
        model: a trained MML, fusion or learner; it is left as it is.
        clicks: external ids of one user, whose adapted weights are to be used; the shared weights by default.
        k: return the best k items, without removed ones and those in the history, instead of all scores.

    Raises:
        TypeError: if the model is of a kind that cannot be exported, or says not which items it scores; names it.
        ValueError: if a click is unknown, or ``k`` is less than 1 or more than the items that can be recommended.

    Example:
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import MML, MMLConfig
        >>> model = MML.build(planted(users=60, items=40), MMLConfig(dim=8))
        >>> scores, weights = Scoring(model)(torch.tensor([[3, 14, 15], [7, 0, 0]]))
        >>> scores.shape, weights.shape
        (torch.Size([2, 41]), torch.Size([2, 3]))
        >>> codes, best, _ = Scoring(model, k=5)(torch.tensor([[3, 14, 15]]))
        >>> codes.shape, best.shape
        (torch.Size([1, 5]), torch.Size([1, 5]))
    """

    usable: Tensor
    equal: Tensor

    def __init__(self, model: Exportable, *, clicks: Sequence[str] | None = None, k: int | None = None) -> None:
        super().__init__()
        metas, catalog = exported_learners(model)
        with evaluating(model), torch.no_grad():
            learners = [_learner(model, meta, catalog, clicks) for meta in metas.values()]
            self.learners = nn.ModuleList(map(copy.deepcopy, learners))
            self.fusion = copy.deepcopy(getattr(model, "fusion", None))
        self.fuses = isinstance(model, FusedModel)
        self.eval().requires_grad_(False)
        for module in self.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.detach())  # a table of ids was the parameter itself
        usable = torch.stack([learner.items.known for learner in learners]).any(0)
        usable[torch.from_numpy(catalog.items.encode(sorted(catalog.hidden)))] = False
        self.register_buffer("usable", usable, persistent=False)
        with torch.no_grad():
            tables = [part for one in learners for part in (one.items.table(), one.items.known.unsqueeze(1))]
            self.register_buffer("equal", first_equal(torch.cat(tables, 1)), persistent=False)
        if k is not None and not 1 <= k <= int(usable.sum()):
            raise ValueError(f"export: k must be at least 1 and at most {int(usable.sum())}, the items known, got {k}")
        self.k, self.max_length = k, longest_history(model)

    def forward(self, history: Tensor) -> tuple[Tensor, ...]:
        """Score users after their last click.

        Args:
            history: (B, L) int64 item codes in time order, padded on the right with 0; L at most the model's
                ``max_length``. A user without any click scores 0 everywhere. A code below 0, as other
                libraries code what they do not know, is no click.

        Returns:
            With ``k``, codes (B, k) and their scores (B, k), equal ones by ascending code, -inf where a user is left
            with fewer items; without it, scores (B, I). Then the weights (B, M) that the fusion gave to the learners.
        """
        real, end = history > 0, history.shape[1]
        slot = torch.where(real, real.cumsum(-1) - 1, end)
        empty = F.pad(torch.zeros_like(history), (0, 1))
        history = empty.scatter(1, slot, history.clamp(min=0))[:, :end]
        last = ((history > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
        nothing = torch.zeros_like(last)
        place = torch.arange(self.max_length, device=history.device)
        inside = place < history.shape[1]
        whole = history[:, place * inside] * inside  # of one length, so that the program holds for every length
        examples = Examples(whole, last, nothing, nothing.unsqueeze(-1), nothing.to(torch.float32))
        each = [learner(examples) for learner in self.learners]
        if self.fuses:
            scored = fused(each, self.fusion)
            weights = scored.state.squeeze(1)
        else:
            scored = each[0]
            weights = scored.has_known_history.to(scored.scores.dtype)
        scores = scored.scores.squeeze(1)[:, self.equal]
        if self.k is None:
            return scores, weights
        scores = scores.masked_fill(~self.usable, -torch.inf).scatter(1, history, -torch.inf)
        values, codes = top_k(scores, self.k)
        return codes, values, weights


def export_program(
    model: Exportable, *, clicks: Sequence[str] | None = None, k: int | None = None
) -> torch.export.ExportedProgram:
    """The scoring path as a program that torch runs without this library; arguments as of :class:`Scoring`.

    Example:
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import MML, MMLConfig
        >>> model = MML.build(planted(users=60, items=40), MMLConfig(dim=8, modalities=(), layers=1))
        >>> program = export_program(model, k=5)
        >>> codes, scores, weights = program.module()(torch.tensor([[3, 14, 15, 9]]))
        >>> codes.shape
        torch.Size([1, 5])
    """
    scoring = Scoring(model, clicks=clicks, k=k)
    return torch.export.export(scoring, (_EXAMPLE,), dynamic_shapes=(_free(model),))


def export_onnx(
    model: Exportable, path: str | Path, *, clicks: Sequence[str] | None = None, k: int | None = None
) -> None:
    """Write the scoring path as an ONNX file; arguments as of :class:`Scoring`.

    The input is ``history``; the outputs are ``scores`` and ``weights``, or ``codes``, ``scores`` and ``weights``. The
    file's metadata ``metarec`` is a JSON object: ``items`` (the id of code 1, of code 2, ...), ``learners`` (what the
    weights are of) and ``max_length``.

    Raises:
        ModuleNotFoundError: if the extra ``export`` is not installed.
        ValueError: as :class:`Scoring`, or if the model is too large for one file.
        OSError: if the file cannot be written; the old file, if any, is as it was.
    """
    for library in ("onnx", "onnxscript"):
        if importlib.util.find_spec(library) is None:
            raise ModuleNotFoundError(f"{library} is not installed: pip install 'metarec[export]'")
    names = ["scores", "weights"] if k is None else ["codes", "scores", "weights"]
    onnx = torch.onnx.export(
        Scoring(model, clicks=clicks, k=k),
        (_EXAMPLE,),
        input_names=["history"],
        output_names=names,
        dynamic_shapes=(_free(model),),
        dynamo=True,
        verbose=False,
    )
    if onnx is None:
        raise RuntimeError("torch.onnx.export returned nothing; expected a program, as torch 2.11 and later return")
    learners, catalog = exported_learners(model)
    about = {"items": catalog.items.ids, "learners": list(learners), "max_length": longest_history(model)}
    onnx.model.metadata_props["metarec"] = json.dumps(about, ensure_ascii=False)
    proto = onnx.model_proto
    if proto.ByteSize() > _PROTOBUF:
        raise ValueError(
            f"{path}: the model takes {proto.ByteSize():,} bytes, and an ONNX file has at most {_PROTOBUF:,}; use "
            "export_program"
        )
    replace_file(path, proto.SerializeToString())


_EXAMPLE = torch.tensor([[1, 1, 1], [1, 1, 0]])


def _free(model: Exportable) -> dict[int, torch.export.Dim]:
    """The sizes of a history that the exported program leaves open."""
    length = torch.export.Dim("length", min=1, max=longest_history(model))
    return {0: torch.export.Dim("users", min=1), 1: length}


def exported_learners(model: object) -> tuple[dict[str, Any], Catalog]:
    """What is exported of a model, by name: learners, or what adapts them; and its items.

    Raises:
        TypeError: if it is of a kind that cannot be exported, or says not which items it scores.
    """
    kind = type(model).__name__
    metas = dict(model.named_metas()) if isinstance(model, FusedModel) else {kind: model}
    for meta in metas.values():
        learner = getattr(meta, "learner", meta)
        if not isinstance(learner, ModalityLearner):
            what = kind if learner is model else f"{kind} of {type(learner).__name__}"
            raise TypeError(
                f"export: {what} cannot be exported, only MML, learners such as a SASRec, and what adapts or fuses "
                "them; serve it with Recommender or metarec serve"
            )
        if learner.kinds is not None:
            raise TypeError(
                f"export: {kind} reads events of several kinds, and what is exported reads clicks alone; serve it with "
                "Recommender or metarec serve"
            )
    catalog: Catalog | None = getattr(model, "catalog", None)
    if catalog is None:
        raise TypeError(f"export: nothing says which items {kind} scores; call attach(upstream) before")
    return metas, catalog


def _learner(model: Any, meta: Any, catalog: Catalog, clicks: Sequence[str] | None) -> ModalityLearner:
    """One learner with its item vectors as a table: shared, or as one user adapts it."""
    learner: ModalityLearner = getattr(meta, "learner", meta)
    if clicks is None or learner is meta:
        return learner.task_view("encoder")
    histories = Clicks.of([clicks], catalog.items)
    support, _ = SupportMaker(model.warm, model.negatives, longest_history(model))(histories)
    support = support.to(learner.items.known.device)
    view = learner.task_view(getattr(meta, "adapts", "encoder"))
    own = {**view.task_tensors(support), **meta.adapt(support).weights()}
    view = copy.deepcopy(view).requires_grad_(False)
    for key, value in own.items():
        place, _, leaf = key.rpartition(".")
        part = view.get_submodule(place)
        weight = isinstance(getattr(part, leaf), nn.Parameter)
        setattr(part, leaf, nn.Parameter(value[0], requires_grad=False) if weight else value[0])
    return view.task_view("encoder")
