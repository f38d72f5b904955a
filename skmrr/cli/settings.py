"""``skmrr.toml``: what the commands have to know of a classifier and its rows."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESIZINGS = ("crop", "stretch")
COLOURS = {"rgb": "RGB", "grey": "L"}  # as Pillow names them

TEMPLATE = """\
# What the commands of skmrr have to know of a classifier and its rows.
# Paths, and the modules that are imported, are looked for beside this file.

[classifier]
# "module:factory", a class or a function that returns the network when called without arguments,
# and a file with its state_dict, .pt or .safetensors. Or program = "file.pt2" of torch.export.
{classifier}
# What the network expects to be subtracted and divided by, channel by channel, in the units below.
# Leave both out if it takes pixels as they are.
{normalisation}

[rows]
# Lowest and highest value that a number of a row may have. Pixels of image files are scaled to it.
{clip_values}
# Names of the classes in the order of the logits. Without them, those of folders count as sorted.
{classes}

[images]
# Height and width, and the colours: "rgb" or "grey". Images of another size are resized, and what
# is then too wide or too high is cut off ("crop"), or "stretch"ed.
{size}
{colours}
{resize}
"""


@dataclass(frozen=True)
class Settings:
    """What `TEMPLATE` says, and the folder that it lies in."""

    folder: Path
    factory: str | None = None
    weights: str | None = None
    program: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    clip_values: list[float] | None = None
    classes: list[str] | None = None
    size: list[int] | None = None
    colours: str = "rgb"
    resize: str = "crop"

    def __post_init__(self):
        """Refuse what means nothing.

        Raises
        ------
        ValueError
            If a value is of the wrong kind, missing, or contradicts another.
        """
        for table, keys in KEYS.items():
            for key, (is_right, wanted) in keys.items():
                value = getattr(self, key)
                if value is not None and not is_right(value):
                    raise ValueError(f"[{table}] {key} = {value!r} must be {wanted}.")
        if (self.factory is None) == (self.program is None):
            raise ValueError("[classifier] takes either factory = … or program = ….")
        if self.program is not None and self.weights is not None:
            raise ValueError("[classifier] program holds its weights: leave out weights = ….")
        if self.clip_values is None:
            raise ValueError("[rows] lacks clip_values, e.g. clip_values = [0, 1].")
        if (self.mean is None) != (self.std is None):
            raise ValueError("[classifier] takes mean and std both, or none of them.")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("[classifier] mean and std must have one number for each channel.")

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of a row."""
        assert self.clip_values is not None  # `__post_init__` sees to it
        low, high = self.clip_values
        return float(low), float(high)

    def path(self, name: str) -> Path:
        """Path of a file that the settings name."""
        return self.folder / name

    def toml(self) -> str:
        """Write the settings, with comments; what is not set stays as a comment."""
        examples = {"mean": [0.5], "std": [0.25], "classes": ["cat", "dog"], "size": [224, 224]}

        def line(key: str) -> str:
            value = getattr(self, key)
            mark, value = ("# ", examples[key]) if value is None else ("", value)
            # JSON's strings, numbers and lists are TOML's too, but for one control character.
            return f"{mark}{key} = {json.dumps(value, ensure_ascii=False)}".replace(
                "\x7f", "\\u007f"
            )

        source = ("factory", "weights") if self.program is None else ("program",)
        given = [line(key) for key in source if getattr(self, key) is not None]
        plain = ("clip_values", "classes", "size", "colours", "resize")
        return TEMPLATE.format(
            classifier="\n".join(given),
            normalisation=f"{line('mean')}\n{line('std')}",
            **{key: line(key) for key in plain},
        )


def read_settings(path: Path) -> Settings:
    """Read a settings file.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is none, or it is not as `TEMPLATE` has it; the message says what to do.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is no {path}: write it by skmrr init, or name another by --settings."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    flat: dict[str, Any] = {}
    for table, entries in found.items():
        if table not in KEYS or not isinstance(entries, dict):
            raise ValueError(f"{path} has no table [{table}]; its tables are: {', '.join(KEYS)}.")
        for key in entries:
            if key not in KEYS[table]:
                raise ValueError(
                    f"{path}: [{table}] has no {key!r}; its keys are: {', '.join(KEYS[table])}."
                )
        flat |= entries
    try:
        return Settings(folder=path.parent, **flat)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _is_text(value) -> bool:
    return isinstance(value, str) and value != ""


def _are(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) > 0 and all(map(is_one, value))


def _is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


def _is_range(value) -> bool:
    return _are(_is_number)(value) and len(value) == 2 and value[0] < value[1]


def _is_size(value) -> bool:
    return _are(lambda side: type(side) is int and side > 0)(value) and len(value) == 2


def _are_names(value) -> bool:
    return _are(_is_text)(value) and len(set(value)) == len(value)


def _are_positive(value) -> bool:
    return _are(lambda number: _is_number(number) and number > 0)(value)


KEYS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "classifier": {
        "factory": (
            lambda value: _is_text(value) and all(value.partition(":")[::2]),
            'a text "module:factory"',
        ),
        "weights": (_is_text, "the name of a file"),
        "program": (_is_text, "the name of a file"),
        "mean": (_are(_is_number), "a list of numbers, one for each channel"),
        "std": (_are_positive, "a list of numbers above 0, one for each channel"),
    },
    "rows": {
        "clip_values": (_is_range, "two numbers, [lowest, highest]"),
        "classes": (_are_names, "a list of names, each once"),
    },
    "images": {
        "size": (_is_size, "two whole numbers, [height, width]"),
        "colours": (lambda value: value in COLOURS, f"one of {', '.join(COLOURS)}"),
        "resize": (lambda value: value in RESIZINGS, f"one of {', '.join(RESIZINGS)}"),
    },
}
"""By table and key, what a value must be."""
