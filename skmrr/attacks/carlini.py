"""Carlini & Wagner's L2 attack (2017), all rows of a batch at once."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skmrr.nn.detector import against_best_other
from skmrr.nn.hooks import evaluating


@dataclass(frozen=True)
class AttackResult:
    """Outcome of an attack, row by row."""

    adversarial: Tensor
    """Adversarial rows, NaN where the attack failed."""
    success: Bool[Tensor, " batch"]
    """Where it succeeded; verified by one more pass of the network."""
    distortion: Float[Tensor, " batch"]
    """L2 norm of the change, infinite where the attack failed."""


def carlini_l2(
    classifier: nn.Module,
    x: Tensor,
    labels: Int[Tensor, " batch"],
    *,
    confidence: float = 0.0,
    targeted: bool = False,
    clip_values: tuple = (0.0, 1.0),
    search_steps: int = 6,
    max_iter: int = 200,
    learning_rate: float = 0.05,
    initial_const: float = 1.0,
) -> AttackResult:
    """Find the smallest L2 change that the classifier is fooled by, with a margin.

    Parameters
    ----------
    classifier : nn.Module
        Returns logits of shape (batch, classes).
    x : Tensor of shape (batch, …)
        Rows to change, within `clip_values`.
    labels : Tensor of shape (batch,)
        True labels to leave or, with `targeted`, labels to reach.
    confidence : float, default=0.0
        Lead κ, in logits, that the wrong label must have.
    targeted : bool, default=False
        Whether `labels` are targets.
    clip_values : tuple of float, default=(0, 1)
        Range of the rows.
    search_steps : int, default=6
        Steps of the search, per row, for the weight c of the classifier's term.
    max_iter : int, default=200
        Steps of Adam for each weight.
    learning_rate : float, default=0.05
        Step size of Adam, in the tanh space.
    initial_const : float, default=1.0
        First weight c.

    Returns
    -------
    AttackResult

    References
    ----------
    N. Carlini, D. Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017:
    objective f₆ of section V-A, change of variable of section V-B.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import carlini_l2
    >>> net = torch.nn.Linear(2, 2)
    >>> with torch.no_grad():
    ...     _ = net.weight.copy_(torch.eye(2)), net.bias.zero_()
    >>> x = torch.tensor([[0.2, 0.8], [0.7, 0.1]])
    >>> result = carlini_l2(net, x, net(x).argmax(1))
    >>> result.success
    tensor([True, True])
    >>> net(result.adversarial).argmax(1) != net(x).argmax(1)
    tensor([True, True])
    """
    low, high = clip_values
    squashed = (2 * (x - low) / (high - low) - 1).clamp(-1 + 1e-6, 1 - 1e-6)
    start = torch.atanh(squashed)
    const = x.new_full((len(x),), initial_const)
    lower, upper = torch.zeros_like(const), torch.full_like(const, torch.inf)
    best = x.new_full(x.shape, torch.nan)
    best_distortion = torch.full_like(const, torch.inf)
    sign = 1.0 if targeted else -1.0

    with evaluating(classifier):
        for _ in range(search_steps):
            w = start.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([w], lr=learning_rate)
            fooled_once = torch.zeros_like(const, dtype=torch.bool)
            for _ in range(max_iter):
                candidate = (torch.tanh(w) + 1) / 2 * (high - low) + low
                lead = against_best_other(classifier(candidate)).gather(1, labels[:, None])[:, 0]
                gap = (sign * lead + confidence).clamp_min(0)  # f₆: zero once fooled with margin κ
                squared = (candidate - x).flatten(1).square().sum(1)
                with torch.no_grad():
                    fooled = gap <= 0
                    fooled_once |= fooled
                    better = fooled & (squared.sqrt() < best_distortion)
                    best_distortion[better] = squared[better].sqrt()
                    best[better] = candidate[better]
                (gradient,) = torch.autograd.grad((squared + const * gap).sum(), w)
                w.grad = gradient
                optimizer.step()
            upper = torch.where(fooled_once, torch.minimum(upper, const), upper)
            lower = torch.where(fooled_once, lower, torch.maximum(lower, const))
            const = torch.where(upper.isinf(), const * 10, (lower + upper) / 2)
        return _verified(classifier, best, best_distortion, labels, targeted)


def _verified(classifier, best, distortion, labels, targeted) -> AttackResult:
    """Ask the network once more instead of trusting the search."""
    success = distortion.isfinite()
    with torch.no_grad():
        hit = classifier(torch.nan_to_num(best)).argmax(1) == labels
    success &= hit if targeted else ~hit
    best[~success] = torch.nan
    return AttackResult(best, success, torch.where(success, distortion, torch.inf))
