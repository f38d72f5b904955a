"""Detection by the protocol of the tables: its numbers, its refusals, and the metrics it uses."""

import pickle
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import beta, norm
from sklearn.metrics import roc_auc_score
from torch import nn

from skmrr import LatentDefender
from skmrr.attacks import AttackResult
from skmrr.baselines import (
    FeatureSqueezingDetector,
    KernelDensityDetector,
    MaxSoftmaxDetector,
    NearestNeighborsDetector,
)
from skmrr.evaluation import (
    DetectionEvaluation,
    Successes,
    auc_interval,
    check_disjoint,
    evaluate_detection,
    fitted_bytes,
    flag_rates,
    over_seeds,
    scoring_cost,
    tpr_at_fpr,
)
from skmrr.evaluation.successes import worst_scores
from skmrr.harmless import CHANNELS, Rounding
from skmrr.threshold import RiskMixin

FRAMES = ("detection", "flagged", "scores")


def auc_and_delong(clean, odd):
    """AUC and DeLong's variance, pair by pair."""
    pairs = (clean[:, None] > odd) + 0.5 * (clean[:, None] == odd)
    variances = (pairs.mean(axis).var(ddof=1) / n for axis, n in ((0, len(odd)), (1, len(clean))))
    return pairs.mean(), sum(variances)


@pytest.mark.parametrize("digits_kept", [0, 1, 12])
def test_auc_and_its_interval_are_those_counted_pair_by_pair(rng, digits_kept):
    """Rounded to whole numbers, most rows tie."""
    clean = rng.standard_normal(60).round(digits_kept)
    odd = (rng.standard_normal(35) - 1).round(digits_kept)
    auc, low, high = auc_interval(clean, odd, confidence=0.9)
    expected, variance = auc_and_delong(clean, odd)
    assert auc == pytest.approx(expected)
    assert auc == pytest.approx(roc_auc_score([1] * 60 + [0] * 35, np.r_[clean, odd]))
    half = norm.ppf(0.95) * np.sqrt(variance) / (auc * (1 - auc))
    np.testing.assert_allclose([low, high], expit(logit(auc) + np.array([-half, half])))


def test_auc_depends_on_the_order_of_scores_alone(rng):
    clean, odd = rng.standard_normal(40), rng.standard_normal(30) - 1
    expected = auc_interval(clean, odd)
    np.testing.assert_allclose(auc_interval(np.exp(clean[::-1]), np.exp(odd)), expected)
    turned = auc_interval(-clean, -odd)
    np.testing.assert_allclose(turned, 1 - np.array(expected)[[0, 2, 1]])


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_auc_interval_covers_the_true_area(rng, shift):
    """Of two normal distributions `shift` apart the area is Φ(shift / √2)."""
    truth = norm.cdf(shift / np.sqrt(2))
    intervals = [
        auc_interval(rng.standard_normal(80), rng.standard_normal(50) - shift)[1:]
        for _ in range(500)
    ]
    assert 0.92 < np.mean([low <= truth <= high for low, high in intervals]) < 0.98


@pytest.mark.parametrize("n_odd", [1, 3, 30, 3000])
def test_perfect_separation_is_no_certainty(n_odd):
    """An interval below 1 that narrows with the smaller side, and never leaves [0, 1]."""
    clean, odd = np.zeros(1000), np.full(n_odd, -1.0)
    auc, low, high = auc_interval(clean, odd)
    assert auc == high == 1
    assert low == pytest.approx(max(0, 1 + np.log(0.025) / min(n_odd, 1000)))
    np.testing.assert_allclose(auc_interval(odd, clean), [0, 0, 1 - low])


def test_few_rows_tell_nothing_of_the_spread(rng):
    clean, odd = rng.standard_normal(1000), rng.standard_normal(9)
    assert auc_interval(clean, odd)[1:] == (0, 1)
    assert auc_interval(odd, clean)[1:] == (0, 1)
    low, high = auc_interval(clean, np.r_[odd, 0.0])[1:]
    assert 0 < low < high < 1


def test_scores_all_alike_tell_nothing():
    assert auc_interval(np.zeros(50), np.zeros(50)) == (0.5, 0.0, 1.0)


