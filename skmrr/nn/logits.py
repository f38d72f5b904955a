"""Logits of networks that answer with something else."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LogitsOf(nn.Module):
    """A network that answers with a tuple, a dict, probabilities or one logit, as a classifier.

    Parameters
    ----------
    network : nn.Module
        Rows → anything that holds its logits. It is neither copied nor changed.
    where : str, int or callable, optional
        Where in the answer they are: a key or attribute, a position, or a function of the answer.
        By default the answer itself.
    probabilities : bool, default=False
        Whether they are probabilities; their logarithms then serve.

    Notes
    -----
    A single logit z, of shape (batch,) or (batch, 1), becomes the two logits (0, z) of classes 0
    and 1.

    A function is pickled with the detector: give one that is defined in a module, or a notebook.

    Examples
    --------
    >>> import torch
    >>> from skmrr import LogitsOf
    >>> binary = LogitsOf(torch.nn.Linear(4, 1))
    >>> binary(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    >>> ends_in_softmax = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1))
    >>> LogitsOf(ends_in_softmax, probabilities=True)(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        where: str | int | Callable[[Any], Tensor] | None = None,
        *,
        probabilities: bool = False,
    ):
        super().__init__()
        self.network = network
        self.where = where
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Return the logits of each row."""
        values = self._found(self.network(x))
        if values.ndim == 1:
            values = values[:, None]
        is_single = values.shape[1] == 1
        if self.probabilities:
            kind = torch.finfo(values.dtype)  # probabilities may round to 0 and 1
            values = values.logit(kind.eps) if is_single else values.clamp_min(kind.tiny).log()
        return torch.cat([torch.zeros_like(values), values], 1) if is_single else values

    def _found(self, answer: Any) -> Tensor:
        if self.where is None:
            return answer
        if callable(self.where):
            return self.where(answer)
        if isinstance(self.where, str) and hasattr(answer, self.where):
            return getattr(answer, self.where)
        return answer[self.where]
