"""Attacks on rows that change on their way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from skmrr.attacks.projected import NORMS, ProjectedGradient
from skmrr.attacks.result import AttackResult, is_defended, verified
from skmrr.harmless import bind
from skmrr.nn.tapped import shared_copy


@dataclass(frozen=True)
class OverChannels:
    """Attack the expectation over channels, and try the outcome on the network itself.

    The attacker does not know on which way a row will arrive, or wants it to hold on all.

    Parameters
    ----------
    attack : ProjectedGradient
        What to attack with.
    channels : sequence of callable or None
        Ways, as `skmrr.harmless` has them; None changes nothing.

    References
    ----------
    A. Athalye, L. Engstrom, A. Ilyas, K. Kwok, "Synthesizing Robust Adversarial Examples", ICML
    2018.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import OverChannels, SelectivePGD
    >>> from skmrr.harmless import Shift
    >>> x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    >>> attack = OverChannels(SelectivePGD(steps=10), [None, Shift(0, 1)])
    >>> labels = x.flatten(1).argmax(1)
    >>> attack(torch.nn.Flatten(), x, labels, eps=1.0).success
    tensor([True, True, True])
    """

    attack: ProjectedGradient
    channels: Sequence[Callable | None]

    def with_effort(self, factor: float) -> "OverChannels":
        """Return the same with so many times the attack's steps."""
        return replace(self, attack=self.attack.with_effort(factor))

    @property
    def norm(self) -> str:
        """That of the attack."""
        return self.attack.norm

    def __call__(
        self, network, x, labels, *, eps, clip_values=(0.0, 1.0), **params
    ) -> AttackResult:
        """Attack, and verify on `network`; parameters as of `ProjectedGradient`."""
        ways = [
            nn.Identity() if change is None else bind(change, clip_values, seed)
            for seed, change in enumerate(self.channels)
        ]
        expected = network.through(ways) if is_defended(network) else _Expected(network, ways)
        found = self.attack(expected, x, labels, eps=eps, clip_values=clip_values, **params)
        network = shared_copy(network)
        return verified(network, x, found.adversarial, labels, norm=NORMS[self.norm])


class _Expected(nn.Module):
    """Mean logits of a classifier over ways on which rows reach it."""

    def __init__(self, network: nn.Module, ways: Sequence[Callable[[Tensor], Tensor]]):
        super().__init__()
        self.network = network
        self.ways = tuple(ways)

    def forward(self, x: Tensor) -> Tensor:
        """Rows → mean logits."""
        return sum(self.network(way(x)) for way in self.ways) / len(self.ways)
