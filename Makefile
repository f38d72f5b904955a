PYTHON ?= .venv/bin/python
SPHINXOPTS ?= -W --keep-going

.PHONY: setup main quickstart test slow lint types doctest bench docs ci clean

setup: .venv/bin/python

.venv/bin/python: pyproject.toml .ci/constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install -c .ci/constraints.txt -e ".[test,bench]"
	touch $@

main quickstart:
	$(PYTHON) examples/1_quickstart/plot_digits.py

test:
	$(PYTHON) -m pytest

slow:
	$(PYTHON) -m pytest -m slow

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

# pytest's 5 means that there are no doctests
doctest:
	$(PYTHON) -m pytest --doctest-modules --doctest-glob='*.md' --ignore=docs/conf.py \
	    --ignore=docs/gallery --ignore=docs/_build \
	    skmrr docs README.md || [ $$? -eq 5 ]

bench:
	# without the suite's own options, as checks of shapes cost time
	$(PYTHON) -m pytest -o addopts=--import-mode=importlib -o python_files='bench_*.py' \
	    --benchmark-only

# Examples are shown, not run; to run them as well:
#   make docs SPHINXOPTS='-D sphinx_gallery_conf.filename_pattern=plot_'
docs:
	$(PYTHON) -m sphinx $(SPHINXOPTS) -b html docs docs/_build/html

ci:
	.ci/run

clean:
	rm -rf build dist docs/_build docs/gallery docs/reference/generated docs/sg_execution_times.rst \
	    .pytest_cache .ruff_cache .mypy_cache .benchmarks
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
