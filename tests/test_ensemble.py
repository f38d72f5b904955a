import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import combine_pvalues, hmean
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import Dataset, TensorDataset

from skmrr import (
    FeatureExtractor,
    InputDictionaryDefender,
    LatentDefender,
    MarginDetector,
    MRREnsemble,
    NoiseDefender,
    default_defenders,
    replicate,
)
from skmrr.evaluation import false_alarm_interval, roc_auc_scorer
from skmrr.nn.conditioning import ConditionalSurvival
from skmrr.nn.fusion import FusionRule

quick = LatentDefender(exploration_radius="auto", max_epochs=2, learning_rate=3e-3)
coarse = {"security_parameter": 0.05, "clip_values": (0, 1), "random_state": 0}


def pair(net, latent=quick, **params):
    """Two narrow latent defenders beside all the others that can be had by a word."""
    return default_defenders(net, latent=latent, n_latent=2, width=0.5, noise=True, **params)


brief = LatentDefender(max_epochs=1)


@pytest.fixture(scope="module")
def fitted(net, digits):
    """Two narrow latent defenders, two noise defenders and the margin. Treat it as read only."""
    X, y = digits
    ensemble = MRREnsemble(net, defenders=pair(net), **coarse, calibration_fraction=0)
    return ensemble.fit(X[:1000], y[:1000]).calibrate(X[1000:1400])


@pytest.fixture(scope="module")
def blobs():
    """(X, y): 12,000 rows of 3 overlapping classes in 8 dimensions."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 12_000)
    return rng.normal(size=(12_000, 8)) + 1.5 * np.eye(8)[y], y


def calls_of(network):
    """List that grows with each forward pass of a network; and the hook's handle."""
    calls = []
    return calls, network.register_forward_hook(lambda *_: calls.append(1))


# Fusion


def test_noisy_or_is_fishers_statistic(rng):
    p = rng.random((20, 5))
    fused = FusionRule("noisy_or", torch.ones(5))(torch.as_tensor(np.log(p)))
    expected = [combine_pvalues(row, method="fisher").statistic / 2 for row in p]
    np.testing.assert_allclose(fused, expected)


def test_harmonic_is_the_harmonic_mean(rng):
    p = rng.random((20, 5))
    fused = FusionRule("harmonic", torch.full((5,), 0.2))(torch.as_tensor(np.log(p)))
    np.testing.assert_allclose((-fused).exp(), hmean(p, axis=1))


def test_max_is_the_smallest_p_value(rng):
    p = rng.random((20, 5))
    fused = FusionRule("max", torch.ones(5))(torch.as_tensor(np.log(p)))
    np.testing.assert_allclose((-fused).exp(), p.min(1))


@pytest.mark.parametrize("rule", ["noisy_or", "harmonic", "max"])
def test_fusion_is_monotone_in_each_member(rule, rng):
    log_p = torch.as_tensor(np.log(rng.random((50, 4))))
    fusion = FusionRule(rule, torch.tensor([1.0, 0.5, 2.0, 1.0]))
    for k in range(4):
        odder = log_p.clone()
        odder[:, k] -= 0.5
        assert (fusion(odder) >= fusion(log_p)).all()


@pytest.mark.parametrize("rule", ["noisy_or", "harmonic", "max"])
def test_weight_zero_silences_a_member(rule, rng):
    log_p = torch.as_tensor(np.log(rng.random((50, 3))))
    silenced = FusionRule(rule, torch.tensor([1.0, 0.0, 1.0]))(log_p)
    torch.testing.assert_close(silenced, FusionRule(rule, torch.ones(2))(log_p[:, [0, 2]]))


# The promise


@pytest.mark.parametrize("fusion", ["noisy_or", "harmonic", "max"])
@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_false_alarms_keep_the_promise_for_any_number_of_members(n, fusion, blobs):
    X, y = blobs
    members = [
        (f"a_{k}", LatentDefender(realign=False, n_components=1 + k % 7, statistic="likelihood"), 1)
        for k in range(n)
    ]
    ensemble = MRREnsemble(
        defenders=members, fusion=fusion, random_state=0, calibration_fraction=0
    ).fit(X[:2000], y[:2000])
    ensemble.calibrate(X[2000:7000], labels=y[2000:7000])
    risk = ensemble.risk(X[7000:], labels=y[7000:])
    for sp in (0.01, 0.05):
        low, high = false_alarm_interval(sp, 5000, 0.999, n_calibration=2500)
        assert low <= np.mean(risk > 1 - sp) <= high


