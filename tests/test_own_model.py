"""The commands for a model of one's own: a stranger's network, weights, and folders of images."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import skmrr
from skmrr.cli import app
from skmrr.cli.classifiers import load_classifier
from skmrr.cli.options import load_detector
from skmrr.cli.outcomes import printable, replacing
from skmrr.cli.page import Picture, Section, Table, as_html, as_markdown
from skmrr.cli.scoring import DONT_KNOW
from skmrr.cli.settings import Settings, read_settings
from skmrr.monitor import RiskMonitor

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.hidden = nn.Linear(128, 32)
        self.out = nn.Linear(32, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv(x).relu(), 2)
        return self.out(self.hidden(x.flatten(1)).relu())


def sized(n):
    return Net()


number = 3
"""
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PARTS = {"train": slice(600), "new": slice(600, 1000), "test": slice(1000, 1300)}
MEAN, STD = 0.3, 0.4
MODULE = "a_strangers_network"


def run(home, *words, code=0):
    """Run the command in this process, in a folder; return standard output and error."""
    before = Path.cwd()
    os.chdir(home)
    try:
        outcome = CliRunner().invoke(app, [str(word) for word in words])
    finally:
        os.chdir(before)
    assert outcome.exit_code == code, f"{outcome.stderr}{outcome.exception!r}"
    return outcome.stdout, outcome.stderr


@pytest.fixture(scope="module")
def bare(tmp_path_factory, digits):
    """Folder with a stranger's network, its weights, and PNG files by class and in one folder."""
    home = tmp_path_factory.mktemp("stranger")
    (home / f"{MODULE}.py").write_text(NET)
    X, y = digits
    for part, rows in PARTS.items():
        for k, (image, label) in enumerate(zip(X[rows], y[rows], strict=True)):
            folder = home / part / NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            saved = Image.fromarray((255 * image[0]).round().astype(np.uint8))
            saved.save(folder / f"{k:03d}.png")
    settings = Settings(home, factory=f"{MODULE}:Net", clip_values=[0, 1])
    torch.manual_seed(0)
    net = load_classifier(settings)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    place = {name: k for k, name in enumerate(sorted(NAMES))}  # as folders are sorted
    labels = torch.tensor([place[NAMES[label]] for label in y[:600]])
    x = (torch.as_tensor(X[:600]) - MEAN) / STD
    for _ in range(15):
        for batch in torch.randperm(600).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[batch]), labels[batch]).backward()
            optimizer.step()
    torch.save(net.state_dict(), home / "weights.pt")
    return home


SMALL = ("--rows", 60, "--attacked", 20, "--adaptive", 3, "--steps", 3)
INIT = [
    *("init", f"{MODULE}:Net", "weights.pt", "--data", "train", "--grey"),
    *("--mean", MEAN, "--std", STD),
]


WALK = {
    "init": INIT[1:],
    "fit": ["train", "--max-epochs", "3", "--security-parameter", "0.05"],
    "calibrate": ["new"],
    "score": ["test", "--output", "risks.csv"],
    "report": ["test", *SMALL],
    "export": ["detector.pt2", "--data", "test"],
}


@pytest.fixture(scope="module")
def home(bare):
    """The same after all six commands, whose seconds are printed."""
    for name, words in WALK.items():
        begun = time.perf_counter()
        stdout, _ = run(bare, name, *words)
        print(f"\nskmrr {name}: {time.perf_counter() - begun:.1f} s", end="")
        assert stdout == ""
    return bare


def scored(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_init_writes_what_it_has_found(home):
    settings = read_settings(home / "skmrr.toml")
    assert settings.classes == sorted(NAMES)
    assert (settings.size, settings.colours) == ([8, 8], "grey")
    assert (settings.mean, settings.std, settings.clip_values) == ([MEAN], [STD], [0, 1])


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["--mean", MEAN, "--std", STD], "add --grey"),
        (["--grey", "--mean", ".1,.2,.3", "--std", "1,1,1"], "3 numbers, but rows .* 1 channels"),
    ],
    ids=["colours", "normalisation"],
)
def test_init_says_what_does_not_fit_the_classifier(bare, words, cure):
    init = ["init", f"{MODULE}:Net", "weights.pt", "--data", "train", "--settings", "other.toml"]
    _, stderr = run(bare, *init, *words, code=2)
    assert re.search(cure, " ".join(stderr.split()))
    assert not (bare / "other.toml").exists()


