"""The input defender: one patch dictionary per class, which clean rows are rebuilt well from."""

from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from tqdm.auto import tqdm

from skmrr._sklearn import Interval, StrOptions
from skmrr.base import StatisticDetector
from skmrr.nn.dictionary_learning import learn_dictionary
from skmrr.nn.learnt_classes import LearntClasses, OfLearntClasses
from skmrr.nn.patches import Patches
from skmrr.nn.placement import as_input, draw_seed
from skmrr.nn.reconstruction import ClassReconstruction, RelabelStatistic, ResidualStatistic

# Training rows of a class that say which PSNR is typical of it. Kept from its dictionary, which may
# know its own rows by heart.
TYPICAL_SHARE = 0.2
MAX_TYPICAL_ROWS = 1000
EXACT = 1e-8  # share of the mean square of X: a mean squared error that counts as none
MIN_SPREAD = 0.1  # dB, of the PSNR within a class


@dataclass(eq=False, repr=False)
class InputDictionaryDefender(StatisticDetector):
    """Detector of adversarial images by how well their class's dictionary reconstructs them.

    From the patches of each class a dictionary of unit atoms is learnt. A new image is rebuilt,
    patch by patch, from a few atoms of the dictionary of the class that the classifier names
    (orthogonal matching pursuit). A perturbation is nothing that these atoms are made for: it
    shows as a residual, or its removal changes the classifier's mind.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. It is only asked, for its decisions and, by
        ``statistic="relabel"``, which needs it, for its logits.
    statistic : {"residual", "relabel"}, default="residual"
        ``residual``: the PSNR of an image against its reconstruction, beside what is typical of
        the class. ``relabel``: max_{j≠ŷ} z_j − z_ŷ of the classifier's logits z for the
        reconstruction, ŷ being its decision for the image.
    patch_size : int, default=7
        Side of the square patches, in pixels; they hold all channels. Flat rows are one patch.
    stride : int, default=2
        Step between patches, in pixels; `patch_size` for distinct ones.
    n_atoms : int, default=225
        Atoms of each dictionary.
    n_nonzero_coefs : int, default=5
        Atoms that a patch may be rebuilt from.
    remove_mean : bool, default=False
        Whether to set aside the mean of a patch, so that the atoms need not spend on brightness.
    selection : {"omp", "ormp"}, default="omp"
        Orthogonal matching pursuit, or its order-recursive kind: smaller residuals, slower.
    n_patches : int, default=50000
        Patches of each class to learn from.
    max_iter : int, default=12
        Passes over them.
    input_shape : tuple of int, optional
        Shape (channels, height, width) of each row of a 2-D X. Without it such a row is a patch.
    n_jobs : int, optional
        Threads of the pursuit, as joblib counts them: None is 1, -1 all processors.

    Attributes
    ----------
    dictionaries_ : ndarray of shape (n_learnt, n_atoms, patch_dim), float32
        Unit atoms of each class that has training rows; zeros where there were fewer patches than
        atoms.
    history_ : list of list of float
        Relative residual of the patches in each pass, for each class.
    n_iter_ : int
        Passes over the patches.

    See Also
    --------
    LatentDefender : Detector in a latent space.

    References
    ----------
    B. D. Rouhani, M. Samragh, M. Javaheripi, T. Javidi, F. Koushanfar, "DeepFense", ICCAD 2018.

    R. Rubinstein, M. Zibulevsky, M. Elad, "Efficient Implementation of the K-SVD Algorithm using
    Batch Orthogonal Matching Pursuit", Technion 2008.

    J. Mairal, F. Bach, J. Ponce, G. Sapiro, "Online Dictionary Learning for Sparse Coding", ICML
    2009.

    Examples
    --------
    >>> import numpy as np
    >>> from skmrr import InputDictionaryDefender
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> defender = InputDictionaryDefender(
    ...     patch_size=4, n_atoms=32, n_nonzero_coefs=2, clip_values=(0, 1), random_state=0
    ... ).fit(X[:1500], y[:1500])
    >>> noisy = np.clip(X[1500:] + np.random.default_rng(0).normal(0, 0.4, X[1500:].shape), 0, 1)
    >>> bool((defender.predict(noisy) == -1).mean() > 0.9)
    True
    """

    _: KW_ONLY
    statistic: str = "residual"
    patch_size: int = 7
    stride: int = 2
    n_atoms: int = 225
    n_nonzero_coefs: int = 5
    remove_mean: bool = False
    selection: str = "omp"
    n_patches: int = 50_000
    max_iter: int = 12
    n_jobs: int | None = None

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "statistic": [StrOptions({"residual", "relabel"})],
        "patch_size": [Interval(Integral, 1, None, closed="left")],
        "stride": [Interval(Integral, 1, None, closed="left")],
        "n_atoms": [Interval(Integral, 1, None, closed="left")],
        "n_nonzero_coefs": [Interval(Integral, 1, None, closed="left")],
        "remove_mean": ["boolean"],
        "selection": [StrOptions({"omp", "ormp"})],
        "n_patches": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "n_jobs": [Integral, None],
    }

    def reconstruct(self, X, *, labels=None):
        """Rebuild each row from the atoms of its class.

        Parameters
        ----------
        X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …)
            Rows of the shape and scale seen in `fit`.
        labels : array-like of shape (n_samples,), optional
            The classes; by default the classifier's decisions, and without a classifier the
            nearest class of each row.

        Returns
        -------
        reconstruction : ndarray of shape (n_samples, …)
            Not clipped to `clip_values`; NaN for a row of a class without a dictionary.
        """
        check_is_fitted(self, "evidence_")
        statistic = self.statistic_
        positions = None
        if isinstance(statistic, OfLearntClasses):
            positions, statistic = statistic.positions, statistic.statistic

        def rebuild(x, decided):
            columns = self.evidence_(x, decided).columns
            if positions is not None:
                columns = positions[columns]
            rebuilt = statistic.reconstruction(as_input(x, self.evidence_), columns.clamp_min(0))
            is_known = (columns >= 0).view(-1, *[1] * (rebuilt.ndim - 1))
            return (torch.where(is_known, rebuilt, torch.nan),)

        return self._stream(rebuild, *self._read_for_scoring(X, labels))[0]

    def _check_shape(self, shape):
        Patches(shape, self.patch_size, self.stride)

    def _fit_statistic(self, rows, columns, train, random_state):
        if self.statistic == "relabel" and self.classifier is None:
            raise ValueError("statistic='relabel' asks the classifier again: give classifier=….")
        patches = Patches(rows.shape, self.patch_size, self.stride)
        if self.remove_mean and patches.dim == 1:
            raise ValueError(
                "remove_mean=True leaves nothing of patches of 1 feature(s); set it to False."
            )
        shuffled = random_state.permutation(train)
        learnt = LearntClasses(columns, train, len(self.classes_))
        of_class = [shuffled[columns[shuffled] == c] for c in learnt.learnt]
        dictionaries, self.history_ = [], []
        for indices in tqdm(of_class, desc="classes", disable=not self.verbose, leave=False):
            if self.statistic == "residual":
                indices = indices[_n_typical(indices) :]
            sample = self._sample_patches(rows, indices, patches, random_state)
            dictionary, history = learn_dictionary(
                sample,
                self.n_atoms,
                self.n_nonzero_coefs,
                max_iter=self.max_iter,
                selection=self.selection,
                n_jobs=self.n_jobs,
                generator=torch.Generator().manual_seed(draw_seed(random_state)),
                verbose=self.verbose,
            )
            dictionaries.append(dictionary)
            self.history_.append(history)
        self.n_iter_ = self.max_iter
        self.dictionaries_ = torch.stack(dictionaries).numpy()
        reconstruction = ClassReconstruction(
            patches,
            dictionaries,
            self.n_nonzero_coefs,
            self.remove_mean,
            self.selection,
            self.n_jobs,
        )
        device = self._device()
        reconstruction.to(device)
        if self.statistic == "relabel":
            classifier = self._tapped()
            assert classifier is not None
            classes = torch.as_tensor(self.classes_[learnt.learnt])
            return learnt.widen(RelabelStatistic(reconstruction, classifier, classes))
        statistic = ResidualStatistic(reconstruction, self._floor(rows, train)).to(device)
        for c, indices in enumerate(of_class):
            typical = indices[: max(1, _n_typical(indices))]
            self._fit_typical(statistic, rows, typical, c, device)
        return learnt.widen(statistic).to(device)

    def _sample_patches(self, rows, indices, patches, random_state) -> torch.Tensor:
        """Random patches of the rows at `indices`, about as many of each row."""
        indices = indices[: self.n_patches]
        each = min(patches.n_patches, -(-self.n_patches // len(indices)))
        parts = []
        for _, batch in rows.batches(self.batch_size_, indices):
            for x in batch.float().split(patches.rows_at_once):
                cut = patches.extract(x)  # batch patches dim
                order = torch.as_tensor(
                    random_state.random_sample(cut.shape[:2]).argsort(1)[:, :each]
                )
                parts.append(
                    cut.gather(1, order[..., None].expand(-1, -1, cut.shape[2])).flatten(0, 1)
                )
        sample = torch.cat(parts)[: self.n_patches]
        return sample - sample.mean(1, keepdim=True) if self.remove_mean else sample

    def _floor(self, rows, train) -> float:
        sample = train[:MAX_TYPICAL_ROWS]
        batches = rows.batches(self.batch_size_, sample)
        squares = sum(float(batch.double().square().sum()) for _, batch in batches)
        mean_square = squares / (len(sample) * self.n_features_in_)
        return EXACT * mean_square or np.finfo(np.float64).tiny

    @torch.no_grad()
    def _fit_typical(self, statistic, rows, indices, c, device) -> None:
        parts = []
        for _, batch in rows.batches(self.batch_size_, indices):
            x = as_input(batch, statistic)
            parts.append(statistic.decibels(x, torch.full((len(x),), c, device=device)))
        decibels = torch.cat(parts)
        statistic.mean[c] = decibels.mean()
        statistic.std[c] = decibels.std(correction=0).clamp_min(MIN_SPREAD)


def _n_typical(indices: np.ndarray) -> int:
    return min(MAX_TYPICAL_ROWS, int(TYPICAL_SHARE * len(indices)))
