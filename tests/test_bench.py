"""The command ``skmrr bench``: problems, reports, and a small run of each table."""

import dataclasses
import json
import math
import re
import subprocess
import time
from types import SimpleNamespace

import joblib
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from typer.testing import CliRunner

from skmrr import LatentDefender, MRREnsemble, replicate
from skmrr.art import Attack, paper_attacks
from skmrr.base import BaseDetector
from skmrr.bench import figures, report, sizes, systems, transferability, victims
from skmrr.bench.architectures import ResNet, build_digits
from skmrr.bench.augmentation import Augmented
from skmrr.bench.peers import pooled_success, with_intervals
from skmrr.bench.problems import ATTACKS, PROBLEMS, Problem, in_levels, of_kinds, with_attacks
from skmrr.bench.sizes import EPS, PAPER_TABLE1, QUICK, SIZES
from skmrr.bench.systems import (
    CERTIFIED,
    ENSEMBLE,
    OURS,
    WITH_NOISE,
    detectors_on,
    fit_all,
    unfitted,
    with_noise,
)
from skmrr.bench.table1 import draw_cost, own_accuracy
from skmrr.bench.victims import predict
from skmrr.cli import app, typed
from skmrr.defenders.defaults import SPARSE_WEIGHT
from skmrr.harmless import CHANNELS, SEVERITIES

pytestmark = pytest.mark.filterwarnings("ignore:Persisting input arguments took")  # busy machines

QUICK_SECONDS = 120
COMMANDS = ["table1", "peers", "table2", "transfer", "figures"]


@pytest.fixture(scope="module", autouse=True)
def _no_windows():
    matplotlib.use("Agg")
    yield
    torch.set_flush_denormal(False)  # the command sets it for the process
    plt.close("all")


def invoke(monkeypatch, *words):
    """Run the command in this process; return what typer's runner saw."""
    words = [str(word) for word in words]
    monkeypatch.setattr("sys.argv", ["skmrr", *words])
    return CliRunner().invoke(app, words)


def succeed(monkeypatch, *words):
    """Run the command, and have it succeed; return what it printed."""
    outcome = invoke(monkeypatch, *words)
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.stdout


@pytest.fixture
def frame():
    return pd.DataFrame({"auc": [0.98765, 1.0, math.nan], "n": [3, 40, 5]}, index=["a", "b", "c"])


def test_markdown_shows_the_index_and_rounds(frame):
    lines = report.markdown(frame.rename_axis("detector"), digits=2).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["detector", "auc", "n"]
    assert cells[2:] == [["a", ".99", "3"], ["b", "1.00", "40"], ["c", "–", "5"]]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.5, 0.4, 0.6), ".500 (.400–.600)"),
        ((0.5, 0.49999, 0.50001), ".500"),
        ((1.25, 1.0, 1.5), "1.250 (1.000–1.500)"),
        ((-0.5, -0.5, -0.5), "-0.500"),
        ((math.nan, math.nan, math.nan), "–"),
    ],
)
def test_spread_shows_the_range_where_there_is_one(values, shown):
    assert report.spread(*values) == shown


def written(frame, folder, name="table1-digits"):
    """A report with a table and a picture, written."""

    def draw():
        return plt.figure(figsize=(1, 1))

    made = report.Report(name, f"Of {name}", "Some text.", {"numbers": frame}, {"a_curve": draw})
    return report.write(made, folder, report.provenance("skmrr bench table1", [1, 2]))


