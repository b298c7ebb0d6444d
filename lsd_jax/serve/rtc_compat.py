"""What aiortc 1.16 needs to be a real-time server; the only module that reaches into it.

`install()` mends six things, once per process, and refuses versions that it was not written for:

1. The jitter buffer gives a frame out only when the next one's first packet has come: a frame late.
   Here it comes with its RTP marker.
2. The receiver queues decoded frames without bound. Here the newest replaces what waits.
3. H.264 is encoded with x264's preset `medium` and level 3.1 at any size. Here `superfast`, and the
   level is x264's to choose.
4. Bitrates are capped at 1.5 and 3 Mb/s. Here at 5 and 8.
5. Chrome starts at 300 kb/s and sends small pictures for long, and of several sizes (simulcast)
   only the smallest. `answer_sdp` asks for more.
6. One empty datagram from anyone closes a session. Here only the peer's datagrams pass.

Besides, sent video asks receivers for no playout delay, and pictures of more than `MAX_PIXELS` are
not decoded.
"""

from __future__ import annotations

import asyncio
import fractions
import logging
import re
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
from av.video.frame import PictureType

_log = logging.getLogger("lsd.rtc")
VERSION = "1.16"
PLAYOUT_DELAY = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
H264_BPS, VP8_BPS = (300_000, 2_000_000, 8_000_000), (250_000, 1_200_000, 5_000_000)
"""Least, first and most bits per second of a sender."""
MAX_PIXELS = 3840 * 2160
"""Of a picture in: a stranger's codec could ask for half a gigabyte a picture."""

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


def answer_sdp(sdp: str, offer: str = "", kbps: tuple[int, int, int] = (600, 2500, 6000)) -> str:
    """`sdp`, the answer to `offer`, asking Chrome to send its video with these least, first and
    most kb/s, and of several sizes the largest, so that a camera arrives at its own size at once.
    """
    hints = "x-google-min-bitrate={};x-google-start-bitrate={};x-google-max-bitrate={}".format(
        *kbps
    )
    payloads = re.findall(r"^a=rtpmap:(\d+) (?:H264|VP8)/90000", sdp, re.MULTILINE)
    lines = []
    for line in sdp.splitlines():
        found = re.match(r"a=fmtp:(\d+) (.*)", line)
        if found and found[1] in payloads:
            line = f"{line};{hints}"
            payloads.remove(found[1])
        lines.append(line)
    for payload in payloads:  # VP8 has no fmtp of its own
        at = next(i for i, line in enumerate(lines) if line.startswith(f"a=rtpmap:{payload} "))
        lines.insert(at + 1, f"a=fmtp:{payload} {hints}")
    return _largest_alone("\r\n".join(lines) + "\r\n", offer)


_STREAM_ID = r"^a=extmap:(\d{1,3})(?:/\w{1,9})? (urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id)\r?$"
_RANK = "fhq"
"""Names that LiveKit's clients give the sizes that they send, from the largest."""


def _largest_alone(answer: str, offer: str) -> str:
    """`answer` asking for the largest of the sizes that each video section of `offer` would send:
    one that says nothing of them is sent the smallest."""
    asked: dict[str, str] = {}
    for section in offer.split("\r\nm=")[1:]:
        sizes = set(re.findall(r"^a=rid:(\w+) send", section, re.MULTILINE))
        named = re.search(_STREAM_ID, section, re.MULTILINE)
        mid = re.search(r"^a=mid:(\S+)", section, re.MULTILINE)
        largest = next((size for size in _RANK if size in sizes), None)
        if largest and named and mid:
            asked[mid[1]] = (
                f"a=extmap:{named[1]} {named[2]}\r\na=rid:{largest} recv\r\n"
                f"a=simulcast:recv {largest}\r\n"
            )
    head, *sections = re.split(r"(?=^m=)", answer, flags=re.MULTILINE)
    for n, section in enumerate(sections):
        mid = re.search(r"^a=mid:(\S+)", section, re.MULTILINE)
        sections[n] = section + asked.get(mid[1] if mid else "", "")
    return head + "".join(sections)
