"""The traps of aiortc, sprung without the mending and avoided with it."""

import asyncio
import threading

import aioice.ice
import aiortc
import av
import numpy as np
import pytest
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtcrtpparameters import (
    RTCRtpCodecParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpReceiveParameters,
    RTCRtpSendParameters,
)
from aiortc.rtp import (
    RTCP_PSFB_PLI,
    HeaderExtensions,
    HeaderExtensionsMap,
    RtcpPacket,
    RtpPacket,
    unpack_header_extensions,
)
from av import VideoFrame

from lsd_jax.serve import rtc_compat
from lsd_jax.serve.sdp import answer_sdp

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


class Wire:
    """The transport of a receiver of either kind."""

    state, _role, _stats_id = "connected", "server", ""

    def __init__(self):
        self.receivers, self.sent = [], []

    def _register_rtp_receiver(self, receiver, parameters):
        self.receivers.append(receiver)

    def _register_data_receiver(self, receiver):
        self.receivers.append(receiver)

    def _unregister_rtp_receiver(self, receiver):
        self.receivers.remove(receiver)

    def _unregister_data_receiver(self, receiver):
        assert receiver not in self.receivers

    async def _send_rtp(self, data):
        self.sent += RtcpPacket.parse(data)

    async def _send_data(self, data):
        self.sent.append(data)


class SlowDecoder:
    """Is at its first frame until its gate opens."""

    def __init__(self):
        self.began, self.gate, self.opened, self.decoded = (
            threading.Event(),
            threading.Event(),
            0,
            0,
        )

    def decode(self, frame):
        if not self.began.is_set():
            self.began.set()
            self.opened = self.gate.wait(10)
        self.decoded += 1
        return []


async def receiving(decoder):
    """A receiver of VP8 whose first frame is at `decoder`, and how to bring it others."""
    receiver = aiortc.rtcrtpreceiver.RTCRtpReceiver("video", Wire())
    receiver._track = aiortc.rtcrtpreceiver.RemoteStreamTrack("video")
    receiver._set_rtcp_ssrc(1)
    vp8 = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97)
    await receiver.receive(RTCRtpReceiveParameters(codecs=[vp8]))
    count = 0

    async def bring(frames, key=False):
        nonlocal count
        for _ in range(frames):
            packet = RtpPacket(97, 1, sequence_number=count, timestamp=3000 * count)
            packet.payload = b"\x10" + (b"\0" if key else b"\1") * 9
            count += 1
            await receiver._handle_rtp_packet(packet, 0)

    await bring(1, key=True)
    assert await asyncio.to_thread(decoder.began.wait, 5)
    return receiver, bring


def test_frames_do_not_queue_for_a_decoder_that_is_slow(monkeypatch):
    """They are dropped, and a key frame is asked for until it comes."""
    decoder, most = SlowDecoder(), rtc_compat.MAX_WAITING
    monkeypatch.setattr(aiortc.rtcrtpreceiver, "get_decoder", lambda codec: decoder)

    async def run():
        receiver, bring = await receiving(decoder)
        waiting = receiver._RTCRtpReceiver__decoder_queue

        def asked():
            return [packet.fmt for packet in receiver.transport.sent]

        await bring(most)
        assert waiting.qsize() == most and asked() == []
        await bring(2)
        assert waiting.qsize() == 0 and asked() == [RTCP_PSFB_PLI]
        await bring(most)
        assert waiting.qsize() == 0 and asked() == 2 * [RTCP_PSFB_PLI]
        await bring(1, key=True)
        await bring(most - 1)
        assert waiting.qsize() == most and asked() == 2 * [RTCP_PSFB_PLI]
        await bring(1, key=True)
        assert waiting.qsize() == 1
        decoder.gate.set()
        while waiting.qsize():
            await asyncio.sleep(0.01)
        await receiver.stop()
        assert decoder.decoded == 2

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("gone", [True, False])
def test_a_receiver_that_stops_decodes_nothing_more_and_does_not_block(gone, monkeypatch):
    decoder = SlowDecoder()
    monkeypatch.setattr(aiortc.rtcrtpreceiver, "get_decoder", lambda codec: decoder)

    async def run():
        receiver, bring = await receiving(decoder)
        thread = receiver._RTCRtpReceiver__decoder_thread
        await bring(9)
        if gone:
            receiver._handle_disconnect()
        stopping = asyncio.create_task(receiver.stop())
        await asyncio.wait([stopping], timeout=0.2)
        assert not stopping.done()  # it waits for its thread
        decoder.gate.set()
        await stopping
        assert decoder.opened and decoder.decoded == 1 and not thread.is_alive()
        with pytest.raises(aiortc.mediastreams.MediaStreamError):
            await receiver.track.recv()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_nothing_of_data_channels_is_read():
    async def run():
        sctp = aiortc.rtcsctptransport.RTCSctpTransport(Wire())
        await sctp.start(None, 5000)
        assert sctp.transport.receivers == sctp.transport.sent == []
        await sctp.stop()

    asyncio.run(asyncio.wait_for(run(), 5))


def encoded(codec, pictures=1):
    """So many `pictures` as a receiver puts them together, of which the first is a key frame."""
    encoder, depayload = {
        "H264": (H264Encoder(), aiortc.codecs.h264.h264_depayload),
        "VP8": (Vp8Encoder(), aiortc.codecs.vpx.vp8_depayload),
    }[codec]
    for n in range(pictures):
        picture = VideoFrame.from_ndarray(np.full((360, 640, 3), 9 * n, np.uint8), format="rgb24")
        picture.pts, picture.time_base = 3000 * n, rtc_compat.fractions.Fraction(1, 90_000)
        payloads, _ = encoder.encode(picture, force_keyframe=n == 0)
        yield JitterFrame(b"".join(map(depayload, payloads)), 0)


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_key_frames_are_known(codec):
    parameters = RTCRtpCodecParameters(mimeType=f"video/{codec}", clockRate=90_000)
    found = [rtc_compat.is_key(parameters, frame) for frame in encoded(codec, 4)]
    assert found == [True, False, False, False]
    assert not rtc_compat.is_key(parameters, JitterFrame(b"", 0))


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
    decoder = {
        "H264": aiortc.codecs.h264.H264Decoder,
        "VP8": aiortc.codecs.vpx.Vp8Decoder,
    }[codec]
    (data,) = encoded(codec)
    assert len(decoder().decode(data)) == 1
    monkeypatch.setattr(rtc_compat, "MAX_PIXELS", 100_000)
    with pytest.raises(av.FFmpegError):
        decoder().decode(data)


def test_the_answer_asks_chrome_for_a_picture_of_full_size():
    sdp = "v=0\r\na=rtpmap:96 VP8/90000\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n"
    sdp += "a=rtpmap:102 H264/90000\r\na=fmtp:102 packetization-mode=1\r\n"
    lines = answer_sdp(sdp, kbps=(1, 2, 3)).splitlines()
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
