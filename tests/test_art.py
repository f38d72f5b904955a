"""Detectors inside ART, and ART's attacks on a defended classifier."""

import copy
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    AutoAttack,
    AutoProjectedGradientDescent,
    CarliniL2Method,
    FastGradientMethod,
    HopSkipJump,
    ProjectedGradientDescent,
    SquareAttack,
)
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from skmrr import (
    CertifiedDefender,
    LatentDefender,
    MarginDetector,
    MRREnsemble,
    NoiseDefender,
    replicate,
)
from skmrr.art import (
    MRRDetector,
    as_module,
    defended_classifier,
    judge_transfer,
    modern_attacks,
    paper_attacks,
    run_attacks,
)
from skmrr.baselines import MahalanobisDetector
from skmrr.nn.fingerprint import fingerprint
from skmrr.nn.intervals import IntervalMap

MEAN, STD = 0.3, 0.4


def wrap(model, **params):
    params = {"clip_values": (0, 1), "device_type": "cpu"} | params
    shape = (8, 8, 1) if not params.get("channels_first", True) else (1, 8, 8)
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, **params)


class Normalised(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((x - MEAN) / STD)


class ChannelsLast(Normalised):
    def forward(self, x):
        return self.model(x.movedim(-1, 1))


class Denormalised(Normalised):
    def forward(self, x):
        return self.model(x * STD + MEAN)


class Rounded(Preprocessor):
    """In numpy; ART lets gradients pass as if it changed nothing."""

    def __call__(self, x, y=None):
        return np.round(x * 7) / 7, y


class Squared(PreprocessorPyTorch):
    def forward(self, x, y=None):
        return x**2, y


@pytest.fixture(scope="module")
def template():
    estimator = LatentDefender(learning_rate=3e-3)
    return MRREnsemble(estimator=estimator, security_parameter=0.05, random_state=0)


@pytest.fixture(scope="module")
def defence(net, digits, template):
    X, y = digits
    defence = MRRDetector(wrap(net), template)
    defence.fit(X[1000:1500], y[1000:1500], nb_epochs=3)
    return defence


@pytest.fixture(scope="module")
def latent(net, digits):
    X, y = digits
    return LatentDefender(
        replicate(net),
        classifier=net,
        clip_values=(0, 1),
        max_epochs=3,
        security_parameter=0.05,
        random_state=0,
    ).fit(X[1000:1500], y[1000:1500])


@pytest.fixture(scope="module")
def defended(latent):
    return defended_classifier(latent)


@pytest.fixture(scope="module")
def threes(latent, digits):
    """Rows of class 3 that the victim gets right and the detector accepts."""
    X, y = digits
    rows = X[1500:][y[1500:] == 3]
    return rows[latent.classify(rows) == 3][:6]


def test_without_art_the_error_names_the_cure():
    program = "import sys; sys.modules['art'] = None; import skmrr.art"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'skmrr[art]'" in run.stderr


def test_detect_agrees_with_the_estimator(defence, digits):
    X = digits[0][1500:]
    report, is_adversarial = defence.detect(X)
    assert is_adversarial.shape == (len(X),)
    assert is_adversarial.dtype == bool
    assert_array_equal(is_adversarial, defence.detector_.predict(X) == -1)
    assert_array_equal(report["risk"], defence.detector_.risk(X))
    assert_array_equal(report["score"] < report["threshold"], is_adversarial)
    assert list(report["member_risks"]) == defence.detector_.member_names_
    assert 0 < is_adversarial.mean() < 0.2


def test_batches_change_nothing(defence, digits):
    X = digits[0][1500:1600]
    whole, flagged = defence.detect(X)
    batched, flagged_too = defence.detect(X, batch_size=7)
    assert_allclose(batched["score"], whole["score"], rtol=1e-5)
    assert_array_equal(flagged, flagged_too)
    assert defence.detector_.batch_size == 128


def test_index_and_one_hot_fit_alike(net, digits):
    X, y = (part[1000:1600] for part in digits)
    scores = []
    for labels in (y, np.eye(10)[y], None):
        defence = MRRDetector(wrap(net), LatentDefender(random_state=0))
        defence.fit(X, labels, nb_epochs=1, batch_size=32)
        scores.append(defence.detect(digits[0][1500:])[0]["score"])
    assert_array_equal(scores[0], scores[1])
    assert np.isfinite(scores[2]).all()


def test_one_hot_of_other_width_is_an_error(net, digits):
    with pytest.raises(ValueError, match="a column for each class"):
        MRRDetector(wrap(net)).fit(digits[0], np.eye(11)[digits[1]])


def test_epochs_and_batches_reach_the_defenders(defence):
    latent = defence.detector_.named_defenders_.latent_0
    assert (latent.max_epochs, latent.training_batch_size) == (3, 128)
    assert latent.clip_values == (0, 1)


def test_explicit_members_keep_their_epochs_and_their_map(net, digits):
    X, y = (part[1000:1500] for part in digits)
    members = [("latent", LatentDefender(max_epochs=2), 1), ("margin", MarginDetector(), 1)]
    defence = MRRDetector(wrap(net), MRREnsemble(defenders=members, security_parameter=0.05))
    defence.fit(X, y, nb_epochs=5)
    latent = defence.detector_.named_defenders_.latent
    assert (latent.max_epochs, latent.module) == (2, None)


@pytest.mark.parametrize(
    "detector",
    [
        LatentDefender(realign=False),
        MRREnsemble(estimator=LatentDefender(realign=False)),
        CertifiedDefender(
            IntervalMap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), certified_radius=0.1
        ),
    ],
    ids=["latent", "ensemble", "certified"],
)
def test_nothing_is_said_of_a_training_that_there_is_not(net, digits, detector):
    X, y = (part[1000:1500] for part in digits)
    defence = MRRDetector(wrap(net), detector.set_params(security_parameter=0.05, random_state=0))
    defence.fit(X, y, nb_epochs=3)
    assert np.isfinite(defence.detect(X[:5])[0]["score"]).all()


