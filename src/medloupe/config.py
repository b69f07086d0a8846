"""A typed value -> a component, to YAML or JSON and back.

A family of components (encoders, connectors, ...) is one abstract `ComponentConfig` subclass with
one `table` of `"name": "module:Class"` strings; nothing is imported before it is named. A name with
a colon (`my_lab.pool:MyPoolConfig`) is the user's own class. It is code, so a file that comes from
elsewhere (a checkpoint) is read inside `trusting_code(False)`, where such a name is refused.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer, model_validator
from pydantic import ModelWrapValidatorHandler as Handler
from pydantic_core import ErrorDetails

from medloupe.errors import ConfigError, did_you_mean

_trust_code: contextvars.ContextVar[bool] = contextvars.ContextVar("trust_code", default=True)


@contextlib.contextmanager
def trusting_code(allowed: bool) -> Iterator[None]:
    """Inside, configs may (or may not) name classes outside the package. Default: they may."""
    token = _trust_code.set(allowed)
    try:
        yield
    finally:
        _trust_code.reset(token)


class Config(BaseModel):
    """A frozen value. Unknown fields are refused; equal values have equal `fingerprint()`s."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, from which `parse` builds an equal value."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """One line, the same for equal values."""
        return self.model_dump_json()

    def to_yaml(self) -> str:
        """The resolved value as YAML, fields in the order of the class."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON form."""
        return fingerprint_of(self.to_dict())

    @classmethod
    def parse(cls, data: Any, *, file: str | None = None) -> Self:
        """Validate plain data.

        Raises:
            ConfigError: naming every wrong field, with near names for unknown ones.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _readable(cls, error, data, file) from None

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a YAML or JSON file (JSON is YAML)."""
        return cls.parse(read_yaml(path), file=str(path))

    def with_overrides(self, assignments: Sequence[str]) -> Self:
        """Apply `a.b.c=value` assignments; values are YAML, lists are indexed by number or `name`.

        Raises:
            ConfigError: an assignment without `=`, an unknown path, or a value that does not fit.
        """
        data = self.to_dict()
        components = dict.fromkeys(_component_ids(self, data), False)
        for assignment in assignments:
            path, sign, text = assignment.partition("=")
            if not sign:
                raise ConfigError(
                    f"override {assignment!r} has no '='", remedy="Write --set field.path=value"
                )
            steps = path.strip().split(".")
            _assign(data, steps, yaml.safe_load(text), path.strip(), components)
        return type(self).parse(data)


class ComponentConfig(Config):
    """A config whose concrete class is chosen by `name` from its family's `table`."""

    family: ClassVar[str] = "component"
    table: ClassVar[Mapping[str, str]] = {}
    default: ClassVar[str | None] = None  # the name of fields that come without one

    @property
    def name(self) -> str:
        """The table's name for this class, or `module:Class` for a class outside the package."""
        return component_name(type(self))

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, data: Any, handler: Handler[Self]) -> Self:
        if isinstance(data, str):
            data = {"name": data}
        if not isinstance(data, Mapping):
            return handler(data)
        fields = dict(data)
        is_family = "table" in cls.__dict__
        name = fields.pop("name", cls.default if is_family else None)
        if name is None:
            if is_family:
                raise ConfigError(
                    f"a {cls.family} needs a name", remedy=f"One of: {', '.join(cls.table)}"
                )
            return handler(fields)
        concrete = resolve_component(cls, str(name))
        if concrete is cls:
            return handler(fields)
        return concrete.model_validate(fields)  # type: ignore[return-value]

    @model_serializer(mode="plain")
    def _with_name(self) -> dict[str, Any]:
        values = {field: getattr(self, field) for field in type(self).model_fields}
        return {"name": self.name, **values}