def test_written_report(frame, tmp_path):
    before = plt.get_fignums()
    home = written(frame, tmp_path)
    assert home == tmp_path / "table1-digits"
    text = (home / "report.md").read_text("utf-8")
    assert text.startswith("## Of table1-digits\n\nSome text.\n")
    assert "![a curve](table1-digits/a_curve.png)" in text
    assert "`skmrr bench table1`" in text
    assert "seeds 1, 2" in text
    assert (home / "a_curve.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == before
    origin = json.loads((home / "provenance.json").read_text("utf-8"))
    assert origin["seeds"] == [1, 2]
    for read in (pd.read_csv(home / "numbers.csv"), pd.read_json(home / "numbers.json")):
        pd.testing.assert_frame_equal(read, frame.reset_index(drop=True))


def test_a_named_index_is_written_too(frame, tmp_path):
    home = written(frame.rename_axis("detector"), tmp_path)
    for read in (pd.read_csv(home / "numbers.csv"), pd.read_json(home / "numbers.json")):
        pd.testing.assert_frame_equal(read, frame.rename_axis("detector").reset_index())


def test_assembled_pages_find_their_pictures(frame, tmp_path):
    written(frame, tmp_path / "results", "table1-digits")
    written(frame, tmp_path / "results", "figures-digits")
    (tmp_path / "results" / "cache").mkdir()
    here = report.assemble(tmp_path / "results")
    assert here.index("Of figures-digits") < here.index("Of table1-digits")
    for page_folder in (tmp_path / "results", tmp_path, tmp_path / "docs" / "deep"):
        page = report.assemble(tmp_path / "results", page_folder)
        links = [part.split(")")[0] for part in page.split("](")[1:]]
        assert len(links) == 2
        page_folder.mkdir(parents=True, exist_ok=True)
        assert all((page_folder / link).exists() for link in links)


def test_nothing_to_assemble(tmp_path):
    with pytest.raises(FileNotFoundError, match="run a command of skmrr bench"):
        report.assemble(tmp_path)


def test_provenance():
    origin = report.provenance("skmrr bench peers", [4, 2])
    assert origin["command"] == "skmrr bench peers"
    assert origin["commit"]
    assert origin["seeds"] == [4, 2]
    assert origin["versions"]["torch"] == torch.__version__
    assert set(origin["versions"]) == set(report.PACKAGES)
    line = report.described(origin)
    assert all(part in line for part in ("skmrr bench peers", origin["commit"], "seeds 4, 2"))
    assert f"numpy {np.__version__}" in line


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setattr(report, "PACKAGES", ("numpy", "no-such-package-here"))
    assert report.provenance("", [])["versions"]["no-such-package-here"] == "–"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package whose report module asks for its commit; git's command."""
    package = tmp_path / "skmrr"
    for part in ("bench", "nn"):
        (package / part).mkdir(parents=True)
    for name in ("bench/report.py", "nn/rows.py"):
        (package / name).write_text("1\n")
    monkeypatch.setattr(report, "__file__", str(package / "bench" / "report.py"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))

    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *words]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        git("init", "-q")
    except OSError:
        pytest.skip("needs git")
    git("commit", "-q", "--allow-empty", "-m", "empty")
    return git


def test_commit_of_a_checkout(checkout, tmp_path):
    assert report._commit() == "none (installed package)"  # it lies in another's repository
    checkout("add", "skmrr")
    checkout("commit", "-q", "-m", "package")
    commit = checkout("rev-parse", "--short", "HEAD")
    (tmp_path / "skmrr" / "notes.txt").write_text("untracked\n")
    assert report._commit() == commit
    (tmp_path / "skmrr" / "nn" / "rows.py").write_text("2\n")
    assert report._commit() == f"{commit} with changes"


def test_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert report._commit() == "none (installed package)"


def test_every_problem_has_its_sizes():
    assert set(SIZES) == set(PROBLEMS) == set(ATTACKS) == set(EPS)
    for name, size in SIZES.items():
        chosen = of_kinds(ATTACKS[name], size.kinds)
        papers = set(PAPER_TABLE1.get(name, ())) - {"JSMA"}  # slow on colour images
        assert {attack.split()[0] for attack in chosen} >= papers
        assert list(EPS[name]) == sorted(EPS[name])
        assert not size.quick


def test_quick_is_smaller_than_any():
    for size in SIZES.values():
        for field in ("adaptive_steps", "carlini_search", "carlini_steps", "member_epochs"):
            assert getattr(QUICK, field) < getattr(size, field)
        assert QUICK.n_adaptive < size.n_adaptive
        assert QUICK.n_carlini < size.n_carlini
        assert max(QUICK.numbers) < max(size.numbers)
    assert QUICK.quick
    kinds = {attack.split()[0] for attack in of_kinds(ATTACKS["digits"], QUICK.kinds)}
    assert kinds == set(QUICK.kinds)


