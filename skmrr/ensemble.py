"""The ensemble: many defenders, one risk, one promise of false alarms."""

from numbers import Integral, Real
from typing import cast

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch, check_array, check_random_state
from sklearn.utils._optional_dependencies import check_pandas_support
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.validation import check_is_fitted
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from skmrr.base import BaseDetector
from skmrr.calibration import ConformalSurvival, MemberSurvivals
from skmrr.latent import MAX_TOLERANCE_ROWS, LatentDefender
from skmrr.members import (
    LATENT,
    MAX_SEED,
    as_member,
    detector_of,
    is_frozen,
    latent_defenders,
    prepared,
    unfrozen,
)
from skmrr.nn.chain import move_apart
from skmrr.nn.detector import DetectorModule, LatentStatistic
from skmrr.nn.ensemble import EnsembleModule, MemberStatistics
from skmrr.nn.fusion import Fusion
from skmrr.nn.hooks import eval_but, module_device
from skmrr.nn.rows import Rows
from skmrr.noise import NoiseDefender
from skmrr.threshold import ADVERSARIAL
from skmrr.validation import check_enough

SPARSE_WEIGHT = 0.25  # chosen on tuning seeds of MNIST and CIFAR-10
MARGIN = "classifier"  # name of the member that is the classifier's own margin