def test_fusion_is_calibrated_on_rows_that_calibrated_no_member(net, digits, fitted):
    assert int(fitted.module_.survival.survival.n_rows.sum()) == 200
    assert int(fitted.module_.fusion.survival.n_rows.sum()) == 200


def test_risk_is_that_of_a_conformal_rank(fitted, digits):
    risk = fitted.risk(digits[0][1400:])
    assert risk.min() >= 0
    assert risk.max() <= 1


def test_rows_unlike_any_are_flagged(fitted, digits, rng):
    noise = rng.random((100, 1, 8, 8))
    assert np.mean(fitted.predict(noise) == -1) > 0.9
    assert np.mean(fitted.classify(noise) == -1) > 0.9


def test_every_row_counts_once_among_those_a_class_gets(fitted, digits, net):
    X = digits[0][1400:]
    classes = fitted.classify(X)
    with torch.no_grad():
        decided = net(torch.as_tensor(X)).argmax(1).numpy()
    assert ((classes == decided) | (classes == -1)).all()
    assert (classes == -1).mean() == (fitted.predict(X) == -1).mean()


# Members


def test_members_by_name(fitted):
    assert fitted.member_names_ == ["latent_0", "latent_1", "dense", "sparse", "margin"]
    assert list(fitted.named_defenders_) == fitted.member_names_
    first = fitted.named_defenders_.latent_0
    assert first.statistic_.latent_map.network[0].out_channels == 4  # half of the classifier's
    assert 0.05 < first.exploration_radius_ < 0.5


def test_member_risks_name_who_raised_the_alarm(fitted, digits):
    X = digits[0][1400:]
    risks = fitted.member_risks(X)
    assert list(risks) == fitted.member_names_
    assert risks.shape == (len(X), 5)
    assert risks.min(axis=None) >= 0
    assert risks.max(axis=None) <= 1


def test_member_risks_of_a_tensor_and_of_a_frame(fitted, digits):
    X = digits[0][:3]
    expected = fitted.member_risks(X)
    pd.testing.assert_frame_equal(fitted.member_risks(torch.as_tensor(X)), expected)
    frame = pd.DataFrame(X.reshape(3, -1), index=list("abc"))
    of_flat_rows = copy.copy(fitted).set_params(input_shape=(1, 8, 8))
    pd.testing.assert_frame_equal(of_flat_rows.member_risks(frame), expected.set_axis(frame.index))


def test_fused_score_follows_from_member_risks(fitted, digits):
    X = digits[0][1400:]
    risks = fitted.member_risks(X).to_numpy()
    exact = risks.max(1) < 1 - 1e-9  # nearer to 1 a risk is rounded
    assert fitted.weights_.tolist() == [0.5, 0.5, 1, 0.25, 1]  # the latent ones share one
    fisher = -np.log1p(-risks[exact]) @ fitted.weights_
    ordered = fitted.risk(X)[exact][np.argsort(fisher)]
    assert exact.mean() > 0.9
    assert (np.diff(ordered) >= -1e-9).all()


def test_a_member_scores_by_itself_too(fitted, digits, net):
    X = digits[0][1400:]
    labels = net(torch.as_tensor(X)).argmax(1)
    for member in fitted.named_defenders_.values():
        assert np.mean(member.predict(X, labels=labels) == -1) < 0.15


def test_classifier_is_asked_once_per_batch(fitted, digits, net):
    X = digits[0][1400:]
    ensemble = pickle.loads(pickle.dumps(fitted))
    calls, _ = calls_of(ensemble.evidence_.classifier.network)
    ensemble.set_params(batch_size=100).score_samples(X)
    assert len(calls) == 4


