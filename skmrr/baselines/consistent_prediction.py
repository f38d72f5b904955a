"""CPR: rows whose class a small search around them can change are odd."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skmrr._sklearn import Interval, StrOptions
from skmrr.base import StatisticDetector
from skmrr.baselines._training import value_range
from skmrr.baselines.prediction_inconsistency import log_odds_against
from skmrr.nn.statistic import ColumnStatistic, against_others
from skmrr.nn.tapped import Pass, Tapped

EPS_SHARE = 0.1  # of the range of X; the paper's on MNIST
RADII = 2  # that the steps could go, all in one direction


@dataclass(eq=False, repr=False)
class CPRDetector(StatisticDetector):
    """CPR: consistent prediction-based rejection.

    The detector attacks each row itself, within a small ball, so as to change the classifier's
    decision. Clean rows mostly keep theirs. An adversarial row, which was moved just across the
    boundary, is easily moved back.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    classifier : nn.Module
        The victim, rows of X → logits, on which everything rests. The paper's are trained
        adversarially.
    eps : "auto" or float, default="auto"
        Radius ε̃ of the ℓ∞ ball that is searched, in the units of X; ``"auto"`` is a tenth of the
        range of X, the paper's on MNIST. The paper takes 0.0055 of the range on colour images.
    n_steps : int, default=10
        Steps of the search, each of 2 ε̃ / `n_steps`. Each takes a pass of the classifier and one
        for its gradient, in `fit`, `calibrate` and scoring. The paper takes 20 on MNIST, 10 on
        colour images.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error. The search stays in it.

    Attributes
    ----------
    eps_ : float
        In use.

    See Also
    --------
    skmrr.MarginDetector : The same margin at the row itself, without a search.

    Notes
    -----
    The paper rejects a row if the class at the end of the search is another. The statistic is the
    soft form of that, by how much the classifier prefers another class there: max_{j≠ŷ} z_j − z_ŷ
    of its logits z at the end of the search. It is positive where the paper rejects; here the
    threshold is `security_parameter`'s.

    The search begins at the row itself, takes signed steps of projected gradient ascent on the
    cross-entropy of ŷ, and so is a function of the row alone. Its steps are of one length, where
    the authors' program has 0.1 ε̃ and 0.18 ε̃ (20 and 10 steps). The gradient of the cross-entropy
    is taken up to a positive factor, as its own rounds to 0 where the classifier is certain.

    The derivative of a signed step is the identity almost everywhere. That is what an attacker's
    gradient takes the search for (BPDA, Athalye et al. 2018), as in the paper's adaptive attacks:
    it is the gradient of the margin at the end of the search. What is cut off by the range of X
    is passed on too.

    References
    ----------
    J. Chen, J. Raghuram, J. Choi, X. Wu, Y. Liang, S. Jha, "Stratified Adversarial Robustness with
    Rejection", ICML 2023.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skmrr.baselines import CPRDetector
    >>> X, y = load_digits(return_X_y=True)
    >>> net = torch.nn.Linear(64, 10)
    >>> detector = CPRDetector(net, n_steps=4, random_state=0).fit(X, y)
    >>> detector.risk(X[:3]).shape
    (3,)
    """

    _: KW_ONLY
    eps: float | Literal["auto"] = "auto"
    n_steps: int = 10

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "eps": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
    }

    def _fit_statistic(self, rows, columns, train, random_state):
        classifier = self._tapped()
        if classifier is None:
            raise ValueError("The classifier's decision is what may change: give classifier=….")
        low, high = value_range(rows, train, self.clip_values, self.batch_size_)
        self.eps_ = EPS_SHARE * (high - low) if self.eps == "auto" else float(self.eps)
        bounds = None if self.clip_values is None else (low, high)
        classes = torch.as_tensor(self.classes_)
        return ConsistencyStatistic(classifier, classes, self.eps_, self.n_steps, bounds)


class ConsistencyStatistic(ColumnStatistic):
    """By how much the classifier prefers another class where a search around the row ends.

    Parameters
    ----------
    classifier : Tapped
        Rows → logits.
    classes : Tensor of shape (classes,)
        The logit of each class.
    eps : float
        Radius of the ball that is searched.
    n_steps : int
        Steps of the search.
    bounds : tuple of float, optional
        Range that the search stays in.
    """

    classes: Tensor
    no_graph = "its search asks for gradients, which a graph of rows has not; score with skmrr"

    def __init__(
        self,
        classifier: Tapped,
        classes: Tensor,
        eps: float,
        n_steps: int,
        bounds: Sequence[float] | None,
    ):
        super().__init__(len(classes))
        self.classifier = classifier
        self.register_buffer("classes", classes)
        self.eps = eps
        self.n_steps = n_steps
        self.bounds = bounds

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return max_{j≠c} z_j − z_c at the end of the search that leaves class c."""
        labels = self.classes[columns]
        logits = self.classifier(x + self.change(x, labels)).logits
        assert logits is not None
        return against_others(logits.double(), labels)

    def change(self, x: Tensor, labels: Int[Tensor, " batch"]) -> Tensor:
        """Way from each row to the end of its search; to an attacker's gradient it is constant."""
        with torch.inference_mode(False), torch.enable_grad():  # also where the caller needs none
            start, labels = x.clone().detach(), labels.clone()
            points = start
            for _ in range(self.n_steps):
                points = points.detach().requires_grad_(True)
                logits = self.classifier(points).logits
                assert logits is not None
                loss = log_odds_against(logits.double(), labels)
                (gradient,) = torch.autograd.grad(loss.sum(), points)
                points = points + RADII * self.eps / self.n_steps * gradient.sign()
                points = start + (points - start).clamp(-self.eps, self.eps)
                if self.bounds is not None:
                    points = points.clamp(*self.bounds)
        return (points - start).detach()
