"""What aiortc 1.16 needs to be a real-time server; the only module that reaches into it.

`install()` mends seven things, once per process, and refuses versions that it was not written for:

1. The jitter buffer gives a frame out only when the next one's first packet has come: a frame late.
   Here it comes with its RTP marker.
2. The receiver queues decoded frames without bound. Here the newest replaces what waits.
3. It queues frames for its decoder without bound too, and a receiver that stops decodes them all
   while the event loop waits. Here a decoder that does not keep up goes on at the next key frame,
   and one that stops leaves out what waits.
4. H.264 is encoded with x264's preset `medium` and level 3.1 at any size. Here `superfast`, and the
   level is x264's to choose.
5. Bitrates are capped at 1.5 and 3 Mb/s. Here at 5 and 8.
6. One empty datagram from anyone closes a session. Here only the peer's datagrams pass.
7. Data channels hold up the event loop, for seconds by one packet that tells of many gaps, and take
   messages without bound. Here they are negotiated, as LiveKit's clients want, and never open.

Besides, sent video asks receivers for no playout delay, and pictures of more than `MAX_PIXELS` are
not decoded.
"""

from __future__ import annotations

import asyncio
import fractions
import logging
import queue
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import aioice.ice
import aiortc
import aiortc.codecs
import aiortc.codecs.h264
import aiortc.codecs.vpx
import aiortc.jitterbuffer
import aiortc.rtcrtpreceiver
import aiortc.rtp
import av
from aiortc.codecs.h264 import H264Decoder, H264Encoder
from aiortc.codecs.vpx import Vp8Decoder, Vp8Encoder
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtcsctptransport import RTCSctpTransport
from av.video.frame import PictureType

_log = logging.getLogger("lsd.rtc")
VERSION = "1.16"
PLAYOUT_DELAY = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
H264_BPS, VP8_BPS = (300_000, 2_000_000, 8_000_000), (250_000, 1_200_000, 5_000_000)
"""Least, first and most bits per second of a sender."""
MAX_PIXELS = 3840 * 2160
"""Of a picture in: a stranger's codec could ask for half a gigabyte a picture."""
MAX_WAITING = 16
"""Frames before a decoder: half a second of a camera's."""

_installed = False


def install() -> None:
    """Mends aiortc in this process. Raises RuntimeError for another version than `VERSION`."""
    global _installed
    if _installed:
        return
    if not aiortc.__version__.startswith(VERSION + "."):
        raise RuntimeError(
            f"aiortc {aiortc.__version__} is not {VERSION}; install 'aiortc>=1.16,<1.17'"
        )
    _replace(JitterBuffer, _remove_frame=_frame_at_marker)
    _replace(aiortc.rtcrtpreceiver.RemoteStreamTrack, __init__=_init_track)
    _replace(RTCRtpReceiver, __init__=_init_receiver, stop=_stop_receiver)
    _replace(RTCRtpReceiver, _RTCRtpReceiver__stop_decoder=_end_decoder)
    _replace(RTCSctpTransport, start=_start_nothing)
    _replace(H264Encoder, _encode_frame=_encode_h264, encode=_timed(H264Encoder.encode))
    _replace(Vp8Encoder, encode=_timed(Vp8Encoder.encode))
    _replace(H264Decoder, __init__=_init_decoder(H264Decoder))
    _replace(Vp8Decoder, __init__=_init_decoder(Vp8Decoder))
    _replace(aioice.ice.StunProtocol, datagram_received=_guarded_datagram)
    for module, (least, first, most) in (
        (aiortc.codecs.h264, H264_BPS),
        (aiortc.codecs.vpx, VP8_BPS),
    ):
        _replace(module, MIN_BITRATE=least, DEFAULT_BITRATE=first, MAX_BITRATE=most)
    _ask_for_no_playout_delay()
    _installed = True


def _replace(owner: Any, **attributes: Any) -> None:
    """Sets attributes that `owner` has already; another version may not have them."""
    for name, value in attributes.items():
        if not hasattr(owner, name):
            raise RuntimeError(f"aiortc's {owner.__name__} has no {name} any more")
        setattr(owner, name, value)


