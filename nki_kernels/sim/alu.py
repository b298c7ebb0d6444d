"""What the operations compute, in float32, and which engine has them."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import erf

from nki_kernels.sim.errors import OperationError

BINARY = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum,
    "minimum": np.minimum, "equal": np.equal, "not_equal": np.not_equal, "greater": np.greater,
    "greater_equal": np.greater_equal, "less": np.less, "less_equal": np.less_equal,
    "logical_and": np.logical_and, "logical_or": np.logical_or, "logical_xor": np.logical_xor,
    "power": np.power,
    "abs_max": lambda a, b: np.maximum(np.abs(a), np.abs(b)),
    "abs_min": lambda a, b: np.minimum(np.abs(a), np.abs(b)),
}  # fmt: skip
# One-input operations of the ALU; as `op0` or `op1` they ignore their operand.
UNARY = {
    "abs": np.abs, "square": np.square, "relu": lambda x: np.maximum(x, 0),
    "rsqrt": lambda x: 1 / np.sqrt(x), "reciprocal": lambda x: 1 / x,
}  # fmt: skip
# Of integers, on VectorE; `INVERT` has one input.
BITWISE = {
    "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor,
    "left_shift": np.left_shift, "right_shift": np.right_shift,
}  # fmt: skip
INVERT = "invert"
BITS = (*BITWISE, INVERT)
REDUCTIONS = {
    "add": np.add.reduce, "multiply": np.multiply.reduce, "maximum": np.maximum.reduce,
    "minimum": np.minimum.reduce,
}  # fmt: skip
TRANSCENDENTAL = ("rsqrt", "reciprocal", "power")


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def _tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + 0.044715 * x * x * x)))


def _softplus(x):
    return np.logaddexp(x, np.float32(0))


# ScalarE: function, its table set ("" is in every set), and the magnitudes it is good for.
ACTIVATIONS = {
    "copy": (lambda x: x, "", None),
    "square": (np.square, "", None),
    "relu": (lambda x: np.maximum(x, 0), "", None),
    "abs": (np.abs, "", None),
    "sign": (np.sign, "", None),
    "exp": (np.exp, "exp", None),
    "gelu": (lambda x: 0.5 * x * (1 + erf(x / np.float32(np.sqrt(2)))), "gelu", None),
    "gelu_apprx_tanh": (_tanh_gelu, "gelu", None),
    "gelu_apprx_sigmoid": (lambda x: x * _sigmoid(1.702 * x), "gelu", None),
    "sigmoid": (_sigmoid, "sigmoid", None),
    "silu": (lambda x: x * _sigmoid(x), "sigmoid", None),
    "tanh": (np.tanh, "tanh", None),
    "softplus": (_softplus, "softplus", None),
    "mish": (lambda x: x * np.tanh(_softplus(x)), "mish", None),
    "erf": (erf, "erf", None),
    "log": (np.log, "log", (2.0**-64, 2.0**64)),
    "sin": (np.sin, "sin", (0, np.pi)),
    "arctan": (np.arctan, "arctan", None),
    "sqrt": (np.sqrt, "sqrt", (2.0**-116, 2.0**118)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), "sqrt", (2.0**-87, 2.0**97)),
    "reciprocal": (lambda x: 1 / x, "reciprocal", (2.0**-42, 2.0**42)),
}


class ActivationRangeWarning(UserWarning):
    """ScalarE evaluates a function outside of where its table is good."""


def binary(name: str):
    """A two-input arithmetic operation. Raises OperationError for any other."""
    if name not in BINARY:
        hint = "; multiply by nl.reciprocal's result" if name == "divide" else ""
        raise OperationError(f"the ALU has no {name!r} of two inputs{hint}; has {list(BINARY)}")
    return BINARY[name]


def step(name: str, data: np.ndarray, operand, reverse: bool) -> np.ndarray:
    """`data op operand` of tensor_scalar and its kin, or `operand op data`."""
    if name in UNARY:
        return UNARY[name](data).astype(np.float32)
    if name in BITS and data.dtype.kind not in "iu":
        raise OperationError(f"{name} works on the bits of integers, not on {data.dtype}")
    if name == INVERT:
        return np.invert(data)
    if name in BITWISE:
        left, right = (operand, data) if reverse else (data, operand)
        return BITWISE[name](left, right)
    function = binary(name)
    return (function(operand, data) if reverse else function(data, operand)).astype(np.float32)


def activation(name: str, x: np.ndarray) -> np.ndarray:
    """A ScalarE function of float32 values; warns outside of its range."""
    function, _, limits = ACTIVATIONS[name]
    if limits is not None:
        size = np.abs(x)
        if (size > limits[1]).any() or ((size < limits[0]) & (size > 0)).any():
            message = f"ScalarE {name} outside of {limits}"
            warnings.warn(message, ActivationRangeWarning, stacklevel=3)
    with np.errstate(over="ignore"):
        return function(x).astype(np.float32)


def known_activation(name: str) -> str:
    """The name. Raises OperationError if ScalarE has no such function."""
    if name not in ACTIVATIONS:
        raise OperationError(f"ScalarE has no {name!r}; it has {list(ACTIVATIONS)}")
    return name
