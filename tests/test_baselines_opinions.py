"""PID and CPR: rivals that ask another network, or the classifier about a row's surroundings."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from torch import nn

from skmrr import MarginDetector
from skmrr.attacks import LagrangianPGD, SelectivePGD
from skmrr.baselines import CPRDetector, PIDDetector
from skmrr.baselines.prediction_inconsistency import DistrustStatistic, worst_points
from skmrr.evaluation import evaluate_adaptive
from skmrr.nn.tapped import NOTHING

COMMON = {"clip_values": (0, 1), "security_parameter": 0.05, "random_state": 0}
BRISK = {"training_batch_size": 16, "learning_rate": 5e-3, **COMMON}
KINDS = [PIDDetector(max_epochs=10, **BRISK), CPRDetector(eps=0.1, n_steps=5, **COMMON)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda detector: type(detector).__name__)
def detector(request, net, digits):
    X, y = (part[1000:1500] for part in digits)
    return clone(request.param).set_params(classifier=net).fit(X, y)


def sign_step(network, X, y, eps):
    """Rows after one signed step uphill."""
    x = torch.as_tensor(X).requires_grad_(True)
    loss = nn.functional.cross_entropy(network(x), torch.as_tensor(y))
    return (x + eps * torch.autograd.grad(loss, x)[0].sign()).clamp(0, 1).detach()


def test_sees_what_fools_the_classifier(detector, digits, net):
    clean, y = digits[0][1500:], digits[1][1500:]
    attacked = sign_step(net, clean, y, 0.15)
    attacked = attacked[net(attacked).argmax(1) != torch.as_tensor(y)].numpy()
    scores = np.r_[detector.score_samples(clean), detector.score_samples(attacked)]
    assert roc_auc_score(np.arange(len(scores)) >= len(clean), -scores) > 0.75
    assert np.mean(detector.predict(clean) == -1) < 0.12


def test_falls_to_attackers_who_know_it(detector, digits):
    X, y = (part[1500:1530] for part in digits)
    attacks = {"Lagrangian": LagrangianPGD(steps=40), "selective": SelectivePGD(steps=40)}
    success = evaluate_adaptive(
        detector, X, y, eps=[0.5], attacks=attacks, security_parameters=[0.05]
    ).success
    assert success["success_rate"].iloc[-1] > 0.9


def test_pid_is_the_confidence_of_the_auxiliary_network(digits, net, make_net):
    X, y = digits
    auxiliary = make_net(5).eval()
    detector = PIDDetector(net, auxiliary=auxiliary, max_epochs=0, **COMMON)
    detector.fit(X[1000:1500], y[1000:1500])
    x = torch.as_tensor(X[1500:])
    with torch.no_grad():
        decided = net(x).argmax(1)
        p = auxiliary(x).double().softmax(1).gather(1, decided[:, None])[:, 0]
        found = detector.evidence_(x).values[:, 0]
    torch.testing.assert_close(found, ((1 - p) / p).log())


@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_odds_are_the_same_for_one_class_and_for_all(scale):
    torch.manual_seed(0)
    x = (scale * torch.randn(50, 7)).requires_grad_(True)
    statistic = DistrustStatistic(nn.Identity(), torch.arange(7))
    everywhere = statistic(x, NOTHING)
    for c in range(7):
        at = statistic.at(x, torch.full((50,), c), NOTHING)
        torch.testing.assert_close(everywhere[:, c], at, atol=1e-9, rtol=1e-9)
    (gradient,) = torch.autograd.grad(everywhere.sum(), x)
    assert gradient.isfinite().all()
    if scale == 1:
        p = x.double().softmax(1)
        torch.testing.assert_close(everywhere, ((1 - p) / p).log())


def test_by_default_the_auxiliary_is_no_copy(digits, net):
    X, y = (part[1000:1100] for part in digits)
    before = [value.clone() for value in net.parameters()]
    own = PIDDetector(net, max_epochs=1, **COMMON).fit(X, y).statistic_.network
    assert [type(part) for part in own] == [type(part) for part in net]
    for ours, theirs, kept in zip(own.parameters(), net.parameters(), before, strict=True):
        assert not torch.equal(ours, theirs)
        assert torch.equal(theirs, kept)


def test_adversarial_training_makes_the_auxiliary_robust(digits, net):
    X, y = digits
    losses = []
    for eps in (0.0, 0.1):
        detector = PIDDetector(net, eps=eps, max_epochs=15, **BRISK)
        own = detector.fit(X[:1000], y[:1000]).statistic_.network
        attacked = sign_step(own, X[1500:], y[1500:], 0.1)
        losses.append(float(nn.functional.cross_entropy(own(attacked), torch.as_tensor(y[1500:]))))
    assert losses[1] < 0.8 * losses[0]


def test_worst_points_are_worse_and_within_reach(digits, net):
    x, y = (torch.as_tensor(part[1500:1600]) for part in digits)
    network = copy.deepcopy(net)
    points = worst_points(network, x, y, 0.1, (0, 1))
    assert network.training
    assert (points - x).abs().max() <= 0.1 + 1e-6
    assert points.min() >= 0
    assert points.max() <= 1
    rows = torch.cat([x, points])
    loss = nn.functional.cross_entropy(net(rows), torch.cat([y, y]), reduction="none")
    assert (loss[100:] >= loss[:100]).double().mean() > 0.95


def test_pid_says_what_it_cannot_take(digits, net):
    X, y = (part[1000:1100] for part in digits)
    with pytest.raises(ValueError, match="give auxiliary"):
        PIDDetector(net, max_epochs=0, **COMMON).fit(X, y)
    with pytest.raises(ValueError, match=r"eps=0.1 has no effect"):
        PIDDetector(net, auxiliary=net, max_epochs=0, eps=0.1, **COMMON).fit(X, y)
    five = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match="auxiliary has 5 logits"):
        PIDDetector(net, auxiliary=five, **COMMON).fit(X, y)


def test_cpr_of_a_linear_classifier_by_hand(rng):
    """Of two classes: the lead of the other one, and ε ‖w_0 − w_1‖₁."""
    linear = nn.Linear(6, 2)
    X = rng.normal(size=(200, 6)).astype(np.float32)
    labels = linear(torch.as_tensor(X)).argmax(1).numpy()
    detector = CPRDetector(
        linear, eps=0.05, n_steps=7, security_parameter=0.05, random_state=0
    ).fit(X, labels)
    with torch.no_grad():
        found = detector.evidence_(torch.as_tensor(X)).values[:, 0]
        gap = (linear(torch.as_tensor(X)).diff(dim=1)[:, 0]).abs()
        expected = -gap + 0.05 * linear.weight.diff(dim=0).abs().sum()
    torch.testing.assert_close(found, expected.double(), atol=1e-5, rtol=1e-5)


def test_cpr_is_odd_where_the_search_changes_the_class(digits, net):
    X, y = digits
    detector = CPRDetector(net, eps=0.1, n_steps=10, **COMMON).fit(X[1000:1500], y[1000:1500])
    x = torch.as_tensor(X[1500:])
    statistic = detector.statistic_
    with torch.no_grad():
        decided = net(x).argmax(1)
        moved = x + statistic.change(x, decided)
        values = detector.evidence_(x).values[:, 0]
    assert (moved - x).abs().max() <= 0.1 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    changed = net(moved).argmax(1) != decided
    assert torch.equal(values > 0, changed)
    assert changed.any()
    margin = MarginDetector(net, **COMMON).fit(X[1000:1500], y[1000:1500]).evidence_(x)
    assert (values >= margin.values[:, 0]).all()


def test_an_attacker_has_the_gradient_at_the_end_of_the_search(digits, net):
    X, y = digits
    detector = CPRDetector(net, eps=0.1, n_steps=4, **COMMON).fit(X[1000:1300], y[1000:1300])
    x, labels = torch.as_tensor(X[1500:1520]).requires_grad_(True), torch.arange(20) % 10
    statistic = detector.statistic_
    (found,) = torch.autograd.grad(statistic.at(x, labels, NOTHING).sum(), x)
    end = (x + statistic.change(x, labels)).detach().requires_grad_(True)
    own = labels[:, None]
    logits = net(end)
    margin = logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own)[:, 0]
    torch.testing.assert_close(found, torch.autograd.grad(margin.sum(), end)[0])


def test_cpr_searches_where_gradients_are_off(digits, net):
    X, y = digits
    detector = CPRDetector(net, eps=0.1, n_steps=4, **COMMON).fit(X[1000:1300], y[1000:1300])
    expected = detector.score_samples(X[1500:1550])
    with torch.inference_mode():
        found = detector.module_(torch.as_tensor(X[1500:1550]))
        np.testing.assert_array_equal(detector.score_samples(X[1500:1550]), expected)
    np.testing.assert_allclose(found.numpy(), expected)


def test_cpr_is_certain_where_the_classifier_is():
    """The search finds its way where a softmax has rounded to 0 or 1."""
    x = torch.tensor([[300.0, 0.0], [0.0, 300.0]])
    detector = CPRDetector(nn.Identity(), eps=2.0, n_steps=4, security_parameter=0.5)
    detector.set_params(calibration_fraction=0.5, random_state=0)
    detector.fit(np.array([[300.0, 0.0], [0.0, 300.0]] * 4, np.float32))
    values = detector.evidence_(x, torch.arange(2)).values[:, 0]
    torch.testing.assert_close(values, torch.full((2,), -296.0, dtype=torch.float64))


def test_eps_auto_is_a_share_of_the_range(digits, net):
    X, y = (part[1000:1100] for part in digits)
    wide = {**COMMON, "clip_values": (-1, 3)}
    assert CPRDetector(net, n_steps=1, **wide).fit(X, y).eps_ == pytest.approx(0.4)
    with pytest.raises(ValueError, match="give classifier"):
        CPRDetector(**COMMON).fit(X, y)
