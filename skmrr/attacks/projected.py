"""Projected gradient attacks on a classifier and its detector, all rows of a batch at once.

One search, four ways to choose its direction. Each row is driven to one wrong class after the
other, from several starts, until it is taken for that class without being flagged.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from skmrr.attacks.guides import Guides
from skmrr.attacks.judging import Judgement, check_attack_input, judge, wrong_classes
from skmrr.attacks.result import AttackResult, is_defended, verified
from skmrr.nn.hooks import evaluating
from skmrr.nn.replica import LatentMap

STARTS = ("clean", "random", "guide")
NORMS = {"linf": math.inf, "l2": 2.0}


@dataclass(frozen=True)
class ProjectedGradient(ABC):
    """Base of projected gradient attacks: targets, starts, steps, projection, success.

    A subclass says by `gradient` where to go from a point. Attacks are called: ``attack(network,
    x, labels, eps=0.3)``.

    Parameters
    ----------
    steps : int, default=100
        Steps for each target and start.
    restarts : int, default=1
        Passes over all targets. With ``start="guide"`` each takes the next nearest guide.
    n_targets : int, optional
        Number of wrong classes, those likeliest to the victim first; all by default.
    start : {"random", "clean", "guide"}, default="random"
        Where a search begins: anywhere in the ball, at the row, or at the nearest clean row of the
        target class, brought into the ball.
    norm : {"linf", "l2"}, default="linf"
        Norm of the ball.
    step_size : float, default=0.25
        First step as a share of ε; it falls to zero along a cosine.
    momentum : float, default=0.75
        Share of the last direction that is kept.
    textured : bool, default=False
        Whether only pixels are changed around which the row varies more than around its median
        pixel, so that its quiet parts stay untouched. Rows of shape (channels, height, width) only.
    batch_size : int, default=250
        Rows at a time. The result does not depend on it but for rounding.
    random_state : int, default=0
        Seed of random starts.
    verbose : bool, default=False
        Whether to show a progress bar.
    """

    steps: int = 100
    restarts: int = 1
    n_targets: int | None = None
    start: str = "random"
    norm: str = "linf"
    step_size: float = 0.25
    momentum: float = 0.75
    textured: bool = False
    batch_size: int = 250
    random_state: int = 0
    verbose: bool = False

    def __post_init__(self):
        """Refuse settings that mean nothing.

        Raises
        ------
        ValueError
            If start or norm is unknown, or a number is out of range.
        """
        if self.start not in STARTS:
            raise ValueError(f"start={self.start!r} must be one of {', '.join(STARTS)}.")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r} must be one of {', '.join(NORMS)}.")
        if min(self.steps, self.restarts, self.batch_size, self.n_targets or 1) < 1:
            raise ValueError("steps, restarts, n_targets and batch_size must be at least 1.")
        if not (self.step_size > 0 and 0 <= self.momentum < 1):
            raise ValueError("step_size must be positive, and momentum in [0, 1).")

    @abstractmethod
    def gradient(
        self, network: nn.Module, x: Tensor, judgement: Judgement, guide: Any, variant: int
    ) -> Tensor:
        """Direction to go in from `x`, of its shape; its length does not matter.

        Parameters
        ----------
        network : nn.Module
            What is attacked.
        x : Tensor of shape (batch, …)
            Points, which the judgement was computed from with gradients.
        judgement : Judgement
            Of the points at their target classes.
        guide : Any
            What `prepare` made of each row's guide, or None.
        variant : int
            Which of the attack's variants is being run.
        """

    @property
    def n_variants(self) -> int:
        """Number of settings that each target is tried with."""
        return 1

    @property
    def needs_guides(self) -> bool:
        """Whether clean rows of the target classes are needed."""
        return self.start == "guide"

    def prepare(self, network: nn.Module, guide: Tensor) -> Tensor | None:
        """Compute what is needed of the guides at each step."""
        return None

    def __call__(
        self,
        network: nn.Module,
        x: Tensor,
        labels: Tensor,
        *,
        eps: float,
        clip_values: tuple = (0.0, 1.0),
        guides: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> AttackResult:
        """Attack rows.

        Parameters
        ----------
        network : nn.Module
            A `skmrr.nn.DefendedClassifier`, or any classifier that returns logits.
        x : Tensor of shape (batch, …)
            Rows, within `clip_values`.
        labels : Tensor of shape (batch,)
            Their true classes.
        eps : float
            Radius of the ball, in the units of `x`.
        clip_values : tuple of float, default=(0, 1)
            Range that adversarial rows stay in.
        guides : Tensor of shape (n, …), optional
            Clean rows that show the way to each class.
        targets : Tensor of shape (batch, classes), optional
            True at the classes that each row may be driven to; by default all but its own.

        Returns
        -------
        AttackResult
            Success means that a row is misclassified and not flagged. A row of which that is true
            as it is succeeds with no change.

        Raises
        ------
        ValueError
            If rows or labels do not fit, ε is not positive, or guides are missing.
        """
        check_attack_input(x, labels, clip_values)
        if not eps > 0:
            raise ValueError(f"eps={eps} must be positive.")
        if self.needs_guides and guides is None:
            raise ValueError(f"{type(self).__name__} starts from guides=…: give clean rows.")
        with evaluating(network):
            bank = Guides(network, guides) if self.needs_guides and guides is not None else None
            search = _Search(self, network, x, eps, clip_values, bank)
            found = x.clone()  # a row that is misclassified and unflagged needs no search
            success = verified(network, x, found, labels, norm=NORMS[self.norm]).success
            found[~success] = torch.nan
            goals = wrong_classes(network, x, labels, self.n_targets, targets)
            trials = [
                (variant, restart, k)
                for restart in range(self.restarts)
                for variant in range(self.n_variants)
                for k in range(goals.shape[1])
            ]
            for variant, restart, k in tqdm(
                trials, type(self).__name__, disable=not self.verbose, leave=False
            ):
                left = found.flatten(1).isnan().any(1) & (goals[:, k] != -1)
                left = torch.nonzero(left)[:, 0]
                if len(left):
                    found[left] = search.run(left, goals[left, k], variant, restart)
            return verified(network, x, found, labels, norm=NORMS[self.norm])


class _Search:
    """Searches of one attack in the balls around fixed rows."""

    def __init__(self, attack: ProjectedGradient, network, x, eps, clip_values, guides):
        self.attack, self.network, self.guides = attack, network, guides
        self.x, self.eps, self.clip_values = x, eps, clip_values
        self.mask = textured_pixels(x) if attack.textured else None
        self.generator = torch.Generator().manual_seed(attack.random_state)

    def run(self, rows: Tensor, targets: Tensor, variant: int, restart: int) -> Tensor:
        """Rows found for the targets, NaN where none was."""
        guide = None
        if self.guides is not None:
            guide = self.guides.nearest(self.x[rows], targets, restart)
        found = []
        for part in torch.arange(len(rows), device=rows.device).split(self.attack.batch_size):
            own_guide = None if guide is None else guide[part]
            found.append(self._descend(rows[part], targets[part], own_guide, variant))
        return torch.cat(found)

    def _descend(self, rows, targets, guide, variant) -> Tensor:
        attack, x = self.attack, self.x[rows]
        found = torch.full_like(x, torch.nan)
        active = torch.arange(len(x), device=x.device)
        points = self._start(rows, guide)
        prepared = None if guide is None else attack.prepare(self.network, guide)
        velocity = torch.zeros_like(points)
        for step in range(attack.steps + 1):
            points.requires_grad_(True)
            judgement = judge(self.network, points, targets)
            success = judgement.success
            if success.any() or step == attack.steps:
                found[active[success]] = points.detach()[success]
            if success.all() or step == attack.steps:
                break
            gradient = attack.gradient(self.network, points, judgement, prepared, variant)
            points = points.detach()
            with torch.no_grad():
                size = gradient.abs().flatten(1).mean(1).clamp_min(1e-30)
                velocity = attack.momentum * velocity + gradient / _like(size, gradient)
                reach = attack.step_size * 0.5 * (1 + math.cos(math.pi * step / attack.steps))
                points = points + reach * self.eps * self._direction(velocity)
                points = self._project(points, rows[active])
            if success.any():
                keep = ~success
                active, targets = active[keep], targets[keep]
                points, velocity = points[keep], velocity[keep]
                prepared = None if prepared is None else prepared[keep]
        return found

    def _start(self, rows, guide) -> Tensor:
        x = self.x[rows]
        if self.attack.start == "clean":
            return x.clone()
        if self.attack.start == "guide":
            return self._project(guide, rows)
        noise = torch.rand(x.shape, generator=self.generator, dtype=x.dtype).to(x.device) * 2 - 1
        if self.attack.norm == "l2":
            noise = functional.normalize(noise.flatten(1)).view_as(x)
        return self._project(x + self.eps * noise, rows)

    def _direction(self, velocity: Tensor) -> Tensor:
        if self.attack.norm == "linf":
            return velocity.sign()
        return functional.normalize(velocity.flatten(1)).view_as(velocity)

    def _project(self, points: Tensor, rows: Tensor) -> Tensor:
        """Nearest points within ball, range of values and, if need be, textured pixels."""
        x = self.x[rows]
        change = points - x
        if self.mask is not None:
            change = change * self.mask[rows]
        if self.attack.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            norm = change.flatten(1).norm(dim=1)
            change = change * _like((self.eps / norm.clamp_min(1e-30)).clamp_max(1), change)
        return (x + change).clamp(*self.clip_values)


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
        is_fooled = _like(judgement.lead > 0, x)
        step, kept = torch.where(is_fooled, silence, fool), torch.where(is_fooled, fool, silence)
        along = (step * kept).flatten(1).sum(1) / kept.flatten(1).square().sum(1).clamp_min(1e-30)
        return step - _like(along, x) * kept


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

    def __call__(self, network, x, labels, *, eps, **params) -> AttackResult:
        """Attack the surrogate, and verify on `network`; parameters as of `ProjectedGradient`."""
        found = self.attack(self.surrogate, x, labels, eps=eps, **params)
        with evaluating(network):
            return verified(network, x, found.adversarial, labels, norm=NORMS[self.attack.norm])


def textured_pixels(x: Float[Tensor, "batch channels height width"]) -> Tensor:
    """Where rows vary within 3×3 pixels by more than they do around their median pixel."""
    if x.ndim != 4:
        raise ValueError("textured=True needs rows of shape (channels, height, width).")
    highest = functional.max_pool2d(x, 3, stride=1, padding=1)
    lowest = -functional.max_pool2d(-x, 3, stride=1, padding=1)
    spread = (highest - lowest).amax(1, keepdim=True)  # batch 1 height width
    median = spread.flatten(1).median(1).values
    return (spread > _like(median, spread)).to(x)


def _features(network: nn.Module, x: Tensor) -> Float[Tensor, "batch features"]:
    classifier = network.classifier if is_defended(network) else network
    parts = [classifier(x)]
    if is_defended(network):
        for part in network.detector.modules():
            if isinstance(part, LatentMap):
                parts += part.features_and_logits(x)
    return torch.cat([functional.normalize(part.flatten(1)) for part in parts], dim=1)


def _like(per_row: Tensor, x: Tensor) -> Tensor:
    """One value a row in the shape that multiplies `x`."""
    return per_row.to(x.dtype if per_row.is_floating_point() else per_row.dtype).view(
        -1, *[1] * (x.ndim - 1)
    )
