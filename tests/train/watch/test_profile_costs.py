"""Where the time went, from the events of a trace."""

from typing import Any

from lmms.train.watch.profile_costs import Cost, costs_of, costs_table, folded_stacks, top_lines


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": args}


def test_an_operator_counts_without_those_inside_it_and_a_range_with_all() -> None:
    events = [
        event("user_annotation", "forward", 0, 100),
        event("cpu_op", "aten::linear", 10, 50),
        event("cpu_op", "aten::t", 10, 5),
        event("cpu_op", "aten::addmm", 20, 30),
        event("cpu_op", "aten::addmm", 70, 10),
        # Of another thread, at the same time.
        event("cpu_op", "aten::mul", 15, 40, tid=2),
    ]
    assert costs_of(events) == {
        "kernels": [],
        "operators": [
            Cost("aten::addmm", 2, 40),
            Cost("aten::mul", 1, 40),
            Cost("aten::linear", 1, 15),
            Cost("aten::t", 1, 5),
        ],
        "ranges": [Cost("forward", 1, 100)],
    }


def test_what_follows_by_less_than_a_rounding_is_not_inside() -> None:
    events = [event("cpu_op", "first", 0, 10.002), event("cpu_op", "second", 10.001, 10)]
    assert [cost.us for cost in costs_of(events)["operators"]] == [10.002, 10]


def test_kernels_are_shown_where_there_are_any() -> None:
    events = [
        event("cpu_op", "aten::mm", 0, 10),
        event("kernel", "gemm", 5, 300, tid=7),
        event("kernel", "gemm", 400, 500, tid=7),
        event("gpu_memcpy", "Memcpy HtoD", 1000, 200, tid=8),
        event("gpu_user_annotation", "forward", 0, 1200, tid=7),
    ]
    costs = costs_of(events)
    assert costs["kernels"] == [Cost("gemm", 2, 800), Cost("Memcpy HtoD", 1, 200)]
    assert top_lines(costs, steps=2) == [
        " 80.0%      0.400 ms      1.0 calls  gemm",
        " 20.0%      0.100 ms      0.5 calls  Memcpy HtoD",
    ]
    table = costs_table(costs, steps=2)
    assert "kernels and copies on the GPU\n 80.0%      0.400 ms" in table
    assert "operators on the CPU, without those inside them\n100.0%      0.005 ms" in table
    assert "ranges" not in table


def test_the_log_has_few_lines_and_the_file_has_more() -> None:
    costs = costs_of([event("cpu_op", f"aten::op{i}", 10 * i, 1 + i / 100) for i in range(100)])
    assert [line.split()[-1] for line in top_lines(costs, 1)] == [f"aten::op{99 - i}" for i in range(8)]
    assert costs_table(costs, 1).count("aten::") == 60


def test_stacks_are_folded_over_objects_and_layers() -> None:
    calls = [
        call
        for layer in (0, 1)
        for call in (
            event("python_function", f"nn.Module: Linear_{layer}", 100 * layer, 50),
            event("python_function", f"<built-in method f of X object at 0x7f{layer}>", 100 * layer, 40),
            event("cpu_op", "aten::mm", 100 * layer + 10, 20),
        )
    ]
    assert folded_stacks(calls) == {
        "cpu": "nn.Module: Linear;<built-in method f of X object>;aten::mm 40\n"
        "nn.Module: Linear;<built-in method f of X object> 40\n"
        "nn.Module: Linear 20\n"
    }


def test_a_kernel_is_under_the_stack_that_started_it() -> None:
    events = [
        event("python_function", "step.py(1): f", 0, 50),
        event("cpu_op", "aten::mm", 10, 20),
        event("cuda_runtime", "cudaLaunchKernel", 12, 3, correlation=5),
        event("cuda_runtime", "cudaStreamSynchronize", 32, 3, correlation=6),
        event("kernel", "gemm", 90, 700, tid=7, correlation=5),
    ]
    folded = folded_stacks(events)
    assert folded["gpu"] == "step.py(1): f;aten::mm;cudaLaunchKernel;gemm 700\n"
    assert "step.py(1): f;aten::mm;cudaLaunchKernel 3\n" in folded["cpu"]