def test_worst_scores_takes_each_rows_most_normal_success(rng):
    attacks = [
        (rng.permutation(50)[:n], -rng.exponential(size=n)) for n in (20, 1, 35)
    ]  # some rows are broken by several attacks, others by none
    best = {}
    for rows, scores in attacks:
        for row, score in zip(rows, scores, strict=True):
            best[row] = max(score, best.get(row, -np.inf))
    broken, scores = worst_scores(iter(attacks), np.arange(50))
    np.testing.assert_array_equal(broken, sorted(best))
    np.testing.assert_array_equal(scores, [best[row] for row in sorted(best)])
    broken, scores = worst_scores(iter(attacks), np.arange(0, 50, 2))
    np.testing.assert_array_equal(broken, sorted(row for row in best if row % 2 == 0))
    np.testing.assert_array_equal(scores, [best[row] for row in broken])


class Known(RiskMixin):
    """Detector without a classifier, whose score is the row's first value."""

    security_parameter = 0.01

    def __init__(self, sign=1.0):
        self.sign = sign
        self.calls = []

    def score_samples(self, X, *, labels=None):
        self.calls.append((len(X), labels))
        return np.minimum(self.sign * X[:, 0], 0)


@pytest.fixture
def case(rng):
    """Clean rows, of which the victim has every tenth wrong, and two attacks."""
    X = -rng.exponential(size=(200, 2))
    y = np.arange(200) % 10
    labels = np.where(np.arange(200) % 10 == 3, 0, y)
    right = np.flatnonzero(labels == y)
    few = np.r_[rng.permutation(right[:50])[:3], rng.permutation(right[50:100])[:4]]
    many = rng.permutation(right[:50])[:40]
    attacks = {
        "few": Successes(-8 * rng.exponential(size=(7, 2)), few, right[:100], rng.random(7)),
        "many": Successes(-4 * rng.exponential(size=(40, 2)), many, right[:50], rng.random(40)),
    }
    return SimpleNamespace(X=X, y=y, labels=labels, attacks=attacks)


def evaluate(case, detectors=None, **params):
    params = {"labels": case.labels, "attacks": case.attacks, **params}
    detectors = {"one": Known(), "other": Known(0.5)} if detectors is None else detectors
    return evaluate_detection(detectors, case.X, case.y, **params)


def test_detection_is_what_the_scores_say(case):
    table = evaluate(case).detection
    assert table["detector"].tolist() == 3 * ["one"] + 3 * ["other"]
    assert table["attack"].tolist() == 2 * ["few", "many", "worst case"]
    for record in table[table["attack"] != "worst case"].itertuples():
        attack = case.attacks[record.attack]
        sign = 1.0 if record.detector == "one" else 0.5
        clean, odd = sign * case.X[:, 0], sign * attack.X[:, 0]
        truth = np.r_[np.ones(200), np.zeros(len(odd))]
        assert record.auc == pytest.approx(roc_auc_score(truth, np.r_[clean, odd]))
        assert (record.auc_low, record.auc_high) == auc_interval(clean, odd)[1:]
        assert record.n_rows == len(odd)
        assert record.success_rate == len(odd) / attack.n_attacked
        assert record.mean_distortion == pytest.approx(attack.distortion.mean())
        for fpr in (0.01, 0.05, 0.1):
            caught = table.loc[record.Index, f"tpr_{fpr:g}"]
            assert caught == tpr_at_fpr(clean, odd, fpr)
            threshold = np.sort(clean)[int(200 * fpr)]
            assert caught == (odd < threshold).mean()


def test_worst_case_is_of_each_broken_row_that_all_attacks_began_from(case):
    table = evaluate(case).detection.query("detector == 'one'").set_index("attack")
    worst = {}
    for attack in case.attacks.values():
        for row, score in zip(attack.rows, attack.X[:, 0], strict=True):
            if row in case.attacks["many"].attacked:  # and so in those of "few"
                worst[row] = max(score, worst.get(row, -np.inf))
    odd = np.array(list(worst.values()))
    assert len(odd) < len({row for attack in case.attacks.values() for row in attack.rows})
    assert table.loc["worst case", "n_rows"] == len(worst)
    truth = np.r_[np.ones(200), np.zeros(len(odd))]
    expected = roc_auc_score(truth, np.r_[case.X[:, 0], odd])
    assert table.loc["worst case", "auc"] == pytest.approx(expected)
    assert table.loc["worst case", "success_rate"] == len(worst) / len(
        case.attacks["many"].attacked
    )
    assert np.isnan(table.loc["worst case", "mean_distortion"])