def test_default_is_the_ensemble(net, digits):
    X, y = (part[:1000] for part in digits)
    defence = MRRDetector(wrap(net))
    defence.fit(X, y, nb_epochs=1)
    assert isinstance(defence.detector_, MRREnsemble)
    assert defence.detector_.get_params()["estimator__exploration_radius"] == "auto"
    assert defence.detect(X[:5])[1].shape == (5,)


@pytest.mark.parametrize("kind", ["latent", "ensemble"])
def test_preprocessing_is_honoured(net, digits, template, kind):
    """ART's normalisation before a network, or the same inside of it."""
    X, y = (part[1000:1500] for part in digits)
    victim = Denormalised(net).eval()
    inside = Normalised(victim).eval()
    seeded = LatentDefender(security_parameter=0.05, random_state=0)
    reports = []
    for classifier in (wrap(victim, preprocessing=(MEAN, STD)), wrap(inside)):
        defence = MRRDetector(classifier, seeded if kind == "latent" else template)
        defence.fit(X, y, nb_epochs=1)
        reports.append(defence.detect(digits[0][1500:]))
    (one, flagged), (other, flagged_too) = reports
    assert_allclose(one["score"], other["score"], rtol=1e-3, atol=1e-4)
    assert np.mean(flagged != flagged_too) < 0.01


def test_preprocessed_module_agrees_with_art(net, digits):
    labels = np.eye(10, dtype=np.float32)[digits[1][:5]]
    for defences in (Rounded(), Squared(device_type="cpu")):
        classifier = wrap(net, preprocessing_defences=defences, preprocessing=(MEAN, STD))
        module = as_module(classifier)
        x = torch.tensor(digits[0][:5], requires_grad=True)
        logits = module(x)
        assert_allclose(logits.detach(), classifier.predict(digits[0][:5]), rtol=1e-5)
        loss = nn.functional.cross_entropy(logits, torch.as_tensor(labels).argmax(1))
        (gradient,) = torch.autograd.grad(loss, x)
        assert_allclose(gradient, classifier.loss_gradient(digits[0][:5], labels), atol=1e-6)


