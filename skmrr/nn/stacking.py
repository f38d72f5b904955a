"""Replicas of one architecture run as a single network, whose channels lie side by side.

N narrow convolutions waste most of a processor's vector registers; one grouped convolution of
their N-fold channels does not. Batch normalisation, which is an affine map by now, goes into the
convolution before it. Weights are copied once; values and gradients are the same.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skmrr.nn.latent_statistics import LatentMargin
from skmrr.nn.layers import replace_layer
from skmrr.nn.replica import Replica
from skmrr.nn.statistic import Statistic, against_best_other, in_parts
from skmrr.nn.tapped import LayerChange

ROWS = 64  # at a time: more channels' activations than of these leave the processor's cache
TOLERANCE = 1e-4  # of the logits of a trial run, relative to the largest


class StackedConv2d(nn.Module):
    """Convolutions side by side: of the same input, or of inputs side by side."""

    def __init__(self, convolutions: list[nn.Conv2d]):
        super().__init__()
        first = convolutions[0]
        weight = torch.cat([part.weight for part in convolutions])  # stacked·out in h w
        self.weight = nn.Parameter(weight.to(memory_format=torch.channels_last))
        self.bias = _cat([part.bias for part in convolutions])
        self.n = len(convolutions)
        self.in_channels, self.groups = first.in_channels, first.groups
        self.window: dict[str, Any] = {
            "stride": first.stride,
            "padding": first.padding,
            "dilation": first.dilation,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; `x` has the channels of one, or of all."""
        shared = x.shape[1] == self.in_channels and self.groups == 1
        groups = 1 if shared else self.n * self.groups
        return functional.conv2d(x, self.weight, self.bias, groups=groups, **self.window)


class StackedLinear(nn.Module):
    """Linear layers side by side: of the same input, or of inputs side by side."""

    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([part.weight.T for part in layers]))  # n in out
        self.bias = _cat([part.bias for part in layers])
        self.in_features = layers[0].in_features

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch stacked_out"]:
        """Multiply; `x` has the features of one, or of all."""
        if x.shape[1] == self.in_features:
            out = torch.einsum("bi,nio->bno", x, self.weight)
        else:
            parts = x.unflatten(1, (len(self.weight), -1)).transpose(0, 1)  # n batch in
            out = torch.bmm(parts, self.weight).transpose(0, 1)  # batch n out
        out = out.flatten(1)
        return out if self.bias is None else out + self.bias


class MarginStack(nn.Module):
    """Margins of one replica, or of several of one architecture.

    Parameters
    ----------
    replicas : dict of int to Replica
        The replicas, by the position of their member; they are copied. They are no parts of the
        stack, which is made anew from them where it is stored, as its weights are theirs.
    fold : bool
        Whether to put batch normalisation into the convolutions.
    """

    def __init__(self, replicas: dict[int, Replica], fold: bool):
        super().__init__()
        self.replicas = replicas
        self.fold = fold
        self.indices = list(replicas)
        first = replicas[self.indices[0]]
        networks = [replica.bare_network() for replica in replicas.values()]
        networks = [_fold(network) for network in networks] if fold else networks
        self.network = _stack(networks) if len(networks) > 1 else networks[0]
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.checkpoint = StackedCheckpoint([part.checkpoint.scale for part in replicas.values()])
        if not first.checkpoint.is_natural:
            assert first.layer is not None
            self.checkpoint.attach(self.network, first.layer)
        self.requires_grad_(False).eval()

    @classmethod
    def of(
        cls, statistics: Sequence[Statistic], row_shape: tuple[int, ...]
    ) -> "MarginStack | None":
        """Stack the largest group of members that can be; None where there is none.

        That a network still computes the same when its layers are stacked cannot be told from
        its parts, so a trial run decides.
        """
        alike: dict[tuple, dict[int, Replica]] = defaultdict(dict)
        for k, statistic in enumerate(statistics):
            if isinstance(statistic, LatentMargin) and isinstance(statistic.latent_map, Replica):
                replica = statistic.latent_map
                alike[replica.layer, replica.checkpoint.is_natural, str(replica.network)][k] = (
                    replica
                )
        for group in sorted(alike.values(), key=len, reverse=True):
            if (stack := _try_stack(group, row_shape)) is not None:
                return stack
        return None

    def forward(self, x: Tensor) -> Float[Tensor, "batch stacked classes"]:
        """Return the logits of each replica."""
        return self.network(x).unflatten(1, (len(self.indices), -1))

    def at(self, x: Tensor, columns: Int[Tensor, " batch"]) -> Float[Tensor, "batch stacked"]:
        """Return the margin of each replica at each row's column."""
        margins = self.margins(x).flatten(0, 1)
        n = len(self.indices)
        return margins.gather(1, columns.repeat_interleave(n)[:, None]).view(-1, n)

    def margins(self, x: Tensor) -> Float[Tensor, "batch stacked classes"]:
        """Return the margin of each replica at each class."""
        x = x.to(self.checkpoint.scales)
        logits = torch.cat([self(part) for (part,) in in_parts(ROWS, x)])
        margins = against_best_other(logits.double().flatten(0, 1))
        return margins.unflatten(0, (-1, len(self.indices)))


