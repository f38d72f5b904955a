"""Sparse codes of vectors over a dictionary, by orthogonal matching pursuit."""

import functools
import importlib.util
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from joblib import effective_n_jobs
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from skmrr.nn.pursuit import MIN_PIVOT, MIN_REMAINING, STOP, project, pursue

CHUNK_VALUES = 2**19  # correlations of one chunk: calls cost more in small ones, memory in large
MOST_ATOMS = 2**16  # in a code
LANES = 16  # multiple that the number of atoms is padded to, for vector registers
Pursuit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SparseCodes(NamedTuple):
    """Sparse codes of a batch."""

    support: Int[Tensor, "batch k"]
    """Chosen atoms in the order of their choice, int32."""
    coefficients: Float[Tensor, "batch k"]
    """Their coefficients, zero where a vector took fewer than k atoms."""

    def dense(self, n_atoms: int) -> Float[Tensor, "batch atoms"]:
        """Codes with a column for every atom."""
        codes = self.coefficients.new_zeros(len(self.support), n_atoms)
        return codes.scatter_add_(1, self.support.long(), self.coefficients)


class SparseCoder(nn.Module):
    """Codes vectors by at most `n_nonzero` atoms of a dictionary.

    Exact orthogonal matching pursuit in the form of Batch-OMP (Rubinstein, Zibulevsky, Elad 2008),
    in float32, the Gram matrix being computed in float64. Vectors are scaled to unit length first,
    and a pursuit ends early when what is left of one is no more than rounding.

    Parameters
    ----------
    dictionary : array-like or Tensor of shape (atoms, dim)
        Atoms, scaled to unit length. Zero atoms are allowed and never chosen.
    n_nonzero : int
        Largest number of atoms in a code.
    selection : {"omp", "ormp"}, default="omp"
        ``omp`` takes the atom most correlated with the residual, ``ormp`` (order-recursive) the
        one that leaves the smallest residual; a little slower.
    backend : {"auto", "torch", "numba"}, default="auto"
        ``auto`` takes numba on the CPU where it is installed. The codes are the same.
    n_jobs : int, optional
        Threads, each of which codes chunks of its own, as joblib counts them: None is 1, -1 all
        processors.

    Raises
    ------
    ValueError
        If the dictionary holds NaN or infinity, or a parameter is none of these.

    Examples
    --------
    >>> import torch
    >>> from skmrr.nn import SparseCoder
    >>> atoms = torch.eye(4)
    >>> coder = SparseCoder(atoms, n_nonzero=2)
    >>> codes = coder.encode(torch.tensor([[0.5, 0.0, -3.0, 1.0]]))
    >>> codes.support, codes.coefficients
    (tensor([[2, 3]], dtype=torch.int32), tensor([[-3.,  1.]]))
    >>> coder(torch.tensor([[0.5, 0.0, -3.0, 1.0]]))
    tensor([[ 0.,  0., -3.,  1.]])
    """

    dictionary: Tensor
    gram: Tensor

    def __init__(
        self,
        dictionary,
        n_nonzero: int,
        *,
        selection: str = "omp",
        backend: str = "auto",
        n_jobs: int | None = None,
    ):
        super().__init__()
        dictionary = torch.as_tensor(dictionary)
        if dictionary.ndim != 2 or not torch.isfinite(dictionary).all():
            raise ValueError("The dictionary must be finite and of shape (atoms, dim).")
        if selection not in ("omp", "ormp"):
            raise ValueError(f"selection={selection!r} must be 'omp' or 'ormp'.")
        if backend not in ("auto", "torch", "numba"):
            raise ValueError(f"backend={backend!r} must be 'auto', 'torch' or 'numba'.")
        if not 1 <= n_nonzero <= MOST_ATOMS:
            raise ValueError(f"n_nonzero={n_nonzero} must be from 1 to {MOST_ATOMS}.")
        self.n_nonzero = n_nonzero
        self.selection = selection
        self.backend = backend
        self.n_jobs = n_jobs
        self.straight_through = False  # for attacks: gradients pass as if nothing were coded
        # Zero atoms fill the last vector register.
        padded = nn.functional.pad(dictionary.double(), (0, 0, 0, -len(dictionary) % LANES))
        padded = nn.functional.normalize(padded, dim=1)
        self.register_buffer("dictionary", padded.float())
        self.register_buffer("gram", (padded @ padded.T).float())

    def encode(self, x: Float[Tensor, "batch dim"]) -> SparseCodes:
        """Codes of the rows of `x`.

        Raises
        ------
        ValueError
            If `x` holds NaN or infinity.
        """
        support = torch.empty(len(x), self.n_nonzero, dtype=torch.int32, device=x.device)
        coefficients = x.new_empty(len(x), self.n_nonzero, dtype=torch.float32)

        def keep(rows: slice, codes: SparseCodes) -> None:
            support[rows], coefficients[rows] = codes

        self._code_chunks(x, keep)
        return SparseCodes(support, coefficients)

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Reconstruct the rows of `x` from their codes, which are never held all at once.

        Differentiable: backward goes through the orthogonal projection onto the chosen atoms,
        which is the exact derivative almost everywhere.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            if self.straight_through:
                with torch.no_grad():
                    change = self(x) - x
                return x + change
            support, coefficients = self.encode(x)
            return project(x, self.dictionary, support.long(), coefficients != 0)
        reconstruction = torch.empty_like(x)

        def keep(rows: slice, codes: SparseCodes) -> None:
            reconstruction[rows] = embedding_bag(
                codes.support,
                self.dictionary,
                per_sample_weights=codes.coefficients,
                mode="sum",
            )

        self._code_chunks(x, keep)
        return reconstruction

    @torch.no_grad()
    def _code_chunks(self, x: Tensor, keep: Callable[[slice, SparseCodes], None]) -> None:
        """Code `x` chunk by chunk, each on a single thread, and hand the codes to `keep`."""
        if x.shape[1] != self.dictionary.shape[1]:
            raise ValueError(
                f"x has {x.shape[1]} values a row, but the atoms have {self.dictionary.shape[1]}."
            )
        self._check_sizes()
        pursuit = self._pursuit(x.device)
        size = max(1, CHUNK_VALUES // len(self.dictionary))

        def code(start: int, stop: int) -> None:
            unit = x.new_zeros(size, x.shape[1], dtype=torch.float32)
            correlations = x.new_empty(size, len(self.dictionary), dtype=torch.float32)
            for first in range(start, stop, size):
                rows = slice(first, min(first + size, stop))
                keep(rows, self._code(x[rows], pursuit, unit, correlations))

        # Several chunks a task, as each task allocates; not too many, so that Ctrl-C ends soon.
        bounds = [*range(0, len(x), 4 * size), len(x)]
        n_jobs = effective_n_jobs(self.n_jobs)
        with _one_thread:
            if n_jobs == 1 or x.device.type != "cpu" or len(bounds) <= 2:
                code(0, len(x))
                return
            pool = ThreadPoolExecutor(n_jobs, initializer=torch.set_num_threads, initargs=(1,))
            try:
                for _ in pool.map(torch.no_grad()(code), bounds[:-1], bounds[1:]):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)

    def _check_sizes(self) -> None:
        """Raise a ValueError where compiled code, which trusts them, would leave its arrays."""
        n_atoms = self.dictionary.shape[0]
        kinds = {self.dictionary.dtype, self.gram.dtype}
        if (
            self.gram.shape != (n_atoms, n_atoms)
            or kinds != {torch.float32}
            or not 1 <= self.n_nonzero <= MOST_ATOMS
        ):
            raise ValueError(
                f"A dictionary of {n_atoms} atoms, {self.n_nonzero} of them in a code, does not go "
                f"with a Gram matrix of shape {tuple(self.gram.shape)}."
            )

    def _code(self, x: Tensor, pursuit: Pursuit, unit: Tensor, correlations: Tensor) -> SparseCodes:
        """Codes of one chunk; `unit` and `correlations` are room to work in."""
        norms = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
        if not torch.isfinite(norms).all():
            raise ValueError("Vectors to code contain NaN or infinity; drop or impute those.")
        norms = norms.float()
        # Rounding is relative to a vector's length, and so is what counts as nothing left.
        torch.div(x, norms.clamp_min(torch.finfo(torch.float32).tiny), out=unit[: len(x)])
        # Always of one size: products of other shapes round differently.
        torch.mm(unit, self.dictionary.T, out=correlations)
        support, coefficients = pursuit(correlations[: len(x)], self.gram)
        return SparseCodes(support, coefficients.mul_(norms))

    def _pursuit(self, device: torch.device) -> Pursuit:
        has_numba = importlib.util.find_spec("numba") is not None
        if self.backend == "numba" and not has_numba:
            raise ValueError("backend='numba' needs numba: pip install 'skmrr[fast]'.")
        if self.backend == "torch" or not has_numba or device.type != "cpu":
            return functools.partial(
                pursue, n_nonzero=self.n_nonzero, order_recursive=self.selection == "ormp"
            )
        return self._compiled_pursuit()

    def _compiled_pursuit(self) -> Pursuit:
        from skmrr._pursuit_numba import compiled_pursuit

        order_recursive = self.selection == "ormp"
        min_pivot = MIN_REMAINING if order_recursive else MIN_PIVOT
        kernel = compiled_pursuit(len(self.dictionary), order_recursive, STOP, min_pivot)

        def pursuit(correlations: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
            support = torch.empty(len(correlations), self.n_nonzero, dtype=torch.int32)
            coefficients = torch.empty(len(correlations), self.n_nonzero)
            arrays = (part.contiguous().numpy() for part in (correlations, gram))
            kernel(*arrays, self.n_nonzero, support.numpy(), coefficients.numpy())
            return support, coefficients

        return pursuit


class _OneThread:
    """Keeps torch to one thread: on chunks as small as these more cost far more than they bring.

    Threads may enter at the same time: the last one to leave restores the number.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.n_inside = self.before = 0

    def __enter__(self):
        with self.lock:
            if self.n_inside == 0:
                self.before = torch.get_num_threads()
            self.n_inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *error):
        with self.lock:
            self.n_inside -= 1
            if self.n_inside == 0:
                torch.set_num_threads(self.before)


_one_thread = _OneThread()
