"""Recipes as data, read from TOML files and checked.

The package's own recipes are beside this file; any other is named by its path. A recipe has these entries:

- ``description``, ``data`` (as for `load_data`), ``seeds``;
- ``[network]``: ``name``, and the network's arguments;
- ``[training]``: epochs, batch_size, optimizer, lr, momentum, weight_decay, label_smoothing, train, validation, as in
  `TrainingPlan`;
- ``[options]``: fields of `TrainingOptions`; the schedule is ``"cosine"`` unless they name another;
- ``threat``: what adversarial methods train against, such as ``"Linf 8/255"``;
- ``[evaluation]``: ``threats``, ``attacks``, and ``points``, the number of test images that are attacked; ``noise``,
  attacks of the suite of noise, and ``certify``, such as ``["L2 0.5"]``, both on all test images;
- ``[quick]``: what differs with ``--quick``: data, train, epochs, points, attacks, noise;
- ``[[rows]]``: ``name``, ``method``, its ``parameters``, ``with`` (instruments, each with its parameters),
  ``weight_map`` (a kernel), and network, training, options, threat, seeds where the row has its own.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ...checks import check_choice, suggest
from ...choices import Kernel
from ...evaluation.libraries import SUITES, resolve
from ...files import DEPTH_LIMIT, depth_of, regular_file
from ...registry import available_instruments, method, parameters_of
from ...threat import ThreatModel
from ...training import TrainingOptions
from ..plans import TrainingPlan, is_trainable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent
OPTIONS = [each.name for each in fields(TrainingOptions) if each.name not in ("seed", "checkpoint_dir", "resume")]
"""The training options that a recipe may have; `run_recipe` sets the others."""
NOISE = [attack.name for attack in SUITES["noise"]]
QUICK: dict[str, Any] = {"train": 256, "epochs": 1, "points": 4}
"""The entries that ``--quick`` changes in every recipe; of the seeds it keeps the first."""

SIZE_LIMIT = 2**20
"""The largest size of a recipe's file in bytes."""
LARGEST = 10_000
"""The largest number among a network's arguments: a layer takes time and memory to make."""

_NUMBER = (int, float)
_RECIPE: dict[str, Any] = {
    "description": str,
    "data": str,
    "seeds": list,
    "threat": str,
    "network": dict,
    "training": dict,
    "options": dict,
    "evaluation": dict,
    "quick": dict,
    "rows": list,
}
_TRAINING_FIELDS = (
    *("epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "label_smoothing"),
    *("train", "validation"),
)


def _kind_in_file(annotation: Any) -> Any:
    """The type of a `TrainingPlan` field in a TOML file."""
    if annotation is float:
        return _NUMBER
    return int if annotation in (int, int | None) else str


_TRAINING = {name: _kind_in_file(get_type_hints(TrainingPlan)[name]) for name in _TRAINING_FIELDS}
_EVALUATION: dict[str, Any] = {"threats": list, "attacks": list, "points": int, "noise": list, "certify": list}
_QUICK: dict[str, Any] = {"data": str, "train": int, "epochs": int, "points": int, "attacks": list, "noise": list}
_ROW: dict[str, Any] = {
    "name": str,
    "method": str,
    "parameters": dict,
    "with": dict,
    "weight_map": str,
    "network": dict,
    "training": dict,
    "options": dict,
    "threat": str,
    "seeds": list,
}
_NAMES = {str: "text", int: "a whole number", _NUMBER: "a number", list: "a list", dict: "a table"}


@dataclass(frozen=True)
class Row:
    """One training of a recipe: its name in tables, its plan, and its seeds."""

    name: str
    plan: TrainingPlan
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """A recipe, read from its file and checked.

    Attributes:
        name: of the file, without its suffix.
        description: a sentence.
        data: as for `load_data`.
        rows: the trainings that are compared.
        threats: the threats within which networks are attacked, each by its text in the file.
        attacks: suites or attacks by name.
        points: the number of test images that are attacked, the first ones.
        noise: attacks of the suite ``noise``, on all test images.
        certify: the threats within which all test images are certified; likewise.
        quick: whether this is the quick form, whose results are no measurements.
        table: the content of the file.
    """

    name: str
    description: str
    data: str
    rows: tuple[Row, ...]
    threats: dict[str, ThreatModel]
    attacks: tuple[str, ...]
    points: int
    noise: tuple[str, ...]
    certify: dict[str, ThreatModel]
    quick: bool
    table: dict[str, Any]


def available_recipes() -> list[str]:
    """The names of the package's own recipes.

    Example:
        >>> [name for name in available_recipes() if name.startswith("mnist")]
        ['mnist', 'mnist-certified']
    """
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str | Path, *, quick: bool = False) -> Recipe:
    """Read and check a recipe.

    Args:
        name: one of `available_recipes`, or the path of a TOML file.
        quick: the quick form, which takes about a minute: few images, one epoch, one seed.

    Raises:
        ValueError: an unknown name (the known ones are listed, the nearest first); a file that is no TOML; a key or a
            value that no recipe has. The sentence names it.

    Example:
        >>> recipe = load_recipe("digits")
        >>> recipe.data, recipe.rows[0].name
        ('digits', 'plain')
    """
    path = Path(name)
    if path.suffix == ".toml":
        if not path.exists():
            raise FileNotFoundError(f"NAME: {path}: no such file, expected a recipe.")
        if regular_file(path, "a recipe").stat().st_size > SIZE_LIMIT:
            raise ValueError(f"{path}: got more than {SIZE_LIMIT // 2**20} MB, expected a recipe.")
    else:
        known = available_recipes()
        if str(name) not in known:
            listed = f"{', '.join(known)}, or a .toml file"
            raise ValueError(f"NAME: got {str(name)!r}, expected one of {listed}{suggest(str(name), known)}")
        path = FOLDER / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of numbers with more digits than Python reads
        raise ValueError(f"{path}: {error}, expected TOML.") from error
    if depth_of(table) > DEPTH_LIMIT:
        raise ValueError(f"{path}: got tables nested more than {DEPTH_LIMIT} deep, expected a recipe.")
    return _recipe(path, table, quick)


