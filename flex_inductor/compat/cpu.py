"""The part of `compat` that knows what the CPU, and torch on it, can do."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from pathlib import Path

import torch


def cpu_has_template() -> bool:
    """Whether torch's C++ template for flex_attention runs on this CPU: as check_cpu_supported in
    torch/_inductor/kernel/flex/flex_cpu.py (2.13), whose import takes longer than all passes of a small model."""
    avx2 = torch.cpu._is_avx2_supported() and os.getenv("ATEN_CPU_CAPABILITY") != "default"
    return bool(avx2 and not torch.xpu.is_available() and sys.platform != "darwin")


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, and oneDNN is there to use them and may."""
    instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if not (instructions and torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


CPU_SYMBOLS = (
    "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb",
    "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb",
    "_ZN2at6native7cpublas14brgemm_releaseEb",
)
"""What our C++ kernels call in torch that no header promises to keep: products of small matrices, by linker name."""


@functools.cache
def cpu_kernels_lack() -> str:
    """What our C++ kernels would miss in this release; empty for nothing. A kernel that misses it would not load."""
    try:
        library = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
    except OSError:
        return f"torch {torch.__version__} has no libtorch_cpu.so"
    missing = [name for name in CPU_SYMBOLS if not hasattr(library, name)]
    return f"torch {torch.__version__} lacks {', '.join(missing)}" if missing else ""


def compute_alone() -> None:
    """Makes the calling thread, and no other, compute by itself from now on. Raises RuntimeError where that cannot be
    told to its OpenMP."""
    torch.get_num_threads()  # which sets the number when a thread first asks
    ctypes.CDLL(None).omp_set_num_threads(1)  # of this thread alone, by OpenMP's rules
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    with contextlib.suppress(AttributeError):  # torch without MKL
        library.MKL_Set_Num_Threads_Local(1)
    if torch.get_num_threads() != 1:
        raise RuntimeError("the number of threads cannot be set for one of them")


def processor() -> tuple[str, ...]:
    """What of the processor, and of what the environment says of it, C++ code depends on."""
    capability = torch.backends.cpu.get_cpu_capability(), os.getenv("ATEN_CPU_CAPABILITY", "")
    return (*capability, str(cpu_multiplies_bfloat16()))
