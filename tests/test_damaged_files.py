"""Files that are damaged or made up: a clear error, or the right answer."""

import copy
import json
import os
import struct
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import skmrr
from skmrr.detector_files import KEY, digest_of
from skmrr.nn import SparseCoder

from .table import CASES

NAMES = ("ensemble of all", "certified", "latent likelihood", "feature squeezing")
FUZZ = settings(
    max_examples=int(os.environ.get("SKMRR_FUZZ", "25")),
    deadline=None,
    derandomize="SKMRR_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
DEEP = "[" * 100_000


class Saved:
    """Bytes of a file and scores of rows, by the detector's name; and a file to write to."""

    def __init__(self, path, rows):
        self.files, self.path, self.rows = {}, path, rows

    def parsed(self, name):
        """Document and tensors of a file."""
        self.path.write_bytes(self.files[name][0])
        with safe_open(self.path, "pt") as file:
            document = json.loads(file.metadata()[KEY])
            return document, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def saved(net, digits, tmp_path_factory):
    """Files of detectors, and a file to write to."""
    X, y = digits
    path = tmp_path_factory.mktemp("damaged") / "detector.safetensors"
    found = Saved(path, X[500:530])
    for case in CASES:
        if case.name in NAMES:
            detector = case.build(net).fit(X[:500], y[:500])
            skmrr.save(detector, path)
            found.files[case.name] = path.read_bytes(), detector.score_samples(found.rows)
    return found


def write(document, stored, path, *, signed=True):
    """Write a file, with a digest that fits."""
    document.pop("digest", None)
    if signed:
        document["digest"] = digest_of(document, stored)
    save_file(stored, path, {KEY: json.dumps(document)})


def scores_or_error(path, net, rows):
    """Scores by what a file holds, None after an error; the classifier stays as it is."""
    before = copy.deepcopy(net.state_dict())
    try:
        return skmrr.load(path, classifier=net).score_samples(rows)
    except ValueError:  # of `load`, or for rows of another shape or range than the file says
        return None
    finally:
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name])
        assert not any(part._forward_hooks for part in net.modules())


@FUZZ
@given(data=st.data())
def test_flipped_bytes_and_truncations(saved, net, data):
    path, rows = saved.path, saved.rows
    raw, expected = saved.files[data.draw(st.sampled_from(NAMES))]
    changed = bytearray(raw)
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    elif data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        changed += data.draw(st.binary(min_size=1, max_size=100))
    path.write_bytes(changed)
    scores = scores_or_error(path, net, rows)
    if scores is not None:  # what the digest leaves out, such as blanks
        np.testing.assert_array_equal(scores, expected)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 3, 10**6, 2**31, 2**62, 2**63, 10**30]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "0", "classifier", "forward", "__class__", "_forward_hooks", "os.system"]),
    st.sampled_from(["torch.float64", "torch.nn.Linear", "skmrr.nn.detector_module.Evidence"]),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.builds(lambda k: {"ref": k}, st.integers(-2, 200)),
    st.builds(lambda s: {"float": s}, st.sampled_from(["nan", "inf", "-inf", "1"])),
    st.builds(lambda s: {"function": s}, st.sampled_from(["operator.add", "eval"])),
    st.builds(
        lambda tag, parts: {tag: parts},
        st.sampled_from(["tuple", "set", "size", "dict", "scalar", "strings", "bunch", "tensor"]),
        st.lists(SCALARS, max_size=3),
    ),
    st.dictionaries(st.sampled_from(["kind", "class", "ref", "forward"]), SCALARS, max_size=3),
)
ATTRIBUTES = ("__class__", "__dict__", "forward", "_forward_hooks", "training", "more", "fit")


def places_of(value, place=()):
    """List where something stands in JSON."""
    yield place
    if isinstance(value, str | int | float | None):
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from places_of(part, (*place, key))


def edit(document, data):
    """Change one thing in a document."""
    places = [place for place in places_of(document) if place and place[0] != "digest"]
    *outer, last = places[data.draw(st.integers(0, len(places) - 1))]
    holder = document
    for key in outer:
        holder = holder[key]
    what = data.draw(st.sampled_from(["replace", "replace", "remove", "add", "repeat"]))
    if what == "replace":
        holder[last] = data.draw(VALUES)
    elif what == "remove":
        del holder[last]
    elif isinstance(holder, list):
        holder.insert(last, data.draw(VALUES) if what == "add" else holder[last])
    else:
        holder[data.draw(st.sampled_from(ATTRIBUTES))] = data.draw(VALUES)


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_edited_documents_that_are_signed_anew(saved, net, name, data):
    path, rows = saved.path, saved.rows
    document, stored = saved.parsed(name)
    edit(document, data)
    write(document, stored, path)
    scores = scores_or_error(path, net, rows)
    assert scores is None or np.isfinite(scores).all()


def test_edited_documents_are_noticed(saved, net):
    path = saved.path
    document, stored = saved.parsed("certified")
    digest = document["digest"]
    document["versions"]["torch"] += " "
    write(document, stored, path, signed=False)
    with pytest.raises(ValueError, match="digest"):
        skmrr.load(path, classifier=net)
    document["digest"] = digest
    save_file(stored, path, {KEY: json.dumps(document)})
    with pytest.raises(ValueError, match="digest"):
        skmrr.load(path, classifier=net)