def test_tapped_layers_share_the_classifiers_pass(net, digits):
    X, y = digits
    tap = make_pipeline(FeatureExtractor(net, "4"), LatentDefender(max_epochs=2, random_state=0))
    early = make_pipeline(
        FeatureExtractor(net, ["1"], pooling="mean"), StandardScaler(), LatentDefender(max_epochs=2)
    )
    ensemble = MRREnsemble(net, defenders=[("late", tap, 1), ("early", early, 1)], **coarse)
    ensemble.fit(X[:1200], y[:1200])
    assert ensemble.evidence_.classifier.names == ("1", "4")
    calls, _ = calls_of(ensemble.evidence_.classifier.network)
    scores = ensemble.score_samples(X[1200:1300])
    assert len(calls) == 1
    # the same as the pipelines alone, which run the classifier themselves
    labels = net(torch.as_tensor(X[1200:1300])).argmax(1)
    values = ensemble.evidence_(torch.as_tensor(X[1200:1300])).values.detach().numpy()
    for k, pipeline in enumerate(ensemble.named_defenders_.values()):
        features = torch.as_tensor(pipeline[:-1].transform(X[1200:1300]))
        alone = pipeline[-1].evidence_(features, labels).values[:, 0].detach().numpy()
        np.testing.assert_allclose(values[:, k], alone, rtol=1e-4, atol=1e-4)
    assert len(scores) == 100


def test_pipelines_never_see_adversarial_rows(blobs):
    X, y = blobs
    X, y = X[:600].copy(), y[:600].copy()
    y[::2] = -1
    X[::2] = 1e6
    member = make_pipeline(StandardScaler(), LatentDefender(max_epochs=1))
    ensemble = MRREnsemble(defenders=[("scaled", member, 1)], security_parameter=0.1).fit(X, y)
    assert np.abs(ensemble.named_defenders_.scaled[0].mean_).max() < 3


def test_array_steps_cannot_be_differentiated_in_silence(blobs):
    X, y = blobs
    member = make_pipeline(StandardScaler(), LatentDefender(max_epochs=1))
    ensemble = MRREnsemble(defenders=[("scaled", member, 1)], security_parameter=0.1)
    module = ensemble.fit(X[:600], y[:600]).module_
    x = torch.as_tensor(X[:5]).requires_grad_(True)
    with pytest.raises(RuntimeError, match="no torch code"):
        module(x, torch.as_tensor(y[:5])).sum().backward()


