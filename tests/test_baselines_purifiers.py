"""MagNet, APE-GAN and Efficient Defenses: rivals that train a network of their own."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from torch import nn

from skmrr.baselines import APEGANDetector, EfficientDefensesDetector, MagNetDetector
from skmrr.baselines.efficient_defenses import BoundedReLU, bound_relus
from skmrr.baselines.magnet import jensen_shannon
from skmrr.nn.tapped import NOTHING

COMMON = {"clip_values": (0, 1), "security_parameter": 0.05, "random_state": 0}
MAGNET = {"max_epochs": 4, "training_batch_size": 16, "learning_rate": 0.03, **COMMON}
APEGAN = {
    "eps": 0.15, "adversarial_weight": 0.05, "width": 16, "max_epochs": 6,
    "training_batch_size": 32, "learning_rate": 2e-3, **COMMON,
}  # fmt: skip
HARDENED = {"max_epochs": 4, **COMMON}

KINDS = ["magnet", "apegan", "hardened"]


def make(kind, net, **params):
    family, defaults = {
        "magnet": (MagNetDetector, MAGNET),
        "apegan": (APEGANDetector, APEGAN),
        "hardened": (EfficientDefensesDetector, HARDENED),
    }[kind]
    return family(net, **{**defaults, **params})


@pytest.fixture(scope="module")
def fitted(net, digits):
    X, y = (part[:1400] for part in digits)
    return {kind: make(kind, net).fit(X, y) for kind in KINDS}


@pytest.fixture(params=KINDS)
def detector(request, fitted):
    return fitted[request.param]


@pytest.fixture(scope="module")
def attacked(net, digits):
    """Held-out rows that one gradient sign step makes the classifier mistake."""
    X, y = (torch.as_tensor(part[1400:]) for part in digits)
    x = X.clone().requires_grad_(True)
    loss = nn.functional.cross_entropy(net(x), y)
    (gradient,) = torch.autograd.grad(loss, x)
    moved = (X + 0.3 * gradient.sign()).clamp(0, 1)
    return moved[net(moved).argmax(1) != y].numpy()


class TestAll:
    def test_sees_attacks(self, detector, digits, attacked):
        clean = digits[0][1400:]
        assert np.mean(detector.predict(clean) == -1) < 0.12
        score = np.concatenate([detector.score_samples(clean), detector.score_samples(attacked)])
        is_attacked = np.arange(len(score)) >= len(clean)
        assert roc_auc_score(is_attacked, -score) > 0.7

    def test_repeats_itself_without_touching_the_seed_of_others(self, detector, digits):
        X, y = (part[:200] for part in digits)
        states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        first, second = (
            clone(detector).set_params(max_epochs=1).fit(X, y).score_samples(digits[0][1400:])
            for _ in range(2)
        )
        np.testing.assert_array_equal(first, second)
        assert torch.equal(torch.get_rng_state(), states[0])
        np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002

    def test_gradient_is_finite_and_not_zero(self, detector, attacked):
        x = torch.as_tensor(attacked[:30]).requires_grad_(True)
        flagged = detector.defended_classifier()(x)[:, -1]
        (gradient,) = torch.autograd.grad(flagged.sum(), x)
        assert gradient.isfinite().all()
        labels = detector.classifier(x).argmax(1)
        (gradient,) = torch.autograd.grad(detector.module_(x, labels).sum(), x)
        assert gradient.isfinite().all()
        assert (gradient.abs().amax((1, 2, 3)) > 0).float().mean() > 0.9

    def test_gradient_lowers_the_risk(self, detector, attacked):
        x = torch.as_tensor(attacked).requires_grad_(True)
        statistic = detector.evidence_(x).values
        (gradient,) = torch.autograd.grad(statistic.sum(), x)
        step = (
            1e-3 * gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
        )
        labels = detector.classifier(x).argmax(1)
        moved = detector.evidence_(x - step, labels).values
        assert ((statistic - moved) > 0).float().mean() > 0.9

    def test_forward_agrees_with_at(self, detector, digits):
        x = torch.as_tensor(digits[0][1400:1410])
        columns = torch.arange(10)
        passed = detector.evidence_.ask(x)
        everywhere = detector.statistic_(x, passed)
        assert everywhere.shape == (10, 10)
        assert everywhere.dtype == torch.float64
        at = detector.statistic_.at(x, columns, passed)
        torch.testing.assert_close(at, everywhere.diagonal())

    def test_flat_rows_are_the_same_rows(self, detector, digits):
        X, y = (part[:200] for part in digits)
        quick = clone(detector).set_params(max_epochs=1)
        scores = clone(quick).fit(X, y).score_samples(X)
        flat = clone(quick).set_params(input_shape=(1, 8, 8)).fit(X.reshape(200, 64), y)
        np.testing.assert_array_equal(flat.score_samples(X.reshape(200, 64)), scores)

    def test_interrupted_it_is_what_it_was(self, detector, digits, monkeypatch):
        again = clone(detector).set_params(max_epochs=1).fit(*(part[:200] for part in digits))
        scores = again.score_samples(digits[0][:20])

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.Adam, "step", interrupt)
            with pytest.raises(KeyboardInterrupt):
                again.fit(*(part[200:400] for part in digits))
        np.testing.assert_array_equal(again.score_samples(digits[0][:20]), scores)

    def test_classes_beyond_the_logits_are_refused(self, detector, digits):
        X, y = digits
        with pytest.raises(ValueError, match="y holds class 14, but there are 10 logits"):
            clone(detector).set_params(calibration_fraction=0).fit(X[:200], y[:200] + 5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_other_precision_and_no_declared_range(self, kind, net, digits):
        X, y = (part[:200] for part in digits)
        rows = 255 * X.astype(np.float64)
        detector = make(kind, None, clip_values=None, max_epochs=1).fit(rows, y)
        assert np.isfinite(detector.score_samples(rows)).all()


class TestMagNet:
    def test_training_improves_the_reconstruction(self, fitted, digits):
        magnet, X = fitted["magnet"], digits[0][1400:]
        assert magnet.history_["loss"][-1] < 0.7 * magnet.history_["loss"][0]
        assert np.square(magnet.reform(X) - X).mean() < 0.7 * X.var()

    def test_its_own_logits_and_those_of_the_rebuilt_row_are_two_passes(self, fitted, digits):
        magnet = pickle.loads(pickle.dumps(fitted["magnet"]))  # with a classifier of its own
        calls = []
        for classifier in (magnet.evidence_.classifier, magnet.statistic_.classifier):
            classifier.register_forward_hook(lambda *_: calls.append(1))
        magnet.score_samples(digits[0][1400:1500])
        assert len(calls) == 2

    @pytest.mark.parametrize("scale", [1, 255])
    def test_warns_if_it_answers_with_the_mean(self, scale, digits):
        X, y = scale * digits[0][:1400], digits[1][:1400]
        params = {**MAGNET, "clip_values": (0, scale)}
        with pytest.warns(ConvergenceWarning, match="learning_rate"):
            MagNetDetector(**params).fit(X[:300], y[:300])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            MagNetDetector(**params).fit(X, y)

    def test_reform_keeps_shape_and_range(self, fitted, digits):
        X = digits[0][1400:]
        reformed = fitted["magnet"].reform(X)
        assert reformed.shape == X.shape
        assert 0 <= reformed.min() <= reformed.max() <= 1
        flat = MagNetDetector(**{**MAGNET, "max_epochs": 1}).fit(X.reshape(len(X), 64))
        assert flat.reform(X[:9].reshape(9, 64)).shape == (9, 64)

    def test_divergence_is_that_of_scipy(self, rng):
        logits, others = rng.normal(0, 5, (2, 50, 7))
        found = jensen_shannon(torch.as_tensor(logits), torch.as_tensor(others))
        expected = jensenshannon(softmax(logits, axis=1), softmax(others, axis=1), axis=1) ** 2
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)

    def test_statistics_follow_their_formulas(self, fitted, net, digits):
        magnet, X = fitted["magnet"], digits[0][1400:1450]
        reformed = magnet.reform(X)
        with torch.no_grad():
            x = torch.as_tensor(X)
            found = magnet.statistic_.statistics(x, magnet.evidence_.ask(x)).numpy()
            before, after = (net(torch.as_tensor(rows)).double().numpy() for rows in (X, reformed))
        np.testing.assert_allclose(found[:, 0], np.abs(X - reformed).mean((1, 2, 3)), rtol=1e-5)
        for k, t in ((1, 10), (2, 40)):
            p, q = softmax(before / t, axis=1), softmax(after / t, axis=1)
            np.testing.assert_allclose(found[:, k], jensenshannon(p, q, axis=1) ** 2, rtol=1e-3)

    def test_odd_by_any_statistic_is_odd(self, fitted, digits):
        statistic = fitted["magnet"].statistic_
        x = torch.as_tensor(digits[0][1400:])
        passed = fitted["magnet"].evidence_.ask(x)
        columns = torch.zeros(len(x), dtype=torch.int64)
        each = -statistic.survival(statistic.statistics(x, passed), columns)
        torch.testing.assert_close(statistic.at(x, columns, passed), each.amax(1))
        # Comparable: on clean rows each is exponential, of mean 1, and is sometimes the largest.
        assert ((each.mean(0) > 0.7) & (each.mean(0) < 1.4)).all()
        assert len(each.argmax(1).unique()) == 3

    @pytest.mark.parametrize(("statistic", "n"), [("reconstruction", 1), ("divergence", 2)])
    def test_each_statistic_by_itself(self, statistic, n, net, digits):
        params = {**MAGNET, "statistic": statistic, "max_epochs": 1, "norm": 2}
        magnet = MagNetDetector(net, **params).fit(*(part[:300] for part in digits))
        x = torch.as_tensor(digits[0][1400:1410])
        assert magnet.statistic_.statistics(x, magnet.evidence_.ask(x)).shape == (10, n)
        assert np.isfinite(magnet.score_samples(x)).all()

    def test_divergence_needs_the_classifier(self, digits):
        with pytest.raises(ValueError, match="give classifier"):
            MagNetDetector(statistic="divergence").fit(*digits)

    def test_defended_answers_with_the_class_of_the_reformed_row(self, fitted, net, attacked):
        magnet = fitted["magnet"]
        x = torch.as_tensor(attacked)
        defended = magnet.defended_classifier(reform=True, security_parameter=0.05)
        with torch.no_grad():
            answers = defended(x).argmax(1).numpy()
            reformed = net(torch.as_tensor(magnet.reform(attacked))).argmax(1).numpy()
            alone = magnet.reformed_classifier()(x).argmax(1).numpy()
            unreformed = magnet.defended_classifier(security_parameter=0.05)(x).argmax(1).numpy()
        flagged = magnet.predict(attacked) == -1
        assert 0 < flagged.sum() < len(x)
        np.testing.assert_array_equal(answers == 10, flagged)
        np.testing.assert_array_equal(answers[~flagged], reformed[~flagged])
        np.testing.assert_array_equal(alone, reformed)
        np.testing.assert_array_equal(unreformed[~flagged], net(x).argmax(1).numpy()[~flagged])
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(defended(x)[:, 0].sum(), x)
        assert gradient.abs().amax((1, 2, 3)).min() > 0

    def test_nothing_to_show_reformed_rows_to(self, digits):
        magnet = MagNetDetector(**{**MAGNET, "max_epochs": 1}).fit(*(p[:200] for p in digits))
        with pytest.raises(ValueError, match="give classifier"):
            magnet.reformed_classifier()

    def test_own_autoencoder(self, net, digits):
        template = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
        before = [p.clone() for p in template.parameters()]
        params = {**MAGNET, "autoencoder": template, "max_epochs": 1}
        magnet = MagNetDetector(net, **params).fit(*(part[:200] for part in digits))
        assert all(map(torch.equal, template.parameters(), before))
        reformed = magnet.reform(digits[0][1400:])
        assert 0 <= reformed.min() <= reformed.max() <= 1
        params["autoencoder"] = nn.Flatten()
        with pytest.raises(ValueError, match="rows of the same shape"):
            MagNetDetector(net, **params).fit(*digits)


class TestAPEGAN:
    def test_purify_undoes_most_of_an_attack(self, fitted, net, digits):
        apegan = fitted["apegan"]
        X, y = (torch.as_tensor(part[1400:]) for part in digits)
        attacked = apegan._attack(apegan.evidence_.classifier, X, y).clamp(0, 1)
        purified = apegan.purify(attacked)
        assert purified.shape == X.shape
        assert 0 <= purified.min() <= purified.max() <= 1
        error, error_before = (
            np.square(rows - X.numpy()).mean() for rows in (purified, attacked.numpy())
        )
        assert error < 0.8 * error_before
        with torch.no_grad():
            right, right_before = (
                (net(torch.as_tensor(rows)).argmax(1) == y).float().mean()
                for rows in (purified, attacked)
            )
        assert right > right_before + 0.2

    def test_attack_has_the_size_asked_for(self, net, digits):
        apegan = APEGANDetector(net, **{**APEGAN, "max_epochs": 1, "eps": 0.1})
        apegan.fit(*(part[:200] for part in digits))
        x, y = (torch.as_tensor(part[:50]) for part in digits)
        change = (apegan._attack(apegan.evidence_.classifier, x, y) - x).abs()
        assert apegan.eps_ == 0.1
        assert change.max() <= 0.1 + 1e-6
        assert change.median() > 0.099

    def test_statistic_is_positive_where_the_class_changes(self, fitted, net, attacked):
        apegan, x = fitted["apegan"], torch.as_tensor(attacked)
        with torch.no_grad():
            labels = net(x).argmax(1)
            statistic = apegan.evidence_(x, labels).values[:, 0]
            again = net(torch.as_tensor(apegan.purify(attacked))).argmax(1)
        assert torch.equal(statistic > 0, again != labels)
        assert (again != labels).sum() > 0

    def test_without_a_classifier_the_change_counts(self, digits):
        X, y = (part[:300] for part in digits)
        apegan = APEGANDetector(**{**APEGAN, "max_epochs": 1}).fit(X, y)
        change = np.square(apegan.purify(X) - X).sum((1, 2, 3))
        with torch.no_grad():
            found = apegan.statistic_(torch.as_tensor(X), NOTHING)
        assert found.shape == (300, 10)
        np.testing.assert_allclose(found[:, 3].numpy(), change, rtol=1e-4)


class TestEfficientDefenses:
    def test_bounded_relu_clamps(self):
        x = torch.linspace(-3, 3, 25).requires_grad_(True)
        y = BoundedReLU(1.5)(x)
        torch.testing.assert_close(y, torch.minimum(x.relu(), torch.tensor(1.5)))
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(slope[(x < 0) | (x > 1.5)], torch.zeros(18))

    def test_every_relu_is_replaced_in_the_copy_alone(self, fitted, net):
        hardened = fitted["hardened"].hardened_classifier()
        kinds = [type(part) for part in hardened]
        assert kinds == [BoundedReLU if type(p) is nn.ReLU else type(p) for p in net]
        assert {n: m.bound for n, m in hardened.named_modules() if isinstance(m, BoundedReLU)} == (
            fitted["hardened"].bounds_
        )

    def test_measured_bounds_cut_little(self, net, digits, make_net):
        x = torch.as_tensor(digits[0][:200])
        network = make_net()
        network.load_state_dict(net.state_dict())
        bounds = bound_relus(network, 1.0, x)
        with torch.no_grad():
            activations = net[1](net[0](x))
        cut = (activations > bounds["1"]).sum() / (activations > 0).sum()
        assert 0.005 < cut < 0.015

    def test_a_relu_used_twice_is_bounded_in_both_places(self):
        relu = nn.ReLU()
        network = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu)
        assert set(bound_relus(network, 2.0, torch.ones(4, 3))) == {"1", "3"}
        assert not any(isinstance(part, nn.ReLU) for part in network)

    def test_hardened_bears_more_noise(self, fitted, net, digits, rng):
        X, y = digits[0][1400:], torch.as_tensor(digits[1][1400:])
        noisy = torch.as_tensor((X + rng.normal(0, 0.4, X.shape)).clip(0, 1).astype(np.float32))
        hardened = fitted["hardened"].hardened_classifier()
        with torch.no_grad():
            right, right_of_victim, right_clean = (
                (network(x).argmax(1) == y).float().mean()
                for network, x in ((hardened, noisy), (net, noisy), (hardened, torch.as_tensor(X)))
            )
        assert right > right_of_victim + 0.03
        assert right_clean > 0.9

    def test_statistic_is_positive_where_the_copy_disagrees(self, fitted, net, attacked):
        detector, x = fitted["hardened"], torch.as_tensor(attacked)
        with torch.no_grad():
            labels = net(x).argmax(1)
            statistic = detector.evidence_(x, labels).values[:, 0]
            other = detector.hardened_classifier()(x).argmax(1)
        assert torch.equal(statistic > 0, other != labels)

    def test_from_scratch_forgets_the_weights(self, net, digits):
        params = {**HARDENED, "max_epochs": 1, "from_scratch": True, "learning_rate": 1e-9}
        detector = EfficientDefensesDetector(net, **params).fit(*(p[:200] for p in digits))
        hardened = detector.hardened_classifier()
        assert set(detector.bounds_.values()) == {1.0}
        assert not torch.allclose(hardened[0].weight, net[0].weight, atol=1e-3)

    def test_no_relu_module_is_worth_a_warning(self, digits):
        X, y = (part[:200] for part in digits)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with pytest.warns(UserWarning, match="no nn.ReLU module"):
            EfficientDefensesDetector(module=linear, **HARDENED).fit(X, y)
        silent = EfficientDefensesDetector(module=linear, bound=None, **HARDENED).fit(X, y)
        assert silent.bounds_ == {}

    def test_a_single_class_is_told_from_none(self, digits, rng):
        X = digits[0].reshape(-1, 64)
        detector = EfficientDefensesDetector(**HARDENED).fit(X[:1400])
        assert np.mean(detector.predict(X[1400:]) == -1) < 0.12
        odd = rng.random((200, 64)).astype(np.float32)
        assert np.mean(detector.predict(odd) == -1) > 0.9
