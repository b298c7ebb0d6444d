"""Who may come in: host and origin of a request, its token, and how often."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from lsd_jax.serve.settings import LOOPBACK_NAMES, Settings
from lsd_jax.serve.tokens import (
    Grant,
    Refused,
    TooOften,
    Unauthorized,
    WrongKey,
    read,
    turn_credentials,
)

ADDRESSES = 10_000
"""Of which a rate is remembered; beyond, that of the one seen longest ago is forgotten."""


class Bucket:
    """A rate of `per_s` with bursts of as much as `burst`."""

    def __init__(self, per_s: float | int, burst: float | int):
        self._per_s, self._burst = per_s, burst
        self._level, self._at = burst, time.monotonic()

    def take(self) -> bool:
        """Whether there was room for one more, which is spent."""
        now = time.monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._per_s)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


def bearer_token(request: web.Request) -> str:
    """What comes as `Authorization: Bearer`, or nothing."""
    header = request.headers.get("Authorization", "")
    return header.removeprefix("Bearer ") if header.startswith("Bearer ") else ""


class Guard:
    """Checks requests against the settings."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def check_host(self, request: web.Request) -> None:
        """Raises Refused where a loopback server is asked for by another name: so a page of another
        site cannot reach it by pointing its own name here."""
        try:
            name = urlsplit(f"//{request.host}").hostname or ""
        except ValueError:
            raise Refused("the Host of this request is no name; open it as localhost") from None
        if self._settings.loopback and name not in (*LOOPBACK_NAMES, self._settings.host):
            raise Refused("this server is for this machine; open it as localhost")

    def check_origin(self, request: web.Request) -> None:
        """Raises Refused where a page of another origin asks, unless it is allowed."""
        origin = request.headers.get("Origin")
        if origin is None or origin in self._settings.origins:
            return
        try:
            same = urlsplit(origin).netloc == request.host
        except ValueError:
            same = False
        if not same:
            raise Refused(
                f"origin {origin[:100]!r} is not allowed; start with --origin {origin[:100]}"
            )

    def grant(self, request: web.Request) -> Grant:
        """What the request's key or token grants. Raises Unauthorized.

        A wrong one spends of the address's rate, and beyond it raises TooOften. A right one is let
        in whatever others at its address, perhaps a proxy's, have done.
        """
        key = self._settings.api_key
        if not key:
            return Grant(is_key=True)
        token = (
            bearer_token(request)
            or request.headers.get("X-API-Key")
            or request.query.get("api_key", "")
        )
        if not token:
            raise Unauthorized("unauthorized: give an API key or a token")
        try:
            return read(key, token)
        except WrongKey:
            self.check_rate(request, of="guesses ")
            raise

    def permit(self, request: web.Request, model: str | None) -> Grant:
        """What a client of `model` may do, of whom nothing is wrong. Raises Refused. Who brings no
        key spends nothing of the rate of an address that others may share."""
        self.check_origin(request)
        grant = self.grant(request)
        grant.check(model, request.headers.get("Origin"))
        self.check_rate(request)
        return grant

    def is_key(self, token: str) -> bool:
        """Whether `token` is the server's own key, where it has one."""
        key = self._settings.api_key
        return bool(key) and hmac.compare_digest(token.encode(errors="replace"), key.encode())

    def check_rate(self, request: web.Request, of: str = "") -> None:
        """Raises TooOften where an address opens sessions and mints tokens too often, or guesses
        keys, which is counted apart."""
        if not self._bucket(of + (request.remote or "")).take():
            raise TooOften(
                f"more than {self._settings.opens_per_minute} requests a minute; slow down"
            )

    def _bucket(self, address: str) -> Bucket:
        per_minute = self._settings.opens_per_minute
        bucket = self._buckets.setdefault(address, Bucket(per_minute / 60, per_minute))
        self._buckets.move_to_end(address)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket


def ice_servers(settings: Settings) -> list[dict[str, Any]]:
    """The STUN and TURN servers that a client is told of, as browsers take them; TURN with
    credentials for an hour."""
    servers: list[dict[str, Any]] = [{"urls": list(settings.stun)}] if settings.stun else []
    if settings.turn:
        login = turn_credentials(settings.turn_secret, "lsd")
        servers.append({"urls": list(settings.turn), **login})
    return servers