def test_channels_last(net, digits, template):
    X, y = (part[1000:1500] for part in digits)
    last = np.moveaxis(X, 1, -1)
    first_defence = MRRDetector(wrap(net), template)
    last_defence = MRRDetector(wrap(ChannelsLast(net).eval(), channels_first=False), template)
    first_defence.fit(X, y, nb_epochs=1)
    last_defence.fit(last, y, nb_epochs=1)
    one, other = first_defence.detect(X)[0], last_defence.detect(last)[0]
    assert_allclose(one["score"], other["score"], rtol=1e-4, atol=1e-5)
    classifier = defended_classifier(last_defence)
    assert classifier.input_shape == (8, 8, 1)
    assert_allclose(
        classifier.predict(last[:5]), defended_classifier(first_defence).predict(X[:5]), rtol=1e-3
    )


def test_layer_is_named_as_in_the_model(net, digits, template):
    X, y = (part[1000:1500] for part in digits)
    defence = MRRDetector(
        wrap(net, preprocessing=(MEAN, STD)), clone(template).set_params(layer="5")
    )
    defence.fit(X, y, nb_epochs=1)
    assert defence.detector_.layer == "model.5"
    several = MahalanobisDetector(layer=["0", "5:input"], security_parameter=0.05)
    defence = MRRDetector(wrap(net, preprocessing=(MEAN, STD)), several)
    defence.fit(X, y)
    assert defence.detector_.layer == ["model.0", "model.5:input"]


def test_clip_values_are_enforced(defence, digits):
    with pytest.raises(ValueError, match="outside the declared clip_values"):
        defence.detect(digits[0][:5] * 16)
    with pytest.raises(ValueError, match="outside the declared clip_values"):
        MRRDetector(defence.classifier).fit(16 * digits[0], digits[1])


def test_victim_stays_as_it_is(make_net, digits, template):
    X, y = (part[1000:1500] for part in digits)
    victim = make_net().train()
    before = copy.deepcopy(victim.state_dict())
    defence = MRRDetector(wrap(victim), template)
    defence.fit(X, y, nb_epochs=1)
    defence.detect(X[:5])
    classifier = defended_classifier(defence)
    classifier.loss_gradient(X[:5], np.eye(11, dtype=np.float32)[y[:5]])
    assert all(module.training for module in victim.modules())
    assert not any(module._forward_hooks for module in victim.modules())
    assert not any(module._forward_pre_hooks for module in victim.modules())
    assert all(parameter.requires_grad for parameter in victim.parameters())
    for name, value in victim.state_dict().items():
        assert torch.equal(value, before[name])


def test_defence_params_are_attributes(net, template, latent):
    defence = MRRDetector(wrap(net), latent)
    assert defence.get_params() == {"classifier": defence.classifier, "detector": latent}
    defence.set_params(detector=latent)
    assert defence.detector_ is latent
    defence.set_params(detector=template)
    assert defence.detector is template
    assert defence.detector_ is None
    with pytest.raises(TypeError, match="give a detector of skmrr"):
        defence.set_params(detector="ensemble")
    with pytest.raises(TypeError, match="PyTorchClassifier"):
        MRRDetector(net)


def test_fitted_detector_is_ready(net, digits, latent):
    X = digits[0][1500:]
    assert_array_equal(MRRDetector(wrap(net), latent).detect(X)[0]["risk"], latent.risk(X))


def test_fitted_detector_without_classifier_hears_the_classifiers_decisions(net, digits):
    X, y = digits
    detector = NoiseDefender(random_state=0).fit(X[:1000], y[:1000])
    classifier = wrap(Denormalised(net).eval(), preprocessing=(MEAN, STD))
    score = MRRDetector(classifier, detector).detect(X[1000:1100])[0]["score"]
    labels = net(torch.as_tensor(X[1000:1100])).argmax(1).numpy()
    assert_allclose(score, detector.score_samples(X[1000:1100], labels=labels))


