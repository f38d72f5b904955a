"""Interval arithmetic on traced networks: a rule for each kind of layer, function and method."""

import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Interpreter
from torch.nn import functional


class Interval(NamedTuple):
    """All values within ``radius`` of ``centre``, entry by entry."""

    centre: Tensor
    radius: Tensor

    @property
    def low(self) -> Tensor:
        """Lower ends."""
        return self.centre - self.radius

    @property
    def high(self) -> Tensor:
        """Upper ends."""
        return self.centre + self.radius


class IntervalInterpreter(Interpreter):
    """Runs a traced network on intervals instead of tensors."""

    def call_module(self, target, args, kwargs):
        """Apply the rule of a layer."""
        part = self.fetch_attr(target)
        if (rule := MODULE_RULES.get(type(part))) is None:
            known = ", ".join(sorted(kind.__name__ for kind in MODULE_RULES))
            raise TypeError(
                f"No interval bounds for layer {target!r}, a {type(part).__name__}; use {known}."
            )
        return rule(part, args[0])

    def call_function(self, target, args, kwargs):
        """Apply the rule of a function."""
        return self._call(FUNCTION_RULES.get(target), target, args, kwargs)

    def call_method(self, target, args, kwargs):
        """Apply the rule of a method."""
        return self._call(METHOD_RULES.get(target), target, args, kwargs)

    def _call(self, rule, target, args, kwargs):
        flat = [part for arg in args for part in (arg if isinstance(arg, list) else [arg])]
        if not any(isinstance(part, Interval) for part in flat):
            method = isinstance(target, str)
            return (super().call_method if method else super().call_function)(target, args, kwargs)
        if rule is None:
            raise TypeError(f"No interval bounds for {target}; write the network without it.")
        return rule(target, *args, **kwargs)


def _convolve(part: nn.Conv2d, x: Interval) -> Interval:
    if part.padding_mode != "zeros":
        raise TypeError(f"No interval bounds for padding_mode={part.padding_mode!r}; use 'zeros'.")
    radius = functional.conv2d(
        x.radius,
        part.weight.abs(),
        None,
        part.stride,
        part.padding,
        part.dilation,
        part.groups,
    )
    return Interval(part(x.centre), radius)


def _multiply(part: nn.Linear, x: Interval) -> Interval:
    return Interval(part(x.centre), functional.linear(x.radius, part.weight.abs()))


def _both(part: Callable, x: Interval) -> Interval:
    """Layers that only move, or average, entries."""
    return Interval(part(x.centre), part(x.radius))


def _ends(part: Callable, x: Interval) -> Interval:
    """Layers that never fall where an entry rises."""
    low, high = part(x.low), part(x.high)
    return Interval((low + high) / 2, (high - low) / 2)


def _leak(part: nn.LeakyReLU, x: Interval) -> Interval:
    if part.negative_slope < 0:
        raise TypeError(
            f"No interval bounds for negative_slope={part.negative_slope}; use 0 or more."
        )
    return _ends(part, x)


def _add(operation, a, b) -> Interval:
    """Sum or difference, of two intervals or one and a constant."""
    centres = [part.centre if isinstance(part, Interval) else part for part in (a, b)]
    radii = [part.radius for part in (a, b) if isinstance(part, Interval)]
    return Interval(operation(*centres), sum(radii[1:], radii[0]))


def _scale(operation, a, b) -> Interval:
    """Product with a constant."""
    if isinstance(a, Interval) and isinstance(b, Interval):
        raise TypeError("No interval bounds for products of what depends on the input.")
    if not isinstance(a, Interval):
        a, b = b, a
    return Interval(operation(a.centre, b), operation(a.radius, abs(b)))


def _divide(operation, a, b) -> Interval:
    """Quotient by a constant."""
    if not isinstance(a, Interval) or isinstance(b, Interval):
        raise TypeError("No interval bounds for division by what depends on the input.")
    return Interval(operation(a.centre, b), operation(a.radius, abs(b)))


def _concatenate(operation, parts: list[Interval], *args, **kwargs) -> Interval:
    centres, radii = zip(*parts, strict=True)
    return Interval(operation(centres, *args, **kwargs), operation(radii, *args, **kwargs))


def _method(name: str, x: Interval, *args, **kwargs) -> Interval:
    return _both(lambda part: getattr(part, name)(*args, **kwargs), x)


MODULE_RULES: dict[type, Callable] = {
    nn.Conv2d: _convolve,
    nn.Linear: _multiply,
    **dict.fromkeys(
        [nn.Flatten, nn.Identity, nn.Dropout, nn.AvgPool2d, nn.AdaptiveAvgPool2d], _both
    ),
    **dict.fromkeys([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.MaxPool2d], _ends),
    nn.LeakyReLU: _leak,
}
FUNCTION_RULES: dict[Callable, Callable] = {
    operator.add: _add,
    operator.sub: _add,
    operator.mul: _scale,
    operator.truediv: _divide,
    torch.cat: _concatenate,
    torch.flatten: lambda f, x, *args, **kw: _both(lambda part: f(part, *args, **kw), x),
    **dict.fromkeys(
        [torch.relu, functional.relu, functional.max_pool2d],
        lambda f, x, *args, **kw: _ends(lambda part: f(part, *args, **kw), x),
    ),
}
METHOD_RULES: dict[str, Callable] = {
    **dict.fromkeys(["flatten", "view", "reshape", "mean"], _method),
    "relu": lambda name, x: _ends(torch.relu, x),
}
