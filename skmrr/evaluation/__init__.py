"""Measuring detectors: scorers for scikit-learn's model selection, and the metrics they use."""

from skmrr.evaluation.adaptive import (
    AdaptiveEvaluation,
    evaluate_adaptive,
    evasion_cost,
)
from skmrr.evaluation.bounds import certified_success_rate
from skmrr.evaluation.convergence import success_by_effort
from skmrr.evaluation.costs import fitted_bytes, scoring_cost
from skmrr.evaluation.displays import (
    CostDisplay,
    DetectionRocDisplay,
    RiskHistogramDisplay,
    RiskMonitorDisplay,
    SuccessCurveDisplay,
)
from skmrr.evaluation.flagging import flag_rates
from skmrr.evaluation.frames import DetectionEvaluation, over_seeds
from skmrr.evaluation.impostors import impostor_rate
from skmrr.evaluation.metrics import auc_interval, false_alarm_interval, tpr_at_fpr
from skmrr.evaluation.protocol import check_disjoint, evaluate_detection
from skmrr.evaluation.scorers import (
    average_precision_scorer,
    balanced_accuracy_scorer,
    roc_auc_scorer,
    tpr_at_fpr_scorer,
)
from skmrr.evaluation.successes import Successes

__all__ = [
    "AdaptiveEvaluation",
    "CostDisplay",
    "DetectionEvaluation",
    "DetectionRocDisplay",
    "RiskHistogramDisplay",
    "RiskMonitorDisplay",
    "SuccessCurveDisplay",
    "Successes",
    "auc_interval",
    "average_precision_scorer",
    "balanced_accuracy_scorer",
    "certified_success_rate",
    "check_disjoint",
    "evaluate_adaptive",
    "evaluate_detection",
    "evasion_cost",
    "false_alarm_interval",
    "fitted_bytes",
    "flag_rates",
    "impostor_rate",
    "over_seeds",
    "roc_auc_scorer",
    "scoring_cost",
    "success_by_effort",
    "tpr_at_fpr",
    "tpr_at_fpr_scorer",
]
