"""Sessions over HTTP, in the terms of the Lucid runtime's API: opened, asked about and ended; their
media and messages go over `/v1/live`.

A session that is opened here waits for its client with a slot of its own: `start` with its id and
its secret, the client access token, on a WebSocket that needs no other token.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lsd_jax.serve.guard import Guard, bearer_token
from lsd_jax.serve.protocol import in_words
from lsd_jax.serve.registry import Full, Registry, UnknownSession
from lsd_jax.serve.sessions import LiveSession

CLAIM_S = 10.0
"""In which the client of a session that was opened here must have come."""


class Opening(BaseModel):
    """What is asked for; without a `model_name`, a session of the model that runs."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model_name: str | None = Field(None, max_length=200)
    seed: int = Field(0, ge=0, lt=2**31)


def problem(status: int, code: str, message: str, **more: Any) -> web.Response:
    """A refusal: what is wrong and what to do."""
    error = {"code": code, "message": message, **more}
    return web.json_response({"error": error}, status=status)


def capabilities(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, and by which names a transport carries what: video and audio as tracks, other
    outputs as topics. Over `/v1/live` control and status are the JSON messages of its socket."""
    bindings = [
        {"name": one["name"], "kind": one["kind"], "track_name": one["name"]}
        if one["kind"] in ("video", "audio")
        else {"name": one["name"], "kind": one["kind"], "topic": f"wm.output.{one['name']}"}
        for one in manifest["outputs"]
    ]
    topics = {"control_topic": "wm.control", "status_topic": "wm.status"}
    return {**manifest, **topics, "output_bindings": bindings}


def description(session: LiveSession) -> dict[str, Any]:
    """A session as it is now."""
    return {
        "session_id": session.id,
        "model_name": session.manifest["model"]["name"],
        "state": session.state.value,
        "reason": session.ended.result() if session.ended.done() else None,
        "connected": session.let_go is not None,
    }


class Sessions:
    """The routes of `/sessions`."""

    def __init__(self, registry: Registry, guard: Guard):
        self._registry, self._guard = registry, guard

    def add_to(self, routes: web.UrlDispatcher) -> None:
        """Adds them."""
        routes.add_post("/sessions", self.open)
        routes.add_get("/sessions/{id:[^/:]+}", self.show)
        routes.add_post("/sessions/{id:[^/:]+}:end", self.end)

    async def open(self, request: web.Request) -> web.Response:
        """A session in a free slot: 202; 503 at once where there is none."""
        registry = self._registry
        served = registry.manifest.get("model", {}).get("name")
        grant = self._guard.permit(request, served)
        try:
            asked = Opening.model_validate_json(await request.read() or b"{}")
        except ValidationError as error:
            return problem(400, "bad_request", in_words(error))
        try:
            if asked.model_name not in (None, served) and served is not None:
                words = f"no model {asked.model_name!r} here; ask for {served!r}, or for none"
                return problem(404, "unknown_model", words)
            session = await registry.open(asked.seed, longest_s=grant.max_session_s)
        except Full as full:
            refused = problem(503, full.code, str(full), queue_size=registry.waiting)
            refused.headers["Retry-After"] = "5"
            return refused
        registry.keep(session, CLAIM_S)
        told = {
            "session": description(session),
            "client_access_token": session.secret,
            "capabilities": capabilities(session.manifest),
        }
        return web.json_response(told, status=202)

    async def show(self, request: web.Request) -> web.Response:
        """A session, to who has its token or the server's key."""
        try:
            return web.json_response({"session": description(self._asked(request))})
        except UnknownSession as unknown:
            return problem(404, "unknown_session", str(unknown))

    async def end(self, request: web.Request) -> web.Response:
        """Ends a session, if it has not ended."""
        try:
            session = self._asked(request)
        except UnknownSession as unknown:
            return problem(404, "unknown_session", str(unknown))
        await session.end("ended")
        return web.json_response({"session": description(session)})

    def _asked(self, request: web.Request) -> LiveSession:
        """Raises UnknownSession, and Refused for a page of elsewhere."""
        self._guard.check_origin(request)
        id, token = request.match_info["id"], bearer_token(request)
        if self._guard.is_key(token):
            return self._registry.find(id, None)
        return self._registry.find(id, token)