def test_members_of_many_kinds(net, digits):
    X, y = digits
    members = [
        ("latent", LatentDefender(replicate(net), max_epochs=1), 1),
        ("other_layer", LatentDefender(replicate(net, "3"), max_epochs=1, statistic="contrast"), 1),
        ("noise", NoiseDefender(patch_size=3), 1),
        ("residual", InputDictionaryDefender(patch_size=4, n_atoms=16, max_iter=2), 1),
        (
            "relabel",
            InputDictionaryDefender(
                net, statistic="relabel", patch_size=4, n_atoms=16, max_iter=2, n_nonzero_coefs=2
            ),
            1,
        ),
        ("margin", MarginDetector(), 1),
    ]
    ensemble = MRREnsemble(net, defenders=members, **coarse).fit(X[:1200], y[:1200])
    assert ensemble.member_names_ == [name for name, *_ in members]
    assert np.mean(ensemble.predict(X[1200:]) == -1) < 0.12
    x = torch.as_tensor(X[:20]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(ensemble.module_(x).sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_chain_trains_on_moved_rows(net, digits):
    X, y = digits
    params = {**coarse, "defenders": pair(net, brief)}
    apart = MRREnsemble(net, **params).fit(X[:1000], y[:1000])
    chained = MRREnsemble(net, chain=0.1, **params).fit(X[:1000], y[:1000])
    x = torch.as_tensor(X[1000:1100])
    a, b = (e.evidence_(x).values.detach().numpy() for e in (apart, chained))
    np.testing.assert_allclose(a[:, 0], b[:, 0])  # the first sees the same rows
    assert np.abs(a[:, 1] - b[:, 1]).max() > 1e-3


def test_without_margin_members_are_judged_unconditionally(net, digits):
    X, y = digits
    members = pair(net, margin=False)
    ensemble = MRREnsemble(net, defenders=members, **coarse).fit(X[:1200], y[:1200])
    assert ensemble.member_names_ == ["latent_0", "latent_1", "dense", "sparse"]
    assert not isinstance(ensemble.module_.survival, ConditionalSurvival)
    # given its decisions, the classifier need not run
    calls, _ = calls_of(ensemble.evidence_.classifier.network)
    ensemble.score_samples(X[:10], labels=y[:10])
    assert not calls
    ensemble.classify(X[:10])
    assert len(calls) == 1


def test_needs_no_classifier(blobs):
    X, y = blobs
    ensemble = MRREnsemble(defenders=default_defenders(latent=brief, n_latent=2), random_state=0)
    ensemble.fit(X[:4000], y[:4000])
    assert ensemble.member_names_ == ["latent_0", "latent_1"]
    given = ensemble.score_samples(X[4000:4100], labels=y[4000:4100])
    nearest = ensemble.score_samples(X[4000:4100])
    assert np.mean(given == nearest) > 0.6
    assert np.mean(ensemble.predict(X[4000:]) == -1) < 0.02


# One computation


def test_security_parameter_is_free_to_change(fitted, digits):
    X = digits[0][1400:]
    ensemble = pickle.loads(pickle.dumps(fitted))
    scores = ensemble.score_samples(X)
    alarms = []
    for sp in (0.01, 0.1, 0.5):
        ensemble.set_params(security_parameter=sp)
        np.testing.assert_array_equal(ensemble.score_samples(X), scores)
        alarms.append(np.mean(ensemble.predict(X) == -1))
    assert alarms == sorted(alarms)
    assert alarms[0] < alarms[-1]


def test_kinds_of_input_agree(fitted, digits, tmp_path):
    X = digits[0][1400:]
    scores = fitted.score_samples(X)
    on_disk = np.memmap(tmp_path / "X", X.dtype, "w+", shape=X.shape)
    on_disk[:] = X
    for rows in (torch.as_tensor(X), TensorDataset(torch.as_tensor(X)), on_disk):
        np.testing.assert_allclose(fitted.score_samples(rows), scores, rtol=1e-6)


def test_fits_flat_rows_and_datasets(net, digits):
    X, y = digits[0][:1000], digits[1][:1000]
    params = {**coarse, "defenders": pair(net, brief)}
    images = MRREnsemble(net, **params).fit(X, y).score_samples(X)
    flat = MRREnsemble(net, input_shape=(1, 8, 8), **params).fit(X.reshape(1000, 64), y)
    np.testing.assert_allclose(flat.score_samples(X.reshape(1000, 64)), images, rtol=1e-5)
    pairs = TensorDataset(torch.as_tensor(X), torch.as_tensor(y))
    np.testing.assert_allclose(MRREnsemble(net, **params).fit(pairs).score_samples(X), images)


def test_parallel_fit_is_the_same(net, digits):
    """Also of a network that pickle by itself refuses."""
    X, y = digits
    net = copy.deepcopy(net)
    weight_norm(net[-1])
    params = {**coarse, "defenders": pair(net, brief)}
    one, two = (
        MRREnsemble(net, n_jobs=n_jobs, **params).fit(X[:600], y[:600]).score_samples(X[600:700])
        for n_jobs in (1, 2)
    )
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_a_failed_fit_leaves_the_old_one_whole(fitted, digits):
    X, y = digits
    ensemble = pickle.loads(pickle.dumps(fitted))
    scores = ensemble.score_samples(X[1400:])
    with pytest.raises(ValueError, match="names no member"):
        ensemble.set_params(defenders=[]).fit(X[:600], y[:600])
    np.testing.assert_array_equal(ensemble.score_samples(X[1400:]), scores)


# Prefit members and searches


def frozen(ensemble):
    named = ensemble.named_defenders_.items()
    return [
        (name, FrozenEstimator(m), w) for (name, m), w in zip(named, ensemble.weights_, strict=True)
    ]


def test_frozen_members_are_not_fitted_again(fitted, net, digits):
    X, y = digits
    before = fitted.named_defenders_.latent_0.module_
    again = MRREnsemble(net, defenders=frozen(fitted), **coarse).fit(X[1000:1400], y[1000:1400])
    assert again.named_defenders_.latent_0 is fitted.named_defenders_.latent_0
    assert fitted.named_defenders_.latent_0.module_ is before
    assert int(again.module_.fusion.survival.n_rows.sum()) == 200  # all rows calibrate
    assert np.corrcoef(again.risk(X[1400:]), fitted.risk(X[1400:]))[0, 1] > 0.9


def test_search_over_fusion_members_and_threshold(fitted, net, digits):
    X, y = digits[0][1000:], digits[1][1000:].copy()
    noisy = X[:300] + np.random.default_rng(0).normal(0, 0.3, X[:300].shape)
    X = np.concatenate([X, noisy.clip(0, 1)])
    y = np.concatenate([y, np.full(300, -1)])
    search = GridSearchCV(
        MRREnsemble(net, **coarse),
        {
            "fusion": ["noisy_or", "max"],
            "defenders": [frozen(fitted)[:n] for n in (1, 2, 5)],
            "security_parameter": [0.05, 0.1],
        },
        scoring=roc_auc_scorer,
        cv=StratifiedKFold(2, shuffle=True, random_state=0),
        error_score="raise",
    ).fit(X, y)
    assert len(search.cv_results_["params"]) == 12
    assert search.best_score_ > 0.75
    assert search.best_estimator_.named_defenders_.latent_0 is fitted.named_defenders_.latent_0


def test_named_members_are_parameters(net):
    ensemble = MRREnsemble(net, defenders=[("a", LatentDefender(), 1), ("b", NoiseDefender(), 2)])
    ensemble.set_params(a__max_epochs=7, b=NoiseDefender(quantile=0.5))
    assert ensemble.get_params()["a__max_epochs"] == 7
    assert clone(ensemble).defenders[1][1].quantile == 0.5
    assert [weight for *_, weight in clone(ensemble).defenders] == [1, 2]
    assert clone(ensemble).classifier is net


def test_a_pipeline_may_end_in_an_ensemble(net, digits):
    X, y = digits
    flow = make_pipeline(
        FeatureExtractor(net, "4"), MRREnsemble(estimator=LatentDefender(max_epochs=1), **coarse)
    )
    flow.set_params(mrrensemble__clip_values=None)
    assert np.mean(flow.fit(X[:1200], y[:1200]).predict(X[1200:]) == 1) > 0.8


@pytest.mark.slow
def test_few_calibration_rows_promise_more_than_they_catch(net, digits):
    """docs/explanation/calibration.md quotes what this prints."""
    X, y = digits
    x, labels = torch.as_tensor(X[1450:]).requires_grad_(), torch.as_tensor(y[1450:])
    logits = net(x)
    nn.functional.cross_entropy(logits, labels).backward()
    moved = (x + 0.1 * x.grad.sign()).clamp(0, 1).detach()
    broken = (logits.argmax(1) == labels) & (net(moved).argmax(1) != labels)
    ensemble = MRREnsemble(net, clip_values=(0, 1), calibration_fraction=0, random_state=0)
    ensemble.fit(X[:1000], y[:1000])
    caught = {0.01: [], 0.05: []}
    for seed in range(6):  # which half of the rows sets the threshold
        ensemble.set_params(random_state=seed).calibrate(X[1000:1450])
        scores = ensemble.score_samples(moved[broken])
        for sp, shares in caught.items():
            shares.append(float((scores < np.log(sp)).mean()))
    print(int(broken.sum()), {sp: np.round(shares, 3).tolist() for sp, shares in caught.items()})
    assert np.ptp(caught[0.01]) > 2 * np.ptp(caught[0.05])
    assert min(caught[0.05]) > max(min(caught[0.01]), 0.5)


# Bad input


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"defenders": []}, ValueError, "names no member"),
        ({"defenders": [LatentDefender()]}, TypeError, "must hold triples"),
        ({"defenders": [("a", LatentDefender())]}, TypeError, "must hold triples"),
        ({"defenders": [("a", StandardScaler(), 1)]}, TypeError, "detector of skmrr"),
        ({"defenders": [("a", LatentDefender(), 1)] * 2}, ValueError, "not unique"),
        (
            {"defenders": [("a", FrozenEstimator(LatentDefender()), 1)]},
            NotFittedError,
            "not fitted",
        ),
        ({"defenders": [("a", LatentDefender(), -1.0)]}, ValueError, "none negative"),
        ({"defenders": [("a", LatentDefender(), 0)]}, ValueError, "not all"),
        ({"defenders": [("a", NoiseDefender(), 1)], "layer": "4"}, ValueError, "has no effect"),
        ({"fusion": "mean"}, ValueError, "fusion"),
        ({"chain": "signs"}, ValueError, "chain"),
        ({"layer": "nine"}, ValueError, "its layers are"),
        ({"security_parameter": 0.001}, ValueError, "Too few calibration rows"),
    ],
)
def test_bad_parameters_name_the_cure(params, error, message, net, digits):
    X, y = digits
    template = {} if "defenders" in params else {"estimator": brief}
    ensemble = MRREnsemble(net, **{**coarse, **template, **params})
    with pytest.raises(error, match=message):
        ensemble.fit(X[:600], y[:600])


