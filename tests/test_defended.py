"""Victim and detector as one classifier."""

import copy
import math

import pytest
import torch
from sklearn.frozen import FrozenEstimator
from torch import nn

from skmrr import (
    InputDictionaryDefender,
    LatentDefender,
    MarginDetector,
    MRREnsemble,
    NoiseDefender,
    replicate,
)
from skmrr.harmless import JPEG, Rounding, Shift
from skmrr.nn import DefendedClassifier, DetectorModule
from skmrr.nn.detector_module import Judged
from skmrr.nn.fusion import Alone
from skmrr.nn.sparse_coding import SparseCoder


@pytest.fixture(scope="module")
def defender(net, digits):
    X, y = digits
    return LatentDefender(
        replicate(net), classifier=net, clip_values=(0, 1), max_epochs=3, random_state=0
    ).fit(X[:1400], y[:1400])


@pytest.fixture(scope="module")
def dictionary(net, digits):
    X, y = digits
    return InputDictionaryDefender(
        net, patch_size=4, stride=2, n_atoms=16, n_nonzero_coefs=3, n_patches=500, max_iter=3,
        statistic="relabel", clip_values=(0, 1), random_state=0,
    ).fit(X[:1400], y[:1400])  # fmt: skip


@pytest.fixture(scope="module")
def ensemble(net, digits, defender):
    X, y = digits
    members = [
        ("latent", FrozenEstimator(defender), 1),
        ("noise", NoiseDefender(net), 1),
        ("margin", MarginDetector(), 1),
    ]
    return MRREnsemble(net, defenders=members, clip_values=(0, 1), random_state=0).fit(X, y)


@pytest.fixture
def noisy(digits):
    """Rows of which some are flagged and some are not."""
    x = torch.as_tensor(digits[0][1400:1700])
    generator = torch.Generator().manual_seed(0)
    size = torch.linspace(0, 0.7, len(x))[:, None, None, None]
    return (x + size * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)


@pytest.mark.parametrize("name", ["defender", "dictionary", "ensemble"])
@pytest.mark.parametrize("kappa", [1e-8, 1.0, 1e4])
def test_flags_exactly_what_the_estimator_flags(name, kappa, noisy, net, request):
    detector = request.getfixturevalue(name)
    network = detector.defended_classifier(security_parameter=0.2, kappa=kappa)
    detector.set_params(security_parameter=0.2)
    with torch.no_grad():
        answers = network(noisy).argmax(1)
    flagged = torch.as_tensor(detector.predict(noisy) == -1)
    assert 10 < flagged.sum() < 290
    assert torch.equal(answers == 10, flagged)
    assert torch.equal(answers[~flagged], net(noisy).argmax(1)[~flagged])


@pytest.mark.parametrize("name", ["defender", "dictionary", "ensemble"])
def test_judges_rows_as_they_arrive(name, noisy, net, request):
    detector = request.getfixturevalue(name).set_params(security_parameter=0.2)
    network = detector.defended_classifier(channels=[Rounding(2)])
    arrived = Rounding(2)(noisy)
    with torch.no_grad():
        logits, alarm = network.judge(noisy)
        assert torch.equal(network.victim(noisy), logits)
    assert torch.equal(logits.argmax(1), net(arrived).argmax(1))
    assert torch.equal(alarm > 0, torch.as_tensor(detector.predict(arrived) == -1))
    assert torch.equal(network.through([]).judge(arrived)[1], alarm)


def test_of_several_ways_the_mean_counts(defender, noisy):
    ways = [Rounding(2), Shift(0, 1)]
    both = defender.defended_classifier(channels=ways)
    alone = [defender.defended_classifier(channels=[way]) for way in ways]
    with torch.no_grad():
        labels = both.victim(noisy).argmax(1)
        logits, alarm = both.judge(noisy)
        parts = [network.judge(noisy, labels) for network in alone]
    torch.testing.assert_close(logits, (parts[0][0] + parts[1][0]) / 2)
    torch.testing.assert_close(alarm, (parts[0][1] + parts[1][1]) / 2)


def test_gradients_pass_a_channel(defender, noisy):
    network = defender.defended_classifier(channels=[JPEG(75)])
    x = noisy[100:200].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network.judge(x)[1].sum(), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).flatten(1).any(1).all()


def test_sign_survives_rounding(net, noisy, defender):
    """An alarm far below the rounding of the logits still decides."""

    class Whisper(DetectorModule):
        def judge(self, x, labels=None, passed=None):
            sign = torch.where(torch.arange(len(x)) % 2 == 0, 1.0, -1.0).double()
            return Judged(math.log(0.5) + 1e-12 * sign, labels, sign[:, None])

    loud = nn.Sequential(net, nn.Linear(10, 10, bias=False))
    nn.init.eye_(loud[1].weight).data.mul_(1e6)
    whisper = Whisper(defender.evidence_, nn.Identity(), Alone())
    network = DefendedClassifier(whisper, 0.5, classifier=loud)
    flagged = network(noisy).argmax(1) == 10
    assert torch.equal(flagged, torch.arange(len(noisy)) % 2 == 1)


