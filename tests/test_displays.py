import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from scipy.stats import binomtest
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skmrr import LatentDefender, RiskMonitor
from skmrr.evaluation import (
    AdaptiveEvaluation,
    CostDisplay,
    DetectionRocDisplay,
    RiskHistogramDisplay,
    RiskMonitorDisplay,
    SuccessCurveDisplay,
)

OF_SCORES = [DetectionRocDisplay, RiskHistogramDisplay]
COSTS = pd.DataFrame(
    {
        "detector": ["cheap", "beaten", "good", "dear", "tied"],
        "score_cost": [1.0, 3.0, 2.0, 20.0, 20.0],
        "auc": [0.7, 0.8, 0.9, 0.95, 0.95],
    }
)


@pytest.fixture(autouse=True)
def _closed():
    """Draw without a screen, and leave no figure open."""
    before = matplotlib.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.fixture
def scored(rng):
    """Classes, the last hundred rows adversarial, and log-survivals, some tied."""
    scores = np.log(np.r_[rng.uniform(size=400), rng.beta(0.2, 2, size=100)].round(3) + 1e-3)
    return np.r_[rng.integers(0, 10, 400), np.full(100, -1)], np.minimum(scores, 0)


@pytest.fixture(scope="module")
def detector(digits):
    X, y = digits
    return LatentDefender(max_epochs=2, random_state=0).fit(X[:1200].reshape(-1, 64), y[:1200])


@pytest.fixture(scope="module")
def rows(digits):
    """Rows that the detector has not seen, the last hundred of them inverted."""
    X, y = digits[0][1200:].reshape(-1, 64).copy(), digits[1][1200:].copy()
    X[-100:], y[-100:] = 1 - X[-100:], -1
    return X, y


def success_of(**columns):
    frame = pd.DataFrame(
        {
            "attack": np.repeat(["pgd", "worst case"], 4),
            "eps": [0.2, 0.1] * 4,
            "security_parameter": [0.5, 0.5, 0.05, 0.05] * 2,
            "success_rate": [0.1, 0.0, 0.4, 0.2, 0.3, 0.1, 0.6, 0.4],
        }
    )
    frame = frame.assign(low=frame["success_rate"] * 0.9, high=frame["success_rate"] + 0.05)
    return AdaptiveEvaluation(frame.assign(**columns), pd.DataFrame(), {}, np.arange(3))


DRAWN = {
    **{
        cls: lambda y, scores, cls=cls, **kw: cls.from_predictions(y, scores, **kw)
        for cls in OF_SCORES
    },
    SuccessCurveDisplay: lambda y, scores, **kw: SuccessCurveDisplay.from_evaluation(
        success_of(), **kw
    ),
    CostDisplay: lambda y, scores, **kw: CostDisplay.from_frame(COSTS, **kw),
    RiskMonitorDisplay: lambda y, scores, **kw: RiskMonitorDisplay.from_monitor(
        RiskMonitor(2000).update(-np.expm1(scores)), **kw
    ),
}


@pytest.mark.parametrize("cls", DRAWN, ids=lambda cls: cls.__name__)
def test_draws_on_the_axes_given_and_again_on_its_own(cls, scored):
    figure, ax = plt.subplots()
    display = DRAWN[cls](*scored, ax=ax, name="somebody")
    assert (display.ax_, display.figure_) == (ax, figure)
    figure.canvas.draw()
    texts = [ax.get_title(), *(text.get_text() for text in ax.get_legend().findobj(plt.Text))]
    assert any("somebody" in text for text in texts)
    assert display.plot() is display
    assert display.figure_ is not figure
    display.figure_.canvas.draw()


@pytest.mark.parametrize("cls", OF_SCORES)
def test_from_estimator_is_from_predictions_of_its_scores(cls, detector, rows):
    X, y = rows
    labels = np.where(np.arange(len(y)) % 2, y, 3).clip(0)
    display = cls.from_estimator(detector, X, y, labels=labels)
    expected = cls.from_predictions(y, detector.score_samples(X, labels=labels))
    numbers = [name for name, value in vars(display).items() if isinstance(value, np.ndarray)]
    assert numbers
    for name in numbers:
        np.testing.assert_array_equal(getattr(display, name), getattr(expected, name))
    other = cls.from_estimator(detector, X, y)
    assert any(not np.array_equal(getattr(other, name), getattr(display, name)) for name in numbers)
    assert display.name == "LatentDefender"