def test_fitted_detector_that_skips_preprocessing_is_refused(net, latent):
    with pytest.raises(ValueError, match="without the preprocessing"):
        MRRDetector(wrap(net, preprocessing=(MEAN, STD)), latent)


def test_calibrate_sets_the_threshold_anew(net, digits, latent):
    X = digits[0][1500:]
    defence = MRRDetector(wrap(net), latent)
    before = latent.score_samples(X)
    defence.calibrate(X)
    assert np.mean(defence.detect(X)[1]) <= 0.05
    assert_array_equal(latent.score_samples(X), before)


def test_fitted_detector_may_be_calibrated_here(net, digits, latent):
    X, y = digits
    bare = clone(latent).set_params(calibration_fraction=0).fit(X[1000:1500], y[1000:1500])
    defence = MRRDetector(wrap(net), bare)
    with pytest.raises(NotFittedError, match="call calibrate"):
        defence.detect(X[1500:])
    defence.calibrate(X[1500:])
    assert np.mean(defence.detect(X[1500:])[1]) <= 0.05
    with pytest.raises(ValueError, match="without the preprocessing"):
        MRRDetector(wrap(net, preprocessing=(MEAN, STD)), bare)


def test_unfitted_is_an_error(net, template, digits):
    defence = MRRDetector(wrap(net), template)
    with pytest.raises(NotFittedError, match="call fit"):
        defence.detect(digits[0])
    with pytest.raises(NotFittedError, match="call fit"):
        defended_classifier(defence)


def test_defended_classifier_needs_its_parts(net, digits, latent):
    X, y = digits
    with pytest.raises(NotFittedError, match="not fitted"):
        defended_classifier(LatentDefender())
    with pytest.raises(ValueError, match="no classifier"):
        defended_classifier(NoiseDefender(clip_values=(0, 1)).fit(X, y))
    with pytest.raises(ValueError, match="clip_values"):
        defended_classifier(copy.copy(latent).set_params(clip_values=None))
    with pytest.raises(ValueError, match="one class, 0 to 9"):
        defended_classifier(latent, labels=10)


def test_defended_classifier_flags_as_the_estimator_does(latent, defended, digits):
    X = digits[0][1500:]
    answers = defended.predict(X).argmax(1)
    assert_array_equal(answers == 10, latent.predict(X) == -1)
    assert_array_equal(np.where(answers == 10, -1, answers), latent.classify(X))
    strict = defended_classifier(latent, security_parameter=0.5)
    flagged = strict.predict(X).argmax(1) == 10
    assert_array_equal(flagged, latent.score_samples(X) < np.log(0.5))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", ["weight norm", "double"])
def test_defended_classifier_of_unusual_tensors(digits, kind):
    X, y = digits
    linear = nn.Linear(64, 10)
    part = nn.utils.weight_norm(linear) if kind == "weight norm" else linear.double()
    detector = NoiseDefender(nn.Sequential(nn.Flatten(), part), clip_values=(0, 1))
    answers = defended_classifier(detector.fit(X, y, labels=y)).predict(X[:20]).argmax(1)
    assert_array_equal(np.where(answers == 10, -1, answers), detector.classify(X[:20]))


@pytest.mark.parametrize("labels", [None, 3])
def test_gradients_agree_with_autograd(latent, digits, labels):
    classifier = defended_classifier(latent, labels=labels)
    x = torch.tensor(digits[0][1500:1506], requires_grad=True)
    y = torch.arange(6)
    one_hot = np.eye(classifier.nb_classes, dtype=np.float32)[y]
    logits = classifier.model(x)
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), x, retain_graph=True)
    found = classifier.loss_gradient(x.detach().numpy(), one_hot)
    assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert np.isfinite(found).all()
    assert found.any(axis=(1, 2, 3)).all()
    of_classes = classifier.class_gradient(x.detach().numpy())
    assert of_classes.shape == (6, classifier.nb_classes, 1, 8, 8)
    assert np.isfinite(of_classes).all()
    for k in range(classifier.nb_classes):
        (expected,) = torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)
        assert_allclose(of_classes[:, k], expected, rtol=1e-4, atol=1e-6)
        assert of_classes[:, k].any()


