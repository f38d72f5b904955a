"""Measuring detectors: scorers for scikit-learn's model selection, and the metrics they use."""

from skmrr.evaluation.metrics import false_alarm_interval, tpr_at_fpr
from skmrr.evaluation.scorers import (
    average_precision_scorer,
    balanced_accuracy_scorer,
    roc_auc_scorer,
    tpr_at_fpr_scorer,
)

__all__ = [
    "average_precision_scorer",
    "balanced_accuracy_scorer",
    "false_alarm_interval",
    "roc_auc_scorer",
    "tpr_at_fpr",
    "tpr_at_fpr_scorer",
]
