"""Weights of an ensemble as a function of the user's context, fitted to candidate scores.

The fused score of item i is ``sum_s w_s z_si + b_s [s does not know i]``, where z is model s's standardised score. Each
of w and b is linear in features of the context: a constant, the log of the clicks so far, the share of them on items
unseen upstream, and the time since the last click (its log, standardised, and the square of that); a weight that would
be negative is 0. An item that a model does not know therefore gets a learned score of its own, in place of the lowest.
Where people repeat, items that the user has clicked before are weighed apart: what tells which of them is clicked again
is not what tells which of all others comes next.

The log-likelihood of real clicks is dominated by low-ranked targets, so the weights minimise the generalised
cross-entropy (q = 0.4), which a low-ranked target hardly moves (Zhang and Sabuncu, "Generalized Cross Entropy Loss",
NeurIPS 2018). The weights are shrunk toward given ones, or equal ones, that are the same for everybody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.model import Saved
from metarec.recipes.candidates import CandidateScores

AT_ONCE = 512  # clicks whose loss is computed at once
FEATURES = 5  # of the context
PENALTY = 1e-3  # of the squared distance from the weights that they are shrunk toward
FARTHEST = 3.0  # standard deviations that the log of the gap is clipped to


class ContextWeights(nn.Module):
    """How much each of S models counts for a user, and what an item that it does not know gets.

    Args:
        names: of the models.
        context: let the weights depend on the user; otherwise they are the same for all.
        repeats: weigh items that the user has clicked before apart from all others.

    Raises:
        ValueError: if there is no name.

    Example:
        >>> weights = ContextWeights(["ease", "popularity"])
        >>> [each.tolist() for each in weights(torch.tensor([[3.0, 0.5, torch.nan]]))]
        [[[0.5, 0.5]], [[0.0, 0.0]]]
    """

    usual: Tensor

    repeat: nn.Parameter | None

    def __init__(self, names: Sequence[str], *, context: bool = True, repeats: bool = False) -> None:
        super().__init__()
        if not names:
            raise ValueError("ContextWeights: expected the name of at least one model, got none")
        self.names = tuple(names)
        self.register_buffer("usual", torch.tensor([0.0, 1.0]))  # mean and deviation of the log of the gap
        self.until: float | None = None  # time of the last click that they were fitted to, inf if unknown
        columns = FEATURES if context else 1
        self.weight = nn.Parameter(torch.zeros(columns, len(names)))
        self.unknown = nn.Parameter(torch.zeros(columns, len(names)))
        self.repeat = nn.Parameter(torch.zeros(columns, len(names))) if repeats else None  # on top of the weights
        with torch.no_grad():
            self.weight[0] = 1 / len(names)

    @property
    def information(self) -> str:
        """``"later"`` if they were fitted to clicks of unknown times."""
        return "later" if self.until == math.inf else "upstream"

    @property
    def fitted_until(self) -> float | None:
        """Time of the last click that they were fitted to; None if there is none or it is not known."""
        return None if self.until == math.inf else self.until

    def features(self, context: Tensor) -> Tensor:
        """(..., 1 or 5) float32 from contexts (..., 3). What is not known is as usual."""
        clicks, cold, gap = context.double().unbind(-1)  # then rounded: the same for a user in any batch
        mean, deviation = self.usual.unbind()
        z = ((gap - mean) / deviation).clamp(-FARTHEST, FARTHEST)
        full = [torch.ones_like(clicks), clicks.clamp(min=1).log() - 1.5, cold, z, z * z - 1]
        return torch.stack(full, -1)[..., : len(self.weight)].nan_to_num().float()

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and scores of unknown items, (N, S) float64 each, from contexts (N, 3); of one user in any batch."""
        weight, unknown = self._at(torch.cat([self.weight, self.unknown], 1), context).chunk(2, 1)
        return weight.clamp(min=0), unknown

    def of_repeats(self, context: Tensor) -> Tensor:
        """Weights (N, S) float64 for items that the user has clicked before."""
        own = self.weight if self.repeat is None else self.weight + self.repeat
        return self._at(own, context).clamp(min=0)

    def _at(self, columns: Tensor, context: Tensor) -> Tensor:
        """(N, ...) float64, added up in one order, so that a user gets the same in any batch."""
        each = self.features(context).double().unsqueeze(-1) * columns.double()
        return each.cumsum(1)[:, -1]

    def fuse(self, z: Tensor, unknown: Tensor, context: Tensor, repeat: Tensor | None = None) -> Tensor:
        """(n, S, C), (n, S, C) bool, contexts (n, 3) and (n, C) bool, what was clicked before, to scores (n, C)."""
        features = self.features(context)
        missing = (features @ self.unknown).unsqueeze(-2) @ unknown.to(z.dtype)
        fused = (features @ self.weight).clamp(min=0).unsqueeze(-2) @ z
        if self.repeat is not None and repeat is not None:
            again = (features @ (self.weight + self.repeat)).clamp(min=0).unsqueeze(-2) @ z
            fused = torch.where(repeat.unsqueeze(-2), again, fused)
        return (fused + missing).squeeze(-2)

    def with_part(self, name: str) -> ContextWeights:
        """The same weights, and none for another model, if it is not among them."""
        if name in self.names:
            return self
        how = {"context": len(self.weight) > 1, "repeats": self.repeat is not None}
        out = ContextWeights((*self.names, name), **how).to(self.weight.device)
        out.load_state_dict({n: t if n == "usual" else F.pad(t, (0, 1)) for n, t in self.state_dict().items()})
        out.until = self.until
        return out

    def distance(self, toward: Tensor) -> Tensor:
        """() squared distance from weights (S,) of any scale for everybody and every item, and 0 for unknown items."""
        direction = toward / toward.norm()
        apart = self.weight[0] - (self.weight[0] @ direction) * direction
        out: Tensor = (apart**2).sum() + (self.weight[1:] ** 2).sum() + (self.unknown**2).sum()
        return out if self.repeat is None else out + (self.repeat**2).sum()

    def fit(
        self,
        seen: CandidateScores,
        *,
        toward: Tensor | None = None,
        penalty: float = PENALTY,
        top: float = 0.4,
        iterations: int = 40,
    ) -> None:
        """Minimise the generalised cross-entropy of real clicks by L-BFGS.

        Args:
            seen: of clicks that no model was fitted on, from :func:`candidate_scores`, of these models at least.
            toward: (S,) weights that the fit begins with and is shrunk toward; equal ones by default.
            penalty: of the squared distance from them.
            top: q of the loss ``(1 - p^q) / q``, p the probability of a click; 0 for the log-likelihood.
            iterations: of L-BFGS.

        Raises:
            ValueError: if there is no click, or a model is not among those that were asked.
        """
        seen = seen.of(self.names)
        if not len(seen.z):
            raise ValueError("ContextWeights.fit: expected clicks to fit to, got none")
        gap = seen.context[:, 2][~seen.context[:, 2].isnan()]
        if len(gap) > 1:
            self.usual.copy_(torch.stack([gap.mean(), gap.std().clamp(min=1e-3)]))
        if toward is None:
            toward = torch.ones_like(self.weight[0])
        else:
            with torch.no_grad():
                self.weight[0] = toward / toward.sum()
        optimizer = torch.optim.LBFGS(list(self.parameters()), max_iter=iterations, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = penalty * self.distance(toward)
            loss.backward()
            for part in seen.split(AT_ONCE):
                scores = self.fuse(part.z, part.unknown, part.context, part.repeat) + part.log_importance
                likely = scores.gather(1, part.target[:, None]).squeeze(1) - scores.logsumexp(-1)
                lost = (-likely if top == 0 else (1 - (top * likely).exp()) / top).sum() / len(seen.z)
                lost.backward()
                loss = loss.detach() + lost.detach()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        self.until = seen.until if self.until is None else max(self.until, seen.until)

    def state(self) -> Saved:
        """Names, what they were fitted to, and the weights."""
        settings = {
            "names": list(self.names),
            "context": len(self.weight) > 1,
            "repeats": self.repeat is not None,
            "information": self.information,
            "fitted_until": self.fitted_until,
        }
        return Saved(settings, {name: tensor.detach() for name, tensor in self.state_dict().items()})

    @classmethod
    def from_state(cls, saved: Saved) -> Self:
        """The weights that :meth:`state` told of.

        Raises:
            ValueError: if names and shapes do not belong together, or a number is not finite.
        """
        names, context, until = (saved.settings.get(name) for name in ("names", "context", "fitted_until"))
        repeats = saved.settings.get("repeats", False)
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) != len(names):
            raise ValueError(f"ensemble: expected the names of its parts, each once, got {names!r}")
        timed = isinstance(until, int | float) and not isinstance(until, bool) and math.isfinite(until)
        information = saved.settings.get("information")
        formed = isinstance(context, bool) and isinstance(repeats, bool)
        if not formed or not (timed or until is None) or information not in ("upstream", "later"):
            raise ValueError(
                "ensemble: expected context and repeats true or false, a finite fitted_until or null, and information "
                f"'upstream' or 'later', got {context!r}, {repeats!r}, {until!r} and {information!r}"
            )
        out = cls(names, context=bool(context), repeats=bool(repeats))
        expected = {name: tuple(tensor.shape) for name, tensor in out.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in saved.tensors.items()}
        if given != expected:
            raise ValueError(f"ensemble: expected tensors {expected}, got {given}")
        numbers = [t for t in saved.tensors.values() if t.is_floating_point() and t.isfinite().all()]
        if len(numbers) < len(saved.tensors) or not saved.tensors["usual"][1] > 0:
            raise ValueError("ensemble: a weight is not finite, or the deviation of the gap is not above 0")
        out.load_state_dict({name: tensor.float() for name, tensor in saved.tensors.items()})
        out.until = math.inf if information == "later" else cast("float | None", until)
        return out