def test_defended_classifier_stays_in_evaluation_mode(defended, digits):
    defended.predict(digits[0][:5], training_mode=True)
    assert not any(module.training for module in defended.model.modules())


ATTACKS = {
    "FGSM": lambda c: FastGradientMethod(c, eps=0.3),
    "PGD": lambda c: ProjectedGradientDescent(c, eps=0.3, eps_step=0.05, max_iter=8, verbose=False),
    "APGD": lambda c: AutoProjectedGradientDescent(
        c, eps=0.3, eps_step=0.1, max_iter=5, nb_random_init=1, verbose=False
    ),
    "APGD DLR": lambda c: AutoProjectedGradientDescent(
        c, loss_type="difference_logits_ratio", eps=0.3, max_iter=5, nb_random_init=1, verbose=False
    ),
    "Carlini": lambda c: CarliniL2Method(
        c, max_iter=5, binary_search_steps=3, initial_const=1.0, learning_rate=0.1, verbose=False
    ),
    "Square": lambda c: SquareAttack(c, eps=0.3, max_iter=50, verbose=False),
    "HopSkipJump": lambda c: HopSkipJump(
        c, max_iter=2, max_eval=100, init_eval=10, init_size=50, verbose=False
    ),
    "AutoAttack": lambda c: AutoAttack(
        c,
        eps=0.3,
        attacks=[
            AutoProjectedGradientDescent(c, eps=0.3, max_iter=5, nb_random_init=1, verbose=False),
            SquareAttack(c, eps=0.3, max_iter=20, verbose=False),
        ],
    ),
    "AutoAttack whole": lambda c: AutoAttack(c, eps=0.3),
}
SLOW = {"AutoAttack whole"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in ATTACKS]
)
def test_successes_are_wrong_and_unflagged(latent, threes, name):
    classifier = defended_classifier(latent, labels=3)
    np.random.seed(0)  # noqa: NPY002 - ART's own source of randomness
    y = np.full(len(threes), 3)
    found = ATTACKS[name](classifier).generate(threes, np.eye(10, dtype=np.float32)[y])
    success = classifier.predict(found).argmax(1) != 3
    answers = latent.classify(found)
    assert_array_equal(success, (answers != 3) & (answers != -1))
    assert found.min() >= 0
    assert found.max() <= 1
    if name in {"PGD", "Carlini"}:
        assert success.any()


@pytest.mark.parametrize("name", ["FGSM", "PGD", "APGD", "Square"])
def test_attacks_run_on_all_classes(defended, threes, name):
    y = np.eye(11, dtype=np.float32)[np.full(len(threes), 3)]
    found = ATTACKS[name](defended).generate(threes, y)
    assert found.shape == threes.shape
    assert np.isfinite(found).all()


@pytest.fixture(scope="module")
def suite():
    return paper_attacks(fgsm=(0.2,), bim=(0.2,), carlini=(0,), max_iter=10)


def test_suite_reports_what_it_found(net, digits, suite):
    X, y = (part[1500:1520] for part in digits)
    classifier = wrap(net)
    results = run_attacks(classifier, suite, X, y, batch_size=8)
    assert [name.split()[0] for name in results] == ["FGSM", "BIM", "DeepFool", "JSMA", "CW"]
    for result in results.values():
        found, success = result.adversarial.numpy(), result.success.numpy()
        assert success.any()
        assert np.isnan(found[~success]).all()
        assert np.isinf(result.distortion.numpy()[~success]).all()
        assert (classifier.predict(found[success]).argmax(1) != y[success]).all()
        changes = np.sqrt(np.square(found - X).sum((1, 2, 3)))[success]
        assert_allclose(result.distortion.numpy()[success], changes, rtol=1e-5)


