"""The contract of every detector."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from tqdm.auto import tqdm

from skmrr._sklearn import Interval, StrOptions, fit_context
from skmrr.calibration import ConformalSurvival
from skmrr.callbacks import begin
from skmrr.distributed import by_chunk, is_dask_array, judge_lazily, picked
from skmrr.harmless import bind
from skmrr.networks import NetworkEstimator
from skmrr.nn.defended import DefendedClassifier
from skmrr.nn.detector_module import DetectorModule, Evidence
from skmrr.nn.fusion import Alone, Fusion
from skmrr.nn.members import Members
from skmrr.nn.memory import rows_at_once
from skmrr.nn.placement import draw_seed, module_device, seeded
from skmrr.nn.rows import Rows
from skmrr.nn.statistic import Statistic
from skmrr.nn.tapped import Tapped
from skmrr.nn.trials import check_classifier, predict_labels
from skmrr.nn.wording import shortened
from skmrr.reading import RowReader
from skmrr.threshold import ADVERSARIAL, RiskMixin
from skmrr.validation import check_enough, check_labels, check_numbered

# Whether y numbers the classes as the classifier does:
MAX_COMPARED_ROWS = 500
LEAST_AGREEMENT = 0.5  # share of the classifier's decisions that are y


@dataclass(eq=False, repr=False)
class BaseDetector(RiskMixin, RowReader, NetworkEstimator, ABC):
    """Base of all detectors: validates, splits, calibrates and scores.

    A detector is a dataclass: its fields are its parameters, those below and its own. For one that
    rests on a single statistic derive from `StatisticDetector`.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. It is only asked, never changed.
    security_parameter : float, default=0.01
        Share of clean rows that may be flagged. Changing it on a fitted detector changes the
        verdicts and nothing else.
    calibration_fraction : float, default=0.2
        Share of the clean rows that `fit` holds out to calibrate on; 0 leaves that to `calibrate`.
    input_shape : tuple of int, optional
        Shape that each row of a 2-D X has for the networks, e.g. ``(1, 28, 28)``.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error.
    batch_size : "auto" or int, default="auto"
        Rows per pass. Scores do not depend on it. ``"auto"``: as many as let the largest step of
        the classifier's pass take half a gibibyte, 256 at most.
    device : str or torch.device, default="auto"
        Where `fit` computes and the fitted detector lives; ``"auto"`` is where the networks among
        the parameters live, else the CPU.
    random_state : int, RandomState or None, default=None
        Seed of the split and of whatever else is random in `fit`.
    verbose : bool, default=False
        Whether to show progress bars.
    harmless : list of callable, optional
        Changes of a row that must not raise an alarm: of `skmrr.harmless`, or functions of a batch
        (Tensor of shape (batch, …), in the units of X). Each calibration row then counts as its
        oddest version, so that P(alarm) ≤ `security_parameter` on clean rows as they are and under
        each of these changes. Calibrating takes one more pass of its rows for each change; what is
        odd only within the changes' reach is no longer detected.

    Attributes
    ----------
    evidence_ : skmrr.nn.Evidence
        Classifier and fitted statistics, before calibration.
    module_ : skmrr.nn.DetectorModule
        The fitted and calibrated detector, ``forward(x, labels)`` → score, differentiable.
    classes_ : ndarray of shape (n_classes,)
        Class labels: the numbers of the classifier's logits, and without a classifier those in y.
    offset_ : float
        Threshold on the score, log(`security_parameter`).
    n_features_in_, input_shape_ : int, tuple of int
        Values in a row of X; shape of a row as the networks see it.
    """

    classifier: nn.Module | None = None
    _: KW_ONLY
    security_parameter: float = 0.01
    calibration_fraction: float = 0.2
    input_shape: Sequence[int] | None = None
    clip_values: Sequence[float] | None = None
    batch_size: int | Literal["auto"] = "auto"
    device: str | torch.device = "auto"
    random_state: int | np.random.RandomState | None = None
    verbose: bool = False
    harmless: Sequence[Callable] | None = None

    _parameter_constraints: ClassVar[dict] = {
        "classifier": [nn.Module, None],
        "security_parameter": [Interval(Real, 0, 1, closed="neither")],
        "calibration_fraction": [Interval(Real, 0, 1, closed="left")],
        "input_shape": ["array-like", None],
        "clip_values": ["array-like", None],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "harmless": [list, tuple, None],
    }

    _calibrated_apart: ClassVar[bool] = False
    """Whether half of the calibration rows calibrate the members, the other half their fusion."""

    @abstractmethod
    def _fit_members(
        self,
        rows: Rows,
        columns: np.ndarray,
        train: np.ndarray,
        random_state: np.random.RandomState,
    ) -> Members:
        """Fit statistics on the rows at `train`.

        Parameters
        ----------
        rows : Rows
            All rows, clean and adversarial; only those at `train` may be read.
        columns : ndarray of shape (n_samples,)
            Index of each row's class in ``classes_``; of use at `train` alone.
        train : ndarray of int
            Positions of the rows to fit on. They need not be of every class.
        random_state : RandomState
            The only source of randomness.
        """

    @property
    @abstractmethod
    def _trains(self) -> bool:
        """Whether there is anything to fit before the calibration."""

    @abstractmethod
    def _fit_calibration(self, values: np.ndarray, columns: np.ndarray) -> tuple[nn.Module, Fusion]:
        """Fit what turns statistics into log-survivals, and these into one.

        Parameters
        ----------
        values : ndarray of shape (n_rows, n_versions, n_members)
            Statistics of clean rows that nothing was fitted on, as they are and under each
            harmless change.
        columns : ndarray of shape (n_rows, n_versions)
            Index of each version's class in ``classes_``.
        """

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, labels=None):
        """Fit on clean rows, and calibrate on a share of them held out.

        Parameters
        ----------
        X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …)
            Images in the classifier's own pixel scale (declare it by ``clip_values``), or
            features. A dataset may yield (row, class).
        y : array-like of shape (n_samples,), optional
            True classes, as the classifier numbers them, not necessarily all of them. Rows with
            ``y == -1`` are adversarial and are dropped. Without y the classifier's decisions
            serve; without a classifier too, all rows are of one class.
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
        task = begin(self)
        before = dict(vars(self))
        try:
            # A dataset may change its rows at random, each time they are read.
            seed = draw_seed(check_random_state(self.random_state))
            with torch.inference_mode(False), torch.enable_grad(), seeded(seed), task.told():
                return self._fit(X, y, labels)
        except BaseException:
            # Interrupted or refused: what was fitted before stays whole.
            self.__dict__ = before
            raise

    def _fit(self, X, y, labels):
        rows = self._read_rows(X, reset=True)
        self._check_shape(rows.shape)
        self._check_harmless(rows)
        classifier = self._tapped()
        n_logits = self._count_logits(classifier, rows)
        if classifier is not None:
            self._rows_at_once = rows_at_once(classifier, rows.take([0, 0]))
        rows.check(self.batch_size_)
        y = check_numbered(self._class_labels(y, rows, classifier), n_logits, "y")
        if labels is not None:
            labels = check_labels(labels, len(rows), "labels")
            check_numbered(labels, n_logits, "labels")
        random_state = check_random_state(self.random_state)
        train, held_out = self._split(np.flatnonzero(y != ADVERSARIAL), random_state)
        if classifier is not None:
            some = held_out if len(held_out) else train
            some = some[:: math.ceil(len(some) / MAX_COMPARED_ROWS)]
            if labels is None:
                decided = predict_labels(classifier, rows, self.batch_size_, some)
            else:
                decided = labels[some]
            _warn_if_numbered_otherwise(y[some], decided)
        classes = np.unique(y[y != ADVERSARIAL]) if n_logits is None else np.arange(n_logits)
        self._fit_evidence(rows, y, train, random_state, classes)
        if len(held_out):
            self._calibrate(rows, None if labels is None else labels[held_out], held_out)
        return self

    def _count_logits(self, classifier: Tapped | None, rows: Rows) -> int | None:
        """Count the classes that the classifier tells apart; None where y alone knows them."""
        return None if classifier is None else check_classifier(classifier, rows)

    def _fit_evidence(self, rows: Rows, y, train: np.ndarray, random_state, classes) -> None:
        """Fit on checked rows, and leave the calibration to the caller."""
        self.__dict__.pop("module_", None)
        self._remember_shape(rows.shape)
        self.classes_ = classes
        columns = np.searchsorted(classes, y).clip(max=len(classes) - 1)
        members = self._fit_members(rows, columns, train, random_state)
        evidence = Evidence(self._tapped(members.taps), members, torch.as_tensor(self.classes_))
        self.evidence_ = evidence.to(self._device()).eval()

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
            If there are fewer rows than `security_parameter` needs, 1 / SP − 1, or a logit or
            statistic is not a number.
        """
        check_is_fitted(self, "evidence_")
        if is_dask_array(X):
            self._calibrate_by_chunk(X, labels)
            return self
        rows, labels = self._read_to_calibrate(X, labels)
        check_enough(self._n_ranked(len(rows)), self.security_parameter, len(rows))
        self._calibrate(rows, labels)
        return self

    def _read_to_calibrate(self, X, labels) -> tuple[Rows, np.ndarray | None]:
        rows, labels = self._read_for_scoring(X, labels)
        if labels is not None and self.classifier is not None:
            check_numbered(labels, len(self.classes_), "labels")
        return rows, labels

    def _calibrate_by_chunk(self, X, labels) -> None:
        """Calibrate on what is found in the chunks of a dask array, where they lie."""
        if not math.isnan(X.shape[0]):
            check_enough(self._n_ranked(X.shape[0]), self.security_parameter, X.shape[0])
        seeds = self._harmless_seeds()
        n_versions, n_members = 1 + len(seeds), len(self.evidence_.members)
        width = n_versions * (n_members + 1)
        found = by_chunk(_examine_chunk, self, X, labels, width, seeds).compute()
        check_enough(self._n_ranked(len(found)), self.security_parameter, len(found))
        found = found.reshape(len(found), n_versions, n_members + 1)
        self._settle(found[..., :-1], found[..., -1].astype(np.int64), np.arange(len(found)))

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
            In (−∞, 0]; the lowest finite number where nothing can be said: for a class that the
            detector has learnt nothing of, and where logits are not finite.
        """
        return self._judge(X, labels)[0]

    def classify(self, X, *, labels=None):
        """Class of each row, shape (n_samples,), or −1 for "don't know" where it is flagged.

        The class is the classifier's decision, and without a classifier the nearest class.
        """
        scores, columns, _ = self._judge(X, labels)
        return np.where(scores >= self.offset_, picked(self.classes_, columns), ADVERSARIAL)

    def defended_classifier(
        self, *, security_parameter=None, channels: Sequence[Callable] = (), **params
    ) -> DefendedClassifier:
        """Classifier and this detector as one torch module, to be attacked.

        Parameters
        ----------
        security_parameter : float, optional
            False-alarm rate of the threshold; by default that of the detector.
        channels : sequence of callable, optional
            Ways on which rows reach it, as `skmrr.harmless` has them; by default as they are.
        **params : dict
            Other parameters of `skmrr.nn.DefendedClassifier`.

        Returns
        -------
        skmrr.nn.DefendedClassifier
            Rows → the classifier's logits and one more, "flagged". It shares the tensors.

        Raises
        ------
        ValueError
            If there is no classifier.
        """
        self._check_calibrated()
        sp = self.security_parameter if security_parameter is None else security_parameter
        ways = [bind(change, self.clip_values, seed) for seed, change in enumerate(channels)]
        return DefendedClassifier(self.module_, sp, channels=ways, **params).eval()

    def _judge(self, X, labels) -> tuple[Any, ...]:
        """Score, class column and members' log-survivals of each row: lazy for a dask array."""
        self._check_calibrated()
        if is_dask_array(X):
            return judge_lazily(self, X, labels)
        return self._stream(self.module_.judge, *self._read_for_scoring(X, labels))

    def _check_calibrated(self) -> None:
        check_is_fitted(self, "evidence_")
        if not hasattr(self, "module_"):
            raise NotFittedError(
                f"This {type(self).__name__} was fitted with calibration_fraction=0; call "
                "calibrate(X) with clean rows before scoring."
            )

    def _n_ranked(self, n_rows: int) -> int:
        """Of so many calibration rows, how many set the threshold."""
        return n_rows - n_rows // 2 if self._calibrated_apart else n_rows

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise a ValueError for rows of a shape that it cannot take, before any work is lost."""

    def _check_harmless(self, rows: Rows) -> None:
        """Try each harmless change on two rows, before any work is lost."""
        for change in self._harmless_changes():
            change(rows.take([0, len(rows) - 1]))

    def _harmless_seeds(self) -> list[int]:
        random_state = check_random_state(self.random_state)
        return [draw_seed(random_state) for _ in self.harmless or ()]

    def _harmless_changes(self, seeds: Sequence | None = None) -> list[Callable[[Tensor], Tensor]]:
        seeds = self._harmless_seeds() if seeds is None else seeds
        changes = zip(self.harmless or (), seeds, strict=True)
        return [bind(change, self.clip_values, seed) for change, seed in changes]

    def _calibrate(self, rows: Rows, labels, indices=None) -> None:
        values, columns = self._examine(rows, labels, self._harmless_changes(), indices)
        self._settle(values, columns, np.arange(len(rows)) if indices is None else indices)

    def _examine(self, rows: Rows, labels, changes, indices=None) -> tuple[np.ndarray, ...]:
        """Statistics and class column of each row, as it is and under each harmless change."""
        versions = [self._stream(self.evidence_, rows, labels, indices, desc="calibrate")]
        if self.classifier is not None:
            labels = None  # what the classifier makes of a changed row is to be asked
        for k, change in enumerate(changes, start=1):

            def examine(x, decided, change=change):
                return self.evidence_(change(x), decided)

            desc = f"calibrate, change {k} of {len(changes)}"
            versions.append(self._stream(examine, rows, labels, indices, desc=desc))
        values, columns = (np.stack(part, 1) for part in zip(*versions, strict=True))
        return values, columns

    def _settle(self, values: np.ndarray, columns: np.ndarray, indices: np.ndarray) -> None:
        """Calibrate on statistics of rows, shape (n_rows, n_versions, n_members)."""
        self._check_values(values, indices)
        self._complete(*self._fit_calibration(values, columns))

    def _check_values(self, values: np.ndarray, indices: np.ndarray) -> None:
        """Refuse statistics of clean rows that are no numbers, and warn of unknown classes."""
        is_broken = (np.isnan(values) | np.isneginf(values)).any(axis=(1, 2))
        if is_broken.any():
            raise ValueError(
                f"The logits or a statistic of {is_broken.sum()} calibration rows are not finite "
                f"({shortened(indices[is_broken])}): find out what the classifier makes of these "
                "rows, and leave them out if they are no clean ones."
            )
        is_unknown = np.isposinf(values).any(axis=(1, 2))
        if is_unknown.all():
            raise ValueError(
                "All calibration rows are of classes that no training row was of; fit on rows of "
                "the classes that are to come."
            )
        if is_unknown.mean() > self.security_parameter:
            warnings.warn(
                f"{is_unknown.mean():.1%} of the calibration rows are of classes that no training "
                "row was of. Such rows are always flagged, more of them than security_parameter="
                f"{self.security_parameter:g} promises: fit on rows of these classes too.",
                stacklevel=4,
            )

    def _complete(self, survival: nn.Module, fusion: Fusion) -> None:
        """Put what is calibrated behind the evidence."""
        # A new module: copies of this detector may share the old one.
        module = DetectorModule(self.evidence_, survival, fusion)
        self.module_ = module.to(module_device(self.evidence_)).eval()

    @torch.no_grad()
    def _stream(
        self,
        judge: Callable[..., tuple[Tensor, ...]],
        rows: Rows,
        labels,
        indices=None,
        desc: str = "rows",
    ) -> tuple[np.ndarray, ...]:
        """Collect what `judge` finds in all rows, or those at `indices`, batch by batch."""
        device = module_device(self.evidence_)
        n_rows = len(rows) if indices is None else len(indices)
        parts = []
        with tqdm(total=n_rows, desc=desc, disable=not self.verbose, leave=False) as bar:
            for positions, batch in rows.batches(self.batch_size_, indices):
                decided = None
                if labels is not None:
                    decided = torch.as_tensor(labels[positions], device=device)
                parts.append([found.cpu() for found in judge(batch.to(device), decided)])
                bar.update(len(batch))
        return tuple(torch.cat(found).numpy() for found in zip(*parts, strict=True))

    def _tapped(self, taps: Sequence[str] = ()) -> Tapped | None:
        """Classifier as it is scored with; None without one."""
        if self.classifier is None:
            return None
        return Tapped(self.classifier, taps, self._device())

    def _split(self, clean: np.ndarray, random_state) -> tuple[np.ndarray, np.ndarray]:
        if len(clean) == 0:
            raise ValueError("Every row of y is -1 (adversarial); fit needs clean rows.")
        if self.calibration_fraction == 0:
            return clean, clean[:0]
        train = held_out = clean
        if self._trains:
            train, held_out = train_test_split(
                clean, test_size=self.calibration_fraction, random_state=random_state
            )
        check_enough(
            self._n_ranked(len(held_out)),
            self.security_parameter,
            len(clean),
            or_else=", or hold out more by calibration_fraction, or none (0) and call calibrate "
            "with other rows",
        )
        return np.sort(train), np.sort(held_out)

    def _read_for_scoring(self, X, labels) -> tuple[Rows, np.ndarray | None]:
        rows = self._read_rows(X, reset=False)
        return rows, None if labels is None else check_labels(labels, len(rows), "labels")

    def _class_labels(self, y, rows: Rows, classifier) -> np.ndarray:
        """Class of each row: y, a dataset's own, the classifier's, or one single class."""
        if y is None:
            y = rows.labels(self.batch_size_)
        if y is None and classifier is not None:
            y = predict_labels(classifier, rows, self.batch_size_)
        if y is None:
            y = np.zeros(len(rows), dtype=np.int64)
        return check_labels(y, len(rows), "y")

    def _refuse_unused(self, *names: str, because: str) -> None:
        """Raise a ValueError if a parameter that has no effect was set all the same."""
        changed = [
            name
            for name in names
            if not np.array_equal(getattr(self, name), getattr(type(self), name))
        ]
        if changed:
            given = ", ".join(f"{name}={getattr(self, name)!r}" for name in changed)
            raise ValueError(f"{given} has no effect: {because}.")


@dataclass(eq=False, repr=False)
class StatisticDetector(BaseDetector):
    """Base of detectors that rest on one statistic: implement `_fit_statistic`.

    Parameters are those of `BaseDetector`. See "Adding a detector" in the documentation.
    """

    _trains = True

    @abstractmethod
    def _fit_statistic(
        self,
        rows: Rows,
        columns: np.ndarray,
        train: np.ndarray,
        random_state: np.random.RandomState,
    ) -> Statistic:
        """Fit a statistic on the rows at `train`; parameters are those of `_fit_members`."""

    @property
    def statistic_(self) -> Any:
        """The fitted statistic, a `skmrr.nn.Statistic`."""
        check_is_fitted(self, "evidence_")
        return self.evidence_.members.statistics[0]

    def _fit_members(self, rows, columns, train, random_state):
        return Members([self._fit_statistic(rows, columns, train, random_state)])

    def _fit_calibration(self, values, columns):
        return ConformalSurvival.fit(values, columns, len(self.classes_)), Alone()


def _examine_chunk(detector: BaseDetector, X, labels, number: int, seeds) -> np.ndarray:
    """Statistics of each version of each row, and its class column, side by side."""
    rows, labels = detector._read_to_calibrate(X, labels)
    changes = detector._harmless_changes([[seed, number] for seed in seeds])
    values, columns = detector._examine(rows, labels, changes)
    return np.concatenate([values, columns[..., None]], axis=2).reshape(len(values), -1)


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
