"""The rooms of sessions whose media come by LiveKit: who is let in, and what is not."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

import aiohttp
import jwt
import numpy as np
import pytest
from aiortc import AudioStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from harness import SMALL, Client, connected, scenario, serving
from livekit.protocol import rtc
from test_rtc import SIZE, Source

from lsd_jax.serve import livekit


@asynccontextmanager
async def joined(server):
    """A client of `/v1/stream`, and what it was told of its room."""
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(f"{server.url}/v1/stream?model=any") as socket:
            client = Client(socket)
            await socket.send_json({"type": "livekit_join", "passthrough": True})
            yield client, await client.until("livekit_room_info")


@asynccontextmanager
async def entered(server, told):
    """The socket of that room."""
    assert told["livekit_url"] == server.url.replace("http", "ws")
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(f"{server.url}/rtc?access_token={told['token']}") as socket:
            yield socket


async def say(socket, **message):
    await socket.send_bytes(rtc.SignalRequest(**message).SerializeToString())


async def hear(socket, kind):
    while True:
        message = await asyncio.wait_for(socket.receive(), 20)
        assert message.type is aiohttp.WSMsgType.BINARY, f"closed ({socket.close_code})"
        response = rtc.SignalResponse.FromString(message.data)
        if response.WhichOneof("message") == kind:
            return getattr(response, kind)


async def closed(socket):
    while (await asyncio.wait_for(socket.receive(), 20)).type is aiohttp.WSMsgType.BINARY:
        continue
    return socket.close_code


def description(one):
    return rtc.SessionDescription(type=one.type, sdp=one.sdp, id=7)


def test_a_camera_goes_in_and_comes_out_and_a_microphone_goes_nowhere():
    """The microphone is published after the camera, which is another offer of the connection."""

    async def run():
        async with serving(config=SIZE) as server, joined(server) as (client, told):
            async with entered(server, told) as room:
                join = await hear(room, "join")
                assert join.room.name == told["room_name"] and join.subscriber_primary
                assert join.other_participants[0].identity.startswith("inference-server-")
                watching = RTCPeerConnection(RTCConfiguration(iceServers=[]))
                arrived = asyncio.get_running_loop().create_future()
                watching.on("track", arrived.set_result)
                offer = (await hear(room, "offer")).sdp
                assert f"a=msid:{join.other_participants[0].sid}|TR_video TR_video" in offer
                await watching.setRemoteDescription(RTCSessionDescription(offer, "offer"))
                await watching.setLocalDescription(await watching.createAnswer())
                await say(room, answer=description(watching.localDescription))
                showing = RTCPeerConnection(RTCConfiguration(iceServers=[]))
                for track, kind in ((Source(level=150), 1), (AudioStreamTrack(), 0)):
                    await say(room, add_track=rtc.AddTrackRequest(cid=track.id, type=kind))
                    assert (await hear(room, "track_published")).cid == track.id
                    showing.addTransceiver(track, "sendonly")
                    await showing.setLocalDescription(await showing.createOffer())
                    await say(room, offer=description(showing.localDescription))
                    answer = await hear(room, "answer")
                    assert answer.id == 7 and ("a=recvonly" in answer.sdp)
                    assert ("a=inactive" in answer.sdp) == (kind == 0)
                    answered = RTCSessionDescription(answer.sdp, "answer")
                    await showing.setRemoteDescription(answered)
                frame = await asyncio.wait_for((await arrived).recv(), 20)
                assert abs(frame.to_ndarray(format="rgb24").mean() - 150) < 12
                showing.getTransceivers()[0].direction = "inactive"
                showing.addTransceiver(Source(level=60), "sendonly")  # the camera, anew
                await showing.setLocalDescription(await showing.createOffer())
                await say(room, offer=description(showing.localDescription))
                answered = RTCSessionDescription((await hear(room, "answer")).sdp, "answer")
                await showing.setRemoteDescription(answered)
                async with asyncio.timeout(20):
                    while abs(frame.to_ndarray(format="rgb24").mean() - 60) > 12:
                        frame = await (await arrived).recv()
                await client.until("generation_started")
                await say(room, ping_req=rtc.Ping(timestamp=5))
                assert (await hear(room, "pong_resp")).last_ping_timestamp == 5
                await say(room, leave=rtc.LeaveRequest())
                assert (await client.until("generation_ended"))["reason"] == "client_left"
                assert server.registry.free == SIZE["slots"]
            await asyncio.gather(watching.close(), showing.close())

    scenario(run(), 60)


def test_a_room_is_entered_once_with_its_token():
    async def run():
        friend = "https://friend.example"
        async with serving(config=SMALL, origins=(friend,)) as server:
            async with joined(server) as (client, told), aiohttp.ClientSession() as http:

                async def knock(token, path="/rtc", **headers):
                    url = f"{server.url}{path}"
                    async with http.get(url, params={"access_token": token}, headers=headers) as r:
                        return r.status, r.headers.get("Access-Control-Allow-Origin")

                head, claims, signature = told["token"].split(".")
                stolen = jwt.encode({"exp": time.time() + 9, "iss": "lsd-jax"}, "k" * 32)
                for bad in ("", "x", f"{head}.{claims}.", stolen, told["session_id"]):
                    assert (await knock(bad))[0] == (await knock(bad, "/rtc/validate"))[0] == 401
                good = told["token"]
                assert await knock(good, "/rtc/validate", Origin=friend) == (200, friend)
                assert await knock("", "/rtc/v1/validate", Origin=friend) == (404, friend)
                evil = await knock(good, "/rtc/validate", Origin="https://evil.example")
                assert evil == (403, None)
                old = {**jwt.decode(good, options={"verify_signature": False}), "exp": 1}
                old = jwt.encode(old, server.rooms._key, "HS256")
                assert (await knock(old, "/rtc/validate"))[0] == 401
                assert (await knock(good))[0] == 426  # no WebSocket: it may still be entered
                async with entered(server, told) as room:
                    await hear(room, "offer")
                    assert (await knock(good, "/rtc/validate"))[0] == 401
                    for message in ({"type": "livekit_join"}, {"type": "offer", "sdp": "x"}):
                        await client.socket.send_json(message)
                        assert "another session" in (await client.until("error"))["error"]
                    await client.socket.close()
                    assert (await hear(room, "leave")).reason
                    assert await closed(room) == 1000
            async with joined(server) as (client, told):
                await client.socket.close()
                while server.registry.sessions:
                    await asyncio.sleep(0.01)
                assert (await knock_once(server, told["token"])) == 401

    async def knock_once(server, token):
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{server.url}/rtc?access_token={token}") as response:
                return response.status

    scenario(run(), 60)


def test_a_room_that_nobody_enters_ends_its_session(monkeypatch):
    monkeypatch.setattr(livekit, "JOIN_S", 1)

    async def run():
        async with serving(config=SMALL) as server, joined(server) as (client, _):
            assert (await client.until("generation_ended"))["reason"] == "room_not_joined"
            assert server.registry.free == SMALL["slots"]

    scenario(run())


def test_who_tries_rooms_shuts_out_nobody_who_has_a_key():
    async def run():
        key = "k" * 32
        async with (
            serving(config=SMALL, opens_per_minute=3, api_key=key) as server,
            aiohttp.ClientSession() as h,
        ):
            for _ in range(5):
                async with h.get(f"{server.url}/rtc/validate?access_token=x") as response:
                    assert response.status == 401
            async with h.get(f"{server.url}/v1/ice-servers?api_key={key}") as response:
                assert response.status == 200

    scenario(run())


BAD = {
    "text": "{}",
    "no protobuf": b"\xff" * 40,
    "an offer that is none": {"offer": rtc.SessionDescription(type="offer", sdp="v=0")},
    "an answer that is none": {"answer": rtc.SessionDescription(type="answer", sdp="v=0")},
    "an offer that is endless": {"offer": rtc.SessionDescription(sdp="a=x\r\n" * 50_000)},
    "a candidate that is endless": {"trickle": rtc.TrickleRequest(candidateInit="1" * 5000)},
    "a candidate that is none": {"trickle": rtc.TrickleRequest(candidateInit="[" * 3000)},
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD)
def test_what_no_client_of_rooms_says_ends_that_session_alone(message, smooth):
    async def run():
        async with serving(config=SMALL) as server, connected(server) as good:
            await good.start()
            async with joined(server) as (client, told), entered(server, told) as room:
                for candidate in ("3", "null", json.dumps({"candidate": "x"})):
                    await say(room, trickle=rtc.TrickleRequest(candidateInit=candidate))
                if isinstance(message, dict):
                    await say(room, **message)
                elif isinstance(message, str):
                    await room.send_str(message)
                else:
                    await room.send_bytes(message)
                assert await closed(room) == 1008
                assert (await client.until("generation_ended"))["reason"] == "client_left"
            assert (await good.show(smooth))[0] == 1 and server.registry.free == 1

    scenario(run())


@pytest.mark.parametrize("what", ["messages", "tracks"])
def test_a_room_takes_so_much_and_no_more(what):
    async def run():
        async with serving(config=SMALL, messages_per_s=50) as server:
            async with joined(server) as (_, told), entered(server, told) as room:
                for _ in range(200 if what == "messages" else livekit.TRACKS + 1):
                    if what == "messages":
                        await say(room, ping=1)
                    else:
                        await say(room, add_track=rtc.AddTrackRequest(cid="x" * 999))
                assert await closed(room) == 1008
            while server.registry.sessions:
                await asyncio.sleep(0.01)

    scenario(run())


def test_the_largest_picture_of_several_is_asked_for():
    from lsd_jax.serve.sdp import answer_sdp

    line = "a=extmap:10 urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id\r\n"
    answer = "v=0\r\nm=audio 9 X 1\r\na=mid:0\r\nm=video 9 X 1\r\na=mid:1\r\n"
    for order in np.array(["qhf", "fhq", "qh", "hq"]):
        rids = "".join(f"a=rid:{rid} send\r\n" for rid in order)
        offer = f"v=0\r\nm=audio 9 X 1\r\na=mid:0\r\nm=video 9 X 1\r\na=mid:1\r\n{line}{rids}"
        largest = "f" if "f" in order else "h"
        found = answer_sdp(answer, offer).split("m=")
        assert f"a=rid:{largest} recv" in found[2] and "simulcast:recv" in found[2]
        assert "rid" not in found[1] and found[2].count("a=rid:") == 1
    assert answer_sdp(answer, offer.replace(line, "")) == answer_sdp(answer) == answer


def test_a_room_tells_of_stun_and_turn():
    async def run():
        ice = {"stun": ("stun:a:1",), "turn": ("turn:b:2",), "turn_secret": "s"}
        async with serving(config=SMALL, **ice) as server, joined(server) as (_, told):
            async with entered(server, told) as room:
                stun, turn = (await hear(room, "join")).ice_servers
                assert list(stun.urls) == ["stun:a:1"] and not stun.credential
                assert list(turn.urls) == ["turn:b:2"] and turn.username and turn.credential

    scenario(run())
