"""Rows in chunks, here and on a cluster: the same bits, nothing before its time, nothing lost."""

import os
import pickle
import signal
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

from skmrr import (
    FixedThresholdDetector,
    LatentDefender,
    MRREnsemble,
    default_defenders,
    load,
    save,
)
from skmrr.distributed import image_rows, npy_rows, spooled
from skmrr.harmless import Brightness, GaussianNoise
from skmrr.nn.rows import Rows

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

CHUNK = 256  # a whole number of batches, for the same bits

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def images(digits):
    """Images without the channels-last strides of their loader, which another kernel takes."""
    return digits[0][:1100].copy(), digits[1][:1100]


@pytest.fixture(scope="module")
def ensemble(images, net):
    members = default_defenders(net, latent=LatentDefender(max_epochs=1), n_latent=2)
    params = {"clip_values": (0, 1), "security_parameter": 0.05, "random_state": 0}
    X, y = images
    return MRREnsemble(net, defenders=members, **params).fit(X[:1000], y[:1000])


@pytest.fixture(scope="module")
def bare(images, net, ensemble):
    """The same without a classifier, whose rows are tables."""
    X, y = images
    X = X[:1000].reshape(1000, -1)
    return LatentDefender(max_epochs=1, random_state=0).fit(X, y[:1000])


def in_chunks(X, rows=CHUNK):
    return da.from_array(X, chunks=(rows, *X.shape[1:]))


METHODS = ["score_samples", "decision_function", "risk", "predict", "classify"]


@pytest.mark.parametrize("method", METHODS)
def test_chunks_give_the_same_bits(ensemble, images, method):
    X, _ = images
    expected = getattr(ensemble, method)(X)
    lazy = getattr(ensemble, method)(in_chunks(X))
    assert isinstance(lazy, da.Array)
    assert (lazy.shape, lazy.dtype, lazy.chunks[0][0]) == (expected.shape, expected.dtype, CHUNK)
    assert (type(lazy._meta), lazy._meta.dtype) == (np.ndarray, expected.dtype)
    found = lazy.compute(scheduler="threads")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_members_have_a_lazy_frame(ensemble, images):
    X, _ = images
    expected = ensemble.member_risks(X)
    lazy = ensemble.member_risks(in_chunks(X))
    pd.testing.assert_frame_equal(lazy._meta, expected.iloc[:0], check_index_type=False)
    pd.testing.assert_frame_equal(lazy.compute(scheduler="synchronous"), expected)


@pytest.mark.parametrize("deal", [lambda y: y, lambda y: da.from_array(y, chunks=300)])
def test_labels_follow_their_rows(ensemble, images, deal):
    X, y = images
    found = ensemble.classify(in_chunks(X), labels=deal(y)).compute(scheduler="synchronous")
    np.testing.assert_array_equal(found, ensemble.classify(X, labels=y))


def test_tables_and_other_thresholds(bare, images):
    X = images[0].reshape(len(images[0]), -1)
    strict = FixedThresholdDetector(bare, security_parameter=0.2)
    strict.estimator_ = bare
    halves = da.from_array(X, chunks=(CHUNK, 40))  # rows in two pieces
    found = strict.predict(halves).compute(scheduler="synchronous")
    np.testing.assert_array_equal(found, strict.predict(X))


def refuse_to_read(block):
    raise AssertionError("computed before its time")


def test_nothing_is_computed_at_call(ensemble, images):
    X = in_chunks(images[0])
    X = X.map_blocks(refuse_to_read, dtype=X.dtype, meta=X._meta)
    lazy = [getattr(ensemble, name)(X) for name in [*METHODS, "member_risks"]]
    with pytest.raises(AssertionError, match="its time"):
        dask.compute(lazy[0], scheduler="synchronous")


def test_what_is_set_later_does_not_count(ensemble, images):
    X, _ = images
    before = ensemble.predict(X)
    lazy = ensemble.predict(in_chunks(X))
    try:
        ensemble.set_params(security_parameter=0.5)
        np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), before)
    finally:
        ensemble.set_params(security_parameter=0.05)


def test_risk_and_class_are_of_one_pass(ensemble, images, monkeypatch):
    passes = []
    judge = type(ensemble)._judge
    monkeypatch.setattr(
        type(ensemble), "_judge", lambda self, *rows: passes.append(1) or judge(self, *rows)
    )
    X = in_chunks(images[0])
    lazy = ensemble.risk(X), ensemble.classify(X), ensemble.score_samples(X)
    passes.clear()
    dask.compute(*lazy, scheduler="synchronous")
    assert len(passes) == X.numblocks[0]