def test_sizes_in_levels_of_a_pixel():
    suite = paper_attacks(fgsm=(8 / 255, 1 / 255), bim=(2 / 255,), carlini=(10,))
    levels = in_levels(suite)
    assert list(levels) == [
        "FGSM 8/255", "FGSM 1/255", "BIM 2/255", "DeepFool", "JSMA γ=0.1", "CW κ=10",
    ]  # fmt: skip
    assert list(levels.values()) == list(suite.values())


def test_attacks_of_kinds_keep_their_order():
    suite = ATTACKS["digits"]
    assert list(of_kinds(suite, ("CW", "FGSM"))) == [
        "FGSM 0.05", "FGSM 0.1", "FGSM 0.2", "CW κ=0", "CW κ=10",
    ]  # fmt: skip
    assert list(of_kinds(suite, ("APGD",))) == ["APGD 0.1", "APGD 0.2"]
    assert of_kinds(suite, ()) == {}


@pytest.fixture(scope="module")
def images(digits):
    """Images to fit, calibrate and test on; the victim of the tests was trained on the first."""
    X, y = digits
    return X[:1000], y[:1000], X[1000:1300], X[1300:], y[1300:]


@pytest.fixture(scope="module")
def suite():
    return paper_attacks(fgsm=(1e-9, 0.1, 0.3), bim=(0.3,), deepfool=None, jsma=(), carlini=())


@pytest.fixture(scope="module")
def problem(net, images, suite):
    params = {"n_attacked": 30, "attacks": suite, "from_all": ("BIM",)}
    return with_attacks("digits", 5, joblib.Memory(None), net, images, **params)


def test_attacks_start_from_so_many_right_images(problem, net, images):
    right = np.flatnonzero(predict(net, images[3]) == images[4])
    assert len(right) < len(images[3])
    np.testing.assert_array_equal(np.sort(problem.rows), right)
    assert problem.attacks["FGSM 0.1"].n_attacked == problem.attacks["FGSM 0.3"].n_attacked == 30
    assert problem.attacks["BIM 0.3"].n_attacked == len(right)
    for name, attack in problem.attacks.items():
        assert set(attack.rows) <= set(problem.rows[: attack.n_attacked]), name
    for given, kept in zip(
        images, (problem.X_fit, problem.y_fit, problem.X_calibration, problem.X_test,
                 problem.y_test), strict=True,
    ):  # fmt: skip
        assert given is kept


def test_successes_fool_the_victim(problem, net):
    for attack in (problem.attacks[name] for name in problem.adversarial):
        assert len(attack.X) == len(attack.rows) > 0
        assert (predict(net, attack.X) != problem.y_test[attack.rows]).all()
        change = (attack.X - problem.X_test[attack.rows]).reshape(len(attack.X), -1)
        np.testing.assert_allclose(np.linalg.norm(change, axis=1), attack.distortion, rtol=1e-4)
    assert problem.adversarial["BIM 0.3"] is problem.attacks["BIM 0.3"].X
    assert problem.distortion["BIM 0.3"] == problem.attacks["BIM 0.3"].distortion.mean()


def test_an_attack_without_success_is_kept_as_such(problem):
    assert list(problem.attacks) == ["FGSM 1e-09", "FGSM 0.1", "FGSM 0.3", "BIM 0.3"]
    assert problem.attacks["FGSM 1e-09"].n_attacked == 30
    assert list(problem.adversarial) == ["FGSM 0.1", "FGSM 0.3", "BIM 0.3"]


def test_the_seed_draws_the_images(problem, net, images):
    params = {"n_attacked": 30, "kinds": ()}
    same, other = (
        with_attacks("digits", seed, joblib.Memory(None), net, images, **params) for seed in (5, 6)
    )
    np.testing.assert_array_equal(same.rows, problem.rows)
    assert not np.array_equal(other.rows, problem.rows)
    np.testing.assert_array_equal(np.sort(other.rows), np.sort(problem.rows))
    assert other.attacks == {}


def test_an_untrained_victim_is_attacked_where_it_is_right_by_chance(images, make_net):
    victim = make_net(3).eval()
    right = (predict(victim, images[3]) == images[4]).sum()
    some = {"FGSM 0.3": Attack(*paper_attacks()["FGSM 0.2"])}
    params = {"n_attacked": 10_000, "attacks": some}
    problem = with_attacks("digits", 0, joblib.Memory(None), victim, images, **params)
    assert problem.attacks["FGSM 0.3"].n_attacked == right