def test_a_member_that_knows_fewer_classes_says_so(net, digits):
    X, y = digits
    member = LatentDefender(max_epochs=1, security_parameter=0.2).fit(
        X[:300][y[:300] < 5].reshape(-1, 64), y[:300][y[:300] < 5]
    )
    members = [("five", FrozenEstimator(member), 1), ("margin", MarginDetector(), 1)]
    ensemble = MRREnsemble(net, defenders=members, **coarse)
    with pytest.warns(UserWarning, match="of classes that no training row was of"):
        ensemble.fit(X[:600], y[:600])
    risk = ensemble.member_risks(X[600:700], labels=y[600:700])
    assert (risk["five"][y[600:700] >= 5] == 1).all()
    assert (risk["five"][y[600:700] < 5] < 1).all()
    assert (risk["margin"] < 1).all()


def test_calibration_on_numbers_of_no_logit_is_refused(fitted, digits):
    ensemble = copy.copy(fitted)
    labels = digits[1][1000:1400].copy()
    labels[7] = 12
    with pytest.raises(ValueError, match="labels holds class 12"):
        ensemble.calibrate(digits[0][1000:1400], labels=labels)


def test_members_of_the_default_can_be_chosen(net):
    assert [name for name, *_ in default_defenders(net)] == ["latent_0", "margin"]
    names = [name for name, *_ in default_defenders(net, dictionary=True)]
    assert names == ["latent_0", "dictionary", "margin"]
    latent = default_defenders(net)[0][1]
    assert (latent.exploration_radius, latent.transfer_radius) == ("auto", "auto")
    narrow = default_defenders(net, width=0.5)[0][1]
    assert (narrow.exploration_radius, narrow.transfer_radius) == ("auto", 0)
    without = default_defenders()[0][1]
    assert (without.exploration_radius, without.transfer_radius) == (0, 0)
    assert default_defenders()[0][1].module is None


