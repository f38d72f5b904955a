"""Modules with buffers that follow from others."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class WithTables(nn.Module, ABC):
    """Module that computes tables from its buffers, and anew where these are loaded.

    A subclass calls `derive` once its buffers are there. The tables are no part of its state.
    """

    @abstractmethod
    def tables(self) -> dict[str, Tensor]:
        """Return the tables by name."""

    def derive(self) -> None:
        """Compute the tables, and keep them as buffers."""
        for name, table in self.tables().items():
            self.register_buffer(name, table, persistent=False)

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self.derive()
