"""Clean rows for which a wrong class passes, counted by hand and by an attack of no size."""

import numpy as np
import pytest
import torch
from torch import nn

from skmrr import LatentDefender, MarginDetector
from skmrr.attacks import LagrangianPGD
from skmrr.baselines import KernelDensityDetector
from skmrr.evaluation import evaluate_adaptive, impostor_rate

TINY = 1e-5


def margins(values):
    """Rows of three logits, each led by class 0 by so much before class 1."""
    return np.array([[value, 0.0, -50.0] for value in values])


@pytest.fixture(scope="module")
def by_margin():
    """Margin of rows that are their own logits; clean rows lead by 1, 2, …, 19."""
    detector = MarginDetector(nn.Identity(), calibration_fraction=0, security_parameter=0.05)
    X = margins(np.arange(1.0, 20.0))
    return detector.fit(X, np.zeros(19, int)).calibrate(X)


def test_counted_by_hand(by_margin):
    # Under class 1 a lead of 0.5 is a statistic of 0.5, odder than those of all 19 clean rows,
    # −19 to −1. A row that class 1 leads is one that the classifier errs on, and does not count.
    X, y = margins([0.5, 3.0, 7.5, -2.0]), np.zeros(4, int)
    # p is 2/20 at the oddest clean row. Beyond, it falls by e for every 5.5, the mean excess of
    # the ten oddest rows over the eleventh: .076, .048 and .021. Class 2 is out of reach.
    log_p = np.log(2 / 20) - (np.array([0.5, 3.0, 7.5]) + 1) / 5.5
    np.testing.assert_allclose(by_margin.score_samples(X[:3], labels=np.ones(3, int)), log_p)
    rate = impostor_rate(by_margin, X, y, security_parameters=[0.01, 0.03, 0.05, 0.5])
    assert rate["n_rows"].tolist() == [3] * 4
    assert rate["impostor_rate"].tolist() == [1, 2 / 3, 1 / 3, 0]
    assert (rate["low"] <= rate["impostor_rate"]).all()
    assert (rate["impostor_rate"] <= rate["high"]).all()


def test_a_tie_passes_as_it_does_in_predict(by_margin):
    X, y = margins([3.0]), np.zeros(1, int)
    score = by_margin.score_samples(X, labels=[1])[0]
    sp = float(np.exp(score))
    for rate, passes in ((sp * (1 - 1e-9), 1), (sp * (1 + 1e-9), 0)):
        found = impostor_rate(by_margin, X, y, security_parameters=[rate])
        assert found["impostor_rate"].item() == passes
        verdict = by_margin.set_params(security_parameter=rate).predict(X, labels=[1])
        assert verdict.item() == (1 if passes else -1)


@pytest.fixture(scope="module")
def defender(net, digits):
    X, y = digits
    return LatentDefender(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8)),
        classifier=net,
        max_epochs=3,
        clip_values=(0, 1),
        random_state=0,
    ).fit(X[1000:1500], y[1000:1500])


def test_a_wrong_class_that_scores_passes(defender, digits, net):
    X, y = (part[1500:] for part in digits)
    right = net(torch.as_tensor(X)).argmax(1).numpy() == y
    passes = np.zeros(len(X), bool)
    for c in range(10):
        passes |= (defender.score_samples(X, labels=np.full(len(X), c)) >= np.log(0.1)) & (y != c)
    rate = impostor_rate(defender, X, y, security_parameters=[0.1])
    assert rate["n_rows"].item() == right.sum()
    assert rate["impostor_rate"].item() == passes[right].mean()
    assert 0 < rate["impostor_rate"].item() < 1


def test_no_attack_of_no_size_exceeds_it(defender, digits):
    X, y = (part[1500:1560] for part in digits)
    success = evaluate_adaptive(
        defender, X, y, eps=[TINY], attacks={"a": LagrangianPGD(steps=5, n_targets=3)}
    ).success
    assert (success["success_rate"] <= success["impostor_rate"]).all()
    floor = impostor_rate(defender, X, y, security_parameters=[0.05, 0.5])
    by_sp = success[success["attack"] == "worst case"].set_index("security_parameter")
    np.testing.assert_array_equal(
        by_sp.loc[floor["security_parameter"], "impostor_rate"], floor["impostor_rate"]
    )


class Owned(nn.Module):
    """A classifier whose decision is bought by one of ten further values, whatever the image."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x[:, :64].view(-1, 1, 8, 8)) + 1e8 * x[:, 64:]


class ImageAlone(nn.Module):
    """Looks at the image, not at what buys the decision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 8)

    def forward(self, x):
        return self.linear(x[:, :64])


def test_who_owns_the_decision_reaches_it(net, digits):
    X = np.pad(digits[0].reshape(-1, 64), ((0, 0), (0, 10)))
    y = digits[1]
    detector = LatentDefender(
        ImageAlone(), classifier=Owned(net), max_epochs=3, clip_values=(0, 1), random_state=0
    ).fit(X[1000:1500], y[1000:1500])
    success = evaluate_adaptive(
        detector,
        X[1500:1540],
        y[1500:1540],
        eps=[TINY],
        attacks={"a": LagrangianPGD(steps=10)},
        security_parameters=[0.05, 0.2],
    ).success
    np.testing.assert_array_equal(success["success_rate"], success["impostor_rate"])
    assert (success["impostor_rate"] > 0).any()


def test_classes_never_learnt_never_count(net, digits):
    X, y = digits
    some = np.flatnonzero(y < 2)
    some = some[some >= 1000]
    detector = KernelDensityDetector(net, security_parameter=0.2, random_state=0)
    detector.fit(X[some[:120]], y[some[:120]])
    with torch.no_grad():
        scores = detector.module_.under_each(torch.as_tensor(X[some[120:]]))
    assert (scores[:, 2:] == torch.finfo(torch.float64).min).all()
    wrong = scores[torch.arange(len(scores)), torch.as_tensor(1 - y[some[120:]])].numpy()
    right = net(torch.as_tensor(X[some[120:]])).argmax(1).numpy() == y[some[120:]]
    for sp in (1e-300, 0.01, 0.9):
        rate = impostor_rate(detector, X[some[120:]], y[some[120:]], security_parameters=[sp])
        assert rate["impostor_rate"].item() == (wrong[right] >= np.log(sp)).mean()


def test_what_is_missing_is_named(defender, digits):
    X, y = (part[1500:1510] for part in digits)
    with pytest.raises(ValueError, match="is no rate"):
        impostor_rate(defender, X, y, security_parameters=[5])
    with pytest.raises(ValueError, match="number y as it does"):
        impostor_rate(defender, X, (y + 1) % 10)
    alone = LatentDefender(max_epochs=1, random_state=0).fit(digits[0][:500].reshape(500, -1))
    with pytest.raises(ValueError, match="give classifier"):
        impostor_rate(alone, X.reshape(10, -1), y)
