"""Session descriptions: what is refused of a peer's, and what ours ask Chrome for."""

from __future__ import annotations

import re

MAX_SDP, MAX_SECTIONS, MAX_CANDIDATES = 100_000, 8, 64


def check_sdp(sdp: str, what: str) -> list[str]:
    """The candidates of a description. Raises ValueError where that is plainly no browser's."""
    if len(sdp) > MAX_SDP:
        raise ValueError(f"the {what} has more than {MAX_SDP:,} characters; send a browser's")
    lines = sdp.splitlines()  # as aiortc does, at more characters than a browser's line ends
    if sum(line.startswith("m=") for line in lines) > MAX_SECTIONS:
        raise ValueError(f"the {what} has more than {MAX_SECTIONS} media sections; send one")
    for wanted in ("a=fingerprint:", "a=ice-ufrag:", "a=ice-pwd:"):
        if not any(line.startswith(wanted) for line in lines):
            raise ValueError(f"the {what} has no {wanted[:-1]}; send a browser's")
    return [line for line in lines if line.startswith("a=candidate:")]


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
