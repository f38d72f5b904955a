"""Evaluation against attackers who know the detector, and whether its attacks deserve trust."""

import copy

import numpy as np
import pytest
import torch
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
from skmrr.attacks import (
    AttackResult,
    AutoPGD,
    LagrangianPGD,
    OrthogonalPGD,
    RayS,
    SelectivePGD,
    Transfer,
    adaptive_suite,
)
from skmrr.evaluation import (
    certified_success_rate,
    evaluate_adaptive,
    evasion_cost,
    success_by_effort,
)
from skmrr.evaluation.adaptive import _cost
from skmrr.harmless import Rounding

EPS = (0.05, 0.15, 0.3)


@pytest.fixture(scope="module")
def fresh(digits):
    """Rows that nothing was fitted on."""
    return digits[0][1400:1500], digits[1][1400:1500]


@pytest.fixture(scope="module")
def explored(net, digits):
    X, y = digits
    return LatentDefender(
        replicate(net), classifier=net, exploration_radius=0.2, max_epochs=15, clip_values=(0, 1),
        learning_rate=3e-3, random_state=0,
    ).fit(X[:1400], y[:1400])  # fmt: skip


@pytest.fixture(scope="module")
def light():
    """A suite that runs in seconds."""
    shared = {"steps": 15, "n_targets": 3}
    return {
        "selective": SelectivePGD(**shared),
        "Lagrangian": LagrangianPGD(start="guide", weights=(1.0,), **shared),
    }


@pytest.fixture(scope="module")
def outcome(explored, fresh, light):
    return evaluate_adaptive(explored, *fresh, eps=EPS, attacks=light, per_attack=True)


def test_table_says_what_the_adversarials_do(outcome, explored, fresh):
    X, y = fresh
    for (eps, sp), result in outcome.worst.items():
        explored.set_params(security_parameter=sp)
        hit = result.success.numpy()
        adversarial = result.adversarial[result.success].numpy()
        if hit.any():
            answers = explored.classify(adversarial)
            assert (answers != -1).all()
            assert (answers != y[outcome.rows][hit]).all()
            assert np.abs(adversarial - X[outcome.rows][hit]).max() <= eps + 1e-6
        row = outcome.success.query("attack == 'worst case' and eps == @eps")
        row = row[row["security_parameter"] == sp].iloc[0]
        assert row["success_rate"] == hit.mean()
        assert row["low"] <= row["success_rate"] <= row["high"]
    explored.set_params(security_parameter=0.01)


def test_worst_case_is_no_better_than_any_attack(outcome):
    table = outcome.success.pivot_table(
        "success_rate", ["eps", "security_parameter"], "attack", sort=False
    )
    assert (table["worst case"] >= table[["selective", "Lagrangian"]].max(axis=1)).all()
    assert table["worst case"].max() > 0
    assert table["worst case"].min() < 1


def test_success_grows_with_the_ball_and_falls_with_the_threshold(outcome):
    worst = outcome.success[outcome.success["attack"] == "worst case"]
    table = worst.pivot(index="eps", columns="security_parameter", values="success_rate")
    assert (table.diff().iloc[1:] >= 0).all().all()
    assert (table[0.5] <= table[0.05]).all()


def test_stopping_at_the_first_success_changes_no_worst_case(outcome, explored, fresh, light):
    first = evaluate_adaptive(explored, *fresh, eps=EPS, attacks=light).success
    every = outcome.success[outcome.success["attack"] == "worst case"]
    np.testing.assert_allclose(first["success_rate"], every["success_rate"], atol=0.03)


def test_clean_columns(outcome, explored, fresh, net):
    X, y = fresh
    for row in outcome.clean.itertuples():
        explored.set_params(security_parameter=row.security_parameter)
        flagged = explored.predict(X) == -1
        right = net(torch.as_tensor(X)).argmax(1).numpy() == y
        assert row.false_alarms == pytest.approx(flagged.mean())
        assert row.accuracy_accepted == pytest.approx(right[~flagged].mean())
        robust = outcome.success.query("attack == 'worst case' and eps == 0.05")
        robust = robust[robust["security_parameter"] == row.security_parameter]["robust_accuracy"]
        assert robust.iloc[0] <= (right & ~flagged).mean() + 1e-9
    explored.set_params(security_parameter=0.01)


