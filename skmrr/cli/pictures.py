"""Pictures of a report: the displays of `skmrr.evaluation`, and rows that are images."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from skmrr.cli.decoding import import_pillow
from skmrr.cli.measures import Measures
from skmrr.cli.page import Picture
from skmrr.evaluation import (
    DetectionRocDisplay,
    RiskHistogramDisplay,
    SuccessCurveDisplay,
)
from skmrr.evaluation.successes import CLEAN

SIZE = (7.2, 4.0)  # inches
DPI = 110
LARGEST_SIDE = 192  # pixels of a row that is shown


def risk_histogram(measures: Measures, security_parameter: float) -> Picture | None:
    """Risks of clean rows, and of all that fooled the classifier."""
    clean, odd = _scores(measures)
    if not odd:
        return None
    attacked = np.concatenate(list(odd.values()))
    figure, ax = _axes()
    RiskHistogramDisplay.from_predictions(
        _classes(clean, attacked),
        np.r_[clean, attacked],
        security_parameters=[security_parameter],
        name="all attacks",
        ax=ax,
    )
    return Picture(_png(figure), "Histogram of the risk of clean and of attacked rows")


def roc_curves(measures: Measures) -> Picture | None:
    """Share of each attack that is flagged, by the false-alarm rate."""
    clean, odd = _scores(measures)
    if not odd:
        return None
    figure, ax = _axes()
    for name, scores in odd.items():
        DetectionRocDisplay.from_predictions(
            _classes(clean, scores), np.r_[clean, scores], name=name, ax=ax
        )
    ax.legend(loc="lower right", fontsize="small")
    return Picture(_png(figure), "ROC curve of each attack on the classifier")


def success_curve(measures: Measures) -> Picture:
    """How often who knows the detector gets past it, by how far rows may be changed."""
    figure, ax = _axes()
    SuccessCurveDisplay.from_evaluation(measures.adaptive, ax=ax)
    return Picture(_png(figure), "Success of attacks that know the detector against ε")


def shown(row: np.ndarray, clip_values: Sequence[float], words: str, lines: list[str]) -> Picture:
    """Show a row of shape (channels, height, width)."""
    Image, _ = import_pillow()
    low, high = clip_values
    levels = np.clip((row - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    image = Image.fromarray(levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return Picture(file.getvalue(), words, lines)


def _scores(measures: Measures) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores of the clean rows, and of each attack's successes."""
    if measures.detection is None:
        return measures.scores, {}
    frame, flagged = measures.detection.scores, measures.detection.flagged
    odd = {
        kind: frame.loc[frame["attack"] == kind, "score"].to_numpy()
        for kind in flagged["rows"].unique()
        if not kind.startswith(CLEAN)
    }
    return measures.scores, odd


def _classes(clean: np.ndarray, odd: np.ndarray) -> np.ndarray:
    return np.repeat([0, -1], [len(clean), len(odd)])


def _axes():
    figure = Figure(SIZE, layout="constrained")  # none of pyplot's, which would keep it
    return figure, figure.add_subplot()


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
