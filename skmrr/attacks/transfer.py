"""Attacks on a copy."""

from dataclasses import dataclass

from torch import nn

from skmrr.attacks.projected import NORMS, ProjectedGradient
from skmrr.attacks.result import AttackResult, verified
from skmrr.nn.tapped import shared_copy


@dataclass(frozen=True)
class Transfer:
    """Attack a copy that the attacker has trained, and try the outcome on the network itself.

    Parameters
    ----------
    surrogate : nn.Module
        A `skmrr.nn.DefendedClassifier` or a classifier, such as one from another seed.
    attack : ProjectedGradient
        What to attack it with.
    """

    surrogate: nn.Module
    attack: ProjectedGradient

    @property
    def norm(self) -> str:
        """That of the attack."""
        return self.attack.norm

    def __call__(self, network, x, labels, *, eps, **params) -> AttackResult:
        """Attack the surrogate, and verify on `network`; parameters as of `ProjectedGradient`."""
        found = self.attack(self.surrogate, x, labels, eps=eps, **params)
        network = shared_copy(network)
        return verified(network, x, found.adversarial, labels, norm=NORMS[self.norm])
