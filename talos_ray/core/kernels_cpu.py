"""The one-pass loop of `core.fused` for a CPU, compiled by numba."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from talos_ray.core.fused import COUNT, INDEX, PARAMETER, PLACE, START, WIDTH

PIECE = 256  # weights summed together: the sum stays in a core's first cache
STORED = {torch.bfloat16: np.empty(0, np.uint16), torch.float32: np.empty(0, np.float32)}  # numpy has no bfloat16


@intrinsic
def pointer(typing, address):
    return types.voidptr(types.int64), lambda context, builder, signature, args: builder.inttoptr(
        args[0], cgutils.voidptr_t
    )


@intrinsic
def widened(typing, bits):
    """The float32 of a bfloat16's bits, or of a float32."""

    def code(context, builder, signature, args):
        if bits == types.float32:
            return args[0]
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(args[0], word), ir.Constant(word, 16)), ir.FloatType())

    return types.float32(bits), code


@intrinsic
def multiply_add(typing, a, b, c):
    """a * b + c, rounded once, as torch does it."""
    return types.float32(
        types.float32, types.float32, types.float32
    ), lambda context, builder, signature, args: builder.fma(*args)


@njit
def _copy(to, values):
    for i in range(len(values)):
        to[i] = values[i]


@njit
def _add_one(total, a, w):
    for i in range(len(a)):
        total[i] = multiply_add(w, widened(a[i]), total[i])


@njit
def _add_four(total, a, b, c, d, w, x, y, z):
    for i in range(len(a)):
        two = multiply_add(x, widened(b[i]), multiply_add(w, widened(a[i]), total[i]))
        total[i] = multiply_add(z, widened(d[i]), multiply_add(y, widened(c[i]), two))


def _compose(jobs, addresses, base, sources, alphas, stored):
    size = len(base)
    total = np.empty(PIECE, np.float32)
    for job in range(len(jobs)):
        width, place, count, start = jobs[job, WIDTH], jobs[job, PLACE], jobs[job, COUNT], jobs[job, START]
        out = carray(pointer(addresses[jobs[job, PARAMETER]]), (1 << 60,), np.float32)
        index = carray(pointer(jobs[job, INDEX]), (1 << 60,), np.int64)
        done = 0
        while done < count:
            n = min(PIECE, count - done)
            at, end, task = place + done, place + done + n, 0
            _copy(total[:n], base[at:end])
            while task + 4 <= len(sources):  # four streams at once: one alone waits for memory
                a = carray(pointer(sources[task]), (size,), stored.dtype)[at:end]
                b = carray(pointer(sources[task + 1]), (size,), stored.dtype)[at:end]
                c = carray(pointer(sources[task + 2]), (size,), stored.dtype)[at:end]
                d = carray(pointer(sources[task + 3]), (size,), stored.dtype)[at:end]
                w, x, y, z = alphas[task], alphas[task + 1], alphas[task + 2], alphas[task + 3]
                _add_four(total[:n], a, b, c, d, w, x, y, z)
                task += 4
            while task < len(sources):
                a = carray(pointer(sources[task]), (size,), stored.dtype)[at:end]
                _add_one(total[:n], a, alphas[task])
                task += 1
            if width == 0:
                _copy(out[start + done : start + done + n], total[:n])
            elif width == 1:
                for i in range(n):
                    out[index[done + i]] = total[i]
            else:
                i = 0
                while i < n:
                    offset = (done + i) % width
                    many = min(width - offset, n - i)
                    first = index[(done + i) // width] * width + offset
                    _copy(out[first : first + many], total[i : i + many])
                    i += many
            done += n


try:
    _loop = njit(nogil=True, cache=True)(_compose)
except RuntimeError:  # there is no folder that the machine code could be kept in
    _loop = njit(nogil=True)(_compose)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="compose")


def compose(jobs, places, base, sources, alphas, stored: torch.dtype, *_) -> None:
    """All jobs, by as many threads as torch uses; base and parameters are float32, indices int64. Arguments: see `core.fused.Fused`."""
    threads = torch.get_num_threads()
    done = jobs[:, COUNT].cumsum(0)
    cuts = torch.searchsorted(done, torch.arange(1, threads) * done[-1] // threads).tolist()
    table, rest = jobs.numpy(), (places.numpy(), base.numpy(), sources.numpy(), alphas.numpy(), STORED[stored])
    shares = [table[a:b] for a, b in zip([0, *cuts], [*cuts, len(table)], strict=True)]
    others = [_pool(threads - 1).submit(_loop, share, *rest) for share in shares[1:]]
    _loop(shares[0], *rest)
    for other in others:
        other.result()
