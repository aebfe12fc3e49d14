"""What the host is told of a node's inputs, one line for each: kind, default, range and tooltip.

An input that is an option of the library has the default, the range and the text that the library gives it.
"""

import lmsd

WIDGETS = {"integer": "INT", "number": "FLOAT", "boolean": "BOOLEAN", "string": "STRING"}
OPTIONS = {group: {item["name"]: item for item in items} for group, items in lmsd.options().items()}


def socket(kind: str, tooltip: str = "") -> tuple:
    """An input to connect, such as MODEL."""
    return (kind, {"tooltip": tooltip} if tooltip else {})


def number(default: float, low: float, high: float, tooltip: str = "", **more) -> tuple:
    """INT or FLOAT, by the type of `default`; both ends are allowed. `more`: such as `step`."""
    facts = {"default": default, "min": low, "max": high, **more}
    return ("INT" if isinstance(default, int) else "FLOAT", facts | ({"tooltip": tooltip} if tooltip else {}))


def flag(default: bool, tooltip: str) -> tuple:
    return ("BOOLEAN", {"default": default, "tooltip": tooltip})


def text(default: str, tooltip: str, **more) -> tuple:
    return ("STRING", {"default": default, "tooltip": tooltip, **more})


def choice(values: list[str], default: str, tooltip: str) -> tuple:
    return (values, {"default": default, "tooltip": tooltip})


def option(group: str, name: str, more: str = "", **instead) -> tuple:
    """The option `name` of `lmsd.options()[group]`; `more` is added to its text, `instead` replaces facts."""
    item = OPTIONS[group][name]
    facts = {"default": item["default"], "min": item.get("min"), "max": item.get("max"), **instead}
    tooltip = " ".join(filter(None, (item["about"], more)))
    return (WIDGETS[item["type"]], {k: v for k, v in facts.items() if v is not None} | {"tooltip": tooltip})


def default(group: str, name: str):
    """The library's default of an option."""
    return OPTIONS[group][name]["default"]