def _recipe(path: Path, table: dict[str, Any], quick: bool) -> Recipe:
    at = path.name
    _check(table, at, _RECIPE, required=("description", "data", "seeds", "network", "evaluation", "rows"))
    changes = table.get("quick", {})
    _check(changes, f"{at}: quick", _QUICK)
    evaluation = dict(table["evaluation"])
    _check(evaluation, f"{at}: evaluation", _EVALUATION, required=("threats", "attacks", "points"))
    data = table["data"]
    if quick:
        changes = {**QUICK, **changes}
        data = changes.get("data", data)
        evaluation |= {key: changes[key] for key in ("points", "attacks", "noise") if key in changes}
    rows = tuple(_row(at, table, number, changes if quick else {}) for number in range(len(table["rows"])))
    names = [row.name for row in rows]
    twice = next((each for each in names if names.count(each) > 1), None)
    if not rows or twice is not None:
        raise ValueError(f"{at}: rows: got {'none' if twice is None else f'{twice!r} twice'}, expected each once.")
    _one_of(evaluation.get("noise", []), NOISE, f"{at}: evaluation.noise")
    if evaluation["points"] < 1:
        raise ValueError(f"{at}: evaluation.points: got {evaluation['points']}, expected at least 1.")
    threats = _threats(evaluation["threats"], f"{at}: evaluation.threats")
    if not threats:
        raise ValueError(f"{at}: evaluation.threats: got none, expected one such as 'Linf 8/255'.")
    certify = _threats(evaluation.get("certify", []), f"{at}: evaluation.certify")
    if len({threat.norm for threat in certify.values()}) > 1:
        raise ValueError(f"{at}: evaluation.certify: got {evaluation['certify']}, expected radii of one norm.")
    with _at(f"{at}: evaluation"):
        resolve(evaluation["attacks"])
    return Recipe(
        name=path.stem,
        description=table["description"],
        data=data,
        rows=rows,
        threats=threats,
        attacks=tuple(evaluation["attacks"]),
        points=evaluation["points"],
        noise=tuple(evaluation.get("noise", [])),
        certify=certify,
        quick=quick,
        table=table,
    )