def test_suite_on_a_defended_classifier(latent, threes, suite):
    classifier = defended_classifier(latent, labels=3)
    y = np.full(len(threes), 3)
    for result in run_attacks(classifier, suite, threes, y).values():
        if result.success.any():
            answers = latent.classify(result.adversarial[result.success])
            assert not np.isin(answers, (-1, 3)).any()


def test_suite_is_cached_by_weights(make_net, digits, tmp_path):
    X, y = (part[:4] for part in digits)
    memory = joblib.Memory(tmp_path, verbose=0)
    attacks = paper_attacks(fgsm=(0.2,), bim=(), deepfool=None, jsma=(), carlini=())
    calls = []

    class Counted(FastGradientMethod):
        def generate(self, *args, **kwargs):
            calls.append(1)
            return super().generate(*args, **kwargs)

    globals()["Counted"] = Counted
    Counted.__qualname__ = "Counted"
    attacks = {"FGSM": attacks["FGSM 0.2"]._replace(method=Counted)}
    for seed, expected in ((0, 1), (0, 1), (1, 2)):
        run_attacks(wrap(make_net(seed)), attacks, X, y, memory=memory)
        assert len(calls) == expected


class Descent(nn.CrossEntropyLoss):
    """Loss whose ascent makes the classifier surer."""

    def forward(self, *args):
        return -super().forward(*args)


def test_suite_is_cached_by_loss(net, digits, tmp_path):
    X, y = (part[:50] for part in digits)
    suite = paper_attacks(fgsm=(0.2,), bim=(), deepfool=None, jsma=(), carlini=())
    memory = joblib.Memory(tmp_path, verbose=0)
    rates = []
    for loss in (nn.CrossEntropyLoss(), Descent()):
        classifier = PyTorchClassifier(net, loss, (1, 8, 8), 10, clip_values=(0, 1))
        result = run_attacks(classifier, suite, X, y, memory=memory)["FGSM 0.2"]
        rates.append(result.success.float().mean())
    assert rates[0] > rates[1] + 0.2


def test_suite_is_cached_by_every_setting(net, latent, digits, tmp_path, monkeypatch):
    X, y = (part[:4] for part in digits)
    suite = paper_attacks(fgsm=(0.2,), bim=(), deepfool=None, jsma=(), carlini=())
    memory = joblib.Memory(tmp_path, verbose=0)
    calls = []
    generate = FastGradientMethod.generate
    monkeypatch.setattr(
        FastGradientMethod, "generate", lambda *args: calls.append(1) or generate(*args)
    )
    makers = [
        lambda: defended_classifier(latent, labels=3),
        lambda: defended_classifier(latent, labels=3, security_parameter=0.5),
        lambda: defended_classifier(latent, labels=3, kappa=2.0),
        lambda: wrap(net, preprocessing=(MEAN, STD)),
        lambda: wrap(net, preprocessing=(MEAN, 2 * STD)),
    ]
    for k, make in enumerate(makers, start=1):
        classifier = make()
        for again in (classifier, classifier, make()):
            run_attacks(again, suite, X, y, memory=memory)
            assert len(calls) == k