def fingerprint_of(stated: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of plain JSON data in its canonical form."""
    text = json.dumps(stated, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def component_name(concrete: type[ComponentConfig]) -> str:
    """The name under which `concrete` is found again."""
    path = f"{concrete.__module__}:{concrete.__qualname__}"
    for name, known in concrete.table.items():
        if known == path:
            return name
    return path


def resolve_component(family: type[ComponentConfig], name: str) -> type[ComponentConfig]:
    """Import the class that `name` stands for.

    Raises:
        ConfigError: unknown name, a module that cannot be imported, a class of another family, or a
            class outside the package where code is not trusted.
    """
    if ":" not in name:
        if name not in family.table:
            raise ConfigError(
                f"unknown {family.family} {name!r}; {did_you_mean(name, family.table)}"
            )
        return import_class(family.table[name], family)
    if not _trust_code.get():
        raise ConfigError(
            f"this file names code outside MedLoupe: {family.family} {name!r}",
            remedy="Read that code; if you trust it, pass --trust-code (trust_code=True)",
        )
    return import_class(name, family)


def import_class(path: str, base: type[ComponentConfig]) -> type[ComponentConfig]:
    """Import `module:Class` and check that it is a `base`."""
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot import {path!r}: {error}",
            remedy="Write package.module:ClassName and check that the module is on the Python path",
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{path!r} is not a {base.__name__} ({base.family})")
    return found


def read_yaml(path: Path) -> Any:
    """Parse a YAML or JSON file.

    Raises:
        ConfigError: the file is missing or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", file=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid YAML: {error}", file=str(path)) from error


def _component_ids(value: Any, data: Any) -> Iterator[int]:
    """The ids of the dicts in `data`, made from `value`, that stand for components."""
    if isinstance(value, ComponentConfig):
        yield id(data)
    if isinstance(value, BaseModel):
        for field in type(value).model_fields.keys() & data.keys():
            yield from _component_ids(getattr(value, field), data[field])
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _component_ids(inner, data[key])
    elif isinstance(value, tuple | list):
        for inner, dumped in zip(value, data, strict=True):
            yield from _component_ids(inner, dumped)


def _assign(
    data: Any, path: list[str], value: Any, whole: str, components: dict[int, bool]
) -> None:
    """Set `path` inside nested dicts and lists, in place.

    `components` are ids of dicts, True where another component was named, or where nothing stood: its
    fields are not in `data`, and whether they exist is seen when it is parsed.
    """
    key, rest = path[0], path[1:]
    if isinstance(data, list):
        index = _list_index(data, key, whole)
        if rest:
            _assign(data[index], rest, value, whole, components)
        else:
            data[index] = value
        return
    if not isinstance(data, dict):
        raise ConfigError(f"nothing to set below {key!r} in {whole!r}", field=whole)
    if components.get(id(data)):
        data.setdefault(key, None)
    if key not in data and key != "name":
        raise ConfigError(f"unknown field {key!r}; {did_you_mean(key, data)}", field=whole)
    if rest and data[key] is None:
        data[key] = {}
        components[id(data[key])] = True
    if rest and isinstance(data[key], dict) and not data[key]:
        data[key][rest[0]] = None
    if rest:
        _assign(data[key], rest, value, whole, components)
    elif key == "name" and id(data) in components and data["name"] != value:
        data.clear()  # another component: its fields start from their defaults
        data["name"] = value
        components[id(data)] = True
    else:
        data[key] = value


def _list_index(items: list[Any], key: str, whole: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    names = [str(item.get("name")) for item in items if isinstance(item, dict)]
    if key in names:
        return names.index(key)
    raise ConfigError(
        f"no entry {key!r} in a list of {len(items)}; {did_you_mean(key, names)}", field=whole
    )


def _readable(
    cls: type[Config], error: ValidationError, data: Any, file: str | None
) -> ConfigError:
    lines = []
    found = error.errors()
    for item in found:
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "too_short" and any(_is_inside(other, item) for other in found):
            continue  # an entry that is wrong was counted as none
        if item["type"] == "extra_forbidden":
            known = _fields_at(cls, data, item["loc"][:-1])
            lines.append(f"{where}: unknown field; {did_you_mean(str(item['loc'][-1]), known)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {message}" if where else message)
    return ConfigError("; ".join(lines), file=file)


def _is_inside(error: ErrorDetails, outer: ErrorDetails) -> bool:
    place = outer["loc"]
    return len(error["loc"]) > len(place) and error["loc"][: len(place)] == place


def _fields_at(cls: type[Config], data: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the config that stands at `loc` (for suggestions)."""
    current = _model_in(cls, data)
    for part in loc:
        if current is None:
            return []
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            data = None
        if isinstance(part, str) and part in current.model_fields:
            current = _model_in(current.model_fields[part].annotation, data)
    return list(current.model_fields) if current else []


def _model_in(annotation: Any, data: Any) -> type[BaseModel] | None:
    """The first model class inside an annotation such as `tuple[StageConfig, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, ComponentConfig):
        name = data if isinstance(data, str) else (data or {}).get("name")
        return resolve_component(annotation, name) if name else annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner, data)
        if found is not None:
            return found
    return None
