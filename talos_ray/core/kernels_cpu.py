"""The one-pass loop of `core.fused` for a CPU, compiled by numba."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from talos_ray.core.fused import COUNT, INDEX, PARAMETER, PLACE, SEGMENT, START, WIDTH

PIECE = 512  # weights summed together: the sum stays in a core's first cache
# What a delta's values are read as: one, and two in a word, the first of them in its lower half. numpy has no bfloat16.
STORED = {
    torch.bfloat16: (np.empty(0, np.uint16), np.empty(0, np.uint32)),
    torch.float32: (np.empty(0, np.float32), np.empty(0, np.uint64)),
}
WORD = ir.IntType(32)
FLOAT = ir.FloatType()
WIDE = ir.VectorType(FLOAT, 8)  # what is written past the caches at once

# What follows is compiled, and numba has no types for it: in an intrinsic the parameters are numba's types of the
# arguments, and `code` builds LLVM instructions from their values. Elsewhere they are scalars and arrays.
Code = Callable[[Any, Any, Any, Any], Any]  # (context, builder, signature, arguments) -> value
Scalar = Any
Array = NDArray[Any]


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba's other decorator, whose types fit no call."""
    compiled: Callable[..., Any] = njit(function)
    return compiled


def _intrinsic(define: Callable[..., tuple[Any, Code]]) -> Callable[..., Any]:
    """numba's decorator. What comes of it is called without the first parameter, the typing context."""
    compiled: Callable[..., Any] = intrinsic(define)
    return compiled


@_intrinsic
def pointer(typing: Any, address: Any) -> tuple[Any, Code]:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), code


@_intrinsic
def widened(typing: Any, bits: Any) -> tuple[Any, Code]:
    """The float32 of a bfloat16's bits, or of a float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if bits == types.float32:
            return args[0]
        return builder.bitcast(builder.shl(builder.zext(args[0], WORD), WORD(16)), FLOAT)

    return types.float32(bits), code


@_intrinsic
def lower(typing: Any, word: Any) -> tuple[Any, Code]:
    """The float32 of the first value in a word."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.shl(args[0], WORD(16)) if word == types.uint32 else builder.trunc(args[0], WORD)
        return builder.bitcast(bits, FLOAT)

    return types.float32(word), code


@_intrinsic
def upper(typing: Any, word: Any) -> tuple[Any, Code]:
    """The float32 of the second."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if word == types.uint32:
            bits = builder.and_(args[0], WORD(0xFFFF0000))
        else:
            bits = builder.trunc(builder.lshr(args[0], args[0].type(32)), WORD)
        return builder.bitcast(bits, FLOAT)

    return types.float32(word), code


@_intrinsic
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> tuple[Any, Code]:
    """a * b + c, rounded once, as torch does it."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), code


