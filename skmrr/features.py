"""Features of a torch network as a scikit-learn transformer."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import ClassVar, Literal

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import nn
from tqdm.auto import tqdm

from skmrr._sklearn import Interval, StrOptions, fit_context
from skmrr.callbacks import begin
from skmrr.networks import NetworkEstimator
from skmrr.nn.layer_features import LayerFeatures
from skmrr.nn.members import NetworkStep
from skmrr.nn.memory import rows_at_once
from skmrr.nn.tapped import Tapped
from skmrr.nn.trials import explaining, predict_labels
from skmrr.reading import RowReader


@dataclass(eq=False, repr=False)
class FeatureExtractor(TransformerMixin, RowReader, NetworkEstimator):
    """Outputs of named layers of a network, one feature vector per row.

    Parameters
    ----------
    model : nn.Module
        The network. It is left as it is, and ``clone`` shares it.
    layer : str or list of str
        Dotted name(s) of the layers, as in ``model.named_modules()``: ``"fc"`` for the output of
        a layer, ``"fc:input"`` for its input. The features of several layers are concatenated. Of
        a layer that a forward pass calls several times, the last call counts.
    pooling : {"flatten", "mean"}, default="flatten"
        ``flatten`` keeps every activation; ``mean`` averages over all positions: over height and
        width of (batch, channels, height, width), over tokens of (batch, tokens, dim).
    input_shape : tuple of int, optional
        Shape that each row of a 2-D X has for the network, e.g. ``(1, 28, 28)``.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; values outside raise a ``ValueError``.
    batch_size : "auto" or int, default="auto"
        Rows per forward pass. Features do not depend on it. ``"auto"``: as many as let the largest
        step of a pass take half a gibibyte, 256 at most.
    device : str or torch.device, default="auto"
        Where to compute from `fit` on; ``"auto"`` is where the network lives.
    verbose : bool, default=False
        Whether to show a progress bar.

    Attributes
    ----------
    reader_ : nn.Module
        Rows → features.
    n_features_in_ : int
        Number of values in a row of X.
    input_shape_ : tuple of int
        Shape of a row as the network sees it.
    layer_widths_ : dict of str to int
        Number of features of each layer.
    n_features_out_ : int
        Number of features.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skmrr import FeatureExtractor
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> X = np.ones((5, 4), dtype=np.float32)
    >>> FeatureExtractor(net, layer="1").fit_transform(X).shape
    (5, 8)
    """

    model: nn.Module
    layer: str | Sequence[str]
    _: KW_ONLY
    pooling: str = "flatten"
    input_shape: Sequence[int] | None = None
    clip_values: Sequence[float] | None = None
    batch_size: int | Literal["auto"] = "auto"
    device: str | torch.device = "auto"
    verbose: bool = False

    _parameter_constraints: ClassVar[dict] = {
        "model": [nn.Module],
        "layer": [str, list],
        "pooling": [StrOptions({"flatten", "mean"})],
        "input_shape": ["array-like", None],
        "clip_values": ["array-like", None],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "verbose": ["verbose"],
    }

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check layers and shapes on one row; nothing is learnt.

        Parameters
        ----------
        X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …)
            Rows in the network's own scale.
        y : None
            Ignored.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If a layer is unknown, the model cannot take the rows, X holds NaN or infinity, or a
            value leaves `clip_values`.
        """
        with begin(self).told():
            names = [self.layer] if isinstance(self.layer, str) else list(self.layer)
            if not names:
                raise ValueError("layer=[] names no layer; name at least one.")
            network = Tapped(self.model, names, self._device())
            rows = self._read_rows(X, reset=True)
            self.reader_ = NetworkStep(network, LayerFeatures(network.names, self.pooling))
            with explaining("The model", rows.shape), torch.no_grad():
                self._rows_at_once = rows_at_once(self.model, rows.take([0, 0]))
                outputs = network(rows.take([0, 0])).outputs
            parts = zip(names, self.reader_.reader.by_layer(outputs), strict=True)
            self.layer_widths_ = {name: part.shape[1] for name, part in parts}
            self.n_features_out_ = sum(self.layer_widths_.values())
        return self

    @torch.no_grad()
    def transform(self, X):
        """Features of each row.

        Parameters
        ----------
        X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …)
            Rows of the shape seen in `fit`.

        Returns
        -------
        features : ndarray of shape (n_samples, n_features)
            In the floating dtype of the network; float32 where that is bfloat16.
        """
        check_is_fitted(self, "reader_")
        rows = self._read_rows(X, reset=False)
        features: np.ndarray | None = None
        with tqdm(total=len(rows), desc="features", disable=not self.verbose) as progress:
            for positions, batch in rows.batches(self.batch_size_):
                part = self.reader_(batch).cpu()
                part = (part.float() if part.dtype == torch.bfloat16 else part).numpy()
                if features is None:
                    features = np.empty((len(rows), self.n_features_out_), dtype=part.dtype)
                features[positions] = part
                progress.update(len(batch))
        return features

    def predict(self, X):
        """Label of each row by the network's own logits, int64 of shape (n_samples,)."""
        check_is_fitted(self, "reader_")
        rows = self._read_rows(X, reset=False)
        return predict_labels(self.reader_.network, rows, self.batch_size_)

    def get_feature_names_out(self, input_features=None):
        """Names of the features, ``<layer>_<index>``, ndarray of str."""
        check_is_fitted(self, "reader_")
        widths = self.layer_widths_.items()
        return np.array([f"{name}_{i}" for name, width in widths for i in range(width)], object)