def test_the_suite_breaks_a_planted_weak_detector(net, digits, fresh):
    """The victim's own features, unexplored: what fools the victim has fooled them."""
    X, y = digits
    planted = LatentDefender(
        replicate(net), classifier=net, realign=False, clip_values=(0, 1), random_state=0
    ).fit(X[:1400], y[:1400])
    suite = adaptive_suite(steps=40)
    rate = evaluate_adaptive(
        planted, *fresh, eps=[0.3], attacks=suite, security_parameters=[0.05], n_attacked=90
    ).success["success_rate"]
    assert rate.iloc[0] >= 0.99


def test_noise_alone_is_broken_on_texture(net, digits, fresh):
    """Where dense noise is heard everywhere, the suite must know to keep to the texture."""
    X, y = digits
    noise = NoiseDefender(net, clip_values=(0, 1), random_state=0).fit(X[:1400], y[:1400])
    suite = {k: a for k, a in adaptive_suite(steps=40, textured=True).items() if "match" not in k}
    rate = evaluate_adaptive(
        noise, *fresh, eps=[0.5], attacks=suite, security_parameters=[0.05], n_attacked=50
    ).success["success_rate"]
    assert rate.iloc[0] >= 0.95


def test_large_balls_break_everything(explored, fresh):
    attacks = {"Lagrangian": LagrangianPGD(steps=30, start="guide", weights=(1.0,))}
    rate = evaluate_adaptive(
        explored, *fresh, eps=[1.0], attacks=attacks, security_parameters=[0.05], n_attacked=40
    ).success["success_rate"]
    assert rate.iloc[0] == 1.0


def test_adaptive_attacks_win_where_static_ones_do(explored, net, fresh):
    """On each image: what fools the detector by accident must be found on purpose."""
    static = {"static": Transfer(net, SelectivePGD(steps=20, start="clean"))}
    adaptive = {"adaptive": LagrangianPGD(steps=60), "selective": SelectivePGD(steps=60)}
    found = [
        evaluate_adaptive(explored, *fresh, eps=[0.3], attacks=a, security_parameters=[0.05])
        .worst[0.3, 0.05]
        .success
        for a in (static, adaptive)
    ]
    assert found[0].any()
    assert not (found[0] & ~found[1]).any()


def test_attackers_know_the_channel(explored, fresh, light, net):
    """Success is what holds at its end, and more of it than without that knowledge."""
    X, y = fresh
    channel = Rounding(2)
    arrived = channel(torch.as_tensor(X))
    explored.set_params(security_parameter=0.05)
    shared = {"eps": [0.2], "attacks": light, "security_parameters": [0.05]}
    knowing = evaluate_adaptive(explored, X, y, channel=channel, **shared)
    answers = net(arrived).argmax(1).numpy()
    assert np.array_equal(knowing.rows, np.flatnonzero(answers == y))
    assert knowing.clean["accuracy"].item() == (answers == y).mean()
    assert knowing.clean["false_alarms"].item() == (explored.predict(arrived) == -1).mean()
    result = knowing.worst[0.2, 0.05]
    verdicts = explored.classify(channel(result.adversarial[result.success]))
    assert result.success.any()
    assert ((verdicts != -1) & (verdicts != y[knowing.rows][result.success])).all()
    ignorant = evaluate_adaptive(explored, X, y, **shared).worst[0.2, 0.05]
    rows = ignorant.adversarial[ignorant.success]
    verdicts = explored.classify(channel(rows))
    labels = y[explored_rows(net, X, y)][ignorant.success]
    assert ((verdicts != -1) & (verdicts != labels)).sum() < result.success.sum()


