"""Clean rows that show an attack the way to a class."""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skmrr.attacks.judging import victim_logits


class Guides:
    """Clean rows that a network takes for a class each.

    Where a class has rows that are not flagged, the others are left out.

    Parameters
    ----------
    network : nn.Module
        A `skmrr.nn.DefendedClassifier`, or any classifier.
    x : Tensor of shape (n, …)
        Clean rows.
    batch_size : int, default=512
        Rows at a time.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import Guides
    >>> guides = Guides(torch.nn.Identity(), torch.eye(3))
    >>> guides.nearest(torch.tensor([[0.9, 0.0, 0.1]]), torch.tensor([2]))
    tensor([[0., 0., 1.]])
    """

    def __init__(self, network: nn.Module, x: Tensor, batch_size: int = 512):
        classes = victim_logits(network, x, batch_size).argmax(1)
        with torch.no_grad():
            accepted = (
                torch.cat([network(part).argmax(1) for part in x.split(batch_size)]) == classes
            )
        served = torch.isin(classes, classes[accepted])
        kept = accepted | ~served
        self.x, self.classes = x[kept], classes[kept]

    def nearest(self, x: Tensor, targets: Int[Tensor, " batch"], rank: int = 0) -> Tensor:
        """Guide of each row's target class that is nearest to it in L2, or next by `rank`.

        Raises
        ------
        ValueError
            If there is no guide of a target class.
        """
        nearest = torch.empty_like(x)
        for c in targets.unique().tolist():
            of_class = self.x[self.classes == c]
            if len(of_class) == 0:
                raise ValueError(f"No guide is taken for class {c}; give more clean rows.")
            rows = torch.nonzero(targets == c)[:, 0]
            distances = torch.cdist(x[rows].flatten(1), of_class.flatten(1))
            k = min(rank, len(of_class) - 1)
            nearest[rows] = of_class[distances.topk(k + 1, largest=False).indices[:, k]]
        return nearest
