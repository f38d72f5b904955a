"""Pictures of what the evaluations found: numbers first, drawn by `plot`, as scikit-learn's are."""

from skmrr.evaluation.displays.cost_front import CostDisplay
from skmrr.evaluation.displays.monitoring import RiskMonitorDisplay
from skmrr.evaluation.displays.risk import RiskHistogramDisplay
from skmrr.evaluation.displays.roc import DetectionRocDisplay
from skmrr.evaluation.displays.success import SuccessCurveDisplay

__all__ = [
    "CostDisplay",
    "DetectionRocDisplay",
    "RiskHistogramDisplay",
    "RiskMonitorDisplay",
    "SuccessCurveDisplay",
]
