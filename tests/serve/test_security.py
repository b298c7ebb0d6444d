"""Who may come in, what is minted, what is never told."""

import asyncio
import base64
import hashlib
import hmac
import logging
import time

import aiohttp
import jwt
import pytest
import yarl
from harness import PASS, connected, scenario, serving

from lsd_jax.serve import tokens
from lsd_jax.serve.guard import Bucket
from lsd_jax.serve.settings import Settings
from lsd_jax.serve.tokens import Grant, Refused, mint, read, turn_credentials

KEY = "a key of some length"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "0.0.0.0"}, "LSD_API_KEY"),
        ({"host": "10.0.0.1"}, "LSD_API_KEY"),
        ({"host": "example.org"}, "LSD_API_KEY"),
        ({"api_key": "short"}, "16 characters"),
        ({"model": "nothing"}, "package.module:Class"),
        ({"model": "os; rm:x"}, "package.module:Class"),
        ({"port": 70_000}, "port=70000"),
        ({"engines": 0}, "engines=0"),
        ({"turn": ("turn:a:1",)}, "LSD_TURN_SECRET"),
    ],
)
def test_settings_without_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings(**{"model": PASS, **changes})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_loopback_needs_no_key(host):
    assert Settings(model=PASS, host=host).loopback
    assert not Settings(model=PASS, host="0.0.0.0", api_key=KEY).loopback


def test_secrets_are_not_shown():
    assert KEY not in repr(Settings(model=PASS, api_key=KEY, turn_secret=KEY))


def test_tokens():
    grant = Grant(("a",), ("https://b",), 5.0)
    assert read(KEY, mint(KEY, grant, 60)) == grant
    assert read(KEY, KEY) == Grant(is_key=True)
    assert not read(KEY, mint(KEY, Grant(is_key=True), 60)).is_key
    token = mint(KEY, grant, 60)
    head, _, signature = token.split(".")
    claims = base64.urlsafe_b64encode(b'{"models":[]}').decode().rstrip("=")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    for bad in ("", "x", "\udcff", token[:-2], mint(KEY + "!", grant, 60),
                f"{head}.{claims}.{signature}", f"{unsigned}.{claims}."):  # fmt: skip
        with pytest.raises(Refused, match="invalid api key"):
            read(KEY, bad)
    for seconds in (0, 3601):
        with pytest.raises(ValueError, match="expiresIn"):
            mint(KEY, grant, seconds)
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="maxSessionDuration"):
            mint(KEY, Grant(max_session_s=seconds), 60)
    with pytest.raises(Refused, match="loading"):
        grant.check(None, "https://b")
    with pytest.raises(Refused, match="not for model"):
        grant.check("other", "https://b")
    with pytest.raises(Refused, match="another origin"):
        grant.check("a", None)
    grant.check("a", "https://b")


def test_an_old_token_is_refused(monkeypatch):
    token = mint(KEY, Grant(), 1)
    now = time.time()
    monkeypatch.setattr("jwt.api_jwt.datetime", _later(now + 5), raising=True)
    with pytest.raises(Refused, match="expired"):
        read(KEY, token)


def _later(at):
    import datetime

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(at, tz)

    return Later


def test_turn_credentials_are_those_that_coturn_computes():
    login = turn_credentials("secret", "me", 60)
    until, name = login["username"].split(":")
    assert name == "me" and 55 < int(until) - time.time() <= 61
    expected = hmac.new(b"secret", login["username"].encode(), hashlib.sha1).digest()
    assert base64.b64decode(login["credential"]) == expected


def test_a_bucket_lets_through_its_rate():
    bucket = Bucket(1000.0, 5.0)
    assert sum(bucket.take() for _ in range(50)) < 20
    time.sleep(0.01)
    assert bucket.take()


async def status(server, path, method="GET", **options):
    async with aiohttp.ClientSession() as http:
        async with http.request(method, server.url + path, **options) as response:
            return response.status, await response.text()


def test_a_server_with_a_key_lets_in_who_has_it_or_a_token(caplog):
    caplog.set_level(logging.DEBUG)

    async def run():
        async with serving(api_key=KEY, opens_per_minute=1000) as server:
            key = {"Authorization": f"Bearer {KEY}"}
            assert (await status(server, "/v1/realtime/quota"))[0] == 401
            assert (await status(server, "/v1/realtime/quota", headers=key))[0] == 200
            for query in ("", "?api_key=wrong"):
                assert (await status(server, f"/v1/live{query}"))[0] == 401
                async with connected(server, query) as client:
                    await client.socket.send_json({"type": "start"})
                    assert (await client.until("error"))["code"] == "unauthorized"
                    assert await client.receive() == 4401
            asked = {"expiresIn": 30, "allowedModels": ["pass-through"]}
            asked["constraints"] = {"realtime": {"maxSessionDuration": 1}}
            assert (await status(server, "/v1/client/tokens", "POST", json=asked))[0] == 401
            async with aiohttp.ClientSession(headers=key) as http:
                async with http.post(f"{server.url}/v1/client/tokens", json=asked) as response:
                    token = (await response.json())["apiKey"]
                without_end = {"constraints": {"realtime": {"maxSessionDuration": float("inf")}}}
                for bad in (
                    {"expiresIn": 0}, {"expiresIn": "x"}, {"expiresIn": float("inf")}, [],
                    {"constraints": 3}, without_end,
                ):  # fmt: skip
                    async with http.post(f"{server.url}/v1/client/tokens", json=bad) as response:
                        assert response.status == 400
            for minted in (token, mint(KEY, Grant(), 60)):
                again = await status(
                    server, "/v1/client/tokens", "POST", json={}, headers={"X-API-Key": minted}
                )
                assert again[0] == 403
            async with connected(server, f"?api_key={token}") as client:
                await client.start()
                assert "time is over" in (await client.until("ended"))["reason"]
            other = mint(KEY, Grant(("another",)), 60)
            assert (await status(server, f"/v1/live?api_key={other}"))[0] == 403
            async with connected(server, f"?api_key={other}") as client:
                await client.socket.send_json({"type": "start"})
                assert (await client.until("error"))["code"] == "forbidden"
                assert await client.receive() == 4403
            elsewhere = mint(KEY, Grant(origins=("https://friend.example",)), 60)
            asked = {"api_key": elsewhere}
            assert (await status(server, "/v1/ice-servers", params=asked))[0] == 403
            return token

    token = scenario(run())
    assert KEY not in caplog.text and token not in caplog.text


