"""Projected gradient attacks on a classifier and its detector, all rows of a batch at once.

One search, four ways to choose its direction. Each row is driven to one wrong class after the
other, from several starts, until it is taken for that class without being flagged.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from skmrr.attacks.guides import Guides
from skmrr.attacks.judging import Judgement, check_attack_input, judge, wrong_classes
from skmrr.attacks.result import AttackResult, verified
from skmrr.nn.tapped import shared_copy

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

    def with_effort(self, factor: float) -> "ProjectedGradient":
        """Return the same with so many times the steps, one at least."""
        return replace(self, steps=max(1, round(factor * self.steps)))

    def search(self, network: nn.Module, x: Tensor, eps: float, clip_values, guides) -> "Search":
        """Search in the balls around rows."""
        return Search(self, network, x, eps, clip_values, guides)

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
        check_attack_input(x, labels, clip_values, eps)
        if self.needs_guides and guides is None:
            raise ValueError(f"{type(self).__name__} starts from guides=…: give clean rows.")
        network = shared_copy(network)
        bank = Guides(network, guides) if self.needs_guides and guides is not None else None
        search = self.search(network, x, eps, clip_values, bank)
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


class Search:
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
            found.append(self.descend(rows[part], targets[part], own_guide, variant))
        return torch.cat(found)

    def descend(self, rows: Tensor, targets: Tensor, guide: Tensor | None, variant: int) -> Tensor:
        """Points at which rows are taken for their targets and not flagged, NaN where none is."""
        attack, x = self.attack, self.x[rows]
        found = torch.full_like(x, torch.nan)
        active = torch.arange(len(x), device=x.device)
        points = self.start(rows, guide)
        prepared = None if guide is None else attack.prepare(self.network, guide)
        velocity = torch.zeros_like(points)
        for step in range(attack.steps + 1):
            points.requires_grad_(True)
            judgement = judge(self.network, points, targets)
            success = judgement.success
            found[active[success]] = points.detach()[success]
            if success.all() or step == attack.steps:
                break
            gradient = attack.gradient(self.network, points, judgement, prepared, variant)
            points = points.detach()
            with torch.no_grad():
                size = gradient.abs().flatten(1).mean(1).clamp_min(1e-30)
                velocity = attack.momentum * velocity + gradient / per_row(size, gradient)
                reach = attack.step_size * 0.5 * (1 + math.cos(math.pi * step / attack.steps))
                points = points + reach * self.eps * self.direction(velocity)
                points = self.project(points, rows[active])
            if success.any():
                keep = ~success
                active, targets = active[keep], targets[keep]
                points, velocity = points[keep], velocity[keep]
                prepared = None if prepared is None else prepared[keep]
        return found

    def start(self, rows: Tensor, guide: Tensor | None) -> Tensor:
        """Where the searches of rows begin."""
        x = self.x[rows]
        if self.attack.start == "clean":
            return x.clone()
        if self.attack.start == "guide":
            assert guide is not None
            return self.project(guide, rows)
        noise = torch.rand(x.shape, generator=self.generator, dtype=x.dtype).to(x.device) * 2 - 1
        if self.attack.norm == "l2":
            noise = functional.normalize(noise.flatten(1)).view_as(x)
        return self.project(x + self.eps * noise, rows)

    def direction(self, velocity: Tensor) -> Tensor:
        """Steepest step of length one in the norm of the ball."""
        if self.attack.norm == "linf":
            return velocity.sign()
        return functional.normalize(velocity.flatten(1)).view_as(velocity)

    def project(self, points: Tensor, rows: Tensor) -> Tensor:
        """Nearest points within ball, range of values and, if need be, textured pixels."""
        x = self.x[rows]
        change = points - x
        if self.mask is not None:
            change = change * self.mask[rows]
        if self.attack.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            norm = change.flatten(1).norm(dim=1)
            change = change * per_row((self.eps / norm.clamp_min(1e-30)).clamp_max(1), change)
        return (x + change).clamp(*self.clip_values)


def textured_pixels(x: Float[Tensor, "batch channels height width"]) -> Tensor:
    """Where rows vary within 3×3 pixels by more than they do around their median pixel."""
    if x.ndim != 4:
        raise ValueError("textured=True needs rows of shape (channels, height, width).")
    highest = functional.max_pool2d(x, 3, stride=1, padding=1)
    lowest = -functional.max_pool2d(-x, 3, stride=1, padding=1)
    spread = (highest - lowest).amax(1, keepdim=True)  # batch 1 height width
    median = spread.flatten(1).median(1).values
    return (spread > per_row(median, spread)).to(x)


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """One value a row in the shape that multiplies `x`."""
    return values.to(x.dtype if values.is_floating_point() else values.dtype).view(
        -1, *[1] * (x.ndim - 1)
    )
