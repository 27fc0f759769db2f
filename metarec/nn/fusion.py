"""Adaptive late fusion: several learners' scores, weighted by each user's states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metarec.functional.fusion import fuse_scored
from metarec.types import Scored


class AdaptiveFusion(nn.Module):
    """Gated late fusion: several learners' scores, with weights per user from the learners' states.

    ``a = softmax_m(MLP(LN(state_m)) + b_m)``; fused score = sum_m a_m * scale_m * standardised score_m.

    A modality that knows nothing of a user's history gets no weight for that user, and one that does not know a
    candidate gets no weight for that candidate. No parameter depends on the number of candidates.

    Source: Pan et al., CIKM 2022, stage 3. Deviations: the last state instead of the flattened padded layer, and a
    standardisation instead of a layer norm over the catalogue with one weight per item.

    Args:
        modalities: M.
        dim: D of the states.
        hidden: width of the MLP.

    Example:
        >>> one = Scored(torch.randn(4, 1, 9), torch.randn(4, 1, 8), torch.ones(9) > 0, torch.ones(4, 1) > 0)
        >>> fusion = AdaptiveFusion(modalities=2, dim=8)
        >>> fusion([one, one]).shape, fusion.weights([one, one])[0, 0].tolist()
        (torch.Size([4, 1, 9]), [0.5, 0.5])
    """

    def __init__(self, modalities: int, dim: int = 64, *, hidden: int = 128) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.bias = nn.Parameter(torch.zeros(modalities))
        self.scale = nn.Parameter(torch.ones(modalities))

    def weights(self, scored: Sequence[Scored]) -> Tensor:
        """(..., Q, M) weight of each modality; 0 where it is not active, all 0 where none is.

        Raises:
            ValueError: if the number of modalities is not the one it was built for.
        """
        if len(scored) != len(self.bias):
            raise ValueError(f"AdaptiveFusion: built for {len(self.bias)} modalities, got {len(scored)}")
        return self.user_weights([s.state for s in scored], [s.has_known_history for s in scored])

    def user_weights(self, states: Sequence[Tensor], known: Sequence[Tensor]) -> Tensor:
        """The same from each modality's states (..., D), and whether it knows something of the history, (...)."""
        logits = self.gate(torch.stack(list(states), -2)).squeeze(-1) + self.bias
        active = torch.stack(list(known), -1)
        out: Tensor = logits.masked_fill(~active, torch.finfo(logits.dtype).min).softmax(-1) * active
        return out

    def forward(self, scored: Sequence[Scored], names: Sequence[str] | None = None) -> Tensor:
        """Fused scores, (..., Q, C).

        Args:
            scored: one per modality, over the same candidates.
            names: of the modalities, for messages.

        Raises:
            ValueError: if a score or a weight is not finite.
        """
        return fuse_scored(scored, self.weights(scored), self.scale, names)