@pytest.mark.parametrize("cls", OF_SCORES[:1])
def test_any_outlier_detector_and_pipelines_will_do(cls, rows):
    X, y = rows
    forest = make_pipeline(StandardScaler(), IsolationForest(n_estimators=10, random_state=0)).fit(
        X
    )
    assert cls.from_estimator(forest, X, y).name == "IsolationForest"


def test_roc_is_scikit_learns(scored):
    y, scores = scored
    display = DetectionRocDisplay.from_predictions(y, scores)
    fpr, tpr, _ = roc_curve(y == -1, -scores, drop_intermediate=False)
    np.testing.assert_array_equal([display.fpr, display.tpr], [fpr, tpr])
    assert display.roc_auc == pytest.approx(roc_auc_score(y == -1, -scores))
    np.testing.assert_array_equal(display.line_.get_xdata(), fpr)


def test_roc_on_a_log_axis_starts_at_one_clean_row_and_keeps_earlier_curves(scored):
    y, scores = scored
    scores = scores - np.arange(len(y)) * 1e-9  # no ties: one row resolved
    display = DetectionRocDisplay.from_predictions(y, scores)
    ax = display.ax_
    assert ax.get_xscale() == "log"
    assert display.line_.get_drawstyle() == "steps-post"
    assert ax.get_xlim() == pytest.approx((1 / 400, 1))
    few = np.r_[0:50, 400:450]
    DetectionRocDisplay.from_predictions(y[few], scores[few], ax=ax)
    assert ax.get_xlim() == pytest.approx((1 / 400, 1))
    assert len(ax.lines) == 2
    plain = display.plot(log=False, color="k", lw=3, label="mine")
    assert plain.ax_.get_xscale() == "linear"
    assert (plain.line_.get_color(), plain.line_.get_linewidth()) == ("k", 3)
    assert plain.ax_.get_legend().texts[0].get_text() == "mine"


def test_perfect_detection_can_be_drawn():
    y, scores = np.r_[np.zeros(20), np.full(5, -1)], np.r_[np.full(20, -0.1), np.full(5, -9.0)]
    for cls in OF_SCORES:
        cls.from_predictions(y, scores).figure_.canvas.draw()


@pytest.mark.parametrize("scale", ["risk", "p-value"])
def test_risk_histograms_hold_every_row_and_the_thresholds(scored, scale):
    y, scores = scored
    display = RiskHistogramDisplay.from_predictions(
        y, scores, security_parameters=(0.05, 0.2), scale=scale, bins=10
    )
    expected = [0.95, 0.8] if scale == "risk" else -np.log10([0.05, 0.2])
    drawn = [line.get_xdata()[0] for line in display.lines_]
    np.testing.assert_allclose(drawn, expected)
    assert list(display.bars_) == ["clean", "adversarial"]
    for bars in display.bars_.values():
        assert bars.get_data().values.sum() == pytest.approx(1)


def test_risk_histogram_takes_the_detectors_threshold(detector, rows):
    display = RiskHistogramDisplay.from_estimator(detector, *rows)
    assert display.security_parameters == (detector.security_parameter,)
    display = RiskHistogramDisplay.from_estimator(detector, *rows, security_parameters=())
    assert display.lines_ == []


def test_success_curves_from_evaluations():
    display = SuccessCurveDisplay.from_evaluation(success_of())
    assert [line.get_label() for line in display.lines_] == ["SP 5%", "SP 50%"]
    np.testing.assert_array_equal(display.lines_[0].get_xydata(), [[0.1, 0.4], [0.2, 0.6]])
    pair = {"one": success_of(), "two": success_of(success_rate=0.0)}
    display = SuccessCurveDisplay.from_evaluation(pair, attack="pgd", linewidth=3)
    labels = [line.get_label() for line in display.lines_]
    assert labels == ["one, SP 5%", "one, SP 50%", "two, SP 5%", "two, SP 50%"]
    assert len(display.bands_) == 4
    assert {line.get_linewidth() for line in display.lines_} == {3}


def test_success_curves_from_distortions(rng):
    rows = torch.as_tensor(rng.uniform(size=50))
    rows[:20] = torch.inf
    display = SuccessCurveDisplay.from_distortions({"some": rows, "none": [np.inf] * 3})
    some = display.frame[display.frame["curve"] == "some"]
    for eps, rate, low, high in some[["eps", "success_rate", "low", "high"]].to_numpy():
        assert rate == float((rows <= eps).double().mean())
        interval = binomtest(int((rows <= eps).sum()), 50).proportion_ci()
        assert (low, high) == pytest.approx(tuple(interval))
    assert display.lines_[0].get_drawstyle() == "steps-post"
    assert display.lines_[1].get_ydata().max() == 0


