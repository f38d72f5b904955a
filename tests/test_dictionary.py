"""The input defender, and how images become patches and come back."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from skmrr import InputDictionaryDefender
from skmrr.evaluation import false_alarm_interval
from skmrr.nn.patches import Patches

SMALL = {
    "patch_size": 4,
    "stride": 2,
    "n_atoms": 40,
    "n_nonzero_coefs": 3,
    "max_iter": 4,
    "clip_values": (0, 1),
    "security_parameter": 0.05,
    "random_state": 0,
}


@pytest.fixture(scope="module", params=["residual", "relabel"])
def defender(request, net, digits):
    X, y = (part[:1400] for part in digits)
    params = {**SMALL, "statistic": request.param}
    return InputDictionaryDefender(net, **params).fit(X, y)


def fgsm(net, X, eps):
    x = torch.as_tensor(X).requires_grad_(True)
    labels = net(x).argmax(1)
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), labels), x)
    attacked = (x + eps * gradient.sign()).clamp(0, 1).detach()
    return attacked[net(attacked).argmax(1) != labels].numpy()


class TestPatches:
    @pytest.mark.parametrize(
        ("shape", "size", "stride"),
        [
            ((1, 8, 8), 4, 1),
            ((3, 9, 11), 4, 3),
            ((1, 7, 7), 7, 7),
            ((2, 10, 10), 3, 2),
            ((5,), 1, 1),
        ],
    )
    def test_combining_undoes_extracting(self, shape, size, stride):
        patches = Patches(shape, size, stride)
        x = torch.rand(3, *shape)
        cut = patches.extract(x)
        assert cut.shape == (3, patches.n_patches, patches.dim)
        torch.testing.assert_close(patches.combine(cut), x)

    def test_every_pixel_lies_in_a_patch(self):
        """No border that an attacker could hide in."""
        patches = Patches((1, 10, 10), 4, 4)
        zeros = torch.zeros(100, 1, 10, 10)
        zeros.view(100, 100).fill_diagonal_(1.0)
        assert (patches.extract(zeros).flatten(1).amax(1) == 1).all()

    def test_overlapping_patches_are_averaged(self):
        patches = Patches((1, 2, 3), 2, 1)
        left_and_right = torch.tensor([0.0, 1.0]).repeat_interleave(4).view(1, 2, 4)
        image = patches.combine(left_and_right)
        torch.testing.assert_close(image[0, 0], torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]))

    @pytest.mark.parametrize(
        ("arguments", "cure"),
        [
            (((1, 8, 8), 9, 1), "patch_size ≤ 8"),
            (((1, 8, 8), 4, 5), "stride"),
            (((8, 8), 4, 1), "input_shape"),
        ],
    )
    def test_bad_grids(self, arguments, cure):
        with pytest.raises(ValueError, match=cure):
            Patches(*arguments)


class TestInputDictionaryDefender:
    def test_false_alarms(self, defender, digits):
        clean = digits[0][1400:]
        low, high = false_alarm_interval(0.05, len(clean), n_calibration=280)
        assert low <= np.mean(defender.predict(clean) == -1) <= high

    def test_sees_attacks(self, defender, net, digits):
        clean, attacked = digits[0][1400:], fgsm(net, digits[0][1400:], 0.2)
        assert len(attacked) > 50
        risk = np.r_[defender.risk(clean), defender.risk(attacked)]
        truth = np.r_[np.zeros(len(clean)), np.ones(len(attacked))]
        assert roc_auc_score(truth, risk) > 0.8

    def test_gradient_is_finite_and_not_zero(self, defender, net, digits):
        x = torch.as_tensor(digits[0][1400:1450]).requires_grad_(True)
        scores = defender.module_(x, net(x).argmax(1))
        (gradient,) = torch.autograd.grad(scores.sum(), x)
        assert torch.isfinite(gradient).all()
        assert (gradient.flatten(1).abs().amax(1) > 0).float().mean() > 0.9

    def test_gradient_lowers_the_risk(self, defender, net, digits):
        """The way down that the gradient shows is one."""
        x = torch.as_tensor(fgsm(net, digits[0][1400:], 0.2)).requires_grad_(True)
        labels = net(x).argmax(1)
        statistic = defender.evidence_(x, labels).values
        (gradient,) = torch.autograd.grad(statistic.sum(), x)
        moved = (x - 0.01 * gradient.sign()).detach()
        lower = defender.evidence_(moved, labels).values.detach() < statistic.detach()
        assert lower.float().mean() > 0.8  # the chosen atoms may change on the way

    def test_one_class_costs_what_one_class_costs(self, defender, net, digits):
        """Judging under the label alone gives what judging under all classes gives there."""
        x = torch.as_tensor(digits[0][1400:1420])
        labels = net(x).argmax(1)
        with torch.no_grad():
            every = defender.statistic_(x, defender.evidence_.ask(x))
            one, columns = defender.evidence_(x, labels)
        assert every.shape == (20, 10)
        torch.testing.assert_close(every.gather(1, columns[:, None]), one)

    def test_reconstruct(self, defender, digits):
        X = digits[0][1400:1420]
        rebuilt = defender.reconstruct(X)
        assert rebuilt.shape == X.shape
        assert np.square(rebuilt - X).mean() < 0.3 * np.square(X).mean()
        other = defender.reconstruct(X, labels=(digits[1][1400:1420] + 1) % 10)
        assert np.square(other - X).mean() > np.square(rebuilt - X).mean()

    def test_repeats_itself(self, defender, digits):
        again = clone(defender).fit(*(part[:1400] for part in digits))
        np.testing.assert_array_equal(again.dictionaries_, defender.dictionaries_)
        X = digits[0][1400:]
        np.testing.assert_array_equal(again.score_samples(X), defender.score_samples(X))

    def test_atoms_are_unit_vectors(self, defender):
        assert defender.dictionaries_.shape == (10, 40, 16)
        np.testing.assert_allclose(np.linalg.norm(defender.dictionaries_, axis=2), 1, rtol=1e-5)

    @pytest.mark.parametrize("shape", [(1, 12, 12), (3, 16, 12)])
    @pytest.mark.parametrize("remove_mean", [False, True])
    def test_channels_and_shapes(self, rng, shape, remove_mean):
        X = rng.random((60, *shape), dtype=np.float32)
        y = np.arange(60) % 2
        defender = InputDictionaryDefender(
            patch_size=5, stride=4, n_atoms=20, remove_mean=remove_mean, random_state=0
        ).set_params(security_parameter=0.1, max_iter=2)
        scores = defender.fit(X, y).score_samples(X)
        assert np.isfinite(scores).all()
        flat = clone(defender).set_params(input_shape=shape).fit(X.reshape(60, -1), y)
        np.testing.assert_array_equal(flat.score_samples(X.reshape(60, -1)), scores)

    def test_mean_is_not_the_dictionarys_business(self, rng):
        """Without means, brightness costs nothing."""
        X = rng.random((120, 1, 8, 8), dtype=np.float32) / 2
        params = {**SMALL, "remove_mean": True}
        defender = InputDictionaryDefender(**params).fit(X)
        labels = np.zeros(120, dtype=int)
        np.testing.assert_allclose(
            defender.score_samples(X + 0.5, labels=labels),
            defender.score_samples(X, labels=labels),
            atol=1e-2,
        )

    def test_photographs_take_bounded_memory(self, rng, monkeypatch):
        """Patches are cut for a few images at a time, however large the batch."""
        monkeypatch.setattr("skmrr.nn.patches.MAX_VALUES", 2**18)
        largest = []
        extract = Patches.extract

        def spy(self, x):
            cut = extract(self, x)
            largest.append(cut.numel())
            return cut

        monkeypatch.setattr(Patches, "extract", spy)
        X = rng.random((30, 3, 64, 64), dtype=np.float32)
        defender = InputDictionaryDefender(
            patch_size=8, stride=4, n_atoms=32, n_patches=500, max_iter=2, random_state=0
        ).set_params(security_parameter=0.2)
        defender.fit(X)
        largest.clear()
        defender.score_samples(X, labels=np.zeros(30, dtype=int))
        assert max(largest) <= 2**18

    def test_relabel_needs_the_classifier(self, digits):
        with pytest.raises(ValueError, match="classifier="):
            InputDictionaryDefender(statistic="relabel").fit(*digits)

    def test_patches_that_do_not_fit(self, digits):
        with pytest.raises(ValueError, match="patch_size ≤ 8"):
            InputDictionaryDefender(patch_size=9).fit(*digits)

    def test_blank_class_is_refused(self, digits):
        X, y = digits
        X = np.where((y == 3)[:, None, None, None], 0, X)
        with pytest.raises(ValueError, match="zero"):
            InputDictionaryDefender(**SMALL).fit(X, y)
