"""The published challenges: the files, the rules, and what is made of submissions."""

import hashlib
import math
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from skmrr import MarginDetector
from skmrr.bench import challenge, challenge_files
from skmrr.bench.challenge_entries import find
from skmrr.bench.data_files import find_all
from skmrr.bench.submissions import BATCH, judge
from skmrr.bench.victims import RESNET_FILES
from skmrr.cli import app
from skmrr.evaluation.bounds import within_reach

FLAGGED = 10
DIGITS = find("digits")
(EPS,) = DIGITS.eps
needs_mnist = pytest.mark.skipif(not find_all("mnist.npz"), reason="there is no mnist.npz")


@pytest.fixture(scope="module")
def network():
    return challenge.load()


@pytest.fixture(scope="module")
def clean():
    return challenge.test_rows()


@pytest.fixture(scope="module")
def answers(network, clean):
    return network(torch.as_tensor(clean[0])).argmax(1).numpy()


@pytest.fixture(scope="module")
def right(network, clean):
    """Positions that the victim gets right."""
    return np.flatnonzero(network.victim(torch.as_tensor(clean[0])).argmax(1).numpy() == clean[1])


PAGE = Path(__file__).parents[1] / "docs" / "challenge.md"
# A checkout has the files of all, the wheel those of digits alone.
PUBLISHED = list(challenge.CHALLENGES) if PAGE.is_file() else ["digits"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_files_are_the_published_ones_and_small(name):
    files = [path.read_bytes() for path in challenge_files.paths_of(name)]
    assert tuple(hashlib.sha256(data).hexdigest() for data in files) == find(name).sha256
    assert sum(map(len, files)) < 4 * 2**20


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_challenge_is_read_without_its_images(name):
    if find(name).publishes_victim or find_all(f"weights/{RESNET_FILES[20]}"):
        assert not challenge.load(name).training
    reach = challenge.within_reach(name)
    attacked = challenge_files.read_victim_file(name)["attacked"].numpy()
    assert reach.shape == attacked.shape
    assert (attacked | ~reach).all()
    is_bounded = name != "cifar10"
    assert (0 < reach.sum() < 0.2 * attacked.sum()) == is_bounded
    assert (f"more than {reach.sum()} of them" in challenge.describe(name)) == is_bounded


@pytest.mark.skipif(not PAGE.is_file(), reason="only a checkout has the pages")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_has_the_figures_of_the_files(name):
    (row,) = (
        line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| `{name}`")
    )
    _, _, eps, counted, bound, _ = (cell.strip() for cell in row.strip("|").split("|"))
    attacked = challenge_files.read_victim_file(name)["attacked"].numpy()
    assert tuple(float(Fraction(part)) for part in eps.split(", ")) == find(name).eps
    assert int(counted.replace(",", "")) == attacked.sum()
    share = challenge.within_reach(name).sum() / attacked.sum()
    assert bound == ("–" if share == 1 else f"{share:.1%}".replace("%", " %"))


def test_unknown_names_and_radii_list_those_there_are():
    with pytest.raises(ValueError, match="there are: digits, mnist, cifar10"):
        challenge.load("svhn")
    with pytest.raises(ValueError, match=r"it has \(0.1,\)"):
        challenge.within_reach(eps=0.2)
    result = run("info", "--name", "svhn")
    assert result.exit_code == 2
    assert "digits, mnist, cifar10" in result.output


def test_loading_gives_the_same_each_time_and_leaves_the_generator(network, clean):
    x = torch.as_tensor(clean[0][:50])
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    again = challenge.load()
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(again(x), network(x))


def test_batches_do_not_matter(network, clean):
    x = torch.as_tensor(clean[0][:40])
    parts = torch.cat([network(part) for part in x.split(13)])
    torch.testing.assert_close(parts, network(x), rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_input_and_nothing_else(network, clean):
    x = torch.as_tensor(clean[0][:8]).requires_grad_(True)
    gradient = torch.autograd.grad(network(x)[:, FLAGGED].sum(), x)[0]
    assert gradient.isfinite().all()
    assert gradient.flatten(1).abs().amax(1).min() > 0
    assert not any(weight.requires_grad for weight in network.parameters())


def test_the_model_is_worth_attacking(answers, right, clean):
    assert len(right) > 0.97 * len(clean[1])
    assert (answers == FLAGGED).mean() < 2 * DIGITS.security_parameter
    assert 0 < challenge.within_reach().sum() < 0.2 * len(right)


def test_rows_are_split_once(clean):
    parts = [challenge.training_rows(), challenge.calibration_rows(), clean]
    assert [len(y) for _, y in parts] == [997, 300, 500]
    assert len(np.unique(np.concatenate([x for x, _ in parts]), axis=0)) == 1797


def test_the_bound_is_that_of_the_estimator(network, clean, right):
    x, labels = (torch.as_tensor(part[right]) for part in clean)
    possible = within_reach(network.detector, x, labels, EPS, DIGITS.security_parameter).any(1)
    stored = challenge.within_reach()
    assert stored.sum() == stored[right].sum()
    # rounding may move a row at the very edge
    assert abs(int(possible.sum()) - int(stored.sum())) <= 2


def copy_files(folder):
    for path in challenge_files.paths_of("digits"):
        (folder / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize("which", [0, 1])
def test_other_files_are_refused(tmp_path, monkeypatch, which):
    copy_files(tmp_path)
    assert challenge.load(folder=tmp_path) is not None
    path = challenge_files.paths_of("digits", tmp_path)[which]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(challenge_files, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="Install skmrr afresh"):
        challenge.load()


def test_clean_rows_break_nothing(clean, right):
    score = challenge.score({"x": clean[0]})
    within = score.within[EPS]
    assert within.broken == ()
    assert within.success_rate == within.interval[0] == 0 < within.interval[1] < 0.01
    assert within.n_attacked == len(right)
    assert score.n_claimed == len(clean[1])
    (reason,) = score.refused
    assert reason.startswith("the victim errs")
    assert len(score.refused[reason]) == len(clean[1]) - len(right)


def test_nothing_claimed_is_no_error(clean):
    score = challenge.score({"x": np.full_like(clean[0], np.nan)})
    within = score.within[EPS]
    assert (score.n_claimed, within.broken, score.refused) == (0, (), {})
    assert math.isclose(within.bound, challenge.within_reach().sum() / within.n_attacked)


def changed(image, change):
    image = image.astype(np.float64)
    flat = image.reshape(-1)
    change(flat, int(np.argmin(flat)), int(np.argmax(flat)))
    return image


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pixels, low, high: pixels.__setitem__(0, np.nan), "not finite"),
        (lambda pixels, low, high: pixels.__setitem__(0, np.inf), "not finite"),
        (lambda pixels, low, high: pixels.__setitem__(0, 1e300), "not finite"),
        (lambda pixels, low, high: pixels.__setitem__(low, -0.05), "outside"),
        (lambda pixels, low, high: pixels.__setitem__(high, 1.05), "outside"),
        (lambda pixels, low, high: pixels.__setitem__(low, pixels[low] + 0.101), "farther"),
    ],
    ids=["nan", "inf", "overflow", "below", "above", "far"],
)
def test_rows_against_the_rule_are_refused(clean, right, change, reason):
    rows = right[:3]
    x = clean[0][rows].astype(np.float64)
    x[1] = changed(x[1], change)
    score = challenge.score({"rows": rows, "x": x})
    ((found, refused),) = score.refused.items()
    assert reason in found
    assert refused == (rows[1],)
    assert score.n_claimed == 3
    assert f"1 refused, {found}: {rows[1]}" in str(score)


