"""Floating point operations of the matrix products and convolutions of a function, counted from what JAX traced."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def matmul_flops(function: Callable, *arguments: Any) -> float:
    """Counts them, on all devices together; a product of [n, k] and [k, m] is 2 n k m.

    Loops count as often as they run, of branches the dearest counts. What XLA removes or fuses later is not
    known here; element-wise work is not counted.

    Args:
        function: of arrays, or of their shapes (`jax.ShapeDtypeStruct`).
        *arguments: its arguments; nothing is computed.

    Raises:
        ValueError: for a loop of unknown length.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        inner = [_count(j) for j in _jaxprs(eqn.params)]
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            k = math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * k
        elif name == "conv_general_dilated":
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * _per_output(eqn)
        elif name == "while" and any(inner):
            raise ValueError("a while loop with matrix products in it: how often it runs can't be known")
        elif name == "scan":
            total += eqn.params["length"] * sum(inner)
        elif name == "shard_map":
            total += eqn.params["mesh"].size * sum(inner)
        elif name == "cond":
            total += max(inner)
        elif name.startswith("custom_vjp_call") or name.startswith("custom_jvp_call"):
            total += inner[0]  # the others are its gradients
        else:
            total += sum(inner)
    return total


def _per_output(eqn: Any) -> float:
    """Products per output value of a convolution, not counting those with zeros that dilation puts in."""
    kernel = eqn.invars[1].aval.shape
    numbers = eqn.params["dimension_numbers"]
    taps = math.prod(kernel[d] for d in numbers.rhs_spec[1:])
    return taps / math.prod(eqn.params["lhs_dilation"])


def _jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for v in value if isinstance(value, tuple | list) else [value]:
            if isinstance(v, core.ClosedJaxpr):
                found.append(v.jaxpr)
            elif isinstance(v, core.Jaxpr):
                found.append(v)
    return found
