import copy
import re
import time
import tracemalloc
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skmrr import FeatureExtractor, LatentDefender, replicate
from skmrr.nn.latent_statistics import LatentLikelihood
from skmrr.nn.layers import find_head, find_layer
from skmrr.nn.statistic import against_others
from skmrr.nn.tapped import NOTHING, head_input


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(scope="module")
def defender(net, digits):
    """Replica of the net with exploration, fitted on images 0–1400; 1400 on are new to it."""
    X, y = digits
    return LatentDefender(
        replicate(net),
        classifier=net,
        exploration_radius=0.2,
        clip_values=(0, 1),
        max_epochs=30,
        learning_rate=5e-3,
        random_state=0,
    ).fit(X[:1400], y[:1400])


@pytest.fixture(scope="module")
def fgsm(net, digits):
    """One signed step of 0.2 on the net; only the successes on rightly classified images."""
    x, labels = (torch.as_tensor(part[1400:]) for part in digits)
    x = x.clone().requires_grad_(True)
    nn.functional.cross_entropy(net(x), labels).backward()
    adversarial = (x + 0.2 * x.grad.sign()).clamp(0, 1).detach()
    fooled = (net(x).argmax(1) == labels) & (net(adversarial).argmax(1) != labels)
    return adversarial[fooled].numpy()


def test_detects_what_fools_the_classifier(defender, digits, fgsm):
    assert len(fgsm) > 100
    clean, adversarial = defender.risk(digits[0][1400:]), defender.risk(fgsm)
    assert np.mean(adversarial[:, None] > clean) > 0.93
    assert np.median(adversarial) > 0.9
    assert np.mean(defender.predict(digits[0][1400:]) == -1) < 0.05


def test_risk_score_and_verdict_are_one_quantity(defender, digits):
    X = digits[0][1400:]
    score = defender.score_samples(X)
    assert score.dtype == np.float64
    assert np.all(score <= 0)
    risk = defender.risk(X)
    assert np.all((risk >= 0) & (risk <= 1))
    np.testing.assert_allclose(risk, 1 - np.exp(score), atol=1e-12)
    np.testing.assert_array_equal(defender.predict(X) == -1, score < np.log(0.01))
    np.testing.assert_array_equal(defender.decision_function(X), score - np.log(0.01))


def test_security_parameter_is_free_to_change(defender, digits):
    X = digits[0][1400:]
    strict = copy.copy(defender).set_params(security_parameter=0.3)
    assert strict.module_ is defender.module_
    np.testing.assert_array_equal(strict.score_samples(X), defender.score_samples(X))
    assert (strict.predict(X) == -1).sum() > (defender.predict(X) == -1).sum()
    assert strict.offset_ == np.log(0.3)


def test_classify_gives_the_classifiers_class_or_minus_one(defender, net, digits):
    X = digits[0][1400:]
    labels = net(torch.as_tensor(X)).argmax(1).numpy()
    flagged = defender.predict(X) == -1
    classes = defender.classify(X)
    np.testing.assert_array_equal(classes[~flagged], labels[~flagged])
    assert np.all(classes[flagged] == -1)


def test_labels_given_are_labels_used(defender, net, digits):
    X = digits[0][1400:]
    labels = net(torch.as_tensor(X)).argmax(1).numpy()
    expected = defender.score_samples(X)
    np.testing.assert_allclose(defender.score_samples(X, labels=labels), expected, rtol=1e-6)
    assert np.median(defender.risk(X, labels=(labels + 1) % 10)) > 0.99


def test_torchs_threads_change_nothing(defender, digits):
    X = digits[0][1400:]
    scores = defender.score_samples(X)
    torch.set_num_threads(2)
    try:
        np.testing.assert_allclose(defender.score_samples(X), scores, atol=1e-4)
    finally:
        torch.set_num_threads(1)


def test_gradient_of_a_wrong_label_reaches_every_row(defender, net, digits):
    x = torch.as_tensor(digits[0][1400:1450]).requires_grad_(True)
    odd = defender.module_(x, (net(x).argmax(1) + 1) % 10)
    (gradient,) = torch.autograd.grad(odd.sum(), x)
    assert torch.isfinite(gradient).all()
    assert torch.all(gradient.flatten(1).abs().sum(1) > 0)


