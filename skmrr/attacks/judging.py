"""How far rows are from being taken for a class, unflagged: what adaptive attacks descend on."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skmrr.attacks.result import is_defended
from skmrr.nn.rows import check_values
from skmrr.nn.statistic import against_others


class Judgement(NamedTuple):
    """A network's word on rows that are to be taken for a class each."""

    lead: Float[Tensor, " batch"]
    """Logit of that class minus the largest other one: positive where the victim is fooled."""
    alarm: Float[Tensor, " batch"]
    """log SP − score at that class: positive where the detector flags it."""
    logits: Float[Tensor, "batch classes"]
    """The victim's."""
    targets: Int[Tensor, " batch"]
    """The classes."""

    @property
    def success(self) -> Tensor:
        """Where the victim is fooled and nothing is flagged."""
        return (self.lead > 0) & (self.alarm <= 0)

    @property
    def joint_logits(self) -> Float[Tensor, "batch classes_and_flagged"]:
        """The victim's logits and, last, "flagged", as `skmrr.nn.DefendedClassifier` has it.

        But the detector is asked at the class that a row is to be taken for, wherever the row is,
        so that what it holds against that class can be lowered before the victim is fooled.
        """
        flagged = self.logits.amax(1) + self.alarm.asinh().to(self.logits)
        return torch.cat([self.logits, flagged[:, None]], dim=1)


def judge(network: nn.Module, x: Tensor, targets: Int[Tensor, " batch"]) -> Judgement:
    """Judge rows at the classes they are to be taken for.

    Parameters
    ----------
    network : nn.Module
        A `skmrr.nn.DefendedClassifier`, or any classifier, which flags nothing.
    x : Tensor of shape (batch, …)
        Rows.
    targets : Tensor of shape (batch,)
        The classes.
    """
    if is_defended(network):
        logits, alarm = network.judge(x, targets)
    else:
        logits = network(x)
        alarm = torch.full_like(logits[:, 0], -1.0)
    return Judgement(-against_others(logits, targets), alarm, logits, targets)


def victim_logits(network: nn.Module, x: Tensor, batch_size: int = 512) -> Float[Tensor, "b c"]:
    """Logits of the classifier alone, without gradients."""
    classifier = network.victim if is_defended(network) else network
    with torch.no_grad():
        return torch.cat([classifier(part) for part in x.split(batch_size)])


def wrong_classes(
    network: nn.Module,
    x: Tensor,
    labels: Int[Tensor, " batch"],
    n_targets: int | None,
    allowed: Bool[Tensor, "batch classes"] | None = None,
) -> Int[Tensor, "batch targets"]:
    """Classes to drive each row to, those the victim finds likeliest first, −1 for none.

    They are the `allowed` ones, by default all, but for the true class.
    """
    logits = victim_logits(network, x).scatter(1, labels[:, None], -torch.inf)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    values, order = logits.sort(1, descending=True)
    order = order.masked_fill(values == -torch.inf, -1)
    return order[:, : min(n_targets or order.shape[1], order.shape[1] - 1)]


def check_attack_input(
    x: Tensor, labels: Tensor, clip_values: tuple, eps: float | None = None
) -> None:
    """Raise an error that names the cure if rows cannot be attacked, within a ball of ε if given.

    Raises
    ------
    ValueError
        If there is no row, a value is not finite or outside `clip_values`, `labels` do not fit, or
        ε is not positive.
    TypeError
        If `x` or `labels` is no tensor of floats or integers.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            "x must be a floating-point tensor: torch.as_tensor(X, dtype=torch.float32)."
        )
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        raise TypeError("labels must be an integer tensor: torch.as_tensor(y).")
    if len(x) == 0:
        raise ValueError("x holds no row.")
    if labels.shape != (len(x),):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but x has {len(x)} rows.")
    check_values(x, clip_values)
    if eps is not None and not eps > 0:
        raise ValueError(f"eps={eps} must be positive.")