def first(document, kind, **fields):
    """First record of a kind, with some fields."""
    return next(
        record
        for record in document["records"]
        if record["kind"] == kind and all(record[k] == v for k, v in fields.items())
    )


def linear(document):
    return first(document, "module", **{"class": "torch.nn.Linear"})


def graph(document):
    return first(document, "graph")["nodes"]


def stored_tensor(document):
    return next(r for r in document["records"] if r["kind"] == "tensor" and r["data"] is not None)


CRAFTED = {
    "a class of somebody": lambda d, s: linear(d).update({"class": "subprocess.Popen"}),
    "an estimator as a layer": lambda d, s: linear(d).update(
        {"class": "skmrr.ensemble.MRREnsemble"}
    ),
    "a method": lambda d, s: linear(d)["attributes"].update(forward="x"),
    "a class attribute": lambda d, s: linear(d)["attributes"].update(__class__="x"),
    "hooks": lambda d, s: linear(d)["attributes"].update(_forward_hooks={"dict": []}),
    "hooks of the call": lambda d, s: linear(d)["attributes"].update(_compiled_call_impl="x"),
    "two parts of a name": lambda d, s: linear(d)["attributes"].update(weight=3),
    "a reference to itself": lambda d, s: linear(d)["modules"].update(
        a={"ref": d["records"].index(linear(d))}
    ),
    "a reference ahead": lambda d, s: linear(d)["modules"].update(a={"ref": 10**6}),
    "huge strides": lambda d, s: stored_tensor(d).update(strides=[2**40, 1]),
    "a missing tensor": lambda d, s: s.pop("0"),
    "a tensor more": lambda d, s: s.update(more=torch.zeros(3)),
    "a tensor of another type": lambda d, s: s.update({"0": s["0"].double()}),
    "a function of somebody": lambda d, s: graph(d)[1].__setitem__(
        slice(2), ["call_function", "eval"]
    ),
    "code for a name": lambda d, s: graph(d)[0].__setitem__(1, "x, y=print('hello')"),
    "code for a layer": lambda d, s: graph(d)[1].__setitem__(1, '0")) or print(("hello'),
    "code for an argument": lambda d, s: graph(d)[1].__setitem__(3, {"x=print('hello'), y": 1}),
    "no records": lambda d, s: d.update(records=[]),
    "no root": lambda d, s: d.update(root=-1),
    "no detector": lambda d, s: d.update(root=0),
    "a field more": lambda d, s: d.update(more=1),
    "a network more": lambda d, s: d["givens"].update(x={"fingerprint": "", "weights": ""}),
    "no format": lambda d, s: d.update(format="1"),
    "a format with a point": lambda d, s: d.update(format=1.0),
    "other scores": lambda d, s: d.update(trial=[-50.0, -50.0]),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused(saved, net, name, capsys):
    path = saved.path
    document, stored = saved.parsed("certified")
    CRAFTED[name](document, stored)
    write(document, stored, path)
    with pytest.raises(ValueError, match="no detector that can be read|networks that its file"):
        skmrr.load(path, classifier=net)
    assert capsys.readouterr().out == ""


def header(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


RAW = {
    "empty": b"",
    "text": b"a detector",
    "a pickle": b"\x80\x04cos\nsystem\n(S'echo hello'\ntR.",
    "no header": struct.pack("<Q", 2**62) + b"{}",
    "of somebody else": header(b'{"__metadata__":{"a":"b"}}'),
    "a tensor beyond the file": header(
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    ),
    "deep": header(json.dumps({"__metadata__": {KEY: DEEP}}).encode()),
    "a long number": header(json.dumps({"__metadata__": {KEY: "9" * 100_000}}).encode()),
    "twice": header(json.dumps({"__metadata__": {KEY: '{"format":1,"format":1}'}}).encode()),
    "deep values": None,
}


@pytest.mark.parametrize("name", RAW)
def test_what_is_no_file_of_ours_is_refused(saved, net, name):
    path = saved.path
    if RAW[name] is None:
        document, stored = saved.parsed("certified")
        value: list = []
        for _ in range(sys.getrecursionlimit() // 2):
            value = [value]
        linear(document)["attributes"]["more"] = value
        write(document, stored, path)
    else:
        path.write_bytes(RAW[name])
    with pytest.raises(ValueError, match="no detector that can be read"):
        skmrr.load(path, classifier=net)


def test_no_file_and_no_folder(saved, net):
    path = saved.path
    for wrong, error in ((path.with_name("none"), FileNotFoundError), (path.parent, OSError)):
        with pytest.raises(error):
            skmrr.load(wrong, classifier=net)


def test_gram_matrices_do_not_lead_compiled_code_astray():
    coder = SparseCoder(torch.eye(32), n_nonzero=2)
    for gram in (torch.zeros(1, 1), torch.zeros(32, 32, dtype=torch.float64)):
        coder.gram = gram
        with pytest.raises(ValueError, match="Gram matrix"):
            coder(torch.ones(1, 32))
