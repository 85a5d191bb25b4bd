"""Settings: nested frozen dataclasses, filled from TOML and from ``section.key=value`` overrides.

The dataclass *is* the schema. A value must have the type of its field (an integer is accepted
where a float is asked for, nothing else is converted), an unknown key is an error that names the
nearest known one, and whatever a ``__post_init__`` refuses is reported with its place. Supported
field types: ``bool int float str Path``, ``Literal``, tuples, unions with each other and with
``None``, and further dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ciper.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")

_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    Path: "a path",
}


class _Raw(str):
    """An override's right-hand side: text that becomes a value once its field's type is known."""


def load_config(
    cls: type[ConfigT], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> ConfigT:
    """Read settings from a file and change some of them.

    Args:
        cls: The dataclass that describes the settings.
        path: A TOML file; None starts from the defaults.
        overrides: ``section.key=value`` each; the value is written as in TOML, texts also without
            quotes, and ``none`` for an optional setting. Later ones win.

    Raises:
        ConfigError: The file cannot be read or is not TOML; a key is unknown or missing; a value
            has the wrong type or is refused by its dataclass.
    """
    values = _read_toml(Path(path)) if path is not None else {}
    for override in overrides:
        _put(values, override)
    return from_dict(cls, values)


def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Build settings from nested mappings, as `to_dict` or a TOML file gives them.

    Keys that are absent keep their defaults.

    Raises:
        ConfigError: As `load_config`.
    """
    return _build(cls, values, place="")


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """Nested dicts of plain values that `from_dict` reads: paths as text, tuples as lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


# --- reading --------------------------------------------------------------------------------------


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); name a TOML file."
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}.") from error


def _put(values: dict[str, Any], override: str) -> None:
    """Set one ``section.key=value`` in the nested dict, making the sections on its way."""
    dotted, equals, text = override.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f"{override!r} is not a setting; write section.key=value.")
    for depth, key in enumerate(keys[:-1], start=1):
        section: object = values.setdefault(key, {})
        if not isinstance(section, dict):
            place = ".".join(keys[:depth])
            raise ConfigError(f"{override!r}: {place} is a value, not a section.")
        values = section
    values[keys[-1]] = _Raw(text.strip())


# --- building -------------------------------------------------------------------------------------


def _build(cls: type[ConfigT], values: object, *, place: str) -> ConfigT:
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{place} = {values!r}: expected a section; set its keys, for example "
            f"{place}.{_field_names(cls)[0]}."
        )
    _refuse_unknown(cls, values, place=place)
    hints = typing.get_type_hints(cls)
    arguments = {
        name: _convert(value, hints[name], place=_join(place, name))
        for name, value in values.items()
    }
    for field in dataclasses.fields(cls):
        if field.init and field.name not in arguments and _is_required(field):
            raise ConfigError(
                f"{_join(place, field.name)} has no value and no default; set it in the file or "
                f"as {_join(place, field.name)}=..."
            )
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ConfigError(f"{place or cls.__name__}: {error}") from error


def _refuse_unknown(cls: type[DataclassInstance], names: Iterable[str], *, place: str) -> None:
    known = _field_names(cls)
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        options = ", ".join(_join(place, option) for option in known)
        raise ConfigError(
            f"{_join(place, name)} is not a setting; did you mean {_join(place, near[0])}? "
            f"Known here: {options}."
            if near
            else f"{_join(place, name)} is not a setting; {place or cls.__name__} has none."
        )


def _convert(value: object, kind: Any, *, place: str) -> Any:
    """A value as its field's type wants it.

    Raises:
        ConfigError: It has another type, or is not one of the choices.
    """
    options = _options(kind)
    if isinstance(value, _Raw):
        value = _parse(value, options)
    for option in options:
        if _fits(value, option):
            return _convert_to(value, option, place=place)
    raise ConfigError(f"{place} = {value!r}: expected {_describe(kind)}.")


def _convert_to(value: Any, kind: Any, *, place: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build(kind, value, place=place)
    if typing.get_origin(kind) is tuple:
        return _convert_tuple(value, typing.get_args(kind), place=place)
    # _Raw is an implementation detail and must not leak into a saved configuration.
    return kind(value) if kind in (float, str, Path) else value


def _convert_tuple(values: Sequence[object], kinds: tuple[Any, ...], *, place: str) -> Any:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if len(values) != len(kinds):
        raise ConfigError(
            f"{place} = {list(values)!r}: expected {len(kinds)} values, found {len(values)}."
        )
    return tuple(
        _convert(value, kind, place=f"{place}[{i}]")
        for i, (value, kind) in enumerate(zip(values, kinds, strict=True))
    )


def _parse(text: _Raw, options: Sequence[Any]) -> object:
    """The value that an override's text stands for, given what its field accepts.

    TOML's reading wins where the field accepts its type; otherwise the text itself is the value,
    so that ``name=7`` and ``train.device=cuda`` mean the texts "7" and "cuda".
    """
    if type(None) in options and text.lower() == "none":
        return None
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return str(text)
    return value if any(_fits(value, option) for option in options) else str(text)


def _fits(value: object, kind: Any) -> bool:
    """Whether the outer type is right; the parts of tuples and sections are looked at later."""
    if typing.get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in kind.__args__)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list | tuple)
    if dataclasses.is_dataclass(kind):
        return isinstance(value, Mapping)
    if kind in (int, float):
        # bool is a subclass of int, but `lr = true` is a mistake.
        accepted = (int, float) if kind is float else int
        return isinstance(value, accepted) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, str | Path)
    return isinstance(kind, type) and isinstance(value, kind)


# --- types in words -------------------------------------------------------------------------------


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def _describe(kind: Any) -> str:
    """A type in the reader's words."""
    options = _options(kind)
    if len(options) > 1:
        return " or ".join("none" if o is type(None) else _describe(o) for o in options)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, kind.__args__))
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if parts[-1] is Ellipsis:
            return f"a list, each item {_describe(parts[0])}"
        return f"a list of {len(parts)} ({', '.join(_describe(part) for part in parts)})"
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return f"a section with the keys of {kind.__name__}"
    return _NAMES.get(kind, str(kind))


def _field_names(cls: type[DataclassInstance]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
