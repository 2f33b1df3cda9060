"""Which kernels a setting means on which machine, for all combinations; and that a model and a run use them."""

import inspect
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from lmms.configs.errors import ConfigError, ModelError
from lmms.configs.settings.kernels import Attention, KernelsConfig
from lmms.train.model.attention import ATTENTION_NAMES
from lmms.train.model.kernels import KERNELS_NAME, Kernels, Machine, choose_kernels, this_machine, use_kernels
from lmms.train.model.liger import liger_functions, use_liger
from lmms.train.run import train
from tests.kit.model.liger import plain_functions
from tests.kit.model.models import FAMILIES, VISION_FAMILIES, joined, make_pack, picture, talk, tiny_model, tiny_recipe
from tests.kit.passes import assert_same_gradients, gradients
from tests.kit.runs import run_config, silent, write_run

ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
MODULES = {
    "flash-attn-2": "flash_attn_2_cuda",
    "flash-attn-3": "flash_attn_interface",
    "flash-attn-4": "flash_attn.cute",
}
EVERYTHING = frozenset({*MODULES.values(), "liger_kernel", "triton"})
HOPPER = Machine(device="cuda", capability=(9, 0), dtype=torch.bfloat16, modules=EVERYTHING, compiler=True)
CPU = Machine(device="cpu", capability=None, dtype=torch.float32, modules=EVERYTHING, compiler=True)


def usable(attention: str, machine: Machine) -> bool:
    """The rule, written otherwise than in the code."""
    if attention == "sdpa":
        return True
    majors = {"flash-attn-3": {9}, "flash-attn-4": {9, 10}}.get(attention, {8, 9, 10, 12})
    return (
        machine.capability is not None
        and machine.capability[0] in majors
        and machine.dtype is not torch.float32
        and MODULES.get(attention, "triton") in machine.modules | {"triton"}
    )