def test_the_edge_of_the_ball_is_allowed(clean, right):
    rows = right[:50]
    x = (clean[0][rows] + np.float32(EPS)).clip(0, 1)
    assert challenge.score({"rows": rows, "x": x}).refused == {}


@pytest.mark.parametrize(
    ("submission", "message"),
    [
        ({"X": np.zeros(3)}, "needs an array x"),
        ({"x": np.zeros((499, 1, 8, 8))}, r"shape \(500, 1, 8, 8\)"),
        ({"x": np.zeros((500, 64))}, r"shape \(500, 1, 8, 8\)"),
        ({"x": np.zeros((500, 1, 8, 8), dtype=int)}, "floats"),
        ({"x": np.zeros((2, 1, 8, 8)), "rows": [0, 0]}, "must differ"),
        ({"x": np.zeros((2, 1, 8, 8)), "rows": [-1, 0]}, "0 to 499"),
        ({"x": np.zeros((2, 1, 8, 8)), "rows": [0.0, 1.0]}, "integers"),
        ({"x": np.zeros((3, 1, 8, 8)), "rows": [0, 1]}, r"shape \(2, 1, 8, 8\)"),
    ],
)
def test_other_arrays_raise(submission, message):
    with pytest.raises(ValueError, match=message):
        challenge.score(submission)


