"""How a detector holds when the attacker knows it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import joblib
import numpy as np
import torch
from sklearn.utils.validation import check_memory
from torch import Tensor
from tqdm.auto import tqdm

from skmrr._sklearn import check_pandas_support
from skmrr.attacks import AttackResult, adaptive_suite, carlini_l2, worst_case
from skmrr.base import BaseDetector
from skmrr.evaluation.attacked_rows import (
    answers_to,
    as_rows,
    asked,
    classifier_of,
    clip_values_of,
)
from skmrr.evaluation.bounds import classes_within_reach
from skmrr.evaluation.impostors import impostor_scores
from skmrr.evaluation.metrics import share_of
from skmrr.evaluation.siege import WORST, Siege
from skmrr.harmless import bind

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AdaptiveEvaluation:
    """Outcome of `evaluate_adaptive`."""

    success: "pd.DataFrame"
    """A row for each attack, ε and SP: ``attack``, ``eps``, ``security_parameter``, ``n_rows``,
    ``success_rate`` with its 95 % interval ``low`` to ``high`` (Clopper and Pearson),
    ``robust_accuracy``: the share of all clean rows, the victim's errors included, that are right,
    accepted, and not broken, and ``impostor_rate``: the share of the attacked rows for which a
    wrong class passes as they are, see `impostor_rate`. The attack "worst case" counts a row that
    any attack breaks."""
    clean: "pd.DataFrame"
    """A row for each SP: ``accuracy``, ``false_alarms`` and ``accuracy_accepted`` on clean rows."""
    worst: dict[tuple[float, float], AttackResult]
    """By (ε, SP), each attacked row's adversarial, NaN where none was found."""
    rows: np.ndarray
    """Positions in X of the attacked rows: those the victim takes for what they are."""


def evaluate_adaptive(
    detector: BaseDetector,
    X,
    y,
    *,
    eps: Sequence[float],
    guides=None,
    attacks: Mapping | None = None,
    channel: Callable | None = None,
    security_parameters: Sequence[float] = (0.05, 0.5),
    n_attacked: int | None = None,
    per_attack: bool = False,
    trust_bounds: bool = False,
    memory: str | joblib.Memory | None = None,
    verbose: bool = False,
) -> AdaptiveEvaluation:
    """Attack a detector together with its classifier, at fixed thresholds.

    Success means that a row is misclassified and not flagged. Rows that the victim misclassifies
    by itself are not attacked.

    Parameters
    ----------
    detector : BaseDetector
        Fitted, calibrated, and with a ``classifier``.
    X : array-like of shape (n_samples, …)
        Clean test rows, in the scale of the detector's ``clip_values``.
    y : array-like of shape (n_samples,)
        True classes.
    eps : sequence of float
        Radii of the ball, in the units of X and the norm of the attacks (their ``norm``, "linf"
        where they have none). What breaks a row within one ball counts within the larger ones.
    guides : array-like of shape (n, …), optional
        Clean rows for attacks that start from one; by default X itself.
    attacks : mapping of str to callable, optional
        ``attack(network, x, labels, eps=, clip_values=, guides=)`` → `AttackResult`; by default
        `skmrr.attacks.adaptive_suite()`.
    channel : callable, optional
        Way on which rows reach classifier and detector, as `skmrr.harmless` has it, by default as
        they are. The attacker knows it and differentiates through it; success, like the clean
        columns, is what holds at its end.
    security_parameters : sequence of float, default=(0.05, 0.5)
        Thresholds. The success rates at 0.05 and 0.5 are known as SR@5 and SR@50.
    n_attacked : int, optional
        Number of rows to attack, the first that are taken for what they are; all by default.
    per_attack : bool, default=False
        Whether to run every attack on every row, and report each. Otherwise an attack only sees
        rows that those before it have not broken, which is faster and leaves the worst case alone.
    trust_bounds : bool, default=False
        Whether to leave out rows and target classes for which `certified_success_rate` rules
        success out. Attacks are then given ``targets=`` as well, as `ProjectedGradient` takes them.
    memory : str or joblib.Memory, optional
        Folder that keeps what each attack has found, 50 rows at a time, once it is whole: called
        again after an interruption, the same evaluation goes on from there. Attacks that draw
        random starts draw them for these rows by themselves.
    verbose : bool, default=False
        Whether to show a progress bar, of rows and attacks, with the time that is left.

    Returns
    -------
    AdaptiveEvaluation

    Raises
    ------
    ValueError
        If the detector has no classifier or no ``clip_values``, y does not fit, bounds are to be
        trusted through a channel, or an attack returns a row outside the ball or the
        ``clip_values``.

    References
    ----------
    O. Bryniarski et al., ICLR 2022, for SR@5 and SR@50; F. Tramèr et al., "On Adaptive Attacks to
    Adversarial Example Defenses", NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender
    >>> from skmrr.attacks import SelectivePGD
    >>> from skmrr.evaluation import evaluate_adaptive
    >>> X, y = load_digits(return_X_y=True)
    >>> X /= 16
    >>> net = torch.nn.Linear(64, 10)
    >>> defender = LatentDefender(classifier=net, max_epochs=2, clip_values=(0, 1), random_state=0)
    >>> outcome = evaluate_adaptive(
    ...     defender.fit(X[:1500], y[:1500]),
    ...     X[1500:],
    ...     y[1500:],
    ...     eps=[0.1, 0.5],
    ...     attacks={"selective": SelectivePGD(steps=5)},
    ... )
    >>> list(outcome.success["eps"])
    [0.1, 0.5, 0.1, 0.5]
    """
    pandas = check_pandas_support("evaluate_adaptive")
    clip_values_of(detector)
    x, labels, answers = asked(detector, X, y)
    arrived, ways = X, []
    if channel is not None:
        if trust_bounds:
            raise ValueError("Bounds are of rows as they are: set trust_bounds=False.")
        arrived, ways = bind(channel, detector.clip_values, seed=0)(x), [channel]
        answers = answers_to(detector, arrived)
    rows = torch.nonzero(answers == labels)[:, 0][:n_attacked]
    if len(rows) == 0:
        raise ValueError("The classifier takes no row for what it is; nothing can be attacked.")
    attacks = adaptive_suite() if attacks is None else attacks
    if WORST in attacks:
        raise ValueError(f"No attack may be called {WORST!r}: that names the worst of all.")
    params = {
        "clip_values": detector.clip_values,
        "guides": x if guides is None else as_rows(detector, guides),
    }
    eps = sorted(eps)
    siege = Siege(
        *(x[rows], labels[rows], attacks, eps, params),
        per_attack=per_attack,
        memory=check_memory(memory),
    )
    scores = torch.as_tensor(detector.score_samples(arrived)).to(x.device)
    attacked = as_rows(detector, arrived)[rows]
    impostors = impostor_scores(detector, attacked, labels[rows])
    records, worst = [], {}
    n_runs = len(attacks) * len(eps) * len(security_parameters) * len(rows)
    with tqdm(total=n_runs, desc="attacks", unit=" rows", smoothing=0, disable=not verbose) as bar:
        # What breaks a row under a larger SP, where more is flagged, or in a smaller ball breaks
        # it from then on.
        for sp, radius in product(sorted(security_parameters, reverse=True), eps):
            network = detector.defended_classifier(security_parameter=sp, channels=ways)
            targets = None
            if trust_bounds:
                targets = classes_within_reach(detector, siege.x, siege.labels, radius, sp)
            bar.set_postfix_str(f"ε {radius:g}, SP {sp:g}")
            results = siege.run(network, radius, targets, bar)
            worst[radius, sp] = results[WORST]
            stands = (answers == labels) & (scores >= np.log(sp))
            records += [
                {"attack": name, "eps": radius, "security_parameter": sp}
                | share_of(result.success.cpu().numpy(), "success_rate")
                | _robust(result.success, stands, rows)
                | {"impostor_rate": float((impostors >= np.log(sp)).double().mean())}
                for name, result in results.items()
            ]
    clean = [_clean(scores, answers == labels, sp) for sp in security_parameters]
    return AdaptiveEvaluation(
        pandas.DataFrame(records), pandas.DataFrame(clean), worst, rows.cpu().numpy()
    )