def test_flagged_shares_split_the_clean_side_by_the_victims_errors(case):
    table = evaluate(case, security_parameters=(0.01, 0.3)).flagged
    right = case.labels == case.y
    parts = {
        "clean": case.X,
        "clean, victim right": case.X[right],
        "clean, victim wrong": case.X[~right],
        "few": case.attacks["few"].X,
        "many": case.attacks["many"].X,
    }
    table = table[table["detector"] == "one"]
    assert table["rows"].tolist() == [name for name in parts for _ in range(2)]
    for record in table.itertuples():
        scores = parts[record.rows][:, 0]
        k, n = int((scores < np.log(record.security_parameter)).sum()), len(scores)
        assert (record.n_rows, record.flagged) == (n, k / n)
        low = beta.ppf(0.025, k, n - k + 1) if k else 0
        high = beta.ppf(0.975, k + 1, n - k) if k < n else 1
        np.testing.assert_allclose([record.low, record.high], [low, high], rtol=1e-6)


def test_verdicts_are_the_detectors_own(case):
    detector = Known()
    for sp in (0.01, 0.3):
        table = evaluate(case, {"it": detector}, security_parameters=(sp,)).flagged
        detector.security_parameter = sp
        flagged = (detector.predict(case.X) == -1).mean()
        assert table.query("rows == 'clean'")["flagged"].tolist() == [flagged]


def test_a_victim_without_errors_has_no_row_for_them(case):
    case.labels = case.y
    rows = evaluate(case).flagged["rows"].unique()
    assert rows.tolist() == ["clean", "clean, victim right", "few", "many"]


def test_an_attack_without_success_counts_as_such(case):
    nothing = np.empty(0, int)
    case.attacks["none"] = Successes(np.empty((0, 2)), nothing, np.arange(0, 3), np.empty(0))
    outcome = evaluate(case)
    record = outcome.detection.query("detector == 'one' and attack == 'none'").iloc[0]
    assert (record["n_rows"], record["success_rate"]) == (0, 0)
    assert record[["mean_distortion", "auc", "auc_low", "auc_high", "tpr_0.01"]].isna().all()
    assert "none" not in set(outcome.flagged["rows"]) | set(outcome.scores["attack"])


def test_every_score_is_kept_with_its_row(case):
    scores = evaluate(case).scores.query("detector == 'one'")
    assert scores["attack"].unique().tolist() == ["clean", "few", "many", "worst case"]
    for name, X, rows in (
        ("clean", case.X, np.arange(200)),
        ("few", case.attacks["few"].X, case.attacks["few"].rows),
    ):
        part = scores[scores["attack"] == name]
        np.testing.assert_array_equal(part["score"], X[:, 0])
        np.testing.assert_array_equal(part["row"], rows)


def test_without_a_classifier_both_sides_are_judged_alike(digits):
    """An attack that changes nothing is told from nothing."""
    X, y = digits[0].reshape(-1, 64), digits[1]
    detector = KernelDensityDetector(random_state=0).fit(X[:1000], y[:1000])
    labels = np.where(np.arange(len(X)) % 5 == 0, (y + 1) % 10, y)[1000:]
    rows = np.flatnonzero(labels == y[1000:])
    nothing = Successes(X[1000:][rows], rows, attacked=rows, distortion=np.zeros(len(rows)))
    outcome = evaluate_detection(
        {"it": detector}, X[1000:], y[1000:], {"nothing": nothing}, labels=labels
    )
    assert outcome.detection["auc"].to_numpy() == pytest.approx(0.5, abs=0.02)
    clean = outcome.flagged.query("rows == 'clean' and security_parameter == 0.05")
    assert clean["flagged"].item() < 0.1


@pytest.mark.parametrize("flat", [False, True])
def test_the_victim_is_asked_where_no_labels_are_given(net, digits, flat):
    X, y = digits[0][1000:], digits[1][1000:]
    with torch.no_grad():
        labels = net(torch.as_tensor(X)).argmax(1).numpy()
    X = X.reshape(len(X), -1) if flat else X
    detector = MaxSoftmaxDetector(net, input_shape=(1, 8, 8) if flat else None, random_state=0)
    detector.fit(X[:600], y[:600])
    X, y, labels = X[600:], y[600:], labels[600:]
    rows = np.flatnonzero(labels == y)[:20]
    attacks = {"turned": Successes(1 - X[rows], rows, rows, np.ones(20))}
    given, asked = (
        evaluate_detection({"it": detector}, X, y, attacks, labels=known)
        for known in (labels, None)
    )
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(given, name), getattr(asked, name))


# --- channels ---


