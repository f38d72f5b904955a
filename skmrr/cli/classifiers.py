"""The classifier that the settings name: a module and its factory, or an exported program."""

import importlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from skmrr.cli.settings import Settings
from skmrr.nn.rows import Rows
from skmrr.nn.tapped import Tapped, evaluating
from skmrr.nn.trials import check_classifier, predict_labels
from skmrr.nn.wording import shortened

BATCH = 64


class Prepared(nn.Module):
    """A classifier behind the normalisation of its rows, so that these keep their own scale."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, classifier: nn.Module, mean: list[float] | None, std: list[float] | None):
        super().__init__()
        self.classifier = classifier
        self.register_buffer("mean", None if mean is None else torch.tensor(mean))
        self.register_buffer("std", None if std is None else torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of rows of shape (batch, channels, …)."""
        if self.mean is not None and self.std is not None:
            ones = [1] * (x.ndim - 2)
            x = (x - self.mean.view(-1, *ones)) / self.std.view(-1, *ones)
        return self.classifier(x)


def load_classifier(settings: Settings, device: str = "cpu") -> nn.Module:
    """Build the classifier of the settings, weights and normalisation included.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        If it cannot be found or does not fit its weights; the message says what to do.
    """
    if settings.program is not None:
        network = _read_program(settings.path(settings.program))
    else:
        network = _build(settings)
        if settings.weights is not None:
            _fill(network, _read_weights(settings.path(settings.weights)), settings.weights)
    if settings.program is not None or settings.mean is not None:
        # A program is wrapped as well: each has a class of its own, which detectors' files refuse.
        network = Prepared(network, settings.mean, settings.std)
    return evaluating(network).to(device)


def count_logits(classifier: nn.Module, x: Tensor) -> int:
    """Try a classifier on a batch of rows; return the number of its logits."""
    return check_classifier(Tapped(classifier), Rows(x.numpy(), trusted=True))


def decisions(classifier: nn.Module, x: Tensor) -> np.ndarray:
    """Ask a classifier for its decisions on a batch of rows."""
    return predict_labels(Tapped(classifier), Rows(x.numpy(), trusted=True), BATCH)


def _build(settings: Settings) -> nn.Module:
    assert settings.factory is not None
    module, _, name = settings.factory.partition(":")
    folder = str(settings.folder.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        factory: Any = importlib.import_module(module)
        for part in name.split("."):
            factory = getattr(factory, part)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise  # one that the module itself asks for
        raise ValueError(
            f"There is no module {module!r} in {folder}, nor is one installed; "
            f"factory = {settings.factory!r} must name a file there, without .py."
        ) from error
    except AttributeError as error:
        raise ValueError(
            f"factory = {settings.factory!r}: {error}; name a class or a function of that module."
        ) from error
    network = _called(factory, settings.factory)
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"{settings.factory} gives a {type(network).__name__}; it must return an nn.Module."
        )
    return network


def _called(factory: Callable[[], Any], name: str) -> Any:
    if isinstance(factory, nn.Module):
        return factory
    try:
        return factory()
    except TypeError as error:
        raise TypeError(
            f"{name} cannot be called without arguments: {error}. Write a function that returns "
            "the network, and name it instead."
        ) from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    _check_is_file(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file that can be read: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no file of plain tensors; write it anew by torch.save(net.state_dict(), "
            f"…), since whole networks and other objects are not loaded."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        what = f"a dict of {shortened(list(state))}" if isinstance(state, dict) else "no dict"
        raise ValueError(f"{path} holds {what}; it must hold net.state_dict() and nothing else.")
    return state


def _fill(network: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load weights, all of them and no others."""
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    others = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": sorted(others)}
    told = [f"{what}: {shortened(keys)}" for what, keys in problems.items() if keys]
    if unexpected and all(key.startswith("module.") for key in unexpected):
        told.append("of a DataParallel, write net.module.state_dict()")
    if told:
        raise ValueError(f"{name} does not fit the network; {'; '.join(told)}.")
    network.load_state_dict(state)


def _read_program(path: Path) -> nn.Module:
    _check_is_file(path)
    try:
        return torch.export.load(path).module()
    except Exception as error:  # whatever a damaged archive leads to
        raise ValueError(
            f"{path} is no program that torch.export.save wrote, or one of another version of "
            f"torch: {type(error).__name__}: {error}"
        ) from error


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; correct its name in the settings.")
