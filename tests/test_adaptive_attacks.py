"""Attacks on a classifier together with its detector."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from torch import nn

from skmrr import (
    FeatureExtractor,
    LatentDefender,
    MarginDetector,
    MRREnsemble,
    NoiseDefender,
    replicate,
)
from skmrr.attacks import (
    AttackResult,
    AutoPGD,
    FeatureMatchingPGD,
    Guides,
    LagrangianPGD,
    OrthogonalPGD,
    OverChannels,
    RayS,
    SelectivePGD,
    Transfer,
    adaptive_suite,
    carlini_l2,
    worst_case,
)
from skmrr.attacks.auto_pgd import LOSSES, _looks
from skmrr.attacks.judging import judge
from skmrr.attacks.projected import textured_pixels
from skmrr.harmless import Rounding, Shift
from skmrr.nn import DefendedClassifier

SP = 0.05
ATTACKS = {
    "Lagrangian": LagrangianPGD(steps=20),
    "Lagrangian, guide": LagrangianPGD(steps=20, start="guide", weights=(1.0,)),
    "selective": SelectivePGD(steps=20),
    "selective, clean": SelectivePGD(steps=20, start="clean"),
    "orthogonal": OrthogonalPGD(steps=20),
    "APGD": AutoPGD(steps=20),
    "APGD, L2, guide": AutoPGD(steps=20, norm="l2", start="guide"),
    "APGD, textured": AutoPGD(steps=20, textured=True, losses=("margins",)),
    "decisions": RayS(queries=500),
    "features": FeatureMatchingPGD(steps=20, start="guide"),
    "selective, textured": SelectivePGD(steps=20, textured=True),
    "selective, L2": SelectivePGD(steps=20, norm="l2"),
    "Lagrangian, L2": LagrangianPGD(steps=20, norm="l2", start="guide"),
}


@pytest.fixture(scope="module")
def defender(net, digits):
    X, y = digits
    return LatentDefender(
        replicate(net), classifier=net, clip_values=(0, 1), exploration_radius=0.1, max_epochs=5,
        security_parameter=SP, random_state=0,
    ).fit(X[:1400], y[:1400])  # fmt: skip


@pytest.fixture(scope="module")
def network(defender):
    return defender.defended_classifier()


@pytest.fixture(scope="module")
def rows(net, digits):
    """(x, labels) of forty rows that the classifier takes for what they are."""
    x, labels = (torch.as_tensor(part[1400:1450]) for part in digits)
    right = net(x).argmax(1) == labels
    return x[right][:40], labels[right][:40]


@pytest.fixture(scope="module")
def guides(digits):
    return torch.as_tensor(digits[0][:500])


def eps_of(attack):
    return 0.25 if attack.norm == "linf" else 1.5


@pytest.mark.parametrize("name", ATTACKS)
def test_success_is_what_the_estimator_says(name, network, defender, rows, guides):
    attack, (x, labels) = ATTACKS[name], rows
    result = attack(network, x, labels, eps=eps_of(attack), guides=guides)
    assert result.success.sum() > 0
    hit = result.adversarial[result.success]
    assert (defender.classify(hit) != -1).all()
    assert (defender.classify(hit) != labels[result.success].numpy()).all()
    assert result.adversarial[~result.success].isnan().all()
    assert result.distortion[~result.success].isinf().all()


@pytest.mark.parametrize("name", ATTACKS)
def test_stays_in_the_ball_and_the_range(name, network, rows, guides):
    attack, (x, labels) = ATTACKS[name], rows
    eps = eps_of(attack)
    result = attack(network, x, labels, eps=eps, guides=guides, clip_values=(0.0, 1.0))
    hit, change = result.adversarial[result.success], (result.adversarial - x)[result.success]
    assert hit.min() >= 0
    assert hit.max() <= 1
    order = math.inf if attack.norm == "linf" else 2
    norms = torch.linalg.vector_norm(change.flatten(1), order, dim=1)
    assert norms.max() <= eps * (1 + 1e-5)
    torch.testing.assert_close(norms, result.distortion[result.success])


@pytest.mark.parametrize("own", [True, False], ids=["its victim", "another"])
@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_features_are_matched_where_a_member_sees_them(kind, own, net, digits, rows, guides):
    X, y = digits
    last = LatentDefender(max_epochs=1)  # in double precision
    extractor = FeatureExtractor(net, "5")
    member = last if kind == "pixels" else make_pipeline(extractor, last)
    detector = MRREnsemble(
        net, defenders=[("latent", member, 1), ("margin", MarginDetector(), 1)],
        clip_values=(0, 1), security_parameter=SP, random_state=0,
    ).fit(X[:1400], y[:1400])  # fmt: skip
    network = detector.defended_classifier(**({} if own else {"classifier": net}))
    fitted = detector.named_defenders_["latent"]
    latent_map = (fitted if kind == "pixels" else fitted[-1]).statistic_.latent_map
    x, labels = rows
    seen = x if kind == "pixels" else extractor.fit(X).transform(x)
    with torch.no_grad():
        expected = latent_map(torch.as_tensor(seen).double())
    found = FeatureMatchingPGD().prepare(network, x)  # after the ten logits of the victim
    torch.testing.assert_close(found[:, 10 : 10 + expected.shape[1]].double(), expected)
    result = FeatureMatchingPGD(steps=20)(network, x, labels, eps=0.3, guides=guides)
    assert result.success.any()


def test_batch_size_and_other_rows_change_nothing(network, rows):
    x, labels = rows
    attack = SelectivePGD(steps=10, start="clean")
    whole = attack(network, x, labels, eps=0.2)
    small = dataclasses.replace(attack, batch_size=7)(network, x, labels, eps=0.2)
    half = attack(network, x[10:30], labels[10:30], eps=0.2)
    assert torch.equal(whole.success, small.success)
    assert torch.equal(whole.success[10:30], half.success)
    torch.testing.assert_close(whole.adversarial, small.adversarial, equal_nan=True)


def test_the_seed_decides(network, rows):
    x, labels = rows
    one, same = (SelectivePGD(steps=3)(network, x, labels, eps=0.2) for _ in range(2))
    other = SelectivePGD(steps=3, random_state=1)(network, x, labels, eps=0.2)
    torch.testing.assert_close(one.adversarial, same.adversarial, equal_nan=True)
    both = one.success & other.success
    assert not torch.equal(one.adversarial[both], other.adversarial[both])


def test_more_steps_and_larger_balls_break_more(network, rows, guides):
    x, labels = rows
    attack = LagrangianPGD(steps=40, start="guide", weights=(1.0,))
    results = [attack(network, x, labels, eps=eps, guides=guides) for eps in (0.05, 0.2, 1.0)]
    rates = [float(result.success.double().mean()) for result in results]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0
    assert rates[0] < 1.0


def test_every_target_is_tried(net):
    """Only class 2 can be reached without an alarm; it is the least likely one."""

    class OnlyTwo(DefendedClassifier):
        def __init__(self):
            nn.Module.__init__(self)

        def victim(self, x):
            return x

        def judge(self, x, labels=None):
            labels = x.argmax(1) if labels is None else labels
            return x, torch.where(labels == 2, -1.0, 1.0).to(x) + 0 * x.sum(1)

        def forward(self, x):
            alarm = self.judge(x)[1]
            return torch.cat([x, (x.amax(1) + alarm)[:, None]], dim=1)

    x, labels = torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([0])
    assert SelectivePGD(steps=30)(OnlyTwo(), x, labels, eps=0.5).success.all()
    assert not SelectivePGD(steps=30, n_targets=1)(OnlyTwo(), x, labels, eps=0.5).success.any()


def test_orthogonal_step_leaves_the_other_term_alone(network, rows):
    x, labels = rows
    x = x.clone().requires_grad_(True)
    judgement = judge(network, x, (labels + 1) % 10)
    step = OrthogonalPGD().gradient(network, x, judgement, None, 0)
    again = judge(network, x, (labels + 1) % 10)
    fool = torch.autograd.grad(again.lead.sum(), x, retain_graph=True)[0]
    silence = torch.autograd.grad(again.alarm.sum(), x)[0]
    fooled = (again.lead > 0)[:, None, None, None]
    other = torch.where(fooled, fool, silence).flatten(1)
    cosine = nn.functional.cosine_similarity(step.flatten(1), other)
    assert cosine.abs().max() < 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_work_on_victim_and_risk_together(loss, network, rows):
    """More alarm or less lead is no gain, and the gain tells where nothing is missing."""
    x, labels = rows
    x, targets = x.clone().requires_grad_(True), (labels + 1) % 10
    judgement = judge(network, x, targets)
    assert ((judgement.joint_logits.argmax(1) == targets) == judgement.success).all()
    attack = AutoPGD(losses=(loss,))
    gain = attack.gain(judgement, 0)
    louder = judgement._replace(alarm=judgement.alarm + 5)
    behind = judgement._replace(
        lead=judgement.lead - 5,
        logits=judgement.logits.scatter_add(1, targets[:, None], judgement.lead[:, None] * 0 - 5),
    )
    if loss == "ratio":
        assert ((gain > 0) == judgement.success).all()
    for worse in (louder, behind) if loss != "ratio" else ():
        assert (attack.gain(worse, 0) <= gain + 1e-6).all()
        assert (attack.gain(worse, 0) < gain).any()
    gradient = attack.gradient(network, x, judge(network, x, targets), None, 0)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_two_of_the_losses_have_no_scale(network, rows):
    x, labels = rows
    judgement = judge(network, x, (labels + 1) % 10)
    scaled = judgement._replace(
        lead=7 * judgement.lead, logits=7 * judgement.logits, alarm=-torch.ones_like(labels)
    )
    quiet = judgement._replace(alarm=-torch.ones_like(labels))
    margins = AutoPGD(losses=("margins",))
    torch.testing.assert_close(margins.gain(scaled, 0), margins.gain(quiet, 0))


def test_steps_halve_where_they_do_not_help():
    """Along a narrow valley steps of a fixed size overshoot for ever."""
    looks = _looks(100)
    assert list(looks)[:4] == [22, 41, 57, 70]  # of algorithm 1's example
    assert all(looks[step] < step for step in looks)
    valley = nn.Sequential(Valley())
    x, labels = torch.full((1, 2), 0.5), torch.tensor([0])
    auto = AutoPGD(steps=60, losses=("cross-entropy",), start="clean")
    assert auto(valley, x, labels, eps=0.45).success.all()
    fixed = SelectivePGD(steps=60, step_size=1.0, momentum=0.0, start="clean")
    assert not dataclasses.replace(fixed, steps=2)(valley, x, labels, eps=0.45).success.any()


class Valley(nn.Module):
    """Class 1 is near one point alone."""

    def forward(self, x):
        away = (x - torch.tensor([0.81, 0.23])).abs().sum(1)
        return torch.stack([torch.zeros_like(away), 0.02 - away], dim=1)


class Unseen(nn.Module):
    """A network that nobody can look into, which counts the rows it is asked about."""

    def __init__(self, network):
        super().__init__()
        self.network, self.asked = network, []

    def forward(self, x):
        assert not torch.is_grad_enabled()
        self.asked.append(len(x))
        return nn.functional.one_hot(self.network(x).argmax(1), 10).to(x)


def test_decisions_are_all_that_rays_asks_for(net, rows):
    x, labels = rows
    unseen = Unseen(net)
    result = RayS(queries=200)(unseen, x, labels, eps=0.3)
    assert torch.equal(result.success, RayS(queries=200)(net, x, labels, eps=0.3).success)
    assert result.success.any()
    assert result.queries.max() <= 200
    assert (result.queries[~result.success] == 200).all()


def test_rays_asks_as_often_as_it_says(net, rows, monkeypatch):
    x, labels = rows
    asked = []
    forward = net.forward
    monkeypatch.setattr(
        "skmrr.attacks.rays.decisions",
        lambda network, x: (asked.append(len(x)), forward(x).argmax(1))[1],
    )
    result = RayS(queries=80)(net, x, labels, eps=0.2)
    assert sum(asked) == result.queries.sum()


def test_more_queries_and_guides_find_more(network, rows, guides):
    x, labels = rows
    few, many = (RayS(queries=q)(network, x, labels, eps=0.25, guides=guides) for q in (30, 600))
    without = RayS(queries=600)(network, x, labels, eps=0.25)
    assert (many.success | ~few.success).all()
    assert many.success.sum() > few.success.sum()
    assert many.success.sum() >= without.success.sum()


def test_rays_keeps_to_the_classes_allowed(net, rows):
    x, labels = rows
    targets = torch.zeros(len(x), 10, dtype=torch.bool)
    targets[:, 3] = True
    result = RayS(queries=300)(net, x, labels, eps=0.5, targets=targets)
    assert result.success.any()
    assert (net(result.adversarial[result.success]).argmax(1) == 3).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_half_the_effort_is_half_the_steps(name):
    attack = ATTACKS[name]
    half = attack.with_effort(0.5)
    effort = "queries" if isinstance(attack, RayS) else "steps"
    assert 2 * getattr(half, effort) == getattr(attack, effort)
    assert dataclasses.replace(half, **{effort: getattr(attack, effort)}) == attack
    if not isinstance(attack, RayS):
        assert Transfer(nn.Identity(), attack).with_effort(0.5).attack == half
        assert OverChannels(attack, [None]).with_effort(0.5).attack == half


def test_textured_leaves_quiet_pixels_alone(network, rows):
    x, labels = rows
    result = SelectivePGD(steps=20, textured=True)(network, x, labels, eps=0.3)
    quiet = textured_pixels(x) == 0
    assert quiet.any()
    hit = result.success
    assert torch.equal(result.adversarial[hit][quiet[hit]], x[hit][quiet[hit]])


def test_noise_that_is_heard_everywhere_is_not_heard_in_texture(net, rows, digits, guides):
    """Where a filter flags all dense noise, attacks on texture alone still pass."""
    X, y = digits
    noise = NoiseDefender(net, clip_values=(0, 1), security_parameter=SP, random_state=0)
    network = noise.fit(X[:1400], y[:1400]).defended_classifier()
    x, labels = rows
    attack = SelectivePGD(steps=20, start="clean")
    textured = dataclasses.replace(attack, textured=True)
    assert textured(network, x, labels, eps=0.4).success.double().mean() > 0.5


def test_a_row_that_is_lost_already_needs_no_search(network, net, digits):
    x = torch.as_tensor(digits[0][1400:1450])
    wrong = (net(x).argmax(1) + 1) % 10
    accepted = network(x).argmax(1) < 10
    result = SelectivePGD(steps=1, start="clean")(network, x[accepted], wrong[accepted], eps=0.01)
    assert result.success.all()
    assert (result.distortion == 0).all()


def test_guides_are_accepted_and_nearest(network, guides, rows):
    bank = Guides(network, guides)
    assert (network(bank.x).argmax(1) == bank.classes).all()
    x, labels = rows
    targets = (labels + 1) % 10
    distances = torch.cdist(x.flatten(1), bank.x.flatten(1))
    distances[bank.classes[None] != targets[:, None]] = torch.inf
    for rank in (0, 3):
        nearest = (x - bank.nearest(x, targets, rank)).flatten(1).norm(dim=1)
        expected = distances.sort(1).values[:, rank]
        torch.testing.assert_close(nearest, expected, rtol=1e-3, atol=1e-3)


def test_carlini_pays_for_the_detector(network, net, defender, rows, guides):
    x, labels = rows
    params = {"search_steps": 4, "max_iter": 50}
    alone = carlini_l2(net, x, labels, **params)
    both = carlini_l2(network, x, labels, guides=guides, **params)
    assert alone.success.all()
    assert both.success.all()
    assert (defender.classify(both.adversarial) != -1).all()
    assert (defender.classify(both.adversarial) != labels.numpy()).all()
    assert (both.distortion / alone.distortion).median() > 1.02


def test_guides_never_lengthen_carlini(network, rows, guides):
    x, labels = rows
    params = {"search_steps": 2, "max_iter": 30}
    without = carlini_l2(network, x, labels, **params).distortion
    with_guides = carlini_l2(network, x, labels, guides=guides, restarts=2, **params).distortion
    assert (with_guides <= without + 1e-5).all()


def test_carlini_reaches_targets_unflagged(network, defender, rows):
    x, labels = rows
    goal = (labels + 1) % 10
    result = carlini_l2(network, x, goal, targeted=True, search_steps=4, max_iter=80)
    assert result.success.double().mean() > 0.8
    hit = result.adversarial[result.success]
    assert (defender.classify(hit) == goal[result.success].numpy()).all()


def test_worst_case_takes_the_nearest_success():
    nan, inf = torch.nan, torch.inf
    one = AttackResult(
        torch.tensor([[1.0], [nan], [3.0]]),
        torch.tensor([1, 0, 1]).bool(),
        torch.tensor([1, inf, 3]),
    )
    other = AttackResult(
        torch.tensor([[9.0], [nan], [2.0]]),
        torch.tensor([1, 0, 1]).bool(),
        torch.tensor([9, inf, 2]),
    )
    worst = worst_case([one, other])
    np.testing.assert_array_equal(worst.adversarial.numpy(), [[1.0], [nan], [2.0]])
    assert worst.success.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="at least one"):
        worst_case([])


def test_transfer_counts_only_what_holds_on_the_network(network, net, rows, defender):
    x, labels = rows
    attack = SelectivePGD(steps=10, start="clean")
    alone = attack(net, x, labels, eps=0.5)
    result = Transfer(net, attack)(network, x, labels, eps=0.5)
    assert 0 < result.success.sum() < alone.success.sum()
    hit = result.adversarial[result.success]
    torch.testing.assert_close(hit, alone.adversarial[result.success])
    assert (defender.classify(hit) != -1).all()


def test_expectation_over_channels_holds_on_more_of_them(defender, network, rows):
    """What was found for the rows as they are seldom survives; the rest is verified."""
    x, labels = rows
    ways = [None, Shift(0, 1), Rounding(1)]
    attack = SelectivePGD(steps=30, n_targets=3)
    found = {
        "plain": attack(network, x, labels, eps=0.3),
        "expected": OverChannels(attack, ways)(network, x, labels, eps=0.3),
    }
    assert OverChannels(attack, ways).norm == attack.norm
    survive = {}
    for name, result in found.items():
        hit = result.adversarial[result.success]
        assert (defender.classify(hit) != -1).all()
        answers = [torch.as_tensor(defender.classify(w(hit) if w else hit)) for w in ways]
        fooled = [(a != -1) & (a != labels[result.success]) for a in answers]
        survive[name] = int(torch.stack(fooled).all(0).sum())
    assert survive["expected"] > survive["plain"]


def test_expectation_over_channels_of_a_classifier(net, rows):
    x, labels = rows
    attack = OverChannels(SelectivePGD(steps=20), [None, Shift(0, 1)])
    result = attack(net, x, labels, eps=0.3)
    assert result.success.any()
    hit = result.adversarial[result.success]
    assert (net(hit).argmax(1) != labels[result.success]).all()


@pytest.mark.parametrize("attack", [SelectivePGD(steps=3), LagrangianPGD(steps=3)])
def test_leaves_networks_as_they_were(attack, digits, make_net):
    net = make_net().train()
    before = [p.clone() for p in net.parameters()]
    x = torch.as_tensor(digits[0][:5])
    attack(net, x, net(x).argmax(1), eps=0.1)
    assert net.training
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.full((2, 1, 8, 8), torch.nan)}, ValueError, "NaN"),
        ({"x": torch.full((2, 1, 8, 8), 3.0)}, ValueError, "clip_values"),
        ({"x": torch.zeros(0, 1, 8, 8)}, ValueError, "no row"),
        ({"x": torch.zeros(2, 1, 8, 8, dtype=torch.int64)}, TypeError, "floating-point"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "2 rows"),
        ({"labels": torch.zeros(2)}, TypeError, "integer"),
        ({"eps": 0.0}, ValueError, "positive"),
    ],
)
def test_bad_input_is_refused(net, change, error, message):
    call = {"x": torch.zeros(2, 1, 8, 8), "labels": torch.zeros(2, dtype=torch.int64), "eps": 0.1}
    call |= change
    with pytest.raises(error, match=message):
        SelectivePGD(steps=1)(net, call["x"], call["labels"], eps=call["eps"])


@pytest.mark.parametrize(
    "params", [{"start": "there"}, {"norm": "l7"}, {"steps": 0}, {"momentum": 1.0}]
)
def test_bad_settings_are_refused(params):
    with pytest.raises(ValueError, match="must be"):
        SelectivePGD(**params)
    with pytest.raises(ValueError, match="cross-entropy"):
        AutoPGD(losses=("hinge",))
    with pytest.raises(ValueError, match="at least 1"):
        RayS(queries=0)


def test_guides_are_asked_for(net, rows):
    with pytest.raises(ValueError, match="clean rows"):
        SelectivePGD(start="guide")(net, *rows, eps=0.1)


def test_suite_has_every_kind():
    suite = adaptive_suite(steps=7, textured=True)
    *projected, decisions = suite.values()
    assert decisions == RayS(queries=70)
    assert {type(a).__name__ for a in projected} == {
        "AutoPGD",
        "LagrangianPGD",
        "SelectivePGD",
        "OrthogonalPGD",
        "FeatureMatchingPGD",
    }
    assert {a.steps for a in projected} == {7}
    assert sum(a.textured for a in projected) == len(projected) / 2
    assert "decisions alone" not in adaptive_suite(norm="l2")


def test_suite_goes_over_a_copy_where_there_is_one(net):
    copies = [a for a in adaptive_suite(surrogate=net).values() if isinstance(a, Transfer)]
    assert len(copies) == 4
    assert all(a.surrogate is net and a.attack.start == "guide" for a in copies)


def test_suite_goes_over_channels_where_there_are_any():
    ways = [None, Rounding(8)]
    suite = adaptive_suite(steps=7, channels=ways)
    over = {name: a for name, a in suite.items() if isinstance(a, OverChannels)}
    assert len(over) == 4
    assert all(name.endswith("over channels") for name in over)
    assert all(a.attack.start == "guide" and a.channels == ways for a in over.values())
    assert set(suite) - set(over) == set(adaptive_suite(steps=7))
