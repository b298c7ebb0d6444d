"""The timeline against published measurements, and against what must follow from its rules."""

import itertools
import json

import numpy as np
import pytest

from lsd_jax.hw import chips
from nki_kernels import sim
from nki_kernels.sim import calibration, report
from nki_kernels.sim import collectives as nccl
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl
from nki_kernels.sim.timeline import schedule

TRN2 = chips.load("trn2")


def timed(body, chip=TRN2, order="overlapped", **options):
    def kernel():
        out = nl.ndarray((1, 1), nl.float32, nl.shared_hbm)
        body()
        return out

    traces = sim.run(sim.jit(kernel), (), chip, numerics=False, **options).traces
    return schedule(traces, chip, order)[0]


@pytest.fixture(scope="module")
def points():
    return calibration.points(TRN2)


def test_published_points_hold(points):
    off = [f"{p.name}: {p.modelled:.4g} not in [{p.low:.4g}, {p.high:.4g}]" for p in points
           if not p.holds]  # fmt: skip
    assert len(points) == 14 and off == []


def test_a_wrong_chip_breaks_the_published_points():
    slow = TRN2.with_numbers({
        "pe_clock": chips.Number(1.2e9, "Hz", "half", "assumed"),
        "dma_row_ns": chips.Number(216.0, "ns", "twice", "assumed"),
    })  # fmt: skip
    broken = {p.name.split()[0] for p in calibration.points(slow) if not p.holds}
    assert {"matmul", "DMA"} <= broken


def test_engines_work_at_once_and_dependents_wait():
    def independent():
        a, b = (nl.ndarray((128, 512), nl.float32) for _ in range(2))
        nisa.memset(dst=a, value=0.0)
        nisa.memset(dst=b, value=0.0, engine=nisa.engine.gpsimd)

    def dependent():
        a, b = (nl.ndarray((128, 512), nl.float32) for _ in range(2))
        nisa.memset(dst=a, value=0.0)
        nisa.tensor_copy(dst=b, src=a, engine=nisa.engine.gpsimd)

    vector = (512 + 140) / 0.96
    pool = (2 * 512 + 150) / 1.2
    assert timed(independent).total_ns == pytest.approx(max(vector, pool))
    assert timed(dependent).total_ns == pytest.approx(vector + 25 + pool)
    assert timed(independent, order="serial").total_ns == pytest.approx(vector + pool)


def test_matmuls_that_accumulate_follow_without_latency():
    def body(several):
        w = nl.ndarray((128, 128), nl.bfloat16)
        x = nl.ndarray((128, 512), nl.bfloat16)
        bank = nl.ndarray((128, 512), nl.float32, nl.psum)
        for i in range(several):
            nisa.nc_matmul(dst=bank, stationary=w, moving=x, accumulate=i > 0)

    one, ten = (timed(lambda n=n: body(n)).total_ns for n in (1, 10))
    assert ten - one == pytest.approx(9 * 512 / 2.4)
    assert timed(lambda: body(10)).flops == 10 * 2 * 128 * 128 * 512


def test_regions_are_boxes_of_partitions_and_bytes():
    def body(second):
        a, b = nl.ndarray((128, 128), nl.float32), nl.ndarray((64, 64), nl.float32)
        nisa.memset(dst=a[0:64, 0:64], value=0.0)
        nisa.memset(dst=b, value=0.0, engine=nisa.engine.gpsimd)
        nisa.tensor_copy(dst=b, src=a[second], engine=nisa.engine.gpsimd)

    other_columns = timed(lambda: body((slice(0, 64), slice(64, 128)))).spans
    other_rows = timed(lambda: body((slice(64, 128), slice(0, 64)))).spans
    same = timed(lambda: body((slice(0, 64), slice(0, 64)))).spans
    assert other_columns[2].why == other_rows[2].why == 1 and same[2].why == 0


def test_transfers_share_the_memory():
    def body(number):
        for _ in range(number):
            tile = nl.ndarray((128, 8192), nl.uint8)
            nisa.dma_copy(dst=tile, src=nl.ndarray((128, 8192), nl.uint8, nl.hbm))

    one, eight = (timed(lambda n=n: body(n)) for n in (1, 8))
    size = 128 * 8192
    assert eight.hbm_bytes == 8 * size
    assert eight.total_ns - one.total_ns == pytest.approx(7 * size / 318, rel=0.01)
    assert 0 < eight.mbu < 1


def test_a_ring_of_one_buffer_cannot_prefetch():
    def body(size):
        ring = [nl.ndarray((128, 4096), nl.bfloat16) for _ in range(size)]
        w = nl.ndarray((128, 128), nl.bfloat16)
        bank = nl.ndarray((128, 512), nl.float32, nl.psum)
        for i in range(12):
            nisa.dma_copy(dst=ring[i % size], src=nl.ndarray((128, 4096), nl.bfloat16, nl.hbm))
            for j in range(16):
                nisa.nc_matmul(
                    dst=bank, stationary=w,
                    moving=ring[i % size][:, j % 8 * 512 : j % 8 * 512 + 512], accumulate=False,
                )  # fmt: skip

    one, three = (timed(lambda n=n: body(n)).total_ns for n in (1, 3))
    assert one > 1.5 * three


