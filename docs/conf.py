from importlib.metadata import version as installed_version

from sphinx_gallery.sorting import ExplicitOrder

project = "skmrr"
author = "the skmrr developers"
copyright = f"2026, {author}"
release = version = installed_version("skmrr")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "results", "sg_execution_times.rst"]

html_theme = "pydata_sphinx_theme"
html_title = "skmrr"
html_static_path = ["_static"]
html_css_files = ["skmrr.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "skmrr"},
    "header_links_before_dropdown": 7,  # all sections
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_nav_level": 2,
    "show_prev_next": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
# Pages that stand for themselves have nothing beside them to go to.
html_sidebars = {page: [] for page in ("index", "getting_started", "results", "challenge")}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

default_role = "py:obj"  # names in docstrings lead to their pages
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's tables say the types, with shapes
numpydoc_show_class_members = False  # the template of classes shows them in full

DOCTEST_END = "\n\n```\n"  # doctest wants an empty line there, a reader does not


def setup(app):
    def without_empty_lines(app, docname, source):
        source[0] = source[0].replace(DOCTEST_END, "\n```\n")

    app.connect("source-read", without_empty_lines)


# In the order of somebody who learns; folders are in the order of their names.
EXAMPLES = [
    "plot_digits.py",
    "plot_own_model.py",
    "plot_harmless.py",
    "plot_ensemble.py",
    "plot_dictionary.py",
    "plot_grid_search.py",
    "plot_art.py",
    "plot_evasion_cost.py",
    "transformer.py",
    "imagenet.py",
    "serve.py",
    "plot_monitor.py",
    "plot_cluster.py",
    "*",
]
sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    # Show the examples without running them, some train for minutes. To run them:
    # sphinx-build -D sphinx_gallery_conf.filename_pattern=plot_ docs docs/_build/html
    "filename_pattern": r"(?!)",
    "within_subsection_order": ExplicitOrder(EXAMPLES),
    "doc_module": ("skmrr",),
    "reference_url": {"skmrr": None},
    "show_memory": False,
}
