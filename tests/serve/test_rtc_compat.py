"""The six traps of aiortc, each sprung without the mending and avoided with it."""

import asyncio

import aioice.ice
import aiortc
import av
import numpy as np
import pytest
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpSendParameters
from aiortc.rtp import HeaderExtensions, HeaderExtensionsMap, RtpPacket, unpack_header_extensions
from av import VideoFrame

from lsd_jax.serve import rtc_compat

rtc_compat.install()


def test_this_is_the_version_that_is_mended(monkeypatch):
    """Where this fails, look at each trap again: upstream may have mended it."""
    assert aiortc.__version__.startswith("1.16.")
    monkeypatch.setattr(rtc_compat, "_installed", False)
    monkeypatch.setattr(aiortc, "__version__", "1.17.0")
    with pytest.raises(RuntimeError, match="aiortc>=1.16,<1.17"):
        rtc_compat.install()


def packets(sizes, start=0):
    """RTP packets of frames with so many packets each; the last of a frame bears the marker."""
    made, number = [], start
    for n, size in enumerate(sizes):
        for i in range(size):
            packet = RtpPacket(sequence_number=number % 65536, timestamp=3000 * n)
            packet.marker = int(i == size - 1)
            packet._data = bytes([n, i])
            made.append(packet)
            number += 1
    return made


def feed(buffer, order):
    return [frame for packet in order if (frame := buffer.add(packet)[1])]


def test_a_frame_comes_with_its_last_packet():
    stock = JitterBuffer(capacity=64, is_video=True)
    stock._remove_frame = lambda n: rtc_compat._frame_when_next_came(stock, n)
    assert len(feed(stock, packets([3]))) == 0
    frames = feed(JitterBuffer(capacity=64, is_video=True), packets([3, 1, 5], start=65533))
    assert [len(frame.data) for frame in frames] == [6, 2, 10]
    assert [frame.timestamp for frame in frames] == [0, 3000, 6000]


@pytest.mark.parametrize("seed", range(20))
def test_reordered_packets_make_the_same_frames(seed):
    """Swapped neighbours, as networks do; every frame is whole and in order."""
    made = packets([1, 4, 2, 3, 1, 6, 2])
    rng = np.random.default_rng(seed)
    for i in rng.permutation(len(made) - 2)[:6] + 1:
        made[i], made[i + 1] = made[i + 1], made[i]
    frames = feed(JitterBuffer(capacity=64, is_video=True), made)
    assert [frame.data[0] for frame in frames] == list(range(7))
    for n, size in enumerate([1, 4, 2, 3, 1, 6, 2]):
        assert frames[n].data == b"".join(bytes([n, i]) for i in range(size))


def test_a_lost_packet_holds_its_frame_back():
    made = packets([2, 3, 2])
    frames = feed(JitterBuffer(capacity=64, is_video=True), made[:3] + made[4:])
    assert [frame.data[0] for frame in frames] == [0]


def test_decoded_frames_do_not_queue():
    async def run():
        track = aiortc.rtcrtpreceiver.RemoteStreamTrack("video")
        for n in range(10):
            await track._queue.put(n)
        assert await track.recv() == 9 and track._queue.dropped == 9
        await track._queue.put(1)
        await track._queue.put(None)
        await track._queue.put(2)  # after the end
        with pytest.raises(aiortc.mediastreams.MediaStreamError):
            for _ in range(3):
                await track.recv()

    asyncio.run(asyncio.wait_for(run(), 5))


