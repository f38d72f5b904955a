import json

import numpy as np
import pytest
import torch
from scipy.stats import norm

from skmrr import ConformalSurvival, FixedThresholdDetector, LatentDefender, RiskMonitor
from skmrr.betting import Bets, share_interval
from skmrr.calibration import least_rank
from skmrr.monitor import MAX_POINTS


def calibrated(rng, n):
    """Statistics → risks, by a calibration on n standard normal rows."""
    clean = rng.standard_normal((n, 1))
    survival = ConformalSurvival.fit(clean, np.zeros(n, dtype=int), 1)

    def risks(statistics):
        rows = torch.as_tensor(statistics)[:, None]
        scores = survival(rows, torch.zeros(len(rows), dtype=torch.long))[:, 0]
        return 0.0 - np.expm1(scores.numpy())

    return risks


def attacked(rng, n_rows, share, sp=0.01, caught=0.9):
    shift = norm.isf(sp) - norm.isf(caught)
    return rng.standard_normal(n_rows) + shift * (rng.uniform(size=n_rows) < share)


def same(one, other):
    assert one.n_rows_ == other.n_rows_
    np.testing.assert_array_equal(one._wealth.hits, other._wealth.hits)
    assert one.evidence_ == pytest.approx(other.evidence_, abs=1e-9)


# What is promised


@pytest.mark.parametrize("n", [500, 2000, 10_000])
@pytest.mark.parametrize("sp", [0.01, 0.05])
def test_clean_rows_raise_few_alarms_whatever_the_calibration(rng, n, sp):
    alarms = 0
    for _ in range(20):
        risks = calibrated(rng, n)(rng.standard_normal(5000))
        monitor = RiskMonitor(n, security_parameter=sp, alpha=0.1).update(risks)
        alarms += monitor.verdict != "kept"
    assert alarms <= 6  # more by chance in 0.2 % of cases, were the rate 10 %


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])  # where in the tolerated range clean rows lie
def test_e_values_are_e_values_at_any_time(rng, rate):
    """Under a tolerated rate the mean evidence is at most 1, when stopped at its first height."""
    bets = Bets(np.array([0.05]), np.array([2000]), 0.01, conservative=False)
    share = bets.lowest + rate * (bets.highest - bets.lowest)
    stopped = []
    for _ in range(300):
        p = np.where(rng.uniform(size=1000) < share, 0.0, 1.0)
        evidence = bets.follow(bets.start(), p)[2]
        last = len(evidence) - 1
        when = [high.argmax() if high.any() else last for high in (evidence >= 1).T]
        stopped.append(evidence[when, [0, 1]])
    values = np.exp(stopped)
    assert (values.mean(0) - 3 * values.std(0) / 300**0.5 <= 1).all()


def test_shares_of_all_calibrations_lie_in_the_tolerated_range(rng):
    """Also where knots are more than a rank apart."""
    n = 10_000
    for sp in (0.01, 0.05, 0.2):
        outside = 0
        for _ in range(40):
            risks = calibrated(rng, n)
            statistics = np.linspace(norm.isf(0.5), norm.isf(1e-4), 4000)
            flagged = norm.sf(statistics[(risks(statistics) > 1 - sp).argmax()])
            low, high = RiskMonitor(n, security_parameter=sp).tolerated_
            outside += not low <= flagged <= high
        assert outside == 0


@pytest.mark.parametrize("n", [50, 500, 2000, 20_000])
def test_least_rank_counts_no_more_rows_than_lie_beyond(rng, n):
    clean = rng.standard_normal(n)
    survival = ConformalSurvival.fit(clean[:, None], np.zeros(n, dtype=int), 1)
    p = survival(torch.as_tensor(clean)[:, None], torch.zeros(n, dtype=torch.long)).exp().numpy()
    ranks = np.unique(np.geomspace(1, n, 200).astype(int))
    beyond = (p <= ranks / (n + 1) * (1 + 1e-12)).sum(0)
    assert (least_rank(ranks, n) <= beyond).all()
    assert (beyond <= ranks).all()


def test_interval_holds_the_share_after_every_row(rng):
    wrong = 0
    for _ in range(100):
        hits = (rng.uniform(size=1000) < 0.03).cumsum()
        sides = [share_interval(hits[n - 1], n, 0.01, 0.1) for n in range(10, 1001, 30)]
        wrong += not all(low <= 0.03 <= high for low, high in sides)
    assert wrong <= 20
    assert share_interval(0, 0, 0.01, 0.1) == (0.0, 1.0)
    assert share_interval(5, 5, 0.01, 0.1)[1] == 1.0


