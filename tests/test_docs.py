"""The pages are there, and lead where they say; no page or line of code is too long."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILT = ("_build", "_templates", "gallery", "generated")  # and not for people to write
LONG = {"results.md"}  # and the reference
MAX_LINES, MAX_WIDTH = 250, 88
FIGURES = DOCS / "results" / "explanation"
MEASURED = re.compile(r"\.\d{2,}|\d %|\d,\d{3}")  # what a cell of a measurement looks like

PAGES = [
    path
    for path in sorted(DOCS.rglob("*.md"))
    if not {*BUILT, "results"} & {*path.relative_to(DOCS).parts[:-1]}
]
EXPLANATION = [path for path in PAGES if path.parent.name == "explanation"]
PACKAGES = ("", ".art", ".attacks", ".baselines", ".evaluation", ".nn")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks_of(text):
    """Yield the language and the lines of each fenced block."""
    language, lines = None, []
    for line in text.splitlines():
        if language is None and (opening := re.match(r"\s*```([^`]*)$", line)):
            language, lines = opening[1], []
        elif language is not None and line.strip() == "```":
            yield language, lines
            language = None
        elif language is not None:
            lines.append(line)


def prose_of(text):
    """Text without its fenced blocks."""
    return re.sub(r"(?ms)^\s*```[^`\n]*\n.*?^\s*```$", "", text)


def included_by(path):
    """Files of the tables that a page takes in as it is built."""
    tables = (lines for language, lines in blocks_of(path.read_text("utf-8")) if "csv" in language)
    targets = (re.match(r":file: (\S+)", line) for lines in tables for line in lines)
    return [(path.parent / target[1]).resolve() for target in targets if target]


def typed_figures(text):
    """Rows of a page's own tables that hold what looks measured."""
    rows = re.findall(r"(?m)^ *\|.*$", prose_of(text))
    return [row for row in rows if MEASURED.search(row)]


def anchors_of(path):
    """Anchors of a page's headings, as MyST makes them."""
    titles = re.findall(r"(?m)^#{1,3} (.+)$", prose_of(path.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links_of(text):
    """Targets of a page's links and pictures that lie in the tree."""
    prose = re.sub(r"`[^`\n]+`(?!\])", "", prose_of(text))
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    targets += re.findall(r"(?m)^:link: (\S+)$|^```\{image\} (\S+)$|^:file: (\S+)$", text)
    flat = [t if isinstance(t, str) else next(filter(None, t)) for t in targets]
    return [target for target in flat if not re.match(r"[a-z]+:", target)]


def broken_links(path):
    """Links of a page that lead nowhere."""
    broken = []
    for link in links_of(path.read_text("utf-8")):
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        if {*BUILT} & {*found.parts[len(DOCS.parts) :]} and found.is_relative_to(DOCS):
            continue  # is made with the site
        if not found.exists():
            found = found.with_name(found.name + ".md")  # a document, as sphinx names it
        if not found.exists() or (anchor and anchor not in anchors_of(found)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=name_of)
def test_links_lead_somewhere(path):
    assert not broken_links(path)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "there.md").write_text("# A heading, and more\n\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#a-heading-and-more) [c](there.md#no-heading) [d](gone.md)\n"
        "```python\nx[0](y)\n```\n:link: gone\n"
    )
    assert broken_links(page) == ["there.md#no-heading", "gone.md", "gone"]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_are_short(path):
    if path.name in LONG or path.parent.name == "reference":
        pytest.skip("is looked up, not read")
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_code_does_not_scroll_sideways(path):
    text = path.read_text("utf-8")
    code = [line for language, lines in blocks_of(text) for line in lines if "{" not in language]
    assert not [line for line in code if len(line) > MAX_WIDTH]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: f"skmrr{package}")
def test_reference_has_each_public_name_in_its_place(package):
    source = ROOT / "skmrr" / package.removeprefix(".") / "__init__.py"
    tree = ast.parse(source.read_text("utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    text = (DOCS / "reference" / "api.md").read_text("utf-8")
    # a part of the page goes from one ".. currentmodule::" to the next
    modules = re.split(r"\.\. currentmodule:: (\S+)", text)[1:]
    here = "".join(
        content
        for module, content in zip(modules[::2], modules[1::2], strict=True)
        if module == f"skmrr{package}"
    )
    assert not set(names) - set(re.findall(r"\w+", here))


def test_pages_stand_in_one_section():
    """The sections are the kinds of pages; whoever adds a page has to choose."""
    alone = {"index.md", "getting_started.md", "results.md", "challenge.md"}
    sections = {"how_to", "explanation", "reference"}
    for path in PAGES:
        place = path.relative_to(DOCS)
        assert place.parts[0] in sections if len(place.parts) > 1 else place.name in alone


def test_figures_are_those_of_the_tables():
    """README and the page of results say what the tables say; nobody types it."""
    pytest.importorskip("pandas")
    pytest.importorskip("tabulate")
    from skmrr.bench.findings import findings_text, results_page

    readme = (ROOT / "README.md").read_text("utf-8")
    quoted = re.search(r"(?s)<!-- findings.*?-->\n(.*?)\n<!-- end of findings -->", readme)
    assert quoted[1] == findings_text(DOCS / "results")
    assert (DOCS / "results.md").read_text("utf-8") == results_page(DOCS / "results", DOCS)


@pytest.mark.skipif(not EXPLANATION, reason="only a checkout has the pages")
def test_each_table_of_figures_is_on_one_page():
    included = [file for path in PAGES for file in included_by(path)]
    assert all(file.is_file() for file in included)
    figures = [file for file in included if file.parent == FIGURES]
    assert sorted(figures) == sorted(FIGURES.glob("*.csv"))


@pytest.mark.parametrize("path", EXPLANATION, ids=name_of)
def test_nobody_types_what_was_measured(path):
    """Explanation takes its tables from docs/results/, whose README says where they are from."""
    assert not typed_figures(path.read_text("utf-8"))


def test_typed_figures_are_found():
    measured = ["| all | .9990 |", "| 1.16, 1.18 % | – |", "| never | 1,564 |"]
    words = ["| the paper | this package |", "|---|---|", "| steps of 0.1 | κ = 20 |"]
    page = "\n".join([*measured, *words, "In prose: 5 %.", "```", "| .9990 |", "```"])
    assert typed_figures(page) == measured


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(re.findall(r"\w[\w'.-]*", re.sub(r"(?m)^\|.*$", "", prose_of(text)))) <= 700


def test_code_of_the_home_page_runs(net, digits):
    X, y = digits
    (code,) = (
        "\n".join(lines)
        for language, lines in blocks_of((DOCS / "index.md").read_text("utf-8"))
        if language == "python"
    )
    names = {"classifier": net, "X_train": X[:1000], "y_train": y[:1000]}
    names |= {"X_new": X[1000:1500], "X": X[1500:]}
    exec(code, names)
    assert (names["ensemble"].classify(X[1500:]) == -1).mean() < 0.1


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    for name in ("sphinx", "myst_parser", "sphinx_gallery", "sphinx_design", "sphinx_copybutton"):
        pytest.importorskip(name)
    options = ["-q", "-W", "--keep-going", "-b", "html", "-d", tmp_path / "doctrees"]
    run = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "html" / "index.html").exists()
