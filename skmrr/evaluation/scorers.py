"""Scorers for ``cross_val_score`` and ``GridSearchCV``, each with the right sign.

In y a row of class −1 is adversarial and any other class is clean. scikit-learn's own "roc_auc"
string takes the label 1 as the positive one and so turns the ranking around where 1 marks
adversarial rows; these scorers do not depend on such a choice. Split by ``StratifiedKFold``: a
plain ``KFold`` over sorted rows leaves folds without an adversarial row.
"""

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    make_scorer,
    roc_auc_score,
)

from skmrr.evaluation.metrics import tpr_at_fpr
from skmrr.threshold import ADVERSARIAL


def _is_adversarial(y) -> np.ndarray:
    is_adversarial = np.asarray(y) == ADVERSARIAL
    if is_adversarial.all() or not is_adversarial.any():
        kind = "only" if is_adversarial.all() else "no"
        raise ValueError(
            f"y holds {kind} adversarial rows (class -1), so nothing can be compared; score on "
            "both kinds, e.g. with StratifiedKFold."
        )
    return is_adversarial


def _roc_auc(y, decision):
    return roc_auc_score(_is_adversarial(y), -decision)


def _average_precision(y, decision):
    return average_precision_score(_is_adversarial(y), -decision)


def _tpr_at_fpr(y, decision, *, fpr):
    is_adversarial = _is_adversarial(y)
    return tpr_at_fpr(decision[~is_adversarial], decision[is_adversarial], fpr)


def _balanced_accuracy(y, verdict):
    return balanced_accuracy_score(_is_adversarial(y), verdict == ADVERSARIAL)


roc_auc_scorer = make_scorer(_roc_auc, response_method="decision_function")
"""Area under the ROC curve of adversarial against clean rows."""

average_precision_scorer = make_scorer(_average_precision, response_method="decision_function")
"""Average precision of the adversarial class."""

balanced_accuracy_scorer = make_scorer(_balanced_accuracy)
"""Mean of the shares of clean rows passed and adversarial rows flagged at the threshold."""


def tpr_at_fpr_scorer(fpr: float):
    """Scorer of the share of adversarial rows caught at a false-alarm rate.

    Parameters
    ----------
    fpr : float
        Share of clean rows that may be flagged, in (0, 1).

    Returns
    -------
    callable
        ``scorer(estimator, X, y)``.

    Examples
    --------
    >>> from skmrr.evaluation import tpr_at_fpr_scorer
    >>> scorer = tpr_at_fpr_scorer(0.05)
    """
    return make_scorer(_tpr_at_fpr, response_method="decision_function", fpr=fpr)
