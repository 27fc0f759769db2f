"""The batched inner loop: thousands of users take their gradient steps at once."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metarec.meta.adapting import AdaptingModel
from metarec.meta.calling import exclusive
from metarec.meta.fast import FastStack
from metarec.meta.graphs import Gradients, Graphs
from metarec.meta.kernel_stack import KernelStack
from metarec.meta.memory import bytes_per_user, chunk_sizes, in_halves
from metarec.meta.stack import TaskStack
from metarec.meta.users import Adapted, Learner, Stack, check_objectives
from metarec.types import EpisodeBatch, Examples

Engine = Literal["auto", "native", "learn2learn"]
FROZEN = (
    "MetaLearner: every parameter of what adapts has requires_grad=False, so inner steps change nothing; call "
    "requires_grad_() on what shall adapt, or take steps=0"
)


class MetaLearner(AdaptingModel, nn.Module):
    """MAML (Finn et al., ICML 2017) over users, adapting them all at once.

    Each user takes ``steps`` SGD steps of size ``lr`` on its own support loss, from the shared initialisation; the
    query loss at the adapted weights teaches the shared weights. First order (the default) treats the inner gradients
    as constants. The learner's ``task_view`` says what adapts; what of it is frozen (``requires_grad=False``) stays.

    The inner loss is the SUM over users: their weights are separate, so each user's gradient is its own.

    Args:
        learner: e.g. a :class:`~metarec.nn.ModalityLearner`.
        lr: inner step size.
        steps: inner steps.
        adapts: ``"encoder"``, or ``"all"``: the projections and the touched item rows too.
        second_order: differentiate through the inner steps.
        objectives: inner and outer loss: ``"bpr"``, ``"sampled_softmax"`` or ``"softmax"``, or those that the learner
            names in its own ``objectives``.
        engine: ``"learn2learn"`` steps through its ``MAML``, ``"native"`` here; equal results. ``"auto"`` takes
            learn2learn where it is installed.
        memory_budget: bytes that adapting may take at once; users are adapted in chunks that fit. Default: half of the
            free memory of a GPU, 128 MiB on a CPU.
        graphs: on a GPU, let :meth:`backward` replay batches of a shape it has met before as one CUDA graph: launching
            the kernels of a small batch costs many times more than running them. Encoder-only adaptation, and learners
            whose Python code does the same at every call.

    Raises:
        ValueError: if ``steps`` or ``lr`` is negative, or the engine or an objective is unknown.
        ModuleNotFoundError: if ``engine="learn2learn"`` and it is not installed.

    Example:
        >>> from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
        >>> learner = ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8))
        >>> meta = MetaLearner(learner, lr=0.1, steps=2, engine="native")
        >>> support = Examples(torch.tensor([[3, 1, 2], [1, 2, 0]]), torch.tensor([[0, 1], [0, 0]]),
        ...                    torch.tensor([[1, 2], [2, 0]]), torch.full((2, 2, 1), 4), torch.tensor([[1., 1], [1, 0]])
        ...                    )
        >>> meta.adapt(support)(support).scores.shape
        torch.Size([2, 2, 6])
    """

    plain_sgd = True  # steps of one size on the learner's loss, from weights that may be given

    def __init__(
        self,
        learner: Learner,
        *,
        lr: float = 1e-3,
        steps: int = 5,
        adapts: Literal["encoder", "all"] = "encoder",
        second_order: bool = False,
        objectives: tuple[str, str] = ("bpr", "bpr"),
        engine: Engine = "auto",
        memory_budget: int | None = None,
        graphs: bool = False,
    ) -> None:
        super().__init__()
        if steps < 0 or lr < 0:
            raise ValueError(f"MetaLearner: steps and lr must not be negative, got steps={steps} and lr={lr}")
        if engine not in ("auto", "native", "learn2learn"):
            raise ValueError(f"MetaLearner: engine must be 'auto', 'native' or 'learn2learn', got {engine!r}")
        check_objectives(learner, objectives)
        found = importlib.util.find_spec("learn2learn") is not None
        if engine == "learn2learn" and not found:
            raise ModuleNotFoundError("learn2learn is not installed: `make extras` installs it, or use engine='native'")
        self.learner: Any = learner
        self.lr, self.steps, self.adapts, self.second_order = lr, steps, adapts, second_order
        self.objectives = objectives
        self.learn2learn = engine == "learn2learn" or (engine == "auto" and found)
        self.memory_budget = memory_budget
        self.graphs = Graphs() if graphs else None

    def adapt(
        self, support: Examples, *, steps: int | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> Adapted:
        """Adapt to B users at once; the shared weights stay as they are.

        Under ``torch.no_grad()`` the adapted weights are plain values; otherwise their graph leads back to the shared
        weights, for an outer loss.

        Args:
            support: what each user has clicked.
            steps: inner steps, if not the usual number; 0 gives the shared weights.
            weights: where each user starts, as :meth:`Adapted.weights` gives them, (B, ...) by name; the shared
                weights by default.
        """
        keep_graph, steps = torch.is_grad_enabled(), self.steps if steps is None else steps
        with torch.enable_grad():
            view = self.learner.task_view(self.adapts)
            engine = self._engine(view)
            with exclusive(view) if engine is TaskStack else nullcontext():
                if steps and not any(p.requires_grad for p in view.parameters()):
                    warnings.warn(FROZEN, stacklevel=2)
                stacks, start = [], 0
                for size in self._chunk_sizes(view, engine, support, keep_graph):
                    part = support if size == len(support) else support[start : start + size].trim()
                    own = {name: w[start : start + size] for name, w in (weights or {}).items()}
                    stack = self._adapt_chunk(view, engine, part, steps, own)
                    stacks.append(stack if keep_graph else stack.detached())
                    start += size
        return Adapted(stacks, view.items.known, getattr(view, "fitted", None))

    def _engine(self, view: nn.Module) -> type[Stack]:
        """The fastest engine that computes just what a view computes."""
        kinds = (KernelStack, FastStack) if self._plain else ()
        return next((kind for kind in kinds if kind.fits(view)), TaskStack)

    def _chunk_sizes(self, view: nn.Module, engine: type[Stack], support: Examples, keep_graph: bool) -> list[int]:
        each = KernelStack.bytes_per_user if engine is KernelStack else bytes_per_user
        return chunk_sizes(view, support, self._graph_steps(keep_graph), self.memory_budget, each)

    def _graph_steps(self, keep_graph: bool) -> int:
        """How many inner steps' activations are held at once."""
        return max(1, self.steps) if keep_graph and self.second_order else 1

    @property
    def _plain(self) -> bool:
        """Whether the users' changes of the encoder are all there is to keep."""
        return self.adapts == "encoder" and not self.learn2learn and not self.second_order

    def _adapt_chunk(
        self, view: Any, engine: type[Stack], support: Examples, steps: int, own: Mapping[str, Tensor] | None = None
    ) -> Stack:
        if engine is KernelStack:
            return KernelStack(view, len(support), own).steps(support, self.objectives[0], steps, self.lr).attached()
        if engine is FastStack and not own:
            fast = FastStack(view, len(support), steps)
            for _ in range(steps):
                fast = fast.step(fast("loss", support, self.objectives[0]).sum(), self.lr)
            return fast.attached()
        stack = TaskStack(view, len(support), {**view.task_tensors(support), **(own or {})})
        if self.learn2learn:
            return self._learn2learn_steps(stack, support, steps)
        for _ in range(steps):
            stack = stack.step(stack("loss", support, self.objectives[0]).sum(), self.lr, self.second_order)
        return stack

    def _learn2learn_steps(self, stack: TaskStack, support: Examples, steps: int) -> TaskStack:
        from learn2learn.algorithms import MAML

        maml = MAML(stack, lr=self.lr, first_order=not self.second_order, allow_unused=True)
        for _ in range(steps):
            loss = maml.module("loss", support, self.objectives[0]).sum()
            if loss.requires_grad and maml.module.adapting():
                maml.adapt(loss)
        out: TaskStack = maml.module
        return out

    def query_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Each user's query loss at its adapted weights, (B,), with the graph to the shared weights."""
        return self.adapt(episodes.support).loss(episodes.query, self.objectives[1])

    def backward(self, episodes: EpisodeBatch) -> float:
        """Add the gradient of the mean query loss over users to ``.grad``, chunk by chunk; returns that loss.

        Raises:
            FloatingPointError: if a user's loss is not finite; names the users.
        """
        with torch.no_grad():  # a graph that leads to the parameters would keep a CUDA graph from being recorded
            view = self.learner.task_view(self.adapts)
        sizes = self._chunk_sizes(view, self._engine(view), episodes.support, True)
        total = 0.0
        for part in episodes.chunks(*sizes):
            need = len(part) * bytes_per_user(view, part.support, self._graph_steps(True))
            for users_done, (losses, parameters, gradients) in self._gradients(part, need):
                if not bool(torch.isfinite(losses).all()):
                    users = users_done[~torch.isfinite(losses)].tolist()
                    raise FloatingPointError(
                        f"query loss of user codes {users[:5]} is not finite after {self.steps} inner steps of "
                        f"lr={self.lr}; lower the inner or outer learning rate"
                    )
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    add_gradient(parameter, gradient, 1 / len(episodes))
                total += float(losses.sum())
        return total / len(episodes)

    def _gradients(self, part: EpisodeBatch, need: int) -> Iterator[tuple[Tensor, Gradients]]:
        """User codes with their losses and gradients, in halves where the GPU's memory turns out too small."""

        def work(users: EpisodeBatch) -> Gradients:
            found = None
            if self.graphs and self.adapts == "encoder":
                found = self.graphs.gradients(self, users, need * len(users) // len(part))
            return found or self.gradients(users)

        for users, found in in_halves(work, part, lambda users: users.chunks(-(-len(users) // 2))):
            yield users.user, found

    def gradients(self, part: EpisodeBatch) -> Gradients:
        """Query losses (B,) of users that fit into memory, parameters, and the gradients of the losses' sum."""
        trained = [p for p in self.learner.parameters() if p.requires_grad]
        view = self.learner.task_view(self.adapts)
        engine = self._engine(view)
        if engine is KernelStack and KernelStack.knows(view, *self.objectives):
            stack = KernelStack(view, len(part))
            losses, gradients = stack.gradients(part, self.objectives, self.steps, self.lr, trained)
        else:
            adapted = self._adapt_chunk(view, engine, part.support, self.steps)
            losses = adapted("loss", part.query, self.objectives[1])
            gradients = list(torch.autograd.grad(losses.sum(), trained, allow_unused=True))
        used = [(p, g) for p, g in zip(trained, gradients, strict=True) if g is not None]
        return losses.detach(), [p for p, _ in used], [g for _, g in used]


def add_gradient(parameter: Tensor, gradient: Tensor, share: float) -> None:
    """Add a multiple of a gradient to ``parameter.grad``; the gradient itself may be overwritten later."""
    if parameter.grad is None:
        parameter.grad = gradient * share
    else:
        parameter.grad.add_(gradient, alpha=share)
