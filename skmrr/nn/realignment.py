"""Realignment: fine-tune a latent map on clean rows until its classes are tight and apart.

The loss is that of the latent defender of Rouhani et al. (2019); the exploration of balls around
the rows is this package's addition.
"""

import copy
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from skmrr.nn.exploration import Explorer
from skmrr.nn.hooks import as_input, evaluating, module_device
from skmrr.nn.replica import LatentMap
from skmrr.nn.rows import Rows


class RealignmentLoss(nn.Module):
    """Cross-entropy plus γ times a clustering loss with trainable class centres.

    Parameters
    ----------
    centres : Tensor of shape (classes, dim)
        Initial class centres C^i, the class means.
    gamma : float
        Weight γ of the clustering loss.
    clustering : {"paper", "program"}
        The loss of the text, or that of the authors' released program.
    """

    def __init__(self, centres: Tensor, gamma: float, clustering: str):
        super().__init__()
        self.centres = nn.Parameter(centres.clone())
        self.gamma = gamma
        self.cluster = {"paper": self._paper, "program": self._program}[clustering]

    def forward(
        self,
        features: Float[Tensor, "batch dim"],
        logits: Float[Tensor, "batch classes"],
        classes: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """Return the mean loss of a batch."""
        loss = functional.cross_entropy(logits, classes)
        if self.gamma:
            loss = loss + self.gamma * self.cluster(features, classes)
        return loss

    def _paper(self, features, classes):
        """‖C^y − φ‖² − Σ_{i≠y} ‖C^i − φ‖² + Σ_i (‖C^i‖₂ − 1)²."""
        squared = torch.cdist(features, self.centres).square()  # batch classes
        own = squared.gather(1, classes[:, None])[:, 0]
        spread = (self.centres.norm(dim=1) - 1).square().sum()
        return (2 * own - squared.sum(1)).mean() + spread

    def _program(self, features, classes):
        """½‖φ − C^y‖² − d (1 − cos) to the nearest other centre + Σ_i |1 − ‖C^i‖²|."""
        distances = torch.cdist(features, self.centres)  # batch classes
        own = distances.gather(1, classes[:, None])[:, 0]
        others = distances.scatter(1, classes[:, None], torch.inf)
        d, nearest = others.min(1)
        cosine = functional.cosine_similarity(features, self.centres[nearest])
        spread = (1 - self.centres.square().sum(1)).abs().sum()
        return (0.5 * own.square() + d * (cosine - 1)).mean() + spread


class Realigner:
    """Trains a latent map in place; `skmrr.LatentDefender` documents the parameters."""

    def __init__(
        self,
        latent_map: LatentMap,
        centres: Float[Tensor, "classes dim"],
        *,
        gamma: float,
        clustering: str,
        explorer: Explorer | None,
        learning_rate: float,
        max_epochs: int,
        batch_size: int,
        ema_decay: float,
        verbose: bool,
    ):
        self.latent_map = latent_map
        self.device = module_device(latent_map)
        self.loss = RealignmentLoss(centres, gamma, clustering).to(self.device)
        self.explorer = explorer
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.averaged = AveragedModel(latent_map, multi_avg_fn=_warming_ema(ema_decay))
        self.average = cast(LatentMap, self.averaged.module)
        self.verbose = verbose

    def fit(
        self,
        rows: Rows,
        classes: Int[Tensor, " rows"],
        train: np.ndarray,
        held_out: np.ndarray,
        *,
        patience: int,
        seed: int,
    ) -> dict[str, list[float]]:
        """Train on the rows at `train`; `classes` is in the order of `rows`.

        Parameters
        ----------
        held_out : ndarray of int
            Rows whose clean cross-entropy stops the training when it has not fallen for
            `patience` epochs, and picks the best epoch. With none, the last epoch is kept.

        Returns
        -------
        dict
            ``loss`` and ``held_out_loss`` of each epoch.
        """
        history: dict[str, list[float]] = {"loss": [], "held_out_loss": []}
        steps = -(-len(train) // self.batch_size)
        parameters = [p for p in self.latent_map.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam([*parameters, *self.loss.parameters()], self.learning_rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=steps * self.max_epochs,
            pct_start=0.2,
            cycle_momentum=False,
        )
        if self.explorer is not None:
            self.offsets = torch.zeros(len(rows), *rows.shape)
        shuffle = np.random.RandomState(seed)
        best = self.average.state_dict()
        with (
            torch.random.fork_rng(enabled=True),
            tqdm(total=steps * self.max_epochs, desc="realign", disable=not self.verbose) as bar,
        ):
            torch.manual_seed(seed)
            for epoch in range(self.max_epochs):
                self.epoch = epoch
                batches = self._read(rows, classes, shuffle.permutation(train))
                history["loss"].append(self._epoch(batches, optimizer, bar))
                if len(held_out) == 0:
                    continue
                losses = history["held_out_loss"]
                losses.append(self._epoch(self._read(rows, classes, held_out)))
                best_epoch = int(np.argmin(losses))
                if best_epoch == len(losses) - 1:
                    best = copy.deepcopy(self.average.state_dict())
                elif len(losses) - 1 - best_epoch >= patience:
                    break
        self.latent_map.load_state_dict(best)
        return history

    def _epoch(self, batches, optimizer=None, bar=None) -> float:
        """Mean loss over `batches`: of training, or clean cross-entropy of the averaged map."""
        total, n = 0.0, 0
        for x, classes, indices in batches:
            if optimizer is None:
                with evaluating(self.average), torch.no_grad():
                    logits = self.average.features_and_logits(x)[1]
                    loss = functional.cross_entropy(logits, classes)
            else:
                loss = self._step(x, classes, indices, optimizer)
                bar.update()
                bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
            total, n = total + float(loss) * len(x), n + len(x)
        return total / n

    def _step(self, x, classes, indices, optimizer):
        if self.explorer is not None:
            explored = self._explore(self.explorer, x, classes, indices)
            x, classes = torch.cat([x, explored]), classes.repeat(2)
        _train_without_dropout(self.latent_map)
        loss = self._loss(self.latent_map, x, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.schedule.step()
        self.averaged.update_parameters(self.latent_map)
        return loss.detach()

    def _explore(self, explorer: Explorer, x, classes, indices):
        """Worst points around `x`; each row's search goes on where its last one ended."""
        progress = self.schedule.last_epoch / self.schedule.total_steps
        last = self.offsets[indices].to(x) if self.epoch > 0 else None
        with evaluating(self.latent_map):
            points = explorer.worst_points(
                x, lambda points: self._loss(self.latent_map, points, classes), progress, last
            )
        self.offsets[indices] = (points - x).to(self.offsets)
        return points

    def _loss(self, latent_map, x, classes):
        return self.loss(*latent_map.features_and_logits(x), classes)

    def _read(self, rows, classes, indices) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for positions, x in rows.batches(self.batch_size, indices):
            picked = torch.as_tensor(indices[positions])
            yield as_input(x, self.latent_map, self.device), classes[picked].to(self.device), picked


def _train_without_dropout(module: nn.Module) -> None:
    """Training mode but for dropout, whose noise would hide the worst point from the search."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.eval()


def _warming_ema(decay: float):
    """Exponential moving average that forgets the initial weights fast in a short training."""

    def update(averaged, current, n_averaged):
        keep = min(decay, float(n_averaged) / (float(n_averaged) + 10))
        for old, new in zip(averaged, current, strict=True):
            old.lerp_(new, 1 - keep)

    return update
