"""Pictures of what the evaluations found: numbers first, drawn by `plot`, as scikit-learn's are."""

from skmrr.evaluation.displays.cost import CostDisplay
from skmrr.evaluation.displays.det import DetectionDetDisplay
from skmrr.evaluation.displays.evasion import EvasionCostDisplay
from skmrr.evaluation.displays.risk import RiskHistogramDisplay
from skmrr.evaluation.displays.roc import DetectionRocDisplay
from skmrr.evaluation.displays.success import SuccessCurveDisplay
from skmrr.evaluation.displays.tpr import TprAtFprDisplay

__all__ = [
    "CostDisplay",
    "DetectionDetDisplay",
    "DetectionRocDisplay",
    "EvasionCostDisplay",
    "RiskHistogramDisplay",
    "SuccessCurveDisplay",
    "TprAtFprDisplay",
]