@pytest.mark.parametrize("name", ["defender", "dictionary", "ensemble"])
def test_label_aware_view_is_left_iff_misclassified_and_unflagged(name, noisy, net, request):
    detector = request.getfixturevalue(name)
    network = detector.defended_classifier(security_parameter=0.5)
    generator = torch.Generator().manual_seed(1)
    labels = net(noisy).argmax(1)
    labels[::2] = torch.randint(0, 10, labels[::2].shape, generator=generator)
    with torch.no_grad():
        left = network.label_aware(labels)(noisy).argmax(1) != labels
        answers = network(noisy).argmax(1)
    expected = (answers != labels) & (answers != 10)
    assert torch.equal(left, expected)
    assert 0 < left.sum() < len(left)


def test_one_label_serves_batches_of_any_size(defender, noisy):
    view = defender.defended_classifier().label_aware(torch.tensor(3))
    assert view(noisy[:7]).shape == (7, 10)
    torch.testing.assert_close(view(noisy[:7])[:2], view(noisy[:2]))


def test_labels_of_another_batch_are_refused(defender, noisy):
    view = defender.defended_classifier().label_aware(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="4 rows but 3 labels"):
        view(noisy[:4])


@pytest.mark.parametrize("name", ["defender", "dictionary", "ensemble"])
def test_gradient_of_flagged_is_finite_not_zero_and_a_difference_quotient(name, noisy, request):
    detector = request.getfixturevalue(name)
    network = copy.deepcopy(detector.defended_classifier(security_parameter=0.5))
    dtype = torch.float32 if name == "dictionary" else torch.float64  # codes are single
    network, x = network.to(dtype), noisy[150:170].to(dtype).requires_grad_(True)
    flagged = network(x)[:, -1]
    (gradient,) = torch.autograd.grad(flagged.sum(), x)
    assert torch.isfinite(gradient).all()
    moving = gradient.flatten(1).abs().amax(1) > 0
    assert moving.float().mean() > 0.9
    direction = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
    step = 1e-3 if name == "dictionary" else 1e-7
    with torch.no_grad():
        ahead, behind = (network(x + s * direction)[:, -1] for s in (step, -step))
    slope = (ahead - behind) / (2 * step)
    expected = gradient.flatten(1).norm(dim=1)
    close = torch.isclose(slope, expected, rtol=0.05, atol=1e-3)
    assert close.double().mean() >= 0.75  # between two steps a fold of the network may lie


def test_straight_through_passes_sparse_coding_as_the_identity(dictionary, noisy):
    """Backward sees the classifier at the reconstruction, as if nothing had been coded."""
    x = noisy[:5].clone().requires_grad_(True)
    reconstruction = dictionary.statistic_.reconstruction
    columns = torch.zeros(5, dtype=torch.int64)
    exact = torch.autograd.grad(reconstruction(x, columns).square().sum(), x)[0]
    network = dictionary.defended_classifier(straight_through=True)
    through = network.detector.evidence.members.statistics[0].reconstruction
    values = through(x, columns)
    passed = torch.autograd.grad(values.square().sum(), x)[0]
    torch.testing.assert_close(values, reconstruction(x, columns))
    torch.testing.assert_close(passed, 2 * values.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(passed, exact)
    coders = [part for part in dictionary.module_.modules() if isinstance(part, SparseCoder)]
    assert not any(coder.straight_through for coder in coders)


def test_ensemble_asks_the_classifier_once(ensemble, net, noisy):
    calls = []
    network = ensemble.defended_classifier()
    network.classifier.network.register_forward_hook(lambda *_: calls.append(1))
    logits, _ = network.judge(noisy[:5])
    assert len(calls) == 1
    torch.testing.assert_close(logits, net(noisy[:5]))


def test_the_detector_is_asked_at_the_class_given(defender, noisy):
    network = defender.defended_classifier(security_parameter=0.1)
    labels = torch.full((5,), 7)
    _, alarm = network.judge(noisy[:5], labels)
    scores = defender.score_samples(noisy[:5], labels=labels)
    expected = torch.log(torch.tensor(0.1, dtype=torch.float64)) - torch.as_tensor(scores)
    torch.testing.assert_close(alarm, expected)


def test_leaves_the_classifier_in_its_mode(digits, make_net):
    X, y = digits
    classifier = make_net().train()
    detector = NoiseDefender(classifier, clip_values=(0, 1), random_state=0).fit(X, y)
    detector.defended_classifier()
    assert classifier.training


@pytest.mark.parametrize(
    ("params", "message"),
    [({"security_parameter": 1.5}, "security_parameter"), ({"kappa": 0.0}, "kappa")],
)
def test_bad_parameters_are_refused(defender, params, message):
    with pytest.raises(ValueError, match=message):
        defender.defended_classifier(**params)


def test_without_a_classifier_there_is_nothing_to_defend(digits):
    X, y = digits
    detector = NoiseDefender(random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="give classifier"):
        detector.defended_classifier()
