"""Short-lived signed tokens: who may open which sessions, from where, for how long."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import time
from dataclasses import dataclass
from uuid import uuid4

import jwt

LONGEST_S = 3600


class Refused(PermissionError):
    """A client may not do what it asked for; the message says why; `status` is HTTP's."""

    status, code = 403, "forbidden"


class Unauthorized(Refused):
    """No key or token, or none that is valid."""

    status, code = 401, "unauthorized"


class WrongKey(Unauthorized):
    """A key or token that was never a valid one, as of somebody who guesses."""


class TooOften(Refused):
    """More requests than are allowed in a while."""

    status, code = 429, "too_often"


@dataclass(frozen=True)
class Grant:
    """What a client may do. Empty tuples and None: anything."""

    models: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_session_s: float | None = None
    is_key: bool = False  # the API key itself, which alone may mint tokens

    def check(self, model: str | None, origin: str | None) -> None:
        """Raises Refused where the grant is for another model, or for some only while it is not
        known yet which is served (None), or for another page."""
        if self.models and model is None:
            raise Refused("the model is still loading; try again in a moment")
        if self.models and model not in self.models:
            raise Refused(f"this token is not for model {model!r}; ask for another")
        if self.origins and origin not in self.origins:
            raise Refused("this token is for another origin; ask for one from this page")


def mint(key: str, grant: Grant, seconds: int) -> str:
    """A token that grants `grant` for `seconds`. Raises ValueError for more than an hour, and for
    a longest session that is no time."""
    if not 1 <= seconds <= LONGEST_S:
        raise ValueError(f"expiresIn={seconds} must be in [1, {LONGEST_S}]")
    if grant.max_session_s is not None and not 0 < grant.max_session_s < math.inf:
        raise ValueError(f"maxSessionDuration={grant.max_session_s} must be finite and above 0")
    claims = {
        "iss": "lsd-jax",
        "exp": int(time.time()) + seconds,
        "jti": uuid4().hex,
        "models": grant.models,
        "origins": grant.origins,
        "max_session_s": grant.max_session_s,
    }
    return jwt.encode(claims, _signing(key), algorithm="HS256")


def read(key: str, token: str) -> Grant:
    """What `token` grants; the key itself grants everything. Raises Refused."""
    try:
        if hmac.compare_digest(token.encode(), key.encode()):
            return Grant(is_key=True)
        claims = jwt.decode(
            token, _signing(key), ["HS256"], issuer="lsd-jax", options={"require": ["exp", "jti"]}
        )
        return Grant(tuple(claims["models"]), tuple(claims["origins"]), claims["max_session_s"])
    except jwt.ExpiredSignatureError:
        raise Unauthorized("the token has expired; ask for another") from None
    except (jwt.InvalidTokenError, KeyError, TypeError, UnicodeEncodeError):
        raise WrongKey("invalid api key; give the server's, or a token of it") from None


def _signing(key: str) -> bytes:
    """The key that tokens are signed by: not the API key itself, and long enough for HS256."""
    return hmac.digest(key.encode(), b"lsd-jax session tokens", "sha256")


def turn_credentials(secret: str, name: str, seconds: int = 3600) -> dict[str, str]:
    """User name and password that a coturn with this `static-auth-secret` takes for `seconds`
    (the scheme of draft-uberti-behave-turn-rest)."""
    username = f"{int(time.time()) + seconds}:{name}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return {"username": username, "credential": base64.b64encode(digest).decode()}
