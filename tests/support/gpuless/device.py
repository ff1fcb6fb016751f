"""A GPU that is not there: Inductor takes it for one of a compute capability, and compiles for it."""

from __future__ import annotations

import contextlib
import ctypes
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._dynamo import device_interface
from torch._functorch import config as functorch_config
from torch._inductor import config, graph, output_code
from torch._inductor.runtime import hints, triton_helpers, triton_heuristics
from torch._subclasses import fake_tensor
from torch.utils import _triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

SHARED = {80: 166912, 90: 232448, 100: 232448}
"""Bytes of shared memory that a program may have, by compute capability."""
META = 14
"""The number of the device type "meta" in c10; CUDA is 1."""


@dataclass
class Compiled:
    """What Inductor made: the Python wrappers as text, and its autotuners, each with the kernels it compiled."""

    wrappers: list[str] = field(default_factory=list)
    kernels: list[Any] = field(default_factory=list)


def properties(capability: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        name="a GPU", major=capability // 10, minor=capability % 10, multi_processor_count=132, warp_size=32,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
        total_memory=80 << 30, shared_memory_per_block=49152, shared_memory_per_block_optin=SHARED[capability],
        shared_memory_per_multiprocessor=SHARED[capability] + 1024, L2_cache_size=50 << 20, gcnArchName="", uuid="",
        is_integrated=0, pci_bus_id=0, pci_device_id=0, pci_domain_id=0,
    )  # fmt: skip


def install_guard() -> None:
    """torch without CUDA has no device guard for it, which operators on fake tensors ask for. The one of meta tensors,
    which does nothing, takes its place: for good, so only in a process of its own."""
    if torch.version.cuda:
        torch._C._ensureCUDADeviceGuardSet()
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    assert guards[META], "the numbers of device types have changed"
    guards[1] = guards[1] or guards[META]


def answering(value: Any) -> Any:
    return lambda *args, **kwargs: value


def driver_of(capability: int) -> types.SimpleNamespace:
    """Triton's driver, as far as it is asked to compile."""
    numbers = {"max_shared_mem": SHARED[capability], "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32}
    return types.SimpleNamespace(
        get_current_target=answering(GPUTarget("cuda", capability, 32)), get_current_device=answering(0),
        get_current_stream=answering(0), get_benchmarker=answering(None),
        utils=types.SimpleNamespace(get_device_properties=answering(numbers)),
    )  # fmt: skip


def torchs_answers(capability: int) -> list[tuple[Any, dict[str, Any]]]:
    """What torch says of its CUDA devices: owners, and their attributes."""
    interface, about = device_interface.CudaInterface, properties(capability)
    known: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": about,
        "get_device_capability": (about.major, about.minor), "set_device": None, "synchronize": None,
    }  # fmt: skip
    of_torch = {
        **known, "is_bf16_supported": True, "is_tf32_supported": True, "_lazy_init": None, "_exchange_device": 0,
        "_maybe_exchange_device": 0, "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
        "current_stream": types.SimpleNamespace(cuda_stream=0, device=torch.device("cuda", 0)),
    }  # fmt: skip
    of_interface = {
        **known, "get_compute_capability": capability, "get_raw_stream": 0, "is_triton_capable": True,
        "raise_if_triton_unavailable": None, "exchange_device": 0, "maybe_exchange_device": 0,
    }  # fmt: skip
    of_worker = {name: known[name] for name in ("get_device_properties", "current_device", "set_device")}
    raw = ("_cuda_getCurrentRawStream", "_cuda_setDevice", "_cuda_getDevice", "_cuda_exchangeDevice")
    return [
        (torch.cuda, {name: answering(value) for name, value in of_torch.items()}),
        (torch._C, {name: answering(0) for name in raw}),
        (interface, {name: staticmethod(answering(value)) for name, value in of_interface.items()}),
        (interface.Worker, {name: staticmethod(answering(value)) for name, value in of_worker.items()}),
        (fake_tensor, {"init_gpu_context": answering(None)}),
        (fake_tensor.FakeTensorMode, {"avoid_device_init": property(answering(True))}),
    ]


def inductors_part(capability: int, compiled: Compiled, machine_code: bool) -> list[tuple[Any, dict[str, Any]]]:
    """Inductor compiles kernels, writes down what it made, and loads nothing."""

    def note(self: Any, *_: Any, **__: Any) -> None:
        compiled.kernels.append(self)
        self.launchers = [types.SimpleNamespace(config=r.config, n_regs=0, n_spills=0) for r in self.compile_results]

    return [
        (triton_helpers, {"set_driver_to_gpu": answering(None)}),
        (driver, {"_active": driver_of(capability)}),
        (triton_heuristics.CachingAutotuner, {"_make_launchers" if machine_code else "precompile": note}),
        (output_code.CompiledFxGraph, {"__call__": answering(None)}),
        (graph.GraphLowering, {"save_output_code": staticmethod(compiled.wrappers.append)}),
    ]


def forget() -> None:
    """What torch remembers of its devices."""
    for cache in (hints.DeviceProperties.create, *(getattr(_triton, name) for name in dir(_triton))):
        getattr(cache, "cache_clear", lambda: None)()
    device_interface.caching_worker_device_properties.pop("cuda", None)


@contextlib.contextmanager
def pretended(capability: int, machine_code: bool = True) -> Iterator[Compiled]:
    """Inside, there is a GPU for Inductor, which compiles kernels and loads none. machine_code: otherwise it writes
    them only."""
    compiled = Compiled()
    with contextlib.ExitStack() as stack:
        for owner, values in (*torchs_answers(capability), *inductors_part(capability, compiled, machine_code)):
            for name, value in values.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=True))
        settings = {"force_disable_caches": True, "compile_threads": 1, "use_static_triton_launcher": False}
        stack.enter_context(config.patch(settings))
        stack.enter_context(functorch_config.patch(enable_autograd_cache=False))
        forget()
        stack.callback(forget)
        yield compiled
