import numpy as np
import pytest
import torch

from skmrr import ConformalSurvival
from skmrr.evaluation import false_alarm_interval
from skmrr.nn.conditioning import ConditionalSurvival, LocalScale


def survival(fitted, statistic, columns=None):
    statistic = torch.as_tensor(np.asarray(statistic, dtype=float))[:, None]
    columns = torch.zeros(len(statistic), dtype=torch.int64) if columns is None else columns
    return fitted(statistic, torch.as_tensor(columns))[:, 0].numpy()


def fit(statistic, columns, n_classes, **params):
    """Fit on a single member's statistic."""
    return ConformalSurvival.fit(statistic[:, None], columns, n_classes, **params)


def rank_p_value(calibration, statistic):
    return (1 + (calibration[:, None] >= statistic).sum(0)) / (len(calibration) + 1)


@pytest.mark.parametrize("n", [2, 50, 200, 5000])
def test_is_never_below_the_rank_p_value_within_the_ranks(n, rng):
    calibration = rng.standard_normal(n)
    fitted = fit(calibration, np.zeros(n, int), 1)
    statistic = np.sort(np.concatenate([calibration, rng.uniform(-4, calibration.max(), 2000)]))
    p = np.exp(survival(fitted, statistic))
    assert np.all(p >= rank_p_value(calibration, statistic) * (1 - 1e-12))


@pytest.mark.parametrize("n", [200, 5000])
def test_is_close_to_the_rank_p_value(n, rng):
    calibration = rng.standard_normal(n)
    fitted = fit(calibration, np.zeros(n, int), 1)
    p = np.exp(survival(fitted, calibration))
    np.testing.assert_allclose(p, rank_p_value(calibration, calibration), rtol=0.04)


@pytest.mark.parametrize("sp", [0.01, 0.05, 0.2])
def test_false_alarm_rate_holds_in_expectation(sp, rng):
    """Mean over calibrations of the exact false-alarm probability, 99 rows each."""
    alarms = []
    for _ in range(400):
        calibration, fresh = rng.standard_normal(99), rng.standard_normal(500)
        fitted = fit(calibration, np.zeros(99, int), 1)
        alarms.append(np.mean(survival(fitted, fresh) <= np.log(sp)))
    standard_error = np.std(alarms) / np.sqrt(len(alarms))
    assert np.mean(alarms) <= sp + 3 * standard_error
    assert np.mean(alarms) >= sp - 1 / 100 - 3 * standard_error


def test_each_class_has_its_own_false_alarm_rate(rng):
    """One class is ten times as odd as the other; both are flagged at the same rate."""
    columns = np.repeat([0, 1], 4000)
    scale = np.where(columns == 0, 1.0, 10.0)
    fitted = fit(scale * rng.standard_normal(8000), columns, 2)
    fresh = survival(fitted, scale * rng.standard_normal(8000), columns) <= np.log(0.05)
    low, high = false_alarm_interval(0.05, 4000, 0.9999)
    for c in (0, 1):
        assert low - 0.01 <= fresh[columns == c].mean() <= high + 0.01


def test_small_classes_share_a_calibration(rng):
    statistic = rng.standard_normal(1000)
    columns = np.r_[np.zeros(600, int), rng.integers(1, 4, 400)]
    fitted = fit(statistic, columns, 4, min_class_rows=200)
    assert fitted.n_rows.tolist() == [600, 400]
    assert fitted.group_of_class.tolist() == [0, 1, 1, 1]


def test_a_class_too_rare_even_together_uses_all_rows(rng):
    columns = np.r_[np.zeros(600, int), [1] * 5]
    fitted = fit(rng.standard_normal(605), columns, 2, min_class_rows=200)
    assert fitted.n_rows.tolist() == [600, 605]


def test_tail_keeps_the_ranking_strict_without_a_bound(rng):
    calibration = rng.standard_normal(300)
    fitted = fit(calibration, np.zeros(300, int), 1)
    scores = survival(fitted, calibration.max() + np.array([0, 1e-6, 1, 10, 1e3, 1e9]))
    assert np.all(np.diff(scores) < 0)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("value", [0.0, 1e-300, -3.5, 1e300])