def test_every_kind_of_input_gives_the_same_scores(defender, digits, tmp_path):
    X = digits[0][1400:1500]
    expected = defender.score_samples(X)
    np.save(tmp_path / "x.npy", X)
    memmap = np.load(tmp_path / "x.npy", mmap_mode="r")
    dataset = TensorDataset(torch.as_tensor(X))
    flat = copy.copy(defender).set_params(input_shape=(1, 8, 8))
    for scores in (
        defender.score_samples(torch.as_tensor(X)),
        defender.score_samples(memmap),
        defender.score_samples(dataset),
        defender.score_samples(DataLoader(dataset, batch_size=9, shuffle=True)),
        flat.score_samples(X.reshape(100, 64)),
    ):
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_fit_reads_a_dataset_like_an_array(net, digits):
    X, y = digits[0][:700], digits[1][:700]
    defender = LatentDefender(
        replicate(net), classifier=net, max_epochs=1, random_state=0, security_parameter=0.05
    )
    dataset = TensorDataset(torch.as_tensor(X), torch.as_tensor(y))
    by_array = clone(defender).fit(X, y).score_samples(X)
    np.testing.assert_allclose(clone(defender).fit(dataset).score_samples(X), by_array, atol=1e-4)


def test_same_seed_same_defender(net, digits):
    X, y = digits[0][:700], digits[1][:700]
    kwargs = {"classifier": net, "exploration_radius": 0.1, "security_parameter": 0.05}
    scores = []
    for seed in (0, 0, 1):
        before = torch.get_rng_state()
        defender = LatentDefender(replicate(net), max_epochs=1, random_state=seed, **kwargs)
        scores.append(defender.fit(X, y).score_samples(X))
        assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(scores[0] - scores[2]).max() > 1e-3


def test_rows_marked_adversarial_are_dropped_from_fit(net, digits, rng):
    X, y = digits[0][:700], digits[1][:700]
    noise = rng.random((300, 1, 8, 8), dtype=np.float32)
    defender = LatentDefender(
        replicate(net), classifier=net, max_epochs=1, random_state=0, security_parameter=0.05
    )
    clean = clone(defender).fit(X, y).score_samples(X)
    mixed = clone(defender).fit(np.r_[X, noise], np.r_[y, np.full(300, -1)]).score_samples(X)
    np.testing.assert_array_equal(mixed, clean)


