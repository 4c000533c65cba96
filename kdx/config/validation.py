"""Validation errors of settings in one line: the dotted key, the value and what is allowed."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdx.errors import UserError, nearest, unknown

Model = TypeVar("Model", bound=BaseModel)
Schema = Mapping[str, Any]
Location = Sequence[int | str]

_BOUNDS = (("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<="))
_TYPES = {"integer": "a whole number", "string": "a text", "boolean": "true or false", "null": "null"}


def settings_from(model: type[Model], content: object, key: str = "") -> Model:
    """Validate `content`, the value of `key` in the configuration, as `model`; raises UserError if it does not fit."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise error_message(error, key, model) from None


def error_message(error: ValidationError, key: str = "", model: type[BaseModel] | None = None) -> UserError:
    """The first of pydantic's errors as a UserError; with `model` it also says what is allowed."""
    first = error.errors(include_url=False)[0]
    schema = model.model_json_schema() if model else {}
    path, node, rest = _locate(schema, first["loc"]) if model else (first["loc"], {}, [])
    name = _dotted(key, path)
    value, kind = first["input"], first["type"]
    if kind == "extra_forbidden" and model:
        return unknown(name or "settings", rest[0], node.get("properties", {}))
    if kind == "missing":
        return UserError(f"{_dotted(name, rest)}: no value is given")
    if kind == "value_error":
        # One of kdx's validators; if it checked a whole group, the group's content is left out of the message.
        told = first.get("ctx", {}).get("error", first["msg"])
        if isinstance(told, UserError):
            return told
        allowed = str(told)
        return UserError(
            f"{name}: {allowed}".removeprefix(": ")
            if isinstance(value, dict | BaseModel)
            else _refused(name, value, allowed)
        )
    return UserError(_refused(name, value, _allowed(node, schema) if model else _lower_first(first["msg"]), node))


def _refused(name: str, value: object, allowed: str, node: Schema | None = None) -> str:
    choices = [str(choice) for choice in (node or {}).get("enum", ())]
    return f"{name}: {format_value(value)} is not allowed; {nearest(value, choices)}allowed: {allowed}"


def format_value(value: object) -> str:
    """A value as the user would type it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"'{value}'" if isinstance(value, str) else str(value)


def _locate(schema: Schema, location: Location) -> tuple[Location, Schema, Location]:
    """Follow `location` into the schema: the path as far as it exists, the node there, and the rest of the path."""
    node = _resolved(schema, schema)
    path: list[int | str] = []
    for depth, part in enumerate(location):
        node = _chosen(node, schema)
        step = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
        if step is None:
            # An unknown key, or the name of a union's member.
            return path, node, location[depth:]
        node = _resolved(step, schema)
        path.append(part)
    return path, node, []


def _resolved(node: Schema, schema: Schema) -> Schema:
    return schema["$defs"][node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node


def _chosen(node: Schema, schema: Schema) -> Schema:
    """The schema of an optional group if it is not null."""
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    return _resolved(options[0], schema) if len(options) == 1 else node


def _allowed(node: Schema, schema: Schema) -> str:
    node = _resolved(node, schema)
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    if "const" in node:
        return str(node["const"])
    if "anyOf" in node:
        return " or ".join(_allowed(option, schema) for option in node["anyOf"])
    bounds = " and ".join(f"{sign} {node[bound]}" for bound, sign in _BOUNDS if bound in node)
    match node.get("type"):
        case "number":
            return f"a finite number {bounds}".rstrip()
        case "array":
            return f"a list, each element {_allowed(node.get('items', {}), schema)}"
        case "object":
            return f"a group of {', '.join(node.get('properties', {}))}"
        case "string" if "pattern" in node:
            return f"a text that matches {node['pattern']}"
        case "string" if node.get("minLength"):
            return "a text that is not empty"
        case kind:
            return f"{_TYPES.get(str(kind), 'another value')} {bounds}".rstrip()


def _dotted(key: str, path: Location) -> str:
    for part in path:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    return key.removeprefix(".")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