@pytest.fixture(scope="module")
def untrained(images):
    torch.manual_seed(0)
    return Problem("digits", 1, build_digits().eval(), *images, np.arange(0), {})


def test_an_unknown_detector_is_named(untrained):
    with pytest.raises(ValueError, match=r"no detector \['k-nn'\] on digits.*'k-NN'"):
        fit_all(untrained, joblib.Memory(None), names=["energy", "k-nn"])


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_names_are_those_of_the_detectors(untrained, name, monkeypatch):
    monkeypatch.setattr(systems, "read_resnet", ResNet)
    monkeypatch.setattr(systems, "_hardened", replicate)  # the published one is of ResNet-20
    detectors = unfitted(dataclasses.replace(untrained, name=name))
    assert {*detectors, WITH_NOISE} == set(detectors_on(name))
    assert detectors_on(name)[:2] == [ENSEMBLE, WITH_NOISE]


def test_noise_members_join_the_fitted_ones(untrained):
    template = LatentDefender(max_epochs=1)
    plain = MRREnsemble(
        untrained.victim, estimator=template, clip_values=(0, 1), calibration_fraction=0
    ).fit(untrained.X_fit, untrained.y_fit)
    noisy = with_noise(plain, untrained).calibrate(untrained.X_calibration)
    assert noisy.member_names_ == ["latent_0", "margin", "dense", "sparse"]
    assert noisy.weights_.tolist() == [1, 1, 1, SPARSE_WEIGHT]
    latent = noisy.named_defenders_.latent_0.statistic_
    assert latent is plain.named_defenders_.latent_0.statistic_  # trained once
    assert plain.member_names_ == ["latent_0", "margin"]


def test_augmented_images_are_shifted_or_mirrored():
    X = np.random.default_rng(0).random((1, 3, 9, 9)).astype(np.float32)
    images = Augmented(X, shift=4, mirror=True)
    assert len(images) == 1
    torch.manual_seed(0)
    seen = {images[0].numpy().tobytes() for _ in range(400)}
    assert 120 < len(seen) <= 2 * 9**2
    x = torch.as_tensor(X[0])
    padded = torch.nn.functional.pad(torch.stack([x, x.flip(2)]), [4] * 4, mode="replicate")
    windows = padded.unfold(2, 9, 1).unfold(3, 9, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 9, 9)
    assert seen <= {window.contiguous().numpy().tobytes() for window in windows}
    unmirrored = Augmented(X, shift=0)
    assert all(torch.equal(unmirrored[0], x) for _ in range(10))


def test_detectors_come_as_asked_and_calibrated(untrained):
    told = []
    names = ["energy", "max-softmax"]
    fitted = fit_all(untrained, joblib.Memory(None), names=names, progress=told.append)
    assert list(fitted) == names
    assert told == ["digits, seed 1: max-softmax", "digits, seed 1: energy"]
    for system in fitted.values():
        flagged = (system.detector.predict(untrained.X_calibration) == -1).mean()
        assert 0 < flagged <= 0.01 * 301 / 300
        assert system.fit_seconds > 0


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Run a command at a tiny size, in a folder that all share; return its report's folder."""
    folder = tmp_path_factory.mktemp("results")
    train = victims.train

    def hasty(victim, x, y, epochs, *rest):
        return train(victim, x, y, 8, *rest)

    with pytest.MonkeyPatch.context() as patch:
        tiny = dataclasses.replace(
            QUICK, kinds=("FGSM", "PGD"), adaptive_steps=2, carlini_steps=5, n_timed=50
        )
        patch.setattr(sizes, "QUICK", tiny)
        patch.setattr(transferability, "TRANSFER_KINDS", ("FGSM",))
        patch.setattr(victims, "train", hasty)

        def run(measure, *detectors, effort=1):
            chosen = [word for name in detectors for word in ("--detector", name)]
            if effort > 1:
                chosen += ["--effort", str(effort)]
            options = ["--quick", "--seeds", "1", "--attacked", "12", "--adaptive", "2"]
            words = ["bench", measure, *options, "--output", folder, "--threads", "1", *chosen]
            printed = succeed(patch, *words)
            whose = ""
            if measure == "table1":
                others = "" if ENSEMBLE in detectors else "-rivals"
                whose = "-ours" if set(detectors) <= set(OURS) else others
            home = folder / f"{measure}-digits{whose}{f'-effort{effort}' * (effort > 1)}"
            assert (home / "report.md").read_text("utf-8") in printed
            assert f"written to {home}" in printed
            return home

        yield run


