"""WebRTC end to end on loopback: pictures there and back, offers that are none."""

import asyncio
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from aiortc import (
    AudioStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
    VideoStreamTrack,
)
from aiortc.rtp import RTCP_PSFB_APP, RtcpPsfbPacket, pack_remb_fci
from av import VideoFrame
from harness import connected, scenario, serving
from test_engines import HERE

from lsd_jax.runtime import Mailbox
from lsd_jax.serve import protocol, rtc, rtc_compat, sound
from lsd_jax.serve.metrics import Metrics
from lsd_jax.serve.sdp import MAX_CANDIDATES, check_sdp

SIZE = {"width": 320, "height": 192, "slots": 2}


class Source(VideoStreamTrack):
    """Pictures whose grey level is their number, 30 a second."""

    def __init__(self, level=None):
        super().__init__()
        self.n, self.level = 0, level

    async def recv(self):
        pts, time_base = await self.next_timestamp()
        self.n += 1
        level = (self.n * 5) % 200 + 20 if self.level is None else self.level
        image = np.full((192, 320, 3), level, np.uint8)
        frame = VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = pts, time_base
        return frame


async def call(client, codec, source):
    """A connection whose received track is given; it offers a data channel, as LiveKit's do."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.createDataChannel("unused")
    transceiver = connection.addTransceiver(source, "sendrecv")
    codecs = RTCRtpSender.getCapabilities("video").codecs
    transceiver.setCodecPreferences([c for c in codecs if c.mimeType == f"video/{codec}"])
    arrived = asyncio.get_running_loop().create_future()
    connection.on("track", lambda track: arrived.set_result(track))
    await connection.setLocalDescription(await connection.createOffer())
    await client.socket.send_json({"type": "offer", "sdp": connection.localDescription.sdp})
    answer = await client.until("answer")
    await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
    return connection, await arrived, answer["sdp"]


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_pictures_go_there_and_back(codec):
    async def run():
        async with serving(config=SIZE) as server, connected(server) as client:
            await client.start(media="webrtc")
            connection, track, sdp = await call(client, codec, Source(level=150))
            assert "x-google-start-bitrate" in sdp
            started = time.monotonic()
            for _ in range(20):
                frame = await asyncio.wait_for(track.recv(), 20)
            assert (frame.width, frame.height) == (320, 192)
            assert abs(frame.to_ndarray(format="rgb24").mean() - 150) < 6
            assert time.monotonic() - started < 20
            assert "m=application" in sdp and connection.sctp.state == "new"
            async with asyncio.timeout(10):  # the first may be from before the camera came
                while (await client.until("metrics"))["input_size"] != [320, 192]:
                    continue
            await connection.close()
            assert (await client.until("ended"))["reason"].startswith("connection_")
            assert server.registry.free == 2

    scenario(run())


def pitch_hz(samples, rate_hz):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * rate_hz / len(samples)


def test_a_models_sound_arrives_beside_its_pictures(monkeypatch):
    """Where a client takes it; the microphone it offers and a second camera go nowhere."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))

    async def run():
        async with serving("image_models:HummingModel", SIZE) as server:
            async with connected(server) as client:
                await client.start(media="webrtc")
                connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
                connection.addTransceiver("audio", "recvonly")
                connection.addTransceiver(AudioStreamTrack(), "sendonly")
                connection.addTransceiver(Source(level=150), "sendrecv")
                connection.addTransceiver(Source(level=90), "sendonly")
                tracks = []
                connection.on("track", tracks.append)
                await connection.setLocalDescription(await connection.createOffer())
                offer = connection.localDescription.sdp
                await client.socket.send_json({"type": "offer", "sdp": offer})
                sdp = (await client.until("answer"))["sdp"]
                directions = re.findall(r"a=(sendrecv|sendonly|recvonly|inactive)", sdp)
                assert directions == ["sendonly", "inactive", "sendrecv", "inactive"]
                await connection.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
                (sound,) = [track for track in tracks if track.kind == "audio"]
                for _ in range(25):  # the tone has begun
                    await asyncio.wait_for(sound.recv(), 20)
                began, heard = time.monotonic(), []
                for _ in range(50):
                    frame = await asyncio.wait_for(sound.recv(), 20)
                    heard.append(frame.to_ndarray()[0, ::2])
                assert frame.sample_rate == 48_000 and 0.5 < time.monotonic() - began < 3
                assert abs(pitch_hz(np.concatenate(heard), 48_000) - 440) < 5
                await client.until("metrics")
                count = len(client.binaries)
                await client.until("metrics")
                assert len(client.binaries) == count  # it does not come twice
                await connection.close()
            async with connected(server) as client:  # by JPEGs, as samples
                await client.start()
                while not client.binaries:
                    await client.receive()
                kind, content = client.binaries[0]
                assert kind == protocol.SAMPLE and content[:32].rstrip(b"\0") == b"hum"

    scenario(run())