def test_pages_of_other_origins_and_names_are_refused():
    async def run():
        async with serving(origins=("https://friend.example",)) as server:
            for origin, allowed in (
                ("https://evil.example", False),
                ("null", False),
                ("https://friend.example", True),
                (server.url, True),
            ):
                try:
                    async with connected(server, headers={"Origin": origin}) as client:
                        await client.start()
                    assert allowed, origin
                except aiohttp.WSServerHandshakeError as refused:
                    assert refused.status == 403 and not allowed, origin
            for rebound in ("evil.example", "[::1", "[x]"):
                assert (await status(server, "/readyz", headers={"Host": rebound}))[0] == 403
            bad = {"Origin": "http://[x"}
            assert (await status(server, "/v1/ice-servers", headers=bad))[0] == 403

    scenario(run())


def test_who_opens_too_often_is_refused():
    async def run():
        async with serving(opens_per_minute=3) as server:
            codes = []
            for _ in range(5):
                try:
                    async with connected(server):
                        codes.append(101)
                except aiohttp.WSServerHandshakeError as refused:
                    codes.append(refused.status)
            assert codes == [101, 101, 101, 429, 429]

    scenario(run())


def test_who_has_no_key_spends_nothing_of_the_rate():
    async def run():
        async with serving(api_key=KEY, opens_per_minute=2) as server:
            for _ in range(4):
                assert (await status(server, "/v1/ice-servers"))[0] == 401
            key = {"X-API-Key": KEY}
            codes = [(await status(server, "/v1/ice-servers", headers=key))[0] for _ in range(3)]
            assert codes == [200, 200, 429]

    scenario(run())


def test_who_guesses_keys_is_slowed_down_and_told_nothing_more():
    """A wrong key spends of a rate of its own, which shuts nobody out who has the right one. A
    token that was valid once is no guess."""

    async def run():
        async with serving(api_key=KEY, opens_per_minute=4) as server:
            expired = jwt.encode({"exp": 1, "jti": "x", "iss": "lsd-jax"}, tokens._signing(KEY))
            keys = [expired] * 6 + ["wrong"] * 6 + [KEY]
            codes = [
                (await status(server, "/v1/realtime/quota", headers={"X-API-Key": key}))[0]
                for key in keys
            ]
            assert codes == [401] * 6 + [401] * 4 + [429] * 2 + [200]
            assert (await status(server, "/healthz"))[0] == 200

    scenario(run())


def test_a_server_at_any_loopback_address_answers_to_it():
    async def run():
        async with serving(ready=False, host="127.3.2.1") as server:
            named = {"Host": "127.3.2.1:80"}
            assert (await status(server, "/healthz", headers=named))[0] == 200

    scenario(run())


def test_the_small_endpoints():
    async def run():
        async with serving(stun=("stun:a:1",), turn=("turn:b:2",), turn_secret="s") as server:
            code, text = await status(server, "/healthz")
            assert code == 200 and '"ok"' in text
            code, text = await status(server, "/readyz")
            assert code == 200 and '"free_slots": 2' in text
            code, text = await status(server, "/v1/ice-servers")
            assert "stun:a:1" in text and "credential" in text
            assert (await status(server, "/models"))[1].count("pass-through") == 1
            code, text = await status(server, "/openapi.json")
            assert "LiveMessage" in text and "$defs" not in text
            assert (await status(server, "/nothing"))[0] == 404
            climb = yarl.URL(f"{server.url}/web/%2e%2e/app.py", encoded=True)
            async with aiohttp.ClientSession() as http, http.get(climb) as outside:
                assert outside.status in (403, 404) and "Server" not in await outside.text()
            async with aiohttp.ClientSession() as http, http.get(server.url) as page:
                assert "default-src 'self'" in page.headers["Content-Security-Policy"]
            async with connected(server) as client, connected(server) as other:
                await asyncio.gather(client.start(), other.start())
                code, text = await status(server, "/readyz")
                assert code == 503 and '"free_slots": 0' in text
                text = (await status(server, "/metrics"))[1]
                assert "lsd_sessions_active 2.0" in text and "lsd_slots_total 2.0" in text

    scenario(run())
