"""A copy of a classifier that agrees with it on clean images, and holds in small balls.

What an attacker who knows everything can win is bounded from below by how often the defender
disagrees with the victim on clean images (`skmrr.evaluation.impostor_rate`). So the copy starts
with the victim's weights and learns the victim's answers, not the truth. Rows are attacked by one
step from a noisy start (N-FGSM), which costs one pass more than plain training. Half of the images
are mixed with another one (mixup): on these the victim has more to say than on images that it was
trained on.

References
----------
P. de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training",
NeurIPS 2022.

H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.

L. Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022.
"""

import copy
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from skmrr.bench.augmentation import Augmented
from skmrr.nn.exploration import one_cycle
from skmrr.whole_files import replaced

BATCH = 128
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
KEPT = 0.999  # share of the averaged weights that a step leaves
WARM_UP, GROWING = 0.1, 0.3  # shares of the training in which learning rate and balls grow
MIXED = 0.5  # share of the images that are mixed
STATES = ("network", "average", "optimizer", "schedule")  # what a training goes on from


def harden(
    victim: nn.Module,
    X: np.ndarray,
    *,
    radius: float,
    epochs: int,
    learning_rate: float = 0.05,
    seed: int = 0,
    checkpoint: str | PathLike | None = None,
    verbose: bool = False,
) -> nn.Module:
    """Train a copy of a classifier to give the classifier's answers in balls around images.

    Parameters
    ----------
    victim : nn.Module
        Images in [0, 1] → logits. It is not changed.
    X : ndarray of shape (n, channels, height, width), float32
        Clean images, which are shifted by up to four pixels and mirrored.
    radius : float
        Largest radius, in the units of X; each image's own is drawn uniformly.
    epochs : int
        Passes over the images.
    learning_rate : float, default=0.05
        Peak of SGD's.
    seed : int, default=0
        Of the global generator, which is left as it was.
    checkpoint : path-like, optional
        File that the training goes on from after an interruption, written once an epoch.
    verbose : bool, default=False
        Whether to show progress.

    Returns
    -------
    nn.Module
        The copy in evaluation mode, with the average of its last weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loader = DataLoader(
            Augmented(X, shift=4, mirror=True), batch_size=BATCH, shuffle=True, drop_last=True
        )
        training = _Training(victim, radius, learning_rate, epochs * len(loader))
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and path.exists():
            training.load(path)
        done = training.schedule.last_epoch // len(loader)
        for _ in tqdm(range(done, epochs), initial=done, total=epochs, disable=not verbose):
            for x in loader:
                training.step(x.contiguous(memory_format=torch.channels_last))
            if path is not None:
                training.save(path)
        return training.average.module.eval()


class _Training:
    """The state of a training, and one step of it."""

    def __init__(self, victim: nn.Module, radius: float, learning_rate: float, n_steps: int):
        self.victim = copy.deepcopy(victim).eval().requires_grad_(False)
        self.network = copy.deepcopy(victim).requires_grad_(True)
        self.norms = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d)]
        self.average = AveragedModel(
            self.network, multi_avg_fn=get_ema_multi_avg_fn(KEPT), use_buffers=True
        ).requires_grad_(False)
        self.radius, self.n_steps = radius, n_steps
        parts = list(self.network.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [part for part in parts if part.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [part for part in parts if part.ndim <= 1]},
        ]
        self.optimizer = torch.optim.SGD(
            groups,
            lr=learning_rate,
            momentum=MOMENTUM,
            nesterov=True,
        )
        self.schedule = LambdaLR(
            self.optimizer, lambda step: one_cycle(step / n_steps, warm_up=WARM_UP)
        )

    def step(self, x: Tensor) -> None:
        """Learn the victim's answers to a batch at points near its images."""
        share = torch.where(torch.rand(len(x)) < MIXED, torch.rand(len(x)), 1.0)[
            :, None, None, None
        ]
        x = share * x + (1 - share) * x.flip(0)
        with torch.no_grad():
            answers = self.victim(x).softmax(1)
        loss = functional.cross_entropy(self.network(self._worst(x, answers)), answers)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.network)

    def _worst(self, x: Tensor, answers: Tensor) -> Tensor:
        """One step up the loss, from noise of twice the ball's radius, which is not cut to it."""
        grown = min(1.0, self.schedule.last_epoch / self.n_steps / GROWING)
        radius = self.radius * grown * torch.rand(len(x), 1, 1, 1)
        points = (x + 2 * radius * (2 * torch.rand_like(x) - 1)).requires_grad_()
        self.network.train()
        self._update_norms(0.0)  # by the points that are learnt from alone
        loss = functional.cross_entropy(self.network(points), answers, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        self._update_norms(0.1)
        return (points.detach() + radius * gradient.sign()).clamp(0, 1)

    def _update_norms(self, momentum: float) -> None:
        for norm in self.norms:
            norm.momentum = momentum

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        state = {name: getattr(self, name).state_dict() for name in STATES}
        with replaced(path) as beside:
            torch.save(state | {"generator": torch.get_rng_state()}, beside)

    def load(self, path: Path) -> None:
        """Go on from a state."""
        state = torch.load(path, weights_only=True)
        for name in STATES:
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["generator"])