def _robust(success: Tensor, stands: Tensor, rows: Tensor) -> dict[str, float]:
    """Share of all clean rows that are right, accepted, and not broken."""
    broken = success & stands[rows]
    left_standing = 1 - float(broken.sum() / stands[rows].sum().clamp_min(1))
    return {"robust_accuracy": float(stands.double().mean()) * left_standing}


def evasion_cost(
    detector: BaseDetector,
    X,
    y,
    *,
    security_parameters: Sequence[float] = (0.01, 0.05),
    guides=None,
    n_attacked: int | None = None,
    **params,
) -> "pd.DataFrame":
    """How much farther a row must be changed to pass the detector too.

    Carlini and Wagner's attack, on the classifier alone and on both.

    Parameters
    ----------
    detector : BaseDetector
        Fitted, calibrated, and with a ``classifier``.
    X : array-like of shape (n_samples, …)
        Clean test rows.
    y : array-like of shape (n_samples,)
        True classes.
    security_parameters : sequence of float, default=(0.01, 0.05)
        Thresholds.
    guides : array-like of shape (n, …), optional
        Clean rows to start from as well; by default X itself.
    n_attacked : int, optional
        Number of rows to attack, the first that are taken for what they are; all by default.
    **params : dict
        Parameters of `carlini_l2`.

    Returns
    -------
    pandas.DataFrame
        A row for SP 0 (no detector) and for each SP: ``success_rate``; ``median_l2``, a failure
        counting as infinitely far; ``mean_l2`` of the successes; ``ratio``, the median of the rows'
        own ratios to the undefended distortion.
    """
    pandas = check_pandas_support("evasion_cost")
    clip_values_of(detector)
    x, labels, answers = asked(detector, X, y)
    rows = torch.nonzero(answers == labels)[:, 0][:n_attacked]
    bank = x if guides is None else as_rows(detector, guides)
    x, labels = x[rows], labels[rows]
    shared = {"clip_values": detector.clip_values, "guides": bank, **params}
    alone = carlini_l2(classifier_of(detector).network, x, labels, **shared)
    defended = {}
    for sp in security_parameters:
        network = detector.defended_classifier(security_parameter=sp)
        defended[sp] = carlini_l2(network, x, labels, **shared)
        alone = worst_case([alone, defended[sp]])  # what passes both fools the victim
    return pandas.DataFrame(
        [_cost(sp, result, alone) for sp, result in {0.0: alone, **defended}.items()]
    )


def _cost(sp: float, result: AttackResult, alone: AttackResult) -> dict[str, float]:
    return {
        "security_parameter": sp,
        "success_rate": float(result.success.double().mean()),
        "median_l2": float(np.median(result.distortion.cpu())),
        "mean_l2": float(result.distortion[result.success].mean()),
        "ratio": float(np.nanmedian((result.distortion / alone.distortion).cpu())),
    }


def _clean(scores: Tensor, is_right: Tensor, sp: float) -> dict[str, float]:
    accepted = scores >= np.log(sp)
    return {
        "security_parameter": sp,
        "accuracy": float(is_right.double().mean()),
        "false_alarms": float((~accepted).double().mean()),
        "accuracy_accepted": float(is_right[accepted].double().mean()),
    }
