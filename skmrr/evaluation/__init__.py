"""Measuring detectors: scorers for scikit-learn's model selection, and the metrics they use."""

from skmrr.evaluation.adaptive import (
    AdaptiveEvaluation,
    evaluate_adaptive,
    evasion_cost,
    flag_rates,
)
from skmrr.evaluation.certified import certified_success_rate
from skmrr.evaluation.metrics import false_alarm_interval, tpr_at_fpr
from skmrr.evaluation.scorers import (
    average_precision_scorer,
    balanced_accuracy_scorer,
    roc_auc_scorer,
    tpr_at_fpr_scorer,
)

__all__ = [
    "AdaptiveEvaluation",
    "average_precision_scorer",
    "balanced_accuracy_scorer",
    "certified_success_rate",
    "evaluate_adaptive",
    "evasion_cost",
    "false_alarm_interval",
    "flag_rates",
    "roc_auc_scorer",
    "tpr_at_fpr",
    "tpr_at_fpr_scorer",
]
