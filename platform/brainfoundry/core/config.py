"""Configuration: frozen dataclass <- preset <- YAML file <- command line, with one clear line on a mistake.

A configuration class is a frozen, keyword-only dataclass (nested ones allowed) with a string literal
under each field that says what it is, its unit and the source of its default; tyro turns those into
`--help`. YAML values are fed through the same parser as command-line values, so both are checked alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from brainfoundry.core.errors import ConfigError

C = TypeVar("C")

_TYRO = (tyro.conf.AvoidSubcommands,)


def parse(
    kind: type[C],
    argv: Sequence[str],
    *,
    default: C | None = None,
    presets: Mapping[str, C] | None = None,
    default_preset: str | None = None,
    aliases: Mapping[str, str] | None = None,
    description: str | None = None,
    prog: str | None = None,
) -> C:
    """The configuration that preset, YAML file and command line give together.

    `--preset NAME` and `--config FILE` are read first, wherever they stand; the rest overrides them. Without
    presets, `--preset` is an option like any other where `kind` has such a field. `default` is what `kind()`
    is otherwise.
    `aliases` are short names of options (`{"--lr": "--optim.lr"}`). Values of a field that takes several
    may be separated by spaces or commas.

    Raises:
        ConfigError: unknown preset, field, or a value of the wrong type.
        SystemExit: after `--help`.
    """
    fields = dict(_leaves(kind))
    preset = None
    if presets or "preset" not in fields:
        preset, argv = _take(argv, "--preset")
    file, argv = _take(argv, "--config")
    presets = presets or {}
    name = preset or default_preset
    if preset is not None and preset not in presets:
        raise ConfigError(
            f"unknown preset {preset!r}",
            fix=f"choose one of {', '.join(presets)}" if presets else "leave it out",
        )
    default = presets[name] if name is not None else default or kind()
    args = [*(_yaml_args(file, fields) if file else ()), *_expand(argv, fields, aliases or {})]
    _refuse_unknown(args, fields)
    if presets:
        lines = "  ".join(f"--preset {n}{' (default)' if n == name else ''}" for n in presets)
        note = f"Short for: {', '.join(f'{a} = {o}' for a, o in aliases.items())}\n\n" if aliases else ""
        note += f"Presets: {lines}\n\nYAML: --config FILE with the same field names, nested."
        description = f"{(description or '').strip()}\n\n{note}"
    return _run_tyro(kind, args, default, description, prog)


def _run_tyro(kind: type[C], args: Sequence[str], default: C, description: str | None, prog: str | None) -> C:
    if any(a in ("-h", "--help") for a in args):
        return tyro.cli(kind, args=args, default=default, description=description, prog=prog, config=_TYRO)
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured), contextlib.redirect_stdout(captured):
            return tyro.cli(
                kind, args=args, default=default, description=description, prog=prog, config=_TYRO
            )
    except SystemExit as stop:
        text = re.sub(r"\x1b\[[0-9;]*m", "", captured.getvalue())
        words = re.sub(r"[\u2500-\u257f]|-{5,}", " ", text)
        line = " ".join(words.split())
        line = (
            re.sub(r"(Argument helptext:|For full helptext|see .* --help).*$", "", line).strip().rstrip(".")
        )
        raise ConfigError(line or "cannot read the options", fix="see --help") from stop


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a configuration (tuples as lists), for YAML, cards and MLflow."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    return plain(dataclasses.asdict(config))


def to_yaml(config: Any) -> str:
    """YAML that `--config` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def _take(argv: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    rest: list[str] = []
    value: str | None = None
    items = iter(argv)
    for item in items:
        if item == flag:
            value = next(items, None)
            if value is None:
                raise ConfigError(f"{flag} needs a value", fix="see --help")
        elif item.startswith(flag + "="):
            value = item.split("=", 1)[1]
        else:
            rest.append(item)
    return value, rest


def _expand(argv: Sequence[str], fields: Mapping[str, Any], aliases: Mapping[str, str]) -> list[str]:
    """Aliases replaced, and `2,3` split where a field takes several values."""
    args: list[str] = []
    several = False
    for arg in argv:
        if arg.startswith("--"):
            name, equals, value = arg.partition("=")
            name = aliases.get(name, name)
            hint = fields.get(name[2:].replace("-", "_"))
            several = any(typing.get_origin(h) is tuple for h in _options(hint))
            args += [name, *value.split(",")] if several and equals else [name + equals + value]
        else:
            args += arg.split(",") if several else [arg]
    return args


def _leaves(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every leaf field."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        inner = [h for h in _options(hint) if dataclasses.is_dataclass(h)]
        if inner:
            yield from _leaves(inner[0], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hint


def _options(hint: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def _refuse_unknown(args: Sequence[str], fields: Mapping[str, Any]) -> None:
    known = {name.replace("_", "-") for name in fields}
    known |= {_negative(name.replace("_", "-")) for name, hint in fields.items() if hint is bool}
    for arg in args:
        if not arg.startswith("--") or arg in ("--help", "--"):
            continue
        name = arg[2:].split("=", 1)[0].replace("_", "-")
        if name not in known:
            raise ConfigError(f"unknown option --{name}", fix=_suggest(name, known, "--"))


def _negative(name: str) -> str:
    head, _, tail = name.rpartition(".")
    return f"{head}.no-{tail}" if head else f"no-{tail}"


def _suggest(name: str, known: set[str], dash: str = "") -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"did you mean {dash}{close[0]}?" if close else "see --help for the options"


def _yaml_args(file: str, fields: Mapping[str, Any]) -> list[str]:
    path = Path(file).expanduser()
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError("no such configuration file", file=path, fix="check the path") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read the configuration: {error}", file=path, fix="write it as YAML"
        ) from error
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(
            "a configuration file holds named fields", file=path, fix="write `name: value` lines"
        )
    args: list[str] = []
    for name, value in _flatten(content):
        if name not in fields:
            raise ConfigError(f"unknown field {name!r}", file=path, fix=_suggest(name, set(fields)))
        flag = "--" + name.replace("_", "-")
        if fields[name] is bool:
            if not isinstance(value, bool):
                raise ConfigError(
                    f"field {name!r} is true or false, not {value!r}", file=path, fix="see --help"
                )
            args.append(flag if value else "--" + _negative(name.replace("_", "-")))
        elif isinstance(value, list):
            args += [flag, *(str(v) for v in value)]
        else:
            args += [flag, str(value)]
    return args


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def argv_of_process() -> list[str]:
    """Command-line arguments of this process."""
    return sys.argv[1:]