def explored_rows(net, X, y):
    return np.flatnonzero(net(torch.as_tensor(X)).argmax(1).numpy() == y)


def test_transfer_from_another_seed_is_no_stronger(explored, net, digits, fresh, light):
    """A detector that only hid its gradients would fall to a copy's."""
    X, y = digits
    copy = LatentDefender(
        replicate(net), classifier=net, exploration_radius=0.2, max_epochs=15, clip_values=(0, 1),
        learning_rate=3e-3, random_state=7,
    ).fit(X[:1400], y[:1400])  # fmt: skip
    surrogate = copy.defended_classifier(security_parameter=0.5)
    attacks = {name: Transfer(surrogate, attack) for name, attack in light.items()}
    kinds = {"transfer": attacks, "white box": light}
    rates = {
        kind: evaluate_adaptive(explored, *fresh, eps=EPS, attacks=a, security_parameters=[0.05])
        .success["success_rate"]
        .to_numpy()
        for kind, a in kinds.items()
    }
    assert (rates["transfer"] <= rates["white box"]).all()


@pytest.mark.slow
def test_twice_the_steps_change_little(explored, fresh):
    suite = {
        "Lagrangian": LagrangianPGD(steps=300, start="guide"),
        "orthogonal": OrthogonalPGD(steps=300),
        "selective": SelectivePGD(steps=300),
    }
    twice = {k: a.with_effort(2.0) for k, a in suite.items()}
    table = success_by_effort(
        explored, *fresh, eps=[0.15], attacks=twice, security_parameters=[0.05]
    ).set_index("attack")
    assert abs(table["gain"]["worst case"]) <= 0.011


def test_effort_shows_which_attack_has_too_little(explored, fresh):
    """Each row says what an evaluation with that effort says; one step is no search."""
    suite = {"one step": SelectivePGD(steps=2), "enough": AutoPGD(steps=60, n_targets=3)}
    shared = {"eps": [0.2], "security_parameters": [0.05], "n_attacked": 50}
    table = success_by_effort(explored, *fresh, attacks=suite, **shared).set_index("attack")
    assert list(table.index) == [*suite, "worst case"]
    np.testing.assert_allclose(table["gain"], table["full"] - table["half"])
    assert table["gain"]["one step"] > 0.02
    assert abs(table["gain"]["enough"]) <= 0.02
    half = {"one step": SelectivePGD(steps=1)}
    rate = evaluate_adaptive(explored, *fresh, attacks=half, **shared).success["success_rate"]
    assert table["half"]["one step"] == rate.iloc[0]
    with pytest.raises(TypeError, match="no half of own"):
        success_by_effort(explored, *fresh, eps=[0.2], attacks={"own": print})


class Interrupted(Exception):
    pass


class Breakable:
    """An attack that can be told to stop after some calls."""

    norm = "linf"
    calls, allowed = 0, 1000

    def __call__(self, network, x, labels, **params):
        Breakable.calls += 1
        if Breakable.calls > Breakable.allowed:
            raise Interrupted
        return SelectivePGD(steps=5, n_targets=1)(network, x, labels, **params)


def test_an_interrupted_evaluation_goes_on(explored, fresh, tmp_path, monkeypatch):
    monkeypatch.setattr("skmrr.evaluation.siege.ROWS_KEPT", 30)
    shared = {"eps": [0.1, 0.3], "attacks": {"own": Breakable()}, "security_parameters": [0.05]}
    monkeypatch.setattr(Breakable, "calls", 0)
    whole = evaluate_adaptive(explored, *fresh, memory=str(tmp_path / "whole"), **shared)
    n_calls = Breakable.calls
    assert n_calls > 4
    monkeypatch.setattr(Breakable, "calls", 0)
    monkeypatch.setattr(Breakable, "allowed", 3)
    with pytest.raises(Interrupted):
        evaluate_adaptive(explored, *fresh, memory=str(tmp_path / "kept"), **shared)
    monkeypatch.setattr(Breakable, "calls", 0)
    monkeypatch.setattr(Breakable, "allowed", 1000)
    resumed = evaluate_adaptive(explored, *fresh, memory=str(tmp_path / "kept"), **shared)
    assert Breakable.calls == n_calls - 3
    assert resumed.success.equals(whole.success)
    again = evaluate_adaptive(explored, *fresh, memory=str(tmp_path / "kept"), **shared)
    assert Breakable.calls == n_calls - 3
    assert again.success.equals(whole.success)
    for key, result in whole.worst.items():
        torch.testing.assert_close(
            result.adversarial, resumed.worst[key].adversarial, rtol=0, atol=0, equal_nan=True
        )