def test_encoders_are_quick_and_generous():
    h264, vp8 = H264Encoder(), Vp8Encoder()
    for encoder, most in ((h264, 8_000_000), (vp8, 5_000_000)):
        encoder.target_bitrate = 50_000_000
        assert encoder.target_bitrate == most
    picture = VideoFrame(1920, 1080, "yuv420p")
    picture.pts, picture.time_base = 0, rtc_compat.fractions.Fraction(1, 90_000)
    for plane in picture.planes:
        plane.update(bytes(plane.buffer_size))
    payloads, _ = h264.encode(picture, force_keyframe=True)
    assert b"subme=1 " in b"".join(payloads)  # of x264's presets, superfast's
    first = h264.codec
    h264.target_bitrate = 7_000_000
    h264.encode(picture)
    assert h264.codec is first  # a small change restarts nothing
    h264.target_bitrate = 1_000_000
    h264.encode(picture)
    assert h264.codec is not first


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_pictures_that_are_too_large_are_not_decoded(codec, monkeypatch):
    encoder, decoder = {
        "H264": (H264Encoder, aiortc.codecs.h264.H264Decoder),
        "VP8": (Vp8Encoder, aiortc.codecs.vpx.Vp8Decoder),
    }[codec]
    picture = VideoFrame(640, 360, "yuv420p")
    picture.pts, picture.time_base = 0, rtc_compat.fractions.Fraction(1, 90_000)
    payloads, _ = encoder().encode(picture, force_keyframe=True)
    depayload = {
        "H264": aiortc.codecs.h264.h264_depayload,
        "VP8": aiortc.codecs.vpx.vp8_depayload,
    }[codec]
    data = JitterFrame(b"".join(map(depayload, payloads)), 0)
    assert len(decoder().decode(data)) == 1
    monkeypatch.setattr(rtc_compat, "MAX_PIXELS", 100_000)
    with pytest.raises(av.FFmpegError):
        decoder().decode(data)


def test_the_answer_asks_chrome_for_a_picture_of_full_size():
    sdp = "v=0\r\na=rtpmap:96 VP8/90000\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n"
    sdp += "a=rtpmap:102 H264/90000\r\na=fmtp:102 packetization-mode=1\r\n"
    lines = rtc_compat.answer_sdp(sdp, kbps=(1, 2, 3)).splitlines()
    hints = "x-google-min-bitrate=1;x-google-start-bitrate=2;x-google-max-bitrate=3"
    assert f"a=fmtp:96 {hints}" in lines
    assert f"a=fmtp:102 packetization-mode=1;{hints}" in lines
    assert "a=fmtp:97 apt=96" in lines and len(lines) == 7


class Receiver:
    """What a StunProtocol hands datagrams to; stock aiortc raises on an empty one."""

    def __init__(self, peer):
        self.seen = []
        self._check_list = [type("Pair", (), {"remote_addr": peer})]

    def data_received(self, data, component):
        self.seen.append(data)
        data[0]  # as the DTLS loop does

    def request_received(self, message, addr, protocol):
        raise ValueError("whatever a stranger's request may raise")


def test_only_the_peers_datagrams_pass():
    async def run():
        _strangers_and_peers()

    asyncio.run(run())


def _strangers_and_peers():
    peer, stranger = ("10.0.0.1", 5), ("10.0.0.2", 6)
    protocol = aioice.ice.StunProtocol(Receiver(peer))
    protocol.local_candidate = type("Candidate", (), {"component": 1})
    with pytest.raises(IndexError):
        rtc_compat._unguarded_datagram(protocol, b"", stranger)
    protocol.receiver.seen.clear()
    rng = np.random.default_rng(0)
    for data in (
        b"",
        b"\x80",
        bytes(2000),
        *(rng.bytes(int(n)) for n in rng.integers(0, 99, 3000)),
    ):
        protocol.datagram_received(data, stranger)
    assert all(data[0] < 20 for data in protocol.receiver.seen)  # STUN's range: not DTLS, not RTP
    protocol.receiver.seen.clear()
    protocol.datagram_received(b"\x80rtp", peer)
    assert protocol.receiver.seen == [b"\x80rtp"]


def test_video_asks_for_no_playout_delay():
    extensions = HeaderExtensionsMap()
    parameters = RTCRtpSendParameters()
    parameters.headerExtensions = [
        RTCRtpHeaderExtensionParameters(id=3, uri="urn:ietf:params:rtp-hdrext:sdes:mid"),
        RTCRtpHeaderExtensionParameters(id=6, uri=rtc_compat.PLAYOUT_DELAY),
    ]
    extensions.configure(parameters)
    found = dict(unpack_header_extensions(*extensions.set(HeaderExtensions(mid="0"))))
    assert found == {3: b"0", 6: b"\0\0\0"}
