"""Orthogonal matching pursuit on a whole batch, from correlations and the Gram matrix alone.

Batch-OMP (Rubinstein, Zibulevsky, Elad 2008): the residual itself is never formed. With the atoms
chosen so far S and the inverse Cholesky factor F of their Gram matrix, F Fᵀ = (D_S D_Sᵀ)⁻¹, atom n
adds the column f_n to F, and f_n times one number c_n to the coefficients γ; the correlations
α = D r of all atoms with the residual r fall by c_n G_S f_n.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

STOP = 1e-6  # correlation with a unit vector, below which float32 holds only rounding errors
MIN_PIVOT = 1e-6  # squared distance of an atom to the span of the chosen ones that counts as none
MIN_REMAINING = 3e-2  # the same where such atoms are sought: nearer ones add up float32's errors


def pursue(
    correlations: Float[Tensor, "batch atoms"],
    gram: Float[Tensor, "atoms atoms"],
    n_nonzero: int,
    order_recursive: bool,
) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    """Choose up to `n_nonzero` atoms for each unit vector of a batch.

    Parameters
    ----------
    correlations : Tensor of shape (batch, atoms)
        Of all atoms with unit vectors (or zero vectors). Overwritten.
    gram : Tensor of shape (atoms, atoms)
        Inner products of the atoms, which are unit vectors or zero.
    n_nonzero : int
        Number k of atoms to choose.
    order_recursive : bool
        Whether to choose the atom that lowers the residual most once all coefficients are fitted
        anew (order-recursive matching pursuit), instead of the one most correlated with it.

    Returns
    -------
    support : Tensor of shape (batch, k), int32
        Chosen atoms, in order.
    coefficients : Tensor of shape (batch, k)
        Zero where a vector took fewer atoms than k.
    """
    n, n_atoms = correlations.shape
    support = torch.zeros(n, n_nonzero, dtype=torch.int32, device=gram.device)
    coefficients = gram.new_zeros(n_nonzero, n)
    factor = gram.new_zeros(n_nonzero, n_nonzero, n)  # F[j, l] of each vector
    gram_rows = torch.zeros(n_nonzero, n, dtype=torch.int64, device=gram.device)  # flat offsets
    first = torch.arange(n, device=gram.device) * n_atoms
    remaining = torch.ones_like(correlations) if order_recursive else None  # ‖(I − P_S) d‖²
    gain = torch.empty_like(correlations)
    min_pivot = MIN_REMAINING if order_recursive else MIN_PIVOT
    active = torch.ones(n, dtype=torch.bool, device=gram.device)
    for k in range(n_nonzero):
        best = _best_atoms(correlations, remaining, gain)
        correlation = correlations.take(first + best)
        if k == 0:
            pivot = inverse = torch.ones_like(correlation)
            column = inverse[None]  # k + 1 batch
        else:
            chosen = factor[:k, :k]
            inner = (chosen * gram.take(gram_rows[:k] + best)[:, None]).sum(0)  # Fᵀ G_S,best
            pivot = 1 - inner.square().sum(0)
            inverse = pivot.clamp_min(min_pivot).rsqrt()
            column = torch.cat([(chosen * inner).sum(1).mul_(-inverse), inverse[None]])
        active &= (correlation.abs() > STOP) & (pivot > min_pivot)
        column = torch.where(active, column, 0)
        factor[: k + 1, k] = column
        gram_rows[k] = best * n_atoms
        support[:, k] = best * active
        step = torch.where(active, correlation * inverse, 0)
        coefficients[: k + 1] += column * step
        if k + 1 == n_nonzero or not active.any():
            break
        if remaining is None:
            correlations -= _gram_combination(support[:, : k + 1], column * step, gram)
        else:
            projected = _gram_combination(support[:, : k + 1], column, gram)
            correlations.addcmul_(projected, step[:, None], value=-1)
            remaining.addcmul_(projected, projected, value=-1)
    return support, coefficients.T


def _best_atoms(
    correlations: Float[Tensor, "batch atoms"],
    remaining: Float[Tensor, "batch atoms"] | None,
    gain: Float[Tensor, "batch atoms"],
) -> Int[Tensor, " batch"]:
    """Atom to choose next for each vector; `gain` is room to work in."""
    torch.abs(correlations, out=gain)
    if remaining is not None:
        # |α| / ‖(I − P_S) d‖, and nothing for atoms in the span of the chosen ones
        gain *= remaining.clamp_min(MIN_REMAINING).rsqrt_() * (remaining > MIN_REMAINING)
    if gain.device.type == "cpu":
        return torch.from_numpy(np.argmax(gain.numpy(), axis=1))  # torch's takes ten times as long
    return gain.argmax(1)


def _gram_combination(
    support: Int[Tensor, "batch k"], weights: Float[Tensor, "k batch"], gram: Tensor
) -> Float[Tensor, "batch atoms"]:
    """Σ_j w_j G[S_j] of each vector. Far faster as an embedding than as a batched product."""
    weights = weights.T.contiguous()
    return embedding_bag(support.contiguous(), gram, per_sample_weights=weights, mode="sum")


def project(
    x: Float[Tensor, "batch dim"],
    dictionary: Float[Tensor, "atoms dim"],
    support: Int[Tensor, "batch k"],
    used: Bool[Tensor, "batch k"],
) -> Float[Tensor, "batch dim"]:
    """Orthogonal projection P_S x onto the span of the chosen atoms, those where `used`.

    Differentiable in x: almost everywhere a small step of x leaves the support S as it is, and
    the derivative of the pursuit is P_S itself.
    """
    atoms = dictionary[support].double() * used[..., None]  # batch k dim
    gram = atoms @ atoms.mT + torch.diag_embed((~used).double())
    inner = atoms @ x.double()[..., None]  # batch k 1
    coefficients = torch.cholesky_solve(inner, torch.linalg.cholesky(gram))
    return (coefficients.mT @ atoms)[:, 0].to(x.dtype)
