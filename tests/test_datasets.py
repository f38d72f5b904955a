"""The loaders find files in the promised order, and say what to do when they find none."""

import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from skmrr.bench import images as loaders
from skmrr.datasets import load_digits_images

rng = np.random.default_rng(0)

has_real_data = pytest.mark.skipif(
    not Path(os.environ.get("SKMRR_DATA") or "no/such/folder").is_dir(),
    reason="SKMRR_DATA does not name a folder",
)


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """An empty folder named by SKMRR_DATA."""
    monkeypatch.setenv("SKMRR_DATA", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "chosen").mkdir()
    return tmp_path / "chosen"


@pytest.fixture
def cache(chosen):
    """The empty cache folder that goes with ``chosen``."""
    loaders.data_home().mkdir(parents=True)
    return loaders.data_home()


@pytest.fixture
def offline(monkeypatch):
    """Pooch is not installed."""
    monkeypatch.setitem(sys.modules, "pooch", None)


def images(n, *shape):
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8)


def write(folder, name, n_train, shape, n_test=3):
    arrays = {
        "x_train": images(n_train, *shape),
        "y_train": np.arange(n_train, dtype=np.uint8) % 10,
        "x_test": images(n_test, *shape),
        "y_test": np.arange(n_test, dtype=np.uint8),
    }
    np.savez(folder / name, **arrays)
    return arrays


