"""Matching pursuit agrees with scikit-learn's, whatever the backend, the scale or the trouble."""

import importlib.util

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from sklearn.linear_model import orthogonal_mp

from skmrr.datasets import load_digits_images
from skmrr.nn import SparseCoder, learn_dictionary
from skmrr.nn.patches import Patches
from skmrr.nn.sparse_coding import CHUNK_VALUES

HAS_NUMBA = importlib.util.find_spec("numba") is not None
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
BACKENDS = ["torch", pytest.param("numba", marks=needs_numba)]
pytestmark = pytest.mark.filterwarnings("ignore:Orthogonal matching pursuit ended prematurely")


def cut(images, size, n, seed=0):
    """Draw `n` patches that are not constant, shape (n, channels·size²)."""
    vectors = Patches(images.shape[1:], size, 1).extract(torch.as_tensor(images))
    vectors = vectors.flatten(0, 1).numpy()
    vectors = vectors[np.ptp(vectors, axis=1) > 0]
    order = np.random.default_rng(seed).permutation(len(vectors))
    return torch.as_tensor(vectors[order[:n]].astype(np.float32))


@pytest.fixture(scope="module", params=["digits", "digits, centred", "photograph"])
def problem(request):
    """Vectors and a dictionary learnt from others of the same kind."""
    if request.param == "photograph":
        photographs = np.stack(load_sample_images().images)[:, ::4, ::4] / 255
        vectors = cut(photographs.transpose(0, 3, 1, 2), 8, 3000)
        n_atoms = 256
    else:
        vectors = cut(load_digits_images()[0], 7, 3000)
        n_atoms = 100
    if request.param == "digits, centred":
        vectors = vectors - vectors.mean(1, keepdim=True)
    dictionary, _ = learn_dictionary(
        vectors[300:], n_atoms, 5, max_iter=3, generator=torch.Generator().manual_seed(0)
    )
    return vectors[:300], dictionary


def by_scikit_learn(x, dictionary, n_nonzero):
    """Codes in float64, shape (n, atoms)."""
    dictionary = dictionary.double().numpy()
    return orthogonal_mp(dictionary.T, x.double().numpy().T, n_nonzero_coefs=n_nonzero).T


def relative_residual(x, codes, dictionary):
    x = x.double().numpy()
    residual = x - codes @ dictionary.double().numpy()
    return np.linalg.norm(residual, axis=1) / np.linalg.norm(x, axis=1)


def has_a_tie(x, dictionary, n_nonzero):
    """Whether, in float64, two atoms are ever equally good within float32's rounding."""
    x, dictionary = x.double().numpy(), dictionary.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    tie = np.zeros(len(x), dtype=bool)
    for i, vector in enumerate(x):
        residual, chosen = vector, []
        for _ in range(n_nonzero):
            gain = np.abs(dictionary @ residual)
            best, second = np.argsort(gain)[:-3:-1]
            tie[i] |= gain[best] - gain[second] < 2e-6
            chosen.append(best)
            atoms = dictionary[chosen].T
            residual = vector - atoms @ np.linalg.lstsq(atoms, vector, rcond=None)[0]
    return tie


