"""Members' log-survivals into one."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Fusion(nn.Module, ABC):
    """Members' calibrated log-survivals → one calibrated log-survival."""

    heeded: Bool[Tensor, " members"]
    """Members that have a say: without one of them a row cannot be judged."""

    @abstractmethod
    def forward(
        self, log_survivals: Float[Tensor, "batch members"], columns: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the fused log-survival of each row, ≤ 0."""


class Alone(Fusion):
    """A single member speaks for itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("heeded", torch.ones(1, dtype=torch.bool))

    def forward(self, log_survivals, columns):
        """Return the member's own log-survival."""
        return log_survivals[:, 0]


class CalibratedFusion(Fusion):
    """Fusion by a rule, calibrated anew: whatever the number of members, it promises one rate.

    Parameters
    ----------
    rule : FusionRule
        Members' log-survivals → oddness.
    survival : nn.Module
        (oddness of shape (batch, 1), class columns) → log-survival of shape (batch, 1).
    """

    def __init__(self, rule: "FusionRule", survival: nn.Module):
        super().__init__()
        self.rule = rule
        self.survival = survival
        self.register_buffer("heeded", rule.weights > 0)

    def forward(self, log_survivals, columns):
        """Return the calibrated log-survival of the fused oddness."""
        return self.survival(self.rule(log_survivals)[:, None], columns)[:, 0]


class FusionRule(nn.Module):
    """Oddness of a row from the log-survival log p_k that each of its members gives it.

    Parameters
    ----------
    rule : {"noisy_or", "harmonic", "max"}
        ``noisy_or``: −Σ w_k log p_k. With weights of one this is Fisher's statistic, and
        1 − Π p_k, the noisy-OR of the risks 1 − p_k, grows with it. ``harmonic``: log Σ w_k / p_k,
        by the harmonic mean of the p-values (Wilson 2019), in which a member that sees nothing
        takes little from one that does. ``max``: the largest of −log p_k + log w_k, a weighted
        Bonferroni rule.
    weights : Tensor of shape (members,)
        Weights w_k ≥ 0; a member of weight 0 has no influence.
    """

    weights: Tensor

    def __init__(self, rule: str, weights: Tensor):
        super().__init__()
        self.rule = rule
        self.register_buffer("weights", weights.double())

    def forward(self, log_survivals: Float[Tensor, "*batch members"]) -> Float[Tensor, "*batch"]:
        """Return the fused oddness, high = odd; its scale means nothing before calibration."""
        rules = {"noisy_or": self._noisy_or, "harmonic": self._harmonic, "max": self._max}
        return rules[self.rule](log_survivals)

    def _noisy_or(self, log_survivals: Tensor) -> Tensor:
        return -(log_survivals * self.weights).sum(-1)

    def _harmonic(self, log_survivals: Tensor) -> Tensor:
        return (self.weights.log() - log_survivals).logsumexp(-1)

    def _max(self, log_survivals: Tensor) -> Tensor:
        return (self.weights.log() - log_survivals).amax(-1)
