"""The measurements behind the results: problems, systems, and a module for each table.

Run them by ``skmrr bench``. They need the extras ``art``, ``plot`` and ``cli``.
"""
