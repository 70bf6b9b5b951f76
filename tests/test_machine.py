"""What the machine is asked, and what a run does with the answer."""

import torch

from groundup.train import machine


def test_bf16_has_a_kernel_where_torch_says_so(monkeypatch):
    ask = machine.has_bf16_kernel.__wrapped__  # without what was answered before
    assert ask("cuda") and ask("mps")
    assert ask("cpu") is torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert ask("cpu") is False
