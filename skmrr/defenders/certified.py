"""The certified defender: a margin bounded over a whole ball, which no attack gets around."""

from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import ClassVar, Literal

import torch

from skmrr._sklearn import Interval, StrOptions
from skmrr.defenders.realigned import TRAINING, RealignedDefender
from skmrr.nn.exploration import IntervalExplorer
from skmrr.nn.intervals import CertifiedStatistic, IntervalMap
from skmrr.nn.learnt_classes import LearntClasses
from skmrr.nn.placement import as_input, draw_seed
from skmrr.nn.replica import LatentMap
from skmrr.nn.tapped import own_copy, shared_copy
from skmrr.nn.trials import explaining


@dataclass(eq=False, repr=False)
class CertifiedDefender(RealignedDefender):
    """Detector whose statistic bounds another class's lead over a whole ball around a row.

    A network of plain layers is trained by interval bounds over a ball around each row. A row is
    odd under the classifier's label ŷ by the upper bound of max_{c≠ŷ} z_c − z_ŷ over a ball around
    it, z being the network's logits: no point that an attacker may choose escapes the bound.
    `skmrr.evaluation.certified_success_rate` says what it rules out.

    Parameters of the training, and its attributes, are those of
    `skmrr.defenders.realigned.RealignedDefender`; others that are not listed here are those of
    `BaseDetector`. A parameter that was set but has no effect raises a ``ValueError``.

    Parameters
    ----------
    module : nn.Module
        Network of plain layers, rows → logits, such as a small classifier. Fresh weights are drawn
        for a copy of it, and trained. A `skmrr.nn.IntervalMap`, trained before, is used as it is.
    exploration_radius : "auto" or float, optional
        Radius, in the units of X, of the ball that the network is trained on; ``"auto"`` is the
        size of ±ε noise that changes a twentieth of the classifier's decisions. An `IntervalMap`
        needs none.
    certified_radius : "auto" or float, default="auto"
        Radius of the ball that the statistic is bounded over; ``"auto"`` is half of
        `exploration_radius`.

    See Also
    --------
    LatentDefender : A search for the worst point instead of bounds.

    References
    ----------
    S. Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably
    Robust Models", arXiv:1810.12715, 2018.

    Examples
    --------
    >>> import torch
    >>> from skmrr import CertifiedDefender
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> defender = CertifiedDefender(
    ...     network, exploration_radius=0.1, max_epochs=3, clip_values=(0, 1), random_state=0
    ... ).fit(X[:1500], y[:1500])
    >>> defender.risk(X[1500:]).shape
    (297,)
    """

    _: KW_ONLY
    exploration_radius: float | Literal["auto"] | None = None
    certified_radius: float | Literal["auto"] = "auto"

    _parameter_constraints: ClassVar[dict] = {
        **RealignedDefender._parameter_constraints,
        "exploration_radius": [
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="neither"),
            None,
        ],
        "certified_radius": RealignedDefender._radius_constraint,
    }

    @property
    def _realigns(self):
        return not isinstance(self.module, IntervalMap)

    def _fit_statistic(self, rows, columns, train, random_state):
        self._check_radii()
        learnt = LearntClasses(columns, train, len(self.classes_))
        if len(learnt) == 1:
            raise ValueError(
                "A margin compares classes, but the training rows are all of one class; give y "
                "with two classes at least."
            )
        self.exploration_radius_ = self._resolve_radius(
            self.exploration_radius, rows, train, random_state
        )
        latent_map, centres = self._initial_map(rows, columns, train, random_state)
        assert isinstance(latent_map, IntervalMap)
        self.history_: dict[str, list[float]] = {"loss": [], "held_out_loss": []}
        if self.exploration_radius_ is not None:
            self.history_ = self._realign(
                latent_map,
                centres,
                IntervalExplorer(self.exploration_radius_, self.clip_values),
                (rows, columns, train),
                random_state,
                gamma=0.0,  # logits alone are looked at
            )
        radius = self.certified_radius
        radius = self.exploration_radius_ / 2 if radius == "auto" else radius
        latent_map.requires_grad_(False)
        statistic = CertifiedStatistic(latent_map, radius, self.clip_values)
        return learnt.confine(statistic) if self._realigns else statistic

    def _count_logits(self, classifier, rows):
        if classifier is not None or self.module is None:
            return super()._count_logits(classifier, rows)
        network = shared_copy(self.module)
        with explaining("module", rows.shape), torch.no_grad():
            x = as_input(rows.take([0, 0]), network)
            if isinstance(network, IntervalMap):
                return network.features_and_logits(x)[1].shape[1]
            return network(x).shape[1]

    def _check_radii(self) -> None:
        if not self._realigns:
            self._refuse_unused(
                *("exploration_radius", *TRAINING, "warm_start"),
                because="an IntervalMap is used as it is, without any training",
            )
            if self.certified_radius == "auto":
                raise ValueError("certified_radius must be a number with an IntervalMap.")
            return
        if self.module is None or isinstance(self.module, LatentMap):
            kind = "none" if self.module is None else type(self.module).__name__
            raise ValueError(
                "A CertifiedDefender needs module=…, a network of plain layers from rows to "
                f"logits (such as a small classifier, untrained); got {kind}."
            )
        if self.exploration_radius is None:
            raise ValueError(
                "A CertifiedDefender bounds a ball that its network was trained on: give "
                "exploration_radius=…."
            )

    def _new_map(self, x, random_state) -> LatentMap:
        if isinstance(self.module, IntervalMap):
            latent_map = own_copy(self.module)
            assert isinstance(latent_map, LatentMap)
            return latent_map
        assert self.module is not None
        generator = torch.Generator().manual_seed(draw_seed(random_state))
        return IntervalMap(self.module, generator)
