"""Fitted detectors as differentiable torch modules.

statistic → log-survival of each member → fusion → log-survival of the row. A detector of one
statistic is an ensemble of one member.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr.nn.fusion import Fusion
from skmrr.nn.members import Members
from skmrr.nn.tapped import NOTHING, Pass, Tapped


class Examined(NamedTuple):
    """What the members find in a batch of rows, before calibration."""

    values: Float[Tensor, "batch members"]
    """Statistic of each member under the row's class, high = odd: infinite where that class is
    unknown or the member has learnt nothing of it, NaN where the logits are not finite."""
    columns: Int[Tensor, " batch"]
    """Position of the row's class among the detector's."""


class Judged(NamedTuple):
    """What a detector makes of a batch of rows."""

    score: Float[Tensor, " batch"]
    """Calibrated log-survival, ≤ 0, high = normal."""
    columns: Int[Tensor, " batch"]
    """Position of the row's class among the detector's."""
    log_survivals: Float[Tensor, "batch members"]
    """Calibrated log-survival of each member."""


class Evidence(nn.Module):
    """A classifier, and the statistics of rows under its decisions.

    Parameters
    ----------
    classifier : Tapped or None
        Rows → logits. It runs once per batch, and never changes.
    members : Members
        The statistics.
    classes : Tensor of shape (classes,)
        Sorted class labels, in the order of the statistics' columns.
    """

    classes: Tensor

    def __init__(self, classifier: Tapped | None, members: Members, classes: Tensor):
        super().__init__()
        self.classifier = classifier
        self.members = members
        self.register_buffer("classes", classes)

    def ask(self, x: Tensor) -> Pass:
        """Run the classifier on rows; without one there is nothing to see."""
        return NOTHING if self.classifier is None else self.classifier(x)

    def forward(
        self, x: Tensor, labels: Int[Tensor, " batch"] | None = None, passed: Pass | None = None
    ) -> Examined:
        """Return the members' statistics of each row under its label.

        Parameters
        ----------
        x : Tensor of shape (batch, …)
            Rows.
        labels : Tensor of shape (batch,), optional
            The classifier's decisions. Without them it is asked, and where there is no classifier
            a row is judged under its nearest class.
        passed : Pass, optional
            What `ask` has returned for the same rows, where it was called before.
        """
        if passed is None:
            passed = self.ask(x) if labels is None or self.members.reads_pass else NOTHING
        logits = passed.logits
        is_numbered = False  # whether each class is the number of a logit, so that none is unknown
        if labels is None:
            if logits is None:
                return Examined(*self.members(x, None, passed))
            labels, is_numbered = logits.argmax(1), logits.shape[1] == self.classes.shape[0]
        columns = labels if is_numbered else self._columns_of(labels)
        values, columns = self.members(x, columns, passed)
        if not is_numbered:
            is_known = self.classes[columns] == labels
            values = torch.where(is_known[:, None], values, torch.inf)
        return Examined(_where_whole(values, logits), columns)

    def under_each(
        self, x: Tensor, passed: Pass | None = None
    ) -> Float[Tensor, "batch classes members"]:
        """Return the members' statistics of each row under each class.

        Parameters are those of `forward`, whose values these are, whatever the classifier decides.
        """
        passed = self.ask(x) if passed is None else passed
        return _where_whole(self.members.under_each(x, passed), passed.logits)

    def _columns_of(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Position of each label among the classes, or of another where it is none of them."""
        columns = torch.searchsorted(self.classes, labels.to(self.classes.dtype))
        return columns.clamp_max(self.classes.shape[0] - 1)


def _where_whole(values: Tensor, logits: Tensor | None) -> Tensor:
    """Values, of shape (batch, …), or NaN in rows whose logits are not all finite."""
    if logits is None:
        return values
    doubt = (0 * logits.detach()).sum(1)  # NaN unless all are finite, else 0
    return values + doubt.view(-1, *[1] * (values.ndim - 1))


class DetectorModule(nn.Module):
    """A fitted detector: ``forward(x, labels)`` is the calibrated log-survival.

    A pure function of its rows: no mode, hook, buffer or device of any network changes, so that
    threads may share one.

    Parameters
    ----------
    evidence : Evidence
        Classifier and statistics.
    survival : nn.Module
        (statistics of shape (batch, members), class columns) → log-survivals of the same shape.
    fusion : Fusion
        Members' log-survivals → that of the row.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender
    >>> X, y = load_digits(return_X_y=True)
    >>> module = LatentDefender(max_epochs=2, random_state=0).fit(X, y).module_
    >>> x = torch.as_tensor(X[:3]).requires_grad_(True)
    >>> scores = module(x, torch.as_tensor(y[:3]))
    >>> scores.shape, torch.autograd.grad(scores.sum(), x)[0].shape
    (torch.Size([3]), torch.Size([3, 64]))
    """

    def __init__(self, evidence: Evidence, survival: nn.Module, fusion: Fusion):
        super().__init__()
        self.evidence = evidence
        self.survival = survival
        self.fusion = fusion

    def forward(
        self, x: Tensor, labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the log-survival of each row under its label, ≤ 0, high = normal.

        Without `labels` the classifier decides, and without a classifier the nearest class counts.
        A row that nothing can be said of has the lowest finite score: one of a class that a member
        has learnt nothing of, or whose logits are not finite.
        """
        return self.judge(x, labels).score

    def judge(
        self, x: Tensor, labels: Int[Tensor, " batch"] | None = None, passed: Pass | None = None
    ) -> Judged:
        """Return the log-survival of each row, its class's column, and the members' own.

        Parameters are those of `Evidence`.
        """
        return self._calibrated(*self.evidence(x, labels, passed))

    def under_each(self, x: Tensor, passed: Pass | None = None) -> Float[Tensor, "batch classes"]:
        """Return the log-survival of each row under each class, in the order of the classes.

        They are those of `forward` with these labels, in one pass of each network that finds all
        classes at once. Parameters are those of `Evidence`.
        """
        values = self.evidence.under_each(x, passed)
        n_rows, n_classes, _ = values.shape
        columns = torch.arange(n_classes, device=values.device).expand(n_rows, -1)
        return self._calibrated(values.flatten(0, 1), columns.flatten()).score.view(n_rows, -1)

    def _calibrated(
        self, values: Float[Tensor, "batch members"], columns: Int[Tensor, " batch"]
    ) -> Judged:
        """Judge statistics, each row's under the class at its column."""
        is_lost = ~values.isfinite()
        log_survivals = self.survival(values.masked_fill(is_lost, 0.0), columns)
        score = self.fusion(log_survivals, columns)
        lowest = torch.finfo(score.dtype).min
        return Judged(
            score.masked_fill((is_lost & self.fusion.heeded).any(1), lowest),
            columns,
            log_survivals.masked_fill(is_lost, lowest),
        )