def test_what_is_kept_is_of_this_network_and_attack(explored, net, fresh, tmp_path):
    """Another detector, attack or copy finds nothing that was kept."""
    shared = {"eps": [0.3], "security_parameters": [0.05], "n_attacked": 30}
    attack = SelectivePGD(steps=5, n_targets=1, start="clean")
    copies = [net, copy.deepcopy(net)]
    with torch.no_grad():
        copies[1][-1].bias += torch.arange(10)
    suites = [
        {"a": attack},
        {"a": attack.with_effort(4.0)},
        *({"a": Transfer(network, attack)} for network in copies),
    ]
    for suite in suites:
        kept, fresh_rate = (
            evaluate_adaptive(explored, *fresh, attacks=suite, memory=memory, **shared).success
            for memory in (str(tmp_path), None)
        )
        assert kept.equals(fresh_rate)


def test_decisions_alone_break_less_than_gradients(explored, fresh):
    suite = {"decisions": RayS(queries=300), "APGD": AutoPGD(steps=40, n_targets=3)}
    table = evaluate_adaptive(
        explored, *fresh, eps=[0.2], attacks=suite, security_parameters=[0.05], per_attack=True,
        n_attacked=50,
    ).success.set_index("attack")["success_rate"]  # fmt: skip
    assert 0 < table["decisions"] <= table["APGD"]


def test_an_ensemble_is_attacked_as_a_whole(net, digits, fresh, light):
    X, y = digits
    members = [
        ("latent", LatentDefender(replicate(net), max_epochs=3), 1),
        ("noise", NoiseDefender(), 1),
        ("margin", MarginDetector(), 1),
    ]
    ensemble = MRREnsemble(net, defenders=members, clip_values=(0, 1), random_state=0)
    ensemble.fit(X[:1400], y[:1400])
    outcome = evaluate_adaptive(
        ensemble, *fresh, eps=[0.3], attacks=light, security_parameters=[0.05], n_attacked=30
    )
    result = outcome.worst[0.3, 0.05]
    assert result.success.any()
    ensemble.set_params(security_parameter=0.05)
    assert (ensemble.classify(result.adversarial[result.success].numpy()) != -1).all()


def test_evasion_costs_more_than_fooling_the_victim(explored, fresh):
    costs = evasion_cost(explored, *fresh, n_attacked=20, search_steps=3, max_iter=50)
    assert list(costs["security_parameter"]) == [0.0, 0.01, 0.05]
    assert (costs["success_rate"] == 1).all()
    assert costs["ratio"].iloc[0] == 1
    assert (costs["ratio"].iloc[1:] > 1).all()


def test_flat_rows_are_attacked_in_their_shape(net, digits, light):
    X, y = digits
    flat = X.reshape(len(X), -1)
    detector = LatentDefender(
        replicate(net), classifier=net, input_shape=(1, 8, 8), clip_values=(0, 1), max_epochs=2,
        random_state=0,
    ).fit(flat[:1400], y[:1400])  # fmt: skip
    outcome = evaluate_adaptive(
        detector,
        flat[1400:1420],
        y[1400:1420],
        eps=[0.3],
        attacks=light,
        security_parameters=[0.05],
    )
    assert outcome.worst[0.3, 0.05].adversarial.shape[1:] == (1, 8, 8)


