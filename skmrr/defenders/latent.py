"""The latent defender: realigned features, one density per class, one calibrated risk."""

import copy
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal, cast

import torch
from torch import nn

from skmrr._sklearn import Interval, StrOptions
from skmrr.defenders.realigned import HALF, TRAINING, RealignedDefender
from skmrr.nn import densities
from skmrr.nn.densities import ClassMoments, QuadraticDensity
from skmrr.nn.exploration import BallExplorer, Explorer, RowsAlone
from skmrr.nn.latent_statistics import LatentContrast, LatentLikelihood, LatentMargin
from skmrr.nn.learnt_classes import LearntClasses
from skmrr.nn.placement import as_input, draw_seed, module_device, seeded
from skmrr.nn.replica import CosineMap, LatentMap, Replica
from skmrr.nn.rows import Rows
from skmrr.nn.tapped import Tapped, own_copy, shared_copy
from skmrr.nn.trials import explaining

COVARIANCE_BYTES = 2**28  # of the classes that a density is fitted on at a time


@dataclass(eq=False, repr=False)
class LatentDefender(RealignedDefender):
    """Detector of adversarial rows by where they lie in a latent space of their own.

    A latent map (by default a linear map of features, with ``module=replicate(classifier)`` a
    copy of the classifier itself) is fine-tuned on clean rows until classes are tight and apart
    on the unit sphere. A row that fools the classifier but not the map lies far from the class
    that the classifier names; that mismatch, calibrated on held-out clean rows, is the risk.

    The map learns y. Where the clean rows do not show all of the classifier's classes, it learns
    the classifier's softmax instead: so rows of a few classes teach how all are told apart.

    Parameters of the training, and its attributes, are those of
    `skmrr.defenders.realigned.RealignedDefender`; others that are not listed here are those of
    `BaseDetector`. A parameter that was set but has no effect raises a ``ValueError``.

    Parameters
    ----------
    module : nn.Module, optional
        Template of the latent map, rows → latent vectors, copied once per fit and never changed.
        A `skmrr.nn.LatentMap` (as `replicate` returns) is used as it is; any other network gets a
        cosine classifier on top. By default a square linear layer, for X of features.
    statistic : {"auto", "margin", "contrast", "likelihood"}, default="auto"
        How a row is judged under the classifier's label ŷ. ``margin``: max_{c≠ŷ} z_c − z_ŷ of the
        map's own logits z. ``contrast``: the same difference of log-densities. ``likelihood``:
        −log p(φ | ŷ), the published method. ``auto``: the margin, or with a single class the
        likelihood.
    density : {"ppca", "gaussian", "distance"}, default="ppca"
        Density of each class for contrast and likelihood: probabilistic PCA, a full Gaussian with
        OAS shrinkage, or the distance to the class mean in one PCA subspace.
    n_components : int or float, default=0.99
        Dimension of the subspace of ``ppca`` and ``distance``, or the share of variance it keeps.
        Without such a density it has no effect.
    realign : bool or "auto", default="auto"
        Whether to fine-tune the map. Without, the density alone is fitted. A single class leaves
        nothing to realign. ``"auto"``: unless it is a replica that sees smaller images than the
        classifier does. What fools the classifier seldom fools its copy at another size, and
        training the copy took from that in our measurements. The margin of a replica that was
        never trained is that of the network it is a copy of, whose features keep their norm.
    clustering : {"paper", "program"}, default="paper"
        Clustering loss of the text, or of the authors' released program.
    gamma : float, default=0.01
        Weight γ of the clustering loss beside the cross-entropy; of more than ten classes it is
        lowered in proportion, as the loss is a sum over classes.
    exploration_radius : "auto" or float, default=0.0
        Largest radius, in the units of X, of the ℓ∞ ball around each training row within which
        the map is also trained on the point where it is worst. ``"auto"`` is the size of ±ε noise
        that changes a twentieth of the classifier's decisions. Each time, each row's own radius
        is drawn uniformly. Takes the memory of another copy of the training rows.
    transfer_radius : "auto" or float, default=0.0
        Largest radius, in the units of X, of the ball within which the map is trained on the point
        where *the map it started from* is worst, for half of the rows where `exploration_radius`
        serves the other half. This is the published chain of defenders, each trained on what
        deceives the one before: a replica starts as a copy of the classifier, and learns not to
        share its weaknesses. ``"auto"`` is the size of ±ε noise that changes half of the
        classifier's decisions.
    exploration_steps : int, default=2
        Steps of gradient ascent that look for either point.

    See Also
    --------
    CertifiedDefender : Bounds over a whole ball instead of a search.

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

    _: KW_ONLY
    statistic: str = "auto"
    density: str = "ppca"
    n_components: float = 0.99
    realign: bool | Literal["auto"] = "auto"
    clustering: str = "paper"
    gamma: float = 0.01
    exploration_radius: float | Literal["auto"] = 0.0
    transfer_radius: float | Literal["auto"] = 0.0
    exploration_steps: int = 2

    _parameter_constraints: ClassVar[dict] = {
        **RealignedDefender._parameter_constraints,
        "statistic": [StrOptions({"auto", "margin", "contrast", "likelihood"})],
        "density": [StrOptions({"ppca", "gaussian", "distance"})],
        "n_components": [
            Interval(Integral, 1, None, closed="left"),
            Interval(Real, 0, 1, closed="neither"),
        ],
        "realign": ["boolean", StrOptions({"auto"})],
        "clustering": [StrOptions({"paper", "program"})],
        "gamma": [Interval(Real, 0, None, closed="left")],
        "exploration_radius": RealignedDefender._radius_constraint,
        "transfer_radius": RealignedDefender._radius_constraint,
        "exploration_steps": [Interval(Integral, 1, None, closed="left")],
    }

    _ensemble_classifier = cast(nn.Module | None, None)
    """Classifier of the ensemble whose member it is, while it is fitted."""

    @property
    def _realigns(self):
        return bool(self.realign)

    @property
    def _depends_on_rows(self) -> bool:
        """Whether it is for the rows to tell if anything is trained."""
        if self.realign != "auto" or not isinstance(self.module, Replica):
            return False
        return self.module.width == 1 and self.module.scale != 1  # a copy, at another size

    def _trains_on(self, rows: Rows) -> bool:
        """Whether fit trains the map on rows like these."""
        if not self._depends_on_rows:
            return self._realigns
        assert isinstance(self.module, Replica)
        with explaining("module", rows.shape):
            return self.module.scale_for(rows.take([0, 0])) == 1

    def _fit_statistic(self, rows, columns, train, random_state):
        learnt = LearntClasses(columns, train, len(self.classes_))
        statistic = self._resolve_statistic(len(learnt))
        is_trained = self._trains_on(rows)
        self._check_unused(statistic, is_trained)
        if self.transfer_radius != 0 and isinstance(self.module, Replica) and self.module.width < 1:
            raise ValueError(
                f"transfer_radius={self.transfer_radius!r} trains on what deceives the map that "
                "the training starts from, but a narrow replica starts from nothing: set "
                "transfer_radius=0, or width=1."
            )
        radius = reach = 0.0
        if is_trained:
            radius = self._resolve_radius(self.exploration_radius, rows, train, random_state)
            reach = self._resolve_radius(self.transfer_radius, rows, train, random_state, HALF)
        self.exploration_radius_, self.transfer_radius_ = radius, reach
        latent_map, centres = self._initial_map(rows, columns, train, random_state)
        self.history_: dict[str, list[float]] = {"loss": [], "held_out_loss": []}
        if is_trained and len(learnt) > 1:
            explorer: Explorer = RowsAlone()
            if radius > 0 or reach > 0:
                explorer = BallExplorer(
                    radius,
                    self.exploration_steps,
                    self.clip_values,
                    len(rows),
                    rows.shape,
                    former=_frozen_copy(latent_map) if reach > 0 else None,
                    transfer_radius=reach,
                )
            self.history_ = self._realign(
                latent_map,
                centres,
                explorer,
                (rows, columns, train),
                random_state,
                gamma=self.gamma,
                clustering=self.clustering,
                teacher=self._teacher(len(learnt)),
            )
        latent_map.requires_grad_(False)
        if statistic == "margin":
            if isinstance(self.module, Replica) and self.module.is_fresh and not is_trained:
                assert isinstance(latent_map, Replica)
                latent_map.checkpoint.is_natural = True
            margin = LatentMargin(latent_map)
            # A replica as wide as the classifier starts with all that it knows.
            is_taught = isinstance(latent_map, Replica) and latent_map.width == 1
            return margin if is_taught else learnt.confine(margin)
        kind = {"contrast": LatentContrast, "likelihood": LatentLikelihood}[statistic]
        density = self._fit_density(latent_map, rows, learnt, columns, train)
        return learnt.widen(kind(latent_map, density))

    def _teacher(self, n_learnt: int) -> Tapped | None:
        """Classifier that teaches the map, where the rows do not show all of its classes."""
        classifier = self._ensemble_classifier if self.classifier is None else self.classifier
        if classifier is None or n_learnt == len(self.classes_):
            return None
        return Tapped(classifier, device=self._device())

    def _count_logits(self, classifier, rows):
        if classifier is None and isinstance(self.module, LatentMap):
            latent_map = cast(LatentMap, own_copy(self.module)).eval()
            with explaining("module", rows.shape), torch.no_grad():
                x = as_input(rows.take([0, 0]), latent_map)
                return latent_map.features_and_logits(x)[1].shape[1]
        return super()._count_logits(classifier, rows)

    def _resolve_statistic(self, n_learnt: int) -> str:
        if n_learnt > 1:
            return "margin" if self.statistic == "auto" else self.statistic
        if self.statistic in ("margin", "contrast"):
            raise ValueError(
                f"statistic={self.statistic!r} compares classes, but the training rows are all of "
                "one class; give y with two classes at least, or use statistic='likelihood'."
            )
        return "likelihood"

    def _check_unused(self, statistic: str, is_trained: bool) -> None:
        if statistic == "margin":
            self._refuse_unused("density", because="a margin needs no density")
        if not self.realign:
            self._refuse_unused(
                *("clustering", "gamma", "exploration_radius", "transfer_radius", *TRAINING),
                because="realign=False trains nothing",
            )
        elif not is_trained:
            # The template of an ensemble's default has a learning rate and radii of "auto".
            radii = "exploration_radius", "transfer_radius"
            self._refuse_unused(
                *("clustering", "gamma", *(n for n in TRAINING if n != "learning_rate")),
                *(name for name in radii if getattr(self, name) != "auto"),
                because="a copy that sees smaller images is not trained unless realign=True",
            )
        if self.exploration_radius == 0 and self.transfer_radius == 0:
            self._refuse_unused(
                "exploration_steps", because="exploration_radius=0 and transfer_radius=0"
            )

    def _new_map(self, x, random_state) -> LatentMap:
        if isinstance(self.module, LatentMap):
            latent_map = own_copy(self.module)
            assert isinstance(latent_map, LatentMap)
            if isinstance(latent_map, Replica) and latent_map.width < 1:
                with seeded(draw_seed(random_state)):
                    latent_map.prepare(as_input(x, latent_map))
            return latent_map
        encoder = _identity(x[0].numel()) if self.module is None else shared_copy(self.module)
        with explaining("module", tuple(x.shape[1:])), torch.no_grad():
            dim = encoder(as_input(x[:2], encoder)).flatten(1).shape[1]
        return CosineMap(encoder if self.module is None else self.module, dim, len(self.classes_))

    @torch.no_grad()
    def _fit_density(self, latent_map, rows, learnt, columns, train) -> QuadraticDensity:
        """Density of each class that there are training rows of, some classes at a time."""
        dim = latent_map(as_input(rows.take(train[:1]), latent_map)).shape[1]
        has_own = self.density != "distance"  # a covariance of each class
        n_together = max(1, COVARIANCE_BYTES // (8 * dim**2)) if has_own else len(learnt)
        numbers = learnt.renumber(columns[train])
        parts = []
        for first in range(0, len(learnt), n_together):
            here = (numbers >= first) & (numbers < first + n_together)
            n_classes = min(n_together, len(learnt) - first)
            moments = ClassMoments(n_classes, dim, of_each=has_own)
            of_rows = torch.as_tensor(numbers[here] - first)
            for positions, batch in rows.batches(self.batch_size_, train[here]):
                moments.update(latent_map(as_input(batch, latent_map)), of_rows[positions])
            if self.density == "gaussian":
                parts.append(densities.gaussian(moments))
            else:
                parts.append(getattr(densities, self.density)(moments, self.n_components))
        density = parts[0] if len(parts) == 1 else QuadraticDensity.join(parts)
        return density.to(module_device(latent_map))


def _frozen_copy(latent_map: LatentMap) -> LatentMap:
    """Copy of a map as it is now."""
    return copy.deepcopy(latent_map).requires_grad_(False).eval()


def _identity(dim: int) -> nn.Sequential:
    """Square linear map that starts as the identity, in double precision as features are few."""
    layer = nn.Linear(dim, dim, dtype=torch.float64)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)
