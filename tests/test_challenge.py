"""The published challenge: the file, the rule, and what is made of submissions."""

import hashlib
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from skmrr.bench import challenge
from skmrr.cli import app
from skmrr.evaluation.bounds import within_reach

FLAGGED = 10


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


def test_the_file_is_the_published_one_and_small():
    data = challenge.WEIGHTS.read_bytes()
    assert hashlib.sha256(data).hexdigest() == challenge.SHA256
    assert len(data) < 400_000


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
    assert (answers == FLAGGED).mean() < 2 * challenge.SECURITY_PARAMETER
    assert 0 < challenge.within_reach().sum() < 0.2 * len(right)


def test_rows_are_split_once(clean):
    parts = [challenge.training_rows(), challenge.calibration_rows(), clean]
    assert [len(y) for _, y in parts] == [997, 300, 500]
    assert len(np.unique(np.concatenate([x for x, _ in parts]), axis=0)) == 1797


def test_the_bound_is_that_of_the_estimator(network, clean, right):
    x, labels = (torch.as_tensor(part[right]) for part in clean)
    possible = within_reach(
        network.detector, x, labels, challenge.EPS, challenge.SECURITY_PARAMETER
    ).any(1)
    stored = challenge.within_reach()
    assert stored.sum() == stored[right].sum()
    # rounding may move a row at the very edge
    assert abs(int(possible.sum()) - int(stored.sum())) <= 2


def test_another_file_is_refused(tmp_path):
    data = bytearray(challenge.WEIGHTS.read_bytes())
    data[-1] ^= 1
    path = tmp_path / "challenge.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="Install skmrr afresh"):
        challenge.load(path)
    assert challenge.load(path, sha256=None) is not None


def test_clean_rows_break_nothing(clean, right):
    score = challenge.score({"x": clean[0]})
    assert score.broken == ()
    assert score.success_rate == score.low == 0 < score.high < 0.01
    assert score.n_attacked == len(right)
    assert score.n_claimed == len(clean[1])
    (reason,) = score.refused
    assert reason.startswith("the victim errs")
    assert len(score.refused[reason]) == len(clean[1]) - len(right)


def test_nothing_claimed_is_no_error(clean):
    score = challenge.score({"x": np.full_like(clean[0], np.nan)})
    assert (score.n_claimed, score.broken, score.refused) == (0, (), {})
    assert math.isclose(score.bound, challenge.within_reach().sum() / score.n_attacked)


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
    x = (clean[0][rows] + np.float32(challenge.EPS)).clip(0, 1)
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


def test_a_success_is_counted(clean, right, answers, monkeypatch):
    """In a ball that holds everything, an accepted image of another class is one."""
    x, labels = clean
    monkeypatch.setattr(challenge, "EPS", 1.0)
    accepted = np.flatnonzero((answers == labels) & (answers != FLAGGED))
    flagged = np.flatnonzero(answers == FLAGGED)
    of_three = accepted[labels[accepted] == 3]
    others = right[labels[right] != 3][:4]
    images = np.stack([x[of_three[0]], x[of_three[1]], x[of_three[2]], x[flagged[0]]])
    score = challenge.score({"rows": others, "x": images})
    assert score.broken == tuple(others[:3])
    assert score.success_rate == pytest.approx(3 / len(right))
    assert score.low < score.success_rate < score.high
    # the stored bound is of another ball
    assert set(score.ruled_out) == set(others[:3][~challenge.within_reach()[others[:3]]])
    assert ("please report" in str(score)) == bool(score.ruled_out)


def test_pickles_and_other_files_are_refused(tmp_path):
    path = tmp_path / "submission.npz"
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="plain arrays"):
        challenge.score(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="numpy.savez"):
        challenge.score(path)
    np.savez_compressed(path, x=np.zeros(2_000_000))
    with pytest.raises(ValueError, match="at most"):
        challenge.score(path)


def test_the_template_claims_nothing_and_overwrites_nothing(tmp_path):
    path = tmp_path / "submission.npz"
    challenge.write_template(path)
    assert challenge.score(path).n_claimed == 0
    with pytest.raises(FileExistsError):
        challenge.write_template(path)


def run(*arguments):
    wide = {"COLUMNS": "300"}  # or a path is broken into lines
    return CliRunner().invoke(app, ["challenge", *map(str, arguments)], env=wide)


def test_info_says_the_rule():
    result = run("info")
    assert result.exit_code == 0
    assert challenge.SHA256 in result.output
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
    assert run("export", folder).exit_code == 2  # a submission in it stays


def test_a_file_that_is_none_is_a_message(tmp_path):
    result = run("score", tmp_path / "none.npz")
    assert result.exit_code == 2
    assert "none.npz" in result.output


def test_build_writes_what_the_recipe_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(challenge, "build", lambda: "trained")
    monkeypatch.setattr(challenge, "save", lambda detector, path: f"of {detector}")
    result = run("build", tmp_path / "new" / "own.safetensors")
    assert (tmp_path / "new").is_dir()  # before a minute of training is lost
    assert result.exit_code == 0
    assert "of trained" in result.output


@pytest.mark.slow
def test_the_recipe_gives_nearly_the_same(tmp_path, clean, answers):
    path = tmp_path / "own.safetensors"
    sha256 = challenge.save(challenge.build(), path)
    again = challenge.load(path, sha256=sha256)
    x = torch.as_tensor(clean[0])
    assert (again(x).argmax(1).numpy() == answers).mean() > 0.97
    n_again = challenge.within_reach(path, sha256=sha256).sum()
    assert abs(int(n_again) - int(challenge.within_reach().sum())) < 20
