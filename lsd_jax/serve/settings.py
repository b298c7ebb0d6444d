"""What a server allows: where it listens, who may come, and how much of everything."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field

from lsd_jax.runtime import Limits

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """Frozen settings of a server. Raises ValueError, with what to do.

    `model` is `package.module:Class`; `config` are fields of its `config_cls`. `api_key` is the
    secret that mints tokens and signs them; empty: none is asked for, which only loopback may do.
    `engine` is `process`, or `ray` for actors that each ask a cluster for `resources`.
    """

    model: str
    config: dict = field(default_factory=dict)
    engines: int = 1
    engine: str = "process"
    resources: tuple[tuple[str, float], ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str = field(default="", repr=False)
    origins: tuple[str, ...] = ()  # beside the server's own
    queue: int = 8  # clients that may wait for a slot
    max_session_s: float = 3600.0
    keep_s: float = 4.0  # a session waits for a client whose socket was lost; below 10
    max_message_bytes: int = 10_000_000
    messages_per_s: int = 400  # of one client
    opens_per_minute: int = 120  # of one address
    max_picture_pixels: int = 3840 * 2160
    heartbeat_s: float = 3.0  # a client that is silent for 1.5 times this has vanished
    engine_timeout_s: float = 15.0  # an engine that answers no ping for this long is replaced
    load_timeout_s: float = 600.0
    drain_s: float = 10.0
    stun: tuple[str, ...] = ()
    turn: tuple[str, ...] = ()
    turn_secret: str = field(default="", repr=False)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self):
        module, colon, name = self.model.partition(":")
        if not (colon and name.isidentifier() and all(x.isidentifier() for x in module.split("."))):
            raise ValueError(f"model {self.model!r}: write it as package.module:Class")
        if self.engine not in ("process", "ray"):
            raise ValueError(f"unknown engine {self.engine!r}; known: process, ray")
        if self.resources and self.engine != "ray":
            raise ValueError("resources are asked of a cluster; add --engine ray")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port={self.port} must be in [0, 65535]")
        for name in (
            "engines",
            "max_session_s",
            "heartbeat_s",
            "messages_per_s",
            "opens_per_minute",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0 and finite")
        if not 0 <= self.keep_s < 10:
            raise ValueError(f"keep_s={self.keep_s} must be in [0, 10); 0 keeps no session")
        if self.api_key and len(self.api_key) < 16:
            raise ValueError("the API key is shorter than 16 characters; use a longer secret")
        if not self.loopback and not self.api_key:
            raise ValueError(
                f"host {self.host!r} is open to others; set LSD_API_KEY, or listen on 127.0.0.1"
            )
        if self.turn and not self.turn_secret:
            raise ValueError("TURN servers need LSD_TURN_SECRET, coturn's static-auth-secret")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host in LOOPBACK_NAMES:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
