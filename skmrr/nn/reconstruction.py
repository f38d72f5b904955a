"""Rows reconstructed by the dictionary of a class, and how odd that makes them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr.nn.patches import Patches
from skmrr.nn.sparse_coding import SparseCoder
from skmrr.nn.statistic import ColumnStatistic, against_best_other
from skmrr.nn.tapped import Pass, Tapped


class ClassReconstruction(nn.Module):
    """Reconstructs rows by the patch dictionary of a class each.

    Parameters
    ----------
    patches : Patches
        How a row is cut.
    dictionaries : list of Tensor of shape (atoms, dim)
        One for each class.
    n_nonzero : int
        Atoms per patch.
    remove_mean : bool
        Whether the mean of a patch is set aside before it is coded.
    selection : {"omp", "ormp"}
        How the pursuit chooses atoms.
    n_jobs : int
        Threads of the pursuit.
    """

    def __init__(self, patches: Patches, dictionaries, n_nonzero, remove_mean, selection, n_jobs):
        super().__init__()
        self.patches = patches
        self.remove_mean = remove_mean
        self.coders = nn.ModuleList(
            SparseCoder(dictionary, n_nonzero, selection=selection, n_jobs=n_jobs)
            for dictionary in dictionaries
        )

    def forward(self, x: Tensor, columns: Int[Tensor, " batch"]) -> Tensor:
        """Reconstruction of each row by the dictionary at its column, of the shape of `x`."""
        reconstruction = torch.empty_like(x)
        for c in columns.unique().tolist():
            for index in torch.nonzero(columns == c)[:, 0].split(self.patches.rows_at_once):
                reconstruction[index] = self._reconstruct(x[index], self.coders[c])
        return reconstruction

    def _reconstruct(self, x: Tensor, coder: nn.Module) -> Tensor:
        patches = self.patches.extract(x)
        mean = patches.mean(2, keepdim=True) if self.remove_mean else 0.0
        vectors = patches - mean
        coded = coder(vectors.flatten(0, 1)).view_as(vectors)
        return self.patches.combine(coded + mean)


class ResidualStatistic(ColumnStatistic):
    """By how many standard deviations a row's PSNR falls short of what is typical of a class.

    ``PSNR = 10 log₁₀(peak² / MSE)`` of a row against its reconstruction; the peak cancels out.

    Parameters
    ----------
    reconstruction : ClassReconstruction
        Of each row by a class.
    floor : float
        Mean squared error, in squared units of the rows, that counts as none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, reconstruction: ClassReconstruction, floor: float):
        n_classes = len(reconstruction.coders)
        super().__init__(n_classes)
        self.reconstruction = reconstruction
        self.floor = floor
        self.register_buffer("mean", torch.zeros(n_classes, dtype=torch.float64))
        self.register_buffer("std", torch.ones(n_classes, dtype=torch.float64))

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under one class."""
        return (self.decibels(x, columns) - self.mean[columns]) / self.std[columns]

    def decibels(self, x: Tensor, columns: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """−PSNR of each row, up to a constant."""
        error = (x - self.reconstruction(x, columns)).double().flatten(1).square().mean(1)
        return 10 * (error + self.floor).log10()


class RelabelStatistic(ColumnStatistic):
    """By how much the classifier, shown the reconstruction, prefers another class.

    max_{j≠ŷ} z_j(x̂) − z_ŷ(x̂) of its logits z: the classifier changes its mind where this is
    positive, and the number says how firmly.

    Parameters
    ----------
    reconstruction : ClassReconstruction
        Of each row by a class.
    classifier : Tapped
        Rows → logits; it is run once more.
    classes : Tensor of shape (classes,)
        The classifier's number of each class.
    """

    classes: Tensor

    def __init__(self, reconstruction: ClassReconstruction, classifier: Tapped, classes: Tensor):
        super().__init__(len(classes))
        self.reconstruction = reconstruction
        self.classifier = classifier
        self.register_buffer("classes", classes)

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under one class."""
        logits = self.classifier(self.reconstruction(x, columns)).logits
        return against_best_other(logits.double()).gather(1, self.classes[columns][:, None])[:, 0]
