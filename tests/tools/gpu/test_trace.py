"""What is read from a profile: classes of kernels, the marks around loss and optimizer, waits of the host."""

import math
import warnings
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lmms.train.watch.marks import Mark
from tools.gpu.pieces.measuring import early_waits, places_of, waits_in
from tools.gpu.pieces.trace import class_of, marks_missing, read_trace, trace_step, traced_events

ADAM = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>(...)"
MARK = "void at::native::vectorized_elementwise_kernel<4, at::native::{}_kernel_cuda(at::TensorIteratorBase&)>"
KERNELS = {
    "nvjet_tst_256x128_64x4_2x1_v_bz_coopA_TNT": "gemm",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "gemm",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16>": "gemm",
    "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<cutlass::bfloat16_t>>": (
        "attention"
    ),
    "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, cutlass::bfloat16_t>>": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x128x128": "attention",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80": "attention",
    "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0": "elementwise",
    "void at::native::elementwise_kernel<128, 4, at::native::silu_kernel>": "elementwise",
    "void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16>": "elementwise",
    "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "communication",
    "void at::native::split_with_sizes_copy_out_contiguous_no_cast_kernel": "copy",
}


def test_a_kernel_has_the_class_of_its_name() -> None:
    assert {name: class_of(name) for name in KERNELS} == KERNELS
    assert class_of("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy") == "copy"


def event(name: str, start: float, took: float, category: str = "kernel") -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": took}


def test_seconds_are_summed_by_class_and_between_the_marks_by_them() -> None:
    gemm, norm = "nvjet_tst_1", "triton_red_fused_0"
    loss, optimizer = (MARK.format(mark) for mark in ("erfinv", "erfc"))
    work = [(gemm, 0, 100), (norm, 100, 10), (loss, 110, 1), (gemm, 111, 20), (norm, 131, 5), (loss, 140, 1)]
    work += [(norm, 150, 7), (optimizer, 160, 1), (ADAM, 170, 30), (optimizer, 200, 1)]
    others = [event("Memcpy HtoD", 112, 50, "gpu_memcpy"), {"ph": "M", "name": "process_name"}]
    others += [event(name, 0, 500, "cuda_runtime") for name in ("cudaStreamSynchronize", "cudaLaunchKernel")]
    trace = read_trace([*(event(*kernel) for kernel in work), *others])
    microseconds = {name: round(1e6 * seconds) for name, seconds in trace.classes.items() if seconds}
    assert microseconds == {"gemm": 100, "elementwise": 17, "loss": 25, "optimizer": 30, "copy": 50}
    assert trace.marks == {"loss": 2, "optimizer": 2}
    assert trace.waits == {"cudaStreamSynchronize": 1}
    assert trace.span == pytest.approx(201e-6)
    # Idle between 162 and 170, though the copy went on beside the kernels.
    assert trace.busy == pytest.approx(1e-6 * (162 + 31))
    assert trace.top[0] == (gemm, 2, pytest.approx(120e-6))
    assert trace.kernels == 7


def test_a_trace_without_kernels_is_empty() -> None:
    trace = read_trace([])
    assert (trace.kernels, trace.busy, trace.span) == (0, 0.0, 0.0)
    assert math.isclose(sum(trace.classes.values()), 0.0)


class Model(torch.nn.Module):
    """What the marks ask of a TrainModel: a loss that it looks up when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 16)
        self.loss = cross_entropy

    def forward(self) -> torch.Tensor:
        hidden = self.layer(torch.ones(4, 16)).relu()
        loss, by_group = self.loss(hidden, self.layer.weight, torch.zeros(4, dtype=torch.int64))
        assert by_group.shape == (1, 2)
        return loss


def cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Its gradients are autograd's, as of the loss over whole logits."""
    return F.cross_entropy(hidden @ weight.T, labels), torch.zeros(1, 2)


MODEL: Any = Model()
OPTIMIZER = torch.optim.AdamW(MODEL.parameters())


def a_step(mark: Mark) -> None:
    """As step.take_step: two products outside of the loss, one in it; of each backward takes one or two."""
    MODEL().backward()
    mark("norms")
    torch.nn.utils.get_total_norm([parameter.grad for parameter in MODEL.parameters()])
    mark("update")
    OPTIMIZER.step()
    OPTIMIZER.zero_grad()


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    """A real step on a CPU, whose operators are taken for kernels."""
    operators = traced_events(a_step, OPTIMIZER, MODEL, torch.device("cpu"))
    return [{**event, "cat": "kernel"} for event in operators if event.get("cat") == "cpu_op"]


def test_marks_stand_around_the_loss_with_its_backward_and_around_norms_and_update(
    events: list[dict[str, Any]],
) -> None:
    trace = read_trace(events)
    assert trace.marks == {"loss": 4, "optimizer": 2}
    assert marks_missing(asdict(trace), passes=1) == ""
    forward, backward = _between(events, "erfinv", 0), _between(events, "erfinv", 2)
    assert [name for name in forward if name in ("aten::mm", "aten::addmm", "aten::_log_softmax")] == [
        *("aten::mm", "aten::_log_softmax")
    ]
    assert backward.count("aten::mm") == 2
    assert "aten::_log_softmax_backward_data" in backward
    assert "aten::threshold_backward" not in backward
    update = _between(events, "erfc", 0)
    assert "aten::linalg_vector_norm" in update or "aten::_foreach_norm" in update
    assert any("adam" in name or "addcdiv" in name for name in update)
    assert trace.classes["loss"] > 0
    assert trace.classes["optimizer"] > 0


def test_one_step_is_profiled_and_one_before_it_is_not(events: list[dict[str, Any]]) -> None:
    taken = []
    named = [event["name"] for event in events]
    assert named.count("aten::threshold_backward") == 1
    trace_step(lambda mark: taken.append(mark), OPTIMIZER, None, torch.device("cpu"))
    assert len(taken) == 2
    assert not OPTIMIZER._optimizer_step_post_hooks
    assert MODEL.loss is cross_entropy


def test_a_trace_without_its_marks_says_so(events: list[dict[str, Any]]) -> None:
    trace = asdict(read_trace([event for event in events if "erfc" not in event["name"]]))
    assert marks_missing(trace, 1) == ("marks {'loss': 4, 'optimizer': 0}, expected {'loss': 4, 'optimizer': 2}")
    assert marks_missing(trace, 2)


def _between(events: list[dict[str, Any]], mark: str, first: int) -> list[str]:
    """Names of what ran between two neighbouring marks of a kind."""
    at = sorted(float(e["ts"]) for e in events if e["name"] == f"aten::{mark}")
    return [e["name"] for e in events if at[first] < float(e["ts"]) < at[first + 1]]


def test_calls_that_wait_are_told_apart_by_where_they_stand() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = "/x/lmms/train/model/build.py"
        for file, line in (("/x/lmms/train/step.py", 90), (model, 7), (model, 7), ("/y/torch/nn.py", 1)):
            warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, file, line)
        warnings.warn_explicit("a sum over ranks: synchronizing", UserWarning, "/z/train/parallel/world.py", 57)
        warnings.warn_explicit("something else", UserWarning, "/x/y.py", 1)
    places = places_of(caught)
    early = {"train/model/build.py:7": 2, "torch/nn.py:1": 1}
    assert places == {"train/step.py:90": 1, **early, "train/parallel/world.py:57": 1}
    assert early_waits(places) == early


def test_a_step_on_a_cpu_waits_for_no_gpu() -> None:
    done = []
    assert waits_in(lambda: done.append(1)) == {}
    assert done == [1]
