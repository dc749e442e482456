"""The OpenAPI document, made from the table of routes and the types that check the bodies."""

from functools import cache
from typing import Any

import msgspec

from paragone import __version__
from paragone.serve.routes import ROUTES, Route

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
WORDS = {
    400: "What was sent cannot be used; `param` names the field",
    401: "No key, or a wrong one",
    404: "No such model",
    408: "The body took too long",
    413: "The body is too large",
    415: "Not application/json, or compressed",
    429: "More than this key may ask for",
    500: "The engine failed",
    503: "Overloaded, being stopped, or the engine is being started",
    504: "Not complete in time",
}


@cache
def document(models: tuple[str, ...], *, keys: bool) -> bytes:
    """As JSON, of a server of these models; `keys` says whether it asks for them."""
    bodies = sorted(
        {route.body for route in ROUTES if route.body is not None}, key=lambda kind: kind.__name__
    )
    schemas, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    refs = dict(zip(bodies, schemas, strict=True))
    name = {"type": "string", "enum": list(models)}
    for schema in components.values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = name
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs, name, keys=keys)
    text = msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Paragone", "version": __version__},
            "paths": paths,
            "components": {
                "schemas": components | {"Error": ERROR},
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )
    return text.replace(rb'\\Z"', b'$"')  # the end of a text, in JSON Schema's words


def _operation(
    route: Route, refs: dict[type[Any], dict[str, Any]], name: dict[str, Any], *, keys: bool
) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    # What reports a state says the same with 503 as with 200.
    plain = {"content": {"application/json": {"schema": {"type": "object"}}}}
    schema: dict[str, Any] = {"type": "object"} if route.media == "application/json" else {"type": "string"}
    content: dict[str, Any] = {route.media: {"schema": schema}}
    if route.stream:
        content["text/event-stream"] = {"schema": {}}
    guarded = keys and not route.open
    responses: dict[str, Any] = {"200": {"description": route.title, "content": content}}
    for status in sorted({*route.refusals, *((401,) if guarded else ())}):
        shown = plain if route.open else error
        responses[str(status)] = {"description": WORDS[status]} | shown
    operation: dict[str, Any] = {"summary": route.title, "responses": responses}
    operation["security"] = [{"key": []}] if guarded else []
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": refs[route.body]}},
        }
    if "{model}" in route.path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": name}]
    return operation