_frame_when_next_came = JitterBuffer._remove_frame
_init_unbounded_track = aiortc.rtcrtpreceiver.RemoteStreamTrack.__init__
_init_unbounded_receiver = RTCRtpReceiver.__init__
_stop_without_decoder = RTCRtpReceiver.stop
_unguarded_datagram = aioice.ice.StunProtocol.datagram_received


def _frame_at_marker(self: Any, sequence_number: int) -> JitterFrame | None:
    """The next frame: by the stock rule, or because all its packets have come, up to the last,
    which bears the marker."""
    frame = _frame_when_next_came(self, sequence_number)
    if frame is not None or not self._is_video or self._prefetch:
        return frame
    packets, timestamp = [], None
    for count in range(self.capacity):
        packet = self._packets[(self._origin + count) % self.capacity]
        if packet is None or timestamp not in (None, packet.timestamp):
            return None
        timestamp = packet.timestamp
        packets.append(packet)
        if packet.marker:
            self.remove(len(packets))
            return JitterFrame(data=b"".join(p._data for p in packets), timestamp=timestamp)
    return None


class NewestQueue(asyncio.Queue):
    """A queue of at most one frame, beside the None that ends it."""

    def __init__(self):
        super().__init__()
        self.dropped = 0

    async def put(self, item: Any) -> None:
        """Replaces what waits; the end stays the end."""
        if item is not None:
            while not self.empty():
                waiting = self.get_nowait()
                if waiting is None:
                    item = None
                    break
                self.dropped += 1
        self.put_nowait(item)


def _init_track(self: Any, kind: str, id: str | None = None) -> None:
    _init_unbounded_track(self, kind, id)
    self._queue = NewestQueue()


def dropped(track: Any) -> int:
    """Decoded frames of a received track that a newer one has replaced."""
    return track._queue.dropped


class DecoderQueue(queue.Queue):
    """Frames that wait for a decoder. Where it does not keep up they are dropped, and so are all
    that come before the next key frame, for which the peer is asked."""

    def __init__(self, ask: threading.Event):
        super().__init__()
        self._ask, self._lost = ask, 0

    def _put(self, item: Any) -> None:
        full = len(self.queue) >= MAX_WAITING
        if item is None or full:
            self.queue.clear()
        if item is None or is_key(*item):
            self._lost = 0
        elif full or self._lost:
            if self._lost % MAX_WAITING == 0:  # again and again: what asks may be lost
                self._ask.set()
            self._lost += 1
            return
        self.queue.append(item)


_IDR = re.compile(rb"\x00\x00\x01[\x05\x25\x45\x65]")
"""A NAL unit of type 5, of any importance."""


def is_key(codec: Any, frame: JitterFrame) -> bool:
    """Whether `frame`, encoded by `codec`, can be decoded without those before it."""
    if codec.name == "H264":
        return _IDR.search(frame.data) is not None
    return codec.name != "VP8" or (frame.data != b"" and not frame.data[0] & 1)  # RFC 6386, 9.1


def _init_receiver(self: Any, kind: str, transport: Any) -> None:
    _init_unbounded_receiver(self, kind, transport)
    self._RTCRtpReceiver__decoder_queue = DecoderQueue(self._RTCRtpReceiver__decoder_error)
    self._ending = None


def _end_decoder(self: Any) -> None:
    """Has the decoder end after the frame that it is at, and does not wait for it."""
    if thread := self._RTCRtpReceiver__decoder_thread:
        self._RTCRtpReceiver__decoder_queue.put(None)
        self._RTCRtpReceiver__decoder_thread, self._ending = None, thread


async def _stop_receiver(self: Any) -> None:
    await _stop_without_decoder(self)
    if self._ending:
        await asyncio.to_thread(self._ending.join)


async def _start_nothing(self: Any, remoteCaps: Any, remotePort: int) -> None:
    """Leaves the transport of data channels as it is, so that nothing of SCTP is ever read."""


def offered_direction(transceiver: Any) -> str | None:
    """What the offer would have a transceiver do, seen from here."""
    return transceiver._offerDirection


