"""The input defender: one patch dictionary per class, which clean rows are rebuilt well from."""

from contextlib import closing
from numbers import Integral

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from tqdm.auto import tqdm

from skmrr.base import BaseDetector
from skmrr.nn.dictionary_learning import learn_dictionary
from skmrr.nn.hooks import as_input, resolve_device
from skmrr.nn.patches import Patches
from skmrr.nn.reconstruction import ClassReconstruction, RelabelStatistic, ResidualStatistic

# Training rows of a class that say which PSNR is typical of it. Kept from its dictionary, which may
# know its own rows by heart.
TYPICAL_SHARE = 0.2
MAX_TYPICAL_ROWS = 1000
EXACT = 1e-8  # share of the mean square of X: a mean squared error that counts as none
MIN_SPREAD = 0.1  # dB, of the PSNR within a class


class InputDictionaryDefender(BaseDetector):
    """Detector of adversarial images by how well their class's dictionary reconstructs them.

    From the patches of each class a dictionary of unit atoms is learnt. A new image is rebuilt,
    patch by patch, from a few atoms of the dictionary of the class that the classifier names
    (orthogonal matching pursuit). A perturbation is nothing that these atoms are made for: it
    shows as a residual, or its removal changes the classifier's mind.

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
        Orthogonal matching pursuit, or its order-recursive kind: smaller residuals, dearer.
    n_patches : int, default=50000
        Patches of each class to learn from.
    max_iter : int, default=12
        Passes over them.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error.
    security_parameter : float, default=0.01
        Share of clean rows that may be flagged. Changing it on a fitted detector changes the
        verdicts and nothing else.
    calibration_fraction : float, default=0.2
        Share of the clean rows that `fit` holds out to calibrate on; 0 leaves that to `calibrate`.
    input_shape : tuple of int, optional
        Shape (channels, height, width) of each row of a 2-D X. Without it such a row is a patch.
    batch_size : int, default=256
        Rows read at a time. Scores do not depend on it.
    n_jobs : int, optional
        Threads of the pursuit, as joblib counts them: None is 1, -1 all processors.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` is where `classifier` lives, else the CPU.
    random_state : int, RandomState or None, default=None
        Seed of split, patches and dictionaries.
    verbose : bool, default=False
        Whether to show progress bars.

    Attributes
    ----------
    dictionaries_ : ndarray of shape (n_classes, n_atoms, patch_dim), float32
        Unit atoms of each class; zeros where there were fewer patches than atoms.
    module_ : skmrr.nn.DetectorModule
        The fitted detector, ``forward(x, labels)`` → score, differentiable through the chosen
        atoms.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    history_ : list of list of float
        Relative residual of the patches in each pass, for each class.
    n_iter_ : int
        Passes over the patches.
    offset_ : float
        Threshold on the score, log(`security_parameter`).
    n_features_in_, input_shape_ : int, tuple of int
        Values in a row of X; shape of a row as it is cut into patches.

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

    _parameter_constraints: dict = {
        **BaseDetector._parameter_constraints,
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
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        classifier=None,
        *,
        statistic="residual",
        patch_size=7,
        stride=2,
        n_atoms=225,
        n_nonzero_coefs=5,
        remove_mean=False,
        selection="omp",
        n_patches=50_000,
        max_iter=12,
        clip_values=None,
        security_parameter=0.01,
        calibration_fraction=0.2,
        input_shape=None,
        batch_size=256,
        n_jobs=None,
        device="auto",
        random_state=None,
        verbose=False,
    ):
        self.classifier = classifier
        self.statistic = statistic
        self.patch_size = patch_size
        self.stride = stride
        self.n_atoms = n_atoms
        self.n_nonzero_coefs = n_nonzero_coefs
        self.remove_mean = remove_mean
        self.selection = selection
        self.n_patches = n_patches
        self.max_iter = max_iter
        self.clip_values = clip_values
        self.security_parameter = security_parameter
        self.calibration_fraction = calibration_fraction
        self.input_shape = input_shape
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

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
            Not clipped to `clip_values`.
        """
        check_is_fitted(self, "module_")
        rows, labels = self._read_for_scoring(X, labels)
        reconstruction = self.module_.get_submodule("statistic.reconstruction")
        parts = []
        with closing(self._decided_batches(rows, labels)) as batches:
            for _, x, decided in batches:
                if decided is None:
                    column = self.module_.statistic(x).argmin(1)
                else:
                    column = self.module_.columns_of(decided)
                parts.append(reconstruction(x, column).cpu())
        return torch.cat(parts).numpy()

    def _fit_statistic(self, rows, columns, train, random_state):
        if self.statistic == "relabel" and self.classifier is None:
            raise ValueError("statistic='relabel' asks the classifier again: give classifier=….")
        patches = Patches(rows.shape, self.patch_size, self.stride)
        if self.remove_mean and patches.dim == 1:
            raise ValueError(
                "remove_mean=True leaves nothing of patches of 1 feature(s); set it to False."
            )
        shuffled = random_state.permutation(train)
        of_class = [shuffled[columns[shuffled] == c] for c in range(len(self.classes_))]
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
                generator=torch.Generator().manual_seed(random_state.randint(2**31 - 1)),
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
        device = resolve_device(self.device, self.classifier)
        reconstruction.to(device)
        if self.statistic == "relabel":
            classes = torch.as_tensor(self.classes_, device=device)
            return RelabelStatistic(reconstruction, self.classifier, classes)
        statistic = ResidualStatistic(reconstruction, self._floor(rows, train)).to(device)
        for c, indices in enumerate(of_class):
            typical = indices[: max(1, _n_typical(indices))]
            self._fit_typical(statistic, rows, typical, c, device)
        return statistic

    def _sample_patches(self, rows, indices, patches, random_state) -> torch.Tensor:
        """Random patches of the rows at `indices`, about as many of each row."""
        indices = indices[: self.n_patches]
        each = min(patches.n_patches, -(-self.n_patches // len(indices)))
        parts = []
        for _, batch in rows.batches(self.batch_size, indices):
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
        batches = rows.batches(self.batch_size, sample)
        squares = sum(float(batch.double().square().sum()) for _, batch in batches)
        mean_square = squares / (len(sample) * self.n_features_in_)
        return EXACT * mean_square or np.finfo(np.float64).tiny

    @torch.no_grad()
    def _fit_typical(self, statistic, rows, indices, c, device) -> None:
        parts = []
        for _, batch in rows.batches(self.batch_size, indices):
            x = as_input(batch, statistic, device)
            parts.append(statistic.decibels(x, torch.full((len(x),), c, device=device)))
        decibels = torch.cat(parts)
        statistic.mean[c] = decibels.mean()
        statistic.std[c] = decibels.std(correction=0).clamp_min(MIN_SPREAD)


def _n_typical(indices: np.ndarray) -> int:
    return min(MAX_TYPICAL_ROWS, int(TYPICAL_SHARE * len(indices)))
