"""Many defenders' log-survivals into one oddness."""

from jaxtyping import Float
from torch import Tensor, nn


class Fusion(nn.Module):
    """Oddness of a row from the log-survival log p_k that each of its judges gives it.

    Parameters
    ----------
    rule : {"noisy_or", "harmonic", "max"}
        ``noisy_or``: −Σ w_k log p_k. With weights of one this is Fisher's statistic, and
        1 − Π p_k, the noisy-OR of the risks 1 − p_k, grows with it. ``harmonic``: log Σ w_k / p_k,
        by the harmonic mean of the p-values (Wilson 2019), in which a member that sees nothing
        takes little from one that does. ``max``: the largest of −log p_k + log w_k, a weighted
        Bonferroni rule.
    weights : Tensor of shape (members,)
        Weights w_k ≥ 0; a member of weight 0 has no say.
    """

    weights: Tensor

    def __init__(self, rule: str, weights: Tensor):
        super().__init__()
        self.fuse = {
            "noisy_or": self._noisy_or,
            "harmonic": self._harmonic,
            "max": self._max,
        }[rule]
        self.register_buffer("weights", weights.double())

    def forward(self, log_survivals: Float[Tensor, "*batch members"]) -> Float[Tensor, "*batch"]:
        """Return the fused oddness, high = odd; its scale means nothing before calibration."""
        return self.fuse(log_survivals)

    def _noisy_or(self, log_survivals: Tensor) -> Tensor:
        return -(log_survivals * self.weights).sum(-1)

    def _harmonic(self, log_survivals: Tensor) -> Tensor:
        return (self.weights.log() - log_survivals).logsumexp(-1)

    def _max(self, log_survivals: Tensor) -> Tensor:
        return (self.weights.log() - log_survivals).amax(-1)
