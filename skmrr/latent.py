"""The latent defender: realigned features, one density per class, one calibrated risk."""

import copy
from numbers import Integral, Real
from typing import cast

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from skmrr.base import BaseDetector
from skmrr.nn import densities
from skmrr.nn.densities import ClassMoments, QuadraticDensity
from skmrr.nn.detector import LatentStatistic
from skmrr.nn.exploration import Explorer, IntervalExplorer
from skmrr.nn.hooks import as_input, evaluating, explaining, module_device, resolve_device
from skmrr.nn.inference import noise_tolerance
from skmrr.nn.intervals import CertifiedStatistic, IntervalMap
from skmrr.nn.realignment import Realigner
from skmrr.nn.replica import CosineMap, LatentMap, class_means

MAX_TOLERANCE_ROWS = 1000  # training rows that exploration_radius="auto" is measured on


class LatentDefender(BaseDetector):
    """Detector of adversarial rows by where they lie in a latent space of their own.

    A latent map (by default a linear map of features, with ``module=replicate(classifier)`` a
    copy of the classifier itself) is fine-tuned on clean rows until classes are tight and apart
    on the unit sphere. A row that fools the classifier but not the map lies far from the class
    that the classifier names; that mismatch, calibrated on held-out clean rows, is the risk.

    Parameters
    ----------
    module : nn.Module, optional
        Template of the latent map, rows → latent vectors, copied once per fit and never changed.
        A `skmrr.nn.LatentMap` (as `replicate` returns) is used as it is; any other network gets a
        cosine classifier on top. By default a square linear layer, for X of features.
    classifier : nn.Module, optional
        The victim, rows of X → logits. It is only asked for its decisions.
    density : {"ppca", "gaussian", "distance"}, default="ppca"
        Density of each class: probabilistic PCA, a full Gaussian with OAS shrinkage, or the
        distance to the class mean in one PCA subspace.
    n_components : int or float, default=0.99
        Dimension of the subspace of ``ppca`` and ``distance``, or the share of variance it keeps.
    statistic : {"auto", "margin", "contrast", "likelihood", "certified"}, default="auto"
        How a row is judged under the classifier's label ŷ. ``margin``: max_{c≠ŷ} z_c − z_ŷ of the
        map's own logits z. ``contrast``: the same difference of log-densities. ``likelihood``:
        −log p(φ | ŷ), the published method. ``certified``: an upper bound of the margin over a
        whole ball around the row, which no attack gets around; it needs an `exploration_radius`
        and a `module` of plain layers, of which a fresh copy is trained by such bounds instead of
        a search for worst points. ``auto``: the margin, or with a single class the likelihood.
    realign : bool, default=True
        Whether to fine-tune the map. Without, the density alone is fitted. A single class leaves
        nothing to realign.
    clustering : {"paper", "program"}, default="paper"
        Clustering loss of the text, or of the authors' released program.
    gamma : float, default=0.01
        Weight γ of the clustering loss beside the cross-entropy. ``statistic="certified"``, which
        looks at logits alone, is trained without.
    exploration_radius : "auto" or float, default=0.0
        Largest radius, in the units of X, of the ℓ∞ ball around each training row within which
        the map is also trained on the point where it is worst. ``"auto"`` is the size of ±ε noise
        that changes a twentieth of the classifier's decisions. Each time, each row's own radius
        is drawn uniformly. No attack on the classifier is used. Takes the memory of another copy
        of the training rows.
    exploration_steps : int, default=2
        Steps of gradient ascent that look for that point.
    certified_radius : "auto" or float, default="auto"
        Radius of the ball of ``statistic="certified"``; ``"auto"`` is half of
        `exploration_radius`.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``. Exploration stays in it; other values raise an error.
    max_epochs : int, default=20
        Passes over the training rows.
    learning_rate : float, default=1e-3
        Peak of a one-cycle schedule of Adam.
    early_stopping : bool, default=False
        Whether to hold out clean training rows and stop when their loss does not fall. Exploring,
        it waits until the ball has its full size, two fifths into the training.
    validation_fraction : float, default=0.1
        Share of the training rows held out by `early_stopping`.
    n_iter_no_change : int, default=3
        Epochs without a fall that end the training.
    warm_start : bool, default=False
        Whether fit goes on from the map of the last fit.
    security_parameter : float, default=0.01
        Share of clean rows that may be flagged. Changing it on a fitted detector changes the
        verdicts and nothing else.
    calibration_fraction : float, default=0.2
        Share of the clean rows that `fit` holds out to calibrate on; 0 leaves that to `calibrate`.
    input_shape : tuple of int, optional
        Shape that each row of a 2-D X has for the networks, e.g. ``(1, 28, 28)``.
    training_batch_size : int, default=64
        Rows per training step.
    batch_size : int, default=512
        Rows per forward pass elsewhere. Scores do not depend on it.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` is where `module` lives.
    random_state : int, RandomState or None, default=None
        Seed of split, shuffling and exploration.
    verbose : bool, default=False
        Whether to show a progress bar.

    Attributes
    ----------
    module_ : skmrr.nn.DetectorModule
        The fitted detector, ``forward(x, labels)`` → score, differentiable.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    statistic_, exploration_radius_ : str, float
        The statistic and the radius in use.
    history_ : dict of str to list of float
        Training loss of each epoch and, with `early_stopping`, the clean held-out loss.
    offset_ : float
        Threshold on the score, log(`security_parameter`).
    n_features_in_, input_shape_ : int, tuple of int
        Values in a row of X; shape of a row as the networks see it.

    References
    ----------
    B. D. Rouhani, M. Samragh, M. Javaheripi, T. Javidi, F. Koushanfar, "DeepFense", ICCAD 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender
    >>> X, y = load_digits(return_X_y=True)
    >>> defender = LatentDefender(max_epochs=3, random_state=0).fit(X[:1500] / 16, y[:1500])
    >>> risk = defender.risk(X[1500:] / 16)
    >>> bool(risk.min() >= 0 and risk.max() <= 1)
    True
    """

    _parameter_constraints: dict = {
        **BaseDetector._parameter_constraints,
        "module": [nn.Module, None],
        "density": [StrOptions({"ppca", "gaussian", "distance"})],
        "n_components": [
            Interval(Integral, 1, None, closed="left"),
            Interval(Real, 0, 1, closed="neither"),
        ],
        "statistic": [StrOptions({"auto", "margin", "contrast", "likelihood", "certified"})],
        "realign": ["boolean"],
        "clustering": [StrOptions({"paper", "program"})],
        "gamma": [Interval(Real, 0, None, closed="left")],
        "exploration_radius": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "exploration_steps": [Interval(Integral, 1, None, closed="left")],
        "certified_radius": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "training_batch_size": [Interval(Integral, 1, None, closed="left")],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        module=None,
        *,
        classifier=None,
        density="ppca",
        n_components=0.99,
        statistic="auto",
        realign=True,
        clustering="paper",
        gamma=0.01,
        exploration_radius=0.0,
        exploration_steps=2,
        certified_radius="auto",
        clip_values=None,
        max_epochs=20,
        learning_rate=1e-3,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=3,
        warm_start=False,
        security_parameter=0.01,
        calibration_fraction=0.2,
        input_shape=None,
        training_batch_size=64,
        batch_size=512,
        device="auto",
        random_state=None,
        verbose=False,
    ):
        self.module = module
        self.classifier = classifier
        self.density = density
        self.n_components = n_components
        self.statistic = statistic
        self.realign = realign
        self.clustering = clustering
        self.gamma = gamma
        self.exploration_radius = exploration_radius
        self.exploration_steps = exploration_steps
        self.certified_radius = certified_radius
        self.clip_values = clip_values
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.security_parameter = security_parameter
        self.calibration_fraction = calibration_fraction
        self.input_shape = input_shape
        self.training_batch_size = training_batch_size
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _fit_statistic(self, rows, columns, train, random_state):
        self.statistic_ = self._resolve_statistic()
        self.exploration_radius_ = self._resolve_radius(rows, train, random_state)
        if self.statistic_ == "certified":
            self._check_certified()
        device = resolve_device(self.device, self.module)
        sample = _balanced_sample(train, columns, random_state)
        x, classes = rows.take(sample), torch.as_tensor(columns[sample], device=device)
        latent_map = self._initial_map(x, classes, device, random_state)
        self.history_: dict[str, list[float]] = {"loss": [], "held_out_loss": []}
        if self.realign and len(self.classes_) > 1:
            with evaluating(latent_map), torch.no_grad():
                features = latent_map(as_input(x, latent_map, device))
            centres = class_means(features, classes, len(self.classes_))
            self.history_ = self._realign(latent_map, centres, rows, columns, train, random_state)
        if self.statistic_ == "certified":
            radius = self.certified_radius
            radius = self.exploration_radius_ / 2 if radius == "auto" else radius
            interval_map = cast(IntervalMap, latent_map.requires_grad_(False))
            return CertifiedStatistic(interval_map, radius, self.clip_values)
        density = None
        if self.statistic_ != "margin":
            density = self._fit_density(latent_map, rows, columns, train)
        return LatentStatistic(latent_map.requires_grad_(False), self.statistic_, density)

    def _resolve_statistic(self) -> str:
        if len(self.classes_) > 1:
            return "margin" if self.statistic == "auto" else self.statistic
        if self.statistic in ("margin", "contrast", "certified"):
            raise ValueError(
                f"statistic={self.statistic!r} compares classes, but the training rows are all of "
                "one class; give y with two classes at least, or use statistic='likelihood'."
            )
        return "likelihood"

    def _resolve_radius(self, rows, train, random_state) -> float:
        if self.exploration_radius != "auto":
            return self.exploration_radius
        if self.classifier is None:
            raise ValueError(
                "exploration_radius='auto' measures how much noise the classifier bears: give "
                "classifier=…, or a number."
            )
        return noise_tolerance(
            self.classifier,
            rows.take(random_state.permutation(train)[:MAX_TOLERANCE_ROWS]),
            self.clip_values,
            batch_size=self.batch_size,
            generator=torch.Generator().manual_seed(random_state.randint(2**31 - 1)),
        )

    def _initial_map(self, x, classes, device, random_state) -> LatentMap:
        """Untrained latent map of the right size on `device`, or the last one (`warm_start`)."""
        if self.warm_start and hasattr(self, "module_"):
            fitted = cast(LatentStatistic | CertifiedStatistic, self.module_.statistic)
            if not np.array_equal(self.module_.classes.cpu(), self.classes_):
                raise ValueError(
                    f"warm_start goes on from classes {self.module_.classes.tolist()}, but the "
                    f"rows are of classes {self.classes_.tolist()}; set warm_start=False."
                )
            return copy.deepcopy(fitted.latent_map).requires_grad_(True)
        n_classes = len(self.classes_)
        if self.statistic_ == "certified" or isinstance(self.module, LatentMap):
            latent_map = self._copied_map(random_state)
            if self.classes_[-1] != n_classes - 1:
                raise ValueError(
                    f"The rows are of classes {self.classes_.tolist()}, but the replica numbers "
                    f"its classes from 0 without a gap; give clean rows of every class."
                )
        else:
            encoder = _identity(x[0].numel()) if self.module is None else self.module
            with (
                explaining("module", tuple(x.shape[1:])),
                evaluating(encoder, device=device),
                torch.no_grad(),
            ):
                dim = encoder(as_input(x[:2], encoder, device)).flatten(1).shape[1]
            latent_map = CosineMap(encoder, dim, n_classes)
        # Convolutions train about 1.5 times as fast in this layout; the values are the same.
        latent_map.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        latent_map.requires_grad_(True)
        with explaining("module", tuple(x.shape[1:])), evaluating(latent_map):
            latent_map.initialise(as_input(x, latent_map, device), classes, n_classes)
        return latent_map

    def _check_certified(self) -> None:
        if self.realign and not self.exploration_radius_:
            raise ValueError(
                "statistic='certified' bounds a ball that the map was trained on: give "
                "exploration_radius=…."
            )
        if not self.realign and not isinstance(self.module, IntervalMap):
            raise ValueError(
                "statistic='certified' with realign=False reads bounds of an IntervalMap that was "
                "trained before; give one as module=…, or leave realign=True."
            )
        if not self.exploration_radius_ and self.certified_radius == "auto":
            raise ValueError("Without an exploration_radius, certified_radius must be a number.")

    def _copied_map(self, random_state) -> LatentMap:
        if self.statistic_ != "certified" or isinstance(self.module, IntervalMap):
            return copy.deepcopy(self.module)
        if self.module is None or isinstance(self.module, LatentMap):
            kind = "none" if self.module is None else type(self.module).__name__
            raise ValueError(
                f"statistic='certified' needs module=…, a network of plain layers from rows to "
                f"logits (such as a small classifier, untrained); got {kind}."
            )
        generator = torch.Generator().manual_seed(random_state.randint(np.iinfo(np.int32).max))
        return IntervalMap(self.module, generator)

    def _realign(self, latent_map, centres, rows, columns, train, random_state):
        held_out = train[:0]
        if self.early_stopping:
            train, held_out = train_test_split(
                train, test_size=self.validation_fraction, random_state=random_state
            )
        explorer: Explorer | IntervalExplorer | None = None
        if self.statistic_ == "certified":
            explorer = IntervalExplorer(self.exploration_radius_, self.clip_values)
        elif self.exploration_radius_ > 0:
            explorer = Explorer(self.exploration_radius_, self.exploration_steps, self.clip_values)
        realigner = Realigner(
            latent_map,
            centres,
            gamma=0.0 if self.statistic_ == "certified" else self.gamma,
            clustering=self.clustering,
            explorer=explorer,
            learning_rate=self.learning_rate,
            max_epochs=self.max_epochs,
            batch_size=self.training_batch_size,
            verbose=self.verbose,
        )
        return realigner.fit(
            rows,
            torch.as_tensor(columns),
            train,
            held_out,
            patience=self.n_iter_no_change,
            seed=random_state.randint(np.iinfo(np.int32).max),
        )

    def _fit_density(self, latent_map, rows, columns, train) -> QuadraticDensity:
        device = module_device(latent_map)
        with evaluating(latent_map), torch.no_grad():
            dim = latent_map(as_input(rows.take(train[:1]), latent_map, device)).shape[1]
            moments = ClassMoments(len(self.classes_), dim)
            for positions, batch in rows.batches(self.batch_size, train):
                features = latent_map(as_input(batch, latent_map, device))
                moments.update(features, torch.as_tensor(columns[train[positions]]))
        if self.density == "gaussian":
            density = densities.gaussian(moments)
        else:
            density = getattr(densities, self.density)(moments, self.n_components)
        return density.to(device)


def _identity(dim: int) -> nn.Sequential:
    """Square linear map that starts as the identity, in double precision as features are few."""
    layer = nn.Linear(dim, dim, dtype=torch.float64)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)


def _balanced_sample(train: np.ndarray, columns: np.ndarray, random_state) -> np.ndarray:
    """About a thousand training rows, as many of each class as there are."""
    shuffled = random_state.permutation(train)
    n_classes = columns[train].max() + 1
    quota = max(1, 1024 // n_classes)
    return np.concatenate([shuffled[columns[shuffled] == c][:quota] for c in range(n_classes)])