class StackedCheckpoint(LayerChange):
    """Hook that normalises the features of each of several replicas at their checkpoint."""

    def __init__(self, scales: list[Tensor]):
        super().__init__()
        natural = torch.stack(scales).detach()
        self.scales = nn.Parameter(torch.where(natural > 0, natural, 1.0))

    def changed(self, value):
        """Put the features of each replica on the sphere of its radius, of ``scales``."""
        features = value.flatten(1).unflatten(1, (len(self.scales), -1))
        return (self.scales[:, None] * functional.normalize(features, dim=2)).view_as(value)


def _try_stack(group: dict[int, Replica], shape: tuple[int, ...]) -> MarginStack | None:
    """Stack of the replicas, if a trial run finds their own logits in it."""
    replicas = list(group.values())
    scale = replicas[0].checkpoint.scale
    x = torch.linspace(-1, 1, 3 * torch.Size(shape).numel(), dtype=scale.dtype).view(3, *shape)
    x = x.to(scale.device)
    folds = [True, False] if _has_batch_norm(replicas[0]) else [False]
    if len(replicas) == 1:
        folds = folds[:-1]  # one replica that stays as it is gains nothing
    with torch.no_grad():
        alone = torch.stack([replica.eval().features_and_logits(x)[1] for replica in replicas], 1)
        for fold in folds:
            try:
                stack = MarginStack(group, fold)
                together = stack(x)
            except Exception:  # whatever the copy trips over, the replicas run by themselves
                continue
            if together.shape == alone.shape and torch.allclose(
                together, alone, rtol=0, atol=TOLERANCE * float(alone.abs().max())
            ):
                return stack
    return None


def _has_batch_norm(replica: Replica) -> bool:
    return any(isinstance(part, nn.BatchNorm2d) for part in replica.network.modules())


def _fold(network: nn.Module) -> nn.Module:
    """Copy of a network in which each normalisation is part of the convolution before it."""
    traced = symbolic_trace(copy.deepcopy(network).eval())
    parts = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if not isinstance(parts.get(str(node.target)), nn.BatchNorm2d):
            continue
        before = node.args[0]
        convolution = parts.get(str(before.target)) if before.op == "call_module" else None
        if isinstance(convolution, nn.Conv2d) and len(before.users) == 1:
            fused = fuse_conv_bn_eval(convolution, parts[str(node.target)])
            replace_layer(traced, before.target, fused)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _stack(networks: list[nn.Module]) -> nn.Module:
    """Copy of the first network with each layer that has weights replaced by all of its kind."""
    kinds: dict[type, Callable] = {
        nn.Conv2d: StackedConv2d,
        nn.Linear: StackedLinear,
        nn.BatchNorm2d: _stack_batch_norm,
    }
    stacked = copy.deepcopy(networks[0])
    for name, part in networks[0].named_modules():
        if any(part.children()) or not (list(part.parameters()) + list(part.buffers())):
            continue
        if (kind := kinds.get(type(part))) is None:
            raise TypeError(f"layer {name!r}, a {type(part).__name__}, cannot be stacked")
        parts = [network.get_submodule(name) for network in networks]
        replace_layer(stacked, name, kind(parts))
    return stacked


def _stack_batch_norm(layers: list[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    stacked = copy.deepcopy(layers[0])
    stacked.num_features *= len(layers)
    for name in ("weight", "bias"):
        stacked.register_parameter(name, _cat([getattr(part, name) for part in layers]))
    for name in ("running_mean", "running_var"):
        stacked.register_buffer(name, torch.cat([getattr(part, name) for part in layers]))
    return stacked


def _cat(parts: list) -> nn.Parameter | None:
    return None if parts[0] is None else nn.Parameter(torch.cat(parts).detach())
