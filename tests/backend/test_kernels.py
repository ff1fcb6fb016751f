"""The C++ kernels of rewritten graphs: layers that are alike have one."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from tests.support.programs import randn


@pytest.mark.compile
def test_layers_alike_have_one_kernel() -> None:
    """Every layer had a kernel of its own: twelve compilations where one does."""

    def program(x: Any, bias: Any) -> Any:
        for _ in range(3):
            x = torch.softmax(torch.tanh(x @ x.mT) + bias, -1) @ x + 1
        return x

    torch._dynamo.reset()
    given = randn(1, 2, 70, 16), randn(70, 70, seed=1)
    with torch.no_grad():
        compiled = torch.compile(program, backend="flex", options={"rewrite": "always", "on_failure": "raise"})
        result, (code,) = run_and_get_code(compiled, *given)
        torch.testing.assert_close(result, program(*given), atol=1e-5, rtol=1e-5)
    kernels = re.findall(r"(\w+) = async_compile\.cpp_pybinding\((.*?)\n'''", code, re.S)
    templates = [name for name, source in kernels if "kvSplitSize" in source]
    assert len(templates) == 1 and len(re.findall(rf"^ +{templates[0]}\(", code, re.M)) == 3, templates
