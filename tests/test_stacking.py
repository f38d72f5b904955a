"""Narrow networks, and many of them as one."""

import numpy as np
import pytest
import torch
from torch import nn

from skmrr.nn.latent_statistics import LatentMargin
from skmrr.nn.narrowing import narrow
from skmrr.nn.placement import seeded
from skmrr.nn.replica import Replica
from skmrr.nn.stacking import MarginStack
from skmrr.nn.tapped import NOTHING

SHAPE = (2, 8, 8)


def plain():
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 6, 3, bias=False), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5)),
    )


def normalised():
    net = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
    return net


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 12), nn.Tanh(), nn.Linear(12, 5))


class Padded(nn.Module):
    """Adds channels behind the last one, which is not where a stack would need them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(6, 4, 3)
        self.last = nn.Linear(4, 5)

    def forward(self, x):
        x = nn.functional.pad(self.first(x).relu(), (0, 0, 0, 0, 0, 2))
        return self.last(self.second(x).mean((2, 3)))


def members_of(build, n, layer=None):
    members = []
    for seed in range(n):
        torch.manual_seed(seed)
        replica = Replica(build(), layer).eval()
        replica.prepare(torch.rand(2, *SHAPE))
        nn.init.constant_(replica.checkpoint.scale, 1.0 + seed)
        members.append(LatentMargin(replica))
    return members


def margins(members, x, columns):
    return torch.stack([member.at(x, columns, NOTHING) for member in members], 1)


@pytest.mark.parametrize(
    ("build", "n", "layer"),
    [(plain, 3, None), (plain, 3, "7"), (normalised, 4, None), (normalised, 1, None)]
    + [(normalised, 2, "7"), (dense, 5, None)],
)
def test_stack_computes_the_same(build, n, layer):
    members = members_of(build, n, layer)
    stack = MarginStack.of(members, SHAPE)
    assert stack.indices == list(range(n))
    x = torch.rand(20, 2, 8, 8, requires_grad=True)
    columns = torch.arange(20) % 5
    together, alone = stack.at(x, columns), margins(members, x, columns)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    (a,), (b,) = (torch.autograd.grad(m.square().sum(), x) for m in (together, alone))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_what_does_not_stack_is_left_alone():
    assert MarginStack.of(members_of(Padded, 3), SHAPE) is None
    assert MarginStack.of(members_of(plain, 1), SHAPE) is None
    assert MarginStack.of([], SHAPE) is None


def test_only_the_like_are_stacked():
    members = members_of(plain, 2) + members_of(dense, 3)
    assert MarginStack.of(members, SHAPE).indices == [2, 3, 4]


def test_stack_is_a_copy():
    members = members_of(plain, 2)
    before = [p.clone() for m in members for p in m.parameters()]
    stack = MarginStack.of(members, SHAPE)
    assert not any(p.requires_grad for p in stack.parameters())
    for old, new in zip(before, [p for m in members for p in m.parameters()], strict=True):
        assert torch.equal(old, new)
        assert new.requires_grad


def test_narrow_keeps_a_share_of_each_hidden_layer():
    net = plain()
    thin = narrow(net, 0.5, torch.rand(2, 2, 8, 8))
    widths = [p.out_channels if isinstance(p, nn.Conv2d) else p.out_features
              for p in thin if isinstance(p, nn.Conv2d | nn.Linear)]  # fmt: skip
    assert widths == [4, 3, 8, 5]
    assert thin(torch.rand(3, 2, 8, 8)).shape == (3, 5)
    assert net[0].out_channels == 8


def test_narrow_handles_groups_and_normalisation():
    thin = narrow(normalised(), 0.5, torch.rand(2, 2, 8, 8))
    assert [p.num_features for p in thin if isinstance(p, nn.BatchNorm2d)] == [4, 4]
    depthwise = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten())
    depthwise.append(nn.Linear(8 * 36, 5))
    assert narrow(depthwise, 0.25, torch.rand(2, 2, 8, 8))[1].groups == 2


def test_narrow_draws_its_weights_by_torchs_seed():
    x = torch.rand(2, 2, 8, 8)
    net = plain()
    outputs = []
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for seed in (1, 1, 2):
        with seeded(seed):
            outputs.append(narrow(net, 0.5, x)(x))
    one, same, other = outputs
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_narrow_without_effect_is_the_same_shape():
    x = torch.rand(2, 2, 8, 8)
    shapes = [
        [tuple(p.shape) for p in net.parameters()] for net in (plain(), narrow(plain(), 1.0, x))
    ]
    assert shapes[0] == shapes[1]
    assert np.prod(shapes[0][0]) == 8 * 2 * 9


@pytest.mark.parametrize("build", [plain, normalised, dense])
def test_no_rows_have_no_margins(build):
    stack = MarginStack.of(members_of(build, 2), SHAPE)
    assert stack is not None
    empty = stack.at(torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64))
    assert empty.shape == (0, 2)
