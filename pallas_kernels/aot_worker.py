"""Compiles one case for one TPU topology: the process that `aot.py` starts.

python -m pallas_kernels.aot_worker '{"topology": ..., "case": ..., "options": ...}' OUT.json
"""

from __future__ import annotations

import json
import math
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from lsd_jax.ops.partition import AXIS

SMALLEST_LAUNCH = 30  # cycles; below it an operation is scalar bookkeeping


def main(wanted: dict, out: Path) -> None:
    """Writes what was found, or `{"error": ...}` for what the compiler refuses."""
    devices = topologies.get_topology_desc(wanted["topology"], "tpu").devices[: wanted["chips"]]
    mesh = Mesh(np.array(devices), (AXIS,))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        try:
            case = pkgutil.resolve_name(wanted["case"])
            function, arguments, donated, *specs = case(**wanted["options"])
            if wanted["chips"] > 1:
                compiled = compile_shared(function, arguments, donated, specs[0], mesh)
            else:
                compiled = compile_case(function, arguments, donated, devices[0], wanted["free"])
        except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
            out.write_text(json.dumps({"error": str(error).splitlines()[0][:400]}))
            return
    out.write_text(json.dumps(figures(compiled)))


def compile_case(function, arguments: tuple, donated, device, free: dict[str, list[bool]] | None):
    """Compiled for `device`; the compiler chooses how the `free` arguments and outputs lie in HBM,
    or all of them without `free`."""
    here = SingleDeviceSharding(device)
    chosen = Format(Layout.AUTO, here)

    def lies(which: str):
        return chosen if free is None else tuple(chosen if f else here for f in free[which])

    jitted = jax.jit(
        function,
        in_shardings=lies("arguments"),
        out_shardings=lies("outputs"),
        donate_argnums=donated,
    )
    return jitted.lower(*arguments).compile()


def compile_shared(function, arguments: tuple, donated, specs: tuple, mesh: Mesh):
    """Compiled for all devices of the mesh, arguments lying there as `specs` say and in HBM as the
    compiler chooses."""
    lies = jax.tree.map(
        lambda spec: Format(Layout.AUTO, NamedSharding(mesh, spec)),
        specs,
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )
    jitted = jax.jit(function, in_shardings=lies, donate_argnums=donated)
    return jitted.lower(*arguments).compile()


def figures(compiled) -> dict:
    """What the executable's text and memory analysis say."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    operations = profile(text)
    known = any(op.cycles is not None for op in operations.values())
    large = {
        name: op
        for name, op in operations.items()
        if op.cycles is None or op.cycles >= SMALLEST_LAUNCH
    }
    vmem = [
        int(size) for line in text.splitlines() if KERNEL in line for size in _VMEM.findall(line)
    ]
    spent = {name: op.turns * (op.cycles or 0) for name, op in operations.items()}
    return {
        "cycles": sum(spent.values()) if known else None,
        "launches": sum(op.turns for op in large.values()),
        "kernels": text.count(KERNEL),
        "vmem_bytes": max(vmem, default=None),
        "operations": {
            name: spent[name] if large[name].cycles is not None else None
            for name in sorted(large, key=lambda name: -spent[name])
        },
        "described": {name: op.described for name, op in large.items()},
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "hbm_bytes": hbm_bytes(text),
    }


_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?[\])}]) ([a-z][\w-]*)\(")
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "copy-start",
    "copy-done",
    "slice-start",
    "slice-done",
}
KERNEL = 'custom_call_target="tpu_custom_call"'
_VMEM = re.compile(
    r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"'
)
_CYCLES = re.compile(r'"bundle_analysis_data":\{"estimated_cycles":"(\d+)"')
_BODY = re.compile(r"\bwhile\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CONSTANT = re.compile(r"constant\((\d+)\)")
_LAYOUT = re.compile(r"\{[^}]*\}|/\*.*?\*/")
_SCOPE = re.compile(r'op_name="([^"]*)"')
_OPERAND = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_WRAPPED = re.compile(r'\n(?=["}][^\n])')  # inside an operation: a kernel's metadata has lines, too


class Operation(NamedTuple):
    """One of the program: the cycles of one launch, if profiled, how often it is launched, and
    what it is and makes, for what."""

    cycles: int | None
    turns: int
    described: str = ""


def profile(text: str) -> dict[str, Operation]:
    """The operations of the entry computation and of its loops, by name; without a profile, those
    that compute or copy, and no cycles.

    Raises ValueError where a loop's number of turns is not written in its condition.
    """
    found: dict[str, Operation] = {}
    profiled = _CYCLES.search(text)
    for line, turns in executed(text):
        operation = _OPERATION.match(line)
        if operation and (cycles := _CYCLES.search(line)):
            found[operation[1]] = Operation(int(cycles[1]), turns, describe(line))
        elif operation and not profiled and operation[3] not in _FREE:
            found[operation[1]] = Operation(None, turns, describe(line))
    return found


def executed(text: str) -> Iterator[tuple[str, int]]:
    """The lines of the entry computation and of its loops, and how often each runs."""
    lines, entry, name = {}, "", ""
    for line in _WRAPPED.sub(" ", text).splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            entry = name if head[1] else entry
            lines[name] = []
        elif name:
            lines[name].append(line)

    def walk(computation: str, turns: int) -> Iterator[tuple[str, int]]:
        for line in lines[computation]:
            if loop := _BODY.search(line):
                bounds = [int(n) for n in _CONSTANT.findall("\n".join(lines[loop[1]]))]
                if len(bounds) != 1:
                    raise ValueError(f"loop {loop[2]} has no single bound, but {bounds}")
                yield from walk(loop[2], turns * bounds[0])
            else:
                yield line, turns

    return walk(entry, 1)


def hbm_bytes(text: str) -> int:
    """Bytes that the operations of a program read from HBM and write to it, each operand once.

    What the compiler keeps in VMEM is told by its layout. Too many where an operation takes but a
    slice of an operand, too few where a kernel fetches one again.
    """
    lines = [(match, turns) for line, turns in executed(text) if (match := _OPERATION.match(line))]
    results = {match[1]: match[2] for match, _ in lines}
    total = 0
    for match, turns in lines:
        name, result, code = match.groups()
        if code.endswith("-start"):  # its result names both ends of the copy
            total += turns * lying_in_hbm(result)
        elif code not in _FREE:
            inside = match.string[match.end() :].split(")", 1)[0]
            operands = (results.get(operand, "") for operand in _OPERAND.findall(inside))
            total += turns * sum(map(lying_in_hbm, (result, *operands)))
    return total


def lying_in_hbm(shapes: str) -> int:
    """Bytes of those arrays, of all that a text names, whose layout gives no other memory."""
    total = 0
    for bits, dims, layout in _ARRAY.findall(shapes):
        if "S(" not in layout:
            numbers = math.prod(int(n) for n in dims.split(",") if n)
            total += numbers * (8 if not bits else int(bits)) // 8
    return total


def describe(line: str) -> str:
    """The operation of a line: its code, the shapes of its results, and where in the source it
    belongs, as far as that is known."""
    operation, scope = _OPERATION.match(line), _SCOPE.search(line)
    if operation is None:
        return ""
    shapes = _LAYOUT.sub("", operation[2])
    where = "/".join(scope[1].split("/")[1:]) if scope else ""
    return f"{operation[3]} {shapes} {where}".rstrip()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
