"""The server's counters and clocks, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Everything that `/metrics` shows, of one server."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()

        def counter(name, text, *labels):
            return Counter(f"lsd_{name}", text, labels, registry=registry)

        def gauge(name, text, *labels):
            return Gauge(f"lsd_{name}", text, labels, registry=registry)

        def histogram(name, text, *labels):
            return Histogram(f"lsd_{name}", text, labels, buckets=_SECONDS, registry=registry)

        self.sessions_active = gauge("sessions_active", "Sessions that hold a slot")
        self.slots = gauge("slots_total", "Slots of all engines that are ready")
        self.queue = gauge("queue_size", "Clients that wait for a slot")
        self.engines_ready = gauge("engines_ready", "Engines that have loaded their model")
        self.engine_starts = counter("engine_starts_total", "Starts of an engine's process")
        self.rejected = counter("sessions_rejected_total", "Sessions refused", "reason")
        self.ended = counter("session_end_total", "Sessions ended", "reason")
        self.frames_in = counter("frames_in_total", "Pictures that clients have sent")
        self.frames_out = counter("frames_out_total", "Pictures sent to clients")
        self.dropped = counter(
            "frames_dropped_total", "Pictures that a newer one replaced", "where"
        )
        self.bad_frames = counter("frames_refused_total", "Pictures that did not decode")
        self.inputs = counter("inputs_total", "Inputs, by how they were answered", "code")
        self.nonfinite = counter("nonfinite_total", "Frames out that were not finite")
        self.recompiles = gauge("recompiles_total", "Compilations after an engine was ready")
        self.step_seconds = histogram("step_seconds", "Duration of a step")
        self.frame_age = histogram("frame_age_seconds", "Picture received, to its result sent")
        self.stage = histogram("stage_seconds", "Duration of a stage of a frame", "stage")
        self.ttff = histogram("ttff_seconds", "Session opened, to its first frame out")
        self.bwe = gauge("bwe_bps", "Bits per second that a receiver takes, as last encoded for")
        self.input_size = gauge("input_resolution", "Size of the newest picture in", "side")

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