def _row(file: str, table: Mapping[str, Any], number: int, quick: Mapping[str, Any]) -> Row:
    row = table["rows"][number]
    at = f"{file}: rows[{number}]"
    _check(row, at, _ROW, required=("name", "method"))
    at = f"{file}: {row['name']}"
    merged = {key: {**table.get(key, {}), **row.get(key, {})} for key in ("network", "training", "options")}
    network = merged["network"]
    if not isinstance(network.get("name"), str):
        raise ValueError(f"{at}: network.name: got {network.get('name')!r}, expected a network's name.")
    for key, value in network.items():
        if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
            raise ValueError(f"{at}: network.{key}: got {value}, expected at most {LARGEST}.")
    training = merged["training"] | {key: quick[key] for key in ("train", "epochs") if key in quick}
    _check(training, f"{at}: training", _TRAINING)
    whole, own = table.get("training", {}), row.get("training", {})
    for given, optimizer in ((whole, whole.get("optimizer")), (own, training.get("optimizer"))):
        if optimizer == "adam" and "momentum" in given:
            raise ValueError(f"{at}: training.momentum: got {given['momentum']} for adam, expected it for sgd only.")
    _one_of(merged["options"], OPTIONS, f"{at}: options")
    joined, instruments = row.get("with", {}), available_instruments()
    _one_of(joined, instruments, f"{at}: with")
    for instrument, values in joined.items():
        _check_kind(values, dict, f"{at}: with.{instrument}")
        _one_of(values, parameters_of(instruments[instrument]), f"{at}: with.{instrument}")
    with _at(at):
        parameters = dict(row.get("parameters", {}))
        kind = method(row["method"], "method")
        if not is_trainable(kind):
            raise ValueError(f"method: got {row['method']!r}, expected a trainer or an estimator that is trained.")
        known = parameters_of(kind)
        _one_of(parameters, [name for name in known if name != "threat"], "parameters")
        _check_choices(row, merged["options"], training)
        required = "threat" in known and known["threat"] is inspect.Parameter.empty
        if "threat" in row and "threat" not in known:
            raise ValueError(f"threat: {row['method']!r} takes none, expected no threat.")
        threat = row.get("threat", table.get("threat") if required else None)
        if required and threat is None:
            raise ValueError(f"threat: got none, which {row['method']!r} trains against, expected one.")
        if threat is not None:
            parameters["threat"] = _threat(threat, "threat")
        plan = TrainingPlan(
            row["method"],
            network=network["name"],
            network_arguments={key: value for key, value in network.items() if key != "name"},
            parameters=parameters,
            instruments=joined,
            weight_map=row.get("weight_map"),
            options=merged["options"],
            **training,
        )
        TrainingOptions(**merged["options"])
    seeds = row.get("seeds", table["seeds"])
    if (
        not seeds
        or any(type(seed) is not int or not 0 <= seed < 2**32 for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise ValueError(f"{at}: seeds: got {seeds}, expected whole numbers, each once.")
    return Row(row["name"], plan, tuple(seeds[:1] if quick else seeds))


def _check_choices(row: Mapping[str, Any], options: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    if "weight_map" in row:
        check_choice("weight_map", row["weight_map"], get_args(Kernel))
    if options.get("keep_best") and not training.get("validation"):
        raise ValueError("training.validation: got none with keep_best, expected a number of images.")


def _check(table: Any, place: str, kinds: Mapping[str, Any], required: Iterable[str] = ()) -> None:
    """Refuse anything but a table with known keys and values of the right types."""
    _check_kind(table, dict, place)
    _one_of(table, kinds, place)
    for key, value in table.items():
        _check_kind(value, kinds[key], f"{place}.{key}")
    for key in required:
        if key not in table:
            raise ValueError(f"{place}.{key}: got none, expected {_NAMES[kinds[key]]}.")


def _check_kind(value: Any, kind: Any, place: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{place}: got {value!r}, expected {_NAMES[kind]}.")


def _one_of(names: Iterable[Any], known: Iterable[str], place: str) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            hint = suggest(str(name), known, f", expected some of {', '.join(known) or 'none'}.")
            raise ValueError(f"{place}: got {name!r}, which is not known{hint}")


def _threats(texts: list[Any], place: str) -> dict[str, ThreatModel]:
    threats = {text: _threat(text, place) for text in texts}
    if len(set(map(str, threats.values()))) < len(texts):
        raise ValueError(f"{place}: got {texts}, expected each once.")
    return threats


def _threat(text: Any, place: str) -> ThreatModel:
    words = text.split() if isinstance(text, str) else []
    if len(words) != 2:
        raise ValueError(f"{place}: got {text!r}, expected a norm and a radius, such as 'Linf 8/255'.")
    with _at(place):
        return ThreatModel(*words)


@contextmanager
def _at(place: str) -> Iterator[None]:
    """A context that adds the place in the file to errors."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: {error}") from error
