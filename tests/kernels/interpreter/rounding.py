"""Triton's interpreter with the rounding of the chip.

Triton's own keeps bfloat16 as bit patterns and computes with the bits: sums, products, comparisons and reductions are
wrong without a word, and float32 is cut off instead of rounded. It also multiplies float32 exactly, whatever
`input_precision` says. After `install`,

- bfloat16 is computed in float32 and rounded to the nearest, ties to even, once for each operation;
- "tf32" products round their operands to 10 bits, and "tf32x3" adds up the three products of their high and low parts.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

NARROW = {tl.bfloat16, tl.float16, tl.float32}


def widened(bits: np.ndarray) -> np.ndarray:
    """The float32 of bfloat16 bits, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """The bfloat16 bits nearest to float32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    nearest = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), nearest)


def tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded to the 10 bits that a tensor core reads."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    nearest = (bits + (((bits >> 13) & 1) + np.uint32(0xFFF))) & np.uint32(0xFFFFE000)
    return nearest.view(np.float32)


def is_bf16(x: TensorHandle) -> bool:
    return x.dtype.scalar == tl.bfloat16


def float32(x: np.ndarray) -> TensorHandle:
    return TensorHandle(x, tl.float32)


def bf16(x: np.ndarray) -> TensorHandle:
    return TensorHandle(rounded(x), tl.bfloat16)


def install() -> None:
    """For this process; once."""
    builder: Any = InterpreterBuilder
    if builder.binary_op.__module__ == __name__:
        return
    original = {name: getattr(builder, name) for name in ("cast_impl", "create_fp_to_fp", "create_dot", "binary_op")}
    original |= {name: getattr(builder, name) for name in ("unary_op", "create_fma")}

    def cast_impl(self: Any, x: TensorHandle, to: Any) -> TensorHandle:
        begin, end = x.dtype.scalar, to.scalar
        if begin == tl.bfloat16 != end:
            wide = float32(widened(x.data))
            return wide if end == tl.float32 else original["cast_impl"](self, wide, to)
        if end == tl.bfloat16 != begin:
            return bf16(x.data.astype(np.float32))
        return original["cast_impl"](self, x, to)

    def create_fp_to_fp(self: Any, x: TensorHandle, to: Any, mode: Any) -> TensorHandle:
        types = {x.dtype.scalar, to.scalar}
        if tl.bfloat16 in types and types <= NARROW:
            return cast_impl(self, x, to)
        return original["create_fp_to_fp"](self, x, to, mode)

    def create_dot(self: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, precision: Any, most: Any) -> Any:
        def times(x: np.ndarray, y: np.ndarray, onto: TensorHandle) -> TensorHandle:
            return original["create_dot"](self, float32(x), float32(y), onto, precision, most)

        word = str(precision).upper()
        if is_bf16(a) or is_bf16(b):
            return times(*(widened(x.data) if is_bf16(x) else x.data for x in (a, b)), d)
        if a.dtype.scalar != tl.float32 or "TF32" not in word:
            return original["create_dot"](self, a, b, d, precision, most)
        high = [tf32(x.data) for x in (a, b)]
        if "X3" not in word:
            return times(*high, d)
        low = [tf32(x.data - h) for x, h in zip((a, b), high)]
        return times(*high, times(high[0], low[1], times(low[0], high[1], d)))

    def binary_op(self: Any, x: TensorHandle, y: TensorHandle, op: Callable) -> TensorHandle:
        if not (is_bf16(x) and is_bf16(y)):
            return original["binary_op"](self, x, y, op)
        found = op(widened(x.data), widened(y.data))
        return TensorHandle(found, tl.int1) if found.dtype == np.bool_ else bf16(found)

    def unary_op(self: Any, x: TensorHandle, op: Callable) -> TensorHandle:
        return bf16(op(widened(x.data))) if is_bf16(x) else original["unary_op"](self, x, op)

    def create_fma(self: Any, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        if not is_bf16(z):
            return original["create_fma"](self, x, y, z)
        return bf16(widened(x.data).astype(np.float64) * widened(y.data) + widened(z.data))

    for replacement in (cast_impl, create_fp_to_fp, create_dot, binary_op, unary_op, create_fma):
        setattr(builder, replacement.__name__, replacement)
    for reductions in (interpreter.ReduceOps, interpreter.ScanOps):
        reductions.apply_impl = wide_reduction(reductions.apply_impl)


def wide_reduction(apply: Callable) -> Callable:
    """Sums, scans and the like of bfloat16 in float32, rounded once."""

    def apply_impl(self: Any, given: Any) -> Any:
        several = given if isinstance(given, tuple) else (given,)
        narrow = [x.dtype.scalar == tl.bfloat16 for x in several]
        if not any(narrow):
            return apply(self, given)
        wide = (self.to_tensor(widened(x.handle.data), tl.float32) if n else x for x, n in zip(several, narrow))
        found = apply(self, tuple(wide))
        back = [narrowed(x) for x in (found if isinstance(found, tuple | list) else (found,))]
        return tuple(back) if isinstance(found, tuple | list) else back[0]

    return apply_impl


def narrowed(x: Any) -> Any:
    if x.dtype.scalar != tl.float32:
        return x
    data = rounded(x.handle.data)
    kind = tl.block_type(tl.bfloat16, list(data.shape)) if isinstance(x.type, tl.block_type) else tl.bfloat16
    return tl.core.tensor(TensorHandle(data, tl.bfloat16), kind)
