"""The world of a run: its device, and the type that it computes in."""

import pytest
import torch

from lmms.configs.errors import ConfigError
from lmms.train.parallel.world import compute_dtype, start_world


def test_precision_follows_the_device_unless_it_is_set() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert [compute_dtype("auto", device) for device in (cpu, cuda)] == [torch.float32, torch.bfloat16]
    assert [compute_dtype("fp32", device) for device in (cpu, cuda)] == [torch.float32] * 2
    assert compute_dtype("bf16", cpu) == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        start_world("cuda")
