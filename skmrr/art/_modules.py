"""What ART puts around a network, as a torch module."""

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn


def as_module(classifier: PyTorchClassifier) -> nn.Module:
    """Classifier of ART as a module, rows with channels first → logits, that gradients pass.

    It is ``classifier.model`` itself where ART adds nothing to it.
    """
    steps = [step for step in classifier.preprocessing_operations if _does_something(step)]
    if not steps and classifier.channels_first:
        return classifier.model
    return Preprocessed(classifier.model, steps, not classifier.channels_first)


def channels_as_given(classifier: PyTorchClassifier) -> nn.Module:
    """As `as_module`, for rows as ART holds them."""
    network = as_module(classifier)
    if isinstance(network, Preprocessed):
        return Preprocessed(network.model, network.steps)
    return network


def _does_something(step) -> bool:
    """Whether a step of preprocessing changes rows: ART's default one subtracts 0, divides by 1."""
    is_default = type(step).__name__.startswith("StandardisationMeanStd") and (
        np.all(step.mean == 0) and np.all(step.std == 1)
    )
    return step.apply_predict and not is_default


class Preprocessed(nn.Module):
    """A model behind the preprocessing of ART.

    It holds no classifier of ART, which writes a file whenever it is copied.
    """

    def __init__(self, model: nn.Module, steps: list, channels_last: bool = False):
        super().__init__()
        self.model = model
        self.steps = steps
        self.channels_last = channels_last

    def forward(self, x):
        """Return the logits."""
        if self.channels_last and x.ndim > 2:
            x = x.movedim(1, -1)
        for step in self.steps:
            if isinstance(step, PreprocessorPyTorch):
                x, _ = step.forward(x)
            else:
                x = _NumpyStep.apply(x, step)
        return self.model(x)


class _NumpyStep(torch.autograd.Function):
    """Preprocessing in numpy, with ART's estimate of its gradient."""

    @staticmethod
    def forward(ctx, x, step):
        """Return the rows as the step leaves them."""
        ctx.x, ctx.step = x.detach().cpu().numpy(), step
        return torch.as_tensor(step(ctx.x)[0]).to(x)

    @staticmethod
    def backward(ctx, gradient):
        """Return the gradient before the step."""
        before = ctx.step.estimate_gradient(ctx.x, gradient.cpu().numpy())
        return torch.as_tensor(before).to(gradient), None


def clip_values(classifier: PyTorchClassifier) -> tuple[float, float]:
    """Range of all values of a row."""
    low, high = classifier.clip_values
    return float(np.min(low)), float(np.max(high))
