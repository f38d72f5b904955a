"""Attacks on a copy."""

from dataclasses import dataclass, replace

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
        What the attacker owns: a classifier, or a `skmrr.nn.DefendedClassifier`, such as one whose
        detector was fitted by the same recipe from another ``random_state``. Give it a larger
        security parameter than the network's: what the copy just lets pass, that seldom does.
    attack : ProjectedGradient
        What to attack it with.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import SelectivePGD, Transfer
    >>> attack = Transfer(torch.nn.Identity(), SelectivePGD(steps=10))
    >>> attack(torch.nn.Softmax(1), torch.eye(3), torch.arange(3), eps=0.6).success.all()
    tensor(True)
    """

    surrogate: nn.Module
    attack: ProjectedGradient

    def with_effort(self, factor: float) -> "Transfer":
        """Return the same with so many times the attack's steps."""
        return replace(self, attack=self.attack.with_effort(factor))

    @property
    def norm(self) -> str:
        """That of the attack."""
        return self.attack.norm

    def __call__(self, network, x, labels, *, eps, **params) -> AttackResult:
        """Attack the surrogate, and verify on `network`; parameters as of `ProjectedGradient`."""
        found = self.attack(self.surrogate, x, labels, eps=eps, **params)
        network = shared_copy(network)
        return verified(network, x, found.adversarial, labels, norm=NORMS[self.norm])