def test_table1_writes_its_report(small_run):
    home = small_run("table1", "max-softmax", "energy")
    assert {path.name for path in home.iterdir()} == {
        "detection.csv", "detection.json", "flagged.csv", "flagged.json", "cost.csv", "cost.json",
        "harmless.csv", "harmless.json",
        "roc_worst_case.png", "cost.png", "provenance.json", "report.md",
    }  # fmt: skip
    detection = pd.read_csv(home / "detection.csv")
    assert detection["detector"].unique().tolist() == ["max-softmax", "energy"]
    assert set(detection["attack"]) <= {*of_kinds(ATTACKS["digits"], ("FGSM", "PGD")), "worst case"}
    assert (detection["n_rows"] <= 12).all()
    assert detection[["auc", "auc_low", "auc_high"]].stack().dropna().between(0, 1).all()
    assert detection["channel"].unique().tolist() == [*CHANNELS, "any channel"]
    pd.testing.assert_frame_equal(pd.read_json(home / "detection.json"), detection)
    flagged = pd.read_csv(home / "flagged.csv")
    assert flagged.query("rows == 'clean'")["n_rows"].unique().tolist() == [450]
    text = (home / "report.md").read_text("utf-8")
    origin = json.loads((home / "provenance.json").read_text("utf-8"))
    assert origin["command"].startswith("skmrr bench table1 --quick --seeds 1")
    assert origin["seeds"] == [1]
    assert "| worst case |" in text
    assert "### Through channels" in text
    assert "### Harmless changes" in text
    assert "Quick: trained for a moment" in text


def test_a_table_of_ours_alone_is_another_one(small_run):
    home = small_run("table1", CERTIFIED)
    text = (home / "report.md").read_text("utf-8")
    assert text.startswith("## Table 1: attacks on the victim alone, this package's detectors")


def test_again_it_comes_from_the_cache(small_run, monkeypatch):
    home = small_run("table1", "max-softmax", "energy")
    before = (home / "detection.csv").read_text("utf-8")

    def refuse(*args, **kwargs):
        raise AssertionError("this has been computed before")

    monkeypatch.setattr(victims, "train", refuse)
    monkeypatch.setattr(BaseDetector, "fit", refuse)
    monkeypatch.setattr("skmrr.art.suite_runs._judged", refuse)
    small_run("table1", "max-softmax", "energy")
    assert (home / "detection.csv").read_text("utf-8") == before


def test_peers_name_their_detectors(small_run):
    home = small_run("peers", "max-softmax", CERTIFIED)
    peers = pd.read_csv(home / "peers.csv")
    assert peers["detector"].tolist() == ["max-softmax", CERTIFIED]
    assert peers["SR@5, ε 0.2"].between(0, 1).all()
    harmless = pd.read_csv(home / "harmless.csv")
    assert harmless["change"].unique().tolist() == ["none", *SEVERITIES]
    assert harmless["flagged"].between(0, 1).all()
    assert "| shift 3 " in (home / "report.md").read_text("utf-8")
    assert peers["bound, ε 0.2"].isna().tolist() == [True, False]
    assert (home / "roc_worst_case.png").exists()
    adaptive = pd.read_csv(home / "adaptive.csv")
    assert adaptive["success_rate"].between(0, 1).all()
    assert adaptive["n_rows"].tolist() == [2, 2]
    impostors = pd.read_csv(home / "impostors.csv")
    assert impostors["detector"].unique().tolist() == ["max-softmax", CERTIFIED]
    at_sp = impostors[impostors["security_parameter"] == 0.05]
    assert peers["floor, SP 5%"].tolist() == pytest.approx(at_sp["impostor_rate"].tolist())
    assert impostors["impostor_rate"].between(0, 1).all()
    assert "| floor, SP 50% |" in re.sub(" +", " ", (home / "report.md").read_text("utf-8"))