class Encoding(NamedTuple):
    """How a sender encodes now."""

    target_bps: int
    encode_s: float  # of the frame before


def encoding(sender: Any) -> Encoding | None:
    """How a sender of video encodes, once it has sent a frame. Receivers move the target by REMB,
    within the bounds above."""
    encoder = sender._RTCRtpSender__encoder
    if encoder is None or not hasattr(encoder, "encode_s"):
        return None
    return Encoding(encoder.target_bitrate, encoder.encode_s)


def _timed(encode: Any) -> Any:
    def timed(self: Any, frame: Any, force_keyframe: bool = False) -> Any:
        started = time.perf_counter()
        made = encode(self, frame, force_keyframe)
        self.encode_s = time.perf_counter() - started
        return made

    return timed


def _init_decoder(decoder: Any) -> Any:
    unbounded = decoder.__init__

    def init(self: Any) -> None:
        unbounded(self)
        self.codec.options = {"max_pixels": str(MAX_PIXELS)}

    return init


def _encode_h264(self: Any, frame: av.VideoFrame, force_keyframe: bool) -> Iterator[bytes]:
    """One picture as NAL units; the encoder is made anew when size or bitrate change much."""
    codec = self.codec
    if codec and (
        (frame.width, frame.height) != (codec.width, codec.height)
        or not 0.8 < self.target_bitrate / codec.bit_rate < 1.25
    ):
        codec = None
    if codec is None:
        codec = self.codec = av.CodecContext.create("libx264", "w")
        codec.width, codec.height = frame.width, frame.height
        codec.bit_rate = self.target_bitrate
        codec.pix_fmt = "yuv420p"
        codec.framerate = fractions.Fraction(30)
        codec.time_base = fractions.Fraction(1, 90_000)
        codec.thread_count = 1
        codec.options = {
            "preset": "superfast",
            "tune": "zerolatency",
            "maxrate": str(self.target_bitrate),
            "bufsize": str(self.target_bitrate // 2),
            "g": "300",
        }
        codec.profile = "Baseline"
    frame.pict_type = PictureType.I if force_keyframe else PictureType.NONE
    yield from self._split_bitstream(b"".join(bytes(packet) for packet in codec.encode(frame)))


def _guarded_datagram(self: Any, data: bytes | str, addr: tuple[Any, ...]) -> None:
    """Drops what no peer of this session sends, and survives what it does."""
    content = data.encode() if isinstance(data, str) else data
    if not content:
        return
    if content[0] >= 20:  # not STUN (RFC 7983): DTLS or RTP, from the peer alone
        pairs = getattr(self.receiver, "_check_list", ())
        if not any(pair.remote_addr[:2] == addr[:2] for pair in pairs):
            return
    try:
        _unguarded_datagram(self, content, addr)
    except Exception as error:  # whatever a stranger's bytes may raise
        _log.debug("a datagram from %s was dropped: %r", addr[0], error)


def _ask_for_no_playout_delay() -> None:
    """Negotiates the playout-delay extension for video, and sends (0, 0) with each packet."""
    extensions = aiortc.codecs.HEADER_EXTENSIONS["video"]
    kinds = aiortc.codecs.HEADER_EXTENSIONS.values()  # which share a connection, and its ids
    used = {extension.id for kind in kinds for extension in kind}
    free = next(id for id in range(1, 15) if id not in used)
    extensions.append(RTCRtpHeaderExtensionParameters(id=free, uri=PLAYOUT_DELAY))
    cls: Any = aiortc.rtp.HeaderExtensionsMap
    configure, pack = cls.configure, cls.set

    def configured(self, parameters):
        configure(self, parameters)
        for extension in parameters.headerExtensions:
            if extension.uri == PLAYOUT_DELAY:
                self.playout_delay_id = extension.id

    def packed(self, values):
        profile, content = pack(self, values)
        id = getattr(self, "playout_delay_id", None)
        if id is None or values.audio_level is not None:
            return profile, content
        found = aiortc.rtp.unpack_header_extensions(profile, content)
        return aiortc.rtp.pack_header_extensions([*found, (id, b"\0\0\0")])

    cls.configure, cls.set = configured, packed
