"""
The description of the admin socket for programs, made of the routes and of the views.

C{python -m ccproxy.admin.openapi} prints it; C{openapi.json} is what it has printed.
"""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import attrs
import msgspec

from .calls import JSON, Error
from .routes import ROUTES, Route


def document() -> dict[str, Any]:
    """The document, in OpenAPI 3.1."""
    kinds = {kind for route in ROUTES for kind in (route.result, route.body) if kind}
    ordered = sorted(kinds, key=str)
    schemas, components = msgspec.json.schema_components(
        [*ordered, Error], ref_template="#/components/schemas/{name}"
    )
    schemaOf = dict(zip([*ordered, Error], schemas, strict=True))
    for kind in _classes(ordered):
        _describe(components[kind.__name__], kind)
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemaOf)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ccproxy's admin socket",
            "version": "1",
            "description": "HTTP on a UNIX socket that root and the daemon's user may open.",
        },
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items()))},
    }


def _classes(kinds: list[Any]) -> set[type]:
    """The attrs classes that C{kinds} are made of."""
    found: set[type] = {Error}
    todo = list(kinds)
    while todo:
        kind = todo.pop()
        todo += getattr(kind, "__args__", ())
        if isinstance(kind, type) and attrs.has(kind) and kind not in found:
            found.add(kind)
            todo += [field.type for field in attrs.fields(attrs.resolve_types(kind))]
    return found


def _describe(schema: dict[str, Any], kind: type) -> None:
    """Put the docstring's words where a schema has its own."""
    text, *fields = re.split(r"@ivar ", inspect.cleandoc(kind.__doc__ or ""))
    schema["description"] = " ".join(text.split())
    helps = {
        field.name: field.metadata["help"]
        for field in attrs.fields(kind)
        if "help" in field.metadata
    }
    for field in fields:
        name, _, help = field.partition(": ")
        helps[name] = re.sub(r"C\{(.*?)\}", r"\1", " ".join(help.split()))
    for name, help in helps.items():
        place = schema["properties"][name]
        schema["properties"][name] = (
            {"allOf": [place], "description": help}
            if "$ref" in place
            else {**place, "description": help}
        )


def _operation(route: Route, schemaOf: dict[Any, Any]) -> dict[str, Any]:
    error = {JSON: {"schema": schemaOf[Error]}}
    result = {route.type: {"schema": schemaOf[route.result]} if route.result else {}}
    responses = {
        str(status): {"description": text, "content": result}
        for status, text in {route.status: route.summary, **route.also}.items()
    }
    for status, text in route.refusals.items():
        responses[str(status)] = {"description": text, "content": error}
    responses["default"] = {"description": "It was refused.", "content": error}
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer", "minimum": 0},
        }
        for name in re.findall(r"\{(\w+)\}", route.path)
    ] + [
        {
            "name": parameter.name,
            "in": "query",
            "description": parameter.help,
            "schema": {"type": parameter.kind},
        }
        for parameter in route.query
    ]
    operation: dict[str, Any] = {
        "operationId": route.respond.__name__,
        "summary": route.summary,
        "responses": responses,
    }
    if parameters:
        operation["parameters"] = parameters
    if route.body:
        operation["requestBody"] = {
            "required": any(field.default is attrs.NOTHING for field in attrs.fields(route.body)),
            "content": {JSON: {"schema": schemaOf[route.body]}},
        }
    return operation


if __name__ == "__main__":
    print(json.dumps(document(), indent=2))
