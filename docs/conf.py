from importlib.metadata import version as installed_version

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
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "results", "sg_execution_times.rst"]
html_theme = "pydata_sphinx_theme"
html_title = "skmrr"
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's tables say the types, with shapes
numpydoc_show_class_members = False  # the template of classes shows them in full

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    # Show the examples without running them, some train for minutes. To run them:
    # sphinx-build -D sphinx_gallery_conf.filename_pattern=plot_ docs docs/_build/html
    "filename_pattern": r"(?!)",
    "doc_module": ("skmrr",),
    "reference_url": {"skmrr": None},
    "show_memory": False,
}