@_intrinsic
def stream(typing: Any, to: Any, values: Any) -> tuple[Any, Code]:
    """Eight float32 from one address to another, past the caches: nobody reads a model's weights before all are
    there."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, values = (builder.inttoptr(a, WIDE.as_pointer()) for a in args)
        store = builder.store(builder.load(values, align=4), to, align=32)
        store.set_metadata("nontemporal", builder.module.add_metadata([WORD(1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@_jit
def _write(to: Array, values: Array) -> None:
    i = 0
    n = len(values)
    address = to.ctypes.data
    source = values.ctypes.data
    while i < n and (address + 4 * i) % 32:
        to[i] = values[i]
        i += 1
    while i + 8 <= n:
        stream(address + 4 * i, source + 4 * i)
        i += 8
    while i < n:
        to[i] = values[i]
        i += 1


@_jit
def multiply_then_add(a: Scalar, b: Scalar, c: Scalar) -> Scalar:
    """a * b + c, rounded twice, as torch does it where every weight has a coefficient of its own."""
    return a * b + c


@_jit
def _split(low: Array, high: Array, values: Array) -> None:
    for i in range(len(low)):
        low[i], high[i] = values[2 * i], values[2 * i + 1]


@_jit
def _join(values: Array, low: Array, high: Array) -> None:
    for i in range(len(low)):
        values[2 * i], values[2 * i + 1] = low[i], high[i]


def _loop_with(add: Callable[..., Any]) -> Callable[..., None]:
    """The loop over jobs, in which `add(coefficient, value, sum)` adds a delta's value."""

    @_jit
    def add_one(low: Array, high: Array, a: Array, w: Scalar) -> None:
        for i in range(len(a)):
            low[i] = add(w, lower(a[i]), low[i])
            high[i] = add(w, upper(a[i]), high[i])

    @_jit
    def add_four(
        low: Array, high: Array, a: Array, b: Array, c: Array, d: Array, w: Scalar, x: Scalar, y: Scalar, z: Scalar
    ) -> None:
        for i in range(len(a)):
            two = add(x, lower(b[i]), add(w, lower(a[i]), low[i]))
            low[i] = add(z, lower(d[i]), add(y, lower(c[i]), two))
            two = add(x, upper(b[i]), add(w, upper(a[i]), high[i]))
            high[i] = add(z, upper(d[i]), add(y, upper(c[i]), two))

    def compose(
        jobs: Array, addresses: Array, base: Array, sources: Array, alphas: Array, one: Array, two: Array
    ) -> None:
        total = np.empty(PIECE, np.float32)
        lows = np.empty(PIECE // 2, np.float32)
        highs = np.empty(PIECE // 2, np.float32)
        for job in range(len(jobs)):
            width = jobs[job, WIDTH]
            place = jobs[job, PLACE]
            count = jobs[job, COUNT]
            start = jobs[job, START]
            scale = alphas[jobs[job, SEGMENT]]
            out = carray(pointer(addresses[jobs[job, PARAMETER]]), (1 << 60,), np.float32)
            index = carray(pointer(jobs[job, INDEX]), (1 << 60,), np.int64)
            done = 0
            while done < count:
                n = min(PIECE, count - done)
                at = place + done
                pairs = n // 2
                task = 0
                low = lows[:pairs]
                high = highs[:pairs]
                _split(low, high, base[at : at + n])
                while task + 4 <= len(sources):  # four streams at once: one alone waits for memory
                    a = carray(pointer(sources[task] + at * one.itemsize), (pairs,), two.dtype)
                    b = carray(pointer(sources[task + 1] + at * one.itemsize), (pairs,), two.dtype)
                    c = carray(pointer(sources[task + 2] + at * one.itemsize), (pairs,), two.dtype)
                    d = carray(pointer(sources[task + 3] + at * one.itemsize), (pairs,), two.dtype)
                    w = scale[task]
                    x = scale[task + 1]
                    y = scale[task + 2]
                    z = scale[task + 3]
                    add_four(low, high, a, b, c, d, w, x, y, z)
                    task += 4
                while task < len(sources):
                    a = carray(pointer(sources[task] + at * one.itemsize), (pairs,), two.dtype)
                    add_one(low, high, a, scale[task])
                    task += 1
                _join(total, low, high)
                if n % 2:
                    last = base[at + n - 1]
                    for task in range(len(sources)):
                        value = carray(pointer(sources[task]), (1 << 60,), one.dtype)[at + n - 1]
                        last = add(scale[task], widened(value), last)
                    total[n - 1] = last
                if width == 0:
                    _write(out[start + done : start + done + n], total[:n])
                elif width == 1:
                    for i in range(n):
                        out[index[done + i]] = total[i]
                else:
                    i = 0
                    while i < n:
                        offset = (done + i) % width
                        many = min(width - offset, n - i)
                        first = index[(done + i) // width] * width + offset
                        _write(out[first : first + many], total[i : i + many])
                        i += many
                done += n

    try:
        return njit(nogil=True, cache=True)(compose)
    except RuntimeError:  # there is no folder that the machine code could be kept in
        return njit(nogil=True)(compose)


ONE_EACH = _loop_with(multiply_add)
BY_SEGMENT = _loop_with(multiply_then_add)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="compose")


@functools.cache
def _rest() -> Callable[[], int]:
    """Ends the threads of the OpenMP that torch itself is linked with; its next operation starts them anew, in
    microseconds."""
    try:
        pause = ctypes.CDLL(torch._C.__file__).omp_pause_resource_all
    except (OSError, AttributeError):  # a torch without OpenMP, or with one that is older than 5.0
        return lambda: 0
    return lambda: pause(1)  # 1: omp_pause_soft


def compose(
    jobs: torch.Tensor,
    places: torch.Tensor,
    base: torch.Tensor,
    sources: torch.Tensor,
    alphas: torch.Tensor,
    stored: torch.dtype,
    out: torch.dtype,
    index: torch.dtype,
    one_each: bool,
) -> None:
    """All jobs, by as many threads as torch uses; base and parameters are float32, indices int64. Arguments: see
    `core.fused.Fused`."""
    loop = ONE_EACH if one_each else BY_SEGMENT
    threads = torch.get_num_threads()
    done = jobs[:, COUNT].cumsum(0)
    cuts = torch.searchsorted(done, torch.arange(1, threads) * done[-1] // threads).tolist()
    table = jobs.numpy()
    by_segment = alphas.T.contiguous().numpy()
    one, two = STORED[stored]
    rest = (places.numpy(), base.numpy(), sources.numpy(), by_segment, one, two)
    shares = [table[a:b] for a, b in zip([0, *cuts], [*cuts, len(table)], strict=True)]
    if threads > 1:  # for milliseconds after an operation torch's threads spin, on the cores that ours need
        _rest()()
    others = [_pool(threads - 1).submit(loop, share, *rest) for share in shares[1:]]
    loop(shares[0], *rest)
    for other in others:
        other.result()
