"""The batched inner loop: thousands of users take their gradient steps at once."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metarec.meta.adapting import AdaptingModel
from metarec.meta.choice import choose
from metarec.meta.engine import Engine, InnerLoop, Rate
from metarec.meta.graphs import MULTIPLE, Gradients, Graphs
from metarec.meta.memory import Bytes, chunk_sizes, split_to_fit
from metarec.meta.users import Adapted, Learner, check_objectives
from metarec.nn.former import FormerNames, accept_former_names
from metarec.nn.kinds import reading
from metarec.types import EpisodeBatch, Examples

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
        engine: ``"auto"`` takes the fastest of the library's own engines that computes exactly what the learner
            computes, ``"learn2learn"`` steps through its ``MAML``; equal results. ``"native"`` is ``"auto"``.
        memory_budget: bytes that adapting may take at once; users are adapted in chunks that fit. Default: half of the
            free memory of a GPU, 32 MiB on a CPU.
        graphs: on a GPU, let :meth:`backward` replay batches of a shape it has met before as one CUDA graph: launching
            the kernels of a small batch costs many times more than running them. Encoder-only adaptation, and learners
            whose Python code does the same at every call.

    Raises:
        ValueError: if ``steps`` or ``lr`` is negative, or the engine or an objective is unknown.
        ModuleNotFoundError: if ``engine="learn2learn"`` and it is not installed.

    Example:
        >>> from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
        >>> learner = ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8))
        >>> meta = MetaLearner(learner, lr=0.1, steps=2)
        >>> support = Examples(torch.tensor([[3, 1, 2], [1, 2, 0]]), torch.tensor([[0, 1], [0, 0]]),
        ...                    torch.tensor([[1, 2], [2, 0]]), torch.full((2, 2, 1), 4), torch.tensor([[1., 1], [1, 0]])
        ...                    )
        >>> meta.adapt(support)(support).scores.shape
        torch.Size([2, 2, 6])
    """

    multiple = MULTIPLE
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
        engine: Literal["auto", "native", "learn2learn"] = "auto",
        memory_budget: int | None = None,
        graphs: bool = False,
    ) -> None:
        super().__init__()
        if steps < 0 or lr < 0:
            raise ValueError(f"{type(self).__name__}: steps and lr must not be negative, got steps={steps} and lr={lr}")
        if engine not in ("auto", "native", "learn2learn"):
            raise ValueError(f"MetaLearner: engine must be 'auto', 'native' or 'learn2learn', got {engine!r}")
        check_objectives(learner, objectives)
        if not isinstance(learner, FormerNames):
            accept_former_names(type(learner))
        if engine == "learn2learn" and importlib.util.find_spec("learn2learn") is None:
            raise ModuleNotFoundError("learn2learn is not installed: `make extras` installs it, or use engine='auto'")
        self.learner: Any = learner
        self.lr, self.steps, self.adapts, self.second_order = lr, steps, adapts, second_order
        self.objectives = objectives
        self.engine: Literal["auto", "learn2learn"] = "learn2learn" if engine == "learn2learn" else "auto"
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
        keep_graph, start, support = torch.is_grad_enabled(), weights or {}, reading(self.learner, support)
        with torch.enable_grad():
            view, loop = self.learner.task_view(self.adapts), self._loop(steps)
            engine = self._chosen(view, loop, support, start)
            with engine.lock(view):
                if loop.steps and not any(p.requires_grad for p in view.parameters()):
                    warnings.warn(FROZEN, stacklevel=2)
                stacks, first = [], 0
                for size in self._chunk_sizes(view, engine, support, keep_graph):
                    part = support if size == len(support) else support[first : first + size].trim()
                    own = {name: w[first : first + size] for name, w in start.items()}
                    users = engine(view, size, _own_tensors(view, part) | own).steps(part, loop)
                    stacks.append(users.attached() if keep_graph else users.detached())
                    first += size
        return Adapted(stacks, view.items.known, getattr(view, "fitted", None))

    def rate(self) -> Rate:
        """The step size of the inner loop: ``lr`` for all weights. A subclass may give one for each, by name."""
        return self.lr

    def _loop(self, steps: int | None = None, outer: Any = None) -> InnerLoop:
        steps = self.steps if steps is None else steps
        return InnerLoop(self.objectives[0], steps, self.rate(), second_order=self.second_order, outer=outer)

    def _chosen(
        self, view: nn.Module, loop: InnerLoop, support: Examples, weights: Mapping[str, Tensor] | None = None
    ) -> type[Engine]:
        one = support if len(support) == 1 else support[:1]
        return choose(view, loop, _own_tensors(view, one) | dict(weights or {}), self.engine)

    def _chunk_sizes(self, view: nn.Module, engine: type[Engine], support: Examples, keep_graph: bool) -> list[int]:
        steps = self._graph_steps(keep_graph)
        return chunk_sizes(view, support, steps, self._budget(support), self._bytes(engine))

    def _bytes(self, engine: type[Engine]) -> Bytes:
        return partial(engine.bytes_per_user, steps=self.steps)

    def _budget(self, support: Examples) -> int | None:
        """The memory budget; where graphs hold memory, that of the first batch, or chunks would never be the same."""
        if self.memory_budget is not None or self.graphs is None:
            return self.memory_budget
        return self.graphs.budget(support.history.device)

    def _graph_steps(self, keep_graph: bool) -> int:
        """How many inner steps' activations are held at once."""
        all_held = keep_graph and (self.second_order or isinstance(self.rate(), Mapping))
        return max(1, self.steps) if all_held else 1

    def query_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Each user's query loss at its adapted weights, (B,), with the graph to the shared weights."""
        return self.adapt(episodes.support).loss(episodes.query, self.objectives[1])

    def backward(self, episodes: EpisodeBatch) -> float:
        """Add the gradient of the mean query loss over users to ``.grad``, chunk by chunk; returns that loss.

        Queries weigh as they are told to; clicks that are adapted to weigh the same, as those of a served user do.

        Raises:
            FloatingPointError: if a user's loss is not finite; names the users.
        """
        episodes = self._as_read(_supported_alike(episodes))
        serves = episodes.user.is_cpu  # elsewhere a graph to the parameters would keep a CUDA graph from being recorded
        with torch.set_grad_enabled(serves):
            view = self.learner.task_view(self.adapts)
        ready = [view] if serves else []
        engine = self._chosen(view, self._loop(outer=self.objectives[1]), episodes.support)
        sizes = self._chunk_sizes(view, engine, episodes.support, True)
        total = 0.0
        for part in episodes.chunks(*sizes):
            need = len(part) * self._bytes(engine)(view, part.support, self._graph_steps(True))
            for users_done, (losses, parameters, gradients) in self._gradients(part, need, ready):
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

    def _as_read(self, episodes: EpisodeBatch) -> EpisodeBatch:
        """The same with the histories that the learner reads."""
        support, query = (reading(self.learner, part) for part in (episodes.support, episodes.query))
        return EpisodeBatch(episodes.user, support, query)

    def _gradients(self, part: EpisodeBatch, need: int, ready: list[nn.Module]) -> Iterator[tuple[Tensor, Gradients]]:
        """User codes with their losses and gradients, split in two after an out-of-memory error of the GPU."""

        def work(users: EpisodeBatch) -> Gradients:
            found = None
            if self.graphs and self.adapts == "encoder":
                found = self.graphs.gradients(self, users, need * len(users) // len(part))
            return found or self.gradients(users, ready.pop() if ready else None)

        for users, found in split_to_fit(work, part, lambda users: users.chunks(-(-len(users) // 2))):
            yield users.user, found

    def gradients(self, part: EpisodeBatch, view: nn.Module | None = None) -> Gradients:
        """Query losses (B,) of users that fit into memory, parameters, and the gradients of the losses' sum.

        Args:
            part: the users.
            view: the learner's task view, if it was made already; its graph is used up.
        """
        part, trained = self._as_read(part), [p for p in self.parameters() if p.requires_grad]
        view = self.learner.task_view(self.adapts) if view is None else view
        loop = self._loop(outer=self.objectives[1])
        engine = self._chosen(view, loop, part.support)
        users = engine(view, len(part), _own_tensors(view, part.support))
        losses, gradients = users.query_gradients(part, loop, self.objectives[1], trained)
        used = [(p, g) for p, g in zip(trained, gradients, strict=True) if g is not None]
        return losses.detach(), [p for p, _ in used], [g for _, g in used]


def _own_tensors(view: Any, support: Examples) -> dict[str, Tensor]:
    """Tensors that each user has of its own from the start, where the view's learner has any."""
    return dict(view.task_tensors(support)) if len(support) and hasattr(view, "task_tensors") else {}


def add_gradient(parameter: Tensor, gradient: Tensor, share: float) -> None:
    """Add a multiple of a gradient to ``parameter.grad``; the gradient itself may be overwritten later."""
    if parameter.grad is None:
        parameter.grad = gradient * share
    else:
        parameter.grad.add_(gradient, alpha=share)


def _supported_alike(episodes: EpisodeBatch) -> EpisodeBatch:
    """The same with clicks that weigh the same in the support."""
    weight = episodes.support.weight
    support = replace(episodes.support, weight=(weight > 0).to(weight.dtype))
    return EpisodeBatch(episodes.user, support, episodes.query)