@pytest.fixture(scope="module")
def sent(net, digits):
    """Digits, a detector, and attacks that a coarse rounding undoes, or does not."""
    X, y = digits[0][1000:], digits[1][1000:]
    detector = MaxSoftmaxDetector(net, clip_values=(0, 1), random_state=0).fit(X[:600], y[:600])
    X, y = X[600:], y[600:]
    labels = predict(net, X)
    rows = np.flatnonzero(labels == y)
    turned = {
        "mild": np.clip(X[rows] + 0.3 * np.sign(0.5 - X[rows]), 0, 1),
        "strong": 1 - X[rows],
    }
    attacks = {}
    for name, odd in turned.items():
        fools = predict(net, odd) != y[rows]
        attacks[name] = Successes(odd[fools], rows[fools], rows, np.arange(fools.sum()) + 1.0)
    return SimpleNamespace(X=X, y=y, detector=detector, attacks=attacks)


def predict(net, X):
    with torch.no_grad():
        return net(torch.as_tensor(X)).argmax(1).numpy()


def test_only_what_still_fools_the_victim_counts(sent, net):
    change = Rounding(1)
    outcome = evaluate_detection(
        {"it": sent.detector}, sent.X, sent.y, sent.attacks, channels={"1 bit": change}
    )
    table = outcome.detection.set_index("attack")
    clean = change(torch.as_tensor(sent.X)).numpy()
    is_right = predict(net, clean) == sent.y
    for name, attack in sent.attacks.items():
        odd = change(torch.as_tensor(attack.X)).numpy()
        fools = (predict(net, odd) != sent.y[attack.rows]) & is_right[attack.rows]
        assert fools.sum() < len(odd) or name == "strong"
        assert table.loc[name, "n_rows"] == fools.sum() > 0
        assert table.loc[name, "success_rate"] == fools.sum() / is_right[attack.attacked].sum()
        assert table.loc[name, "mean_distortion"] == attack.distortion[fools].mean()
        scores = (sent.detector.score_samples(rows) for rows in (clean, odd[fools]))
        assert table.loc[name, "auc"] == table.loc[name, "auc_raw"] == auc_interval(*scores)[0]
    flagged = outcome.flagged.set_index(["rows", "security_parameter"])
    assert flagged.loc[("clean, victim right", 0.05), "n_rows"] == is_right.sum()
    assert (outcome.detection["channel"] == "1 bit").all()


def test_worst_case_over_channels(sent):
    channels = {"raw": None, "1 bit": Rounding(1)}
    both, raw = (
        evaluate_detection({"it": sent.detector}, sent.X, sent.y, sent.attacks, channels=chosen)
        for chosen in (channels, {"raw": None})
    )
    kept = both.scores.query("attack != 'worst case'")
    clean = kept.query("attack == 'clean'")
    odd = kept.query("attack != 'clean'").groupby("row")["score"].max()
    assert len(clean) == 2 * len(sent.X)
    record = both.detection.query("channel == 'any channel'").squeeze()
    assert record["auc"] == pytest.approx(auc_interval(clean["score"], odd)[0])
    assert record["n_rows"] == len(odd)
    clean = clean.query("channel == 'raw'")
    assert record["auc_raw"] == pytest.approx(auc_interval(clean["score"], odd)[0])
    assert "any channel" not in set(raw.detection["channel"])
    part = both.detection.query("channel == 'raw'").reset_index(drop=True)
    pd.testing.assert_frame_equal(part, raw.detection)


def test_images_come_through_all_channels_by_default(sent):
    outcome = evaluate_detection({"it": sent.detector}, sent.X, sent.y, sent.attacks)
    assert outcome.flagged["channel"].unique().tolist() == list(CHANNELS)


def test_what_changes_nothing_changes_nothing(sent):
    channels = {"raw": None, "same": lambda x: x}
    table = evaluate_detection(
        {"it": sent.detector}, sent.X, sent.y, sent.attacks, channels=channels
    ).detection.query("channel != 'any channel'")
    parts = [part.drop(columns="channel") for _, part in table.groupby("channel")]
    pd.testing.assert_frame_equal(*(part.reset_index(drop=True) for part in parts))


@pytest.mark.parametrize(
    ("channels", "error", "message"),
    [
        ([None], TypeError, "mapping of names to changes"),
        ({}, TypeError, "mapping of names to changes"),
        ({"any channel": None}, ValueError, "No channel may be called"),
        ({"odd": 3}, TypeError, "3 is no change"),
    ],
)
def test_bad_channels(sent, channels, error, message):
    with pytest.raises(error, match=message):
        evaluate_detection({"it": sent.detector}, sent.X, sent.y, sent.attacks, channels=channels)


