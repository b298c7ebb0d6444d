"""The HTTP application: pages, health, tokens, and the WebSockets of the protocols."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from weakref import WeakSet

from aiohttp import WSCloseCode, web

from lsd_jax import __version__
from lsd_jax.reports import commit
from lsd_jax.serve import openapi
from lsd_jax.serve.decart import DecartClient
from lsd_jax.serve.guard import Guard, ice_servers
from lsd_jax.serve.live import LiveClient
from lsd_jax.serve.livekit import LiveKitClient, Rooms
from lsd_jax.serve.metrics import Metrics
from lsd_jax.serve.registry import Registry
from lsd_jax.serve.rest import Sessions, problem
from lsd_jax.serve.settings import Settings
from lsd_jax.serve.tokens import Grant, Refused, TooOften, mint

WEB = Path(__file__).parent / "web"
_log = logging.getLogger("lsd.serve")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self' ws: wss:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
OPENS = ("/v1/live", "/v1/stream", "/rtc", "/sessions")
"""Where sessions are opened: who is refused there is counted."""
_TOKEN = "send expiresIn of 1 to 3600, lists of names, and a maxSessionDuration in seconds"
Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _remedy(request: web.Request, error: web.HTTPException) -> str:
    """What is wrong with a request that no handler took, and what to do."""
    if error.status == 404:
        return f"nothing is at {request.path[:100]!r}; /openapi.json lists what there is"
    if error.status == 405:
        allowed = error.headers.get("Allow", "another method")
        return f"{request.path[:100]!r} takes no {request.method}; use {allowed}"
    if error.status == 413:
        return "the request is too large; send at most 1,000,000 bytes"
    if error.status == 400 and request.path in OPENS:
        return "no WebSocket's handshake; open a WebSocket here"
    return f"{error.reason}; /openapi.json says what is taken here"


def room_token(request: web.Request) -> str:
    """What LiveKit's clients come with: in the address from browsers, else as a header."""
    bearer = request.headers.get("Authorization", "")
    return request.query.get("access_token") or bearer.removeprefix("Bearer ")


