"""Flags for the options of the library, with the library's own words, ranges and defaults."""

import argparse

import lmsd

from . import values

PARSERS = {
    "integer": int,
    "number": float,
    "string": str,
    "path": str,
    "object": values.json_object,
    "grid": values.grid,
    "grids": values.json_value,
}
SHOWN = {  # what stands for a value in the help
    "integer": "N",
    "number": "X",
    "string": "TEXT",
    "path": "FILE",
    "object": "JSON",
    "grid": "KIND|JSON",
    "grids": "JSON",
}


def described(function: str) -> dict[str, dict]:
    """Name -> description of the options of "solve", "distill", "compare" or "rivals"."""
    return {option["name"]: option for option in lmsd.options()[function]}


def help_text(option: dict, default: str | None = None) -> str:
    """One option in the library's words; `default` where the command line has one of its own."""
    facts = [option["unit"], option["range"], f"default: {default or option['default_text']}"]
    return f"{option['about']} ({'; '.join(filter(None, facts))})".replace("%", "%%")


def add(parser, function: str, *, without: tuple[str, ...] = (), defaults: dict[str, str] | None = None):
    """Adds a flag for each option but `without`; one that is not given is None: the library's default."""
    for name, option in described(function).items():
        if name in without:
            continue
        kind, more = option["type"], {"help": help_text(option, (defaults or {}).get(name))}
        if kind == "boolean":
            more["action"] = argparse.BooleanOptionalAction
        elif kind == "schedules":
            more |= {"nargs": "+", "metavar": "FILE"}
        elif "values" in option:
            more["choices"] = option["values"]
        else:
            more |= {"type": PARSERS[kind], "metavar": SHOWN[kind]}
        parser.add_argument("--" + name.replace("_", "-"), default=None, **more)


def given(args, function: str) -> dict:
    """The options that the command line says, as the library takes them."""
    found = {}
    for name, option in described(function).items():
        value = getattr(args, name, None)
        if value is not None:
            files = option["type"] == "schedules"
            found[name] = [lmsd.Schedule.load(file) for file in value] if files else value
    return found
