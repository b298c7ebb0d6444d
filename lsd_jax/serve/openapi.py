"""The HTTP interface as OpenAPI; the messages of the WebSocket as JSON schema within."""

from __future__ import annotations

from typing import Any

from lsd_jax import __version__
from lsd_jax.serve import protocol, rest

_PATHS = {
    "/healthz": ("get", "The process lives", (200,)),
    "/readyz": ("get", "Loaded, compiled, a slot free", (200, 503)),
    "/metrics": ("get", "Counters and clocks for Prometheus", (200,)),
    "/models": ("get", "The manifest of the model that runs", (200,)),
    "/sessions": (
        "post",
        "Opens a session for a client to come",
        (202, 400, 401, 403, 404, 429, 503),
    ),
    "/sessions/{id}": ("get", "A session's state, to who has its token", (200, 403, 404)),
    "/sessions/{id}:end": ("post", "Ends a session", (200, 403, 404)),
    "/v1/live": ("get", "A session over a WebSocket; see LiveMessage", (101, 401, 403, 429)),
    "/v1/stream": ("get", "A session of Decart's realtime messages", (101, 401, 403, 429)),
    "/rtc": ("get", "A session's media by LiveKit's signalling v0", (101, 401, 403, 429)),
    "/rtc/validate": ("get", "Whether a room's token lets in", (200, 401, 403, 429)),
    "/v1/ice-servers": ("get", "STUN and TURN servers with credentials", (200, 401, 403, 429)),
    "/v1/client/tokens": ("post", "Mints a short-lived token", (200, 400, 401, 403, 409, 429)),
    "/v1/realtime/quota": ("get", "Sessions allowed, active and free", (200, 401, 429)),
}
_MEANING = {
    101: "Switched to WebSocket", 200: "OK", 202: "Opened", 400: "Bad request",
    401: "No valid key or token", 403: "Not allowed", 404: "No such session, or model",
    409: "The server asks for no tokens", 429: "Too often", 503: "Not ready, or full",
}  # fmt: skip


def document() -> dict[str, Any]:
    """The whole document."""
    schema = protocol.schema()
    definitions = schema.pop("$defs", {})
    token = {
        "type": "object",
        "properties": {
            "expiresIn": {"type": "integer", "minimum": 1, "maximum": 3600, "default": 60},
            "allowedModels": {"type": "array", "items": {"type": "string"}, "maxItems": 20},
            "allowedOrigins": {"type": "array", "items": {"type": "string"}, "maxItems": 20},
            "constraints": {"type": "object"},
        },
    }
    bodies = {"/v1/client/tokens": token, "/sessions": rest.Opening.model_json_schema()}
    paths: dict[str, Any] = {}
    for path, (method, summary, codes) in _PATHS.items():
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {str(code): {"description": _MEANING[code]} for code in codes},
        }
        if path.startswith(("/v1", "/sessions")):
            operation["security"] = [{"key": []}, {"query": []}, {}]
        if path in bodies:
            operation["requestBody"] = {"content": {"application/json": {"schema": bodies[path]}}}
        if "{id}" in path:
            operation["parameters"] = [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        paths[path] = {method: operation}
    definitions["LiveMessage"] = schema
    return {
        "openapi": "3.1.0",
        "info": {"title": "lsd-jax", "version": __version__, "description": protocol.__doc__},
        "paths": paths,
        "components": {
            "schemas": {name: _moved(one) for name, one in definitions.items()},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "query": {"type": "apiKey", "in": "query", "name": "api_key"},
            },
        },
    }


def _moved(schema: Any) -> Any:
    """`schema` with its references pointing where OpenAPI keeps definitions."""
    if isinstance(schema, dict):
        return {key: _moved(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_moved(value) for value in schema]
    if isinstance(schema, str):
        return schema.replace("#/$defs/", "#/components/schemas/")
    return schema