def test_success_of_all_seeds_is_pooled():
    frame = pd.DataFrame(
        {"detector": "a", "eps": [0.1, 0.2] * 2, "n_rows": 20, "success_rate": [0, 0.5, 0, 0.7]}
    )
    pooled = pooled_success(frame)
    assert pooled["success_rate"].tolist() == pytest.approx([0, 0.6])
    assert pooled["high"].iloc[0] == pytest.approx(1 - 0.025 ** (1 / 40))
    costs = {"fit_seconds": [12.345], "score_cost": [2.34], "megabytes": [0.123]}
    table = pd.DataFrame(costs, index=pd.Index(["a"], name="detector"))
    shown = with_intervals(table, pooled).loc["a"]
    assert shown["SR@5, ε 0.1"] == ".00 (.00–.09)"
    assert shown["SR@5, ε 0.2"] == ".60 (.43–.75)"
    assert shown["fit_seconds"] == "12"


def test_own_accuracy_is_that_of_what_rebuilds(net, images):
    X, y = images[3][:100], images[4][:100]
    right = (predict(net, X) == y).mean()
    assert own_accuracy(SimpleNamespace(purified_classifier=lambda: net), X, y) == right
    assert np.isnan(own_accuracy(SimpleNamespace(), X, y))


def test_squeezers_are_those_of_the_paper(untrained):
    assert unfitted(untrained)["feature squeezing"].bit_depth == 1


def test_cost_is_drawn_of_perfect_detectors_too():
    detection = pd.DataFrame(
        {"detector": ["a", "b"], "channel": "raw", "attack": "FGSM", "auc": [1.0, 0.0]}
    )
    cost = pd.DataFrame({"detector": ["a", "b"], "score_cost": [2.0, 3.0]})
    (ax,) = draw_cost({"detection": detection, "cost": cost}).axes
    low, high = ax.get_ylim()
    drawn = ax.collections[0].get_offsets()[:, 1]
    assert np.all((low < drawn) & (drawn < high))
    plt.close("all")


def test_table2_of_prior_art(small_run):
    home = small_run("table2", "APE-GAN")
    table = pd.read_csv(home / "table2.csv")
    assert table["system"].tolist() == ["APE-GAN", "APE-GAN", "APE-GAN as published"]
    assert table["security_parameter"].tolist() == [0.01, 0.05, 0.0]
    images = pd.read_csv(home / "images.csv")
    assert images.groupby(["system", "security_parameter"])["image"].nunique().eq(2).all()
    beside_the_victim = images[images["system"] == "APE-GAN"]
    assert (beside_the_victim["l2"] >= beside_the_victim["l2_alone"]).all()


def test_more_effort_is_another_report(small_run):
    once, thrice = (small_run("table2", "APE-GAN", effort=effort) for effort in (1, 3))
    assert "3 times the steps" in (thrice / "report.md").read_text("utf-8")
    assert "× 15 steps" in (thrice / "report.md").read_text("utf-8")
    light, hard = (pd.read_csv(home / "images.csv")["l2"] for home in (once, thrice))
    assert hard.mean() < light.mean()


def test_transfer_between_networks(small_run):
    home = small_run("transfer", "energy")
    matrix = pd.read_csv(home / "matrix.csv")
    assert set(matrix["source"]) == set(matrix["target"]) == {"victim", "re-seeded victim"}
    assert (matrix.query("source == target")["fooled"] == 1).all()
    detectors = pd.read_csv(home / "detectors.csv")
    assert detectors["detector"].unique().tolist() == ["energy"]
    assert detectors["accepted"].between(0, 1).all()


def test_transfer_begins_where_all_networks_are_right(untrained, net):
    networks = {"victim": untrained.victim, "other": net.eval()}
    X, y = transferability.right_everywhere(untrained, networks)
    for network in networks.values():
        assert (predict(network, X) == y).all()
    right = [
        predict(network, untrained.X_test) == untrained.y_test for network in networks.values()
    ]
    assert 0 < len(X) == (right[0] & right[1]).sum() < right[0].sum()


