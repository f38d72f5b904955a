"""What scikit-learn keeps private and estimators of other packages need all the same.

Imported here alone, so that a change in scikit-learn is a change of one file.
"""

from sklearn.base import _fit_context as fit_context
from sklearn.utils._optional_dependencies import check_matplotlib_support, check_pandas_support
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    Options,
    StrOptions,
    validate_params,
)
from sklearn.utils.metaestimators import _BaseComposition as BaseComposition

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """There are no callbacks."""

    def with_callbacks(method):
        """Return the method: there is nothing to tear down."""
        return method


__all__ = [
    "BaseComposition",
    "CallbackSupportMixin",
    "HasMethods",
    "Interval",
    "Options",
    "StrOptions",
    "check_matplotlib_support",
    "check_pandas_support",
    "fit_context",
    "validate_params",
    "with_callbacks",
]