@pytest.mark.parametrize("n_nonzero", [1, 5, 10, 32])
def test_agrees_with_scikit_learn(problem, n_nonzero):
    x, dictionary = problem
    expected = by_scikit_learn(x, dictionary, n_nonzero)
    residual = relative_residual(x, expected, dictionary)
    decided = ~has_a_tie(x, dictionary, n_nonzero)
    # Where almost nothing is left, rounding may choose the last atoms.
    unfinished = decided & (residual > 1e-3)
    assert unfinished.mean() > 0.5
    for backend in ("torch", "numba") if HAS_NUMBA else ("torch",):
        coder = SparseCoder(dictionary, n_nonzero, backend=backend)
        codes = coder.encode(x).dense(len(dictionary)).double().numpy()
        np.testing.assert_allclose(
            relative_residual(x, codes, dictionary)[decided], residual[decided], atol=1e-4
        )
        if n_nonzero <= 10:
            np.testing.assert_array_equal((codes != 0)[unfinished], (expected != 0)[unfinished])
            np.testing.assert_allclose(codes[unfinished], expected[unfinished], atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_nonzero", [2, 5, 10, 32])
def test_order_recursive_choice_leaves_less(problem, n_nonzero, backend):
    x, dictionary = problem
    mean = {
        selection: float(
            np.mean(
                relative_residual(
                    x,
                    SparseCoder(dictionary, n_nonzero, selection=selection, backend=backend)
                    .encode(x)
                    .dense(len(dictionary))
                    .double()
                    .numpy(),
                    dictionary,
                )
            )
        )
        for selection in ("omp", "ormp")
    }
    assert mean["ormp"] < mean["omp"] + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_recursive_choice_is_the_best_second_atom(backend, rng):
    x = torch.as_tensor(rng.standard_normal((20, 6)), dtype=torch.float32)
    dictionary = torch.nn.functional.normalize(
        torch.as_tensor(rng.standard_normal((15, 6)), dtype=torch.float32)
    )
    support = SparseCoder(dictionary, 2, selection="ormp", backend=backend).encode(x).support
    for vector, chosen in zip(x.double(), support.tolist(), strict=True):
        left = {}
        for j in set(range(15)) - {chosen[0]}:
            atoms = dictionary[[chosen[0], j]].double().T
            left[j] = (vector - atoms @ torch.linalg.pinv(atoms) @ vector).norm()
        assert min(left, key=left.get) == chosen[1]


@needs_numba
@pytest.mark.parametrize("selection", ["omp", "ormp"])
def test_backends_agree(problem, selection):
    x, dictionary = problem
    codes = [
        SparseCoder(dictionary, 8, selection=selection, backend=backend).encode(x)
        for backend in ("torch", "numba")
    ]
    same = (codes[0].support == codes[1].support).all(1)
    assert same.float().mean() > 0.98  # the others hold ties within rounding
    torch.testing.assert_close(
        codes[0].coefficients[same], codes[1].coefficients[same], atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_exact_atom_takes_one_atom(problem, backend):
    _, dictionary = problem
    coder = SparseCoder(dictionary, 5, backend=backend)
    codes = coder.encode(3 * coder.dictionary[:20])
    torch.testing.assert_close(codes.support[:, 0], torch.arange(20, dtype=torch.int32))
    torch.testing.assert_close(codes.coefficients[:, 0], torch.full((20,), 3.0))
    assert (codes.coefficients[:, 1:] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("selection", ["omp", "ormp"])
def test_zero_vectors_take_no_atom(problem, backend, selection):
    _, dictionary = problem
    coder = SparseCoder(dictionary, 5, backend=backend, selection=selection)
    assert (coder.encode(torch.zeros(3, dictionary.shape[1])).coefficients == 0).all()
    assert (coder(torch.zeros(3, dictionary.shape[1])) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("selection", ["omp", "ormp"])
def test_deficient_dictionaries(backend, selection, rng):
    """Duplicates, rank below K, K above the dimension: the projection is what it should be."""
    basis = torch.as_tensor(rng.standard_normal((3, 8)), dtype=torch.float32)
    mixed = torch.as_tensor(rng.standard_normal((20, 3)), dtype=torch.float32) @ basis
    dictionary = torch.cat([basis, basis, -basis, mixed])
    x = torch.as_tensor(rng.standard_normal((50, 8)), dtype=torch.float32)
    coder = SparseCoder(dictionary, 10, backend=backend, selection=selection)
    codes = coder.encode(x)
    assert torch.isfinite(codes.coefficients).all()
    span = torch.linalg.qr(basis.T).Q
    # The order-recursive choice shuns atoms almost in the span of those it has.
    tolerance = 1e-4 if selection == "omp" else 0.5
    assert (coder(x) - x @ span @ span.T).norm(dim=1).max() < tolerance
    for support, coefficients in zip(*codes, strict=True):
        chosen = support[coefficients != 0]
        assert len(chosen) <= 3
        assert len(chosen.unique()) == len(chosen)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-9, 1e-5, 1e3, 1e20])
def test_codes_scale_with_the_vectors(problem, backend, scale):
    x, dictionary = problem
    coder = SparseCoder(dictionary, 5, backend=backend)
    plain, scaled = coder.encode(x), coder.encode(x * scale)
    same = (plain.support == scaled.support).all(1)
    assert same.float().mean() > 0.99
    torch.testing.assert_close(
        plain.coefficients[same], scaled.coefficients[same] / scale, atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_an_error(problem, backend, n_jobs, bad):
    x, dictionary = problem
    x = x.clone()
    x[7, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        SparseCoder(dictionary, 5, backend=backend, n_jobs=n_jobs).encode(x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_and_threads_change_nothing(problem, backend):
    x, dictionary = problem
    x = x.repeat(1 + 5 * CHUNK_VALUES // len(dictionary) // len(x), 1)  # several tasks
    coder = SparseCoder(dictionary, 3, backend=backend)
    whole = coder(x)
    assert torch.equal(whole, SparseCoder(dictionary, 3, backend=backend, n_jobs=2)(x))
    assert torch.equal(whole[:7], coder(x[:7]))
    assert torch.equal(whole[[5]], coder(x[[5]]))
    assert torch.equal(whole[:300].flip(0), coder(x[:300].flip(0)))


def test_number_of_threads_is_restored(problem):
    x, dictionary = problem
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        SparseCoder(dictionary, 3, n_jobs=2).encode(x)
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="NaN"):
            SparseCoder(dictionary, 3).encode(x * np.nan)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_reconstruction_is_that_of_the_codes(problem):
    x, dictionary = problem
    coder = SparseCoder(dictionary, 5)
    dense = coder.encode(x).dense(len(coder.dictionary))
    torch.testing.assert_close(coder(x), dense @ coder.dictionary)


@pytest.mark.parametrize("selection", ["omp", "ormp"])
def test_gradient_is_that_of_the_frozen_support(problem, selection):
    """∇‖x − P_S x‖² = 2 (I − P_S) x, against central differences."""
    x, dictionary = problem
    x = x[:30].double().requires_grad_(True)
    coder = SparseCoder(dictionary, 4, selection=selection)
    loss = (x - coder(x)).square().sum()
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(gradient, 2 * (x - coder(x)), rtol=1e-4, atol=1e-5)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    step = 1e-3 * direction
    with torch.no_grad():
        same = (coder.encode(x + step).support == coder.encode(x - step).support).all(1)
        ahead, behind = ((x + s - coder(x + s)).square().sum(1) for s in (step, -step))
    assert same.float().mean() > 0.5
    torch.testing.assert_close(
        (ahead - behind)[same], 2 * (gradient * step).sum(1)[same], rtol=1e-3, atol=1e-6
    )


def test_gradient_exists_where_nothing_is_left(problem):
    """Zero vectors and exact atoms have a support smaller than K."""
    _, dictionary = problem
    coder = SparseCoder(dictionary, 5)
    x = torch.cat([torch.zeros(1, dictionary.shape[1]), coder.dictionary[:1]]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(coder(x).sum(), x)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([[1.0, np.nan]], 1), "finite"),
        (([1.0, 2.0], 1), "shape"),
        (([[1.0, 0.0]], 0), "n_nonzero"),
    ],
)
def test_bad_dictionaries(arguments, error):
    with pytest.raises(ValueError, match=error):
        SparseCoder(*arguments)


def test_bad_settings():
    with pytest.raises(ValueError, match="selection"):
        SparseCoder(torch.eye(3), 1, selection="best")
    with pytest.raises(ValueError, match="backend"):
        SparseCoder(torch.eye(3), 1, backend="fortran")
    with pytest.raises(ValueError, match="4 values"):
        SparseCoder(torch.eye(3), 1).encode(torch.zeros(2, 4))


def test_missing_numba_names_the_cure(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"skmrr\[fast\]"):
        SparseCoder(torch.eye(3), 1, backend="numba").encode(torch.eye(3))
    SparseCoder(torch.eye(3), 1).encode(torch.eye(3))


class TestLearning:
    def test_finds_the_atoms_that_made_the_vectors(self, rng):
        atoms = np.linalg.qr(rng.standard_normal((16, 16)))[0]
        codes = np.where(rng.random((20_000, 16)) < 0.1, rng.standard_normal((20_000, 16)), 0)
        x = torch.as_tensor(codes @ atoms, dtype=torch.float32)
        learnt, history = learn_dictionary(x, 24, 3, max_iter=40, generator=seeded())
        match = (torch.as_tensor(atoms, dtype=torch.float32) @ learnt.T).abs().amax(1)
        assert (match > 0.98).float().mean() > 0.8
        assert history[-1] < 0.2

    def test_better_than_its_first_atoms_and_of_unit_length(self, problem):
        x, _ = problem
        one, start = learn_dictionary(x, 40, 3, max_iter=1, generator=seeded())
        many, history = learn_dictionary(x, 40, 3, max_iter=12, generator=seeded())
        assert history[-1] < start[0]
        torch.testing.assert_close(many.norm(dim=1), torch.ones(40))
        torch.testing.assert_close(one.norm(dim=1), torch.ones(40))

    def test_repeats_itself(self, problem):
        x, _ = problem
        assert torch.equal(
            learn_dictionary(x, 30, 3, max_iter=2, generator=seeded())[0],
            learn_dictionary(x, 30, 3, max_iter=2, generator=seeded())[0],
        )

    def test_few_vectors_make_few_atoms(self):
        x = torch.eye(4)[[0, 0, 1, 1, 2]]
        dictionary, _ = learn_dictionary(x, 10, 2, max_iter=2, generator=seeded())
        assert (dictionary.norm(dim=1) > 0).sum() == 3  # the others stay zero
        torch.testing.assert_close(SparseCoder(dictionary, 2)(x), x)

    def test_atoms_without_use_are_replaced(self, rng):
        """Vectors far from all others earn an atom, though few."""
        x = np.zeros((2000, 10), dtype=np.float32)
        x[:, :2] = rng.standard_normal((2000, 2))
        x[:100, 9] = 50 + rng.standard_normal(100)
        dictionary, _ = learn_dictionary(torch.as_tensor(x), 20, 1, generator=seeded())
        assert dictionary[:, 9].abs().max() > 0.99

    def test_nothing_to_learn_from(self):
        with pytest.raises(ValueError, match="zero"):
            learn_dictionary(torch.zeros(10, 3), 2, 1)


def seeded():
    return torch.Generator().manual_seed(0)
