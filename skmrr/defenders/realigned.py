"""Detectors that train a latent map: what the latent and the certified defender share."""

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr._sklearn import Interval, StrOptions
from skmrr.base import StatisticDetector
from skmrr.callbacks import current
from skmrr.nn.exploration import Explorer
from skmrr.nn.learnt_classes import OfLearntClasses
from skmrr.nn.placement import as_input, draw_seed
from skmrr.nn.realignment import Realigner
from skmrr.nn.replica import LatentMap, class_means
from skmrr.nn.rows import Rows
from skmrr.nn.tapped import Tapped
from skmrr.nn.tolerance import noise_tolerance
from skmrr.nn.trials import explaining
from skmrr.nn.wording import shortened

TWENTIETH, HALF = 0.05, 0.5  # shares of the decisions that noise of a radius "auto" changes
MAX_TOLERANCE_ROWS = 1000  # training rows that exploration_radius="auto" is measured on
MAX_SAMPLE_ROWS = 1024  # training rows that a map is initialised on
MAX_VALUES = 2**25  # of rows that are looked at together: 200 images of 224×224 pixels
TRAINING = (  # parameters without effect where nothing is trained
    *("max_epochs", "max_time", "learning_rate", "training_batch_size"),
    *("early_stopping", "validation_fraction", "n_iter_no_change"),
)


