"""Auto-PGD on the joint classifier: steps that shorten by themselves, and several losses."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from skmrr.attacks.judging import Judgement, judge
from skmrr.attacks.projected import ProjectedGradient, Search, per_row

LOSSES = ("cross-entropy", "ratio", "margins")
ENOUGH = 0.75  # share ρ of the steps since the last look that must have helped
FIRST, SHORTER, LEAST = 0.22, 0.03, 0.06  # of all steps: looks at the progress


@dataclass(frozen=True)
class AutoPGD(ProjectedGradient):
    """Climb a loss of the joint logits; halve the step where it stalls, and go on from the best.

    The joint logits are the victim's and one more, "flagged": a target class that leads them all is
    reached and not flagged, so that each loss works on the victim and the risk together.

    Parameters
    ----------
    losses : tuple of str, default=("cross-entropy", "ratio", "margins")
        What to climb, each on every target. ``"cross-entropy"``: log-softmax of the joint logits at
        the target. ``"ratio"``: the target's joint logit less the best other, over the spread of
        the leading ones, which no scale of the logits changes (targeted DLR). ``"margins"``: the
        victim's lead over that same spread plus the detector's silence, each until it suffices, so
        that both are worked on at every step.
    step_size : float, default=2.0
        First step as a share of ε.
    momentum : float, default=0.25
        Share of the last move that is kept.

    Raises
    ------
    ValueError
        If a loss is unknown.

    Notes
    -----
    The other parameters are those of `ProjectedGradient`.

    References
    ----------
    F. Croce, M. Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks", ICML 2020: algorithm 1, and the targeted DLR loss of its equation 7.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import AutoPGD
    >>> attack = AutoPGD(steps=10)
    >>> attack(torch.nn.Identity(), torch.eye(3), torch.arange(3), eps=0.6).success.all()
    tensor(True)
    """

    losses: tuple[str, ...] = LOSSES
    step_size: float = 2.0
    momentum: float = 0.25

    def __post_init__(self):
        """Refuse settings that mean nothing."""
        super().__post_init__()
        if not self.losses or not set(self.losses) <= set(LOSSES):
            raise ValueError(f"losses={self.losses!r} must be some of {', '.join(LOSSES)}.")

    @property
    def n_variants(self) -> int:
        """Number of losses."""
        return len(self.losses)

    def search(self, network, x, eps, clip_values, guides):
        """Search with steps that shorten by themselves."""
        return _AutoSearch(self, network, x, eps, clip_values, guides)

    def gain(self, judgement: Judgement, variant: int) -> Float[Tensor, " batch"]:
        """Compute what is climbed: one of the losses, negated."""
        joint, own = judgement.joint_logits, judgement.targets[:, None]
        loss = self.losses[variant]
        if loss == "cross-entropy":
            return functional.log_softmax(joint, dim=1).gather(1, own)[:, 0]
        if loss == "ratio":
            others = joint.scatter(1, own, -torch.inf).amax(1)
            return (joint.gather(1, own)[:, 0] - others) / _spread(joint)
        fooling = (judgement.lead / _spread(judgement.logits)).clamp_max(0)
        return fooling - judgement.alarm.asinh().to(fooling).clamp_min(0)

    def gradient(self, network, x, judgement, guide, variant):
        """Gradient of the gain."""
        return torch.autograd.grad(self.gain(judgement, variant).sum(), x)[0]


def _spread(logits: Float[Tensor, "batch outputs"]) -> Float[Tensor, " batch"]:
    """z₁ − (z₃ + z₄) / 2 of the logits in order, or what there is of it."""
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    return (top[:, 0] - top[:, min(2, top.shape[1] - 1) :].mean(1)).clamp_min(1e-12)


class _AutoSearch(Search):
    """Algorithm 1 of Croce and Hein, each row by itself."""

    attack: AutoPGD

    def descend(self, rows, targets, guide, variant):
        """Climb from the start of each row."""
        attack, n_steps = self.attack, self.attack.steps
        state = _Climb(self.start(rows, guide), attack.step_size * self.eps)
        found = torch.full_like(state.points, torch.nan)
        active = torch.arange(len(found), device=found.device)
        looks = _looks(n_steps)
        for step in range(n_steps + 1):
            points = state.points.requires_grad_(True)
            judgement = judge(self.network, points, targets)
            success = judgement.success
            found[active[success]] = points.detach()[success]
            if success.all() or step == n_steps:
                break
            gain = attack.gain(judgement, variant)
            gradient = torch.autograd.grad(gain.sum(), points)[0]
            state.note(points.detach(), gain.detach(), gradient)
            if step in looks:
                state.look(step - looks[step])
            if success.any():
                active, targets = active[~success], targets[~success]
                state.keep(~success)
            state.move(self, rows[active], 0.0 if step == 0 else attack.momentum)
        return found


class _Climb:
    """Where rows are on their ways up, the best that they have been at, and their steps."""

    def __init__(self, points: Tensor, size: float):
        n = len(points)
        self.points, self.last = points, points
        self.size = points.new_full((n,), size)
        self.gradient, self.best = torch.zeros_like(points), points
        self.best_gradient = self.gradient
        self.gain = self.best_gain = points.new_full((n,), -torch.inf)
        self.looked_gain = self.best_gain  # the best one at the last look
        self.n_better = points.new_zeros(n)  # steps since then that have raised the gain
        self.halved = torch.ones(n, dtype=torch.bool, device=points.device)

    def note(self, points: Tensor, gain: Tensor, gradient: Tensor) -> None:
        """Take down what a step has brought."""
        gain = gain.to(self.gain)
        self.n_better = self.n_better + (gain > self.gain)
        better = gain > self.best_gain
        at = per_row(better, points)
        self.points, self.gain, self.gradient = points, gain, gradient
        self.best = torch.where(at, points, self.best)
        self.best_gradient = torch.where(at, gradient, self.best_gradient)
        self.best_gain = torch.where(better, gain, self.best_gain)

    def look(self, n_steps: int) -> None:
        """Halve the steps of rows that got no further in the last `n_steps`, back at their best."""
        stalled = self.n_better < ENOUGH * n_steps
        stalled |= ~self.halved & (self.best_gain <= self.looked_gain)
        self.size = torch.where(stalled, self.size / 2, self.size)
        at = per_row(stalled, self.points)
        self.points = torch.where(at, self.best, self.points)
        self.last = torch.where(at, self.best, self.last)
        self.gradient = torch.where(at, self.best_gradient, self.gradient)
        self.gain = torch.where(stalled, self.best_gain, self.gain)
        self.halved, self.looked_gain = stalled, self.best_gain
        self.n_better = torch.zeros_like(self.n_better)

    def move(self, search: Search, rows: Tensor, momentum: float) -> None:
        """Take one step, and keep some of the last move."""
        ahead = self.points + per_row(self.size, self.points) * search.direction(self.gradient)
        ahead = search.project(ahead, rows)
        move = (1 - momentum) * (ahead - self.points) + momentum * (self.points - self.last)
        self.last, self.points = self.points, search.project(self.points + move, rows)

    def keep(self, kept: Tensor) -> None:
        """Go on with some of the rows."""
        self.__dict__ = {name: value[kept] for name, value in vars(self).items()}


def _looks(n_steps: int) -> dict[int, int]:
    """List the steps at which to look at the progress, each with the one of the look before."""
    before, share = 0.0, FIRST
    looks, last = {}, 0
    while share < 1:
        step = max(last + 1, round(share * n_steps))
        looks[step], last = last, step
        before, share = share, share + max(share - before - SHORTER, LEAST)
    return looks
