"""Tables of all settings, as Markdown, from the schema that validates them."""

import json
from collections.abc import Iterator
from typing import Any

from federated_yolo.aggregation.strategies import STRATEGIES
from federated_yolo.config.resume import RESUME_SETTINGS
from federated_yolo.config.schema import Config
from federated_yolo.config.train_arguments import OWNED_TRAIN_ARGS

TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
HEADER = "| setting | type | default | meaning |\n|---|---|---|---|"
RESUME = " *May change on resume.*"


def reference() -> str:
    """Every setting by section: name, type, default, whether it may change on resume, meaning."""
    schema = Config.model_json_schema()
    sections = [("", "", schema)]
    for name, entry in schema["properties"].items():
        section = _section_of(entry)
        if section:
            prefix = f"{name}[]." if section == "ClientData" else f"{name}."
            sections.append((prefix, f"\n### `{name}`\n", schema["$defs"][section]))
    parts = [_table(prefix, title, section) for prefix, title, section in sections]
    options = ["\n### Options of `strategy`\n", _strategy_options()]
    return "\n".join([*parts, *options, "\n### `train`\n", _owned_train_arguments()])


def missing_meanings() -> list[str]:
    """Settings without a text below them in config/schema.py."""
    schema = Config.model_json_schema()
    found = [("Config", schema), *schema["$defs"].items()]
    return [
        f"{title}.{name}"
        for title, section in found
        for name, entry in section["properties"].items()
        if not entry.get("description")
    ]


def _table(prefix: str, title: str, section: dict[str, Any]) -> str:
    required = section.get("required", ())
    intro = section["description"] if prefix else ""
    rows = [HEADER]
    for name, entry in section["properties"].items():
        setting = prefix + name
        can_change = setting.partition(".")[0] in RESUME_SETTINGS
        cells = (
            f"`{setting}`",
            _type_of(entry),
            "required" if name in required else _default_of(entry),
            entry.get("description", "") + RESUME * can_change,
        )
        rows.append("| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |")
    return "\n".join([title, intro, "", *rows])


def _section_of(entry: dict[str, Any]) -> str:
    """The name of the model that a setting, or each entry of its list, is."""
    for schema in (entry, *entry.get("anyOf", ())):
        reference = schema.get("$ref", schema.get("items", {}).get("$ref", ""))
        if reference:
            return reference.rpartition("/")[2]
    return ""


def _type_of(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return "mapping, below"
    if "anyOf" in schema:
        return " or ".join(_type_of(branch) for branch in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"list of {_type_of(schema['items'])}".replace("mapping, below", "clients, below")
    bounds = [f"{sign} {_number(schema[key])}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([TYPES[schema["type"]], " and ".join(bounds)]).strip()


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and value < 1e12 else f"{value:g}"


def _default_of(entry: dict[str, Any]) -> str:
    return "" if "$ref" in entry else f"`{json.dumps(entry['default'])}`".replace('"', "")


def _strategy_options() -> str:
    """The options of each strategy, which config/schema.py leaves to the registry."""
    rows = ["| `strategy.name` | options and their defaults |\n|---|---|"]
    for name, entry in STRATEGIES.items():
        options = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in entry.options.items())
        rows.append(f"| `{name}` | {options or 'none'} |")
    return "\n".join(rows)


def _owned_train_arguments() -> str:
    def rows() -> Iterator[str]:
        yield "A federation decides these train arguments itself, and refuses them here:\n"
        yield "| argument | in its place |\n|---|---|"
        for name, advice in OWNED_TRAIN_ARGS.items():
            yield f"| `train.{name}` | {advice} |"

    return "\n".join(rows())
