"""A detector as it runs in production: rows → class, risk and verdict, in one graph."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skmrr.nn.detector_module import DetectorModule
from skmrr.nn.rows import bounds

DONT_KNOW = -1  # label of a row that is flagged


class Deployed(nn.Module):
    """A calibrated detector with its classifier, its checks of rows and its threshold.

    No row is an error: one that a detector's estimator would refuse is flagged with risk 1, and
    the rows beside it get what they would get without it.

    Parameters
    ----------
    detector : DetectorModule
        ``module_`` of a fitted detector.
    clip_values : tuple of float, optional
        Declared (lowest, highest) value of an entry.
    """

    range: Tensor
    lowest_score: Tensor

    def __init__(self, detector: DetectorModule, clip_values: Sequence[float] | None):
        super().__init__()
        self.detector = detector
        # Buffers, as numbers in a graph may be rounded to float32.
        self.register_buffer("range", torch.tensor(bounds(clip_values), dtype=torch.float64))
        lowest = torch.finfo(torch.float64).min
        self.register_buffer("lowest_score", torch.tensor(lowest, dtype=torch.float64))
        self.stand_in = 0.0 if clip_values is None else float(clip_values[0])

    def forward(self, x: Tensor, security_parameter: Float[Tensor, ""]) -> dict[str, Tensor]:
        """Judge rows.

        Parameters
        ----------
        x : Tensor of shape (batch, …)
            Rows.
        security_parameter : Tensor of shape (), float64
            False-alarm rate. With one that is none, outside of (0, 1), all rows are flagged.

        Returns
        -------
        dict of Tensor
            ``label``, int64 of shape (batch,): class, or −1 where flagged. ``risk``, float64 of
            shape (batch,). ``flagged``, bool of shape (batch,). ``member_risks``, float64 of shape
            (batch, members). ``in_range``, bool of shape (batch,): whether all values of a row are
            finite and in the declared range.
        """
        in_range = self._in_range(x)
        is_read = in_range.view(-1, *[1] * (x.ndim - 1))
        judged = self.detector.judge(torch.where(is_read, x, self.stand_in))
        score = torch.where(in_range, judged.score, self.lowest_score)
        members = torch.where(in_range[:, None], judged.log_survivals, self.lowest_score)
        rate = security_parameter.double()
        accepted = (score >= rate.log()) & (rate > 0) & (rate < 1)
        classes = self.detector.evidence.classes[judged.columns]
        return {
            "label": torch.where(accepted, classes, DONT_KNOW),
            "risk": 0.0 - torch.expm1(score),  # a minus alone gives -0.0
            "flagged": ~accepted,
            "member_risks": 0.0 - torch.expm1(members),
            "in_range": in_range,
        }

    def _in_range(self, x: Tensor) -> Bool[Tensor, " batch"]:
        values = x.flatten(1).double()
        return ((values >= self.range[0]) & (values <= self.range[1])).all(1)  # nor is NaN
