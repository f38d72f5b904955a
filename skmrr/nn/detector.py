"""Fitted detectors as differentiable torch modules."""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr.nn.densities import QuadraticDensity
from skmrr.nn.hooks import as_input, module_device
from skmrr.nn.replica import LatentMap

Asked = tuple[Tensor, Any]
"""A classifier's logits, and what else of its pass a statistic needs."""


def against_best_other(
    scores: Float[Tensor, "batch classes"],
) -> Float[Tensor, "batch classes"]:
    """How far the best of the *other* classes is ahead of each class: max_{j≠c} s_j − s_c."""
    (best, second), (winner, _) = (part.unbind(1) for part in scores.topk(2, dim=1))
    is_winner = torch.arange(scores.shape[1], device=scores.device) == winner[:, None]
    return torch.where(is_winner, second[:, None], best[:, None]) - scores


class ClassFreeStatistic(nn.Module):
    """Statistic in which the classes do not differ: `level` is all there is to compute.

    Parameters
    ----------
    n_classes : int
        Number of classes.
    """

    def __init__(self, n_classes: int):
        super().__init__()
        self.n_classes = n_classes

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row, which is the same under each class, high = odd."""
        return self.level(x)[:, None].expand(-1, self.n_classes)

    def at(self, x: Tensor, columns: Int[Tensor, " batch"], *seen) -> Float[Tensor, " batch"]:
        """Return the statistic of each row."""
        return self.level(x, *seen)

    def level(self, x: Tensor) -> Float[Tensor, " batch"]:
        """Oddness of each row."""
        raise NotImplementedError


class LatentStatistic(nn.Module):
    """Oddness of a row under each class, read from a latent map.

    Parameters
    ----------
    latent_map : LatentMap
        Rows → unit features and logits.
    statistic : {"likelihood", "contrast", "margin"}
        ``likelihood`` is −log p(φ | c); ``contrast`` is max_{j≠c} log p(φ | j) − log p(φ | c);
        ``margin`` is the same difference of the map's own logits.
    density : QuadraticDensity, optional
        Not needed for the margin.
    """

    def __init__(self, latent_map: LatentMap, statistic: str, density: QuadraticDensity | None):
        super().__init__()
        self.latent_map = latent_map
        self.statistic = statistic
        self.density = density

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row under each class, high = odd."""
        features, logits = self.latent_map.features_and_logits(x)
        if self.statistic == "margin":
            return against_best_other(logits.double())
        assert self.density is not None
        log_density = self.density(features)
        if self.statistic == "contrast":
            return against_best_other(log_density)
        return -log_density


class DetectorModule(nn.Module):
    """A fitted detector: ``forward(x, labels)`` is the calibrated log-survival.

    Parameters
    ----------
    statistic : nn.Module
        Rows → oddness under each class, shape (batch, classes), high = odd. Where one class is
        cheaper than all, a method ``at(x, columns)`` gives the oddness under the class at each
        row's column. One that runs the classifier by itself has it as ``classifier``, None if there
        is none, and a method ``ask(x)`` → (the classifier's logits, what else it has seen), so
        that one pass decides the class too. Its other methods then take what was seen as well.
    classes : Tensor of shape (classes,)
        Sorted class labels, in the order of the statistic's columns.
    calibration : nn.Module, optional
        (statistic, class index) → log-survival. Without it the module cannot score yet.

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

    classes: Tensor

    def __init__(self, statistic: nn.Module, classes: Tensor, calibration: nn.Module | None = None):
        super().__init__()
        self.statistic = statistic
        self.calibration = calibration
        self.register_buffer("classes", classes)

    @property
    def asks(self) -> bool:
        """Whether the statistic runs the classifier, so that nobody else has to."""
        return hasattr(self.statistic, "ask") and self.statistic.classifier is not None

    def forward(
        self, x: Tensor, labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the log-survival of each row under its label, ≤ 0, high = normal."""
        return self.scores_at(x, labels)[0]

    def judge(
        self, x: Tensor, classifier: nn.Module, labels: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch logits"], Float[Tensor, " batch"]]:
        """Return the classifier's logits, and each row's score under `labels` or its decisions."""
        own = as_input(x, self, module_device(self))
        asked = self._ask(own) if self.asks and self.statistic.classifier is classifier else None
        if asked is None:
            logits = classifier(as_input(x, classifier, module_device(classifier)))
        else:
            logits = asked[0]
        labels = logits.argmax(1) if labels is None else labels
        return logits, self.scores_at(own, labels, asked)[0]

    def scores_at(
        self,
        x: Tensor,
        labels: Int[Tensor, " batch"] | None = None,
        asked: Asked | None = None,
    ) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Return the log-survival of each row under its label, and the label's column."""
        if self.calibration is None:
            raise RuntimeError("The detector is not calibrated; call calibrate(X) first.")
        statistic, column = self.statistic_at(x, labels, asked)
        return self.calibration(statistic, column), column

    def statistic_at(
        self,
        x: Tensor,
        labels: Int[Tensor, " batch"] | None = None,
        asked: Asked | None = None,
    ) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Return the statistic under each row's label, and the label's column.

        `labels` are the classifier's decisions; without them a statistic that asks the classifier
        says them, and else counts the nearest class, which is the one that the row is least odd
        under. `asked` is what the statistic's ``ask`` has returned, where it was called.
        """
        if labels is None and (self.asks or asked is not None):
            asked = self._ask(x) if asked is None else asked
            labels = asked[0].argmax(1)
        seen = () if asked is None else asked[1:]
        under_one_class = getattr(self.statistic, "at", None)
        if labels is not None:
            column = self.columns_of(labels)
            if under_one_class is not None:
                return under_one_class(x, column, *seen), column
        statistics = self.statistic(x, *seen)
        if labels is None:
            column = statistics.argmin(1)
        return statistics.gather(1, column[:, None])[:, 0], column

    def _ask(self, x: Tensor) -> Asked:
        return cast(Any, self.statistic).ask(x)

    def columns_of(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Position of each label among the classes.

        Raises
        ------
        ValueError
            If the detector was not fitted on the class of a label.
        """
        columns = torch.searchsorted(self.classes, labels).clamp_max(len(self.classes) - 1)
        is_unknown = self.classes[columns] != labels
        if is_unknown.any():
            raise ValueError(
                f"The classifier's labels hold {labels[is_unknown].unique().tolist()}, but y, as "
                f"fitted, has classes {self.classes.tolist()}; number y as the classifier does, "
                "and fit on every class."
            )
        return columns
