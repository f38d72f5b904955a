"""Files of detectors: one safetensors file, whose metadata ``skmrr`` is JSON.

Format 1. ``records`` are the detector's objects in an order in which each refers to those before
it alone, ``root`` is its own; `skmrr.nn.written` and `skmrr.records` say what they hold. ``givens``
are the hashes of the networks that the reader is given. ``trial`` are the scores of made-up rows,
which have to come out again. ``digest`` is the SHA-256 of all this and of the tensors.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from skmrr.nn.audit import dict_of, is_number, is_text, is_whole, list_of
from skmrr.nn.fingerprint import content
from skmrr.whole_files import replaced

FORMAT = 1
KEY = "skmrr"  # of the metadata
HASHES = ("fingerprint", "weights")  # of a given network


def digest_of(document: dict, stored: Mapping[str, Tensor]) -> str:
    """SHA-256 of a document and its tensors."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode())
    for name in sorted(stored):
        tensor = stored[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(content(tensor))
    return digest.hexdigest()


def write_document(path: Path, document: dict[str, Any], stored: dict[str, Tensor]) -> None:
    """Write beside the file, and put it in its place once it is whole and on the disk."""
    document = {"format": FORMAT, **document}
    document["digest"] = digest_of(document, stored)
    metadata = {KEY: json.dumps(document, allow_nan=False)}
    with replaced(path) as beside:
        beside.touch(exist_ok=False)
        mode = beside.stat().st_mode
        save_file(stored, beside, metadata)
        beside.chmod(mode)  # safetensors leaves a file that nobody else can read
        with beside.open("rb+") as file:
            os.fsync(file.fileno())


def read_document(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parse a file, and check that nothing has changed since it was written.

    Raises
    ------
    ValueError
        If something has, or the file is of another format.
    SafetensorError
        If it is no safetensors file.
    """
    with path.open("rb"), safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise ValueError("it is not of skmrr.save.")
        document = json.loads(text, object_pairs_hook=_once)
        version = document.get("format") if isinstance(document, dict) else None
        if not is_whole(version) or version is None:
            raise ValueError("it has no format.")
        if version != FORMAT:
            cure = "update skmrr" if version > FORMAT else "fit and save again"
            raise ValueError(f"it is of format {version}, not {FORMAT}: {cure}.")
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if document.pop("digest", None) != digest_of(document, stored):
        raise ValueError("its digest is another one: it was changed, or damaged on its way.")
    _check_document(document)
    return document, stored


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice.")
    return found


def _check_document(document: dict) -> None:
    hashes = dict_of(lambda v: dict_of(is_text)(v) and v.keys() == set(HASHES))
    checks = {
        "format": is_whole,
        "versions": dict_of(is_text),
        "device": is_text,
        "givens": hashes,
        "records": lambda v: isinstance(v, list),
        "root": lambda v: is_whole(v) and 0 <= v < len(document["records"]),
        "trial": lambda v: v is None or list_of(is_number)(v),
    }
    if document.keys() != set(checks):
        raise ValueError(f"it holds {sorted(document)}, not {sorted(checks)}.")
    for name, check in checks.items():
        if not check(document[name]):
            raise ValueError(f"it cannot have {name} = {document[name]!r:.80}.")