def test_constant_statistic(value):
    fitted = fit(np.full(50, value), np.zeros(50, int), 1)
    np.testing.assert_array_equal(survival(fitted, [value]), [0.0])
    assert np.isfinite(survival(fitted, [value - 1, value + 1])).all()


def test_is_differentiable_and_monotone(rng):
    fitted = fit(rng.standard_normal(2000), np.zeros(2000, int), 1)
    statistic = torch.linspace(-3, 8, 1001, dtype=torch.float64, requires_grad=True)
    scores = fitted(statistic[:, None], torch.zeros(1001, dtype=torch.int64))[:, 0]
    scores.sum().backward()
    assert torch.all(scores.diff() < 0)
    assert torch.isfinite(statistic.grad).all()
    assert torch.all(statistic.grad < 0)


def test_is_small(rng):
    fitted = fit(rng.standard_normal(100_000), np.zeros(100_000, int), 1)
    assert fitted.knots.shape[2] <= 300


# Many statistics at once


def conditional(values, columns):
    """Survival of each member, given the first."""
    scale = LocalScale.fit(values, 0)
    scaled = scale(torch.as_tensor(values)).numpy()
    return ConditionalSurvival(scale, ConformalSurvival.fit(scaled, columns, 1))


def test_members_are_judged_as_each_alone(rng):
    values = rng.standard_normal((6000, 3)) * [1, 5, 0.1]
    values[:, 2] = values[:, 2].round(1)  # ties
    columns = rng.integers(0, 2, 6000)
    together = ConformalSurvival.fit(values, columns, 2)
    new = torch.as_tensor(rng.standard_normal((500, 3)) * [2, 5, 0.3])
    at = torch.as_tensor(rng.integers(0, 2, 500))
    for k in range(3):
        alone = ConformalSurvival.fit(values[:, k : k + 1], columns, 2)
        torch.testing.assert_close(together(new, at)[:, k : k + 1], alone(new[:, k : k + 1], at))


def test_a_member_is_judged_among_rows_of_the_same_first_value(rng):
    """Given a value that it depends on, a member's p-value says nothing of that value."""
    first = rng.uniform(0, 4, 8000)
    second = first**2 + (0.5 + first) * rng.standard_normal(8000)
    third = rng.standard_normal(8000)
    values, columns = np.stack([first, second, third], 1), np.zeros(8000, int)
    fitted = conditional(values[:4000], columns[:4000])
    new = torch.as_tensor(values[4000:])
    p = fitted(new, torch.zeros(4000, dtype=torch.int64)).exp().numpy()
    for low in range(4):
        is_near = (first[4000:] >= low) & (first[4000:] < low + 1)
        assert abs(np.mean(p[is_near, 1] < 0.1) - 0.1) < 0.04
    assert (fitted.scale.mean[:, 2] == 0).all()  # independent: left as it was
    alone = ConformalSurvival.fit(values[:4000], columns[:4000], 1)
    at_low = alone(new, torch.zeros(4000, dtype=torch.int64)).exp().numpy()[first[4000:] < 1, 1]
    assert np.mean(at_low < 0.1) < 0.01


def test_local_scale_survives_constants(rng):
    given = np.r_[np.zeros(500), rng.random(500)]
    value = np.r_[np.zeros(500), given[500:] + 0.1]
    values = np.stack([given, value, np.ones(1000)], 1)
    assert LocalScale.fit(values, 0)(torch.as_tensor(values)).isfinite().all()
    constant = LocalScale.fit(np.stack([np.ones(1000), value], 1), 0)
    assert constant(torch.ones(3, 2, dtype=torch.float64)).isfinite().all()


def test_gradients_pass_through_what_is_given(rng):
    first = rng.uniform(0, 4, 3000)
    values = np.stack([first, first**2 + rng.standard_normal(3000)], 1)
    fitted = conditional(values, np.zeros(3000, int))
    x = torch.as_tensor(values[:50]).requires_grad_(True)
    scores = fitted(x, torch.zeros(50, dtype=torch.int64))[:, 1]
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    assert gradient.isfinite().all()
    assert (gradient[:, 0] > 0).float().mean() > 0.8  # unsure elsewhere: less odd here
    assert (gradient[:, 1] <= 0).all()