def test_margins_are_compared_within_attacks(rng):
    """A weak attack, missed more often, succeeds on small margins alone: that is no finding."""
    frame = pd.DataFrame(
        {
            "seed": 1,
            "attack": np.repeat(["weak", "strong"], 1000),
            "clean_margin": np.r_[rng.random(1000), 5 + rng.random(1000)],
            "missed": rng.random(2000) < np.repeat([0.5, 0.1], 1000),
            "transferred": False,
        }
    )
    table = figures.hardness_table(frame)
    assert table.loc["missed", "P(smaller)"] == pytest.approx(0.5, abs=0.05)
    assert table.loc["missed", "median margin"] < table.loc["caught, not transferred"].iloc[1]
    assert np.isnan(table.loc["transferred", "P(smaller)"])
    frame["clean_margin"] -= 10 * frame["missed"]
    assert figures.hardness_table(frame).loc["missed", "P(smaller)"] == 1


def test_figures_are_drawn(small_run):
    home = small_run("figures")
    for name in ("figure4", "figure5"):
        assert (home / f"{name}.png").stat().st_size > 10_000
    outcomes = pd.read_csv(home / "outcomes.csv")
    assert outcomes["outcome"].tolist() == ["caught, not transferred", "missed", "transferred"]
    assert "caught, not transferred" in (home / "report.md").read_text("utf-8")


def test_results_are_joined(frame, tmp_path, monkeypatch):
    written(frame, tmp_path / "results")
    printed = succeed(monkeypatch, "bench", "results", "--output", tmp_path / "results")
    page = tmp_path / "results" / "results.md"
    assert f"written to {page}" in printed
    assert "Of table1-digits" in page.read_text("utf-8")
    page = tmp_path / "docs" / "results.md"
    options = ("--output", tmp_path / "results", "--page", page)
    succeed(monkeypatch, "bench", "results", *options)
    assert "](../results/table1-digits/a_curve.png)" in page.read_text("utf-8")


def test_results_of_nothing_say_what_to_run(tmp_path):
    outcome = CliRunner().invoke(app, ["bench", "results", "--output", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "There is no report" in outcome.output
    assert not (tmp_path / "results.md").exists()


def test_the_command_written_down_can_be_run_again(small_run):
    """Names of detectors hold spaces."""
    home = small_run("table1", "max-softmax", "feature squeezing")
    origin = json.loads((home / "provenance.json").read_text("utf-8"))
    assert origin["command"].endswith("--detector max-softmax --detector 'feature squeezing'")
    assert str(home.parent) not in (home / "report.md").read_text("utf-8")


@pytest.mark.parametrize("words", [["--output", "a b"], ["--output=a b"], []])
def test_the_folder_is_not_written_down(monkeypatch, words):
    monkeypatch.setattr("sys.argv", ["/bin/skmrr", "bench", "peers", *words, "--seeds", "2"])
    assert typed() == "skmrr bench peers --seeds 2"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["bench", "table1", "--seeds", "0"], "--seeds"),
        (["bench", "table1", "--dataset", "svhn"], "imagenette"),
        (["bench", "table3"], "table3"),
        (["bench", "table1", "--detector", "k-nn"], "k-NN"),
        (["bench", "table2", "--dataset", "cifar10", "--detector", CERTIFIED], "CertifiedDefender"),
        (["bench", "figures", "--detector", "energy"], "nothing"),
        (["bench", "transfer", "--effort", "2"], "knows the detector"),
        (["bench", "table2", "--restarts", "2"], "leave out --restarts"),
    ],
)
def test_what_cannot_be_run_is_told(monkeypatch, words, shown):
    outcome = invoke(monkeypatch, *words)
    assert outcome.exit_code == 2
    assert shown in outcome.output


def test_help_lists_the_commands(monkeypatch):
    printed = succeed(monkeypatch, "bench", "--help")
    assert all(name in printed for name in [*COMMANDS, "results"])


@pytest.mark.slow
@pytest.mark.parametrize("measure", COMMANDS)
def test_quick_is_quick(measure, tmp_path, monkeypatch):
    start = time.perf_counter()
    succeed(monkeypatch, "bench", measure, "--quick", "--seeds", "1", "--output", tmp_path)
    assert time.perf_counter() - start < QUICK_SECONDS
    text = (tmp_path / f"{measure}-digits" / "report.md").read_text("utf-8")
    assert ENSEMBLE in text or measure == "figures"  # whose table is of outcomes
