"""Realignment: fine-tune a latent map on clean rows until its classes are tight and apart.

The loss is that of the latent defender of Rouhani et al. (2019); the exploration of balls around
the rows is this package's addition.
"""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from skmrr.callbacks import Task
from skmrr.nn.exploration import Explorer
from skmrr.nn.placement import as_input, module_device, module_dtype, seeded
from skmrr.nn.replica import LatentMap
from skmrr.nn.rows import Rows
from skmrr.nn.tapped import Tapped

PAPER_CLASSES = 10  # of MNIST and CIFAR-10, which the published γ was chosen on


class RealignmentLoss(nn.Module):
    """Cross-entropy plus γ times a clustering loss with trainable class centres.

    The published clustering loss is a sum over the other classes. Of more than ten classes γ is
    lowered in proportion, or the sum would drown the cross-entropy.

    Parameters
    ----------
    centres : Tensor of shape (learnt, dim)
        Initial class centres C^i, the means of the classes that there are rows of.
    learnt : Tensor of shape (learnt,)
        Columns of these classes, ascending.
    gamma : float
        Weight γ of the clustering loss.
    clustering : {"paper", "program"}
        The loss of the text, or that of the authors' released program.
    """

    learnt: Tensor

    def __init__(self, centres: Tensor, learnt: Tensor, gamma: float, clustering: str):
        super().__init__()
        self.centres = nn.Parameter(centres.clone())
        self.register_buffer("learnt", learnt)
        self.gamma = gamma * (PAPER_CLASSES - 1) / (max(PAPER_CLASSES, len(learnt)) - 1)
        self.cluster = {"paper": self._paper, "program": self._program}[clustering]

    def forward(
        self,
        features: Float[Tensor, "batch dim"],
        logits: Float[Tensor, "batch classes"],
        targets: Tensor,
    ) -> Float[Tensor, ""]:
        """Return the mean loss of a batch.

        ``targets`` holds classes, of shape (batch,), or their probabilities, of shape
        (batch, classes). Rows of a class without a centre do not cluster.
        """
        loss = functional.cross_entropy(logits, targets)
        if self.gamma:
            classes = targets
            if targets.ndim == 2:
                classes = targets.argmax(1)
                has_centre = torch.isin(classes, self.learnt)
                classes, features = classes[has_centre], features[has_centre]
            if len(classes):
                own = torch.searchsorted(self.learnt, classes)
                loss = loss + self.gamma * self.cluster(features, own)
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
    """Trains a latent map in place; `skmrr.LatentDefender` documents the parameters.

    With a ``teacher``, a classifier, its softmax is what the map learns of each row, not the row's
    class: so rows of a few classes teach how all of them are told apart (Hinton, Vinyals, Dean
    2015, "Distilling the Knowledge in a Neural Network").
    """

    def __init__(
        self,
        latent_map: LatentMap,
        centres: Float[Tensor, "learnt dim"],
        *,
        learnt: Int[Tensor, " learnt"],
        gamma: float,
        clustering: str,
        explorer: Explorer,
        teacher: Tapped | None = None,
        learning_rate: float,
        max_epochs: int,
        batch_size: int,
        max_time: float | None = None,
        task: Task,
        verbose: bool,
    ):
        self.latent_map = latent_map
        self.clustering_loss = RealignmentLoss(centres, learnt, gamma, clustering)
        self.clustering_loss.to(module_device(latent_map))
        self.explorer = explorer
        self.teacher = teacher
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.max_seconds = math.inf if max_time is None else 60 * max_time
        self.task = task
        self.verbose = verbose
        self.learning_rate = learning_rate
        parameters = [*latent_map.parameters(), *self.clustering_loss.parameters()]
        self.optimizer = torch.optim.Adam(parameters, learning_rate)

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
            ``loss`` of each epoch and ``held_out_loss`` of each epoch that may be the last.
        """
        history: dict[str, list[float]] = {"loss": [], "held_out_loss": []}
        self.n_steps = self.max_epochs * -(-len(train) // self.batch_size)
        self.step, self.start = 0, time.monotonic()
        shuffle = np.random.RandomState(seed)
        best = None
        is_over = False
        with (
            seeded(seed, module_device(self.latent_map)),
            tqdm(
                total=self.n_steps, desc="realign", disable=not self.verbose, leave=False
            ) as self.bar,
        ):
            for _ in range(self.max_epochs):
                if is_over or self._progress >= 1:
                    break
                with self.task.part("epoch") as epoch:
                    history["loss"].append(self._epoch(rows, classes, shuffle.permutation(train)))
                    # While what is explored grows, the clean loss rises for that reason.
                    if len(held_out) > 0 and self._progress >= self.explorer.ramp:
                        losses = history["held_out_loss"]
                        losses.append(_mean(self._clean_loss, self._read(rows, classes, held_out)))
                        age = len(losses) - 1 - int(np.argmin(losses))
                        if age == 0:
                            best = copy.deepcopy(self.latent_map.state_dict())
                        is_over = age >= patience
                is_over |= epoch.is_last
        if best is not None:
            self.latent_map.load_state_dict(best)
        self.latent_map.eval()
        return history

    def _epoch(self, rows, classes, order) -> float:
        """Train on rows in an order, as far as time allows; return the mean loss."""
        batches = takewhile(lambda _: self._progress < 1, self._read(rows, classes, order))
        loss = _mean(self._step, batches)
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"The training loss is {loss} after {self.step} steps: lower learning_rate, or "
                "look for rows of X far beyond the others."
            )
        return loss

    @property
    def _progress(self) -> float:
        """Share of the training that is done, by steps or by time, whichever is more."""
        return max(self.step / self.n_steps, self._time_share)

    @property
    def _time_share(self) -> float:
        return (time.monotonic() - self.start) / self.max_seconds

    @torch.no_grad()
    def _clean_loss(self, x, classes, indices):
        logits = self.latent_map.eval().features_and_logits(x)[1]
        return functional.cross_entropy(logits, classes)

    def _step(self, x, classes, indices):
        """Train on one batch, and on its surroundings; return the loss before the step."""
        middle = min(1.0, max((self.step + 0.5) / self.n_steps, self._time_share))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self.explorer.learning_rate(middle)
        with self._measuring_graph() as graph:
            loss = self.explorer.loss(
                self._loss, self.latent_map, x, classes, indices, self._progress
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        # Under autocast, whose casts of the weights would else outlive them until its end.
        torch.clear_autocast_cache()
        self.step += 1
        self.bar.update()
        if graph is not None:
            self._estimate(graph)
        return loss.detach()

    @contextmanager
    def _measuring_graph(self) -> Iterator[dict[int, int] | None]:
        """Yield bytes of what the graph of the very first step holds, by address, to be told."""
        if not self.verbose or self.step:
            yield None
            return
        held: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            yield held

    def _estimate(self, graph: dict[int, int]) -> None:
        seconds = min((time.monotonic() - self.start) * self.n_steps, self.max_seconds)
        tqdm.write(
            f"realign: {self.n_steps} steps, by the first about {seconds / 60:.1f} minutes in all; "
            f"a step holds {sum(graph.values()) / 2**30:.2f} GiB."
        )

    def _loss(self, x, classes):
        return self.clustering_loss(*self.latent_map.features_and_logits(x), classes)

    def _read(self, rows, classes, indices) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        batch_size = self.batch_size
        while len(indices) % batch_size == 1 < len(indices):
            batch_size += 1  # a single row has no variance to normalise by
        for positions, batch in rows.batches(batch_size, indices):
            picked = torch.as_tensor(indices[positions])
            x = as_input(batch, self.latent_map)
            yield x, self._targets(batch, classes[picked]).to(x.device), picked

    @torch.no_grad()
    def _targets(self, batch: Tensor, classes: Tensor) -> Tensor:
        """Classes of rows, or the teacher's probabilities of each class."""
        if self.teacher is None:
            return classes
        logits = self.teacher(batch.to(module_device(self.teacher))).logits
        return logits.softmax(1).to(module_dtype(self.latent_map, logits.dtype))


def _mean(loss_of, batches) -> float:
    """Mean of a loss over the rows of all batches."""
    total, n = 0.0, 0
    for x, classes, indices in batches:
        total += float(loss_of(x, classes, indices)) * len(x)
        n += len(x)
    return total / max(n, 1)