def test_score_is_a_few_lines_of_the_library(home, digits):
    stdout, stderr = run(home, "score", "test")
    rows = scored(stdout)
    settings = read_settings(home / "skmrr.toml")
    detector = skmrr.load(home / "detector.safetensors", classifier=load_classifier(settings))
    X = digits[0][PARTS["test"]]
    order = [int(Path(row["file"]).stem) for row in rows]
    X = (255 * X[order]).round().astype(np.float32) / 255
    np.testing.assert_allclose([float(row["risk"]) for row in rows], detector.risk(X), atol=1e-6)
    named = [DONT_KNOW if c == -1 else settings.classes[c] for c in detector.classify(X)]
    assert [row["label"] for row in rows] == named
    is_alarmed = (detector.member_risks(X) > 0.95).to_numpy()
    alarms = [";".join(np.array(detector.member_names_)[row]) for row in is_alarmed]
    assert [row["alarm"] for row in rows] == alarms
    n_flagged = sum(row["flagged"] == "true" for row in rows)
    assert 0 < n_flagged < 0.15 * len(rows)
    assert f"300 rows, {n_flagged} flagged, 0 not readable" in stderr
    right = [row["label"] == Path(row["file"]).parent.name for row in rows]
    assert np.mean(right) > 0.8


def test_a_fresh_process_gives_the_same_and_workers_change_nothing(home):
    words = [sys.executable, "-m", "skmrr.cli", "score", "test", "--workers", "2"]
    path = os.pathsep.join([str(Path(skmrr.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    outcome = subprocess.run(
        [*words, "--fail-on-flagged"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 4, outcome.stderr
    here, _ = run(home, "score", "test")
    for one, other in zip(scored(outcome.stdout), scored(here), strict=True):
        assert float(one.pop("risk")) == pytest.approx(float(other.pop("risk")), abs=1e-6)
        assert one == other


def test_another_threshold_needs_no_other_file(home):
    lax, _ = run(home, "score", "test", "--security-parameter", "0.5")
    strict, _ = run(home, "score", "test")
    assert [row["risk"] for row in scored(lax)] == [row["risk"] for row in scored(strict)]
    assert lax.count("true") > strict.count("true")


@pytest.fixture
def damaged(home, tmp_path):
    """Folder of a good image, a broken one, and one whose name would clear a terminal."""
    good = next((home / "test").rglob("*.png"))
    (tmp_path / "a.png").write_bytes(good.read_bytes())
    (tmp_path / "b\x1b[2J.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "c.png").write_bytes(good.read_bytes())
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_bad_files_stop_or_are_skipped(home, damaged):
    words = ("score", damaged, "--format", "jsonl")
    _, stderr = run(home, *words, code=3)
    assert "b\\x1b[2J.png cannot be read" in stderr
    assert len(stderr.strip().splitlines()) == 1
    stdout, stderr = run(home, *words, "--on-error", "skip")
    records = [json.loads(line) for line in stdout.splitlines()]
    assert [sorted(record) for record in records][1] == ["error", "file"]
    assert records[0]["risk"] == records[2]["risk"]
    assert list(records[0]["member_risks"]) == ["latent_0", "margin"]
    assert "skipped: b\\x1b[2J.png" in stderr
    assert "3 rows, 0 flagged, 1 not readable" in stderr
    stdout, _ = run(home, "score", damaged, "--on-error", "skip")
    assert len(scored(stdout)) == 2


def test_stopping_leaves_no_half_file(home, damaged):
    output = damaged / "risks.csv"
    output.write_text("of an earlier run")
    run(home, "score", damaged, "--output", output, code=3)
    assert output.read_text() == "of an earlier run"
    assert not list(damaged.glob(".*"))
    run(home, "score", damaged, "--output", output, "--on-error", "skip")
    assert len(scored(output.read_text())) == 2


def test_interrupted_writing_leaves_no_trace(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with replacing(path) as file:
            file.write("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_lists_and_arrays_are_rows_too(home, tmp_path, digits):
    whole, _ = run(home, "score", "test")
    files = sorted((home / "test").rglob("*.png"))[:5]
    X = np.stack([np.asarray(Image.open(file), np.float32)[None] / 255 for file in files])
    np.save(tmp_path / "rows.npy", X)
    np.savez(tmp_path / "rows.npz", X=X.astype(np.float64), y=np.arange(5))
    lines = ["file,class", *(f"{file},{file.parent.name}" for file in files)]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    expected = [float(row["risk"]) for row in scored(whole)[:5]]
    for kind in ("npy", "npz", "csv"):
        stdout, _ = run(home, "score", tmp_path / f"rows.{kind}")
        found = [float(row["risk"]) for row in scored(stdout)]
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=kind)
    X[2, 0, 0, 0] = 255
    np.save(tmp_path / "rows.npy", X)
    stdout, stderr = run(home, "score", tmp_path / "rows.npy", "--on-error", "skip")
    assert len(scored(stdout)) == 4
    assert "rows.npy[2] cannot be read" in stderr


def test_images_come_to_size_and_colour(home, tmp_path):
    file = next((home / "test").rglob("*.png"))
    with Image.open(file) as image:
        image.convert("RGB").resize((32, 16), Image.Resampling.NEAREST).save(tmp_path / "a.png")
        deep = image.convert("I;16")
    stdout, _ = run(home, "score", tmp_path)
    assert len(scored(stdout)) == 1
    deep.save(tmp_path / "b.png")
    _, stderr = run(home, "score", tmp_path, code=3)
    assert "more than 8 bits" in stderr


def test_rows_that_were_fitted_on_do_not_calibrate(home, tmp_path):
    copied = tmp_path / "detector.safetensors"
    for name in ("detector.safetensors", "detector.safetensors.history.json"):
        (tmp_path / name).write_bytes((home / name).read_bytes())
    _, stderr = run(home, "calibrate", "train", "--detector", copied, code=2)
    assert "All these rows were fitted on" in stderr
    _, stderr = run(home, "calibrate", "new", "--detector", copied, "--harmless", "brighter")
    assert "left out" not in stderr
    detector = load_detector(copied, read_settings(home / "skmrr.toml"), "cpu")
    assert len(detector.harmless) == 3
    assert not detector.verbose


def test_a_monitor_goes_on_where_it_was(home, tmp_path):
    state = tmp_path / "monitor.json"
    for n_rows in (300, 600):
        _, stderr = run(home, "score", "test", "--monitor", state)
        assert f"after {n_rows} rows" in stderr  # class by class, so whatever the verdict
    assert RiskMonitor.from_json(state.read_text()).n_rows_ == 600
    words = ("score", "test", "--monitor", state, "--security-parameter", "0.2")
    _, stderr = run(home, *words, code=2)
    assert "another detector or threshold" in stderr


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_exported_file_judges_alike(home):
    files = sorted((home / "test").rglob("*.png"))[:50]
    X = np.stack([np.asarray(Image.open(file), np.float32)[None] / 255 for file in files])
    judge = torch.export.load(home / "detector.pt2").module()
    found = judge(torch.as_tensor(X), torch.tensor(0.05, dtype=torch.float64))
    rows = scored((home / "risks.csv").read_text())[:50]
    np.testing.assert_allclose(found["risk"], [float(row["risk"]) for row in rows], atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_exported_program_is_guarded_by_its_margin(bare, tmp_path):
    net = load_classifier(
        Settings(bare, factory=f"{MODULE}:Net", weights="weights.pt", clip_values=[0, 1])
    )
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(net, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "net.pt2")
    run(tmp_path, "init", "net.pt2", "--data", bare / "train", "--grey")
    _, stderr = run(tmp_path, "fit", bare / "train", code=2)
    assert "--latent 0" in stderr
    run(tmp_path, "fit", bare / "train", "--latent", "0")
    run(tmp_path, "calibrate", bare / "new")
    stdout, _ = run(tmp_path, "score", bare / "test")
    assert len(scored(stdout)) == 300


@pytest.fixture(scope="module")
def page(home):
    """HTML and Markdown of a report."""
    output = home / "report.html"
    return output.read_text("utf-8"), output.with_suffix(".md").read_text("utf-8")


def test_the_report_says_the_same_in_both_forms(home, page):
    html, markdown = page
    detector = load_detector(
        home / "detector.safetensors", read_settings(home / "skmrr.toml"), "cpu"
    )
    radius = detector.named_defenders_["latent_0"].exploration_radius
    hashed = hashlib.sha256((home / "detector.safetensors").read_bytes()).hexdigest()
    for text in (
        *("What is protected", "Most alarming clean rows", "Fit: 600 rows of train"),
        *("Calibrate: 400 rows of new", "60 rows of test", torch.__version__, hashed),
        *("Carlini-L2, κ = 5", "worst case", "brighter", "alarm: ", f"={radius:.4g}"),
    ):
        assert text in html
        assert text in re.sub(r"\\(.)", r"\1", markdown)
    assert "Warning" not in markdown


def test_the_report_needs_nothing_else(page):
    html, _ = page
    links = re.findall(r'(?:src|href)="([^"]*)"|url\(', html)
    assert len(links) == 3 + 12
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.search("<(script|link|iframe|object)", html)
    checked = Balanced()
    checked.feed(html)
    assert checked.open == []


class Balanced(HTMLParser):
    """Parser that holds the tags that are open."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_leaves_out_what_the_detector_has_seen(home, tmp_path):
    _, stderr = run(home, "report", "new", "--output", tmp_path / "r.html", code=2)
    assert "All these rows it was fitted or calibrated on" in stderr


def test_a_report_needs_clean_rows_of_known_classes(home, tmp_path):
    X = np.zeros((20, 1, 8, 8), np.float32)
    for y, told in (({}, "name no classes"), ({"y": np.arange(20) - 1}, "are adversarial")):
        np.savez(tmp_path / "rows.npz", X=X, **y)
        _, stderr = run(home, "report", tmp_path / "rows.npz", code=2)
        assert told in stderr
    np.savez(tmp_path / "rows.npz", X=X, y=np.arange(20))
    _, stderr = run(home, "report", tmp_path / "rows.npz", code=2)
    assert "There is a class 19" in stderr
    _, stderr = run(home, "report", "test", "--output", "report.md", code=2)
    assert "must end in .html" in stderr


def test_names_of_any_bytes_are_written(home, tmp_path):
    image = next((home / "test").rglob("*.png")).read_bytes()
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(image)
    stdout, _ = run(home, "score", tmp_path)
    assert scored(stdout)[0]["file"] == "\\udcff.png"


HOSTILE = "<img src=x onerror=alert(1)>\"'|`*[a](http:b){{7*7}}"


def test_names_cannot_act_in_the_report():
    section = Section(
        HOSTILE,
        [HOSTILE],
        Table((HOSTILE,), [(HOSTILE,)]),
        gallery=[Picture(b"", HOSTILE, [HOSTILE])],
        warnings=[HOSTILE],
    )
    html = as_html(HOSTILE, [section])
    assert "<img src=x" not in html
    assert "{{7*7}}" in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;&#34;&#39;|") == 9
    markdown = as_markdown(HOSTILE, [section])
    assert "<img" not in markdown
    assert markdown.count(r"""onerror=alert\(1\)&gt;"'\|\`\*\[a\]\(http""") == 7
    assert "`*[a](http" not in markdown


def test_hostile_files_are_escaped_to_the_end(home, tmp_path):
    files = sorted((home / "test").rglob("*.png"))
    lines = [["file", "class"]]
    for k, file in enumerate(files[:40]):
        odd = tmp_path / f"<b>{k}&\u202e.png"
        odd.write_bytes(file.read_bytes())
        lines.append([odd.name, file.parent.name])
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(lines)
    run(home, "report", tmp_path / "list.csv", *SMALL, "--output", tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text("utf-8")
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "\u202e" not in html + (tmp_path / "r.md").read_text("utf-8")


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="there is no browser")
@pytest.mark.usefixtures("page")
def test_a_browser_shows_the_report(home, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    # A script of the test's own could not run: the page allows none. Layout is read from a picture.
    words = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    shot = tmp_path / "page.png"
    subprocess.run(
        [
            *(browser, *words, f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=400,6000", f"--screenshot={shot}", str(home / "report.html")),
        ],
        capture_output=True,
        check=True,
        timeout=120,
    )
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("L"), dtype=float)
    assert pixels.shape == (6000, 400)
    is_inked = (pixels.max(1) - pixels.min(1)) > 100
    assert is_inked[:3000].mean() > 0.3  # down to the charts, which need their pictures
    assert pixels[:, -8:].std() < 1  # nothing leaves a narrow window at its right


def write(path, text):
    path.write_text(text)
    return path


TOML = f'[classifier]\nfactory = "{MODULE}:Net"\nweights = "weights.pt"\n'
ROWS = "[rows]\nclip_values = [0, 1]\n"
WRONG_SETTINGS = {
    "no TOML": ("[rows", "is no TOML"),
    "unknown table": (TOML + ROWS + "[image]\n", "no table [image]; its tables are"),
    "unknown key": (TOML + ROWS + "[images]\nsise = 3\n", "[images] has no 'sise'; its keys are"),
    "wrong kind": (TOML + ROWS + "[images]\nsize = 8\n", "size = 8 must be two whole numbers"),
    "no range": (TOML, "lacks clip_values"),
    "reversed range": (TOML + "[rows]\nclip_values = [1, 0]\n", "must be two numbers"),
    "no classifier": (ROWS, "takes either factory"),
    "half of a normalisation": (TOML + "mean = [1]\n" + ROWS, "mean and std both"),
    "no size": (TOML + ROWS, "lack the size of images"),
    "no module": (ROWS + '[classifier]\nfactory = "no_such:Net"\n', "no module 'no_such'"),
    "no factory": (ROWS + f'[classifier]\nfactory = "{MODULE}:Nt"\n', "name a class or a function"),
    "arguments": (ROWS + f'[classifier]\nfactory = "{MODULE}:sized"\n', "without arguments"),
    "no network": (ROWS + '[classifier]\nfactory = "builtins:dict"\n', "must return an nn.Module"),
    "no weights": (TOML.replace("weights.pt", "w.pt") + ROWS, "There is no file"),
}


@pytest.mark.parametrize(("text", "told"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_wrong_settings_are_told_in_a_line(bare, text, told):
    settings = write(bare / "wrong.toml", text)
    _, stderr = run(bare, "fit", "train", "--settings", settings, code=2)
    assert told in stderr
    assert len(stderr.strip().splitlines()) == 1


WRONG_WEIGHTS = {
    "others": ({"conv.weight": torch.zeros(8, 1, 3, 3), "more": torch.zeros(1)}, "missing: conv.b"),
    "a checkpoint": ({"epoch": 3, "model": {}}, "must hold net.state_dict()"),
    "a pickle": (Path("x"), "write it anew by torch.save"),
}


@pytest.mark.parametrize(("state", "told"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_told(bare, tmp_path, state, told):
    torch.save(state, tmp_path / "w.pt")
    words = ("init", f"{MODULE}:Net", tmp_path / "w.pt", "--settings", bare / "never.toml")
    _, stderr = run(bare, *words, code=2)
    assert told in stderr
    assert not (bare / "never.toml").exists()


WRONG_WORDS = {
    "settings are there": (INIT, "--force replaces it"),
    "no data": (["fit", "nowhere"], "There is no nowhere"),
    "no images": (["score", "empty"], "holds no rows"),
    "no detector": (["score", "test", "--detector", "no.file"], "write it by skmrr fit"),
    "no rows in npz": (["score", "empty.npz"], "must hold an array X"),
    "damaged npz": (["score", "weights.npz"], "is damaged"),
    "a text": (["score", f"{MODULE}.py"], "no folder of images"),
    "a list without files": (["score", "names.csv"], "but no file"),
    "unknown class": (["fit", "unknown"], "other is no class"),
    "unknown change": (["calibrate", "new", "--harmless", "hail"], "--harmless hail is none of"),
    "too few": (["calibrate", "few"], "security_parameter"),
    "another suffix": (["export", "detector.h5"], ".onnx"),
}


@pytest.mark.parametrize(("words", "told"), WRONG_WORDS.values(), ids=WRONG_WORDS)
def test_wrong_words_are_told_in_a_line(home, words, told):
    (home / "empty").mkdir(exist_ok=True)
    np.savez(home / "empty.npz", Z=np.zeros(3))
    (home / "weights.npz").write_bytes(b"PK")
    (home / "names.csv").write_text("name,class\na.png,one\n")
    image = next((home / "test").rglob("*.png")).read_bytes()
    for folder in ("unknown/other", "few/one"):
        (home / folder).mkdir(exist_ok=True, parents=True)
        (home / folder / "a.png").write_bytes(image)
    _, stderr = run(home, *words, code=2)
    assert told in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_scoring_waits_for_the_calibration(home, tmp_path):
    detector = tmp_path / "detector.safetensors"
    run(home, "fit", "train", "--detector", detector, "--latent", "0")
    _, stderr = run(home, "score", "test", "--detector", detector, code=2)
    assert "call calibrate" in stderr


def test_settings_survive_odd_names(tmp_path):
    names = ['"quoted"', "back\\slash", "tab\t", "ü", "\x7f", "\u2028"]
    wanted = Settings(tmp_path, factory="a:b", clip_values=[0, 255], classes=names)
    assert read_settings(write(tmp_path / "odd.toml", wanted.toml())) == wanted


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[31m\nü\udcff") == "a\\x1b[31m\\nü\\udcff"
