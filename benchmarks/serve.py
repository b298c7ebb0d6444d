"""What `lsd serve` reaches on this machine: glass to glass in a browser, overload, memory, fuzz.

python -m benchmarks.serve --json out/serve.json

Starts its own server on loopback. Every figure is measured, by the clock of this machine, with the
server, the browser and the clients sharing its cores. `--seconds`, `--soak`, `--overload` and
`--fuzz` set how long it takes; 0 leaves one out. `--faults` kills an engine, lets a client vanish,
and puts numbers that are none into the shipped checkpoint's stream. Exit code 1 says that something
was seen that must not be; `broken` in the report names it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks import serve_faults, serve_fuzz, serve_load, serve_uploads
from lsd_jax.reports import provenance, write_json

PASS = "lsd_jax.live.passthrough:PassThroughModel"
SHIPPED = "lsd_jax.live.video:VideoModel"
FLAGS = ["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
TELLING_S, GROWTH_MIB = 600, 1.0  # a soak that says something, and MiB an hour and session
SLOT_BACK_S, VANISHED_S, CAMERA_HZ = 5.0, 10.0, 30
PASS_MS, PASS_PIXELS = {"p50": 50.0, "p99": 100.0}, 640 * 360  # glass to glass, without a step
FIRST_FRAME_MS, LARGE_FPS, REFUSED_MS, CROWDED_RATIO = 1000.0, 25.0, 100.0, 1.2
KINDS = list(serve_fuzz.COUNTS)
STAMP_JS = Path(__file__).with_name("serve_stamps.js")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=PASS)
    parser.add_argument("--size", default="640x360", help="of the pictures, for the pass-through")
    parser.add_argument("--step-ms", type=float, default=0.0, help="a step's time, pass-through")
    parser.add_argument("--seconds", type=float, default=15.0, help="of glass to glass")
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--soak", type=float, default=60.0, help="seconds of sessions, for memory")
    parser.add_argument("--fps", type=float, default=30.0, help="of a session in the soak, at most")
    parser.add_argument(
        "--fuzz", type=float, default=0.02, help="1: a million datagrams, and so on"
    )
    parser.add_argument("--fuzz-kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--overload", type=float, default=8.0, help="seconds of overload")
    parser.add_argument("--faults", action="store_true", help="half a minute of faults")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--json")
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    options = [f"width={width}", f"height={height}", f"step_ms={args.step_ms}"]
    report: dict = {"model": args.model, "size": [width, height], "kind": "measured"}
    with server(args.model, args.sessions, options if args.model == PASS else []) as (url, pid):
        if args.chromium and args.seconds:
            report |= glass_to_glass(url, args.chromium, args.seconds, width, height)
            if args.step_ms:
                report["latency_bound_ms"] = 2 * 1000 / CAMERA_HZ + args.step_ms
        report["sessions"] = args.sessions
        if args.soak:
            count, fps = args.sessions, args.fps
            soak = serve_load.soak(url, pid, count, args.soak, width, height, fps)
            report |= asyncio.run(soak)
        if args.overload:
            overload = serve_load.overload(url, args.sessions, width, height, args.overload)
            report["overload"] = asyncio.run(overload)
        if args.faults:
            report["vanished"] = asyncio.run(serve_faults.vanish(url, width, height))
        report["recompiles"] = metric(url, "lsd_recompiles_total")
    if args.fuzz:
        takes_pictures = serve_uploads.MODEL if args.model == PASS else args.model
        own = options if args.model == PASS else []
        with server(takes_pictures, args.sessions, own) as (url, pid):
            fuzz = serve_fuzz.fuzz(url, pid, args.fuzz, width, height, args.fuzz_kinds)
            report["fuzz"] = asyncio.run(fuzz)
            report["recompiles"] += metric(url, "lsd_recompiles_total")
    if args.faults:
        for model, key in {args.model: "engine_killed", SHIPPED: "shipped_engine_killed"}.items():
            own = options if model == PASS else []
            with server(model, 2, own, engines=2) as (url, pid):
                work = serve_faults.recovery(url, pid, 2, width, height)
                report[key] = {"model": model, **asyncio.run(work)}
        with server(serve_faults.POISONED, 2, []) as (url, _):
            report["nonfinite"] = asyncio.run(serve_faults.nonfinite(url, width, height))
    report["broken"] = broken(report)
    report |= {"load_average": os.getloadavg()[0], **provenance()}
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, report)
    print(json.dumps(report, indent=1))
    return int(bool(report["broken"]))


def broken(report: dict) -> list[str]:
    """What was seen that must not be."""
    fuzz, crowd = report.get("fuzz", {}), report.get("overload", {})
    killed = [report[key] for key in ("engine_killed", "shipped_engine_killed") if key in report]
    glass, step = report.get("glass_to_glass_ms", {}), report.get("step_ms") or {}
    small = math.prod(report.get("size", (0, 0))) <= PASS_PIXELS
    quick = step.get("p50", 0.0) < 1000 / LARGE_FPS
    growth = report.get("rss_growth_mib_per_hour_session", 0.0)
    bound_ms = report.get("latency_bound_ms", math.inf)
    long_and_late = report.get("seconds", 0) >= TELLING_S and glass.get("p99", 0.0) > bound_ms
    found = {
        "an engine was lost to junk": fuzz.get("engine_restarts", 0) > 0,
        "a session beside junk lost pictures": fuzz.get("bystander_lost", 0) > 0,
        "junk was refused without a word": fuzz.get("untyped_refusals", 0) > 0,
        "something was compiled while it served": report["recompiles"] > 0,
        "a slow model fell behind its camera": long_and_late,
        "memory grew": report.get("soak_s", 0) >= TELLING_S and growth > GROWTH_MIB,
        "glass to glass took longer than transport may and the step": small
        and any(glass.get(q, 0.0) > ms + step.get(q, 0.0) for q, ms in PASS_MS.items()),
        "the first frame came late": report.get("time_to_first_frame_ms", 0.0) >= FIRST_FRAME_MS,
        "large pictures came too seldom": not small
        and quick
        and report.get("fps", math.inf) < LARGE_FPS,
        "refusals came late": crowd.get("refused_ms", {}).get("p99", 0.0) >= REFUSED_MS,
        "a crowd at the door delayed those inside": crowd.get("p99_ratio", 0.0) > CROWDED_RATIO,
        "a session among others was not what it is alone": report.get("soak_as_alone", {}).get(
            "different", 0
        )
        > 0,
        "a killed engine took pictures of others": any(one["others_lost"] > 0 for one in killed),
        "a killed engine's slots came back late": any(
            one["slot_back_s"] > SLOT_BACK_S for one in killed
        ),
        "a vanished client held its slot": report.get("vanished", {}).get("slot_free_after_s", 0)
        > VANISHED_S,
        "what is not finite was not noticed, or not healed": any(
            not 0 < one["last_good_shown_again"] == one["counted"] <= 3
            for one in report.get("nonfinite", {}).values()
        ),
    }
    return [words for words, seen in found.items() if seen]


@contextmanager
def server(model: str, slots: int | None, options: list[str], engines: int = 1):
    """A running `lsd serve`: its address and process id. `slots` is None for a model that takes no
    settings."""
    command = [sys.executable, "-m", "lsd_jax.cli.main", "serve", model, "--port", "0"]
    command += ["--engines", str(engines), "--opens-per-minute", "1000000"]
    command += ["--max-session-s", "100000"]
    command += ["--slots", str(slots)] if slots else []
    command += [x for option in options for x in ("--option", option)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise RuntimeError("the server has no output")
        url = process.stdout.readline().split("; ")[1].split()[0]
        if "ready" not in process.stdout.readline():
            raise ValueError("the server did not become ready; its own words say why")
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def glass_to_glass(url: str, chromium: str, seconds: float, width: int, height: int) -> dict:
    """From a picture drawn in a browser to its return there, by stamps in its pixels."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        page.goto(url)
        found = page.evaluate(STAMP_JS.read_text(), [seconds, width, height])
        browser.close()
    latency = np.array(found["latency_ms"] or [np.nan])
    dropped = metric(url, "lsd_frames_dropped_total")
    return {
        "glass_to_glass_ms": {
            "p50": float(np.percentile(latency, 50)),
            "p99": float(np.percentile(latency, 99)),
            "max": float(latency.max()),
        },
        "first_to_last_third_ms": [
            float(np.median(third)) for third in np.array_split(latency, 3)[::2]
        ],
        "seconds": seconds,
        "step_ms": found["step_ms"],
        "time_to_first_frame_ms": found["first_frame_ms"],
        "fps": found["frames"] / seconds,
        "unreadable_stamps": found["unreadable"],
        "dropped": dropped,
    }


def metric(url: str, name: str) -> float:
    """The sum of a metric over its labels."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith((name + "{", name + " ")))


if __name__ == "__main__":
    sys.exit(main())