def test_changed_rows_need_a_classifier_to_ask(case):
    with pytest.raises(ValueError, match="could be asked about changed rows"):
        evaluate(case, channels={"same": lambda x: x})


# --- harmless changes ---


def test_flag_rates_are_of_rows_still_right(sent, net):
    changes = {"rounding": [Rounding(4), Rounding(1)]}
    rates = flag_rates({"it": sent.detector}, sent.X, sent.y, changes=changes)
    rates = rates.set_index(["change", "severity", "security_parameter"])
    assert len(rates) == 6
    for severity, change in enumerate([None, *changes["rounding"]]):
        rows = sent.X if change is None else change(torch.as_tensor(sent.X)).numpy()
        still = predict(net, rows) == sent.y
        record = rates.loc[("rounding" if severity else "none", severity, 0.05)]
        flagged = sent.detector.set_params(security_parameter=0.05).predict(rows[still]) == -1
        assert record["still_right"] == still.mean()
        assert record["n_rows"] == still.sum()
        assert record["flagged"] == flagged.mean()
        assert record["low"] <= record["flagged"] <= record["high"]


def test_flag_rates_need_a_victim(case, sent):
    with pytest.raises(ValueError, match="No detector has a classifier"):
        flag_rates({"it": Known()}, case.X, case.y)
    with pytest.raises(ValueError, match="no row right under 'none'"):
        flag_rates({"it": sent.detector}, sent.X, (sent.y + 1) % 10)


def altered(case, **changes):
    """The case with its attack "few" changed."""
    attack = case.attacks["few"]
    fields = {name: getattr(attack, name) for name in ("X", "rows", "attacked", "distortion")}
    return {"few": Successes(**fields | changes)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: {"attacks": {}}, "one detector and one attack"),
        (lambda case: {"detectors": {}}, "one detector and one attack"),
        (
            lambda case: {"attacks": altered(case, X=np.empty((0, 2)), rows=np.empty(0, int))},
            "No attack has a success",
        ),
        (lambda case: {"attacks": altered(case, rows=np.arange(194, 201))}, "positions in X"),
        (lambda case: {"attacks": altered(case, rows=np.arange(-1, 6))}, "positions in X"),
        (lambda case: {"attacks": altered(case, rows=np.arange(6))}, "one for each success"),
        (lambda case: {"attacks": altered(case, attacked=np.arange(200))}, "few.*misclassif"),
        (lambda case: {"attacks": altered(case, attacked=np.arange(5))}, "among those attacked"),
        (
            lambda case: {"attacks": altered(case, attacked=np.arange(201))},
            "few attacked must be positions in X",
        ),
        (lambda case: {"attacks": {"clean": case.attacks["few"]}}, "called 'clean'"),
        (lambda case: {"attacks": {"worst case": case.attacks["few"]}}, "called 'worst case'"),
        (lambda case: {"labels": None}, re.escape("give labels=…")),
        (lambda case: {"labels": case.labels[:-1]}, "labels has 199 entries but X has 200"),
        (lambda case: {"labels": case.labels + 0.5}, "labels must hold class indices"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_scoring(case, change, message):
    detector = Known()
    with pytest.raises(ValueError, match=message):
        evaluate(case, **{"detectors": {"it": detector}, **change(case)})
    assert not detector.calls


def test_what_is_no_mapping_is_refused(case):
    with pytest.raises(TypeError, match="mapping of names to detectors"):
        evaluate(case, detectors=Known())
    for attacks in (case.attacks["few"], {"few": case.attacks["few"].X}):
        with pytest.raises(TypeError, match="mapping of names to skmrr.evaluation.Successes"):
            evaluate(case, attacks=attacks)


def test_classes_that_do_not_fit_are_refused(case):
    case.y = case.y[:-1]
    with pytest.raises(ValueError, match="y has 199 entries but X has 200"):
        evaluate(case)


def test_successes_are_those_of_the_attack(rng):
    success = torch.tensor([True, False, True, False, False])
    adversarial = torch.where(success[:, None], torch.arange(5.0)[:, None], torch.nan)
    distortion = torch.where(success, torch.arange(5.0), torch.inf)
    found = Successes.of(AttackResult(adversarial, success, distortion), [9, 7, 5, 3, 1])
    np.testing.assert_array_equal(found.X, [[0.0], [2.0]])
    np.testing.assert_array_equal(found.rows, [9, 5])
    np.testing.assert_array_equal(found.distortion, [0.0, 2.0])
    np.testing.assert_array_equal(found.attacked, [9, 7, 5, 3, 1])
    assert found.n_attacked == 5


def test_seeds_are_joined_saved_and_read_back(case, tmp_path):
    by_seed = {7: evaluate(case), 3: evaluate(case, {"one": Known(0.1)})}
    joined = DetectionEvaluation.concat(by_seed)
    for name in FRAMES:
        frame = getattr(joined, name)
        assert frame["seed"].unique().tolist() == [7, 3]
        for seed, part in by_seed.items():
            own = frame[frame["seed"] == seed].drop(columns="seed").reset_index(drop=True)
            pd.testing.assert_frame_equal(own, getattr(part, name))
    paths = joined.save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        f"{name}.{kind}" for name in FRAMES for kind in ("csv", "json")
    ]
    for path in paths:
        read = pd.read_csv(path) if path.suffix == ".csv" else pd.read_json(path)
        pd.testing.assert_frame_equal(read, getattr(joined, path.stem), check_dtype=False)