def encode(image, kind, **options):
    pillow = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    pillow.fromarray(image).save(buffer, kind, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def concatenate(encoded):
    return np.concatenate(encoded), np.cumsum([0, *map(len, encoded)])


def assert_batch(result, shape):
    x, y = result
    assert x.shape == shape
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert x.min() >= 0
    assert x.max() <= 1
    assert y.shape == shape[:1]
    assert y.dtype == np.int64


def test_digits():
    x, y = load_digits_images()
    assert_batch((x, y), (1797, 1, 8, 8))
    assert x.max() == 1
    assert set(y) == set(range(10))


def test_data_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert loaders.data_home() == tmp_path / "skmrr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert loaders.data_home() == tmp_path / ".cache" / "skmrr"


def test_lookup_prefers_the_chosen_folder_to_the_cache(chosen, cache):
    write(cache, "mnist.npz", 4, (28, 28))
    assert len(loaders.load_mnist()[0]) == 4
    write(chosen, "mnist.npz", 5, (28, 28))
    assert len(loaders.load_mnist()[0]) == 5


def test_values_and_axes_survive(chosen):
    arrays = write(chosen, "cifar10.npz", 5, (32, 32, 3))
    x, y = loaders.load_cifar10("test")
    assert_batch((x, y), (3, 3, 32, 32))
    np.testing.assert_array_equal(np.rint(x * 255), arrays["x_test"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(y, arrays["y_test"])


def test_labels_may_be_a_column(chosen):
    column = np.arange(3, dtype=np.uint8)[:, None]
    np.savez(chosen / "cifar10.npz", x_test=images(3, 32, 32, 3), y_test=column)
    assert loaders.load_cifar10("test")[1].tolist() == [0, 1, 2]


def test_n_samples_is_a_prefix(chosen):
    write(chosen, "mnist.npz", 5, (28, 28))
    x, y = loaders.load_mnist("train", n_samples=2)
    assert_batch((x, y), (2, 1, 28, 28))
    np.testing.assert_array_equal(x, loaders.load_mnist("train")[0][:2])
    with pytest.raises(ValueError, match="n_samples=6, but .* only 5 images"):
        loaders.load_mnist("train", n_samples=6)


@pytest.mark.parametrize(
    ("load", "parameters"),
    [
        (loaders.load_mnist, {"split": "val"}),
        (loaders.load_cifar10, {"n_samples": 0}),
        (loaders.load_imagenette, {"subset": "test"}),
        (loaders.load_imagenette, {"size": 0}),
    ],
)
def test_invalid_parameters(load, parameters):
    with pytest.raises(ValueError, match=f"The '{next(iter(parameters))}' parameter"):
        load(**parameters)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenette"])
def test_missing_file_says_what_to_do(chosen, name):
    with pytest.raises(FileNotFoundError) as raised:
        getattr(loaders, f"load_{name}")()
    message = str(raised.value)
    assert f"{name}" in message
    assert "SKMRR_DATA" in message
    assert str(chosen) in message
    assert str(loaders.data_home()) in message
    assert ('pip install "skmrr[data]"' in message) == (name != "imagenette")


@pytest.mark.parametrize("content", [b"", b"not a zip archive", b"PK\x03\x04 cut off"])
def test_damaged_file(chosen, content):
    (chosen / "mnist.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"mnist\.npz is damaged .* Replace it"):
        loaders.load_mnist()


def test_cut_off_file(chosen):
    write(chosen, "mnist.npz", 5, (28, 28))
    whole = (chosen / "mnist.npz").read_bytes()
    (chosen / "mnist.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        loaders.load_mnist()


def test_unexpected_arrays(chosen):
    np.savez(chosen / "mnist.npz", x_train=images(2, 28, 28))
    with pytest.raises(ValueError, match="arrays x_train, y_train"):
        loaders.load_mnist()
    np.savez(chosen / "mnist.npz", x_train=images(2, 28, 28), y_train=np.arange(3))
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(3, 28, 28\)"):
        loaders.load_mnist()


def test_pickles_are_refused(chosen):
    np.savez(chosen / "mnist.npz", x_train=np.array([{}], dtype=object), y_train=np.arange(1))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        loaders.load_mnist()


def test_a_short_cifar10_gives_what_is_there(chosen):
    write(chosen, "cifar10.npz", 5, (32, 32, 3))
    assert_batch(loaders.load_cifar10(), (5, 3, 32, 32))
    with pytest.raises(ValueError, match="gives only 5 images"):
        loaders.load_cifar10(n_samples=7)


def test_cifar10_prefers_a_file_that_has_enough(chosen, cache):
    write(chosen, "cifar10.npz", 5, (32, 32, 3))
    full = write(cache, "cifar10.npz", 8, (32, 32, 3))
    assert len(loaders.load_cifar10()[0]) == 5
    x, _ = loaders.load_cifar10(n_samples=7)
    np.testing.assert_array_equal(np.rint(x * 255), full["x_train"][:7].transpose(0, 3, 1, 2))


class FakePooch:
    """Stands for the pooch module: writes given bytes instead of downloading."""

    def __init__(self, content=b"", error=None):
        self.content, self.error, self.calls = content, error, []

    def retrieve(self, url, known_hash, fname, path):
        self.calls.append((url, known_hash))
        if self.error:
            raise self.error
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(self.content)
        return str(path / fname)


def test_mnist_download(chosen, tmp_path, monkeypatch):
    write(tmp_path, "mnist.npz", 5, (28, 28))
    pooch = FakePooch((tmp_path / "mnist.npz").read_bytes())
    monkeypatch.setitem(sys.modules, "pooch", pooch)
    for _ in range(2):
        assert len(loaders.load_mnist()[0]) == 5
    assert pooch.calls == [(loaders.MNIST_URL, loaders.MNIST_HASH)]
    assert not any(chosen.iterdir())


def test_failed_download_says_what_to_do(chosen, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", FakePooch(error=ConnectionError("no route")))
    with pytest.raises(FileNotFoundError, match=r"SKMRR_DATA.*download failed: no route"):
        loaders.load_mnist()


def binary_archive():
    """Fabricate the official archive with two records a file; return it and the images."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    records = images(2 * len(names), 1 + 3 * 32 * 32)
    records[:, 0] %= 10
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, rows in zip(names, records.reshape(len(names), 2, -1), strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = rows.size
            tar.addfile(member, io.BytesIO(rows.tobytes()))
    return buffer.getvalue(), records


def test_cifar10_download_and_conversion(chosen, monkeypatch):
    archive, records = binary_archive()
    pooch = FakePooch(archive)
    monkeypatch.setitem(sys.modules, "pooch", pooch)
    monkeypatch.setattr(loaders, "CIFAR10_TRAIN_SIZE", 10)
    x, y = loaders.load_cifar10()
    assert_batch((x, y), (10, 3, 32, 32))
    np.testing.assert_array_equal(np.rint(x * 255), records[:10, 1:].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(y, records[:10, 0])
    np.testing.assert_array_equal(loaders.load_cifar10("test")[1], records[10:, 0])
    assert pooch.calls == [(loaders.CIFAR10_URL, loaders.CIFAR10_HASH)]
    assert [path.name for path in loaders.data_home().iterdir()] == ["cifar10.npz"]


def write_imagenette(folder):
    """Write six images of one grey each: four for training, sorted by class, two new ones."""
    grey = [0, 50, 100, 150, 200, 250]
    pictures = [np.full((224, 300), value, np.uint8) for value in grey]
    pictures[1] = np.stack([pictures[1].T] * 3, axis=-1)  # in colour, and upright
    jpeg, offset = concatenate([encode(picture, "jpeg") for picture in pictures])
    label = np.array([0, 0, 9, 9, 0, 9], np.uint8)
    np.savez(
        folder / "imagenette224.npz",
        jpeg=jpeg,
        offset=offset,
        label=label,
        ilsvrc=np.where(label == 0, 0, 701).astype(np.int16),
        is_ilsvrc_val=np.arange(6) >= 4,
    )


def test_imagenette(chosen):
    write_imagenette(chosen)
    x, y = loaders.load_imagenette()
    assert_batch((x, y), (4, 3, 224, 224))
    assert y.tolist() == [0, 9, 0, 9]
    np.testing.assert_allclose(x[:, 1, 7, 7] * 255, [0, 100, 50, 150], atol=2)
    x, y = loaders.load_imagenette("val", size=32, target="ilsvrc")
    assert_batch((x, y), (2, 3, 32, 32))
    assert y.tolist() == [0, 701]
    np.testing.assert_allclose(x[:, 0, 0, 0] * 255, [200, 250], atol=2)
    assert len(loaders.load_imagenette("all", n_samples=5)[0]) == 5


def test_nips2017(chosen):
    with pytest.raises(FileNotFoundError, match=r"nips2017.npz is not in"):
        loaders.load_nips2017()
    pictures = [np.full((224, 224, 3), value, np.uint8) for value in (0, 100, 200)]
    jpeg, offset = concatenate([encode(picture, "jpeg") for picture in pictures])
    labels = np.array([7, 999, 0], np.int16)
    np.savez(chosen / "nips2017.npz", jpeg=jpeg, offset=offset, ilsvrc=labels)
    x, y = loaders.load_nips2017()
    assert_batch((x, y), (3, 3, 224, 224))
    assert y.tolist() == [7, 999, 0]
    np.testing.assert_allclose(x[:, 1, 7, 7] * 255, [0, 100, 200], atol=2)


@pytest.mark.usefixtures("offline")
def test_without_pillow(chosen, monkeypatch):
    write_imagenette(chosen)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"skmrr\[data\]"):
        loaders.load_imagenette()


@has_real_data
@pytest.mark.parametrize(
    ("load", "shape"),
    [(loaders.load_mnist, (1, 28, 28)), (loaders.load_cifar10, (3, 32, 32))],
)
def test_real_test_sets(load, shape):
    try:
        x, y = load("test")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert_batch((x, y), (10_000, *shape))
    assert set(y) == set(range(10))


@has_real_data
def test_real_imagenette():
    pytest.importorskip("PIL")
    try:
        x, y = loaders.load_imagenette("val", n_samples=20)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert_batch((x, y), (20, 3, 224, 224))
    assert np.bincount(y).tolist() == [2] * 10


@pytest.mark.slow
@has_real_data
def test_real_cifar10_training_set_is_whole_and_balanced():
    _, y = loaders.load_cifar10()
    if len(y) < 50_000:
        pytest.skip("only a part of the CIFAR-10 training set is here")
    assert np.bincount(y).tolist() == [5_000] * 10