def test_cost_front_is_what_nothing_beats():
    display = CostDisplay.from_frame(COSTS.assign(auc_low=COSTS["auc"] - 0.1, auc_high=1.0))
    assert display.front["detector"].tolist() == ["cheap", "good", "dear"]
    assert display.ax_.get_xscale() == "log"
    np.testing.assert_array_equal(display.points_.get_offsets(), COSTS[["score_cost", "auc"]])
    assert [text.get_text() for text in display.texts_] == COSTS["detector"].tolist()
    renamed = COSTS.rename(columns={"score_cost": "ms", "auc": "tpr", "detector": "who"})
    display = CostDisplay.from_frame(renamed, x="ms", y="tpr", label="who")
    assert display.ax_.get_xlabel() == "ms"


def test_names_of_distant_points_do_not_overlap():
    frame = pd.DataFrame({"detector": list("abcd"), "score_cost": 2.0, "auc": [0.5, 0.51, 0.52, 1]})
    display = CostDisplay.from_frame(frame)
    boxes = [text.get_window_extent() for text in display.texts_]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_monitor_display_shows_evidence_its_limit_and_the_report(rng):
    monitor = RiskMonitor(2000).update(rng.uniform(size=500))
    display = RiskMonitorDisplay.from_monitor(monitor)
    assert display.alarm_line_ is None
    assert display.name == "kept"
    monitor.update(np.ones(20))
    display = RiskMonitorDisplay.from_monitor(monitor, linewidth=3)
    assert display.alarm_line_.get_xdata()[0] == monitor.alarm_row_
    assert display.limit_line_.get_ydata()[0] == pytest.approx(np.log10(4 / 0.01))
    more, fewer = (line.get_ydata()[-1] for line in display.lines_)
    assert (more, fewer) == pytest.approx(np.divide([*monitor.evidence_.values()], np.log(10)))
    assert display.lines_[0].get_linewidth() == 3


Y, SCORES = [0, 1, -1, -1], [-0.1, -0.2, -3.0, -4.0]
BAD = {
    "no adversarial rows": lambda: DetectionRocDisplay.from_predictions([0, 1], [-1.0, -2.0]),
    "only adversarial rows": lambda: RiskHistogramDisplay.from_predictions([-1], [-1.0]),
    "inconsistent numbers": lambda: DetectionRocDisplay.from_predictions(Y, SCORES[:3]),
    "NaN": lambda: DetectionRocDisplay.from_predictions(Y, [np.nan, *SCORES[1:]]),
    "not its decision_function": lambda: RiskHistogramDisplay.from_predictions(
        Y, [1.0, -1, -2, -3]
    ),
    "is no rate; give some": lambda: RiskHistogramDisplay.from_predictions(
        Y, SCORES, security_parameters=(1,)
    ),
    "scale='log' is none of 'risk', 'p-value'": lambda: RiskHistogramDisplay.from_predictions(
        Y, SCORES, scale="log"
    ),
    "there are: pgd, worst case": lambda: SuccessCurveDisplay.from_evaluation(
        success_of(), attack="fgsm"
    ),
    "no evaluation to draw": lambda: SuccessCurveDisplay.from_evaluation({}),
    "use inf for a row": lambda: SuccessCurveDisplay.from_distortions({"a": [0.1, np.nan]}),
    "No row was broken": lambda: SuccessCurveDisplay.from_distortions({"a": [np.inf]}),
    "has no rows": lambda: CostDisplay.from_frame(COSTS[:0]),
    "no column 'tpr'": lambda: CostDisplay.from_frame(COSTS, y="tpr"),
    "has seen no rows": lambda: RiskMonitorDisplay.from_monitor(RiskMonitor(2000)),
    "must be finite and above 0": lambda: CostDisplay.from_frame(COSTS.assign(score_cost=0.0)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_names_the_cure_and_opens_no_figure(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
    assert plt.get_fignums() == []


def test_an_estimator_without_scores_is_refused():
    with pytest.raises(TypeError, match=r"LinearRegression\(\) has none; .*from_predictions"):
        DetectionRocDisplay.from_estimator(LinearRegression(), [[0.0]], [0])