@pytest.mark.parametrize(("channels", "kind"), [(1, "float32"), (2, "int16"), (6, "float32")])
def test_sound_is_resampled_paced_and_bounded(channels, kind):
    output = {"sample_rate_hz": 24_000, "channels": channels, "sample_format": kind}
    waits = sound.Sound(output)
    times = np.arange(24_000) / 24_000
    tone = 0.5 * np.sin(2 * np.pi * 300 * times)[:, None] * np.ones((1, channels))
    tone = tone * 32_767 if kind == "int16" else tone
    waits.put(b"")
    waits.put(tone.astype(kind).tobytes())
    assert 0 < waits.dropped < 50 and len(waits._frames) == sound.WAITING
    frames = [waits.take() for _ in range(sound.WAITING)]
    assert {frame.samples for frame in frames} == {sound.FRAME}
    heard = np.concatenate([frame.to_ndarray()[0, ::2] for frame in frames])
    assert abs(pitch_hz(heard, 48_000) - 300) < 8 and 12_000 < np.abs(heard).max() < 20_000
    assert not waits.take().to_ndarray().any()  # silence, when there is no more


@pytest.mark.parametrize(
    "sdp",
    [
        "",
        "v=0\r\n" + "m=video 9 X 96\r\n" * 99,
        "nonsense",
        "v=0\r\n",
        "v=0\r\nm=video 9 X 96\r\n",
        "x a=fingerprint:\r\na=ice-ufrag:a\r\na=ice-pwd:b\r\n",
    ],
)
def test_an_offer_that_is_none_is_refused(sdp):
    async def run():
        async with serving(config=SIZE) as server, connected(server) as client:
            await client.start(media="webrtc")
            await client.socket.send_json({"type": "offer", "sdp": sdp})
            error = await client.until("error")
            assert error["code"] == "bad_offer" and "\n" not in error["message"]
            await client.socket.send_json({"type": "candidate", "candidate": {"candidate": "x"}})
            await client.socket.send_json({"type": "candidate", "candidate": None})
            assert (await client.ask("input", name="set_prompt", args={"prompt": "x"}))["ok"]

    scenario(run())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x0b", "\x0c", "\r", "\x85", "\u2028"])
def test_sections_are_counted_as_their_parser_finds_them(end):
    with pytest.raises(ValueError, match="more than 8 media sections"):
        check_sdp(f"v=0{end}" + f"m=video 9 X 96{end}" * 9, "offer")


def naming(sdp, count):
    """`sdp` with so many candidates, always the same ones."""
    named = "".join(f"a=candidate:1 1 udp 1 192.0.2.{n} 9 typ host\r\n" for n in range(count))
    ours = ("a=candidate:", "a=end-of-candidates")
    lines = [line for line in sdp.splitlines(keepends=True) if not line.startswith(ours)]
    at = next(i for i, line in enumerate(lines) if line.startswith("a=ice-pwd:"))
    return "".join((*lines[:at], named, *lines[at:]))