def test_a_bad_chunk_names_its_rows(ensemble, images):
    X = images[0].copy()
    X[700, 0, 3, 3] = np.nan
    with pytest.raises(ValueError, match=r"rows 512 to 767 \(chunk 2\).*NaN"):
        ensemble.risk(in_chunks(X)).compute(scheduler="synchronous")


def test_wrong_rows_are_refused_at_call(ensemble, images):
    X = in_chunks(images[0])
    with pytest.raises(ValueError, match="fitted on rows of"):
        ensemble.risk(X[:, :, :5])
    with pytest.raises(ValueError, match="labels has shape"):
        ensemble.risk(X, labels=[1, 2])
    with pytest.raises(ValueError, match="two axes"):
        ensemble.risk(da.zeros(5))


def test_chunks_of_unknown_length(ensemble, images):
    X, y = images
    chosen = in_chunks(X)[da.from_array(y > 7, chunks=CHUNK)]
    chosen = da.concatenate([chosen, in_chunks(X[:0])], allow_unknown_chunksizes=True)
    found = ensemble.risk(chosen).compute(scheduler="synchronous")
    np.testing.assert_allclose(found, ensemble.risk(X[y > 7]), atol=1e-3)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        ensemble.risk(chosen, labels=y[y > 7])


@pytest.fixture
def paths(images, tmp_path):
    for k, row in enumerate(images[0][:700]):
        np.save(tmp_path / f"{k:04d}.npy", row)
    return sorted(tmp_path.iterdir())


def test_paths_are_read_where_they_are_scored(ensemble, images, paths):
    bag = pytest.importorskip("dask.bag").from_sequence(paths, partition_size=CHUNK)
    expected = ensemble.risk(images[0][:700])
    for given in (paths, bag):
        rows = image_rows(given, np.load, (1, 8, 8), chunk_rows=CHUNK)
        found = ensemble.risk(rows).compute(scheduler="synchronous")
        np.testing.assert_array_equal(found, expected)


def test_rows_of_a_file_travel_by_its_name(ensemble, images, tmp_path):
    np.save(tmp_path / "rows.npy", images[0])
    rows = npy_rows(tmp_path / "rows.npy", chunk_rows=CHUNK)
    assert len(pickle.dumps(dict(rows.dask))) < 20_000
    found = ensemble.risk(rows).compute(scheduler="synchronous")
    np.testing.assert_array_equal(found, ensemble.risk(images[0]))


def test_a_path_that_cannot_be_read_is_named(ensemble, paths):
    paths[600].write_bytes(b"")
    risks = ensemble.risk(image_rows(paths, np.load, (1, 8, 8), chunk_rows=CHUNK))
    with pytest.raises(ValueError, match=r"0600\.npy cannot be read"):
        risks.compute(scheduler="synchronous")
    with pytest.raises(ValueError, match="no path"):
        image_rows([], np.load, (1, 8, 8))


def test_calibration_gathers_the_same_statistics(ensemble, images):
    X, _ = images
    here, there = clone(ensemble), clone(ensemble)
    for detector in (here, there):
        detector.set_params(harmless=[Brightness(0.02)])
        vars(detector).update({k: v for k, v in vars(ensemble).items() if k.endswith("_")})
        detector._fitted_here = [False] * 3
    here.calibrate(X[:900])
    with dask.config.set(scheduler="synchronous"):
        there.calibrate(in_chunks(X[:900]))
    np.testing.assert_array_equal(here.score_samples(X), there.score_samples(X))
    with pytest.raises(ValueError, match="Too few"):
        there.calibrate(in_chunks(X[:10]))


def test_noise_of_a_calibration_differs_from_chunk_to_chunk(ensemble):
    noisy = clone(ensemble).set_params(harmless=[GaussianNoise(0.1)])
    seeds = noisy._harmless_seeds()
    x = torch.zeros(4, 1, 8, 8)
    one, other = (noisy._harmless_changes([[seeds[0], k]])[0](x) for k in (0, 1))
    assert not torch.equal(one, other)


def test_clean_rows_of_chunks_fit_the_same(bare, images):
    X, y = images[0][:1000].reshape(1000, -1), images[1][:1000]
    with dask.config.set(scheduler="synchronous"):
        found = clone(bare).fit(in_chunks(X, 300), da.from_array(y, chunks=300))
    np.testing.assert_array_equal(found.score_samples(X), bare.score_samples(X))


