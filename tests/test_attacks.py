import pytest
import torch
from torch import nn

from skmrr.attacks import carlini_l2


def lead(net, x, labels):
    """How far the best other class is ahead of `labels`."""
    logits = net(x)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.max(1).values - logits.gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("confidence", [0.0, 3.0])
@pytest.mark.parametrize("targeted", [False, True])
def test_fools_with_the_margin_asked_for(net, digits, confidence, targeted):
    x = torch.as_tensor(digits[0][1000:1040])
    labels = net(x).argmax(1)
    goal = (labels + 1) % 10 if targeted else labels
    result = carlini_l2(net, x, goal, confidence=confidence, targeted=targeted)
    assert result.success.float().mean() > 0.9
    hit = result.adversarial[result.success]
    margin = lead(net, hit, goal[result.success])
    assert torch.all((-margin if targeted else margin) >= confidence - 1e-4)
    assert hit.min() >= 0
    assert hit.max() <= 1
    change = (hit - x[result.success]).flatten(1).norm(dim=1)
    torch.testing.assert_close(change, result.distortion[result.success], rtol=1e-4, atol=1e-5)


def test_finds_the_shortest_way_out_of_a_half_space():
    """For a linear classifier the distance to the boundary is known."""
    net = nn.Linear(5, 2)
    torch.manual_seed(0)
    nn.init.normal_(net.weight)
    x = 0.4 + 0.2 * torch.rand(50, 5)
    labels = net(x).argmax(1)
    normal = net.weight[1] - net.weight[0]
    logits = net(x)
    exact = (logits[:, 1] - logits[:, 0]).abs() / normal.norm()
    result = carlini_l2(net, x, labels, clip_values=(-2.0, 3.0), max_iter=400)
    near = exact < 1.0
    assert result.success[near].all()
    ratio = (result.distortion / exact)[near].detach()
    assert torch.all(ratio >= 1 - 1e-3)
    assert ratio.median() < 1.1


def test_failure_is_explicit():
    """A classifier with one answer cannot be fooled."""
    net = nn.Linear(3, 2)
    nn.init.zeros_(net.weight)
    net.bias.data = torch.tensor([1.0, 0.0])
    x = torch.rand(4, 3)
    result = carlini_l2(net, x, torch.zeros(4, dtype=torch.int64), search_steps=2, max_iter=5)
    assert not result.success.any()
    assert result.adversarial.isnan().all()
    assert result.distortion.isinf().all()


def test_leaves_the_classifier_as_it_was(digits, make_net):
    net = make_net().train()
    before = [p.clone() for p in net.parameters()]
    x = torch.as_tensor(digits[0][:5])
    carlini_l2(net, x, net(x).argmax(1), search_steps=1, max_iter=5)
    assert net.training
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None for p in net.parameters())