def test_function_tables_are_loaded_when_they_change():
    def body():
        a = nl.ndarray((128, 128), nl.float32)
        for op in ("exp", "square", "exp", "gelu", "copy", "gelu_apprx_tanh", "exp"):
            nisa.activation(dst=a, op=op, data=a)

    assert timed(body).table_loads == 3


def test_ranks_meet_at_collectives():
    group = nccl.ReplicaGroup([[0, 1]])

    def kernel(work):
        out = nl.ndarray((1, 1), nl.float32, nl.shared_hbm)
        a, b = nl.zeros((128, 16), nl.float32), nl.ndarray((128, 16), nl.float32)
        slow = nl.ndarray((128, 4096), nl.float32)
        for _ in range(8 * nccl.rank_id()):  # rank 1 comes late
            nisa.memset(dst=slow, value=0.0)
        nisa.memset(dst=a, value=1.0)
        nccl.all_reduce([a], [b], group, nl.add)
        nisa.dma_copy(dst=out, src=b[0:1, 0:1])
        return out

    arguments = [(np.zeros(1),)] * 2
    done = sim.run(sim.jit(kernel), arguments, TRN2, ranks=2)
    assert [float(o.item()) for o in done.outputs] == [2.0, 2.0]
    first, second = schedule(done.traces, TRN2)
    meeting = [next(s.start for s in t.spans if s.lane == "cc") for t in (first, second)]
    assert meeting[0] == meeting[1] > 8 * 4096 / 0.96


def test_the_critical_path_adds_up_to_the_total():
    def body():
        a = nl.ndarray((128, 512), nl.float32)
        nisa.dma_copy(dst=a, src=nl.ndarray((128, 512), nl.float32, nl.hbm))
        nisa.activation(dst=a, op="exp", data=a)
        nisa.tensor_scalar(dst=a, data=a, op0="add", operand0=1.0)

    timeline = timed(body)
    path = timeline.critical_path()
    assert sum(path.values()) == pytest.approx(timeline.total_ns)
    assert path["dma"] > 0 and path["act"] > 0 and path["dve"] > 0 and path["wait"] > 1900


def test_a_trace_has_a_process_for_each_core_and_a_thread_for_each_dma_engine(tmp_path):
    def kernel():
        out = nl.ndarray((128, 64), nl.float32, nl.shared_hbm)
        for _ in range(4):
            a = nl.ndarray((20, 512), nl.float32)
            nisa.dma_copy(dst=a, src=nl.shared_constant(np.zeros((20, 512), np.float32)))
        nisa.core_barrier(out)
        nisa.dma_copy(dst=out, src=nl.zeros((128, 64), nl.float32))
        return out

    traces = sim.run(sim.jit(kernel)[2], (), TRN2).traces
    timelines = schedule(traces, TRN2)
    report.write_chrome_trace(tmp_path / "t.json", *timelines)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    cores = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert cores == ["core 0", "core 1"]
    busy = {}
    for e in events:
        if e["ph"] == "X":
            busy.setdefault((e["pid"], e["tid"]), []).append((e["ts"], e["ts"] + e["dur"]))
    assert len(busy) == 2 * (2 + 16)  # VectorE, the barrier's lane and the DMA engines
    for spans in busy.values():  # a thread does one thing at a time
        spans.sort()
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(spans))


def test_software_descriptors_of_a_place_known_at_run_time_cost_more():
    def body(mode, dynamic):
        source, row = nl.shared_constant(np.zeros((4, 64), np.float32)), nl.zeros((1, 1), nl.int32)
        place = source.ap(pattern=[[64, 1], [1, 64]], scalar_offset=row if dynamic else None)
        nisa.dma_copy(dst=nl.ndarray((1, 64), nl.float32), src=place, dge_mode=mode)

    def issue(mode, dynamic):
        timeline = timed(lambda: body(mode, dynamic))
        return timeline.busy_ns["pool" if mode is nisa.dge_mode.swdge else "sp"]

    software, hardware = nisa.dge_mode.swdge, nisa.dge_mode.hwdge
    assert issue(software, True) - issue(software, False) == pytest.approx(1030 - 650)
    assert issue(hardware, True) == issue(hardware, False)


def test_the_band_holds_the_value_and_reports_are_written(tmp_path):
    def kernel():
        out = nl.ndarray((128, 512), nl.float32, nl.shared_hbm)
        a = nl.zeros((128, 512), nl.float32)
        nisa.tensor_tensor(dst=a, data1=a, data2=a, op="add")
        nisa.dma_copy(dst=out, src=a)
        return out

    traces = sim.run(sim.jit(kernel), (), TRN2, numerics=False).traces
    figures = report.figures(traces, TRN2)
    assert figures["us_low"] < figures["us"] < figures["us_high"]
    assert figures["us_serial"] > 0 and figures["instructions"] == 3
    timeline = schedule(traces, TRN2)[0]
    report.write_chrome_trace(tmp_path / "t.json", timeline)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    shown = [(e["name"], threads[e["tid"]]) for e in events if e["ph"] == "X"]
    copies = [("dma_copy", f"DMA {i}") for i in range(16)]
    assert shown == [("memset", "VectorE"), ("tensor_tensor", "VectorE"), *copies]
    report.write_picture(tmp_path / "t.png", timeline)
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert {p.name for p in tmp_path.iterdir()} == {"t.json", "t.png"}