def test_over_seeds():
    frame = pd.DataFrame(
        {
            "detector": ["b", "a", "b", "a"],
            "seed": [1, 1, 2, 2],
            "auc": [0.5, 0.9, 0.7, 0.8],
            "other": [1.0, 2.0, 3.0, 4.0],
        }
    )
    table = over_seeds(frame, ["detector"], ["auc"])
    assert table.index.tolist() == ["b", "a"]
    assert table.columns.tolist() == [("auc", "mean"), ("auc", "min"), ("auc", "max")]
    np.testing.assert_allclose(table, [[0.6, 0.5, 0.7], [0.85, 0.8, 0.9]])


def test_shared_rows_are_told(digits, recwarn):
    X = digits[0]
    check_disjoint(fit=X[:100], calibration=X[100:200], test=X[200:300])
    assert not recwarn
    with pytest.warns(UserWarning, match="5 rows of calibration are in test too; split") as seen:
        check_disjoint(fit=X[:100], calibration=X[100:200], test=X[195:300])
    assert len(seen) == 1
    assert seen[0].filename == __file__


class Counted(nn.Module):
    """A network that counts the passes of all its copies."""

    n_passes = 0

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        Counted.n_passes += 1
        return self.network(x)


@pytest.mark.parametrize(
    ("kind", "params", "n_passes"),
    [
        (MaxSoftmaxDetector, {}, 1),
        (FeatureSqueezingDetector, {"bit_depth": 4, "median_size": 2}, 3),
    ],
)
def test_scoring_cost_is_in_passes_of_the_classifier(
    net, digits, monkeypatch, kind, params, n_passes
):
    """By a clock that ticks once a pass."""
    victim = Counted(net)
    detector = kind(victim, clip_values=(0, 1), batch_size=40, random_state=0, **params)
    detector.fit(digits[0][:600], digits[1][:600])
    clock = SimpleNamespace(perf_counter=lambda: Counted.n_passes)
    monkeypatch.setattr("skmrr.evaluation.costs.time", clock)
    assert scoring_cost(detector, digits[0][:100], repeats=3) == n_passes
    assert victim.training  # as it was
    assert not net.training


def test_scoring_cost_needs_a_classifier(digits):
    X, y = digits[0].reshape(-1, 64), digits[1]
    detector = LatentDefender(max_epochs=1, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="give classifier"):
        scoring_cost(detector, X)


@pytest.mark.parametrize("pickled", [False, True])
def test_fitted_bytes_leave_the_classifier_out(net, digits, pickled):
    X, y = digits
    params = {"calibration_fraction": 0, "random_state": 0}
    detectors = [
        NearestNeighborsDetector(net, max_rows=n, n_neighbors=5, **params).fit(X[:500], y[:500])
        for n in (100, 300)
    ]
    if pickled:
        detectors = [pickle.loads(pickle.dumps(detector)) for detector in detectors]
    small, large = map(fitted_bytes, detectors)
    row = 33 * 8  # 32 features and their square
    assert large - small == 200 * row
    # Beside the bank there are its centre, the classes, and a calibration without rows.
    assert 100 * row < small < 101 * row + 200


def test_fitted_bytes_of_a_detector_without_a_classifier(digits):
    X, y = digits[0].reshape(-1, 64), digits[1]
    detector = NearestNeighborsDetector(max_rows=100, random_state=0).fit(X, y)
    assert fitted_bytes(detector) >= 100 * 64 * 4
