"""Configurations as TOML and JSON documents, read by the types of the fields.

A key of a document is the command line's flag: ``--rpn.nms-threshold 0.6`` is ``nms_threshold = 0.6`` in the table
``[rpn]``, and ``--steps 100`` is ``steps = 100`` above all tables. The parts of a
:class:`~refnet.train.config.RunConfig` share that one level of names; ``dataset`` says which kind of data it is, and
``preset``, which only a file that people write has, where the network's fields start from. TOML has no null: None
is the text "none".
"""

import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from refnet.errors import ConfigError
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.presets import PRESETS
from refnet.train.config import CocoData, RunConfig, ShapesData
from refnet.train.run_dir import CONFIG_JSON, CONFIG_TOML

Document = dict[str, Any]
T = TypeVar("T")

DATASETS: dict[str, type[ShapesData] | type[CocoData]] = {"shapes": ShapesData, "coco": CocoData}

DEFAULT_PRESETS = {"shapes": "shapes", "coco": "torchvision"}

PARTS = ("train", "data", "model")


def to_document(config: RunConfig) -> Document:
    """`config` as nested dictionaries of JSON values; :func:`from_document` is the inverse."""
    kind = next(name for name, data in DATASETS.items() if isinstance(config.data, data))
    document: Document = {"dataset": kind}
    for part in PARTS:
        document |= to_plain(getattr(config, part))
    return document


def to_plain(value: Any) -> Any:
    """A record as nested dictionaries of JSON values; :func:`with_values` is the inverse."""
    if is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_document(document: Mapping[str, Any], *, source: str) -> RunConfig:
    """The configuration that `document` describes; fields that it doesn't name have their defaults.

    Args:
        source: where the document is from, for error messages.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of range.
    """
    kind = document.get("dataset", "shapes")
    if kind not in DATASETS:
        raise ConfigError(f"{source}: dataset: expected one of {', '.join(DATASETS)}, got {kind!r}")
    missing = [name for name in ("images", "annotations") if kind == "coco" and name not in document]
    if missing:
        raise ConfigError(f"{source}: {missing[0]}: expected a path, got nothing")
    data: Any = CocoData(images=Path(), annotations=Path()) if kind == "coco" else ShapesData()
    model = preset_model(document.get("preset", DEFAULT_PRESETS[kind]), source=source)
    return with_document(RunConfig(model=model, data=data), document, source=source)


def preset_model(name: Any, *, source: str) -> ModelConfig:
    """The network of the preset `name`.

    Raises:
        ConfigError: there is no such preset.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"{source}: preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()


def with_document(base: RunConfig, document: Mapping[str, Any], *, source: str) -> RunConfig:
    """`base` with those fields changed that `document` names.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of range.
    """
    rest = {key: value for key, value in document.items() if key not in ("dataset", "preset")}
    parts = {}
    for part in PARTS:
        present = getattr(base, part)
        names = {f.name for f in fields(present)}
        parts[part] = with_values(present, {key: rest.pop(key) for key in list(rest) if key in names}, source)
    if rest:
        known = [f.name for part in parts.values() for f in fields(part)]
        raise _unknown(source, next(iter(rest)), known)
    return RunConfig(**parts)


def with_values(base: T, table: Any, source: str, prefix: str = "") -> T:
    """The record `base` with the fields that `table` names.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of range.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source}: {prefix.rstrip('.')}: expected a table, got {table!r}")
    hints = get_type_hints(type(base))
    changes = {}
    for key, value in table.items():
        if key not in hints:
            raise _unknown(source, f"{prefix}{key}", list(hints))
        if is_dataclass(hints[key]):
            changes[key] = with_values(getattr(base, key), value, source, f"{prefix}{key}.")
        else:
            changes[key] = _converted(value, hints[key], f"{source}: {prefix}{key}")
    try:
        return replace(base, **changes)  # type: ignore[type-var]
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _unknown(source: str, key: str, known: Sequence[str]) -> ConfigError:
    import difflib

    near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{source}: {key}: there is no such key, expected one of {', '.join(sorted(known))}{hint}")


def _converted(value: Any, hint: Any, where: str) -> Any:
    """The document's `value` as the type `hint`, one of those that configurations are made of.

    Raises:
        ConfigError: it is of another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (other,) = (a for a in arguments if a is not type(None))
        return None if value is None or value == "none" else _converted(value, other, where)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise ConfigError(f"{where}: expected one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin in (tuple, Sequence):
        many = origin is Sequence or arguments[-1] is Ellipsis
        if not isinstance(value, list) or not (many or len(value) == len(arguments)):
            raise ConfigError(f"{where}: expected a list{'' if many else f' of {len(arguments)}'}, got {value!r}")
        kinds = [arguments[0]] * len(value) if many else arguments
        return tuple(_converted(v, kind, f"{where}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not hint:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
        raise ConfigError(f"{where}: expected {names[hint]}, got {value!r}")
    return value


def read_toml(path: Path) -> Document:
    """The document in a TOML file.

    Raises:
        ConfigError: the file can't be read or isn't TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read as TOML: {error}") from error


def as_toml(document: Mapping[str, Any]) -> str:
    """A document, with tables one level deep, as TOML."""
    top = [f"{key} = {_toml(value)}" for key, value in document.items() if not isinstance(value, Mapping)]
    lines = [*top]
    for key, table in document.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{key}]", *(f"{name} = {_toml(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def write_config(config: RunConfig, run_dir: Path) -> None:
    """Write ``config.toml`` and ``config.json``, the same document twice, into `run_dir`."""
    document = to_document(config)
    (run_dir / CONFIG_TOML).write_text(as_toml(document))
    (run_dir / CONFIG_JSON).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_config(run_dir: Path) -> RunConfig:
    """The configuration of the run in `run_dir`.

    Raises:
        ConfigError: there is none, or it isn't valid.
    """
    path = run_dir / CONFIG_TOML
    if not path.is_file():
        raise ConfigError(f"{run_dir}: expected the folder of a run, with a config.toml, found none")
    return from_document(read_toml(path), source=str(path))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The keys, joined by dots, at which two documents differ, with both values; None stands for a missing one."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**ours, **theirs}:
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = (a, b)
    return found
