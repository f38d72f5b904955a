"""What attacks return, and the worst of many."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skmrr.nn.defended import DefendedClassifier


@dataclass(frozen=True)
class AttackResult:
    """Outcome of an attack, row by row."""

    adversarial: Tensor
    """Adversarial rows, NaN where the attack failed."""
    success: Bool[Tensor, " batch"]
    """Where it succeeded; verified by one more pass of the network."""
    distortion: Float[Tensor, " batch"]
    """Norm of the change, that which the attack bounds or minimises; infinite where it failed."""
    queries: Int[Tensor, " batch"] | None = None
    """Rows that the network was asked about for each, where the attack counts them."""


def worst_case(results: Iterable[AttackResult]) -> AttackResult:
    """Of several attacks on the same rows, each row's success of least distortion.

    Parameters
    ----------
    results : iterable of AttackResult
        With distortions in the same norm.

    Returns
    -------
    AttackResult

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import AttackResult, worst_case
    >>> nan, inf = torch.nan, torch.inf
    >>> one = AttackResult(torch.tensor([[1.], [nan]]), torch.tensor([True, False]),
    ...                    torch.tensor([3., inf]))
    >>> other = AttackResult(torch.tensor([[2.], [nan]]), torch.tensor([True, False]),
    ...                      torch.tensor([1., inf]))
    >>> worst_case([one, other]).distortion
    tensor([1., inf])
    """
    results = list(results)
    if not results:
        raise ValueError("worst_case needs at least one result.")
    distortion, winner = torch.stack([result.distortion for result in results]).min(0)
    rows = torch.arange(len(winner), device=winner.device)
    adversarial = torch.stack([result.adversarial for result in results])[winner, rows]
    return AttackResult(adversarial, distortion.isfinite(), distortion)


def verified(
    network: nn.Module,
    x: Tensor,
    candidates: Tensor,
    labels: Tensor,
    *,
    norm: float,
    targeted: bool = False,
    batch_size: int = 512,
) -> AttackResult:
    """Outcome of a search, by asking the network once more instead of trusting the search.

    Parameters
    ----------
    network : nn.Module
        Rows → logits; of a `DefendedClassifier` an answer "flagged" is a failure.
    x : Tensor of shape (batch, …)
        Rows as they were.
    candidates : Tensor of shape (batch, …)
        Rows found, NaN where none was.
    labels : Tensor of shape (batch,)
        Labels to leave, or to reach.
    norm : float
        Order of the norm of the distortion.
    targeted : bool
        Whether `labels` are to be reached.
    batch_size : int
        Rows at a time.
    """
    found = ~candidates.flatten(1).isnan().any(1)
    answers = torch.full_like(labels, -1)
    for rows in torch.nonzero(found)[:, 0].split(batch_size):
        answers[rows] = decisions(network, candidates[rows])
    success = found & (answers != -1) & ((answers == labels) == targeted)
    distortion = torch.linalg.vector_norm((candidates - x).flatten(1), norm, dim=1)
    return AttackResult(
        torch.where(success.view(-1, *[1] * (x.ndim - 1)), candidates, torch.nan),
        success,
        torch.where(success, distortion, torch.inf),
    )


@torch.no_grad()
def decisions(network: nn.Module, x: Tensor) -> Int[Tensor, " batch"]:
    """Class of each row, −1 where it is flagged: what `BaseDetector.classify` says."""
    logits = network(x)
    answers = logits.argmax(1)
    n_classes = logits.shape[1] - is_defended(network)
    return torch.where(answers < n_classes, answers, -1)


def is_defended(network: nn.Module) -> TypeGuard[DefendedClassifier]:
    """Whether the last logit of a network means "flagged"."""
    return isinstance(network, DefendedClassifier)