def test_default_members_share_the_weight_of_one_latent_defender(net):
    template = LatentDefender(max_epochs=7)
    members = default_defenders(net, latent=template, n_latent=4, layer="2", width=0.5, noise=True)
    names, defenders, weights = zip(*members, strict=True)
    assert names == ("latent_0", "latent_1", "latent_2", "latent_3", "dense", "sparse", "margin")
    assert weights == (0.25, 0.25, 0.25, 0.25, 1, 0.25, 1)
    assert template.module is None
    assert len({id(defender.module) for defender in defenders[:4]}) == 4
    for defender in defenders[:4]:
        assert (defender.max_epochs, defender.module.layer, defender.module.width) == (7, "2", 0.5)
    assert [defender.noise for defender in defenders[4:6]] == ["dense", "sparse"]
    assert isinstance(defenders[6], MarginDetector)


def test_default_members_keep_a_templates_own_module(net):
    module = replicate(net, "2")
    members = default_defenders(net, latent=LatentDefender(module), n_latent=2)
    assert [member.module for _, member, _ in members[:2]] == [module, module]


def test_default_members_are_used_as_changed(net, digits):
    X, y = digits
    members = default_defenders(net, latent=brief, noise=True)
    members[1] = ("dense", NoiseDefender(patch_size=3), 0.5)
    ensemble = MRREnsemble(net, defenders=members, **coarse).fit(X[:600], y[:600])
    assert ensemble.weights_.tolist() == [1, 0.5, 0.25, 1]
    assert ensemble.named_defenders_.dense.patch_size_ == 3
    by_name = MRREnsemble(net, estimator=brief, **coarse).fit(X[:600], y[:600])
    defaults = MRREnsemble(net, defenders=default_defenders(net, latent=brief), **coarse)
    expected = defaults.fit(X[:600], y[:600]).score_samples(X[600:])
    np.testing.assert_array_equal(by_name.score_samples(X[600:]), expected)