# What is noticed


@pytest.mark.parametrize(("share", "within"), [(0.05, 1500), (0.2, 200)])
@pytest.mark.parametrize("n_clean", [0, 20_000])
def test_campaigns_are_noticed_from_the_start_and_after_long_peace(rng, share, within, n_clean):
    delays = []
    for _ in range(5):
        risks = calibrated(rng, 2000)
        monitor = RiskMonitor(2000).update(risks(rng.standard_normal(n_clean)))
        monitor.update(risks(attacked(rng, 3000, share)))
        assert monitor.verdict == "more alarms"
        delays.append(monitor.alarm_row_ - n_clean)
    assert 0 < np.median(delays) < within


def test_fewer_alarms_are_noticed_too(rng):
    monitor = RiskMonitor(2000).update(rng.uniform(0, 0.9, size=5000))
    assert monitor.verdict == "fewer alarms"


def test_of_a_conservative_calibration_few_alarms_prove_nothing(rng):
    monitor = RiskMonitor(2000, conservative=True)
    quiet = 1 - rng.uniform(size=20_000) ** (1 / 2)  # half of the p-values' logarithm
    assert monitor.update(quiet).verdict == "kept"
    assert monitor.update(np.ones(10)).verdict == "more alarms"


def test_one_odd_row_is_no_campaign(rng):
    monitor = RiskMonitor(2000).update(rng.uniform(size=5000))
    before = monitor.evidence_["more"]
    monitor.update([1.0])
    assert 0 < monitor.evidence_["more"] - before < np.log(5 / 0.01)
    assert monitor.verdict == "kept"
    assert RiskMonitor(2000).update([1.0]).verdict == "kept"
    silent = RiskMonitor(2000, conservative=True).update(np.zeros(200_000))
    assert silent.update([1.0]).verdict == "kept"


def test_the_first_report_stays(rng):
    monitor = RiskMonitor(2000).update(np.ones(20))
    row = monitor.alarm_row_
    monitor.update(rng.uniform(size=30_000))
    assert (monitor.verdict, monitor.alarm_row_) == ("more alarms", row)


# State


def test_batches_change_nothing(rng):
    risks = rng.uniform(size=9000)
    risks[-100:] = 1.0
    whole = RiskMonitor(2000).update(risks)
    parts = RiskMonitor(2000)
    for part in np.split(risks, [1, 3, 3, 500, 8000, 8950]):
        parts.update(part)
    same(whole, parts)
    assert (whole.verdict, whole.alarm_row_) == (parts.verdict, parts.alarm_row_)
    np.testing.assert_allclose(whole.history_, parts.history_, atol=1e-9)


def test_state_is_bounded_and_its_history_thinned(rng):
    monitor = RiskMonitor(2000).update(rng.uniform(size=50_000))
    history = monitor.history_
    assert MAX_POINTS / 2 <= len(history) <= MAX_POINTS + 1
    assert history[-1, 0] == 50_000
    assert (np.diff(history[:, :2], axis=0) >= 0).all()
    size = len(monitor.to_json())
    assert len(monitor.update(rng.uniform(size=50_000)).to_json()) < 2.1 * size


def test_json_round_trip_is_exact_and_goes_on_alike(rng):
    monitor = RiskMonitor([2000, 500], security_parameter=0.02, alpha=0.05, conservative=True)
    for _ in range(2):
        copy = RiskMonitor.from_json(monitor.to_json())
        assert copy.state == monitor.state
        risks = rng.uniform(size=700)
        assert copy.update(risks).state == monitor.update(risks).state
    assert json.loads(monitor.to_json()) == monitor.state


def test_merging_is_in_any_order_and_may_go_on(rng):
    one, two, three = (RiskMonitor(2000).update(rng.uniform(size=n)) for n in (100, 2000, 700))
    states = [monitor.state for monitor in (one, two, three)]
    merged = one.merge(two, three)
    same(merged, three.merge(one.merge(two)))
    assert [monitor.state for monitor in (one, two, three)] == states
    assert merged.n_rows_ == 2800
    copy = RiskMonitor.from_json(merged.to_json())
    risks = rng.uniform(size=500)
    same(copy.update(risks), merged.update(risks))


