"""Which way to go from a point: four projected gradient attacks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from skmrr.attacks.projected import ProjectedGradient, per_row
from skmrr.attacks.result import is_defended
from skmrr.nn.defended import DefendedClassifier
from skmrr.nn.members import Piped
from skmrr.nn.placement import as_input
from skmrr.nn.replica import LatentMap


@dataclass(frozen=True)
class LagrangianPGD(ProjectedGradient):
    """Descend on the victim's term plus λ times the detector's, for each of several λ.

    Parameters
    ----------
    weights : tuple of float, default=(0.1, 1.0, 10.0)
        The λ, each tried on every target.
    confidence : float, default=1.0
        Lead and silence, beyond those needed, at which a term counts no more.

    Notes
    -----
    The other parameters are those of `ProjectedGradient`.

    References
    ----------
    N. Carlini, D. Wagner, "Adversarial Examples Are Not Easily Detected: Bypassing Ten Detection
    Methods", AISec 2017; A. Madry et al., ICLR 2018.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import LagrangianPGD
    >>> result = LagrangianPGD(steps=10)(
    ...     torch.nn.Identity(), torch.tensor([[0.6, 0.4]]), torch.tensor([0]), eps=0.3
    ... )
    >>> result.success
    tensor([True])
    """

    weights: tuple[float, ...] = (0.1, 1.0, 10.0)
    confidence: float = 1.0

    @property
    def n_variants(self) -> int:
        """Number of λ."""
        return len(self.weights)

    def gradient(self, network, x, judgement, guide, variant):
        """Gradient of the two terms' sum, downhill."""
        fooling = judgement.lead.clamp_max(self.confidence)
        silence = (-judgement.alarm).clamp_max(self.confidence)
        total = fooling.sum() + self.weights[variant] * silence.sum()
        return torch.autograd.grad(total, x)[0]


@dataclass(frozen=True)
class SelectivePGD(ProjectedGradient):
    """Step on the victim until it is fooled, then on the detector until the victim is lost again.

    Notes
    -----
    Parameters are those of `ProjectedGradient`.

    References
    ----------
    O. Bryniarski, N. Hingun, P. Pachuca, V. Wang, N. Carlini, "Evading Adversarial Example
    Detection Defenses with Orthogonal Projected Gradient Descent", ICLR 2022, section 4.1.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import SelectivePGD
    >>> attack = SelectivePGD(steps=10, norm="l2", start="clean")
    >>> attack(torch.nn.Identity(), torch.eye(3), torch.arange(3), eps=0.1).success.any()
    tensor(False)
    """

    def gradient(self, network, x, judgement, guide, variant):
        """Gradient of the one term that is not satisfied yet."""
        chosen = torch.where(judgement.lead > 0, -judgement.alarm, judgement.lead)
        return torch.autograd.grad(chosen.sum(), x)[0]


@dataclass(frozen=True)
class OrthogonalPGD(ProjectedGradient):
    """Step on one term along the part of its gradient that leaves the other term as it is.

    Notes
    -----
    Parameters are those of `ProjectedGradient`.

    References
    ----------
    Bryniarski et al. 2022 (see `SelectivePGD`), section 4.2.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import OrthogonalPGD
    >>> attack = OrthogonalPGD(steps=10)
    >>> attack(torch.nn.Identity(), torch.eye(3), torch.arange(3), eps=0.6).success.all()
    tensor(True)
    """

    def gradient(self, network, x, judgement, guide, variant):
        """Gradient of the unsatisfied term, less its projection on that of the other."""
        fool = torch.autograd.grad(judgement.lead.sum(), x, retain_graph=True)[0]
        if not judgement.alarm.requires_grad:
            return fool
        silence = torch.autograd.grad(-judgement.alarm.sum(), x)[0]
        is_fooled = per_row(judgement.lead > 0, x)
        step, kept = torch.where(is_fooled, silence, fool), torch.where(is_fooled, fool, silence)
        along = (step * kept).flatten(1).sum(1) / kept.flatten(1).square().sum(1).clamp_min(1e-30)
        return step - per_row(along, x) * kept


@dataclass(frozen=True)
class FeatureMatchingPGD(ProjectedGradient):
    """Imitate the features of a clean guide of the target class.

    Matched are the victim's logits and the latent vectors and logits of every latent map in the
    detector, each in units of its norm.

    Notes
    -----
    Parameters are those of `ProjectedGradient`.

    References
    ----------
    S. Sabour, Y. Cao, F. Faghri, D. Fleet, "Adversarial Manipulation of Deep Representations",
    ICLR 2016.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import FeatureMatchingPGD
    >>> x = torch.eye(3)
    >>> attack = FeatureMatchingPGD(steps=10, start="clean")
    >>> attack(torch.nn.Identity(), x, torch.arange(3), eps=0.6, guides=x).success.all()
    tensor(True)
    """

    @property
    def needs_guides(self) -> bool:
        """Always."""
        return True

    def prepare(self, network, guide):
        """Features of the guides."""
        with torch.no_grad():
            return _features(network, guide)

    def gradient(self, network, x, judgement, guide, variant):
        """Gradient of the squared distance to the guide's features, downhill."""
        distance = (_features(network, x) - guide).square().sum(1)
        return torch.autograd.grad(-distance.sum(), x)[0]


def _features(network: nn.Module, x: Tensor) -> Float[Tensor, "batch features"]:
    parts = [network(x)]
    if is_defended(network):
        parts = [part for here in network.arrivals(x) for part in _seen_by_all(network, here)]
    return torch.cat([functional.normalize(part.flatten(1)) for part in parts], dim=1)


def _seen_by_all(network: DefendedClassifier, x: Tensor) -> list[Tensor]:
    """Victim's logits, and what each latent map makes of what its member sees of the rows."""
    passed, evidence = network.classifier(x), network.detector.evidence
    parts = [passed.logits]
    own = passed if network.is_own else evidence.ask(x)
    for member in evidence.members:
        rows = member.prepare(x, own) if isinstance(member, Piped) else x
        for part in member.modules():
            if isinstance(part, LatentMap):
                parts += part.features_and_logits(as_input(rows, part))
    return parts