@dataclass(eq=False, repr=False)
class RealignedDefender(StatisticDetector):
    """Base of detectors that train a latent map; a subclass says which, and on what.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    module : nn.Module, optional
        Template of the latent map, copied once per fit and never changed.
    max_epochs : int, default=20
        Passes over the training rows.
    max_time : float, optional
        Minutes that the training may take. Where that is less than `max_epochs` take, the whole
        cycle of the training is run through in this time; what comes out then depends on the
        machine.
    learning_rate : float, default=1e-3
        Peak of Adam's, in one cycle.
    early_stopping : bool, default=False
        Whether to hold out clean training rows and stop when their loss does not fall. Exploring,
        it waits until the ball has its full size.
    validation_fraction : float, default=0.1
        Share of the training rows held out by `early_stopping`.
    n_iter_no_change : int, default=3
        Epochs without a fall that end the training.
    warm_start : bool, default=False
        Whether fit goes on from the map of the last fit.
    training_batch_size : int, default=64
        Rows per training step.

    Attributes
    ----------
    exploration_radius_ : float or None
        The radius in use; None where an `IntervalMap` needs none.
    history_ : dict of str to list of float
        Training loss of each epoch and, with `early_stopping`, the clean held-out loss.
    """

    module: nn.Module | None = None
    _: KW_ONLY
    classifier: nn.Module | None = field(default=None, kw_only=True)
    max_epochs: int = 20
    max_time: float | None = None
    learning_rate: float = 1e-3
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 3
    warm_start: bool = False
    training_batch_size: int = 64

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "module": [nn.Module, None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "training_batch_size": [Interval(Integral, 1, None, closed="left")],
    }
    _radius_constraint: ClassVar[list] = [
        StrOptions({"auto"}),
        Interval(Real, 0, None, closed="left"),
    ]

    @property
    @abstractmethod
    def _realigns(self) -> bool:
        """Whether fit trains the map."""

    @property
    def _n_parts(self):
        return self.max_epochs if self._realigns else 0

    @abstractmethod
    def _new_map(self, x: torch.Tensor, random_state) -> LatentMap:
        """Untrained latent map, of the right size for the rows `x`."""

    def _resolve_radius(self, radius, rows, train, random_state, share=TWENTIETH) -> float:
        """Size of ±ε noise that changes a share of the classifier's decisions, for ``"auto"``."""
        if radius != "auto":
            return radius
        if self.classifier is None:
            raise ValueError(
                "A radius of 'auto' measures how much noise the classifier bears: give "
                "classifier=…, or a number."
            )
        return measure_tolerance(
            self.classifier, rows, train, self.clip_values, random_state, share
        )

    def _initial_map(self, rows, columns, train, random_state) -> tuple[LatentMap, torch.Tensor]:
        """Map to be trained, or the last one (`warm_start`), and its means of learnt classes."""
        device = self._device()
        sample = _balanced_sample(train, columns, random_state)
        x, classes = rows.take(sample), torch.as_tensor(columns[sample], device=device)
        if self.warm_start and hasattr(self, "evidence_"):
            latent_map = self._last_map()
        else:
            latent_map = self._new_map(x, random_state)
            latent_map.to(device)
            if not any(part.ndim == 5 for part in latent_map.parameters()):  # none of volumes
                # Convolutions train about 1.5 times as fast in this layout, to the same values.
                latent_map.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        latent_map.requires_grad_(True).eval()
        x = as_input(x, latent_map)
        with explaining("module", tuple(x.shape[1:])):
            some = _n_together(x[0])
            step = math.ceil(len(x) / some)  # the sample goes class by class
            latent_map.initialise(x[::step], classes[::step], len(self.classes_))
            with torch.no_grad():
                learnt, numbers = classes.unique(return_inverse=True)
                features = torch.cat([latent_map(part) for part in x.split(some)])
                return latent_map, class_means(features, numbers, len(learnt))

    def _last_map(self) -> LatentMap:
        evidence = self.evidence_
        if not np.array_equal(evidence.classes.cpu(), self.classes_):
            raise ValueError(
                f"warm_start goes on from classes {shortened(evidence.classes.tolist())}, but the "
                f"rows are of classes {shortened(self.classes_)}; set warm_start=False."
            )
        return copy.deepcopy(self.latent_map_)

    @property
    def latent_map_(self) -> LatentMap:
        """The fitted latent map, rows → unit features and logits."""
        statistic = self.statistic_
        if isinstance(statistic, OfLearntClasses):
            statistic = statistic.statistic
        return statistic.latent_map

    def _realign(
        self,
        latent_map: LatentMap,
        centres: torch.Tensor,
        explorer: Explorer,
        data: tuple[Rows, np.ndarray, np.ndarray],
        random_state,
        *,
        gamma: float,
        clustering: str = "paper",
        teacher: Tapped | None = None,
    ) -> dict[str, list[float]]:
        """Train the map on `data`: rows, class columns, positions of the training rows."""
        rows, columns, train = data
        learnt = torch.as_tensor(np.unique(columns[train]))
        held_out = train[:0]
        if self.early_stopping:
            train, held_out = train_test_split(
                train, test_size=self.validation_fraction, random_state=random_state
            )
        else:
            self._refuse_unused(
                "validation_fraction", "n_iter_no_change", because="early_stopping=False"
            )
        realigner = Realigner(
            latent_map,
            centres,
            learnt=learnt,
            gamma=gamma,
            clustering=clustering,
            explorer=explorer,
            teacher=teacher,
            learning_rate=self.learning_rate,
            max_epochs=self.max_epochs,
            max_time=self.max_time,
            batch_size=self.training_batch_size,
            task=current(self),
            verbose=self.verbose,
        )
        return realigner.fit(
            rows,
            torch.as_tensor(columns),
            train,
            held_out,
            patience=self.n_iter_no_change,
            seed=draw_seed(random_state),
        )


def measure_tolerance(
    classifier: nn.Module,
    rows: Rows,
    train: np.ndarray,
    clip_values: Sequence | None,
    random_state,
    share: float = TWENTIETH,
) -> float:
    """Measure on a thousand training rows what noise changes a share of the decisions."""
    n_rows = min(MAX_TOLERANCE_ROWS, _n_together(rows.take(train[:1])[0]))
    x = rows.take(random_state.permutation(train)[:n_rows])
    generator = torch.Generator().manual_seed(draw_seed(random_state))
    return noise_tolerance(classifier, x, clip_values, share=share, generator=generator)


def _n_together(row: torch.Tensor) -> int:
    """Rows that are looked at together."""
    return max(2, MAX_VALUES // row.numel())


def _balanced_sample(train: np.ndarray, columns: np.ndarray, random_state) -> np.ndarray:
    """About a thousand training rows, as many of each class as there are."""
    shuffled = random_state.permutation(train)
    n_classes = columns[train].max() + 1
    quota = max(1, MAX_SAMPLE_ROWS // n_classes)
    return np.concatenate([shuffled[columns[shuffled] == c][:quota] for c in range(n_classes)])