def test_workers_notice_together_what_none_notices_alone(rng):
    risks = calibrated(rng, 10_000)
    workers = [
        RiskMonitor(10_000).update(risks(attacked(rng, 200, 0.05, caught=0.5))) for _ in range(10)
    ]
    assert {worker.verdict for worker in workers} == {"kept"}
    merged = workers[0].merge(*workers[1:])
    assert (merged.verdict, merged.alarm_row_) == ("more alarms", 2000)


def test_merged_workers_of_clean_rows_raise_few_alarms(rng):
    alarms = 0
    for _ in range(20):
        risks = calibrated(rng, 500)
        workers = [
            RiskMonitor(500, alpha=0.1).update(risks(rng.standard_normal(1000))) for _ in range(4)
        ]
        alarms += workers[0].merge(*workers[1:]).verdict != "kept"
    assert alarms <= 6


# Detectors


@pytest.fixture(scope="module")
def detector(digits):
    X, y = digits[0][:1000].reshape(-1, 64), digits[1][:1000]
    return LatentDefender(max_epochs=2, random_state=0, security_parameter=0.05).fit(X, y)


def test_of_a_detector_takes_its_threshold_and_calibration(detector, digits):
    monitor = RiskMonitor.of(detector, alpha=0.05)
    assert monitor.n_calibration == (200,)
    assert (monitor.security_parameter, monitor.alpha) == (0.05, 0.05)
    assert not monitor.conservative
    X = digits[0][1000:].reshape(-1, 64)
    monitor.update(detector.risk(X))
    assert monitor.flagged_share_ == np.mean(detector.predict(X) == -1)
    low, high = monitor.flagged_interval_
    assert low < monitor.flagged_share_ < high
    assert monitor.verdict == "kept"
    assert "kept" in repr(monitor)


def test_of_an_ensemble_counts_the_rows_of_the_fusion(digits):
    from skmrr import MRREnsemble, default_defenders

    X, y = digits[0][:1000].reshape(-1, 64), digits[1][:1000]
    members = default_defenders(latent=LatentDefender(max_epochs=1), n_latent=2)
    ensemble = MRREnsemble(
        defenders=members, random_state=0, security_parameter=0.05, harmless=[lambda x: x]
    ).fit(X, y)
    monitor = RiskMonitor.of(ensemble)
    assert monitor.n_calibration == (100,)
    assert monitor.conservative


# Errors


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_bad_risks_name_the_cure_and_update_nothing(rng, bad):
    monitor = RiskMonitor(2000).update(rng.uniform(size=10))
    state = monitor.state
    with pytest.raises(ValueError, match=r"at 5000; give detector.risk\(X\).*Nothing was updated"):
        monitor.update(np.r_[np.zeros(5000), bad])
    assert monitor.state == state
    with pytest.raises(ValueError, match="one per row"):
        monitor.update(np.zeros((3, 2)))


BAD = {
    "promise no security_parameter=0.01; the least they promise is 0.0196": lambda: RiskMonitor(50),
    "n_calibration=0 must be a number": lambda: RiskMonitor(0),
    "n_calibration=2.5 must be a number": lambda: RiskMonitor(2.5),
    "alpha=2 is no rate": lambda: RiskMonitor(500, alpha=2),
    "merge those of one and the same": lambda: RiskMonitor(500).merge(RiskMonitor(600)),
    "no RiskMonitor": lambda: RiskMonitor.from_json("[]"),
    "version 99": lambda: changed(version=99),
    "damaged": lambda: changed(wealth=[0, [0], [0.0], [0.0]]),
    "damaged.*no report": lambda: changed(alarm=["?", 3]),
}


def changed(**parts):
    return RiskMonitor.from_json(json.dumps({**RiskMonitor(500).state, **parts}))


@pytest.mark.parametrize("message", BAD)
def test_errors_name_the_cure(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_only_detectors_have_a_monitor(detector):
    from sklearn.frozen import FrozenEstimator

    with pytest.raises(TypeError, match="of a Pipeline give the last step"):
        RiskMonitor.of(FixedThresholdDetector(FrozenEstimator(detector)))


def test_no_row_at_all():
    monitor = RiskMonitor(500).update([])
    assert np.isnan(monitor.flagged_share_)
    assert monitor.flagged_interval_ == (0.0, 1.0)
    assert monitor.evidence_ == pytest.approx({"more": 0, "fewer": 0}, abs=1e-12)