def test_networks_given_are_never_changed(net, digits):
    X, y = digits[0][:700], digits[1][:700]
    module = replicate(net)
    states = [copy.deepcopy(network.state_dict()) for network in (net, module)]
    defender = LatentDefender(
        module, classifier=net, exploration_radius=0.1, max_epochs=1, security_parameter=0.05
    )
    defender.fit(X, y).risk(X)
    for network, state in zip((net, module), states, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert n_hooks(network) == 0
        assert all(p.requires_grad for p in network.parameters())
    copied = clone(defender)
    assert copied.module is module
    assert copied.classifier is net


def test_an_interrupted_fit_leaves_the_old_defender(net, digits):
    X, y = digits[0][:700], digits[1][:700]

    class Interrupting(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(net)

        def forward(self, x):
            Interrupting.calls += 1
            if Interrupting.calls == 5:
                raise KeyboardInterrupt
            return self.net(x)

    module = Interrupting()
    defender = LatentDefender(replicate(net), max_epochs=1, security_parameter=0.05).fit(X, y)
    fitted = defender.module_
    with pytest.raises(KeyboardInterrupt):
        defender.set_params(module=module).fit(X[y < 5], y[y < 5])
    assert defender.module_ is fitted
    assert len(defender.classes_) == 10
    assert n_hooks(module) == 0
    assert not torch.is_grad_enabled() or torch.ones(1, requires_grad=True).mul(2).requires_grad


def test_calibrate_replaces_the_calibration_alone(net, digits):
    X, y = digits
    defender = LatentDefender(
        replicate(net), classifier=net, max_epochs=1, calibration_fraction=0, random_state=0
    ).fit(X[:700], y[:700])
    with pytest.raises(NotFittedError, match=r"calibrate\(X\)"):
        defender.score_samples(X)
    weights = copy.deepcopy(defender.statistic_.state_dict())
    defender.calibrate(X[700:1200])
    share = np.mean(defender.score_samples(X[700:1200]) <= np.log(0.1))
    assert 0.08 <= share <= 0.1
    state = defender.statistic_.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in weights.items())


@pytest.mark.parametrize(
    ("density", "statistic"),
    [("ppca", "margin"), *product(("ppca", "gaussian", "distance"), ("likelihood", "contrast"))],
)
def test_works_on_features_in_a_pipeline(net, digits, density, statistic, fgsm):
    X, y = digits
    pipeline = make_pipeline(
        FeatureExtractor(net, "5"),
        LatentDefender(density=density, statistic=statistic, max_epochs=3, random_state=0),
    ).fit(X[:1400], y[:1400])
    scores = pipeline.score_samples(X[1400:])
    assert np.isfinite(scores).all()
    assert np.mean(pipeline.predict(X[1400:]) == -1) < 0.06
    assert pipeline.predict(fgsm).shape == (len(fgsm),)


def test_the_networks_own_head_is_the_classifier_of_its_features(net, digits):
    X, y = digits
    pipeline = make_pipeline(
        FeatureExtractor(net, "5"),
        LatentDefender(classifier=net[6:], max_epochs=3, random_state=0),
    ).fit(X[:1400], y[:1400])
    features, labels = pipeline[0].transform(X[1400:]), pipeline[0].predict(X[1400:])
    classes = pipeline[1].classify(features)
    assert np.mean(classes == -1) < 0.06
    np.testing.assert_array_equal(classes[classes != -1], labels[classes != -1])


def test_without_y_and_classifier_there_is_one_class(digits):
    X = digits[0].reshape(-1, 64)
    defender = LatentDefender(random_state=0).fit(X[:1400])
    assert isinstance(defender.statistic_, LatentLikelihood)
    assert np.mean(defender.predict(np.random.default_rng(0).random((50, 64))) == -1) == 1


def test_without_y_the_classifiers_decisions_serve(net, digits):
    X = digits[0][:1000]
    labels = net(torch.as_tensor(X)).argmax(1).numpy()
    defender = LatentDefender(replicate(net), classifier=net, max_epochs=1, random_state=0)
    silent, told = clone(defender).fit(X), clone(defender).fit(X, labels)
    np.testing.assert_array_equal(silent.score_samples(X), told.score_samples(X))


def test_any_network_can_be_the_module(net, digits):
    X, y = digits
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh())
    defender = LatentDefender(encoder, max_epochs=5, random_state=0).fit(X[:1400], y[:1400])
    assert defender.history_["loss"][-1] < 0.5 * defender.history_["loss"][0]


def test_warm_start_goes_on(net, digits):
    X, y = digits[0][:700], digits[1][:700]
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 20))
    defender = LatentDefender(
        encoder, max_epochs=3, warm_start=True, random_state=0, security_parameter=0.05
    )
    first = defender.fit(X, y).history_["loss"]
    second = defender.fit(X, y).history_["loss"]
    assert second[0] < first[0]


def test_early_stopping_watches_clean_held_out_rows(net, digits):
    X, y = digits[0][:700], digits[1][:700]
    defender = LatentDefender(
        replicate(net),
        early_stopping=True,
        n_iter_no_change=1,
        max_epochs=40,
        learning_rate=0.01,
        random_state=0,
        security_parameter=0.05,
    ).fit(X, y)
    losses = defender.history_["held_out_loss"]
    assert len(losses) < 40
    assert losses[-1] >= min(losses)


@pytest.mark.parametrize("sp", [0, 1, -0.1, None, "a"])
def test_a_threshold_set_after_fit_is_checked(defender, digits, sp):
    other = copy.copy(defender).set_params(security_parameter=sp)
    with pytest.raises(ValueError, match="between 0 and 1"):
        other.predict(digits[0][1400:1410])


@pytest.mark.parametrize("clip_values", [(1, 0), (0, 1, 2)])
def test_a_range_that_is_none(net, digits, clip_values):
    with pytest.raises(ValueError, match="lowest, highest"):
        LatentDefender(replicate(net), clip_values=clip_values).fit(*digits)


