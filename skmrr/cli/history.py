"""What was done to a detector, in a JSON file beside it: which commands, on which rows."""

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from skmrr.cli.outcomes import replacing
from skmrr.cli.sound import Sound
from skmrr.versions import versions_of

PACKAGES = ("skmrr", "torch", "scikit-learn", "numpy", "scipy", "pillow")
FIT, CALIBRATE = "fit", "calibrate"


def history_path(detector: Path) -> Path:
    """File beside a detector's."""
    return detector.with_name(f"{detector.name}.history.json")


def recall(detector: Path) -> dict[str, Any]:
    """Recall what was done to a detector, by step; empty where that is not known."""
    try:
        history = json.loads(history_path(detector).read_text(encoding="utf-8"))
        if history["sha256"] == sha256_of(detector):
            return history["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # lost, damaged, or of another detector: all that is lost is a part of the report
    return {}


def remember(detector: Path, steps: dict[str, Any]) -> None:
    """Write what was done to a detector, once its file is there."""
    with replacing(history_path(detector)) as file:
        json.dump({"sha256": sha256_of(detector), "steps": steps}, file)


def typed(words: Sequence[str] | None = None) -> str:
    """Command as it was typed, or with these words after its name."""
    return shlex.join(["skmrr", *(sys.argv[1:] if words is None else words)])


def step(data: Path, rows: Sound) -> dict[str, Any]:
    """Note what this command has done, and on which rows."""
    return {
        "command": typed(),
        "data": str(data),
        "date": today(),
        "n_rows": len(rows.digests),
        "n_unreadable": rows.n_unreadable,
        "versions": versions(),
        "rows": rows.digests,
    }


def rows_of(steps: dict[str, Any], *names: str) -> set[str]:
    """Hashes of the rows that these steps have seen."""
    return {digest for name in names for digest in steps.get(name, {}).get("rows", ())}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of what computes here."""
    return {"Python": platform.python_version(), **versions_of(PACKAGES)}


def today() -> str:
    """Date and time, UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
