"""What the rivals that train a network have in common."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from skmrr.base import BaseDetector
from skmrr.baselines import _default_networks
from skmrr.nn.placement import as_input
from skmrr.nn.rows import Rows
from skmrr.nn.samples import Samples
from skmrr.nn.tapped import shared_copy, trainable_copy


def train_epochs(
    step: Callable[[Tensor, np.ndarray], Tensor],
    rows: Rows,
    train: np.ndarray,
    network: nn.Module,
    *,
    max_epochs: int,
    batch_size: int,
    desc: str,
    verbose: bool,
) -> list[float]:
    """Call `step` on every batch of every epoch; return the mean loss of each epoch.

    Parameters
    ----------
    step : callable
        (x, indices of its rows) → loss of the batch, having trained on it.
    rows : Rows
        All rows.
    train : ndarray of int
        Those to train on.
    network : nn.Module
        Whose device and dtype the batches are given.
    max_epochs, batch_size : int
        The batches of an epoch are of equal size, give or take one, so that none is too small for
        batch normalisation; none is larger than `batch_size`.
    desc : str
        Name of the progress bar.
    verbose : bool
        Whether to show it.
    """
    n_batches = -(-len(train) // batch_size)
    losses = []
    with tqdm(total=max_epochs * n_batches, desc=desc, disable=not verbose) as bar:
        for _ in range(max_epochs):
            total = 0.0
            shuffled = train[torch.randperm(len(train)).numpy()]
            for indices in np.array_split(shuffled, n_batches):
                x = as_input(rows.take(indices), network)
                total += float(step(x, indices)) * len(indices)
                bar.update()
            losses.append(total / len(train))
    return losses


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Take one step down the loss; return it without its graph."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def train_network(
    detector: Any,
    loss_of: Callable[[Tensor, np.ndarray], Tensor],
    network: nn.Module,
    rows: Rows,
    train: np.ndarray,
    *,
    desc: str,
) -> list[float]:
    """Train a network by Adam, whose learning rate falls along a cosine, then freeze it.

    Parameters
    ----------
    detector : BaseDetector
        Its ``learning_rate`` (at the start), ``max_epochs``, ``training_batch_size`` and
        ``verbose`` are those of the training; its ``history_`` is set.
    loss_of : callable
        (x, indices of its rows) → loss of the batch.
    network : nn.Module
        Changed in place.
    rows, train, desc
        As in `train_epochs`, whose losses are returned.
    """
    optimizer = torch.optim.Adam(network.parameters(), detector.learning_rate)
    n_steps = detector.max_epochs * -(-len(train) // detector.training_batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)

    def step(x: Tensor, indices: np.ndarray) -> Tensor:
        loss = descend(optimizer, loss_of(x, indices))
        schedule.step()
        return loss

    losses = train_epochs(
        step,
        rows,
        train,
        network.train(),
        max_epochs=detector.max_epochs,
        batch_size=detector.training_batch_size,
        desc=desc,
        verbose=detector.verbose,
    )
    network.eval().requires_grad_(False)
    detector.history_ = {"loss": losses}
    return losses


def value_range(rows: Rows, train: np.ndarray, clip_values, batch_size: int):
    """Return the declared (lowest, highest) value, else that of the training rows."""
    if clip_values is not None:
        return float(clip_values[0]), float(clip_values[1])
    extremes = [batch.aminmax() for _, batch in rows.batches(batch_size, train)]
    low = min(float(lowest) for lowest, _ in extremes)
    high = max(float(highest) for _, highest in extremes)
    return low, high if high > low else low + 1.0


def second_classifier(
    template: nn.Module | None,
    name: str,
    rows: Rows,
    train: np.ndarray,
    bounds: tuple[float, float],
    classes: np.ndarray,
    device: torch.device,
    *,
    from_scratch: bool,
) -> nn.Module:
    """Classifier to be trained beside the victim, on `device`.

    Parameters
    ----------
    template : nn.Module or None
        It is copied; without it the network has one hidden layer, and two logits at least.
    name : str
        The template's among the parameters.
    rows, train
        All rows, and those to train on.
    bounds : tuple of float
        Range of the rows.
    classes : ndarray of shape (n_classes,)
        Classes that it has to have logits for.
    device : torch.device
        Where it is to be.
    from_scratch : bool
        Whether a copy forgets its weights, layer by layer by ``reset_parameters``.
    """
    if template is None:
        network = _default_networks.softmax_network(rows.shape, *bounds, max(2, len(classes)))
        return network.to(device).requires_grad_(True)
    network = trainable_copy(template).to(device).requires_grad_(True)
    check_answers(network, as_input(rows.take(train[:1]), network), classes, name)
    for part in network.modules() if from_scratch else ():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
    return network


def with_background(x: Tensor, y: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Rows of one class and as many drawn uniformly from their range, to be told from them."""
    low, high = bounds
    return torch.cat([x, low + (high - low) * torch.rand_like(x)]), torch.cat([y, y + 1])


@torch.no_grad()
def check_answers(network: nn.Module, x: Tensor, classes: np.ndarray, name: str) -> None:
    """Raise a ValueError unless a network answers with a logit for every class.

    `x` is one row.
    """
    logits = shared_copy(network)(as_input(x, network))
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"{name} must answer with logits of shape (batch, classes), two classes at least; it "
            f"answers one row with shape {tuple(logits.shape)}."
        )
    if classes[-1] >= logits.shape[1]:
        raise ValueError(
            f"y holds class {classes[-1]}, but {name} has {logits.shape[1]} logits; number y as "
            "the network does."
        )


@torch.no_grad()
def check_rebuilds(network: nn.Module, x: Tensor, name: str) -> None:
    """Raise a ValueError unless a network turns rows into rows of the same shape."""
    shape = tuple(shared_copy(network)(x).shape)
    if shape != tuple(x.shape):
        raise ValueError(
            f"{name} must turn rows into rows of the same shape, here {tuple(x.shape[1:])}; it "
            f"gives {shape[1:]}."
        )


@torch.no_grad()
def map_rows(detector: BaseDetector, rebuild: nn.Module, X) -> np.ndarray:
    """Rows of X, each replaced by what `rebuild` makes of it, in the shape of X."""
    rows = detector._read_rows(X, reset=False)
    batches = rows.batches(detector.batch_size_)
    rebuilt = torch.cat([rebuild(as_input(batch, rebuild)).cpu() for _, batch in batches]).numpy()
    return rebuilt if isinstance(rows.source, Samples) else rebuilt.reshape(rows.source.shape)
