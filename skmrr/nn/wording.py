"""How errors word what they name."""

from collections.abc import Collection


def shortened(values: Collection, n_shown: int = 5) -> str:
    """First few of the values, and how many more there are."""
    shown = ", ".join(str(value) for value in list(values)[:n_shown])
    return shown if len(values) <= n_shown else f"{shown} and {len(values) - n_shown} more"
