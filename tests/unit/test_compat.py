"""What compat says of torch, against torch itself."""

import pytest

from flex_inductor import compat


@pytest.mark.parametrize("capability", [None, "default", "avx2"])
def test_the_cpu_template_is_asked_for_as_torch_does(monkeypatch, capability):
    from torch._inductor.kernel.flex.flex_cpu import check_cpu_supported

    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    if capability is not None:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
    assert compat.cpu_has_template() == bool(check_cpu_supported())