def test_spooled_rows_leave_with_their_array(images, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    X = images[0]
    with dask.config.set(scheduler="synchronous"):
        rows = spooled(in_chunks(X)[da.from_array(np.arange(len(X)) % 2 == 0, chunks=CHUNK)])
    part = rows[3:5]
    del rows
    np.testing.assert_array_equal(part, X[6:10:2])
    assert len(list(tmp_path.iterdir())) == 1
    del part
    assert not list(tmp_path.iterdir())


def test_rows_say_how_large_they_are():
    from dask.sizeof import sizeof

    assert sizeof(Rows(np.zeros((100, 10)))) > 8000


# On a cluster


@pytest.fixture(scope="module")
def cluster():
    with (
        dask.config.set({"distributed.worker.memory.terminate": False}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as made,
    ):
        yield made


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster, set_as_default=True) as made:
        yield made


class Counted:
    """Travels with a detector, and leaves a file each time that it arrives."""

    def __init__(self, folder):
        self.folder = folder

    def __setstate__(self, state):
        vars(self).update(state)
        Path(self.folder, f"{os.getpid()}-{time.monotonic_ns()}").touch()


def slowly(block):
    time.sleep(0.2)
    return block


@pytest.mark.slow
def test_a_detector_travels_once_to_each_worker(client, ensemble, images, tmp_path):
    X, _ = images
    expected = ensemble.risk(X)
    marked = clone(ensemble)
    vars(marked).update(vars(ensemble))
    marked.carried_ = Counted(str(tmp_path))
    chunks = in_chunks(X, 256).map_blocks(slowly, dtype=X.dtype, meta=X[:0])
    np.testing.assert_array_equal(marked.risk(chunks).compute(), expected)
    arrived = [file.name.split("-")[0] for file in tmp_path.iterdir()]
    workers = [str(pid) for pid in client.run(os.getpid).values()]
    assert sorted(pid for pid in arrived if pid in workers) == sorted(workers)


def test_a_worker_that_is_killed_loses_nothing(client, ensemble, images):
    X, _ = images
    expected = ensemble.risk(X)
    victim = next(iter(client.run(os.getpid).values()))
    chunks = in_chunks(X, 256).map_blocks(slowly, dtype=X.dtype, meta=X[:0])
    risks = client.compute(ensemble.risk(chunks))
    time.sleep(0.8)
    os.kill(victim, signal.SIGKILL)
    np.testing.assert_array_equal(risks.result(timeout=300), expected)
    client.wait_for_workers(2, timeout=300)


@pytest.mark.slow
def test_members_are_fitted_on_the_cluster(client, images, net):
    X, y = images
    members = default_defenders(net, latent=LatentDefender(max_epochs=1), n_latent=3)
    ensemble = MRREnsemble(
        net, defenders=members, random_state=0, security_parameter=0.05, clip_values=(0, 1)
    )
    here = clone(ensemble).fit(X[:800], y[:800])
    with joblib.parallel_config("dask"):
        there = clone(ensemble).fit(in_chunks(X[:800]), y[:800])
    np.testing.assert_array_equal(here.score_samples(X), there.score_samples(X))


@pytest.mark.slow
def test_a_search_runs_on_the_cluster(client, bare, images):
    X, y = images[0][:600].reshape(600, -1), images[1][:600]
    search = GridSearchCV(
        clone(bare).set_params(security_parameter=0.05),
        {"max_epochs": [1, 2]},
        scoring=lambda detector, X, y: detector.score_samples(X).mean(),
        cv=KFold(2),
    )
    here = clone(search).fit(X, y)
    with joblib.parallel_config("dask"):
        there = clone(search).fit(X, y)
    np.testing.assert_array_equal(
        here.cv_results_["mean_test_score"], there.cv_results_["mean_test_score"]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_data_loads_a_detector_once(ensemble, images, net, tmp_path):
    """The recipe of docs/how_to/many_machines.md."""
    ray = pytest.importorskip("ray")
    path = str(tmp_path / "detector.safetensors")
    save(ensemble, path)

    class Judge:
        def __init__(self, path):
            torch.set_num_threads(1)
            self.detector = load(path, classifier=net)

        def __call__(self, batch):
            return {"risk": self.detector.risk(batch["data"])}

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        rows = ray.data.from_numpy(images[0][:512])
        judged = rows.map_batches(
            Judge, fn_constructor_args=[path], batch_size=CHUNK, concurrency=1
        ).take_all()
    finally:
        ray.shutdown()
    found = [row["risk"] for row in judged]
    np.testing.assert_allclose(sorted(found), sorted(ensemble.risk(images[0][:512])), atol=1e-5)
