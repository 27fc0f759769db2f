"""An encoder module whose forward and backward passes, and SGD steps, a compiled C function computes for B users.

``encoder_kernel.c`` runs the encoder of one user after another under the user's own weights, forward and backward, and
takes the SGD step in the backward pass. Where it knows the loss, one call takes all inner steps of a user; other losses
are computed in torch, step by step. Where the library was not built (no compiler at installation),
:class:`~metarec.meta.low_rank.LowRankUsers` takes its place.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metarec.meta.library import BACKWARD, DESCEND, LEARN, OBJECTIVES, STEP, VALUES, Pass

Products = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]  # see KernelEncoder.descend


class _Encode(torch.autograd.Function):
    """States of B users; the backward pass steps the users' weights or gives the gradients of the shared ones."""

    @staticmethod
    def forward(
        ctx: Any, encoder: KernelEncoder, task: Pass, x: Tensor, bias: Tensor | None, *leaves: Tensor
    ) -> Tensor:
        ctx.encoder, ctx.task, ctx.turn = encoder, task, encoder.turn
        ctx.shapes = x.shape, None if bias is None else bias.shape
        state = x.new_empty(task.job.users, task.job.asked, task.job.dim)
        task.point(x=x, bias=bias, state=state)
        task.run()
        task.point(x=None, bias=None, state=None)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        encoder, task, needed = ctx.encoder, ctx.task, ctx.needs_input_grad
        task.point(dstate=gradient.contiguous())
        if encoder.mode == "inner":
            if ctx.turn != encoder.turn:
                raise RuntimeError(
                    "a loss may read the encoder once in an inner step; without broadcasts in the learner's class it "
                    "may read it more often"
                )
            encoder.move(task, STEP, encoder.lr)
            return (None,) * len(needed)
        dx, dbias = (gradient.new_zeros(s) if n else None for s, n in zip(ctx.shapes, needed[2:4], strict=True))
        task.point(dx=dx, dbias=dbias)
        task.set(what=BACKWARD)
        if not any(needed[4:]):
            task.run()
            return None, None, dx, dbias, *(None for _ in needed[4:])
        return None, None, dx, dbias, *encoder.shared_gradients(task, task)


