"""Rows on which attacks fooled the victim: nothing else is there to be detected."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from skmrr.attacks import AttackResult
from skmrr.evaluation.siege import WORST

CLEAN = "clean"


@dataclass(frozen=True)
class Successes:
    """The rows on which an attack fooled the victim."""

    X: np.ndarray
    """Adversarial rows, shape (n_successes, …)."""
    rows: np.ndarray
    """Positions of the clean rows that they were made from, shape (n_successes,)."""
    attacked: np.ndarray
    """Positions of all rows that the attack began from, shape (n_attacked,)."""
    distortion: np.ndarray
    """Norm of each row's change, as the attack measures it."""

    @classmethod
    def of(cls, result: AttackResult, rows) -> "Successes":
        """Successes of an attack on the clean rows at the positions `rows`."""
        success = result.success.cpu().numpy()
        return cls(
            result.adversarial[result.success].cpu().numpy(),
            np.asarray(rows)[success],
            np.asarray(rows),
            result.distortion.cpu().numpy()[success],
        )

    @property
    def n_attacked(self) -> int:
        """Number of rows attacked."""
        return len(self.attacked)


def check_attacks(attacks: Mapping[str, Successes], is_right: np.ndarray) -> None:
    """Raise an error unless attacks are successes on rows that the victim gets right."""
    if not isinstance(attacks, Mapping) or not all(
        isinstance(attack, Successes) for attack in attacks.values()
    ):
        raise TypeError(
            "attacks must be a mapping of names to skmrr.evaluation.Successes, which know the row "
            "of X that each adversarial was made from."
        )
    if taken := {CLEAN, WORST} & set(attacks):
        raise ValueError(f"No attack may be called {min(taken)!r}: that names other rows.")
    if not any(len(attack.X) for attack in attacks.values()):
        raise ValueError("No attack has a success to detect; attack more rows, or harder.")
    for name, attack in attacks.items():
        if len(attack.rows) != len(attack.X) or not np.isin(attack.rows, attack.attacked).all():
            raise ValueError(
                f"The rows of {name} must be positions in X, one for each success, and among "
                "those attacked."
            )
        if not np.isin(attack.attacked, range(len(is_right))).all():
            raise ValueError(f"The rows that {name} attacked must be positions in X.")
        if not is_right[attack.attacked].all():
            raise ValueError(
                f"{name} holds rows that the victim misclassifies without any attack; attack only "
                "those that it takes for what they are."
            )


def common_rows(attacks: Mapping[str, Successes]) -> np.ndarray:
    """Positions of the rows that all attacks began from."""
    return reduce(np.intersect1d, (attack.attacked for attack in attacks.values()))


def worst_scores(
    attacks: Iterable[tuple[np.ndarray, np.ndarray]], among: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each row that any attack broke, the score of the success that looks most normal.

    Parameters
    ----------
    attacks : iterable of (rows, scores)
        Of each attack the positions of the rows it broke, and their scores.
    among : ndarray of int
        Positions of the rows that count.

    Returns
    -------
    rows, scores : ndarray of shape (n_rows_broken,)
    """
    rows, scores = (np.concatenate(part) for part in zip(*attacks, strict=True))
    counts = np.isin(rows, among)
    broken, index = np.unique(rows[counts], return_inverse=True)
    worst = np.full(len(broken), -np.inf)
    np.maximum.at(worst, index, scores[counts])
    return broken, worst
