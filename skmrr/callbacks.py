"""The parts of a fit, told to scikit-learn's callbacks where there are any.

`sklearn.callback` came with scikit-learn 1.9 and is experimental; before it, nobody is told.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from skmrr._sklearn import with_callbacks


class Task:
    """A part of an estimator's fit.

    Parameters
    ----------
    estimator : BaseEstimator
        Who is fitted.
    context : sklearn.callback.CallbackContext or None
        What its callbacks are told of this part; None where there are none.
    """

    def __init__(self, estimator, context: Any):
        self.estimator = estimator
        self.context = context
        self.is_last = False

    @contextmanager
    def part(self, name: str, member=None, *, begins: bool = False) -> Iterator["Task"]:
        """Yield a part of this task; a callback may say at its end that it is the last.

        A member that is fitted meanwhile tells its own parts as parts of this part. ``begins``
        says whether it is fitted without its ``fit``, which begins by itself.
        """
        if self.context is None:
            yield Task(self.estimator, None)
            return
        task = Task(self.estimator, self.context.subcontext(task_name=name))
        handed = (
            nullcontext() if member is None else task.context.propagate_callback_context(member)
        )
        # Inside, what a member's callbacks are told of begin and end is left to the member.
        with handed, task.told(), _fit_of(member) if begins else nullcontext():
            yield task

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell the callbacks that it begins and, unless there was an error, that it ends."""
        if self.context is None:
            yield
            return
        self.context.call_on_fit_task_begin(estimator=self.estimator)
        yield
        self.is_last = self.context.call_on_fit_task_end(estimator=self.estimator)


def begin(estimator) -> Task:
    """Begin a detector's fit; scikit-learn's ``_fit_context`` ends it."""
    if not hasattr(estimator, "_init_callback_context"):
        return Task(estimator, None)
    return Task(estimator, estimator._init_callback_context(max_subtasks=estimator._n_parts))


@contextmanager
def _fit_of(estimator) -> Iterator[None]:
    """Begin and end the fit of an estimator whose ``fit`` is not called."""
    try:
        with begin(estimator).told():
            yield
    finally:
        with_callbacks(lambda estimator: None)(estimator)  # which tears down what `begin` set up


def current(estimator) -> Task:
    """Fit of an estimator that has begun."""
    return Task(estimator, getattr(estimator, "_callback_fit_ctx", None))