def test_every_setting_on_every_machine_is_what_was_asked_for_or_an_error() -> None:
    installed = [EVERYTHING, frozenset[str](), *(EVERYTHING - {module} for module in EVERYTHING)]
    capabilities = [None, (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    refused = 0
    for capability, dtype, modules, compiler in product(capabilities, dtypes, installed, [True, False]):
        device = "cuda" if capability else "cpu"
        machine = Machine(device=device, capability=capability, dtype=dtype, modules=modules, compiler=compiler)
        can_compile = compiler and (device == "cpu" or "triton" in modules)
        has_liger = device == "cuda" and "liger_kernel" in modules
        for attention, liger, compiled in product(("auto", *ATTENTIONS), ("auto", "on", "off"), (False, True)):
            if compiled and liger == "on":
                continue
            setting = KernelsConfig(attention=attention, liger=liger, compile=compiled)  # type: ignore[arg-type]
            works = (
                (attention == "auto" or usable(attention, machine))
                and (liger != "on" or has_liger)
                and (not compiled or can_compile)
            )
            if not works:
                with pytest.raises(ConfigError, match=r"kernels\.(attention|liger|compile) is .*, but .*; "):
                    choose_kernels(setting, machine)
                refused += 1
                continue
            found = choose_kernels(setting, machine)
            best = "varlen" if usable("varlen", machine) else "sdpa"
            assert found.attention == (best if attention == "auto" else attention)
            assert found.liger == (has_liger and liger != "off" and not compiled)
            assert found.compile == compiled
    assert refused > 1000


@pytest.mark.parametrize(
    ("setting", "machine", "message"),
    [
        ({"attention": "varlen"}, CPU, "attention is varlen, but it runs on a GPU, and this run is on cpu"),
        ({"attention": "flash-attn-2"}, replace(HOPPER, dtype=torch.float32), "model.precision is float32"),
        ({"attention": "flash-attn-3"}, replace(HOPPER, capability=(10, 0)), "capability 9.x, and this GPU has 10.0"),
        ({"attention": "flash-attn-4"}, replace(HOPPER, modules=frozenset()), "flash_attn.cute is not installed"),
        ({"attention": "varlen"}, replace(HOPPER, capability=(7, 5)), "8.0 or higher, and this GPU has 7.5"),
        ({"liger": "on"}, replace(HOPPER, modules=frozenset()), "the module liger_kernel is not installed"),
        ({"compile": True}, replace(CPU, compiler=False), "there is no C.. compiler"),
    ],
)
def test_an_error_says_why(setting: dict[str, Any], machine: Machine, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_kernels(KernelsConfig(**setting), machine)


def test_liger_and_compiled_blocks_together_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"kernels\.liger is on and kernels\.compile is true.*fuses"):
        KernelsConfig(liger="on", compile=True)


def test_this_machine_is_described_without_importing_kernels() -> None:
    machine = this_machine(torch.device("cpu"), torch.float32)
    assert (machine.device, machine.capability, machine.dtype) == ("cpu", None, torch.float32)
    assert "flash_attn.cute" not in machine.modules
    assert str(choose_kernels(KernelsConfig(), machine)) == "attention sdpa; norms, MLPs and rotations torch"


@pytest.mark.parametrize("attention", ["varlen", "flash-attn-2", "sdpa"])
def test_a_model_calls_the_attention_that_was_chosen(attention: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen3_vl")
    use_kernels(model, Kernels(attention=attention, liger=False, compile=False))
    for inner in (model.hf, model.hf.model.visual, model.hf.model.language_model):
        assert inner.config._attn_implementation == ATTENTION_NAMES[attention]
    if attention == "sdpa":
        called = []
        sdpa = F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (called.append(a), sdpa(*a, **k))[1])
        batch = joined([make_pack([talk(0, 9), talk(1, 4)])], tiny_recipe("qwen3_vl"))
        model(batch, False)
        assert len(called) == 3 * 2


GATED = ("qwen2_5_vl", "qwen2_5_omni_thinker")
"""Families whose vision towers have gated MLPs."""


@pytest.mark.parametrize("family", FAMILIES)
def test_liger_takes_over_the_modules_of_one_model_and_of_no_other(family: str) -> None:
    images = [picture(1, 56, 40)] if family in VISION_FAMILIES else []
    batch = joined([make_pack([talk(0, 10), talk(1, 12, images)])], tiny_recipe(family))
    plain, patched = tiny_model(family), tiny_model(family)
    calls: list[str] = []
    use_liger(patched, plain_functions(calls))
    losses = []
    for model in (plain, patched):
        assert calls == []
        loss, _ = model(batch, bool(images))
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(patched), gradients(plain))
    norms = 3 * 2 + 1 + (3 * 2 if "qwen3" in family else 0) + (4 * 2 + 1 if family in GATED else 0)
    assert calls.count("norm") == norms
    assert calls.count("gated") == 3 + (4 if family in GATED else 0)
    assert calls.count("rope") == 3
    assert calls.count("rope_vision") == (4 if images else 0)


class _Turned(torch.autograd.Function):
    """Liger's rotation: where query and key lie in memory, they are overwritten, which autograd is not told."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        for tensor, turned in zip((q, k), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
            tensor.data.copy_(turned)
        return q.detach(), k.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return *apply_rotary_pos_emb(*grads, cos, -sin), None, None


@pytest.mark.parametrize("family", ["qwen2", "qwen2_5_vl", "qwen3"])
def test_kept_products_are_not_rotated_twice(family: str) -> None:
    batch = joined([make_pack([talk(0, 10), talk(1, 12)])], tiny_recipe(family))
    liger = replace(plain_functions([]), rope=_Turned.apply)
    plain = tiny_model(family)
    plain(batch, False)[0].backward()

    def found(*, keeps_products: bool) -> dict[str, Tensor]:
        model = tiny_model(family, recompute="elementwise")
        use_liger(model, liger, keeps_products=keeps_products)
        model(batch, False)[0].backward()
        return gradients(model)

    assert_same_gradients(found(keeps_products=True), gradients(plain))
    if family != "qwen3":
        with pytest.raises(AssertionError):
            assert_same_gradients(found(keeps_products=False), gradients(plain))


def test_a_model_without_what_liger_takes_over_is_an_error() -> None:
    with pytest.raises(ModelError, match="0 norms, 0 gated MLPs and 0 attentions"):
        use_liger(torch.nn.Sequential(torch.nn.Linear(2, 2)), plain_functions([]))


def test_the_functions_of_the_installed_liger_take_these_arguments() -> None:
    pytest.importorskip("liger_kernel")
    functions = liger_functions()
    inspect.signature(functions.rms_norm).bind("x", "weight", 1e-6, 0.0, "llama", False)
    inspect.signature(functions.swiglu).bind("gate", "up")
    for rope in (functions.rope, functions.rope_vision):
        inspect.signature(rope).bind("q", "k", "cos", "sin")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_liger_on_a_gpu_agrees_with_torch(family: str) -> None:
    pytest.importorskip("liger_kernel")
    images = [picture(1, 56, 40)] if family in VISION_FAMILIES else []
    batch = joined([make_pack([talk(0, 10), talk(1, 12, images)])], tiny_recipe(family)).to(torch.device("cuda"))
    plain, patched = tiny_model(family).cuda(), tiny_model(family).cuda()
    use_liger(patched, liger_functions())
    losses = []
    for model in (plain, patched):
        loss, _ = model(batch, bool(images))
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(
            gradients(patched)[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max())
        )


def test_a_run_says_and_keeps_what_it_runs_on(tmp_path: Path) -> None:
    said: list[str] = []
    settings = write_run(tmp_path, "qwen3", packs=4) | {"max_steps": 1, "data.global_packs": 1}
    train(run_config(settings), lambda event: said.append(event) if isinstance(event, str) else None)
    assert said.count("kernels: attention sdpa; norms, MLPs and rotations torch") == 1
    kept = json.loads((Path(settings["output"]) / KERNELS_NAME).read_text())
    assert (
        kept | {"attention": "sdpa", "liger": False, "compile": False, "device": "cpu", "dtype": "torch.float32"}
        == kept
    )
    assert kept["torch"] == torch.__version__


def test_a_run_that_asks_for_what_is_not_here_stops_before_it_starts(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3", packs=4) | {"kernels.attention": "flash-attn-3"}
    with pytest.raises(ConfigError, match=r"kernels\.attention is flash-attn-3, but it runs on a GPU"):
        train(run_config(settings), silent)
    assert not list(Path(settings["output"]).glob("*"))
