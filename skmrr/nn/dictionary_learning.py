"""Dictionary learning: unit atoms of which few reconstruct a vector well.

Online dictionary learning (Mairal, Bach, Ponce, Sapiro 2009) with the codes of our own pursuit.
With the codes γ of vectors x, the statistics A = Σ γ γᵀ and B = Σ γ xᵀ are all that an update of
the atoms needs: block-coordinate descent on Σ ‖x − Dᵀγ‖², atom by atom. The first passes over the
data update the atoms after each mini-batch, forgetting old statistics; the last ones code all of
the data each, so that A and B are exact. Atoms that no code uses are replaced by vectors that the
dictionary reconstructs worst.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import trange

from skmrr.nn.sparse_coding import SparseCoder, SparseCodes

BATCH = 2048  # vectors between two updates, whose dense codes are held at once
FORGETTING = 0.9  # weight of the online statistics from one mini-batch to the next
EXACT = 1e-8  # squared relative residual of a vector that asks for no atom more


def learn_dictionary(
    x: Float[Tensor, "batch dim"],
    n_atoms: int,
    n_nonzero: int,
    *,
    max_iter: int = 12,
    selection: str = "omp",
    n_jobs: int | None = None,
    generator: torch.Generator | None = None,
    verbose: bool = False,
) -> tuple[Float[Tensor, "atoms dim"], list[float]]:
    """Learn a dictionary that reconstructs vectors by few atoms.

    Parameters
    ----------
    x : Tensor of shape (batch, dim)
        Vectors. Zero vectors teach nothing and are left out.
    n_atoms : int
        Number of atoms. Fewer distinct vectors than that make as many atoms, and zeros the rest.
    n_nonzero : int
        Atoms in the code of a vector.
    max_iter : int, default=12
        Passes over the vectors: three quarters online, the others with exact statistics.
    selection : {"omp", "ormp"}, default="omp"
        How the pursuit chooses atoms.
    n_jobs : int, optional
        Threads of the pursuit.
    generator : torch.Generator, optional
        Source of randomness.
    verbose : bool, default=False
        Whether to show a progress bar.

    Returns
    -------
    dictionary : Tensor of shape (atoms, dim), float32
        Unit atoms.
    history : list of float
        Relative residual √(Σ‖x − x̂‖² / Σ‖x‖²) of the vectors in each pass.

    Raises
    ------
    ValueError
        If all vectors are zero.
    """
    x = x.float()
    x = x[torch.randperm(len(x), generator=generator)]
    x = x[x.abs().amax(1) > 0]
    if len(x) == 0:
        raise ValueError("All patches are zero; a dictionary needs patches that hold something.")
    dictionary = _first_atoms(x, n_atoms)
    history = []
    with trange(max_iter, desc="dictionary", disable=not verbose, leave=False) as passes:
        for iteration in passes:
            learner = _Pass(dictionary, n_nonzero, selection, n_jobs)
            if iteration < 3 * max_iter // 4:
                for batch in x.split(BATCH):
                    learner.forget()
                    learner.add(batch)
                    learner.update()
            else:
                learner.add(x)
                learner.update()
            dictionary = learner.with_dead_atoms_replaced(x, generator)
            history.append(learner.residual)
            passes.set_postfix(residual=f"{learner.residual:.4f}")
    return dictionary, history


class _Pass:
    """One pass over the vectors: statistics of their codes, and atoms fitted to these."""

    def __init__(self, dictionary, n_nonzero, selection, n_jobs):
        self.dictionary = dictionary
        self.settings = {"n_nonzero": n_nonzero, "selection": selection, "n_jobs": n_jobs}
        n_atoms, dim = dictionary.shape
        self.codes_codes = dictionary.new_zeros(n_atoms, n_atoms)  # A
        self.codes_x = dictionary.new_zeros(n_atoms, dim)  # B
        self.use = dictionary.new_zeros(n_atoms)  # Σ γ² of each atom
        self.energy = self.error = 0.0

    @property
    def residual(self) -> float:
        return (max(self.error, 0.0) / self.energy) ** 0.5

    def forget(self) -> None:
        self.codes_codes *= FORGETTING
        self.codes_x *= FORGETTING

    def add(self, x: Tensor) -> None:
        codes = SparseCoder(self.dictionary, **self.settings).encode(x)
        gram = self.dictionary @ self.dictionary.T
        for rows, *part in zip(x.split(BATCH), *(c.split(BATCH) for c in codes), strict=True):
            dense = SparseCodes(*part).dense(len(self.dictionary))
            codes_codes, codes_x = dense.T @ dense, dense.T @ rows
            # ‖x − Dᵀγ‖² = ‖x‖² − 2 ⟨γ xᵀ, D⟩ + ⟨γ γᵀ, D Dᵀ⟩
            energy = float(torch.linalg.vector_norm(rows)) ** 2
            fitted = 2 * (codes_x * self.dictionary).sum() - (codes_codes * gram).sum()
            self.energy += energy
            self.error += energy - float(fitted)
            self.codes_codes += codes_codes
            self.codes_x += codes_x
            self.use += codes_codes.diagonal()

    def update(self) -> None:
        """Block-coordinate descent on the atoms in use (Mairal et al. 2009, algorithm 2)."""
        scale = self.codes_codes.diagonal()
        used = torch.nonzero(scale > 1e-6 * scale.max())[:, 0].tolist()
        for j in used:
            atom = self.codes_x[j] - self.codes_codes[j] @ self.dictionary
            atom += scale[j] * self.dictionary[j]
            length = torch.linalg.vector_norm(atom)
            if length > 0:
                torch.div(atom, length, out=self.dictionary[j])

    def with_dead_atoms_replaced(self, x, generator) -> Tensor:
        dead = torch.nonzero(self.use == 0)[:, 0]
        if len(dead):
            sample = x[torch.randint(len(x), (min(len(x), BATCH),), generator=generator)]
            residual = sample - SparseCoder(self.dictionary, **self.settings)(sample)
            error, worst = residual.square().sum(1).topk(min(len(dead), len(sample)))
            worst = worst[error > EXACT * sample.square().sum(1)[worst]]
            self.dictionary[dead[: len(worst)]] = normalize(sample[worst], dim=1)
        return self.dictionary


def _first_atoms(x: Tensor, n_atoms: int) -> Tensor:
    """Random distinct vectors as unit atoms, and zeros where these do not suffice."""
    distinct = torch.unique(normalize(x[: 4 * n_atoms], dim=1), dim=0)
    distinct = distinct[torch.linspace(0, len(distinct) - 1, min(n_atoms, len(distinct))).long()]
    return torch.cat([distinct, x.new_zeros(n_atoms - len(distinct), x.shape[1])])
