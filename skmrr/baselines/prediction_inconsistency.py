"""PID: confidence of another network, trained on clean rows too, in the classifier's decision."""

from dataclasses import KW_ONLY, dataclass
from itertools import count
from numbers import Integral, Real
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from skmrr._sklearn import Interval
from skmrr.base import StatisticDetector
from skmrr.baselines._training import second_classifier, train_network, value_range, with_background
from skmrr.nn.learnt_classes import LearntClasses
from skmrr.nn.placement import draw_seed, seeded
from skmrr.nn.statistic import Statistic
from skmrr.nn.tapped import Pass

STEPS = 5  # of the attacks in adversarial training
RAMP = 0.4  # of the training, over which the ball grows to its full size
FIRST_STEPS = 2.5  # radii that they could go, all in one direction (Madry et al. 2018)


@dataclass(eq=False, repr=False)
class PIDDetector(StatisticDetector):
    """PID: an auxiliary network's confidence in the class that the classifier decides for.

    What is made to fool the classifier fools another network less, which then finds the
    classifier's class unlikely.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    auxiliary : nn.Module, optional
        Template, rows of X → logits, copied once per fit and never changed; its weights are where
        the training starts. By default `classifier` with fresh weights (layer by layer, by
        ``reset_parameters``), and without one a network with one hidden layer.
    eps : float, default=0.0
        Radius of the ℓ∞ ball in which the auxiliary network is trained adversarially (Madry et al.
        2018), in the units of X; at 0 it is trained on the rows as they are.
    max_epochs : int, default=20
        Passes over the training rows; 0 takes `auxiliary` as it is.
    learning_rate : float, default=2e-3
        Peak of Adam's, which falls along a cosine.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error. Attacked rows stay in it,
        by default in the range of the training rows.
    training_batch_size : int, default=64
        Most rows per training step.

    Attributes
    ----------
    history_ : dict of str to list of float
        ``loss``: mean cross-entropy of each epoch, on attacked rows where ``eps > 0``.

    See Also
    --------
    EfficientDefensesDetector : Asks a copy of the classifier, hardened by noise.
    skmrr.LatentDefender : Asks a copy that was realigned and explored.

    Notes
    -----
    The statistic is log((1 − p) / p) of the auxiliary network's softmax probability p of the
    classifier's class, in place of −p: the order of rows is the same, and an attacker still finds a
    gradient where p is nearly 0 or 1.

    Taken from the paper is that a row is judged by the auxiliary network's confidence in the
    classifier's class, and that this network differs in its training (natural or adversarial) or
    in its architecture. How it is trained is ours: by Adam, with five steps of projected gradient
    ascent from a random point where ``eps > 0``, in a ball that grows to its full size over the
    first 0.4 of the training: from fresh weights a large one teaches nothing. By default the
    auxiliary network differs from the classifier in its initial weights and its rows alone: give
    another `auxiliary` or `eps` for the paper's setting.

    References
    ----------
    S. Han, C. Lin, Z. Zhao, X. Wang, X. He, Q. Li, C. Wang, Q. Wang, C. Shen, "Prediction
    Inconsistency Helps Achieve Generalizable Detection of Adversarial Examples", arXiv:2506.03765,
    2025; A. Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR
    2018.

    Examples
    --------
    >>> from skmrr.baselines import PIDDetector
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> detector = PIDDetector(max_epochs=5, clip_values=(0, 1), random_state=0)
    >>> detector = detector.fit(X[:1500], y[:1500])
    >>> wrong = (y[1500:] + 1) % 10  # what a fooled classifier might say
    >>> risk, risk_of_wrong = (detector.risk(X[1500:], labels=c) for c in (y[1500:], wrong))
    >>> bool(risk_of_wrong.mean() > 0.95 > risk.mean())
    True
    """

    _: KW_ONLY
    auxiliary: nn.Module | None = None
    eps: float = 0.0
    max_epochs: int = 20
    learning_rate: float = 2e-3
    training_batch_size: int = 64

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "auxiliary": [nn.Module, None],
        "eps": [Interval(Real, 0, None, closed="left")],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "training_batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    def _fit_statistic(self, rows, columns, train, random_state):
        if self.max_epochs == 0:
            if self.auxiliary is None:
                raise ValueError("max_epochs=0 takes a trained network as it is: give auxiliary=….")
            self._refuse_unused("eps", because="max_epochs=0 trains nothing")
        template = self.classifier if self.auxiliary is None else self.auxiliary
        device = self._device()
        bounds = value_range(rows, train, self.clip_values, self.batch_size_)
        with seeded(draw_seed(random_state), device):
            network = second_classifier(
                template,
                "classifier" if self.auxiliary is None else "auxiliary",
                rows,
                train,
                bounds,
                self.classes_,
                device,
                from_scratch=self.auxiliary is None,
            )
            if self.max_epochs:
                labels = torch.as_tensor(columns if template is None else self.classes_[columns])
                is_alone = template is None and len(self.classes_) == 1
                self._train(network, rows, labels, train, bounds, is_alone=is_alone)
        network.eval().requires_grad_(False)
        learnt = LearntClasses(columns, train, len(self.classes_))
        numbers = range(len(self.classes_)) if template is None else self.classes_
        statistic = DistrustStatistic(network, torch.as_tensor(numbers, device=device))
        return learnt.confine(statistic).to(device) if self.max_epochs else statistic

    def _train(self, network, rows, labels, train, bounds, *, is_alone) -> None:
        n_growing = RAMP * self.max_epochs * -(-len(train) // self.training_batch_size)
        steps = count(1)

        def loss_of(x, indices):
            y = labels[torch.as_tensor(indices)].to(x.device)
            if is_alone:
                x, y = with_background(x, y, bounds)
            if self.eps:
                x = worst_points(network, x, y, self.eps * min(1, next(steps) / n_growing), bounds)
            return functional.cross_entropy(network(x), y)

        train_network(self, loss_of, network, rows, train, desc="auxiliary network")


class DistrustStatistic(Statistic):
    """log((1 − p) / p) of a network's probability p of each class.

    Parameters
    ----------
    network : nn.Module
        Rows → logits.
    classes : Tensor of shape (classes,)
        The network's number of each class.
    """

    classes: Tensor

    def __init__(self, network: nn.Module, classes: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("classes", classes)

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return log Σ_{j≠c} exp z_j − z_c under each class c."""
        logits = self.network(x).double()
        log_p = logits.log_softmax(1)
        top, winner = logits.max(1, keepdim=True)
        of_winner = logits.scatter(1, winner, -torch.inf).logsumexp(1, keepdim=True) - top
        # 1 − p rounds to 0 for the likeliest class alone, which is therefore computed by itself.
        others = log_p.scatter(1, winner, -torch.inf)
        odds = (-others.exp()).log1p() - log_p
        is_winner = torch.arange(logits.shape[1], device=x.device) == winner
        return torch.where(is_winner, of_winner, odds)[:, self.classes]

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return that of the class at each row's column."""
        return log_odds_against(self.network(x).double(), self.classes[columns])


def log_odds_against(
    logits: Float[Tensor, "batch logits"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """log((1 − p) / p) of a class each, p being its softmax probability; nothing saturates."""
    own = labels[:, None]
    return logits.scatter(1, own, -torch.inf).logsumexp(1) - logits.gather(1, own)[:, 0]


def worst_points(
    network: nn.Module,
    x: Tensor,
    labels: Int[Tensor, " batch"],
    eps: float,
    bounds: tuple[float, float],
) -> Tensor:
    """Points of ℓ∞ balls around rows at which a network is worst, by projected gradient ascent.

    The network is in evaluation mode meanwhile, and in training mode afterwards.
    """
    network.eval()
    points = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(*bounds)
    for _ in range(STEPS):
        points = points.detach().requires_grad_(True)
        loss = functional.cross_entropy(network(points), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        points = points + FIRST_STEPS * eps / STEPS * gradient.sign()
        points = (x + (points - x).clamp(-eps, eps)).clamp(*bounds)
    network.train()
    return points.detach()