def test_what_is_missing_is_named(explored, fresh, digits):
    without_range = copy.copy(explored).set_params(clip_values=None)
    with pytest.raises(ValueError, match="clip_values"):
        evaluate_adaptive(without_range, *fresh, eps=[0.1])
    alone = NoiseDefender(clip_values=(0, 1), random_state=0).fit(digits[0][:600])
    with pytest.raises(ValueError, match="give classifier"):
        evaluate_adaptive(alone, *fresh, eps=[0.1])
    with pytest.raises(ValueError, match="set trust_bounds=False"):
        evaluate_adaptive(explored, *fresh, eps=[0.1], trust_bounds=True, channel=Rounding(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x - 0.5).sign() * -0.2 + x, "beyond eps=0.1"),
        (lambda x: x + 0.05, "left the range"),
    ],
)
@pytest.mark.parametrize("norm", ["linf", np.inf])
def test_attacks_that_leave_the_ball_are_refused(explored, fresh, change, message, norm):
    def attack(network, x, labels, **params):
        everywhere = torch.ones(len(x), dtype=torch.bool)
        return AttackResult(change(x), everywhere, torch.zeros(len(x)))

    attack.norm = norm
    with pytest.raises(ValueError, match=message):
        evaluate_adaptive(explored, *fresh, eps=[0.1], attacks={"own": attack})


def test_l2_distortions_are_l2(explored, fresh):
    attack = SelectivePGD(steps=10, norm="l2", n_targets=2)
    outcome = evaluate_adaptive(
        explored, fresh[0][:20], fresh[1][:20], eps=[4.0], security_parameters=[0.01],
        attacks={"l2": attack},
    )  # fmt: skip
    worst = outcome.worst[4.0, 0.01]
    change = worst.adversarial - torch.as_tensor(fresh[0][outcome.rows])
    assert worst.success.any()
    torch.testing.assert_close(
        worst.distortion[worst.success], change.flatten(1).norm(dim=1)[worst.success]
    )


def test_not_calibrated_is_told_before_any_attack(net, digits, fresh):
    X, y = digits
    shared = {"classifier": net, "clip_values": (0, 1), "calibration_fraction": 0}
    detector = NoiseDefender(**shared).fit(X[:500], y[:500])
    for measure in (evaluate_adaptive, certified_success_rate):
        with pytest.raises(NotFittedError, match="call calibrate"):
            measure(detector, *fresh, eps=[0.1])


def test_a_bound_on_one_of_several_members_bounds_nothing(net, digits, fresh, light):
    X, y = digits
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    member = ("certified", CertifiedDefender(plain, exploration_radius=0.1, max_epochs=5), 1)
    shared = {"clip_values": (0, 1), "random_state": 0}
    alone = MRREnsemble(net, defenders=[member], **shared).fit(X[:1400], y[:1400])
    sizes = {"eps": [0.05, 0.15], "security_parameters": [0.5]}
    bound = certified_success_rate(alone, *fresh, **sizes)["success_rate"]
    found = evaluate_adaptive(alone, *fresh, attacks=light, **sizes).success["success_rate"]
    assert (bound >= found).all()
    several = [member, ("margin", MarginDetector(), 1)]
    both = MRREnsemble(net, defenders=several, **shared).fit(X[:1400], y[:1400])
    with pytest.raises(TypeError, match="evaluate_adaptive"):
        certified_success_rate(both, *fresh, eps=[0.05])


def test_the_median_of_two_lies_between_them():
    distortion = torch.tensor([1.0, 3.0])
    result = AttackResult(torch.zeros(2, 1), torch.ones(2, dtype=torch.bool), distortion)
    assert _cost(0.01, result, result)["median_l2"] == 2


def test_nothing_to_attack(explored, fresh, net):
    X, _ = fresh
    wrong = (net(torch.as_tensor(X)).argmax(1).numpy() + 1) % 10
    with pytest.raises(ValueError, match="no row"):
        evaluate_adaptive(explored, X, wrong, eps=[0.1])
