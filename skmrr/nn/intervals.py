"""Bounds on a network's output over a whole ball, by interval arithmetic.

Gowal et al. ("On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
Models", 2018) train classifiers with these bounds. Here a *detector* is trained and read by them:
no point that an attacker may choose escapes them, so what they rule out needs no attack to test.
"""

import copy
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.nn import functional

from skmrr.nn.interval_rules import Interval, IntervalInterpreter
from skmrr.nn.linear_bounds import LinearBounds
from skmrr.nn.replica import LatentMap, check_logits
from skmrr.nn.statistic import Statistic
from skmrr.nn.tapped import Pass

N_STEPS = 10  # of ascent in the slopes of linear bounds


class IntervalMap(LatentMap):
    """A network whose logits can be bounded over a ball around each row.

    Parameters
    ----------
    network : nn.Module
        Rows → logits, ending in a linear layer. Its architecture is copied, but new weights are
        drawn, as bounds of a network trained otherwise say nothing.
    generator : torch.Generator, optional
        Source of the weights.
    keep_weights : bool, default=False
        Whether to copy the weights after all, of a network that was trained by bounds.

    Raises
    ------
    TypeError
        If it does not end in a linear layer, or cannot be traced by ``torch.fx``.
    """

    def __init__(
        self,
        network: nn.Module,
        generator: torch.Generator | None = None,
        *,
        keep_weights: bool = False,
    ):
        super().__init__()
        try:
            traced = symbolic_trace(copy.deepcopy(network))
        except Exception as error:
            raise TypeError(f"The network cannot be traced by torch.fx: {error}") from error
        graph = traced.graph
        output = next(node for node in graph.nodes if node.op == "output")
        last = output.args[0]
        head = traced.get_submodule(last.target) if last.op == "call_module" else None
        if not isinstance(head, nn.Linear):
            raise TypeError("The network must end in a linear layer, which gives the logits.")
        self.head, self.head_name = head, str(last.target)
        output.args = (last.args[0],)
        graph.erase_node(last)
        traced.delete_all_unused_submodules()
        traced.recompile()
        self.body: GraphModule = traced
        if not keep_weights:
            self._draw_weights(generator)

    @classmethod
    def average(cls, maps: "list[IntervalMap]") -> "IntervalMap":
        """One map with the mean of the logits of several, whose bounds are the mean of theirs.

        Networks err on different rows, so that their mean rules out more than each of them.
        """
        return cls(_Average(maps), keep_weights=True).requires_grad_(False)

    def network_state(self) -> dict[str, Tensor]:
        """Parameters and buffers by their names in the network."""
        head = self.head.state_dict(prefix=f"{self.head_name}.")
        return {**self.body.state_dict(), **head}

    def features_and_logits(self, x):
        """Run the network; φ(x) is the normalised input of its last layer."""
        checkpoint = self.body(x).flatten(1)
        return functional.normalize(checkpoint), self.head(checkpoint)

    def initialise(self, x, classes, n_classes):
        """Check that the network can be bounded, and has a logit for each class.

        Raises
        ------
        ValueError
            If a class index has no logit.
        TypeError
            If there is no rule for a layer.
        """
        check_logits(self.head.out_features, n_classes)
        with torch.no_grad():
            self.bounds(x[:1], x[:1])

    def _draw_weights(self, generator: torch.Generator | None) -> None:
        """Draw weights under which bounds neither grow nor shrink with depth.

        The standard deviation √(2π) / fan-in is that of Shi et al. ("Fast Certified Robust
        Training with Short Warmup", NeurIPS 2021), section 3.2.
        """
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                std = math.sqrt(2 * math.pi) / part.weight[0].numel()
                nn.init.normal_(part.weight, std=std, generator=generator)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def bounds(self, low: Tensor, high: Tensor) -> Interval:
        """Interval of the head's input where each entry of a row lies between two values."""
        box = Interval((low + high) / 2, (high - low) / 2)
        centre, radius = IntervalInterpreter(self.body).run(box)
        return Interval(centre.flatten(1), radius.flatten(1))

    def highest_leads(
        self, inside: Interval, columns: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        """Upper bound of z_j − z_c for each class j, c being the one at each row's column."""
        weight = self.head.weight - self.head.weight[columns][:, None]  # batch classes dim
        leads = torch.einsum("bcd,bd->bc", weight, inside.centre)
        leads = leads + torch.einsum("bcd,bd->bc", weight.abs(), inside.radius)
        if self.head.bias is not None:
            leads = leads + self.head.bias - self.head.bias[columns][:, None]
        return leads


def ball(x: Tensor, radius: float | Tensor, clip_values: Sequence | None) -> tuple[Tensor, Tensor]:
    """Lowest and highest entries of the ℓ∞ ball around each row, within the range of values."""
    low, high = x - radius, x + radius
    if clip_values is None:
        return low, high
    return low.clamp(*clip_values), high.clamp(*clip_values)


class CertifiedStatistic(Statistic):
    """By how much another class may be ahead anywhere in a ball around a row.

    s_c(x) = max_{j≠c} of an upper bound of z_j − z_c over the ℓ∞ ball of radius r. As the clean row
    x₀ that an attack came from lies in the ball if ε ≤ r, s_c(x) ≥ z_y(x₀) − z_c(x₀): the statistic
    cannot be lowered further than the clean row itself allows.

    Parameters
    ----------
    latent_map : IntervalMap
        The network.
    radius : float
        Radius r, in the units of the rows.
    clip_values : tuple of float or None
        Range of the rows.
    """

    def __init__(self, latent_map: IntervalMap, radius: float, clip_values: Sequence | None):
        super().__init__()
        self.latent_map = latent_map
        self.radius = radius
        self.clip_values = clip_values

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row under each class, high = odd."""
        return self._everywhere(self._inside(x, self.radius))

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under one class."""
        return self._at(self._inside(x, self.radius), columns)

    def least(self, x: Tensor, eps: float) -> Float[Tensor, "batch classes"]:
        """Lower bound of the statistic of every point within ε of each row, by intervals.

        With ε ≤ r the ball of such a point holds that of radius r − ε around the row, and intervals
        of a part are within those of the whole. Else it shares a point with that of radius ε − r
        around the row, and no s_c is less than a difference z_j − z_c there.
        """
        if eps <= self.radius:
            return self._everywhere(self._inside(x, self.radius - eps))
        inside = self._inside(x, eps - self.radius)
        least = x.new_full((len(x), self.latent_map.head.out_features), -torch.inf)
        for j in range(least.shape[1]):
            leads = -self.latent_map.highest_leads(inside, least.new_full((len(x),), j).long())
            leads[:, j] = -torch.inf
            least = torch.maximum(least, leads)
        return least.double()

    def least_by_lines(
        self, x: Tensor, eps: float, pairs: Int[Tensor, "pairs 2"], n_steps: int = N_STEPS
    ) -> Float[Tensor, " pairs"]:
        """Lower bound as of `least`, by linear bounds, of some rows under some classes, with ε > r.

        Parameters
        ----------
        x : Tensor of shape (batch, …)
            Rows.
        eps : float
            Radius ε.
        pairs : Tensor of shape (pairs, 2)
            Positions of rows, and classes.
        n_steps : int
            As of `LinearBounds.lowest`.
        """
        rows, columns = pairs.T
        ahead = self.latent_map.features_and_logits(x)[1][rows]
        ahead = ahead.scatter(1, columns[:, None], -torch.inf).argmax(1)
        head = self.latent_map.head
        bounds = LinearBounds(self.latent_map.body, *ball(x, eps - self.radius, self.clip_values))
        lowest = bounds.lowest(rows, head.weight[ahead] - head.weight[columns], n_steps)
        if head.bias is not None:
            lowest = lowest + head.bias[ahead] - head.bias[columns]
        return lowest.double()

    def _inside(self, x: Tensor, radius: float) -> Interval:
        return self.latent_map.bounds(*ball(x, radius, self.clip_values))

    def _everywhere(self, inside: Interval) -> Float[Tensor, "batch classes"]:
        columns = torch.arange(self.latent_map.head.out_features, device=inside.centre.device)
        n_rows = inside.centre.shape[0]
        return torch.stack([self._at(inside, c.expand(n_rows)) for c in columns], dim=1)

    def _at(self, inside: Interval, columns: Tensor) -> Float[Tensor, " batch"]:
        leads = self.latent_map.highest_leads(inside, columns)
        others = leads.scatter(1, columns[:, None], -torch.inf)
        return others.amax(1).double()


class _Average(nn.Module):
    """Bodies side by side, under one head that averages their logits."""

    def __init__(self, maps: list[IntervalMap]):
        super().__init__()
        self.bodies = nn.ModuleList(part.body for part in maps)
        weight = torch.cat([part.head.weight for part in maps], dim=1) / len(maps)
        biases = [part.head.bias for part in maps if part.head.bias is not None]
        self.head = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        self.head.weight = nn.Parameter(weight.detach())
        total = sum(biases, torch.zeros(len(weight), dtype=weight.dtype, device=weight.device))
        self.head.bias = nn.Parameter((total / len(maps)).detach())

    def forward(self, x):
        """Return the mean logits."""
        return self.head(torch.cat([body(x).flatten(1) for body in self.bodies], 1))
