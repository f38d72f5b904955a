"""Rows as they arrive: an image is saved, resized or blurred on its way to a classifier.

An attack that a channel undoes is none, and what the channel does to a clean row is no attack: of
adversarials those count that still fool the victim when they arrive, and whose clean row does not.
Clean rows come the same way, so that the channel is not taken for evidence of an attack.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from skmrr.evaluation.siege import WORST
from skmrr.evaluation.successes import CLEAN, Successes
from skmrr.harmless import bind
from skmrr.nn.rows import Rows
from skmrr.nn.tapped import Tapped
from skmrr.nn.trials import predict_labels
from skmrr.threshold import RiskMixin

ANY_CHANNEL = "any channel"
RAW = "raw"
BATCH_VALUES = 10_000_000  # of rows changed at a time

Decide = Callable[[np.ndarray], np.ndarray]
"""Rows → the victim's decisions."""


@dataclass(frozen=True)
class Arrived:
    """Clean rows and attacks at the end of one channel."""

    X: np.ndarray
    """Clean rows."""
    is_right: np.ndarray
    """Which of them the victim still takes for what they are."""
    attacks: dict[str, Successes]
    """Adversarials that still fool it, of rows that it still gets right without them."""

    @property
    def sets(self) -> dict[str, np.ndarray]:
        """Clean rows, and the successes of each attack that has any, by name."""
        successes = {name: attack.X for name, attack in self.attacks.items() if len(attack.X)}
        return {CLEAN: self.X, **successes}

    def without_rows(self) -> "Arrived":
        """Forget the clean rows, once they are scored."""
        return replace(self, X=self.X[:0])


def arrive(
    change: Callable,
    X,
    y: np.ndarray,
    attacks: Mapping[str, Successes],
    decide: Decide,
    clip_values: Sequence[float] | None,
) -> Arrived:
    """Send clean rows and attacks through a channel.

    Parameters
    ----------
    change : callable
        What the channel does to a batch, as `skmrr.harmless` has it.
    X : array-like of shape (n_samples, …)
        Clean rows.
    y : ndarray of shape (n_samples,)
        Their true classes.
    attacks : mapping of str to Successes
        Adversarials made from rows of X.
    decide : callable
        Rows → the victim's decisions.
    clip_values : tuple of float or None
        Range of the rows.
    """
    changed = pass_through(change, X, clip_values)
    is_right = decide(changed) == y
    still = {}
    for name, attack in attacks.items():
        odd = pass_through(change, attack.X, clip_values)
        fools = (decide(odd) != y[attack.rows]) & is_right[attack.rows]
        still[name] = Successes(
            odd[fools],
            attack.rows[fools],
            attack.attacked[is_right[attack.attacked]],
            attack.distortion[fools],
        )
    return Arrived(changed, is_right, still)


def pass_through(change: Callable, X, clip_values) -> np.ndarray:
    """Change all rows, batch by batch; those of a `skmrr.harmless.Change` always alike."""
    X = np.asarray(X)
    if len(X) == 0:
        return X
    bound = bind(change, clip_values, seed=0)
    size = max(1, BATCH_VALUES // max(1, X[0].size))
    parts = [bound(torch.as_tensor(X[k : k + size])).numpy() for k in range(0, len(X), size)]
    return np.concatenate(parts)


def decisions_of(detectors: Mapping[str, RiskMixin]) -> tuple[Decide, tuple | None] | None:
    """How to ask the first classifier among those of detectors, and the range of its rows.

    None where no detector has one.
    """
    for detector in detectors.values():
        classifier = getattr(detector, "classifier", None)
        if classifier is not None:
            return _asking(classifier, detector), detector.clip_values
    return None


def _asking(classifier, detector) -> Decide:
    tapped = Tapped(classifier)

    def decide(X: np.ndarray) -> np.ndarray:
        if len(X) == 0:
            return np.zeros(0, dtype=np.int64)
        rows = Rows(np.asarray(X), input_shape=detector.input_shape_)
        return predict_labels(tapped, rows, detector.batch_size_)

    return decide


def check_channels(channels: Mapping[str, Callable | None]) -> None:
    """Raise an error unless channels are a mapping of names to changes or None."""
    if not isinstance(channels, Mapping) or not channels:
        raise TypeError("channels must be a mapping of names to changes: {'raw': None, …}.")
    if taken := {ANY_CHANNEL, WORST} & set(channels):
        raise ValueError(f"No channel may be called {min(taken)!r}: that names other rows.")
