"""What the pages share: the names that `getting_started.md` makes, a copy for each page."""

import copy
from doctest import DocTestParser
from pathlib import Path

import numpy as np
import pytest
import torch

import skmrr

TUTORIAL = Path(__file__).parent / "getting_started.md"
SHARED = (
    *("X_train", "y_train", "X_new", "y_new", "X_test", "y_test"),
    *("classifier", "ensemble", "decided", "attacked", "fooled"),
)


@pytest.fixture(scope="session")
def tutorial():
    """Names that a reader has at the end of the tutorial."""
    names: dict = {}
    for example in DocTestParser().get_examples(TUTORIAL.read_text("utf-8")):
        exec(example.source, names)
    return {name: names[name] for name in SHARED}


@pytest.fixture(autouse=True)
def _names_of_the_tutorial(tutorial, doctest_namespace):
    """Give each page its own, so that none sees what another has changed."""
    doctest_namespace.update(copy.deepcopy(tutorial), np=np, torch=torch, skmrr=skmrr)
