"""Attacks of ART as a suite calls them: a classifier and numbers are all they need."""

import numpy as np
from art.attacks.evasion import (
    AutoAttack,
    AutoProjectedGradientDescent,
    HopSkipJump,
    SquareAttack,
)
from art.config import ART_NUMPY_DTYPE
from art.estimators.classification import PyTorchClassifier


def auto_attack(
    classifier: PyTorchClassifier,
    *,
    eps: float,
    steps: int,
    restarts: int,
    square_steps: int,
    batch_size: int,
) -> AutoAttack:
    """AutoAttack of three: APGD on the cross-entropy and on the logits' ratio, then Square.

    Each attacks the rows that those before it have left. The published one has also FAB and a
    targeted APGD, which ART does not have.
    """
    shared = {"eps": eps, "batch_size": batch_size, "verbose": False}
    gradual = {"eps_step": 2 * eps, "max_iter": steps, "nb_random_init": restarts, **shared}
    attacks = [
        AutoProjectedGradientDescent(classifier, loss_type=loss, **gradual)
        for loss in ("cross_entropy", "difference_logits_ratio")
    ]
    attacks.append(SquareAttack(classifier, max_iter=square_steps, **shared))
    return AutoAttack(classifier, eps=eps, attacks=attacks, batch_size=batch_size)


class StartedHopSkipJump(HopSkipJump):
    """HopSkipJump from rows of another class: a random other one of `x`, else noise.

    ART's own start is noise alone, which a detector flags, drawn by a generator without a seed.
    """

    def generate(self, x: np.ndarray, y: np.ndarray, **kwargs) -> np.ndarray:
        """Attack the rows that are classified as `y`; those without a start stay as they are.

        Parameters
        ----------
        x : ndarray of shape (n_samples, …)
            Rows.
        y : ndarray of shape (n_samples,)
            True classes.
        **kwargs : dict
            Handed to ART's attack.

        Returns
        -------
        ndarray of shape (n_samples, …)
        """
        found = x.copy()
        decisions = self._decide(x)
        starts, started = self._starts(x, decisions)
        rows = np.flatnonzero(started & (decisions == y))
        if len(rows):
            found[rows] = super().generate(x[rows], y[rows], x_adv_init=starts[rows], **kwargs)
        return found

    def _starts(self, x, decisions) -> tuple[np.ndarray, np.ndarray]:
        """Rows of other classes, and for which rows there is one."""
        starts, started = x.copy(), np.zeros(len(x), dtype=bool)
        low, high = self.estimator.clip_values
        for trial in range(self.init_size):
            left = np.flatnonzero(~started)
            if not len(left):
                break
            if trial % 2:
                candidates = np.random.uniform(low, high, x[left].shape)  # noqa: NPY002 - as ART
                candidates = candidates.astype(x.dtype)
                answers = self._decide(candidates)
            else:
                others = np.random.choice(len(x), len(left))  # noqa: NPY002
                candidates, answers = x[others], decisions[others]
            new = answers != decisions[left]
            starts[left[new]] = candidates[new]
            started[left[new]] = True
        return starts, started

    def _adversarial_satisfactory(self, samples, **kwargs) -> np.ndarray:
        # By numpy 2's rules ART's interpolation is in double precision, which torch refuses.
        return super()._adversarial_satisfactory(samples.astype(ART_NUMPY_DTYPE), **kwargs)

    def _decide(self, x) -> np.ndarray:
        return self.estimator.predict(x, batch_size=self.batch_size).argmax(1)
