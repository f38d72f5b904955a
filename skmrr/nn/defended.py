"""Victim and detector as one classifier that any attack can be run on.

The output is the victim's C logits and one more, "flagged": the risk neuron of Rouhani et al.
(2019), in the form of Carlini and Wagner ("Adversarial Examples Are Not Easily Detected", 2017).
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr.nn.detector_module import DetectorModule
from skmrr.nn.sparse_coding import SparseCoder
from skmrr.nn.tapped import Tapped, shared_copy


class DefendedClassifier(nn.Module):
    """A classifier that answers "flagged" where its detector does not believe it.

    The last logit is z_{C+1} = max_j z_j + κ asinh(log SP − s), s being the detector's score at
    the class that the victim decides for at that very point. It is the largest exactly where the
    detector flags. asinh keeps the sign, and keeps the softmax of scores far out in the tail from
    saturating, which would only hide their gradient.

    Parameters
    ----------
    detector : DetectorModule
        ``module_`` of a fitted detector.
    security_parameter : float
        False-alarm rate SP, in (0, 1); below log SP a score is flagged.
    classifier : nn.Module, optional
        The victim, rows → C logits; by default the detector's own.
    kappa : float, default=1.0
        Scale κ > 0 of the last logit.
    straight_through : bool, default=False
        Whether gradients pass sparse coding as if it changed nothing (BPDA, Athalye et al. 2018),
        instead of through the projection onto the chosen atoms, which is exact almost everywhere.
    channels : sequence of callable, optional
        Ways on which rows reach classifier and detector, batch → batch; by default as they are. Of
        several, logits and alarms are means: the expectation over transformations of Athalye et
        al. (2018).

    Raises
    ------
    ValueError
        If `security_parameter` or `kappa` is out of range, or there is no classifier.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender
    >>> from skmrr.nn import DefendedClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> net = torch.nn.Linear(64, 10)
    >>> defender = LatentDefender(classifier=net, max_epochs=2, random_state=0).fit(X, y)
    >>> defended = DefendedClassifier(defender.module_, security_parameter=0.05)
    >>> defended(torch.as_tensor(X[:3])).shape
    torch.Size([3, 11])
    """

    def __init__(
        self,
        detector: DetectorModule,
        security_parameter: float,
        *,
        classifier: nn.Module | None = None,
        kappa: float = 1.0,
        straight_through: bool = False,
        channels: Sequence[Callable[[Tensor], Tensor]] = (),
    ):
        super().__init__()
        if not 0 < security_parameter < 1:
            raise ValueError(f"security_parameter={security_parameter} must be in (0, 1).")
        if not kappa > 0:
            raise ValueError(f"kappa={kappa} must be positive.")
        if classifier is None and detector.evidence.classifier is None:
            raise ValueError("There is no classifier to defend: give classifier=….")
        self.detector = cast(DetectorModule, shared_copy(detector))
        for part in self.detector.modules():
            if isinstance(part, SparseCoder):
                part.straight_through = straight_through
        self.is_own = classifier is None
        own = self.detector.evidence.classifier
        self.classifier: Tapped = cast(Tapped, own) if classifier is None else Tapped(classifier)
        self.security_parameter = security_parameter
        self.kappa = kappa
        self.channels = tuple(channels)

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes_and_flagged"]:
        """Return the victim's logits and, last, that of "flagged"."""
        logits, alarm = self.judge(x)
        top = logits.amax(1)
        flagged = top + (self.kappa * alarm.asinh()).to(top)
        # In logits as coarse as these a tiny alarm may round to nothing: its sign is kept.
        least = torch.nextafter(top.detach(), torch.full_like(top, torch.inf))
        rounded = torch.where(
            alarm > 0, (least - flagged).clamp_min(0), (top - flagged).clamp_max(0)
        )
        return torch.cat([logits, (flagged + rounded.detach())[:, None]], dim=1)

    def judge(
        self, x: Tensor, labels: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, " batch"]]:
        """Victim's logits, and the alarm log SP − s: positive where a row is flagged.

        Parameters
        ----------
        x : Tensor of shape (batch, …)
            Rows.
        labels : Tensor of shape (batch,), optional
            Classes at which the detector is asked; by default those the victim decides for.
        """
        arrivals = self.arrivals(x)
        passes = [self.classifier(arrived) for arrived in arrivals]
        logits = _mean([passed.logits for passed in passes])
        labels = logits.argmax(1) if labels is None else labels
        scores = [
            self.detector.judge(arrived, labels, passed if self.is_own else None).score
            for arrived, passed in zip(arrivals, passes, strict=True)
        ]
        return logits, math.log(self.security_parameter) - _mean(scores)

    def victim(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Victim's logits alone."""
        return _mean([self.classifier(arrived).logits for arrived in self.arrivals(x)])

    def arrivals(self, x: Tensor) -> list[Tensor]:
        """Rows as they reach classifier and detector, on each way."""
        return [channel(x) for channel in self.channels] or [x]

    def through(self, channels: Sequence[Callable[[Tensor], Tensor]]) -> "DefendedClassifier":
        """Return the same, reached on other ways; it shares the tensors."""
        other = cast(DefendedClassifier, shared_copy(self))
        other.channels = tuple(channels)
        return other

    def label_aware(self, labels: Int[Tensor, "*batch"]) -> "LabelAwareClassifier":
        """View in which untargeted attacks have to leave `labels` without being flagged."""
        return LabelAwareClassifier(self, labels)


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Mean of tensors; the lowest finite scores do not overflow."""
    return torch.stack([value / len(values) for value in values]).sum(0)


class LabelAwareClassifier(nn.Module):
    """A defended classifier whose "flagged" counts as the true class.

    C logits z with z_y ← max(z_y, z_{C+1}), so that any untargeted attack succeeds exactly where a
    row is misclassified *and* not flagged.

    Parameters
    ----------
    defended : DefendedClassifier
        Victim and detector.
    labels : Tensor of shape (batch,) or ()
        True class of each row. A single class serves batches of any size: attack the rows of each
        class by themselves where an attack library reorders or drops rows.
    """

    labels: Tensor

    def __init__(self, defended: DefendedClassifier, labels: Int[Tensor, "*batch"]):
        super().__init__()
        self.defended = defended
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Return the logits.

        Raises
        ------
        ValueError
            If the batch has another number of rows than there are labels.
        """
        if self.labels.ndim and len(self.labels) != len(x):
            raise ValueError(
                f"{len(x)} rows but {len(self.labels)} labels; give the labels of this batch, or "
                "one label for rows of one class."
            )
        logits = self.defended(x)
        own, flagged = self.labels.expand(len(x))[:, None], logits[:, -1:]
        return logits[:, :-1].scatter(1, own, torch.maximum(logits.gather(1, own), flagged))
