"""Data sets and loaders are read as their owner has them, or refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, WeightedRandomSampler

from skmrr import LatentDefender, MarginDetector, MRREnsemble
from skmrr.nn.rows import Rows

from .table import SHARED


class Labelled(Dataset):
    """Images with labels of any kind, and a count of how often each was read."""

    def __init__(self, X, labels):
        self.X, self.labels = X, labels
        self.n_read = np.zeros(len(X), dtype=int)

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        self.n_read[i] += 1
        return torch.as_tensor(self.X[i]), self.labels[i]


class Torn(Labelled):
    """A folder with a file that cannot be read."""

    def __getitem__(self, i):
        if i == 37:
            raise OSError("image file is truncated")
        return super().__getitem__(i)


def halving(items):
    """Make a batch of half the brightness."""
    return torch.stack([x for x, _ in items]) / 2, torch.tensor([int(y) for _, y in items])


def as_dict(items):
    return {"pixel_values": torch.stack([x for x, _ in items])}


@pytest.fixture(scope="module")
def detector(net, digits):
    return MarginDetector(net, **SHARED).fit(digits[0][:400], digits[1][:400])


@pytest.fixture(scope="module")
def some(digits):
    return digits[0][1000:1050], digits[1][1000:1050]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_collate_fn_and_workers_are_honoured(detector, some, n_workers):
    loader = DataLoader(Labelled(*some), 8, collate_fn=halving, num_workers=n_workers)
    np.testing.assert_array_equal(detector.risk(loader), detector.risk(some[0] / 2))


def test_a_fit_reads_through_the_loader(net, some, digits):
    loader = DataLoader(Labelled(digits[0][:300], digits[1][:300]), 8, collate_fn=halving)
    params = {"estimator": LatentDefender(max_epochs=1), **SHARED}
    from_loader = MRREnsemble(net, **params).fit(loader)
    from_array = MRREnsemble(net, **params).fit(digits[0][:300] / 2, digits[1][:300])
    np.testing.assert_allclose(from_loader.risk(some[0]), from_array.risk(some[0]), atol=1e-6)


def test_a_sampler_says_which_rows_there_are(detector, some):
    dataset, every = Labelled(*some), detector.risk(some[0])
    for shuffle in (True, False):
        loader = DataLoader(dataset, 8, shuffle=shuffle, drop_last=True)
        np.testing.assert_array_equal(detector.risk(loader), every)
    loader = DataLoader(dataset, 8, sampler=SubsetRandomSampler([3, 1, 4]))
    np.testing.assert_allclose(np.sort(detector.risk(loader)), np.sort(every[[3, 1, 4]]), atol=1e-5)
    weights = np.eye(len(dataset))[7]
    loader = DataLoader(dataset, 8, sampler=WeightedRandomSampler(weights, 5))
    np.testing.assert_allclose(detector.risk(loader), every[[7] * 5], atol=1e-5)
    loader = DataLoader(dataset, batch_sampler=[[2, 0], [9]])
    np.testing.assert_allclose(detector.risk(loader), every[[2, 0, 9]], atol=1e-5)


def test_samplers_and_workers_go_together(some):
    loader = DataLoader(Labelled(*some), batch_sampler=[[2, 0], [9], [5]], num_workers=2)
    rows = Rows(loader)
    read = torch.cat([batch for _, batch in rows.batches(3)])
    np.testing.assert_array_equal(read, some[0][[2, 0, 9, 5]])
    np.testing.assert_array_equal(rows.labels(2), some[1][[2, 0, 9, 5]])
    part = Rows(rows.part(np.array([1, 3])))
    np.testing.assert_array_equal(part.take([0, 1]), some[0][[0, 5]])


def test_a_loader_over_a_list(detector, some):
    pairs = list(zip(*some, strict=True))
    np.testing.assert_array_equal(detector.risk(DataLoader(pairs, 8)), detector.risk(some[0]))


def test_labels_of_no_use_are_no_trouble_until_they_are_needed(net, digits, detector, some):
    X, y = digits[0][:400], digits[1][:400]
    expected = detector.risk(some[0])
    for labels in ([None] * 400, [f"class {c}" for c in y]):
        fitted = MarginDetector(net, **SHARED).fit(Labelled(X, labels), y)
        np.testing.assert_allclose(fitted.risk(Labelled(some[0], labels)), expected)
    with pytest.raises(ValueError, match="y must hold class indices"):
        MarginDetector(net, **SHARED).fit(Labelled(X, [f"class {c}" for c in y]))
    # without labels the classifier's decisions serve
    fitted = MarginDetector(net, **SHARED).fit(Labelled(X, [None] * 400))
    np.testing.assert_allclose(fitted.risk(some[0]), expected)


def test_dicts_are_refused_with_their_keys(detector, some):
    for source in (DataLoader(Labelled(*some), 8, collate_fn=as_dict), Dicts(*some)):
        with pytest.raises(TypeError, match="a dict with keys.*pixel_values.*collate_fn"):
            detector.risk(source)


class Dicts(Labelled):
    def __getitem__(self, i):
        return {"pixel_values": torch.as_tensor(self.X[i]), "labels": self.labels[i]}


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_row_that_cannot_be_read_is_named(detector, some, n_workers):
    loader = DataLoader(Torn(*some), 8, num_workers=n_workers)
    with pytest.raises(ValueError, match="Row 37 of the dataset cannot be read: OSError: image"):
        detector.risk(loader)


def test_batches_of_the_dataset_itself_are_refused(detector, some):
    with pytest.raises(TypeError, match="give the loader a batch_size"):
        detector.risk(DataLoader(Labelled(*some), batch_size=None))


def test_each_row_is_read_once_and_once_an_epoch(net, digits):
    dataset = Labelled(digits[0][:800], digits[1][:800])
    LatentDefender(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), classifier=net, max_epochs=4, **SHARED
    ).fit(dataset)
    # checked, trained on four times or calibrated on; some are a sample for one thing or other
    assert dataset.n_read.mean() < 1 + 0.8 * 4 + 0.2 + 2