class Server:
    """The application and all that it holds."""

    def __init__(self, settings: Settings):
        self.settings, self.metrics = settings, Metrics()
        self.registry = Registry(settings, self.metrics)
        self.guard, self.rooms = Guard(settings), Rooms()
        self._commit = commit()
        self._sockets: WeakSet[web.WebSocketResponse] = WeakSet()
        self.app = web.Application(client_max_size=1_000_000, middlewares=[self._protect])
        routes = self.app.router
        routes.add_get("/healthz", self.health)
        routes.add_get("/readyz", self.ready)
        routes.add_get("/metrics", self.show_metrics)
        routes.add_get("/openapi.json", self.show_openapi)
        routes.add_get("/docs", self.page("docs.html"))
        routes.add_get("/", self.page("index.html"))
        routes.add_get("/models", self.models)
        Sessions(self.registry, self.guard).add_to(routes)
        routes.add_get("/v1/live", self.live)
        routes.add_get("/v1/stream", self.stream)
        routes.add_get("/rtc", self.room)
        routes.add_get("/rtc/validate", self.room_validity)
        routes.add_get("/v1/ice-servers", self.ice_servers)
        routes.add_post("/v1/client/tokens", self.tokens)
        routes.add_get("/v1/realtime/quota", self.quota)
        routes.add_static("/web", WEB)
        self.app.on_startup.append(self._start)
        self.app.on_shutdown.append(self._stop)

    async def _start(self, _: web.Application) -> None:
        self.registry.start()

    async def _stop(self, _: web.Application) -> None:
        await self.registry.drain()
        closing = [
            asyncio.create_task(socket.close(code=WSCloseCode.GOING_AWAY))
            for socket in list(self._sockets)
        ]
        if closing:
            await asyncio.wait(closing, timeout=self.settings.drain_s)

    @web.middleware
    async def _protect(self, request: web.Request, handler: Handle) -> web.StreamResponse:
        try:
            self.guard.check_host(request)
            response = await handler(request)
        except Refused as refused:
            if request.path in OPENS:
                self.metrics.rejected.labels(refused.code).inc()
            response = problem(refused.status, refused.code, str(refused))
        except web.HTTPException as error:
            response = problem(error.status, "http", _remedy(request, error))
        if not response.prepared:
            response.headers.update(_HEADERS)
            origin = request.headers.get("Origin")
            if origin in self.settings.origins:  # may read what it may ask for
                allowed = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
                response.headers.update(allowed)
        return response

    def page(self, name: str) -> Handle:
        """A handler that gives a file of `web`."""

        async def show(_: web.Request) -> web.StreamResponse:
            return web.FileResponse(WEB / name)

        return show

    async def health(self, _: web.Request) -> web.Response:
        """The process lives."""
        return web.json_response({"status": "ok", "version": __version__, "commit": self._commit})

    async def ready(self, _: web.Request) -> web.Response:
        """Loaded, compiled, and with a slot free: 200; else 503, and why."""
        registry = self.registry
        engines = [
            {
                "ready": engine.ready.is_set(),
                "slots": engine.slots,
                "sessions": len(engine.sessions),
                "backend": engine.backend,
                "starts": engine.starts,
                "failure": engine.failure,
            }
            for engine in registry.engines
        ]
        found = {
            "ready": registry.free > 0,
            "draining": registry.draining,
            "free_slots": registry.free,
            "queue_size": registry.waiting,
            "engines": engines,
            "version": __version__,
            "commit": self._commit,
        }
        return web.json_response(found, status=200 if registry.free > 0 else 503)

    async def show_metrics(self, _: web.Request) -> web.Response:
        """Counters and clocks for Prometheus."""
        body = self.metrics.text()
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def show_openapi(self, _: web.Request) -> web.Response:
        """This interface, for machines."""
        return web.json_response(openapi.document())

    async def models(self, _: web.Request) -> web.Response:
        """The manifest of the model that runs."""
        manifest = self.registry.manifest
        return web.json_response({"models": [manifest] if manifest else []})

    async def live(self, request: web.Request) -> web.StreamResponse:
        """A session of our own protocol, over a WebSocket. Pages learn nothing of a handshake that
        fails: what is wrong with a token is said after it, to whoever does not go on with a session
        that it has the secret of."""
        grant, refused = None, None
        try:
            grant = self._permit(request)
        except TooOften:
            raise
        except Refused as error:
            self.guard.check_origin(request)
            if not web.WebSocketResponse().can_prepare(request):
                raise
            self.guard.check_rate(request, of="strangers ")
            refused = error
        socket = await self._socket(request)
        limit = grant.max_session_s if grant else None
        await LiveClient(self.registry, socket, limit, refused).run()
        return socket

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """A session of Decart's realtime messages, over a WebSocket."""
        socket, grant = await self._admit(request)
        host, _, port = request.host.rpartition(":")
        address = (host, int(port)) if port.isdecimal() else (request.host, 443)
        secure = "https" in (request.scheme, request.headers.get("X-Forwarded-Proto"))
        url, limit = f"{'wss' if secure else 'ws'}://{request.host}", grant.max_session_s
        await DecartClient(self.registry, socket, address, limit, self.rooms, url).run()
        return socket

    async def room(self, request: web.Request) -> web.StreamResponse:
        """The media of a session of `stream`, in LiveKit's terms; its room's token is asked for."""
        self.guard.check_origin(request)
        self.rooms.find(room_token(request))
        if not web.WebSocketResponse().can_prepare(request):
            raise web.HTTPUpgradeRequired(reason="open a WebSocket here")
        session = self.rooms.enter(room_token(request))
        socket = await self._socket(request)
        await LiveKitClient(self.registry, socket, session).run()
        return socket

    async def room_validity(self, request: web.Request) -> web.Response:
        """Whether `room` would let this token in; its clients ask why they were refused."""
        self.guard.check_origin(request)
        self.rooms.find(room_token(request))
        return web.Response(text="success")

    async def _admit(self, request: web.Request) -> tuple[web.WebSocketResponse, Grant]:
        """The opened socket of a client that may come in. Raises Refused."""
        grant = self._permit(request)
        return await self._socket(request), grant

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(
            heartbeat=self.settings.heartbeat_s,
            max_msg_size=self.settings.max_message_bytes,
            compress=False,  # a few KB would become the largest message
        )
        await socket.prepare(request)
        self._sockets.add(socket)
        return socket

    def _permit(self, request: web.Request) -> Grant:
        """What a client may do, of whom nothing is wrong. Raises Refused."""
        model = self.registry.manifest.get("model", {}).get("name")
        return self.guard.permit(request, model)

    async def ice_servers(self, request: web.Request) -> web.Response:
        """STUN and TURN servers, the latter with credentials for an hour."""
        self._permit(request)
        return web.json_response({"iceServers": ice_servers(self.settings)})

    async def tokens(self, request: web.Request) -> web.Response:
        """Mints a short-lived token; only the API key itself may ask for one."""
        self.guard.check_origin(request)
        if not self.settings.api_key:
            return problem(409, "no_key", "this server asks for no tokens; set LSD_API_KEY to")
        if not self.guard.grant(request).is_key:
            return problem(403, "forbidden", "a token mints no tokens; give the API key")
        self.guard.check_rate(request)
        try:
            asked = await request.json()
            limits = (asked.get("constraints") or {}).get("realtime") or {}
            grant = Grant(
                tuple(map(str, asked.get("allowedModels") or ()))[:20],
                tuple(map(str, asked.get("allowedOrigins") or ()))[:20],
                None if limits.get("maxSessionDuration") is None
                else float(limits["maxSessionDuration"]),
            )  # fmt: skip
            seconds = int(asked.get("expiresIn", 60))
            token = mint(self.settings.api_key, grant, seconds)
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            return problem(400, "bad_request", f"{' '.join(str(error).split())[:200]}; {_TOKEN}")
        return web.json_response({"apiKey": token, "token": token, "expiresIn": seconds})

    async def quota(self, request: web.Request) -> web.Response:
        """How many sessions there may be, and are."""
        self.guard.grant(request)
        limit = sum(engine.slots for engine in self.registry.engines)
        active = len(self.registry.sessions)
        free = max(0, self.registry.free)
        return web.json_response({"limit": limit, "active": active, "remaining": free})
