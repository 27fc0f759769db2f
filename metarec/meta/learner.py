"""The batched inner loop: thousands of users take their gradient steps at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from metarec.meta.fast import FastStack
from metarec.meta.graphs import Gradients, Graphs
from metarec.meta.kernel_stack import KernelStack
from metarec.meta.memory import bytes_per_user, chunk_sizes, in_halves
from metarec.meta.stack import TaskStack
from metarec.types import EpisodeBatch, Examples, Scored

Engine = Literal["auto", "native", "learn2learn"]


class Learner(Protocol):
    """What can be meta-learned: losses and scores of examples, and a view of itself as one user's task."""

    def loss(self, examples: Examples, objective: Any) -> Tensor:
        """Mean loss of each user's examples."""
        ...

    def rank(self, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
        """Catalogue scores, states, and whether the history is known at all."""
        ...

    def stand(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """States, and whether the history is known at all."""
        ...

    def task_view(self, adapts: Any) -> nn.Module:
        """The learner as one user's task: its parameters are what adapts."""
        ...


class Adapted:
    """Adapted weights of B users, as values: calling it scores those users' examples.

    Attributes:
        stacks: the users' weights, in the chunks in which they were adapted.
    """

    def __init__(
        self, stacks: Sequence[TaskStack | FastStack | KernelStack], known: Tensor, fitted: int | None = None
    ) -> None:
        self.stacks = tuple(stacks)
        self.known, self.fitted = known, fitted

    def __len__(self) -> int:
        return sum(stack.users for stack in self.stacks)

    def __call__(self, examples: Examples) -> Scored:
        """Scores of the whole catalogue for each of the B users' examples.

        Raises:
            ValueError: if the examples are not of the B users that were adapted.
        """
        scores, state, active = self.rank(examples)
        return Scored(scores, state, self.known, active, self.fitted)

    def rank(self, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
        """Catalogue scores (B, Q, I), states (B, Q, D) and whether the history is known at all (B, Q)."""
        scores, state, active = (torch.cat(parts) for parts in zip(*self._each("rank", examples), strict=True))
        return scores, state, active

    def stand(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """States (B, Q, D) and whether the history is known at all (B, Q), without scoring the catalogue."""
        state, active = (torch.cat(parts) for parts in zip(*self._each("stand", examples), strict=True))
        return state, active

    def loss(self, examples: Examples, objective: str = "bpr") -> Tensor:
        """Each user's loss on its examples, (B,)."""
        return torch.cat(self._each("loss", examples, objective))

    def _each(self, method: str, examples: Examples, *args: Any) -> list[Any]:
        if len(examples) != len(self):
            raise ValueError(f"adapted to {len(self)} users, but got the examples of {len(examples)}")
        if len(self.stacks) == 1:
            return [self.stacks[0](method, examples, *args)]  # to trim would be to wait for the GPU
        out, start = [], 0
        for stack in self.stacks:
            out.append(stack(method, examples[start : start + stack.users].trim_history(), *args))
            start += stack.users
        return out

    def weights(self) -> dict[str, Tensor]:
        """Adapted weights by name, (B, ...); touched rows are padded to the widest user.

        Only for users adapted in one chunk or without touched rows, where the shapes agree.
        """
        parts = [stack.weights() for stack in self.stacks]
        return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


class MetaLearner(nn.Module):
    """MAML (Finn et al., ICML 2017) over users, adapting them all at once.

    Each user takes ``steps`` SGD steps of size ``lr`` on its own support loss, from the shared initialisation; the
    query loss at the adapted weights teaches the shared weights. First order (the default) treats the inner gradients
    as constants. The learner's ``task_view`` says what adapts.

    The inner loss is the SUM over users: their weights are separate, so each user's gradient is its own.

    Args:
        learner: e.g. a :class:`~metarec.nn.ModalityLearner`.
        lr: inner step size.
        steps: inner steps.
        adapts: ``"encoder"``, or ``"all"``: the projections and the touched item rows too.
        second_order: differentiate through the inner steps.
        objectives: inner and outer loss: ``"bpr"``, ``"sampled_softmax"`` or ``"softmax"``.
        engine: ``"learn2learn"`` steps through its ``MAML``, ``"native"`` here; equal results. ``"auto"`` takes
            learn2learn where it is installed.
        memory_budget: bytes that adapting may take at once; users are adapted in chunks that fit. Default: half of the
            free memory of a GPU, 128 MiB on a CPU.
        graphs: on a GPU, let :meth:`backward` replay batches of a shape it has met before as one CUDA graph: launching
            the kernels of a small batch costs many times more than running them. Encoder-only adaptation, and learners
            whose Python code does the same at every call.

    Raises:
        ValueError: if ``steps`` or ``lr`` is negative or the engine is unknown.
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
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            view = self.learner.task_view(self.adapts)
            stacks, start = [], 0
            for size in self._chunk_sizes(view, support, keep_graph):
                part = support if size == len(support) else support[start : start + size].trim()
                own = {name: w[start : start + size] for name, w in (weights or {}).items()}
                stack = self._adapt_chunk(view, part, self.steps if steps is None else steps, own)
                stacks.append(stack if keep_graph else stack.detached())
                start += size
        return Adapted(stacks, view.items.known, getattr(view, "fitted", None))

    def _chunk_sizes(self, view: nn.Module, support: Examples, keep_graph: bool) -> list[int]:
        each = KernelStack.bytes_per_user if self._plain and KernelStack.fits(view) else bytes_per_user
        return chunk_sizes(view, support, self._graph_steps(keep_graph), self.memory_budget, each)

    def _graph_steps(self, keep_graph: bool) -> int:
        """How many inner steps' activations are held at once."""
        return max(1, self.steps) if keep_graph and self.second_order else 1

    @property
    def _plain(self) -> bool:
        """Whether the users' changes of the encoder are all there is to keep."""
        return self.adapts == "encoder" and not self.learn2learn and not self.second_order

    def _adapt_chunk(
        self, view: Any, support: Examples, steps: int, own: Mapping[str, Tensor] | None = None
    ) -> TaskStack | FastStack | KernelStack:
        if self._plain and KernelStack.fits(view):
            return KernelStack(view, len(support), own).steps(support, self.objectives[0], steps, self.lr).attached()
        if self._plain and FastStack.fits(view) and not own:
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
            maml.adapt(maml.module("loss", support, self.objectives[0]).sum())
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
        sizes = self._chunk_sizes(view, episodes.support, True)
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
        if self._plain and KernelStack.knows(view, *self.objectives) and KernelStack.fits(view):
            stack = KernelStack(view, len(part))
            losses, gradients = stack.gradients(part, self.objectives, self.steps, self.lr, trained)
        else:
            losses = self._adapt_chunk(view, part.support, self.steps)("loss", part.query, self.objectives[1])
            gradients = list(torch.autograd.grad(losses.sum(), trained, allow_unused=True))
        used = [(p, g) for p, g in zip(trained, gradients, strict=True) if g is not None]
        return losses.detach(), [p for p, _ in used], [g for _, g in used]


def add_gradient(parameter: Tensor, gradient: Tensor, share: float) -> None:
    """Add a multiple of a gradient to ``parameter.grad``; the gradient itself may be overwritten later."""
    if parameter.grad is None:
        parameter.grad = gradient * share
    else:
        parameter.grad.add_(gradient, alpha=share)