class MRREnsemble(_BaseComposition, BaseDetector):
    """Ensemble of defenders: members' risks fused into one, whose threshold is a false-alarm rate.

    The classifier is asked once per batch and its decision handed to all members. Each gives a
    p-value by clean rows; a fusion of these is calibrated anew on clean rows that no member was
    calibrated on, so that P(false alarm) ≤ `security_parameter` for any number of members.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. It is only asked, never changed.
    layer : str, optional
        Checkpoint of the default latent defenders: dotted name of a layer of the classifier. By
        default the input of its last linear layer.
    n_defenders : int, optional
        Number of latent defenders, 1 by default: others of the same kind see the same. Of explicit
        `defenders`, how many of the first to use, all by default.
    input_defender : bool, default=True
        Whether defenders that look at the input itself, two `NoiseDefender`, join the default
        members.
    margin : bool, default=True
        Whether the classifier's own margin joins the members, at no cost, under the name
        ``"classifier"``. The p-value of a member that depends on it is then taken among clean rows
        of which the classifier is about as sure: a defender's doubts mean less where the
        classifier has them too. Without a classifier there is none.
    defenders : list of (str, estimator), optional
        Members instead of the default ones: detectors, or Pipelines that end in one. Each is cloned
        and fitted, unless frozen by ``sklearn.frozen.FrozenEstimator``: then it is used as it is. A
        Pipeline that begins with a `FeatureExtractor` of `classifier` costs no pass of its own.
    estimator : LatentDefender, optional
        Template of the default latent defenders. By default ``LatentDefender(
        exploration_radius="auto", learning_rate=3e-3)``, without exploration where there is no
        classifier.
    width : float, default=1.0
        Share of the classifier's channels and units that a default latent defender has. At 1 it
        starts as a copy of the classifier, below it is trained from scratch and costs less.
    chain : bool, default=False
        Whether each latent defender is trained on rows moved along the gradient of those before
        it, as published, instead of independently of them.
    chain_step : float, optional
        Length, in the units of X, of a step along the signs of that gradient. By default the
        gradient itself is added, as published.
    fusion : {"noisy_or", "harmonic", "max"}, default="noisy_or"
        From p-values p_k to one: Fisher's Σ w_k log p_k, the noisy-OR of the risks 1 − p_k; their
        harmonic mean, in which a member that sees nothing takes less from one that does; or the
        smallest p_k / w_k. Changed on a fitted ensemble it counts from the next `calibrate` on, as
        do the weights.
    weights : array-like of shape (n_members,), optional
        Weights w_k ≥ 0 of the members in the order of `member_names_`. By default 1, but
        that the default latent defenders, which see much the same, have one say together, and the
        default defender against sparse noise, which most attacks do not concern, a quarter of one.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error.
    security_parameter : float, default=0.01
        Share of clean rows that may be flagged. Changing it on a fitted ensemble changes the
        verdicts and nothing else.
    calibration_fraction : float, default=0.2
        Share of the clean rows that `fit` holds out to calibrate on, half of them the members,
        half the fusion; 0 leaves that to `calibrate`. With frozen members alone there is nothing
        else to fit, and all rows calibrate the fusion.
    input_shape : tuple of int, optional
        Shape that each row of a 2-D X has for the networks, e.g. ``(1, 28, 28)``.
    batch_size : int, default=512
        Rows per forward pass. Scores do not depend on it.
    n_jobs : int, optional
        Members fitted at a time, as joblib counts them: None is 1, -1 all processors.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` is where `classifier` lives.
    random_state : int, RandomState or None, default=None
        Seed of splits and of members that have none of their own.
    verbose : bool, default=False
        Whether to show a progress bar.

    Attributes
    ----------
    named_defenders_ : Bunch
        Fitted members by name.
    weights_ : ndarray of shape (n_members,)
        Weights in use.
    module_ : skmrr.nn.EnsembleModule
        The fitted ensemble, ``forward(x, labels)`` → score, differentiable but for steps of a
        Pipeline that are not torch's.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    offset_ : float
        Threshold on the score, log(`security_parameter`).
    member_names_ : list of str
        Names of all members, the classifier's margin included, in the order of weights.
    n_features_in_, input_shape_ : int, tuple of int
        Values in a row of X; shape of a row as the networks see it.

    See Also
    --------
    LatentDefender, NoiseDefender, InputDictionaryDefender : Members.

    References
    ----------
    B. D. Rouhani, M. Samragh, T. Javidi, F. Koushanfar, "Safe Machine Learning and Defeating
    Adversarial Attacks", IEEE Security & Privacy 2019.

    R. A. Fisher, "Statistical Methods for Research Workers", 1925, for Σ log p.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender, MRREnsemble
    >>> X, y = load_digits(return_X_y=True)
    >>> ensemble = MRREnsemble(
    ...     estimator=LatentDefender(max_epochs=2), n_defenders=3, random_state=0
    ... ).fit(X[:1500] / 16, y[:1500])
    >>> list(ensemble.named_defenders_)
    ['latent_0', 'latent_1', 'latent_2', 'dense', 'sparse']
    >>> ensemble.member_risks(X[1500:] / 16).shape
    (297, 5)
    """

    _parameter_constraints: dict = {
        **BaseDetector._parameter_constraints,
        "layer": [str, None],
        "n_defenders": [Interval(Integral, 1, None, closed="left"), None],
        "input_defender": ["boolean"],
        "margin": ["boolean"],
        "defenders": [list, None],
        "estimator": [LatentDefender, None],
        "width": [Interval(Real, 0, 1, closed="right")],
        "chain": ["boolean"],
        "chain_step": [Interval(Real, 0, None, closed="neither"), None],
        "fusion": [StrOptions({"noisy_or", "harmonic", "max"})],
        "weights": ["array-like", None],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        classifier=None,
        layer=None,
        *,
        n_defenders=None,
        input_defender=True,
        margin=True,
        defenders=None,
        estimator=None,
        width=1.0,
        chain=False,
        chain_step=None,
        fusion="noisy_or",
        weights=None,
        clip_values=None,
        security_parameter=0.01,
        calibration_fraction=0.2,
        input_shape=None,
        batch_size=512,
        n_jobs=None,
        device="auto",
        random_state=None,
        verbose=False,
    ):
        self.classifier = classifier
        self.layer = layer
        self.n_defenders = n_defenders
        self.input_defender = input_defender
        self.margin = margin
        self.defenders = defenders
        self.estimator = estimator
        self.width = width
        self.chain = chain
        self.chain_step = chain_step
        self.fusion = fusion
        self.weights = weights
        self.clip_values = clip_values
        self.security_parameter = security_parameter
        self.calibration_fraction = calibration_fraction
        self.input_shape = input_shape
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def get_params(self, deep=True):
        """Parameters by name, those of explicit members included.

        Parameters
        ----------
        deep : bool, default=True
            Whether to list members and their parameters too.

        Returns
        -------
        dict
        """
        return self._get_params("defenders", deep=deep)

    def set_params(self, **params):
        """Set parameters; a member's name replaces that member.

        Parameters
        ----------
        **params : dict
            Parameters, e.g. ``name__max_epochs=3``.

        Returns
        -------
        self : object
        """
        return self._set_params("defenders", **params)

    def member_risks(self, X, *, labels=None):
        """Risk of each row by each member: who raised the alarm.

        Parameters
        ----------
        X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …)
            Rows of the shape and scale seen in `fit`.
        labels : array-like of shape (n_samples,), optional
            The classifier's decisions for X; by default ``classifier`` is asked.

        Returns
        -------
        risks : pandas.DataFrame of shape (n_samples, n_members)
            In [0, 1], a column for each member.
        """
        pandas = check_pandas_support("MRREnsemble.member_risks")
        self._check_calibrated()
        rows, labels = self._read_for_scoring(X, labels)
        log_survivals, _ = self._stream(rows, labels, self.module_.log_survivals)
        return pandas.DataFrame(
            0.0 - np.expm1(log_survivals),
            columns=self.member_names_,
            index=X.index if isinstance(X, pandas.DataFrame) else None,
        )

    def _fit_statistic(self, rows, columns, train, random_state):
        named = self._named_members(rows, train, random_state)
        with_margin = self.margin and self.classifier is not None
        self.member_names_ = [MARGIN] * with_margin + [name for name, _ in named]
        self._resolve_weights()
        for name, member in named:
            if is_frozen(member):
                self._check_fitted_member(name, detector_of(member))
        y = np.full(len(rows), ADVERSARIAL)
        y[train] = self.classes_[columns[train]]
        members = [member for _, member in named]
        fitted = (self._fit_chain if self.chain else self._fit_apart)(members, rows, y, train)
        self._fitted_here = [name for name, member in named if not is_frozen(member)]
        self.named_defenders_ = Bunch(
            **{name: unfrozen(member) for (name, _), member in zip(named, fitted, strict=True)}
        )
        return MemberStatistics(
            [as_member(member, self.classifier) for member in self.named_defenders_.values()],
            self.classifier,
            with_margin,
        )

    def _named_members(self, rows, train, random_state) -> list[tuple]:
        """Names of the members, and the members before they are fitted."""
        if self.defenders is not None:
            return [
                (name, prepared(member, random_state.randint(MAX_SEED)))
                for name, member in self._chosen()
            ]
        shared = {
            "clip_values": self.clip_values,
            "input_shape": self.input_shape,
            "device": self.device,
            "security_parameter": self.security_parameter,
            "calibration_fraction": 0.0,
        }
        named: list[tuple] = latent_defenders(
            self.n_defenders or 1,
            self.estimator or default_defender(),
            self.classifier,
            self.layer,
            self.width,
            rows.take(random_state.permutation(train)[:MAX_TOLERANCE_ROWS]),
            random_state,
            **shared,
        )
        if self.input_defender:
            for noise in ("dense", "sparse"):
                seed = random_state.randint(MAX_SEED)
                named.append((noise, NoiseDefender(noise=noise, random_state=seed, **shared)))
        return named

    def _chosen(self) -> list[tuple]:
        """Explicit members in use.

        Raises
        ------
        ValueError
            If there is none, or names are not unique or hold ``"__"``.
        TypeError
            If they are no pairs, or hold something else than detectors.
        """
        if not self.defenders:
            raise ValueError("defenders=[] names no member; give one at least, or None.")
        if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in self.defenders):
            raise TypeError("defenders must hold pairs: defenders=[('name', detector), …].")
        self._validate_names([name for name, _ in self.defenders])
        for _, member in self.defenders:
            detector_of(member)
        return self.defenders[: self.n_defenders]

    def _check_fitted_member(self, name: str, detector: BaseDetector) -> None:
        check_is_fitted(detector, "module_")
        if not np.array_equal(detector.classes_, self.classes_):
            raise ValueError(
                f"Member {name!r} was fitted on classes {detector.classes_.tolist()}, the ensemble "
                f"on {self.classes_.tolist()}; fit both on the same ones."
            )

    def _fit_apart(self, members, rows, y, train) -> list:
        """Fit the members independently of each other."""
        new = [member for member in members if not is_frozen(member)]
        jobs = (delayed(member.fit)(*_training_rows(member, rows, y, train)) for member in new)
        fitted = Parallel(n_jobs=self.n_jobs, return_as="generator")(jobs)
        fitted = iter(tqdm(fitted, "defenders", len(new), disable=not self.verbose))
        return [member if is_frozen(member) else next(fitted) for member in members]

    def _fit_chain(self, members, rows, y, train) -> list:
        """Fit one after the other, each latent defender on rows that those before it have moved."""
        moved = rows.take(train)
        columns = torch.as_tensor(np.searchsorted(self.classes_, y[train]))
        for member in tqdm(members, desc="defenders", disable=not self.verbose):
            if isinstance(member, LatentDefender):
                member.fit(moved, y[train])
                moved = move_apart(
                    moved,
                    columns,
                    cast(LatentStatistic, member.module_.statistic).latent_map,
                    step=self.chain_step,
                    clip_values=self.clip_values,
                    batch_size=self.batch_size,
                )
            elif not is_frozen(member):
                member.fit(*_training_rows(member, rows, y, train))
        return members

    def _new_module(self, statistic):
        return EnsembleModule(statistic, torch.as_tensor(self.classes_))

    @property
    def _trains(self) -> bool:
        """Whether any member is still to be fitted and calibrated."""
        return self.defenders is None or not all(is_frozen(m) for _, m in self._chosen())

    def _split(self, clean, random_state):
        if self._trains or self.calibration_fraction == 0 or len(clean) == 0:
            return super()._split(clean, random_state)
        check_enough(self._n_ranked(len(clean)), self.security_parameter, len(clean))
        return clean, clean

    def _n_ranked(self, n_rows: int) -> int:
        return n_rows - n_rows // 2

    def _calibrate(self, rows, labels, indices=None) -> None:
        """Calibrate the members on one half of the rows, the fusion on the other."""
        module = self.module_
        values, columns = self._stream(rows, labels, module.member_statistics, indices)
        order = check_random_state(self.random_state).permutation(len(values))
        members_half, fusion_half = np.split(order, [len(values) // 2])
        self.weights_ = self._resolve_weights()
        fusion = Fusion(self.fusion, torch.as_tensor(self.weights_))
        survivals = MemberSurvivals.fit(
            values[members_half],
            columns[members_half],
            len(self.classes_),
            given_first=self.member_names_[0] == MARGIN,
        )
        with torch.no_grad():
            log_survivals = survivals(
                *(torch.as_tensor(part[fusion_half]) for part in (values, columns))
            )
            fused = fusion(log_survivals).numpy()
        calibration = self._survival(fused, columns[fusion_half])
        # A new module: copies of this ensemble may share the old one.
        calibrated = EnsembleModule(
            module.statistic, module.classes, survivals, fusion, calibration
        ).to(module_device(module))
        self.module_ = eval_but(calibrated, self.classifier)
        self._calibrate_alone(values[members_half], columns[members_half])

    def _calibrate_alone(self, values, columns) -> None:
        """Calibrate each member that was fitted here for use by itself, too."""
        for name in self._fitted_here:
            detector = detector_of(self.named_defenders_[name])
            fitted = detector.module_
            survival = self._survival(values[:, self.member_names_.index(name)], columns)
            alone = DetectorModule(fitted.statistic, fitted.classes, survival)
            detector.module_ = eval_but(alone.to(module_device(fitted)), detector.classifier)

    def _survival(self, statistic, columns) -> ConformalSurvival:
        return ConformalSurvival.fit(statistic, columns, len(self.classes_))

    def _resolve_weights(self) -> np.ndarray:
        n_members = len(self.member_names_)
        if self.weights is None:
            if self.defenders is not None:
                return np.ones(n_members)
            say = {LATENT: 1 / (self.n_defenders or 1), "sparse": SPARSE_WEIGHT}
            return np.array(
                [say.get(name.rstrip("0123456789"), 1.0) for name in self.member_names_]
            )
        weights = check_array(self.weights, ensure_2d=False, dtype=float, input_name="weights")
        if weights.shape != (n_members,) or weights.min() < 0 or weights.max() == 0:
            raise ValueError(
                f"weights={self.weights} must be {n_members} numbers, none negative and not all "
                f"zero: one for each of {self.member_names_}."
            )
        return weights


def default_defender() -> LatentDefender:
    """Make the template of an ensemble's default latent defenders."""
    return LatentDefender(exploration_radius="auto", learning_rate=3e-3)


def _training_rows(member, rows: Rows, y: np.ndarray, train: np.ndarray):
    """Rows and classes for a member: a detector drops the others itself, a Pipeline would not."""
    if isinstance(member, Pipeline):
        if isinstance(rows.source, Dataset):
            return Subset(rows.source, train.tolist()), y[train]
        return rows.source[train], y[train]
    return rows.source, y
