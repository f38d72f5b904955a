"""Operators of torch that ONNX lacks, out of those that it has.

Imports onnxscript: to be imported where it is used.
"""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18

op: Any = opset18  # whose types are those of arrays, not of what is traced


def search_sorted(knots, values, *, right=False, side=None, **kwargs):
    """``torch.searchsorted``, by bisection.

    Memory is that of the values, whereas a comparison with all knots at once takes that of values
    times knots. Both have the same axes but for the last.
    """
    is_below = op.LessOrEqual if right or side == "right" else op.Less
    n_knots = knots.shape[-1]
    n_below = op.CastLike(op.Sub(values, values), op.Constant(value_int=0))
    step = 1 << (n_knots.bit_length() - 1)
    while step:
        more = op.Add(n_below, op.Constant(value_int=step))
        within = op.Min(more, op.Constant(value_int=n_knots))
        last = op.GatherElements(knots, op.Sub(within, op.Constant(value_int=1)), axis=-1)
        is_further = op.And(is_below(last, values), op.Equal(more, within))
        n_below = op.Where(is_further, more, n_below)
        step >>= 1
    return n_below


def kth_value(x, k, dim=-1, keepdim=False):
    """``Tensor.kthvalue``, out of the k smallest."""
    values, indices = op.TopK(x, op.Constant(value_ints=[k]), axis=dim, largest=0)
    last = op.Constant(value_ints=[k - 1]) if keepdim else op.Constant(value_int=k - 1)
    return op.Gather(values, last, axis=dim), op.Gather(indices, last, axis=dim)


OPERATORS: dict[Callable, Callable] = {
    torch.ops.aten.searchsorted.Tensor: search_sorted,
    torch.ops.aten.kthvalue.default: kth_value,
}
