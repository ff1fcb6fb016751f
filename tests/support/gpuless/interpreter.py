"""Inductor's wrapper of Triton kernels run on CPU tensors, by Triton's interpreter.

TRITON_INTERPRET=1 must be set before triton is imported. What the interpreter lacks is added: the functions of CUDA's
libdevice, and bfloat16, which it keeps as raw bits and calculates with as integers. Memory that a kernel is given to
fill is NaN, so that what is not written is seen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before importing triton"

import numpy as np
import torch
import triton.language as tl
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_compat import libdevice
from triton.runtime import interpreter

REPLACED = (
    ("torch._C._dynamo.guards._empty_strided_cuda", "unwritten"),
    ("from torch._C import _cuda_getCurrentRawStream as get_raw_stream", "get_raw_stream = lambda device: 0"),
    ("torch.cuda._DeviceGuard(0)", "nothing()"),
    ("torch.cuda.set_device(0)", "pass"),
    ("device='cuda:0'", "device='cpu'"),
    ("device(type='cuda', index=0)", "device(type='cpu')"),
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in ("tanh", "exp", "exp2", "log", "log2", "log1p", "expm1", "sqrt", "sin",
                                            "cos", "sinh", "cosh", "floor", "ceil", "trunc", "abs", "isnan", "isinf",
                                            "signbit", "copysign", "fmod", "arctan2")},
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "pow": np.power,
    "nearbyint": np.rint,
    "erf": lambda x: torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy(),
}  # fmt: skip


def load(wrapper: str) -> Callable[[list[Any]], Any]:
    """The wrapper's `call`, on a list of CPU tensors, which it empties."""
    for old, new in REPLACED:
        wrapper = wrapper.replace(old, new)
    names = {"__name__": "wrapper", "nothing": contextlib.nullcontext, "unwritten": unwritten}
    exec(compile(wrapper, "<wrapper>", "exec"), names)
    call: Callable[[list[Any]], Any] = names["call"]  # type: ignore[assignment]
    return call


def unwritten(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
    x = torch.empty_strided(size, stride, dtype=dtype)
    return x.fill_(float("nan")) if dtype.is_floating_point else x


def provided(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of libdevice: Triton has a compiler's stub in its place, which returns None."""

    def call(*args: Any, _semantic: Any = None) -> Any:
        like = next(a for a in args if isinstance(a, tl.tensor))
        result = function(*(a.handle.data if isinstance(a, tl.tensor) else np.asarray(a) for a in args))
        dtype = tl.int32 if result.dtype == np.bool_ else like.dtype.scalar
        result = result.astype(interpreter._get_np_dtype(dtype))
        shape = list(result.shape)
        return tl.core.tensor(interpreter.TensorHandle(result, dtype), tl.block_type(dtype, shape) if shape else dtype)

    return call


def is_bfloat16(x: Any) -> bool:
    return (
        isinstance(x, interpreter.TensorHandle)
        and not isinstance(x.dtype, tl.pointer_type)
        and x.dtype.scalar == tl.bfloat16
    )


def widened(x: Any) -> Any:
    """bfloat16, as raw bits, to float32."""
    if not is_bfloat16(x):
        return x
    return interpreter.TensorHandle((np.asarray(x.data).astype(np.uint32) << 16).view(np.float32), tl.float32)


def rounded(data: Any) -> Any:
    """Numbers as raw bits of bfloat16, rounded to nearest even, as a GPU does."""
    data = np.ascontiguousarray(data, dtype=np.float32)
    bits = data.view(np.uint32)
    result = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return interpreter.TensorHandle(np.where(np.isnan(data), np.uint16(0x7FC0), result), tl.bfloat16)


def in_float32(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def operator(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(map(is_bfloat16, args)):
            return original(self, *args, **kwargs)
        result = original(self, *map(widened, args), **kwargs)
        return rounded(result.data) if result.data.dtype == np.float32 and name != "create_dot" else result

    return operator


def cast(self: Any, x: Any, dtype: Any) -> Any:
    x, wanted = widened(x), dtype.scalar
    if wanted == tl.bfloat16:
        return rounded(x.data)
    return interpreter.TensorHandle(x.data.astype(interpreter._get_np_dtype(dtype)), wanted)


def reducing(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply(self: Any, given: Any) -> Any:
        many = given if isinstance(given, tuple) else (given,)
        if not any(x.dtype.scalar == tl.bfloat16 for x in many):
            return original(self, given)
        convert = interpreter.interpreter_semantic.cast
        wide = tuple(convert(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in many)
        results = original(self, wide if isinstance(given, tuple) else wide[0])
        several = results if isinstance(results, tuple) else (results,)
        narrow = tuple(convert(r, tl.bfloat16) if x.dtype.scalar == tl.bfloat16 else r for r, x in zip(several, many))
        return narrow if isinstance(results, tuple) else narrow[0]

    return apply


def folding(original: Callable[..., Any]) -> Callable[..., Any]:
    """torch's own reductions by numpy: the interpreter would call the function for every two elements."""
    known = {triton_helpers.maximum: np.max, triton_helpers.minimum: np.min, triton_helpers._any_combine: np.any}

    def generic_reduce(self: Any, given: Any) -> Any:
        fold = known.get(self.combine_fn)
        return original(self, given) if fold is None else self.min_max(given[0], val_reduce_op=fold)

    return generic_reduce


def install() -> None:
    triton_helpers.set_driver_to_gpu = lambda: None
    for name, function in FUNCTIONS.items():
        setattr(libdevice, "atan2" if name == "arctan2" else name, provided(function))
    builder = interpreter.InterpreterBuilder
    for name in ("binary_op", "unary_op", "create_fma", "create_dot", "create_rsqrt", "create_erf", "create_idiv"):
        setattr(builder, name, in_float32(name, getattr(builder, name)))
    to_float = builder.create_fp_to_fp

    def create_fp_to_fp(self: Any, x: Any, dtype: Any, mode: Any) -> Any:
        return cast(self, x, dtype) if tl.bfloat16 in (x.dtype.scalar, dtype.scalar) else to_float(self, x, dtype, mode)

    builder.cast_impl, builder.create_fp_to_fp = cast, create_fp_to_fp
    interpreter.ReduceOps.generic_reduce = folding(interpreter.ReduceOps.generic_reduce)
    interpreter.ReduceScanOpInterface.apply = reducing(interpreter.ReduceScanOpInterface.apply)


install()
