"""The contract of every detector."""

import math
import warnings
from abc import ABC, abstractmethod
from contextlib import closing
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skmrr.calibration import ConformalSurvival
from skmrr.networks import NetworkEstimator
from skmrr.nn.defended import DefendedClassifier
from skmrr.nn.detector import DetectorModule
from skmrr.nn.hooks import as_input, eval_but, evaluating, module_device, resolve_device
from skmrr.nn.inference import check_classifier, predict_labels
from skmrr.nn.rows import Rows
from skmrr.threshold import ADVERSARIAL, RiskMixin
from skmrr.validation import check_enough, check_known, check_labels

# Whether y numbers the classes as the classifier does:
MAX_COMPARED_ROWS = 500  # where none are held out
LEAST_AGREEMENT = 0.5  # share of the classifier's decisions that are y


class BaseDetector(RiskMixin, NetworkEstimator, ABC):
    """Base of all detectors: validates, splits, calibrates and scores.

    A subclass has the parameters ``classifier``, ``security_parameter``,
    ``calibration_fraction``, ``input_shape``, ``clip_values``, ``batch_size``, ``device`` and
    ``random_state``, and implements `_fit_statistic`. See "Adding a detector" in the
    documentation.
    """

    _parameter_constraints: dict = {
        "classifier": [nn.Module, None],
        "security_parameter": [Interval(Real, 0, 1, closed="neither")],
        "calibration_fraction": [Interval(Real, 0, 1, closed="left")],
        "input_shape": ["array-like", None],
        "clip_values": ["array-like", None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
    }

    @abstractmethod
    def _fit_statistic(
        self,
        rows: Rows,
        columns: np.ndarray,
        train: np.ndarray,
        random_state: np.random.RandomState,
    ) -> nn.Module:
        """Fit on the rows at `train` and return a module rows → oddness under each class.

        Parameters
        ----------
        rows : Rows
            All rows, clean and adversarial; only those at `train` may be read.
        columns : ndarray of shape (n_samples,)
            Index of each row's class in ``classes_``; of use at `train` alone.
        train : ndarray of int
            Positions of the rows to fit on.
        random_state : RandomState
            The only source of randomness.
        """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, labels=None):
        """Fit on clean rows, and calibrate on a share of them held out.

        Parameters
        ----------
        X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …)
            Images in the classifier's own pixel scale (declare it by ``clip_values``), or
            features. A dataset may yield (row, class).
        y : array-like of shape (n_samples,), optional
            True classes, as the classifier numbers them. Rows with ``y == -1`` are adversarial and
            are dropped. Without y the classifier's decisions serve; without a classifier too,
            all rows are of one class.
        labels : array-like of shape (n_samples,), optional
            The classifier's decisions for X; by default ``classifier`` is asked, and without one
            a row is judged under its nearest class.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If X holds NaN, infinity or values outside ``clip_values``, if y or labels do not fit
            X, or if too few rows are left to calibrate `security_parameter` on.

        Notes
        -----
        Hold `X` apart from the rows that the *classifier* was trained on, or call `calibrate` with
        rows that it has not seen. A classifier is surer of its training rows than of new ones, so
        that they look more normal than clean data ever will again: a threshold set on them
        understates the false alarms.
        """
        before = dict(vars(self))
        try:
            with torch.enable_grad():
                return self._fit(X, y, labels)
        except BaseException:
            # Interrupted or refused: what was fitted before stays whole.
            self.__dict__ = before
            raise

    def _fit(self, X, y, labels):
        rows = self._read_rows(X, reset=True)
        rows.check(self.batch_size)
        if self.classifier is not None:
            check_classifier(self.classifier, rows, self.device)
        y = self._class_labels(y, rows)
        random_state = check_random_state(self.random_state)
        train, held_out = self._split(np.flatnonzero(y != ADVERSARIAL), random_state)
        self.classes_ = np.unique(y[train])
        asked = held_out if len(held_out) else train[:: math.ceil(len(train) / MAX_COMPARED_ROWS)]
        decided = self._decisions(rows, labels, asked)
        if decided is not None:
            if len(held_out):
                check_known(decided, self.classes_)  # before any training is lost
            if self.classifier is not None:
                _warn_if_numbered_otherwise(y[asked], decided)
        columns = np.searchsorted(self.classes_, y)
        statistic = self._fit_statistic(rows, columns, train, random_state)
        self.module_ = eval_but(self._new_module(statistic), self.classifier)
        if len(held_out):
            self._calibrate(rows, decided, held_out)
        return self

    def calibrate(self, X, *, labels=None):
        """Replace the calibration by one on rows that neither detector nor classifier has seen.

        Parameters
        ----------
        X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …)
            Clean rows, none of those given to `fit`: they look more normal than new ones, and
            the promise would be broken without a word.
        labels : array-like of shape (n_samples,), optional
            The classifier's decisions for X.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If there are fewer rows than `security_parameter` needs: 1 / SP − 1.
        """
        check_is_fitted(self, "module_")
        rows, labels = self._read_for_scoring(X, labels)
        check_enough(self._n_ranked(len(rows)), self.security_parameter, len(rows))
        self._calibrate(rows, labels)
        return self

    def score_samples(self, X, *, labels=None):
        """Calibrated log-survival of each row: high is normal, ``log(p)`` at p-value p.

        Parameters
        ----------
        X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …)
            Rows of the shape and scale seen in `fit`.
        labels : array-like of shape (n_samples,), optional
            The classifier's decisions for X; by default ``classifier`` is asked, and without one
            each row is judged under its nearest class.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            In (−∞, 0].
        """
        return self._score(X, labels)[0]

    def classify(self, X, *, labels=None):
        """Class of each row, shape (n_samples,), or −1 for "don't know" where it is flagged.

        The class is the classifier's decision, and without a classifier the nearest class.
        """
        scores, columns = self._score(X, labels)
        return np.where(scores >= self.offset_, self.classes_[columns], ADVERSARIAL)

    def defended_classifier(self, *, security_parameter=None, **params) -> DefendedClassifier:
        """Classifier and this detector as one torch module, to be attacked.

        Parameters
        ----------
        security_parameter : float, optional
            False-alarm rate of the threshold; by default that of the detector.
        **params : dict
            Other parameters of `skmrr.nn.DefendedClassifier`.

        Returns
        -------
        skmrr.nn.DefendedClassifier
            Rows → the classifier's logits and one more, "flagged". It shares the networks.

        Raises
        ------
        ValueError
            If the detector has no classifier.
        """
        self._check_calibrated()
        if self.classifier is None:
            raise ValueError("There is no classifier to defend: give classifier=….")
        sp = self.security_parameter if security_parameter is None else security_parameter
        return eval_but(
            DefendedClassifier(self.classifier, self.module_, sp, **params), self.classifier
        )

    def _score(self, X, labels) -> tuple[np.ndarray, np.ndarray]:
        """Scores and the columns of the classes that they were taken under."""
        self._check_calibrated()
        rows, labels = self._read_for_scoring(X, labels)
        return self._stream(rows, labels, self.module_.scores_at)

    def _check_calibrated(self) -> None:
        check_is_fitted(self, "module_")
        if self.module_.calibration is None:
            raise NotFittedError(
                f"This {type(self).__name__} was fitted with calibration_fraction=0; call "
                "calibrate(X) with clean rows before scoring."
            )

    def _new_module(self, statistic: nn.Module) -> DetectorModule:
        return DetectorModule(statistic, torch.as_tensor(self.classes_))

    def _n_ranked(self, n_rows: int) -> int:
        """Of so many calibration rows, how many set the threshold."""
        return n_rows

    def _calibrate(self, rows: Rows, labels, indices=None) -> None:
        statistic, columns = self._stream(rows, labels, self.module_.statistic_at, indices)
        calibration = ConformalSurvival.fit(statistic, columns, len(self.classes_))
        calibration.to(module_device(self.module_))
        # A new module: copies of this detector may share the old one.
        module = DetectorModule(self.module_.statistic, self.module_.classes, calibration)
        self.module_ = eval_but(module, self.classifier)

    def _stream(self, rows, labels, judge, indices=None) -> tuple[np.ndarray, np.ndarray]:
        """Values and class columns that `judge` gives all rows, or those at `indices`."""
        parts = []
        with closing(self._decided_batches(rows, labels, indices)) as batches:
            for _, x, decided in batches:
                values, columns = judge(x, decided)
                parts.append((values.cpu().numpy(), columns.cpu().numpy()))
        values, columns = (np.concatenate(part) for part in zip(*parts, strict=True))
        return values.astype(np.float64, copy=False), columns

    def _decided_batches(self, rows, labels, indices=None):
        """Yield (positions, x, decisions or None), with the module at hand and no gradients.

        Close it, so that an error between two batches leaves the networks as they were.
        """
        device = resolve_device(self.device, self.module_, self.classifier)
        with evaluating(self.module_, self.classifier, device=device), torch.no_grad():
            for positions, batch in rows.batches(self.batch_size, indices):
                decided = self._decide(batch, None if labels is None else labels[positions])
                yield positions, as_input(batch, self.module_, device), decided

    def _decide(self, batch, labels) -> torch.Tensor | None:
        """Classifier's decisions for a batch: those given, or asked for, or None."""
        if labels is None:
            labels = self._ask(batch)
        if labels is None:
            return None
        return torch.as_tensor(labels, device=module_device(self.module_))

    def _ask(self, batch) -> torch.Tensor | None:
        """Classifier's decisions for a batch; None without one, or where the module asks it."""
        if self.classifier is None or self.module_.asks:
            return None
        device = module_device(self.module_)
        return self.classifier(as_input(batch, self.classifier, device)).argmax(1)

    def _split(self, clean: np.ndarray, random_state) -> tuple[np.ndarray, np.ndarray]:
        if len(clean) == 0:
            raise ValueError("Every row of y is -1 (adversarial); fit needs clean rows.")
        if self.calibration_fraction == 0:
            return clean, clean[:0]
        train, held_out = train_test_split(
            clean, test_size=self.calibration_fraction, random_state=random_state
        )
        n_ranked = self._n_ranked(len(held_out))
        check_enough(n_ranked, self.security_parameter, len(clean))
        return np.sort(train), np.sort(held_out)

    def _read_for_scoring(self, X, labels) -> tuple[Rows, np.ndarray | None]:
        rows = self._read_rows(X, reset=False)
        if labels is not None:
            labels = check_labels(labels, len(rows), "labels")
            check_known(labels, self.classes_)
        return rows, labels

    def _decisions(self, rows: Rows, labels, indices: np.ndarray) -> np.ndarray | None:
        """Classifier's decisions for the rows at `indices`: those given, or asked for, or None."""
        if labels is not None:
            return check_labels(labels, len(rows), "labels")[indices]
        if self.classifier is None:
            return None
        return predict_labels(self.classifier, rows, self.batch_size, self.device, indices)

    def _class_labels(self, y, rows: Rows) -> np.ndarray:
        """Class of each row: y, a dataset's own, the classifier's, or one single class."""
        if y is None:
            y = rows.labels(self.batch_size)
        if y is None and self.classifier is not None:
            y = predict_labels(self.classifier, rows, self.batch_size, self.device)
        if y is None:
            y = np.zeros(len(rows), dtype=np.int64)
        return check_labels(y, len(rows), "y")


def _warn_if_numbered_otherwise(y: np.ndarray, decided: np.ndarray) -> None:
    """Warn if the classifier takes few clean rows for what y says."""
    agreement = np.mean(decided == y)
    if agreement < LEAST_AGREEMENT:
        warnings.warn(
            f"The classifier takes {agreement:.0%} of the rows for what y says. A detector learns "
            "from y what clean rows of a class look like: number the classes as the classifier "
            "does.",
            stacklevel=5,
        )