def test_successes_are_counted_within_each_radius(network, clean, right, answers):
    """In a ball that holds everything, an accepted image of another class is one."""
    x, labels = clean
    accepted = np.flatnonzero((answers == labels) & (answers != FLAGGED))
    flagged = np.flatnonzero(answers == FLAGGED)
    of_three = accepted[labels[accepted] == 3]
    others = right[labels[right] != 3][:4]
    submission = np.full_like(x, np.nan)
    submission[others] = x[[*of_three[:3], flagged[0]]]
    reach = torch.as_tensor(challenge.within_reach())
    attacked = torch.zeros(len(x), dtype=torch.bool)
    attacked[right] = True
    parts = map(torch.as_tensor, (submission, *clean))
    score = judge(network, *parts, attacked, {EPS: reach, 1.0: reach})
    near, far = score.within.values()
    assert (near.broken, score.refused) == ((), {})
    assert far.broken == tuple(others[:3])
    assert far.success_rate == pytest.approx(3 / len(right))
    assert far.interval[0] < far.success_rate < far.interval[1]
    # the stored bound is of another ball
    assert set(far.ruled_out) == set(others[:3][~challenge.within_reach()[others[:3]]])
    assert ("please report" in str(score)) == bool(far.ruled_out)


def test_a_large_submission_is_judged_in_batches(network, clean):
    n = 2 * BATCH + 3
    x = torch.zeros(n, 1, 8, 8)
    largest = []
    hook = network.register_forward_hook(lambda module, args, out: largest.append(len(args[0])))
    labels = torch.zeros(n, dtype=torch.long)
    everything = torch.ones(n, dtype=torch.bool)
    score = judge(network, x, x, labels, everything, {0.1: everything})
    hook.remove()
    assert score.n_claimed == sum(largest) == n
    assert max(largest) == BATCH


@pytest.fixture
def made_up(net, digits, monkeypatch, tmp_path):
    """Two radii, a victim that comes from elsewhere, and a detector without a bound."""
    X, y = digits
    rows = {"training": slice(0, 1000), "calibration": slice(1000, 1400), "test": slice(1400, 1500)}
    entry = replace(
        DIGITS,
        eps=(0.05, 0.5),
        rows=lambda part: (X[rows[part]], y[rows[part]]),
        victim=lambda: net,
        publishes_victim=False,
        recipe=lambda X, y, checkpoint, verbose: MarginDetector(net, random_state=0).fit(X, y),
    )
    monkeypatch.setitem(challenge.CHALLENGES, "made up", entry)
    sums = challenge.save(challenge.build("made up"), tmp_path, "made up")
    monkeypatch.setitem(challenge.CHALLENGES, "made up", replace(entry, sha256=sums))
    monkeypatch.setattr(challenge_files, "FOLDER", tmp_path)
    return entry


def test_a_challenge_of_two_radii_and_without_a_bound(made_up, net):
    assert sorted(challenge_files.read_victim_file("made up")) == ["attacked", "within_reach"]
    reach = challenge.within_reach("made up", eps=0.05)
    x, y = challenge.test_rows("made up")
    np.testing.assert_array_equal(reach, net(torch.as_tensor(x)).argmax(1).numpy() == y)
    network = challenge.load("made up")
    # half of the way to an image of another class that the detector believes
    accepted = np.flatnonzero(network(torch.as_tensor(x)).argmax(1).numpy() == y)
    rows = np.flatnonzero(reach)
    guides = np.array([next(k for k in accepted if y[k] != y[row]) for row in rows])
    moved = x[rows] + np.clip(x[guides] - x[rows], -0.5, 0.5)
    score = challenge.score({"rows": rows, "x": moved}, "made up")
    near, far = (score.within[eps] for eps in made_up.eps)
    assert len(near.broken) == 0 < len(far.broken)
    assert "no attack can break" not in str(score) + challenge.describe("made up")
    assert "by 0.05 or 0.5 at most" in challenge.describe("made up")


