"""Bounds on a network's output over a box, by lines that are followed back to its input.

Intervals forget how the entries of a layer depend on each other. Here what is bounded, a weighted
sum of logits, is replaced from the last layer to the first by a linear function below it (Zhang et
al. 2018), which is a pass backwards, and its least value over the box is exact. The ReLUs' lower
lines may be turned until the bound is highest (Xu et al., "Fast and Complete", ICLR 2021).
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional

from skmrr.nn.interval_rules import Interval, IntervalInterpreter
from skmrr.nn.relaxations import RELAXATIONS, relaxed, smaller_area, undecided

MAX_VALUES = 2**20  # of the activations of rows that are followed back together
STEP = 0.25  # by which slopes are turned, of 1
Shares = dict[Node, Tensor]
LAYERS: dict[object, type[nn.Module]] = {
    **dict.fromkeys([torch.relu, functional.relu, "relu"], nn.ReLU),
    functional.max_pool2d: nn.MaxPool2d,
}


class LinearBounds:
    """Lower bounds of linear functions of a traced network's output, over boxes.

    Parameters
    ----------
    body : GraphModule
        The network, in evaluation mode, of layers that have interval bounds.
    low, high : Tensor of shape (batch, …)
        Ends of each row's box.
    """

    def __init__(self, body: GraphModule, low: Tensor, high: Tensor):
        self.body = body
        self.box = Interval((low + high) / 2, (high - low) / 2)
        self.boxes: dict[Node, Interval] = {}
        self.output = next(node for node in body.graph.nodes if node.op == "output")
        with torch.no_grad():
            self.inside: Interval = _Tightening(self).run(self.box)

    def lowest(
        self,
        rows: Int[Tensor, " pairs"],
        weight: Float[Tensor, "pairs dim"],
        n_steps: int = 0,
    ) -> Float[Tensor, " pairs"]:
        """Lower bound of weight · output over a row's box.

        Parameters
        ----------
        rows : Tensor of shape (pairs,)
            Positions of rows; a row may come often.
        weight : Tensor of shape (pairs, dim)
            Weights of the output, flattened.
        n_steps : int, default=0
            Steps of ascent in the slopes of each pair's lower lines.
        """
        parts = zip(rows.split(self._together), weight.split(self._together), strict=True)
        found = [self._ascended(*part, n_steps) for part in parts]
        return torch.cat(found) if found else weight.new_zeros(0)

    @property
    def _together(self) -> int:
        n_values = sum(box.centre[0].numel() for box in (self.box, *self.boxes.values()))
        return max(1, MAX_VALUES // n_values)

    def _ascended(self, rows: Tensor, weight: Tensor, n_steps: int) -> Tensor:
        def weigh(output):
            return (weight * output.flatten(1)).sum(1)

        inside = Interval(*(part[rows].flatten(1) for part in self.inside))
        best = (weight * inside.centre - weight.abs() * inside.radius).sum(1)
        shares = self._shares(rows)
        best = torch.maximum(best, self.bound(self.output, rows, weigh, shares))
        if not n_steps or not shares:
            return best
        with torch.enable_grad():
            turned = {node: share.requires_grad_() for node, share in shares.items()}
            optimizer = torch.optim.Adam(turned.values(), STEP, maximize=True)
            for _ in range(n_steps):
                found = self.bound(self.output, rows, weigh, turned, create_graph=True)
                best = torch.maximum(best, found.detach())
                gradients = torch.autograd.grad(found.sum(), [*turned.values()], allow_unused=True)
                for share, gradient in zip(turned.values(), gradients, strict=True):
                    share.grad = gradient
                optimizer.step()
                with torch.no_grad():
                    for share in turned.values():
                        share.clamp_(0, 1)
        return torch.maximum(best, self.bound(self.output, rows, weigh, shares).detach())

    def _shares(self, rows: Tensor) -> Shares:
        return {node: smaller_area(box)[rows] for node, box in self.boxes.items()}

    def bound(
        self,
        node: Node,
        rows: Tensor,
        weigh: Callable[[Tensor], Tensor],
        shares: Shares,
        *,
        create_graph: bool = False,
    ) -> Tensor:
        """Lower bound of a linear function of what enters or leaves a node, at slopes."""
        centre, radius = (part[rows] for part in self.box)
        with torch.enable_grad():
            centre = centre.clone().requires_grad_()
            gap = centre.new_zeros(len(rows), requires_grad=True)
            value = weigh(_Relaxing(self, rows, gap, shares).until(node, centre))
            slope, loss = torch.autograd.grad(
                value.sum(), [centre, gap], create_graph=create_graph, materialize_grads=True
            )
        return value.detach() + loss - (slope.abs() * radius).flatten(1).sum(1)

    def tightened(self, node: Node, part: nn.Module, box: Interval) -> Interval:
        """Interval of what enters a layer, by what is known of the layers before it."""
        if not self.boxes:  # of a chain of affine layers an interval is exact
            return box
        low, high = box.low.flatten(1).clone(), box.high.flatten(1).clone()
        before = node.all_input_nodes[0]
        for pairs in undecided(part, box).flatten(1).nonzero().split(self._together):
            rows, entries = pairs.T
            shares = self._shares(rows)
            lowest = self.bound(before, rows, partial(_signed, entries, 1), shares)
            highest = -self.bound(before, rows, partial(_signed, entries, -1), shares)
            low[rows, entries] = torch.maximum(low[rows, entries], lowest)
            high[rows, entries] = torch.minimum(high[rows, entries], highest)
        # where rounding made the ends change places
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        return Interval(
            *(part.view_as(box.centre) for part in ((low + high) / 2, (high - low) / 2))
        )


def _signed(entries: Tensor, sign: int, value: Tensor) -> Tensor:
    """One entry of each row, or what is opposite to it."""
    return sign * value.flatten(1).gather(1, entries[:, None])[:, 0]


def layer_of(interpreter: Interpreter, node: Node) -> nn.Module | None:
    """Layer that a step of a network is, if it has lines."""
    if node.op == "call_module":
        part = interpreter.fetch_attr(str(node.target))
        return part if type(part) in RELAXATIONS else None
    if (kind := LAYERS.get(node.target)) is None:
        return None
    return kind(*node.args[1:], **node.kwargs)


class _Tightening(IntervalInterpreter):
    """Intervals, made narrower by linear bounds before each layer that is not affine."""

    def __init__(self, bounds: LinearBounds):
        super().__init__(bounds.body)
        self.bounds = bounds

    def run_node(self, n):
        if (part := layer_of(self, n)) is not None:
            before = n.all_input_nodes[0]
            box = self.bounds.tightened(n, part, self.env[before])
            self.env[before] = self.bounds.boxes[n] = box
        return super().run_node(n)


class _Relaxing(Interpreter):
    """Runs a network at points, with the gradients of lines."""

    def __init__(self, bounds: LinearBounds, rows: Tensor, gap: Tensor, shares: Shares):
        super().__init__(bounds.body, garbage_collect_values=False)
        self.boxes, self.rows, self.gap, self.shares = bounds.boxes, rows, gap, shares

    def until(self, node: Node, x: Tensor) -> Tensor:
        """Value of a node at some points."""
        self.args_iter = iter([x])
        for step in self.graph.nodes:
            self.env[step] = self.run_node(step)
            if step is node:
                break
        return self.env[node]

    def run_node(self, n):
        if (part := layer_of(self, n)) is None:
            return super().run_node(n)
        box = Interval(*(entries[self.rows] for entries in self.boxes[n]))
        x = self.env[n.all_input_nodes[0]]
        return relaxed(part, x, box, self.gap, self.shares[n])