def test_candidates_are_bounded_however_they_come():
    """A later offer names those of the one before again, which are no more for that."""

    async def run():
        ended = asyncio.get_running_loop().create_future()
        manifest = {"video_inputs": []}
        session = SimpleNamespace(manifest=manifest, sound=None, sounds=False, video=Mailbox(),
                                  ended=ended)  # fmt: skip
        peer = rtc.Peer(session, None, Metrics(), offers=3)
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connection.addTransceiver("video", "recvonly")
        await connection.setLocalDescription(await connection.createOffer())
        sdp = connection.localDescription.sdp
        for refused in (MAX_CANDIDATES + 1, 2000):
            for refuse in (peer.answer, peer.accept):
                with pytest.raises(ValueError, match="more than 64 candidates; send a browser's"):
                    await refuse(naming(sdp, refused))
        await peer.answer(naming(sdp, 60))
        (transceiver,) = peer._connection.getTransceivers()
        ice = transceiver.receiver.transport.transport
        for n in range(2):
            trickled = f"candidate:1 1 udp 1 192.0.2.{100 + n} 9 typ host"
            await peer.add_candidate({"candidate": trickled, "sdpMid": transceiver.mid})
        await peer.answer(naming(sdp, 62))
        assert len(ice.getRemoteCandidates()) == MAX_CANDIDATES
        with pytest.raises(ValueError, match="more than 64 candidates"):
            await peer.answer(naming(sdp, 63))
        trickled = "candidate:1 1 udp 1 192.0.2.200 9 typ host"
        await peer.add_candidate({"candidate": trickled, "sdpMid": transceiver.mid})
        assert len(ice.getRemoteCandidates()) == MAX_CANDIDATES
        await asyncio.gather(peer.close(), connection.close())

    scenario(run(), 30)


def test_offers_that_fail_are_so_many_and_change_nothing(monkeypatch):
    """They would receive sound and no video."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))

    async def run():
        async with serving("image_models:HummingModel", SIZE) as server:
            async with connected(server) as client:
                await client.start(media="webrtc")
                connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
                connection.addTransceiver("audio", "recvonly")
                await connection.setLocalDescription(await connection.createOffer())
                offer = {"type": "offer", "sdp": connection.localDescription.sdp}
                said = []
                for _ in range(rtc.MAX_FAILED + 1):
                    await client.socket.send_json(offer)
                    said.append((await client.until("error"))["message"])
                assert all("it receives no video" in words for words in said[:-1])
                assert "open another session" in said[-1]
                (session,) = server.registry.sessions.values()
                assert not session.sounds
                await connection.close()

    scenario(run())


def test_an_offer_to_a_jpeg_session_is_a_mistake():
    async def run():
        async with serving(config=SIZE) as server, connected(server) as client:
            await client.start(media="jpeg")
            await client.socket.send_json({"type": "offer", "sdp": "v=0"})
            assert (await client.until("error"))["code"] == "bad_message"

    scenario(run())


def test_the_bitrate_follows_what_the_receiver_says_it_takes():
    """By REMB: down, up again, and never beyond the bounds."""

    async def run():
        async with serving(config=SIZE) as server, connected(server) as client:
            await client.start(media="webrtc")
            connection, track, _ = await call(client, "VP8", Source(level=150))
            await asyncio.wait_for(track.recv(), 20)
            (receiver,) = [r for r in connection.getReceivers() if r.track is track]
            ssrc = next(iter(receiver._RTCRtpReceiver__remote_streams))

            def bwe_bps():
                lines = server.metrics.text().decode().splitlines()
                return float(next(x for x in lines if x.startswith("lsd_bwe_bps")).split()[1])

            least, _, most = rtc_compat.VP8_BPS
            for said, wanted in ((400_000, 400_000), (3_000_000, 3_000_000), (1, least),
                                 (100_000_000, most)):  # fmt: skip
                async with asyncio.timeout(20):
                    while abs(bwe_bps() / wanted - 1) > 0.01:  # its own estimates come between
                        packet = RtcpPsfbPacket(
                            fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0,
                            fci=pack_remb_fci(said, [ssrc]),
                        )  # fmt: skip
                        await receiver.transport._send_rtp(bytes(packet))
                        await asyncio.wait_for(track.recv(), 20)
            for stage in ("decode", "engine", "step", "encode", "send"):
                count = f'lsd_stage_seconds_count{{stage="{stage}"}}'
                async with asyncio.timeout(10):
                    while count not in server.metrics.text().decode():  # steps come once a second
                        await asyncio.sleep(0.05)
            await connection.close()

    scenario(run())
