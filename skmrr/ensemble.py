"""The ensemble: many defenders, one risk, one promise of false alarms."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch, check_random_state
from sklearn.utils.validation import check_is_fitted
from tqdm.auto import tqdm

from skmrr._sklearn import BaseComposition, Interval, StrOptions, check_pandas_support
from skmrr.base import BaseDetector, StatisticDetector
from skmrr.calibration import ConformalSurvival
from skmrr.callbacks import current
from skmrr.defenders.defaults import default_defenders
from skmrr.defenders.latent import LatentDefender
from skmrr.defenders.margin import MarginDetector
from skmrr.defenders.realigned import HALF, TWENTIETH, measure_tolerance
from skmrr.distributed import as_frame, is_dask_array
from skmrr.joining import as_statistic, detector_of, is_frozen, unfrozen
from skmrr.networks import Packed
from skmrr.nn.chain import move_apart
from skmrr.nn.conditioning import ConditionalSurvival, LocalScale
from skmrr.nn.fusion import Alone, CalibratedFusion, FusionRule
from skmrr.nn.members import Members
from skmrr.nn.placement import draw_seed, seeded
from skmrr.nn.rows import Rows
from skmrr.nn.statistic import MarginStatistic
from skmrr.threshold import ADVERSARIAL, risk_of

Member = tuple[str, Any, float]


@dataclass(eq=False, repr=False)
class MRREnsemble(BaseComposition, BaseDetector):
    """Ensemble of defenders: members' risks fused into one, whose threshold is a false-alarm rate.

    The classifier is asked once per batch, and all members see that pass. Each gives a p-value by
    clean rows; a fusion of these is calibrated anew on clean rows that no member was calibrated
    on, so that P(false alarm) ≤ `security_parameter` for any number of members. With a
    `MarginDetector` among the members, the p-value of a member that depends on the margin is taken
    among clean rows of about the same margin: a defender's doubts mean less where the classifier
    has them too.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    layer : str, optional
        Checkpoint of the default latent defenders, as `replicate` takes it.
    defenders : list of (str, estimator, float), optional
        Members: name, detector or Pipeline that ends in one, weight w_k ≥ 0. By default those of
        ``default_defenders(classifier, latent=estimator, layer=layer)``. Each is cloned and fitted,
        unless frozen by ``sklearn.frozen.FrozenEstimator``: then it is used as it is. It takes from
        the ensemble what it has not been given: ``clip_values``, ``input_shape``, ``device`` and
        seed, a `MarginDetector` the classifier too. A Pipeline that begins with a
        `FeatureExtractor` of `classifier` costs no pass of its own.
    estimator : LatentDefender, optional
        Template of the default latent defenders.
    fusion : {"noisy_or", "harmonic", "max"}, default="noisy_or"
        From p-values p_k to one: Fisher's Σ w_k log p_k, the noisy-OR of the risks 1 − p_k; their
        harmonic mean, in which a member that sees nothing takes less from one that does; or the
        smallest p_k / w_k. Changed on a fitted ensemble it counts from the next `calibrate` on.
    chain : "gradient" or float, optional
        Whether each latent defender is trained on rows moved along the gradient of those before
        it: by ``"gradient"`` itself, as published, or by steps of that length, in the units of X,
        along its signs. By default they are trained independently of each other.
    calibration_fraction : float, default=0.2
        Share of the clean rows that `fit` holds out to calibrate on, half of them the members,
        half the fusion; 0 leaves that to `calibrate`. With frozen members alone there is nothing
        else to fit, and all rows calibrate.
    n_jobs : int, optional
        Members fitted at a time, as joblib counts them: None is 1, -1 all processors.

    Attributes
    ----------
    named_defenders_ : Bunch
        Fitted members by name.
    member_names_ : list of str
        Names of the members.
    weights_ : ndarray of shape (n_members,)
        Their weights.

    See Also
    --------
    default_defenders : The default members, with more settings.

    References
    ----------
    B. D. Rouhani, M. Samragh, T. Javidi, F. Koushanfar, "Safe Machine Learning and Defeating
    Adversarial Attacks", IEEE Security & Privacy 2019.

    R. A. Fisher, "Statistical Methods for Research Workers", 1925, for Σ log p.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender, MRREnsemble, default_defenders
    >>> X, y = load_digits(return_X_y=True)
    >>> members = default_defenders(latent=LatentDefender(max_epochs=2), n_latent=3)
    >>> ensemble = MRREnsemble(defenders=members, random_state=0).fit(X[:1500] / 16, y[:1500])
    >>> list(ensemble.named_defenders_)
    ['latent_0', 'latent_1', 'latent_2']
    >>> ensemble.member_risks(X[1500:] / 16).shape
    (297, 3)
    """

    layer: str | None = None
    _: KW_ONLY
    defenders: Sequence[Member] | None = None
    estimator: LatentDefender | None = None
    fusion: str = "noisy_or"
    chain: float | Literal["gradient"] | None = None
    n_jobs: int | None = None

    _parameter_constraints: ClassVar[dict] = {
        **BaseDetector._parameter_constraints,
        "layer": [str, None],
        "defenders": [list, None],
        "estimator": [LatentDefender, None],
        "fusion": [StrOptions({"noisy_or", "harmonic", "max"})],
        "chain": [StrOptions({"gradient"}), Interval(Real, 0, None, closed="neither"), None],
        "n_jobs": [Integral, None],
    }
    _calibrated_apart: ClassVar[bool] = True

    @property
    def _named_members(self) -> list[tuple[str, Any]]:
        """Members without their weights, as scikit-learn's compositions have them."""
        if not _are_members(self.defenders):
            return []  # what they are instead is for `fit` to say
        return [(name, member) for name, member, _ in self.defenders or ()]

    @_named_members.setter
    def _named_members(self, named) -> None:
        weights = [weight for *_, weight in self.defenders or ()]
        self.defenders = [(*pair, weight) for pair, weight in zip(named, weights, strict=True)]

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
        return self._get_params("_named_members", deep=deep)

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
        if "defenders" in params:
            self.defenders = params.pop("defenders")
        return self._set_params("_named_members", **params)

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
        log_survivals = self._judge(X, labels)[2]
        if is_dask_array(X):
            return as_frame(risk_of(log_survivals), self.member_names_)
        return pandas.DataFrame(
            risk_of(log_survivals),
            columns=self.member_names_,
            index=X.index if isinstance(X, pandas.DataFrame) else None,
        )

    @property
    def _trains(self) -> bool:
        """Whether any member is still to be fitted."""
        return not all(is_frozen(member) for _, member, _ in self._members())

    def _members(self) -> Sequence[Member]:
        """Members in use, before they are fitted.

        Raises
        ------
        ValueError
            If there is none, names are not unique or hold ``"__"``, or the weights mean nothing.
        TypeError
            If they are no triples, or hold something else than detectors.
        """
        if self.defenders is None:
            return default_defenders(self.classifier, latent=self.estimator, layer=self.layer)
        self._refuse_unused("layer", "estimator", because="defenders=… names the members")
        if not self.defenders:
            raise ValueError("defenders=[] names no member; give one at least, or None.")
        if not _are_members(self.defenders):
            raise TypeError(
                "defenders must hold triples: defenders=[('name', detector, weight), …]."
            )
        self._validate_names([name for name, *_ in self.defenders])
        for name, member, _ in self.defenders:
            if detector_of(member).harmless is not None and not is_frozen(member):
                raise ValueError(
                    f"Member {name!r} has harmless=…, but the ensemble calibrates its members: "
                    "give harmless to the ensemble."
                )
        weights = [weight for *_, weight in self.defenders]
        if not all(isinstance(w, Real) and np.isfinite(w) and w >= 0 for w in weights) or not any(
            weights
        ):
            raise ValueError(
                f"The members' weights {weights} must be numbers, none negative and not all zero."
            )
        return self.defenders

    @property
    def _n_parts(self):
        return None if self.defenders is None else len(self.defenders)

    def _check_shape(self, shape):
        for _, member, _ in self._members() if self.defenders is not None else ():
            if not isinstance(member, Pipeline) and not is_frozen(member):
                member._check_shape(tuple(member.input_shape or shape))

    def _fit_members(self, rows, columns, train, random_state):
        members = self._members()
        self.member_names_ = [name for name, *_ in members]
        self.weights_ = np.array([float(weight) for *_, weight in members])
        prepared = self._prepared([member for _, member, _ in members], rows, train, random_state)
        for member in prepared:
            if is_frozen(member):
                check_is_fitted(detector_of(member), "evidence_")
        y = np.full(len(rows), ADVERSARIAL)
        y[train] = self.classes_[columns[train]]
        fit = self._fit_apart if self.chain is None else self._fit_chain
        fitted = fit(prepared, rows, y, train)
        self._fitted_here = [not is_frozen(member) for member in prepared]
        self.named_defenders_ = Bunch(
            **dict(zip(self.member_names_, map(unfrozen, fitted), strict=True))
        )
        statistics = [
            as_statistic(member, self.classifier, rows.shape, self.classes_)
            for member in self.named_defenders_.values()
        ]
        return Members(statistics, rows.shape)

    def _prepared(self, members, rows, train, random_state) -> list:
        """Clones of the members, given what they take from the ensemble."""
        members = [clone(member) for member in members]
        new = [(detector_of(m), isinstance(m, Pipeline)) for m in members if not is_frozen(m)]
        latent = [detector for detector, _ in new if isinstance(detector, LatentDefender)]
        measured = [
            detector
            for detector in latent
            if "auto" in (detector.exploration_radius, detector.transfer_radius)
            and detector._trains_on(rows)
        ]
        for name, share in (("exploration_radius", TWENTIETH), ("transfer_radius", HALF)):
            explorers = [detector for detector in measured if getattr(detector, name) == "auto"]
            if explorers and self.classifier is not None:  # measured once for all
                radius = measure_tolerance(
                    self.classifier, rows, train, self.clip_values, random_state, share
                )
                for explorer in explorers:
                    explorer.set_params(**{name: radius})
        for detector, is_piped in new:
            seed = draw_seed(random_state)
            if detector.random_state is None:
                detector.set_params(random_state=seed)
            detector._rows_at_once = self._rows_at_once
            if detector.device == "auto":
                detector.set_params(device=self.device)
            if detector.clip_values is None and not is_piped:
                detector.set_params(clip_values=self.clip_values)
            detector.set_params(calibration_fraction=0.0)
        return members

    def _fit_apart(self, members, rows, y, train) -> list:
        """Fit the members independently of each other."""
        new = [member for member in members if not is_frozen(member)]
        classifier = Packed({"classifier": self.classifier})  # on its way to other processes
        jobs = (
            delayed(_fit_sent)(member, classifier, rows, y, train, self.classes_) for member in new
        )
        fitted = Parallel(n_jobs=self.n_jobs, return_as="generator")(jobs)
        is_alone = effective_n_jobs(self.n_jobs) == 1  # members tell callbacks of their own parts
        results = []
        with tqdm(total=len(new), disable=not self.verbose) as bar:
            for name, member in zip(self.member_names_, members, strict=True):
                if is_frozen(member):
                    results.append(member)
                    continue
                bar.set_description(f"fitting {name}")
                with self._part(name, member if is_alone else None):
                    results.append(next(fitted))
                bar.update()
        return results

    def _part(self, name: str, member):
        """Part of the fit, in which a member tells callbacks of its own parts."""
        begins = isinstance(member, StatisticDetector)  # `_fit_member` does not call its fit
        return current(self).part(name, member, begins=begins)

    def _fit_chain(self, members, rows, y, train) -> list:
        """Fit one after the other, each latent defender on rows that those before it have moved."""
        moved = rows.take(train)
        numbers = torch.as_tensor(np.unique(y[train], return_inverse=True)[1])
        named = zip(self.member_names_, members, strict=True)
        bar = tqdm(named, total=len(members), desc="fitting members", disable=not self.verbose)
        for name, member in bar:
            with self._part(name, None if is_frozen(member) else member):
                moved = self._fit_link(member, rows, y, train, moved, numbers)
        return members

    def _fit_link(self, member, rows, y, train, moved, numbers) -> torch.Tensor:
        """Fit a member of the chain, and return where the rows have moved after it."""
        if isinstance(member, LatentDefender):
            here = Rows(moved.numpy(), trusted=True)
            every = np.arange(len(moved))
            _fit_member(member, self.classifier, here, y[train], every, self.classes_)
            moved = move_apart(
                moved,
                numbers,
                member.latent_map_,
                step=None if self.chain == "gradient" else self.chain,
                clip_values=self.clip_values,
                batch_size=self.batch_size_,
            )
        elif not is_frozen(member):
            _fit_member(member, self.classifier, rows, y, train, self.classes_)
        return moved

    def _fit_calibration(self, values, columns):
        """Calibrate the members on one half of the rows, the fusion on the other."""
        order = check_random_state(self.random_state).permutation(len(values))
        members_half, fusion_half = np.split(order, [len(values) // 2])
        survival = self._fit_survival(values[members_half], columns[members_half])
        rule = FusionRule(self.fusion, torch.as_tensor(self.weights_))
        of_fusion = torch.as_tensor(values[fusion_half]).flatten(0, 1)
        is_judged = of_fusion.isfinite()
        with torch.no_grad():
            log_survivals = survival(
                torch.where(is_judged, of_fusion, 0.0),
                torch.as_tensor(columns[fusion_half]).flatten(),
            )
        is_whole = (is_judged | (rule.weights == 0)).all(1)
        oddness = torch.where(is_whole, rule(log_survivals), torch.inf).numpy()
        fused = oddness.reshape(*columns[fusion_half].shape, 1)
        whole = ConformalSurvival.fit(fused, columns[fusion_half], len(self.classes_))
        self._calibrate_alone(values[members_half], columns[members_half])
        return survival, CalibratedFusion(rule, whole)

    def _fit_survival(self, values, columns):
        """Log-survival of each member, given the classifier's margin where that is one of them."""
        margins = [
            k
            for k, statistic in enumerate(self.evidence_.members)
            if isinstance(statistic, MarginStatistic)
        ]
        n_members = values.shape[2]
        if not margins or n_members == 1:
            return ConformalSurvival.fit(values, columns, len(self.classes_))
        scale = LocalScale.fit(values.reshape(-1, n_members), margins[0])
        scaled = scale(torch.as_tensor(values).flatten(0, 1)).view(values.shape).numpy()
        survival = ConformalSurvival.fit(scaled, columns, len(self.classes_))
        return ConditionalSurvival(scale, survival)

    def _calibrate_alone(self, values, columns) -> None:
        """Calibrate each member that was fitted here for use by itself, too."""
        for k, member in enumerate(self.named_defenders_.values()):
            if self._fitted_here[k]:
                detector = detector_of(member)
                statistic = values[..., k : k + 1]
                survival = ConformalSurvival.fit(statistic, columns, len(self.classes_))
                detector._complete(survival, Alone())


def _are_members(defenders) -> bool:
    """Whether members are triples."""
    return isinstance(defenders, list) and all(
        isinstance(member, tuple) and len(member) == 3 for member in defenders
    )


def _fit_sent(member, packed: Packed, *args):
    """Fit a member where it has been sent, with its classifier."""
    return _fit_member(member, packed.state["classifier"], *args)


def _fit_member(member, classifier, rows: Rows, y, train: np.ndarray, classes: np.ndarray):
    """Fit a member on rows that the ensemble has read and checked."""
    if isinstance(member, StatisticDetector):
        if isinstance(member, MarginDetector):
            member.set_params(classifier=classifier)
        if isinstance(member, LatentDefender):
            member._ensemble_classifier = classifier
        shaped = rows.shaped(member.input_shape or rows.input_shape)
        random_state = check_random_state(member.random_state)
        with seeded(draw_seed(check_random_state(member.random_state))):  # as in `fit`
            member._fit_evidence(shaped, y, train, random_state, classes)
        member.__dict__.pop("_ensemble_classifier", None)
        return member
    return member.fit(rows.part(train), y[train])
