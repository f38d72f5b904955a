import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from skmrr.nn.rows import Rows


def test_array_tensor_dataset_and_loader_give_the_same_rows(rng):
    X = rng.random((10, 1, 2, 2), dtype=np.float32)
    dataset = TensorDataset(torch.as_tensor(X), torch.arange(10))
    sources = [X, dataset, DataLoader(dataset, batch_size=3, shuffle=True)]
    for source in sources:
        rows = Rows(source)
        batches = torch.cat([batch for _, batch in rows.batches(4)])
        np.testing.assert_array_equal(batches, X)
        np.testing.assert_array_equal(rows.take([7, 2]), X[[7, 2]])


def test_labels_of_a_dataset():
    X, labels = torch.rand(5, 2), torch.tensor([3, 1, 4, 1, 5])
    np.testing.assert_array_equal(Rows(TensorDataset(X, labels)).labels(2), labels)
    assert Rows(X.numpy()).labels(2) is None


def test_flat_rows_are_given_their_shape(rng):
    X = rng.random((6, 12))
    rows = Rows(X, input_shape=(3, 2, 2))
    assert rows.shape == (3, 2, 2)
    np.testing.assert_array_equal(rows.take(slice(0, 6)), X.reshape(6, 3, 2, 2))


def test_rows_that_do_not_fit_their_shape_whatever_the_source():
    X = torch.zeros(4, 10)
    for source in (X.numpy(), TensorDataset(X)):
        with pytest.raises(ValueError, match=r"input_shape=\(3, 4\)"):
            Rows(source, input_shape=(3, 4)).take([0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_dataset_is_checked_batch_by_batch(bad):
    X = torch.rand(6, 2)
    X[5, 1] = bad
    rows = Rows(TensorDataset(X))
    rows.take([0, 1])
    with pytest.raises(ValueError, match="NaN or infinity"):
        rows.check(batch_size=2)


def test_pixels_outside_the_declared_range():
    rows = Rows(TensorDataset(torch.full((3, 2), 255.0)), clip_values=(0, 1))
    with pytest.raises(ValueError, match="divide by 255"):
        rows.take([0])


def test_a_stream_cannot_be_indexed():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([1])

    with pytest.raises(TypeError, match="map-style"):
        Rows(Stream())


def test_a_dataset_of_something_else_names_the_cure():
    class Records(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {"image": torch.zeros(2)}

    with pytest.raises(TypeError, match="yields a dict"):
        Rows(Records()).take([0])


def test_no_rows():
    with pytest.raises(ValueError, match="0 sample"):
        Rows(np.empty((0, 3)))
