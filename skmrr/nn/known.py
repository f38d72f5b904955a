"""Classes and functions that a file may name: nothing else is ever built from one."""

import inspect
import operator
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

_known: dict[str, type] = {}
_names: dict[type, str] = {}

COMMON = frozenset(vars(nn.Module()))  # attributes that every module has

# Activations that layers of torch hold, and what networks with interval bounds are made of
FUNCTIONS: dict[str, Callable] = {
    "operator.add": operator.add,
    "operator.mul": operator.mul,
    "operator.sub": operator.sub,
    "operator.truediv": operator.truediv,
    "torch.cat": torch.cat,
    "torch.flatten": torch.flatten,
    "torch.relu": torch.relu,
    "torch.nn.functional.gelu": functional.gelu,
    "torch.nn.functional.max_pool2d": functional.max_pool2d,
    "torch.nn.functional.relu": functional.relu,
}


def add_known(kind: type, name: str | None = None) -> None:
    """Let files name a class, by default by its module and its name there."""
    name = name or f"{kind.__module__}.{kind.__qualname__}"
    _known[name], _names[kind] = kind, name


def known_name(kind: type) -> str | None:
    """Name of a class in files; None for a class that these may not hold."""
    return _names.get(kind)


def known_class(name: str) -> type:
    """Class of a name.

    Raises
    ------
    ValueError
        If files may not hold it.
    """
    if name not in _known:
        raise ValueError(
            f"It holds a {name}, which is not known here: import the module that defines it, and "
            "register it by skmrr.persistence.register."
        )
    return _known[name]


def check_attribute(kind: type, name: str) -> None:
    """Raise a ValueError unless an instance may have an attribute of that name.

    What the class defines by itself, such as a method, is not for a file to change.
    """
    default = inspect.getattr_static(kind, name, None)
    is_data = default is None or isinstance(default, bool | int | float | str | tuple | list)
    common = nn.Module if issubclass(kind, nn.Module) else object
    if name in COMMON or hasattr(common, name) or name.startswith("__") or not is_data:
        raise ValueError(f"a {kind.__name__} has no attribute {name!r} of its own.")


for _kind in vars(nn).values():
    if (
        isinstance(_kind, type)
        and issubclass(_kind, nn.Module)
        and _kind.__module__.startswith("torch.nn.modules.")
        and not _kind.__name__.startswith("Lazy")
    ):
        add_known(_kind, f"torch.nn.{_kind.__name__}")
