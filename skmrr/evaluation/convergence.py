"""Whether attacks have been given enough steps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from skmrr._sklearn import check_pandas_support
from skmrr.attacks import adaptive_suite
from skmrr.base import BaseDetector
from skmrr.evaluation.adaptive import evaluate_adaptive

if TYPE_CHECKING:
    import pandas as pd

BY = ["attack", "eps", "security_parameter"]


def success_by_effort(
    detector: BaseDetector,
    X,
    y,
    *,
    eps: Sequence[float],
    attacks: Mapping | None = None,
    **params,
) -> "pd.DataFrame":
    """Success of each attack with half its steps and with all of them.

    A rate that still grows from half to all is no measure of a detector: give the attack more.
    One point or less may be taken for the end. It takes three halves of `evaluate_adaptive` with
    ``per_attack=True``.

    Parameters
    ----------
    detector : BaseDetector
        Fitted, calibrated, and with a ``classifier``.
    X : array-like of shape (n_samples, …)
        Clean test rows.
    y : array-like of shape (n_samples,)
        True classes.
    eps : sequence of float
        Radii of the ball.
    attacks : mapping of str to callable, optional
        Attacks of `skmrr.attacks`, or others with a method ``with_effort(factor)``; by default
        `skmrr.attacks.adaptive_suite()`.
    **params : dict
        Other parameters of `evaluate_adaptive`.

    Returns
    -------
    pandas.DataFrame
        A row for each attack, the worst case among them, ε and SP: ``attack``, ``eps``,
        ``security_parameter``, ``n_rows``, ``half`` and ``full``, the success rates, and ``gain``,
        ``full − half``, both as shares. A gain may be negative, as shorter searches are not the
        beginnings of longer ones.

    Raises
    ------
    TypeError
        If an attack has no method ``with_effort``.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender
    >>> from skmrr.attacks import SelectivePGD
    >>> from skmrr.evaluation import success_by_effort
    >>> X, y = load_digits(return_X_y=True)
    >>> X /= 16
    >>> net = torch.nn.Linear(64, 10)
    >>> defender = LatentDefender(classifier=net, max_epochs=2, clip_values=(0, 1), random_state=0)
    >>> table = success_by_effort(
    ...     defender.fit(X[:1500], y[:1500]), X[1500:], y[1500:], eps=[0.1],
    ...     security_parameters=[0.05], attacks={"selective": SelectivePGD(steps=10)},
    ... )
    >>> list(table["attack"])
    ['selective', 'worst case']
    """
    check_pandas_support("success_by_effort")
    attacks = adaptive_suite() if attacks is None else attacks
    without = [name for name, attack in attacks.items() if not hasattr(attack, "with_effort")]
    if without:
        raise TypeError(
            f"There is no half of {', '.join(without)}: give attacks a method "
            "with_effort(factor) that returns the same attack with so many times the steps."
        )
    halves = {name: attack.with_effort(0.5) for name, attack in attacks.items()}
    half, full = (
        evaluate_adaptive(
            detector, X, y, **{**params, "eps": eps, "attacks": some, "per_attack": True}
        ).success.set_index(BY)
        for some in (halves, attacks)
    )
    table = full[["n_rows"]].assign(half=half["success_rate"], full=full["success_rate"])
    return table.assign(gain=table["full"] - table["half"]).reset_index()
