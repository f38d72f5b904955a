import numpy as np
import pytest
from scipy.stats import binom
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skmrr import FixedThresholdDetector, LatentDefender
from skmrr.evaluation import (
    average_precision_scorer,
    balanced_accuracy_scorer,
    false_alarm_interval,
    roc_auc_scorer,
    tpr_at_fpr,
    tpr_at_fpr_scorer,
)

SCORERS = [
    roc_auc_scorer,
    average_precision_scorer,
    balanced_accuracy_scorer,
    tpr_at_fpr_scorer(0.05),
]


@pytest.fixture(scope="module")
def rows(digits):
    """Flat digits of classes 0–9, and noise as class -1, in that order."""
    noise = np.random.default_rng(0).random((200, 64), dtype=np.float32)
    return np.r_[digits[0].reshape(-1, 64), noise], np.r_[digits[1], np.full(200, -1)]


@pytest.fixture(scope="module")
def detector(rows):
    X, y = rows
    return LatentDefender(statistic="likelihood", max_epochs=3, random_state=0).fit(X, y)


@pytest.mark.parametrize("scorer", SCORERS)
def test_scorers_have_the_right_sign(detector, rows, scorer):
    """Noise is plainly odd: the detector scores high, and a detector turned around low."""

    class Reversed(LatentDefender):
        def score_samples(self, X, *, labels=None):
            return -10 - super().score_samples(X, labels=labels)

    turned = Reversed()
    turned.__dict__.update(detector.__dict__)
    assert scorer(detector, *rows) > 0.9
    assert scorer(turned, *rows) < 0.6


def test_roc_auc_is_scikit_learns(detector, rows):
    X, y = rows
    expected = roc_auc_score(y == -1, detector.risk(X))
    assert roc_auc_scorer(detector, X, y) == pytest.approx(expected)


def test_tpr_at_fpr_is_the_roc_curves(rng):
    clean, adversarial = rng.standard_normal(1000), rng.standard_normal(300) - 1.5
    fpr, tpr, _ = roc_curve(np.r_[np.zeros(1000), np.ones(300)], -np.r_[clean, adversarial])
    for limit in (0.001, 0.01, 0.05, 0.5):
        assert tpr_at_fpr(clean, adversarial, limit) == pytest.approx(tpr[fpr <= limit].max())


def test_tpr_at_fpr_never_exceeds_the_false_alarms_with_ties():
    assert tpr_at_fpr(np.zeros(100), np.zeros(100), 0.05) == 0.0


def test_false_alarm_interval_holds_its_confidence():
    low, high = false_alarm_interval(0.05, 1000)
    inside = binom.cdf(round(high * 1000), 1000, 0.05) - binom.cdf(
        round(low * 1000) - 1, 1000, 0.05
    )
    assert 0.99 <= inside < 0.995


def test_false_alarm_interval_counts_the_calibrations_own_chance(rng):
    """Simulated: thresholds at a rank of 99 rows, false alarms among 200 fresh ones."""
    calibration, fresh = rng.standard_normal((4000, 99)), rng.standard_normal((4000, 200))
    threshold = np.sort(calibration, axis=1)[:, -10]  # SP = 10 %: beyond the tenth largest
    shares = np.mean(fresh > threshold[:, None], axis=1)
    low, high = false_alarm_interval(0.1, 200, n_calibration=99)
    assert 0.985 < np.mean((shares >= low) & (shares <= high)) < 0.997


def test_false_alarm_interval_of_too_few_calibration_rows_names_the_cure():
    with pytest.raises(ValueError, match="50 calibration rows promise no .*=0.01; that takes 99"):
        false_alarm_interval(0.01, 1000, n_calibration=50)


def test_one_kind_of_row_names_the_cure(detector, rows):
    X, y = rows
    with pytest.raises(ValueError, match="no adversarial rows.*StratifiedKFold"):
        roc_auc_scorer(detector, X[y >= 0], y[y >= 0])


@pytest.mark.filterwarnings("ignore:Scoring failed:UserWarning")
def test_cross_validation_stratified_works_where_plain_folds_cannot(rows):
    X, y = rows
    pipeline = make_pipeline(
        StandardScaler(), LatentDefender(statistic="likelihood", max_epochs=2, random_state=0)
    )
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    assert np.all(cross_val_score(pipeline, X, y, cv=cv, scoring=roc_auc_scorer) > 0.95)
    plain = cross_val_score(pipeline, X, y, cv=KFold(3), scoring=roc_auc_scorer)
    assert np.isnan(plain[0])


def test_search_over_the_threshold_fits_nothing(detector, rows, monkeypatch):
    X, y = rows
    fits = []
    monkeypatch.setattr(LatentDefender, "fit", lambda self, X, y: fits.append(1))
    search = GridSearchCV(
        FixedThresholdDetector(FrozenEstimator(detector)),
        {"security_parameter": [0.9, 0.5, 0.05]},
        scoring=balanced_accuracy_scorer,
        cv=StratifiedKFold(3),
    ).fit(X, y)
    assert not fits
    assert search.best_params_ == {"security_parameter": 0.05}
    assert search.best_estimator_.estimator_.module_ is detector.module_


def test_search_over_a_training_parameter(rows):
    X, y = rows
    search = GridSearchCV(
        LatentDefender(max_epochs=2, random_state=0),
        {"statistic": ["likelihood", "margin"]},
        scoring=roc_auc_scorer,
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
    ).fit(X, y)
    assert search.best_params_ == {"statistic": "likelihood"}
