"""Frozen, typed configs: YAML files plus dotted overrides, a stable hash, and help made from the fields.

Every stage has one `Config` subclass beside its code. A field's docstring is its help text. Fields made
with `runtime(...)` say how a job runs (workers, threads, paths) and not what it computes: they
are left out of `identity()` and so of the hash that decides whether finished work can be reused.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from raylm.errors import UserError


class Config(BaseModel):
    """Base of every config: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _groups_keep_their_defaults(cls, data: Any) -> Any:
        """One key of a group leaves the others as this class has them, which may differ from the group's own."""
        return _over({name: field.default for name, field in cls.model_fields.items()}, cls, data)


def _over(defaults: dict[str, Any], config_class: type[Config], given: Any) -> Any:
    """`given` with each group in it completed by what `defaults` says of that group, if it is of the same class."""
    if not isinstance(given, dict):
        return given
    whole = dict(given)
    for name, group in given.items():
        default = defaults.get(name)
        if isinstance(group, dict) and isinstance(default, Config):
            group_class = type(default)
            if config_class.model_fields[name].annotation is group_class:
                said = {key: getattr(default, key) for key in default.model_fields_set}
                whole[name] = {**said, **_over(said, group_class, group)}
    return whole


ConfigT = TypeVar("ConfigT", bound=Config)
Direction = Literal["min", "max"]
"""Which values of a number are better. Configs of stages that a sweep can wrap have `measures()`: {name: Direction}."""


def runtime(default: Any = ..., **kwargs: Any) -> Any:
    """A field that changes how a job runs but not the rows it writes; it stays out of the hash."""
    return Field(default, json_schema_extra={"runtime": True}, **kwargs)


def is_runtime(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("runtime"))


def identity(config: Config) -> dict[str, Any]:
    """The part of `config` that decides the rows a job writes, as plain JSON data."""

    def prune(value: Any) -> Any:
        if isinstance(value, Config):
            fields = type(value).model_fields
            return {name: prune(getattr(value, name)) for name in fields if not is_runtime(fields[name])}
        if isinstance(value, dict):
            return {str(key): prune(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [prune(item) for item in value]
        return value

    return json.loads(json.dumps(prune(config), sort_keys=True, default=str))


def config_hash(config: Config) -> str:
    """Sixteen hex digits that change exactly when `identity(config)` does."""
    canonical = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def load(config_class: type[ConfigT], args: Sequence[str] = ()) -> ConfigT:
    """Build a config from YAML files and `key=value` overrides, in the order given.

    Args:
        config_class: the stage's config class.
        args: each a path of a YAML file, or `dotted.key=value` with the value in YAML.

    Raises:
        UserError: a file is missing or malformed, a key is unknown, or a value has the wrong type.
    """
    data: dict[str, Any] = {}
    for arg in args:
        if "=" in arg:
            key, text = arg.split("=", 1)
            value = _parse(text, f"the value of {key.strip()}")
            if isinstance(value, dict) and not text.lstrip().startswith("{"):
                value = text  # a sentence with a colon in it, not a mapping
            _set(data, key.strip(), value, config_class)
        else:
            _merge(data, _read_yaml(arg))
    return build(config_class, data)


def build(config_class: type[ConfigT], data: dict[str, Any], where: str = "config") -> ConfigT:
    """Validate plain data into a config; every problem becomes one line that names its key."""
    try:
        return config_class.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_explain(config_class, item) for item in error.errors())) from None


def describe(config_class: type[Config], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted key, type, default, help) for every field, nested configs flattened."""
    for name, field in config_class.model_fields.items():
        nested = nested_class(field.annotation)
        key = prefix + name
        if nested is not None and isinstance(field.get_default(call_default_factory=True), Config):
            yield from describe(nested, key + ".")
            continue
        yield key, _type_name(field.annotation), _default_text(field), (field.description or "").replace("\n", " ")
        if nested is not None:
            yield from describe(nested, key + "[].")


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that `load` reads back to an equal config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes texts with line breaks other than \\n, which YAML would fold away, with escapes."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    odd = any(mark in text for mark in "\r\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)


_Dumper.add_representer(str, _represent_text)


def _read_yaml(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such config file (overrides are written key=value)")
    data = _parse(file.read_text(encoding="utf-8"), path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: a config file holds a mapping of keys to values, not a {type(data).__name__}")
    return data


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML ({getattr(error, 'problem', None) or error})") from None


def _merge(base: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _set(data: dict[str, Any], key: str, value: Any, config_class: type[Config]) -> None:
    parts = key.split(".")
    for part in parts[:-1]:
        child = data.setdefault(part, {})
        if isinstance(child, list) or not isinstance(child, dict):
            raise UserError(f"{key}: {part} is not a group of keys in {config_class.__name__}")
        data = child
    data[parts[-1]] = value


def _explain(config_class: type[Config], error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = sorted({key for full, *_ in describe(config_class) for key in _ancestors(full.replace("[]", ""))})
        plain = ".".join(str(part) for part in error["loc"] if not isinstance(part, int))
        siblings = [key for key in known if key.rpartition(".")[0] == plain.rpartition(".")[0]]
        close = difflib.get_close_matches(plain, siblings, n=1, cutoff=0.5)
        close = close or difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
        hint = f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(siblings)}"
        return f"unknown key {location}{hint}"
    if error["type"] == "missing":
        return f"{location} is required"
    if error["type"] == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        return f"{location}: {message}" if location else message
    return f"{location}: {error['msg']} (got {error['input']!r})"


def _ancestors(key: str) -> Iterator[str]:
    """`a.b.c` yields itself, `a.b` and `a`."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def nested_class(annotation: Any) -> type[Config] | None:
    """The Config class inside an annotation such as X, X | None, tuple[X, ...] or dict[str, X]."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next((found for arg in get_args(annotation) if (found := nested_class(arg))), None)


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return re.sub(r"\b\w+\.(?=\w)", "", str(annotation)).replace("NoneType", "None")


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return json.dumps(default.model_dump(mode="json") if isinstance(default, Config) else default, default=str)