class KernelEncoder(nn.Module):
    """An encoder of B users; each one's weights are a row of numbers in the order that suits the library.

    ``mode`` is ``inner`` while steps are taken, ``graph`` when gradients of an outer loss are to reach the shared
    parameters, and ``values`` when nothing does.

    Args:
        base: an encoder whose class names the ``kernel``.
        users: B.
    """

    mode = "inner"
    takes_positions = True

    def __init__(self, base: Any, users: int) -> None:
        super().__init__()
        self.base: dict[str, Tensor] = dict(base.named_parameters())
        self.users, self.context_scale, self.max_length = users, base.context_scale, base.max_length
        self.eps = [module.eps for module in base.modules() if isinstance(module, nn.LayerNorm)]
        self.drop = [d.p if d.training else 0.0 for d in (base.dropout, *(block.dropout for block in base.blocks))]
        self.sizes = {"users": users, **encoder_sizes(base)}
        self.turn, self.lr = 0, 0.0
        self.leaf = torch.zeros((), requires_grad=True)  # dummy leaf, so that autograd calls backward
        task = Pass(base.position, self.sizes, self.drop, self.eps)
        self.size = task.sizes()[0]
        self.row = base.position.detach().new_zeros(self.size)  # or of each user, once a step is taken
        task.convert(self.row, [p.detach().contiguous() for p in self.base.values()], back=False)

    def forward(self, x: Tensor, keep: Tensor, context: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """States (B, S, D), as the encoder of one user gives them.

        Args:
            x: (B, L, D) item vectors of the history.
            keep: (B, L) bool, False at padding.
            context: (B, L, E) feature vectors for feature-aware attention.
            at: (B, S) positions; all L by default.

        Raises:
            ValueError: if L is more than the encoder's ``max_length``, or there are not B users.
            IndexError: if a position is not within the history.
        """
        at = torch.arange(x.shape[-2]).expand(len(x), -1) if at is None else at
        task = self._task(keep, at)
        self.turn += 1
        bias = self._bias(context)
        if self.mode == "values" and not torch.is_grad_enabled():
            return self._values(task, self._plain(x), bias)
        count = self.users * task.sizes()[1]
        few = count <= MOST_KEPT
        task.point(saved=_borrowed(_saved_left, self.row, count, task) if few else self.row.new_empty(count))
        leaves = {"inner": (self.leaf,), "graph": (*self.base.values(),)}.get(self.mode, ())
        out: Tensor = _Encode.apply(self, task, self._plain(x), bias, *leaves)  # type: ignore[no-untyped-call]
        return out

    def _values(self, task: Pass, x: Tensor, bias: Tensor | None) -> Tensor:
        """States that no gradient is asked for: what a backward pass would need stays in a cache, of one user."""
        job = task.job
        state, saved = x.new_empty(job.users, job.asked, job.dim), x.new_empty(job.threads, task.sizes()[1])
        task.point(x=x, bias=bias, state=state, saved=saved)
        task.set(what=VALUES)
        task.run()
        return state

    def descend(self, products: Products, objective: str, steps: int, lr: float) -> None:
        """All inner steps at once, on a loss of products of states and vectors.

        Args:
            products: x, keep, context and at, as the forward pass takes them, the vectors (B, S, 1 + N, D) of target
                and negatives, and the examples' weights (B, S).
            objective: one of ``OBJECTIVES``.
            steps: at least 1.
            lr: step size.
        """
        task = self._of_products(products, objective)
        task.set(steps=steps)
        self.move(task, DESCEND, lr)

    def learn(
        self,
        support: Products,
        query: Products,
        objectives: tuple[str, str],
        steps: int,
        lr: float,
        second_order: bool = False,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Query losses at the weights that all inner steps lead to, and the gradients of the losses' sum.

        No user's weights are kept: what follows the last step runs while they are in the cache.

        Args:
            support: what :meth:`descend` takes; gradients reach it in second order.
            query: likewise; gradients reach those of its tensors that want them.
            objectives: inner and outer, of ``OBJECTIVES``.
            steps: 0 or more.
            lr: step size.
            second_order: differentiate through the steps.

        Returns:
            the losses (B,), and tensors with their gradients: of the query's tensors, of the shared weights, and in
            second order of the support's tensors.
        """
        task, then = self._of_products(support, objectives[0]), self._of_products(query, objectives[1])
        second = int(second_order and steps > 0)
        task.set(what=DESCEND, steps=steps, rate=-lr, second=second)
        threads, saved = task.job.threads, task.sizes()[1]
        task.point(moved=self.row.new_empty(threads, 1 + second * steps, self.size))
        task.point(saved=self.row.new_empty(threads, 1 + second, saved))
        losses = self.row.new_empty(self.users)
        then.set(what=LEARN)
        then.point(losses=losses)
        task.followed(then)
        pairs = [*self._reached(then, query), *(self._reached(task, support) if second else ())]
        shared = self.shared_gradients(task, then)
        return losses, [(t, g) for t, g in (*pairs, *zip(self.base.values(), shared, strict=True)) if t.requires_grad]

    def _reached(self, task: Pass, products: Products) -> list[tuple[Tensor, Tensor]]:
        """What a pass was computed from besides weights, and memory for the gradients, which is given to the pass."""
        x, _, context, _, vectors, _ = products
        bias = self._bias(context)
        reached = {"dx": x, "dvectors": vectors, **({} if bias is None else {"dbias": bias})}
        made = {name: torch.zeros(t.shape, dtype=self.row.dtype) for name, t in reached.items()}
        task.point(**made)
        return [(reached[name], gradient) for name, gradient in made.items()]

    def shared_gradients(self, task: Pass, last: Pass) -> list[Tensor]:
        """Runs a pass; the gradients of the shared weights, which its last part adds up."""
        added = self.row.new_zeros(task.job.threads, self.size)
        last.point(moved=added)
        last.set(rate=1.0)
        task.run()
        given = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in self.base.values()]
        task.convert(added.sum(0), given, back=True)
        return given

    def move(self, task: Pass, what: int, lr: float) -> None:
        """A pass of the inner loop, which updates every user's weights."""
        moved = self.row if self.row.ndim > 1 else _rows(self)
        task.point(moved=moved)
        task.set(what=what, rate=-lr)
        task.run()
        self.row = moved
        self.turn += 1  # this pass is used up

    def _of_products(self, products: Products, objective: str) -> Pass:
        """A pass over users with a loss of products; it keeps what is saved of one user in each thread."""
        x, keep, context, at, vectors, weight = products
        task = self._task(keep, at)
        task.set(objective=OBJECTIVES[objective], compared=vectors.shape[2])
        task.point(x=self._plain(x), bias=self._bias(context), vectors=self._plain(vectors), weight=self._plain(weight))
        task.point(saved=self.row.new_empty(task.job.threads, task.sizes()[1]))
        return task

    def _task(self, keep: Tensor, at: Tensor) -> Pass:
        """A pass over users with these tokens."""
        users, length = keep.shape
        if length > self.max_length:
            raise ValueError(f"SequenceEncoder: history of {length} items, but max_length is {self.max_length}")
        if users != self.users:
            raise ValueError(f"adapted to {self.users} users, but got the histories of {users}")
        task = Pass(self.row, self.sizes, self.drop, self.eps)
        threads = max(1, min(torch.get_num_threads(), users))
        stride = self.size if self.row.ndim > 1 else 0
        task.set(length=length, asked=at.shape[1], threads=threads, stride=stride)
        if any(self.drop):
            task.set(seed=int(torch.randint(2**63 - 1, ())))
        task.point(keep=keep.contiguous(), at=at.contiguous(), weights=self.row)
        return task

    def _plain(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.row.dtype).contiguous()

    def _bias(self, context: Tensor | None) -> Tensor | None:
        return None if context is None else self._plain(self.context_scale * (context @ context.transpose(-2, -1)))

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Before the first step: each user starts from weights of its own, (B, ...) by the parameters' names."""
        task, rows = Pass(self.row, self.sizes, self.drop, self.eps), _rows(self).copy_(self.row)
        for user, row in enumerate(rows):
            task.convert(row, [weights[name][user].contiguous() for name in self.base], back=False)
        self.row = rows

    def weights(self) -> dict[str, Tensor]:
        """The adapted parameters, (B, ...)."""
        own = [torch.empty(self.users, *p.shape, dtype=p.dtype) for p in self.base.values()]
        task = Pass(self.row, self.sizes, self.drop, self.eps)
        for user, row in enumerate(self.row.expand(self.users, -1)):
            task.convert(row, [p[user] for p in own], back=True)
        if self.mode == "graph":
            own = [p + (mine - p.detach()) for p, mine in zip(self.base.values(), own, strict=True)]
        return dict(zip(self.base, own, strict=True))


# Memory that is handed on: new pages cost a third of the time of the steps.
_rows_left: deque[Tensor] = deque(maxlen=1)
_saved_left: deque[Tensor] = deque(maxlen=1)
MOST_KEPT = 1 << 25  # numbers of a forward pass that are handed on


def _rows(encoder: KernelEncoder) -> Tensor:
    """A row (B, size) for each user of an encoder; another encoder gets the memory when this one is gone."""
    flat = _borrowed(_rows_left, encoder.row, encoder.users * encoder.size, encoder)
    return flat.view(encoder.users, encoder.size)


def _borrowed(left: deque[Tensor], like: Tensor, count: int, owner: Any) -> Tensor:
    """So many numbers, from what is left of an owner who is gone, if it is enough.

    Args:
        left: what is left.
        like: of their type.
        count: how many.
        owner: when it is gone, the memory is left.
    """
    try:
        flat: Tensor | None = left.pop()  # one call: of several threads, one gets it
    except IndexError:
        flat = None
    if flat is None or flat.dtype != like.dtype or flat.numel() < count:
        flat = like.new_empty(count)
    weakref.finalize(owner, left.append, flat).atexit = False
    return flat[:count]


def encoder_sizes(base: Any) -> dict[str, int]:
    """What the library wants to know of an encoder."""
    return {
        "dim": base.position.shape[1],
        "heads": base.blocks[0].heads,
        "layers": len(base.blocks),
        "feedforward": base.blocks[0].feedforward_in.out_features,
        "positions": len(base.position),
    }
