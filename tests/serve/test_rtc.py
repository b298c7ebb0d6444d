"""WebRTC end to end on loopback: pictures there and back, offers that are none."""

import asyncio
import time

import numpy as np
import pytest
from aiortc import (
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
    VideoStreamTrack,
)
from av import VideoFrame
from harness import connected, scenario, serving

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
    """A connection whose received track is given."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
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
            metrics = await client.until("metrics")
            assert metrics["input_size"] == [320, 192]
            await connection.close()
            assert (await client.until("ended"))["reason"].startswith("connection_")
            assert server.registry.free == 2

    scenario(run())


@pytest.mark.parametrize(
    "sdp",
    ["", "v=0\r\n" + "m=video 9 X 96\r\n" * 99, "nonsense", "v=0\r\n", "v=0\r\nm=video 9 X 96\r\n"],
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


def test_an_offer_to_a_jpeg_session_is_a_mistake():
    async def run():
        async with serving(config=SIZE) as server, connected(server) as client:
            await client.start(media="jpeg")
            await client.socket.send_json({"type": "offer", "sdp": "v=0"})
            assert (await client.until("error"))["code"] == "bad_message"

    scenario(run())