def test_default_width_is_a_share(net):
    with pytest.raises(ValueError, match="width=0.0 must be"):
        default_defenders(net, width=0.0)


@pytest.mark.parametrize("layer", [None, "2", "_orig_mod.2"])
def test_a_compiled_classifier_is_the_classifier(net, digits, layer):
    X, y = digits
    compiled = torch.compile(net, backend="eager")
    plain = layer and layer.removeprefix("_orig_mod.")
    found, expected = (
        MRREnsemble(network, layer=name, estimator=brief, **coarse).fit(X[:600], y[:600])
        for network, name in ((compiled, layer), (net, plain))
    )
    scores = expected.score_samples(X[600:])
    np.testing.assert_array_equal(found.score_samples(X[600:]), scores)
    np.testing.assert_array_equal(found.classify(X[600:]), expected.classify(X[600:]))
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.score_samples(X[600:]), scores)


def test_gradients_reach_the_clean_rows(fitted, digits):
    x = torch.as_tensor(digits[0][1400:1450]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(fitted.module_(x).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((1, 2, 3)) > 0).float().mean() > 0.9


def test_a_narrow_member_is_reproducible(net, digits):
    X, y = digits
    one, two = (
        MRREnsemble(net, defenders=pair(net, brief), **coarse).fit(X[:600], y[:600]).risk(X[600:])
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, two)


def test_scoring_before_calibration_is_refused(net, digits):
    X, y = digits
    ensemble = MRREnsemble(
        net, estimator=LatentDefender(max_epochs=1), calibration_fraction=0, **coarse
    )
    for use in ("score_samples", "member_risks"):
        with pytest.raises(NotFittedError):
            getattr(clone(ensemble), use)(X[:5])
        with pytest.raises(NotFittedError, match="calibrate"):
            getattr(clone(ensemble).fit(X[:300], y[:300]), use)(X[:5])


def test_width_must_fit_the_network(digits):
    X, y = digits

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(64, 16)
            self.out = nn.Linear(16, 10)

        def forward(self, x):
            return self.out(self.hidden(x.flatten(1)).view(-1, 16))

    with pytest.raises(ValueError, match="set width=1"):
        MRREnsemble(Fixed(), defenders=pair(Fixed(), brief), **coarse).fit(X[:600], y[:600])


class Trembling(Dataset):
    """Rows that are another each time they are read."""

    def __init__(self, X):
        self.X = X

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return (torch.as_tensor(self.X[index]) + 0.1 * torch.rand(())).clamp(0, 1)


def test_rows_that_change_are_fitted_reproducibly(net, digits):
    X, y = digits
    params = {"defenders": pair(net), **coarse, "calibration_fraction": 0}
    scores = []
    for n_jobs in (None, None, 2):
        torch.rand(7)  # whatever else has drawn before
        ensemble = MRREnsemble(net, n_jobs=n_jobs, **params).fit(Trembling(X[:600]), y[:600])
        scores.append(ensemble.calibrate(X[600:1000]).score_samples(X[1000:]))
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_allclose(scores[0], scores[2], rtol=1e-4)