def test_a_victim_that_comes_from_elsewhere_keeps_its_state(made_up, net):
    before = [weight.requires_grad for weight in net.parameters()]
    challenge.load("made up")
    assert [weight.requires_grad for weight in net.parameters()] == before


@needs_mnist
def test_mnist_breaks_nothing_by_its_clean_images():
    x, labels = challenge.test_rows("mnist")
    assert x.shape == (10_000, 1, 28, 28)
    score = challenge.score({"rows": np.arange(1000), "x": x[:1000]}, "mnist")
    assert score.within[0.3].broken == ()
    assert score.n_claimed == 1000
    answers = challenge.load("mnist")(torch.as_tensor(x[:1000])).argmax(1)
    assert (answers == FLAGGED).double().mean() < 0.08
    right = challenge_files.read_victim_file("mnist")["attacked"][:1000]
    expected = challenge.load("mnist").victim(torch.as_tensor(x[:1000])).argmax(1)
    assert torch.equal(right, expected == torch.as_tensor(labels[:1000]))


def test_pickles_and_other_files_are_refused(tmp_path):
    path = tmp_path / "submission.npz"
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="plain arrays"):
        challenge.score(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="numpy.savez"):
        challenge.score(path)
    np.savez_compressed(path, x=np.zeros(200_000))
    with pytest.raises(ValueError, match="at most"):
        challenge.score(path)


def run(*arguments):
    wide = {"COLUMNS": "300"}  # or a path is broken into lines
    return CliRunner().invoke(app, ["challenge", *map(str, arguments)], env=wide)


def test_info_says_the_rule():
    result = run("info")
    assert result.exit_code == 0
    assert all(sha256 in result.output for sha256 in DIGITS.sha256)
    assert "by 0.1 at most" in result.output


def test_exported_files_can_be_scored(tmp_path, clean):
    folder = tmp_path / "challenge"
    assert run("export", folder).exit_code == 0
    assert (folder / "HOWTO.md").read_text(encoding="utf-8").startswith("# Break")
    with np.load(folder / "test.npz") as test:
        np.testing.assert_array_equal(test["x"], clean[0])
        np.testing.assert_array_equal(test["labels"], clean[1])
    result = run("score", folder / "submission.npz")
    assert result.exit_code == 0
    assert "success rate 0.0%" in result.output
    assert "0 rows submitted" in result.output
    assert run("export", folder).exit_code == 2  # a submission in it stays


def test_a_file_that_is_none_is_a_message(tmp_path):
    result = run("score", tmp_path / "none.npz")
    assert result.exit_code == 2
    assert "none.npz" in result.output


def test_build_writes_what_the_recipe_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(challenge, "build", lambda name, checkpoint, verbose: f"trained {name}")
    monkeypatch.setattr(challenge, "save", lambda detector, folder, name: (detector, name))
    result = run("build", tmp_path / "new", "--name", "mnist")
    assert (tmp_path / "new").is_dir()  # before half an hour of training is lost
    assert result.exit_code == 0
    assert "trained mnist" in result.output


@pytest.mark.slow
def test_the_recipe_gives_nearly_the_same(tmp_path, clean, answers):
    challenge.save(challenge.build(), tmp_path)
    again = challenge.load(folder=tmp_path)
    x = torch.as_tensor(clean[0])
    assert (again(x).argmax(1).numpy() == answers).mean() > 0.97
    n_again = challenge.within_reach(folder=tmp_path).sum()
    assert abs(int(n_again) - int(challenge.within_reach().sum())) < 20


def test_files_that_the_wheel_lacks_lie_where_data_sets_do(tmp_path, monkeypatch):
    """The wheel has the weights of the challenge of digits alone."""
    original = challenge_files.FOLDER
    monkeypatch.setattr(challenge_files, "FOLDER", tmp_path / "package")
    monkeypatch.setenv("SKMRR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"SKMRR_DATA.*skmrr/bench/challenges"):
        challenge_files.load("digits")
    shutil.copytree(
        original, tmp_path / "data", ignore=shutil.ignore_patterns("mnist-*", "cifar10-*")
    )
    assert challenge_files.load("digits").victim is not None
