"""Members of an ensemble: fitted detectors that are all fed with the ensemble's own rows."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr.nn.detector import DetectorModule
from skmrr.nn.hooks import module_dtype
from skmrr.nn.layers import LayerFeatures


class Member(nn.Module):
    """A detector behind the steps that turn rows into what it was fitted on.

    Parameters
    ----------
    detector : DetectorModule
        The fitted detector; of it, the statistic is used.
    row_shape : tuple of int
        Shape of a row as the first step sees it.
    steps : list of nn.Module
        Steps before the detector.
    tap : LayerFeatures, optional
        First step of a member that reads layers of the ensemble's own classifier: the features
        are taken from the pass that asks for its decisions.
    """

    def __init__(
        self,
        detector: DetectorModule,
        row_shape: tuple[int, ...],
        steps: list[nn.Module],
        tap: LayerFeatures | None = None,
    ):
        super().__init__()
        self.detector = detector
        self.row_shape = row_shape
        self.steps = nn.ModuleList(steps)
        self.tap = tap

    def forward(self, x: Tensor, outputs: dict[str, Tensor]) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row under each class."""
        return self.detector.statistic(self._prepare(x, outputs))

    def at(
        self, x: Tensor, labels: Int[Tensor, " batch"], outputs: dict[str, Tensor]
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under its label.

        `outputs` are those of the tapped layers of the classifier.
        """
        return self.detector.statistic_at(self._prepare(x, outputs), labels)[0]

    def _prepare(self, x: Tensor, outputs: dict[str, Tensor]) -> Tensor:
        tap = self.tap
        x = x.reshape(len(x), *self.row_shape) if tap is None else tap.read(outputs)
        for step in self.steps:
            x = step(x)
        return x.to(module_dtype(self.detector.statistic, x.dtype))


class ArrayStep(nn.Module):
    """A step that only knows arrays, such as a transformer of scikit-learn.

    Parameters
    ----------
    transform : callable
        ndarray of shape (batch, …) → ndarray of shape (batch, dim).
    """

    def __init__(self, transform: Callable):
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> Float[Tensor, "batch dim"]:
        """Transform the rows; gradients do not pass."""
        return _Transform.apply(x, self.transform)


class _Transform(torch.autograd.Function):
    """An opaque function whose gradient is an error, not silently zero."""

    @staticmethod
    def forward(ctx, x, transform):
        ctx.name = getattr(transform, "__qualname__", repr(transform))
        return torch.as_tensor(transform(x.detach().cpu().numpy()), device=x.device)

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError(
            f"{ctx.name} is no torch code, so nothing can be differentiated through it; use a "
            "member without such a step."
        )