def test_fingerprint_tells_settings_and_nothing_else():
    class Scaled(nn.Module):
        def __init__(self, **settings):
            super().__init__()
            self.f = lambda x: x
            vars(self).update(settings)

    prints = [
        fingerprint(Scaled(**settings))
        for settings in (
            {"scale": 1.0},
            {"scale": 2.0},
            {"scale": (1.0, 2.0)},
            {"scale": np.ones(2)},
            {"scale": torch.ones(2)},
            {"scale": torch.zeros(2)},
            {"scale": {"r": [1.0, None]}},
        )
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(copy.deepcopy(Scaled(scale=1.0)).eval()) == prints[0]


def test_suite_needs_clip_values(net, digits, suite):
    with pytest.raises(ValueError, match="clip_values"):
        run_attacks(wrap(net, clip_values=None), suite, *digits)


KINDS = ["PGD", "APGD", "APGD-DLR", "AutoAttack", "Square", "HopSkipJump"]
SMALL = {"steps": 10, "square_steps": 30, "hop_steps": (2, 20)}


def assert_same(one, other):
    assert_array_equal(one.success, other.success)
    assert_array_equal(one.adversarial, other.adversarial)


@pytest.fixture(scope="module")
def right(net, digits):
    """Rows that the victim gets right."""
    X, y = (part[1500:] for part in digits)
    kept = net(torch.as_tensor(X)).argmax(1).numpy() == y
    return X[kept][:40], y[kept][:40]


@pytest.fixture(scope="module")
def modern(net, right):
    return run_attacks(wrap(net), modern_attacks(eps=(0.05, 0.1, 0.2), **SMALL), *right)


def test_modern_suite_names_kind_and_strength():
    names = list(modern_attacks(eps=(0.1,)))
    assert [name.split()[0] for name in names] == KINDS
    assert names[0] == "PGD 0.1"
    assert "HopSkipJump" not in modern_attacks(hop_steps=None)


def test_modern_attacks_stay_in_their_ball_and_fool(net, right, modern):
    X, y = right
    for name, result in modern.items():
        found, success = result.adversarial.numpy(), result.success.numpy()
        assert success.any()
        assert (wrap(net).predict(found[success]).argmax(1) != y[success]).all()
        assert np.isnan(found[~success]).all()
        assert 0 <= found[success].min() <= found[success].max() <= 1
        if name != "HopSkipJump":
            eps = float(name.split()[1])
            assert np.abs(found - X)[success].max() <= eps + 1e-6


def test_modern_attacks_succeed_more_with_strength(modern):
    for kind in KINDS[:-1]:
        weak, middle, strong = (modern[f"{kind} {eps}"].success for eps in (0.05, 0.1, 0.2))
        assert weak.sum() < middle.sum() < strong.sum()
    assert modern["AutoAttack 0.2"].success.all()
    assert modern["HopSkipJump"].success.all()


def test_autoattack_finds_what_apgd_finds(modern):
    for eps in (0.05, 0.1, 0.2):
        apgd, auto = (modern[f"{kind} {eps}"] for kind in ("APGD", "AutoAttack"))
        assert auto.success[apgd.success].all()


def test_hopskipjump_comes_closer_with_steps(net, right, modern):
    suite = modern_attacks(eps=(), hop_steps=(6, 50))
    longer = run_attacks(wrap(net), suite, right[0][:8], right[1][:8])["HopSkipJump"]
    assert longer.distortion.median() < modern["HopSkipJump"].distortion[:8].median()


def test_hopskipjump_needs_rows_of_another_class_or_noise(net, right):
    X, y = right[0][:1], right[1][:1]
    suite = modern_attacks(eps=(), hop_steps=(1, 10))
    alone = run_attacks(wrap(net), suite, X, y)["HopSkipJump"]
    noise = np.random.default_rng(0).uniform(size=(100, 1, 8, 8)).astype(np.float32)
    assert alone.success.item() == (wrap(net).predict(noise).argmax(1) != y).any()
    wrong = run_attacks(wrap(net), suite, X, (y + 1) % 10)["HopSkipJump"]
    assert_array_equal(wrong.adversarial, X)
    assert_array_equal(wrong.distortion, [0])


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_do_not_depend_on_what_ran_before(net, right, modern, kind):
    X, y = right
    name = kind if kind == "HopSkipJump" else f"{kind} 0.1"
    suite = modern_attacks(eps=(0.1,), **SMALL)
    np.random.seed(7)  # noqa: NPY002 - the generator that ART draws from
    torch.manual_seed(7)
    expected = np.random.random(), torch.rand(1).item()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    again = run_attacks(wrap(net), {name: suite[name]}, X, y)[name]
    assert_same(again, modern[name])
    assert (np.random.random(), torch.rand(1).item()) == expected  # noqa: NPY002


def test_seed_is_restored_after_an_error(net, right):
    class Failing(FastGradientMethod):
        def generate(self, *args, **kwargs):
            np.random.random()  # noqa: NPY002
            raise RuntimeError("no luck")

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    suite = {"FGSM": paper_attacks()["FGSM 0.1"]._replace(method=Failing)}
    with pytest.raises(RuntimeError, match="no luck"):
        run_attacks(wrap(net), suite, *right)
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_attacks_leave_the_victim_alone(make_net, right):
    victim = make_net().train()
    nn.functional.cross_entropy(victim(torch.as_tensor(right[0])), torch.arange(40) % 10).backward()
    victim[0].bias.requires_grad_(False)
    before = [(p.clone(), p.grad.clone(), p.requires_grad) for p in victim.parameters()]
    classifier = wrap(victim)
    loss = classifier.loss
    suite = modern_attacks(eps=(0.1,), steps=2, square_steps=2, hop_steps=(1, 5))
    run_attacks(classifier, suite, right[0][:8], right[1][:8])
    assert all(module.training for module in victim.modules())
    assert classifier.loss is loss
    for parameter, (value, gradient, requires_grad) in zip(
        victim.parameters(), before, strict=True
    ):
        assert torch.equal(parameter, value)
        assert torch.equal(parameter.grad, gradient)
        assert parameter.requires_grad == requires_grad


def test_modern_attacks_see_preprocessing_and_channels(net, right, modern):
    """The same network behind ART's normalisation, or with channels last, falls to the same."""
    X, y = right
    suite = modern_attacks(eps=(0.1,), **SMALL)
    normalised = wrap(Denormalised(net).eval(), preprocessing=(MEAN, STD))
    last = wrap(ChannelsLast(net).eval(), channels_first=False)
    for name, result in run_attacks(normalised, suite, X, y).items():
        assert abs(result.success.sum() - modern[name].success.sum()) <= 2
    for name, result in run_attacks(last, suite, np.moveaxis(X, 1, -1), y).items():
        assert abs(result.success.sum() - modern[name].success.sum()) <= 4


def test_modern_suite_on_a_defended_classifier(latent, threes):
    classifier = defended_classifier(latent, labels=3)
    suite = modern_attacks(eps=(0.3,), **SMALL)
    results = run_attacks(classifier, suite, threes, np.full(len(threes), 3))
    for result in results.values():
        if result.success.any():
            answers = latent.classify(result.adversarial[result.success])
            assert not np.isin(answers, (-1, 3)).any()


def test_modern_suite_is_cached(make_net, right, tmp_path):
    X, y = (part[:4] for part in right)
    memory = joblib.Memory(tmp_path, verbose=0)
    suite = modern_attacks(eps=(0.1,), steps=2, square_steps=2, hop_steps=(1, 5))
    classifier = wrap(make_net())
    first = run_attacks(classifier, suite, X, y, memory=memory)
    classifier.predict = None  # what is cached asks nobody
    for name, result in run_attacks(classifier, suite, X, y, memory=memory).items():
        assert_array_equal(result.success, first[name].success)


def test_transfer_counts_what_fools_the_victim(net, make_net, right, modern):
    X, y = right
    source, victim = modern["PGD 0.2"], wrap(make_net(1))
    judged = judge_transfer(source, victim, X, y)
    found = judged.adversarial.numpy()
    success = judged.success.numpy()
    assert_array_equal(success, victim.predict(source.adversarial.numpy()).argmax(1) != y)
    assert_array_equal(found[success], source.adversarial.numpy()[success])
    assert_array_equal(judged.distortion[success], source.distortion[success])
    assert_same(judge_transfer(source, wrap(net), X, y), source)
    weak = modern["PGD 0.05"]
    assert not judge_transfer(weak, victim, X, y).success[~weak.success].any()