def test_early_stopping_waits_until_the_ball_has_grown(net, digits):
    defender = LatentDefender(
        replicate(net),
        early_stopping=True,
        n_iter_no_change=1,
        exploration_radius=0.3,
        max_epochs=10,
        learning_rate=0.01,
        random_state=0,
    ).fit(digits[0][:900], digits[1][:900])
    assert len(defender.history_["loss"]) >= 5
    assert len(defender.history_["held_out_loss"]) <= len(defender.history_["loss"]) - 3


def test_scoring_a_memmap_takes_memory_for_a_batch_only(defender, net, tmp_path):
    n = 60_000
    shape = (n, 1, 8, 8)
    X = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)
    X[:] = np.random.default_rng(0).random(shape, dtype=np.float32)
    X = np.load(tmp_path / "x.npy", mmap_mode="r")
    batches = []
    asked = defender.evidence_.classifier.network
    spy = asked.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    tracemalloc.start()
    try:
        defender.score_samples(X)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        spy.remove()
    assert peak < X.nbytes / 4
    assert max(batches) <= defender.batch_size_
    assert sum(batches) == n


BAD = {
    "nan": (lambda X, y: (np.where(X > 0.9, np.nan, X), y), "drop or repair"),
    "infinity": (lambda X, y: (np.where(X > 0.9, np.inf, X), y), "infinity"),
    "pixel range": (lambda X, y: (255 * X, y), "divide by 255"),
    "empty": (lambda X, y: (X[:0], y[:0]), "0 sample"),
    "short y": (lambda X, y: (X, y[:-1]), "1399 entries but X has 1400"),
    "float y": (lambda X, y: (X, y + 0.5), "class indices"),
    "string y": (lambda X, y: (X, y.astype(str)), "class indices|could not convert"),
    "a class too many": (lambda X, y: (X, y + 1), "y holds class 10, but there are 10 logits"),
    "adversarial only": (lambda X, y: (X, np.full(len(y), -1)), "needs clean rows"),
    "few rows": (lambda X, y: (X[:50], y[:50]), "Too few calibration rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_to_fit_names_the_cure(net, digits, case):
    spoil, message = BAD[case]
    X, y = spoil(digits[0][:1400], digits[1][:1400])
    defender = LatentDefender(
        replicate(net), clip_values=(0, 1), max_epochs=1, security_parameter=0.05
    )
    with pytest.raises(ValueError, match=message):
        defender.fit(X, y)


NO_ROWS = {
    "flat": lambda X: X.reshape(len(X), -1),
    "no channel": lambda X: X[:, 0],
    "channel last": lambda X: X.transpose(0, 2, 3, 1),
}


@pytest.mark.parametrize("where", ["classifier", "module"])
@pytest.mark.parametrize("case", NO_ROWS)
def test_rows_that_a_network_cannot_take_name_the_cure(net, digits, case, where):
    params = {"classifier": net} if where == "classifier" else {"module": replicate(net)}
    with pytest.raises(ValueError, match=rf"(?s){where} cannot take rows.*input_shape"):
        LatentDefender(**params).fit(NO_ROWS[case](digits[0]), digits[1])


class Wrapped(nn.Module):
    """A network whose logits something is made of, and a linear layer without a part."""

    def __init__(self, net, make=lambda logits: logits):
        super().__init__()
        self.net, self.make, self.idle = net, make, nn.Linear(2, 2)

    def forward(self, x):
        return self.make(self.net(x))


def test_a_classifier_must_return_logits(net, digits):
    with pytest.raises(TypeError, match="returns a tuple; say where its logits are"):
        LatentDefender(classifier=Wrapped(net, lambda z: (z, z))).fit(*digits)
    with pytest.raises(ValueError, match=r"shape \(2,\) for two rows, one number each"):
        LatentDefender(classifier=Wrapped(net, lambda z: z.amax(1))).fit(*digits)


def test_a_layer_without_a_part_is_named(net, digits):
    with pytest.raises(ValueError, match="idle.*takes no part.*layer="):
        LatentDefender(replicate(Wrapped(net), "idle")).fit(*digits)


def test_y_numbered_otherwise_than_the_classifier_is_told(net, digits):
    X, y = digits
    defender = LatentDefender(classifier=net, realign=False)
    with pytest.warns(UserWarning, match="number the classes as the classifier does"):
        defender.fit(X, (y + 1) % 10)


def test_a_range_of_which_little_is_used_is_told(digits):
    X, y = digits
    with pytest.warns(UserWarning, match="of the declared clip_values"):
        LatentDefender(realign=False, clip_values=(0, 255)).fit(X, y)


def test_images_need_no_module(digits):
    X, y = digits
    scores = LatentDefender(max_epochs=1, random_state=0).fit(X, y).score_samples(X)
    flat = X.reshape(len(X), -1)
    expected = LatentDefender(max_epochs=1, random_state=0).fit(flat, y).score_samples(flat)
    np.testing.assert_array_equal(scores, expected)


def test_rows_may_be_nested_lists(defender, digits):
    X = digits[0][:3]
    expected = defender.score_samples(X)
    np.testing.assert_allclose(defender.score_samples(X.tolist()), expected, rtol=1e-5)
    np.testing.assert_array_equal(defender.score_samples(list(X)), expected)


def test_fit_trains_where_gradients_are_off(net, digits):
    X, y = digits[0][:400], digits[1][:400]
    defender = LatentDefender(replicate(net), max_epochs=1, random_state=0, security_parameter=0.1)
    expected = clone(defender).fit(X, y).score_samples(X)
    with torch.no_grad():
        defender.fit(X, y)
    np.testing.assert_array_equal(defender.score_samples(X), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_replica_trains_in_single_precision_at_least(net, digits, dtype):
    X, y = digits[0][:400], digits[1][:400]
    network = copy.deepcopy(net).to(dtype)
    defender = LatentDefender(
        replicate(network), classifier=network, max_epochs=1, security_parameter=0.1
    ).fit(X, y)
    at_least = torch.promote_types(dtype, torch.float32)
    assert {p.dtype for p in defender.latent_map_.parameters()} == {at_least}
    assert {p.dtype for p in defender.module_.evidence.classifier.parameters()} == {dtype}
    assert np.isfinite(defender.history_["loss"]).all()
    assert defender.risk(X).max() < 1


def test_bad_labels_when_scoring(defender, digits):
    X = digits[0][1400:1410]
    with pytest.raises(ValueError, match="3 entries but X has 10 rows"):
        defender.score_samples(X, labels=[1, 2, 3])
    with pytest.raises(ValueError, match=r"fitted on rows of shape \(1, 8, 8\)"):
        defender.score_samples(X[:, :, :4])


def test_too_few_rows_to_calibrate(defender, digits):
    with pytest.raises(ValueError, match="takes at least 99. Give 99 rows"):
        copy.copy(defender).calibrate(digits[0][:98])


@pytest.mark.parametrize("statistic", ["contrast", "margin"])
def test_comparing_statistics_need_two_classes(digits, statistic):
    X = digits[0].reshape(-1, 64)
    with pytest.raises(ValueError, match="statistic='likelihood'"):
        LatentDefender(statistic=statistic).fit(X, np.zeros(len(X), int))


def test_scoring_before_fit(digits):
    with pytest.raises(NotFittedError):
        LatentDefender().risk(digits[0])


def test_replica_of_a_named_layer_and_of_none(net):
    with pytest.raises(ValueError, match="its layers are"):
        replicate(net, "nowhere")
    with pytest.raises(ValueError, match="no linear layer"):
        replicate(nn.Sequential(nn.Conv2d(1, 2, 3)))
    x = torch.rand(4, 1, 8, 8)
    for layer in (None, "5"):
        replica = replicate(net, layer)
        features, logits = replica.features_and_logits(x)
        torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
        assert logits.shape == (4, 10)
    assert find_layer(net, "5") is net[5]


@pytest.mark.parametrize(
    ("params", "because"),
    [
        ({"density": "gaussian"}, "a margin needs no density"),
        ({"density": "gaussian", "statistic": "margin"}, "a margin needs no density"),
        ({"exploration_steps": 3}, "exploration_radius=0 and transfer_radius=0"),
        ({"validation_fraction": 0.2}, "early_stopping=False"),
        ({"n_iter_no_change": 5}, "early_stopping=False"),
        *(
            ({name: value, "realign": False}, "realign=False trains nothing")
            for name, value in {
                "clustering": "program",
                "gamma": 0.1,
                "exploration_radius": 0.1,
                "transfer_radius": 0.1,
                "max_epochs": 3,
                "learning_rate": 0.1,
                "early_stopping": True,
                "validation_fraction": 0.2,
                "n_iter_no_change": 5,
                "training_batch_size": 32,
            }.items()
        ),
    ],
)
def test_a_parameter_without_effect_is_refused(net, digits, params, because):
    X, y = digits
    name, value = next(iter(params.items()))
    with pytest.raises(ValueError, match=f"^{name}={value!r} has no effect: {because}"):
        LatentDefender(replicate(net), **params).fit(X, y)


@pytest.mark.parametrize("width", [0.0, -0.5, 1.5, np.nan])
def test_a_width_is_a_share(net, width):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        replicate(net, width=width)


def test_a_checkpoint_may_be_an_input(net):
    x = torch.rand(4, 1, 8, 8)
    for one, other in (("6:input", "5"), ("4:input", "3"), (None, "6:input")):
        features, logits = replicate(net, one).features_and_logits(x)
        expected = replicate(net, other).features_and_logits(x)
        torch.testing.assert_close((features, logits), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="layer='nowhere' is not in the model"):
        replicate(net, "nowhere:input")


@pytest.mark.parametrize("layer", [None, "2", "_orig_mod.2", "_orig_mod.6:input"])
def test_a_replica_of_a_compiled_network_is_that_of_the_network(net, layer):
    x = torch.rand(4, 1, 8, 8)
    compiled = torch.compile(net, backend="eager")
    plain = layer and layer.removeprefix("_orig_mod.")
    found, expected = (
        replicate(network, name).features_and_logits(x)
        for network, name in ((compiled, layer), (net, plain))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class HeadFirst(nn.Module):
    """Its head is registered first, and a linear layer of squeeze and excitation last."""

    def __init__(self, functional_head=False):
        super().__init__()
        self.head = nn.Linear(8, 10)
        self.conv = nn.Conv2d(1, 8, 3)
        self.squeeze = nn.Linear(8, 8)
        self.functional_head = functional_head

    def forward(self, x):
        x = self.conv(x).relu()
        x = (x * self.squeeze(x.mean((2, 3))).sigmoid()[..., None, None]).mean((2, 3))
        if self.functional_head:
            return nn.functional.linear(x, self.head.weight, self.head.bias)
        return self.head(x) / 2.0


def test_the_checkpoint_is_found_by_data_flow(digits):
    x = torch.as_tensor(digits[0][:4])
    assert head_input(HeadFirst(), x) == "head:input"
    features = replicate(HeadFirst())(x)
    assert features.shape == (4, 8)
    with pytest.raises(ValueError, match=r"name the checkpoint with layer=.*squeeze"):
        head_input(HeadFirst(functional_head=True), x)
    frozen = HeadFirst().requires_grad_(False)
    assert head_input(frozen, x) == "head:input"


def test_the_head_is_found_whatever_is_registered_beside_it(net, digits):
    x = torch.as_tensor(digits[0][:4])
    assert find_head(HeadFirst().eval(), x) == "head"
    assert find_head(Wrapped(copy.deepcopy(net)).eval(), x) == "net.6"  # not the idle one
    for make in (lambda z: z / 2 - 1, lambda z: z.log_softmax(1), lambda z: z[:, None].flatten(1)):
        assert find_head(Wrapped(copy.deepcopy(net), make).eval(), x) == "net.6"


class Recorder(nn.Module):
    """Classifier that notes how many rows it is given while gradients are kept."""

    seen: ClassVar[list[int]] = []

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        if torch.is_grad_enabled():
            self.seen.append(len(x))
        return self.head(x.flatten(1))


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_the_search_for_the_head_keeps_the_activations_of_two_rows(digits, width):
    X, y = digits[0][:700], digits[1][:700]
    Recorder.seen.clear()
    replica = replicate(Recorder(), width=width)
    replica.initialise(torch.as_tensor(X), torch.as_tensor(y), 10)
    assert Recorder.seen
    assert max(Recorder.seen) <= 2


class TwoParts(nn.Module):
    """Two linear layers and a scale, put together by `combine`."""

    def __init__(self, combine):
        super().__init__()
        self.a, self.b = nn.Linear(64, 10), nn.Linear(64, 10)
        self.scale = nn.Parameter(torch.ones(10))
        self.combine = combine

    def forward(self, x):
        return self.combine(self, x.flatten(1))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_head_is_one_layer_alone(digits, frozen):
    x = torch.as_tensor(digits[0][:4])

    def head_of(combine):
        return find_head(TwoParts(combine).eval().requires_grad_(not frozen), x)

    assert head_of(lambda net, z: net.b(z) * net.scale) == "b"
    assert head_of(lambda net, z: net.scale * net.b(z)) == "b"
    for combine in (
        lambda net, z: net.a(z) + net.b(z),
        lambda net, z: net.a(z) * net.b(z).sigmoid(),
        lambda net, z: net.a(z) + z[:, :10],
    ):
        with pytest.raises(ValueError, match="not the output of one linear layer"):
            head_of(combine)


def test_logits_that_no_linear_layer_makes_ask_for_the_layer(digits):
    x = torch.as_tensor(digits[0][:4])
    with pytest.raises(ValueError, match="layer=.*: head, conv, squeeze"):
        find_head(HeadFirst(functional_head=True).eval(), x)
    with pytest.raises(ValueError, match="layer="):
        find_head(nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()).eval(), x)
    X, y = digits[0][:700], digits[1][:700]
    with pytest.raises(ValueError, match="layer="):
        LatentDefender(replicate(HeadFirst(functional_head=True)), max_epochs=1).fit(X, y)


def test_a_narrow_replica_has_no_former_self(net, digits):
    defender = LatentDefender(replicate(net, width=0.5), classifier=net, transfer_radius="auto")
    with pytest.raises(ValueError, match="a narrow replica starts from nothing"):
        defender.fit(*digits)


def test_a_training_ends_within_its_time(net, digits):
    X, y = digits[0][:1000], digits[1][:1000]
    params = {"classifier": net, "random_state": 0, "security_parameter": 0.1}
    start = time.perf_counter()
    defender = LatentDefender(replicate(net), max_epochs=10_000, max_time=1 / 60, **params)
    defender.fit(X, y)
    assert time.perf_counter() - start < 20
    assert 1 <= len(defender.history_["loss"]) < 1000
    assert (defender.classify(X) == y).mean() > 0.8  # a whole cycle
    brief = LatentDefender(replicate(net), max_epochs=1, **params)
    plenty = clone(brief).set_params(max_time=60.0)
    np.testing.assert_array_equal(
        brief.fit(X, y).score_samples(X), plenty.fit(X, y).score_samples(X)
    )


def test_says_before_the_first_epoch_ends_how_long_it_takes(net, digits, capsys):
    X, y = digits[0][:300], digits[1][:300]
    LatentDefender(
        replicate(net), classifier=net, max_epochs=2, security_parameter=0.1, verbose=True
    ).fit(X, y)
    told = capsys.readouterr().out
    assert re.search(r"realign: 8 steps, by the first about \d+\.\d minutes .* \d\.\d\d GiB", told)


def test_a_training_that_diverges_is_an_error(net, digits):
    X = digits[0][:300].copy()
    X[::2] *= 1e30
    with pytest.raises(FloatingPointError, match="The training loss is"):
        LatentDefender(
            replicate(net), classifier=net, security_parameter=0.1, learning_rate=1e3
        ).fit(X, digits[1][:300])


def test_an_untrained_copy_has_the_classifiers_margin_and_a_trained_one_its_own(net, digits):
    X, y = digits
    shared = {"random_state": 0, "security_parameter": 0.05}
    untrained = LatentDefender(replicate(net), realign=False, **shared).fit(X[:600], y[:600])
    x, columns = torch.as_tensor(X[600:620]), torch.arange(20) % 10
    expected = against_others(net(x), columns)
    margin = untrained.statistic_.at(x, columns, NOTHING)
    torch.testing.assert_close(margin.float(), expected)
    trained = LatentDefender(replicate(net), max_epochs=1, **shared).fit(X[:600], y[:600])
    again = LatentDefender(trained.latent_map_, realign=False, **shared).fit(X[:600], y[:600])
    for statistic in (trained.statistic_, again.statistic_):
        margin = statistic.at(x, columns, NOTHING)
        assert not torch.allclose(margin.float(), expected)
        torch.testing.assert_close(margin, trained.statistic_.at(x, columns, NOTHING))
