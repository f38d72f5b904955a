"""Whether records are what `skmrr.nn.written` writes, before anything is built from them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from skmrr.nn.known import FUNCTIONS, check_attribute, known_class

LARGEST = 2**63  # no whole number of a detector is
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
MODULES = ("given", "tapped", "stack", "graph", "like", "module")
Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Whether a value is a string."""
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    """Whether a value is true or false."""
    return isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, and not a huge one."""
    return type(value) is int and -LARGEST <= value < LARGEST


def is_number(value: Any) -> bool:
    """Whether a value is a number, and not a huge one."""
    return isinstance(value, float) or is_whole(value)


def list_of(check: Check, n: int | None = None) -> Check:
    """Check of a list, of `n` entries."""
    return lambda v: isinstance(v, list) and n in (None, len(v)) and all(map(check, v))


def dict_of(check: Check) -> Check:
    """Check of an object of JSON."""
    return lambda v: isinstance(v, dict) and all(map(check, v.values()))


def either(*checks: Check) -> Check:
    """Check of a value that may be one of several, or missing."""
    return lambda value: value is None or any(check(value) for check in checks)


def is_ref(value: Any) -> bool:
    """Whether a value refers to a record."""
    return isinstance(value, dict) and value.keys() == {"ref"} and is_whole(value["ref"])


def is_pair(value: Any) -> bool:
    """Whether a value is a list of two."""
    return isinstance(value, list) and len(value) == 2


PARTS: dict[str, Check] = {
    "training": is_flag,
    "parameters": dict_of(either(is_ref)),
    "buffers": dict_of(either(is_ref)),
    "transient": list_of(is_text),
    "modules": dict_of(either(is_ref)),
}
RECORDS: dict[str, dict[str, Check]] = {
    "tensor": {
        "data": either(is_text),
        "given": either(list_of(is_text, 2)),
        "shared": is_flag,
        "dtype": DTYPES.__contains__,
        "strides": either(list_of(is_whole)),
        "parameter": is_flag,
        "requires_grad": is_flag,
    },
    "array": {"data": is_text, "fortran": is_flag},
    "given": {"name": is_text},
    "tapped": {"given": is_text, "taps": list_of(is_text), "training": is_flag},
    "stack": {"replicas": list_of(is_pair), "fold": is_flag},
    "graph": {"nodes": list_of(list_of(lambda _: True, 4)), **PARTS},
    "like": {"given": is_text, "path": is_text, **PARTS},
    "module": {"class": is_text, "attributes": dict_of(lambda _: True), **PARTS},
}
PAYLOADS: dict[str, Check] = {
    "ref": is_whole,
    "float": ("nan", "inf", "-inf").__contains__,
    "tuple": list_of(lambda _: True),
    "set": list_of(lambda _: True),
    "frozenset": list_of(lambda _: True),
    "size": list_of(is_whole),
    "dict": list_of(is_pair),
    "dtype": DTYPES.__contains__,
    "device": is_text,
    "scalar": list_of(lambda _: True, 2),
    "strings": list_of(lambda _: True, 3),
    "function": FUNCTIONS.__contains__,
}


class Auditor:
    """Checks records one by one.

    Parameters
    ----------
    tensors : collection of str
        Names of the stored tensors.
    givens : mapping
        Networks that are to be given.
    records, payloads : dict
        What a record of each kind holds, and what a value with a tag; those above, or more.
    """

    def __init__(self, tensors, givens: Mapping[str, Any], records=RECORDS, payloads=PAYLOADS):
        self.tensors = set(tensors)
        self.givens = givens
        self.records = records
        self.payloads = payloads
        self.kinds: list[str] = []

    def audit(self, records: list) -> None:
        """Check all records.

        Raises
        ------
        ValueError
            If one is not what it has to be, names a class that files may not hold, or refers to
            what does not stand before it; or if a stored tensor is missing, or used by none.
        """
        unused = set(self.tensors)
        for record in records:
            self._record(record)
            self.kinds.append(record["kind"])
            unused.discard(record.get("data"))
        if unused:
            raise ValueError(f"no record has the tensor(s) {sorted(unused)[:5]}.")

    def value(self, value: Any) -> None:
        """Check what stands for a value."""
        if value is None or isinstance(value, str | bool) or is_number(value):
            return
        if isinstance(value, list):
            for part in value:
                self.value(part)
            return
        tag, payload = next(iter(value.items())) if isinstance(value, dict) and value else ("", 0)
        if len(value) != 1 or tag not in self.payloads or not _holds(self.payloads[tag], payload):
            raise ValueError(f"{value!r:.80} stands for no value.")
        if tag == "ref":
            self._kind_of(value)
        elif tag in ("tuple", "set", "frozenset", "dict", "scalar", "strings"):
            self.value(payload)

    def _record(self, record: Any) -> None:
        kind = record.get("kind") if isinstance(record, dict) else None
        fields = self.records.get(kind) if isinstance(kind, str) else None
        if fields is None or record.keys() != {"kind", *fields}:
            raise ValueError(f"{record!r:.80} is no record.")
        for name, check in fields.items():
            if not _holds(check, record[name]):
                raise ValueError(f"a {kind} cannot have {name} = {record[name]!r:.80}.")
        getattr(self, f"_{kind}", self._nothing_more)(record)

    def _nothing_more(self, record: dict) -> None:
        """Check nothing beyond the fields."""

    def _tensor(self, record: dict) -> None:
        if record["given"] is not None:
            self._check_given(record["given"][0])
        elif record["shared"] or record["data"] not in self.tensors:
            raise ValueError(f"the tensor {record['data']!r:.80} is missing.")
        if record["given"] is not None and record["data"] is not None:
            raise ValueError("a tensor is either stored or given, not both.")

    def _array(self, record: dict) -> None:
        if record["data"] not in self.tensors:
            raise ValueError(f"the tensor {record['data']!r:.80} is missing.")

    def _given(self, record: dict) -> None:
        self._check_given(record["name"])

    def _tapped(self, record: dict) -> None:
        self._check_given(record["given"])

    def _stack(self, record: dict) -> None:
        for position, replica in record["replicas"]:
            if not is_whole(position) or self._kind_of(replica) != "module":
                raise ValueError(f"a stack cannot hold {replica!r:.80}.")

    def _graph(self, record: dict) -> None:
        self._parts(nn.Module, record)

    def _like(self, record: dict) -> None:
        self._check_given(record["given"])
        self._parts(nn.Module, record)

    def _module(self, record: dict) -> None:
        kind = known_class(record["class"])
        if not issubclass(kind, nn.Module):
            raise ValueError(f"a {record['class']} is no torch module.")
        self.attributes(kind, record["attributes"])
        self._parts(kind, record)

    def attributes(self, kind: type, attributes: dict) -> None:
        """Check names and values of an object's attributes."""
        for name, value in attributes.items():
            check_attribute(kind, name)
            self.value(value)

    def _parts(self, kind: type, record: dict) -> None:
        groups = [record[name] for name in ("parameters", "buffers", "modules")]
        names = [*_names(groups), *record.get("attributes", ())]
        if len(set(names)) < len(names) or not set(record["transient"]) <= set(record["buffers"]):
            raise ValueError(f"a {kind.__name__} has two parts of one name.")
        for name in _names(groups):
            check_attribute(kind, name)
            if not name or "." in name:
                raise ValueError(f"{name!r:.80} is no name of a layer.")
        for group, kinds in zip(groups, (("tensor",), ("tensor",), MODULES), strict=True):
            for ref in filter(None, group.values()):
                if self._kind_of(ref) not in kinds:
                    raise ValueError(f"a {kind.__name__} has a part of a wrong kind.")

    def _kind_of(self, value: Any) -> str:
        """Kind of the record that a reference is to."""
        if not is_ref(value) or not 0 <= value["ref"] < len(self.kinds):
            raise ValueError(f"{value!r:.80} refers to nothing before it.")
        return self.kinds[value["ref"]]

    def _check_given(self, name: str) -> None:
        if name not in self.givens:
            raise ValueError(f"no network {name!r:.80} is to be given.")


def _holds(check: Check, value: Any) -> bool:
    try:
        return bool(check(value))
    except TypeError:  # what cannot be hashed is not in a table
        return False


def _names(groups: list[dict]) -> Iterator[str]:
    return (name for group in groups for name in group)
