"""Item tables sharded by rows over several processes, as DTensors: each holds its rows, their gradient and moments.

For tables too large for one GPU. torch's own lookup in a table that is sharded by rows makes the gradient of the whole
table in every process; here each looks up its own rows, and DTensor gathers the codes and scatters the sums.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from metarec import distributed
from metarec.nn import record
from metarec.nn.items import IdItems
from metarec.nn.learner import ModalityLearner


class _Found(torch.autograd.Function):
    """Rows (n, D) at places (n,) of a table, 0 where they are not here (n,); the backward pass leaves those out.

    That waits for a GPU to count them, when all else is done. The forward pass does not, as all else is to come.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, at: Tensor, here: Tensor) -> Tensor:
        ctx.save_for_backward(at, here)
        ctx.size = len(rows)
        return rows.index_select(0, at.remainder(len(rows))).mul_(here.unsqueeze(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        at, here = ctx.saved_tensors
        own = here.nonzero().squeeze(-1)
        places, sums = at[own], gradient[own]
        return torch.ops.aten.embedding_dense_backward(sums, places, ctx.size, -1, False), None, None


class ShardedItems(nn.Module):
    """One trained vector per item, of which each process holds an equal share of the rows; made by :func:`shard_items`.

    Args:
        items: the whole table, the same in every process.
        device: of this process.

    Raises:
        ValueError: if there are too few rows for the processes.
    """

    adapts_rows = True
    deterministic = True
    weight: DTensor
    known: Tensor

    def __init__(self, items: IdItems, device: torch.device) -> None:
        super().__init__()
        size, processes = len(items.weight), distributed.processes()
        self.rows_each = -(-size // processes)
        if self.rows_each * (processes - 1) >= size:
            raise ValueError(f"shard_items: {size} rows do not fill {processes} shards; start fewer processes")
        self.first = self.rows_each * distributed.rank()
        own = items.weight.detach()[self.first : self.first + self.rows_each].to(device, copy=True)
        mesh, like = distributed.mesh_of(device.type), items.weight
        rows = DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=like.shape, stride=like.stride())
        self.weight = nn.Parameter(rows, items.weight.requires_grad)  # type: ignore[assignment]
        self.register_buffer("known", items.known.to(device), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of item codes (...), of which every process asks for as many at the same time."""
        mesh = self.weight.device_mesh
        asked = DTensor.from_local(ids.reshape(-1), mesh, [Shard(0)], run_check=False)
        found = self._own_rows(asked.redistribute(placements=[Replicate()]).to_local())
        sums = DTensor.from_local(found, mesh, [Partial()], run_check=False).redistribute(placements=[Shard(0)])
        return sums.to_local().view(*ids.shape, -1)

    def _own_rows(self, codes: Tensor) -> Tensor:
        """(n, D) vectors of codes (n,) whose rows are here, 0 for others."""
        rows = self.weight.to_local()
        at = codes - self.first
        found: Tensor = _Found.apply(rows, at, (codes > 0) & (at >= 0) & (at < len(rows)))  # type: ignore[no-untyped-call]
        return found

    def scores(self, state: Tensor, ids: Tensor | None = None) -> NoReturn:
        """Raises RuntimeError: see :meth:`table`."""
        self.table()

    def table(self) -> NoReturn:
        """Raises RuntimeError: no process has the whole table."""
        raise RuntimeError(
            f"the item table lies in {distributed.processes()} shards, and no process ranks, is evaluated or saved by "
            "its own; call metarec.nn.sharded.gather_items(learner) in every process: the first gets a whole learner"
        )

    def frozen(self) -> NoReturn:
        """Raises RuntimeError: see :meth:`table`."""
        self.table()

    def whole(self) -> IdItems | None:
        """The whole table, on the CPU of the first process; None in the others. All must call it."""
        rows = distributed.own_rows(self.weight).detach()
        table = distributed.rows_in_first(rows, len(self.weight), self.rows_each)
        if table is None:
            return None
        known = self.known.cpu()
        with torch.device("meta"):
            out = IdItems(len(table), table.shape[1], known=known)
        out.weight, out.known = nn.Parameter(table, self.weight.requires_grad), known
        return out


def shard_items(learner: ModalityLearner, device: torch.device | str) -> ModalityLearner:
    """Shard a learner's item table by rows over the processes that train together, in place; the rest is on each.

    All processes call it, with the learner on the CPU, built by the same settings and seed; then training is as before,
    by a loss that compares with drawn negatives. With one process the learner is moved to the device, and that is all.

    Args:
        learner: of ids, which no training has under way.
        device: of this process, as :func:`metarec.distributed.start` gives it.

    Returns:
        the same learner.

    Raises:
        TypeError: if its items are no table of ids alone.
        ValueError: if there are too few rows for the processes.

    Example:
        >>> from metarec import distributed
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import sasrec
        >>> device, data = distributed.start("cpu"), planted(users=60, items=40)
        >>> learner = shard_items(sasrec.build(data, dim=8), device)
        >>> for step in sasrec.train(learner, data, objective="sampled_softmax", epochs=1):
        ...     pass
        >>> gather_items(learner).items.weight.shape
        torch.Size([41, 8])
    """
    items = learner.items
    if type(items) is not IdItems:
        raise TypeError(
            f"shard_items: expected items that are a table of ids (IdItems), got {type(items).__name__}, which makes "
            "vectors from all rows at once; build the learner of ids alone"
        )
    if distributed.processes() > 1:
        sharded = ShardedItems(items, torch.device(device)).train(items.training)
        record.pass_on(items, sharded)
        learner.items = sharded
    return learner.to(device)


def gather_items(learner: ModalityLearner) -> ModalityLearner:
    """The learner with its whole item table on the CPU, in the first process, to be evaluated, saved or served.

    All processes call it, in the middle of a training too. Rows are sent in pieces, so a GPU needs no room for others'.

    Args:
        learner: as :func:`shard_items` has left it.

    Returns:
        a copy, in the first process; the learner itself in the others, and where it is not sharded.
    """
    items = learner.items
    whole = items.whole() if isinstance(items, ShardedItems) else None
    if whole is None:
        return learner
    record.pass_on(items, whole.train(items.training))
    out = copy.copy(learner)
    others = {name: part and copy.deepcopy(part).cpu() for name, part in learner._modules.items() if name != "items"}
    out._modules = {"items": whole, **others}
    out._buffers = {name: buffer if buffer is None else buffer.cpu() for name, buffer in learner._buffers.items()}
    out._found = []
    return out
