"""Passes of tiny models, forward and backward: batches, models to compare, gradients and how they are compared."""

import torch
from torch import Tensor

from lmms.configs.settings.lora import DEFAULT_LORA, LoraConfig
from lmms.configs.settings.memory import Recompute
from lmms.configs.settings.train import How
from lmms.train.batch.batch import Batch
from lmms.train.model.build import blocks
from lmms.train.model.forward import TrainModel
from tests.kit.model.models import VISION_FAMILIES, joined, make_pack, picture, talk, tiny_model, tiny_recipe

LORA = LoraConfig(rank=2, alpha=4, dropout=0.25)
TRAINED: dict[str, dict[str, How]] = {
    "full": {"default": "full"},
    "lora": {"default": "lora"},
    "frozen tower": {"default": "full", "vision": "frozen"},
    "frozen llm": {"default": "full", "llm": "frozen"},
    "tower by lora": {"default": "frozen", "vision": "lora"},
}


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("hf."): p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            found[name],
            gradient,
            rtol=1e-5,
            atol=1e-5 * max(scale, 1e-2),
            msg=lambda text, name=name: f"{name}: {text}",
        )


def count_forward_calls(model: TrainModel) -> list[str]:
    """Grows by one each time that the first linear layer of a block runs."""
    calls: list[str] = []
    for block in blocks(model):
        linear = next(module for module in block.modules() if isinstance(module, torch.nn.Linear))
        linear.register_forward_hook(lambda *_: calls.append("ran"))
    return calls


def batch_of(family: str, *, images: bool = True) -> Batch:
    pictures = [picture(1, 56, 40), picture(2, 8, 8)] if images and family in VISION_FAMILIES else []
    return joined([make_pack([talk(0, 40, pictures), talk(1, 23), talk(2, 9, pictures[1:])])], tiny_recipe(family))


def model_of(family: str, recompute: Recompute, trained: str = "full") -> TrainModel:
    lora = LORA if "lora" in TRAINED[trained].values() else DEFAULT_LORA
    model = tiny_model(family, recompute=recompute, train=TRAINED[trained], lora=lora)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.constant_(parameter, 0.01)
    return model


def step(model: TrainModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients; LoRA's dropout is drawn from the same seed."""
    torch.manual_seed(5)
    loss, _ = model(batch, batch.images > 0, step_has_sounds=batch.num_sounds > 0)
    loss.backward()
    return loss.detach(), gradients(model)


def assert_bitwise(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys() != set()
    assert [name for name, gradient in expected[1].items() if not torch.equal(found[1][name], gradient)] == []


def some_batch(family: str) -> Batch:
    """Three conversations; in a vision family with images whose windows are cut."""
    pictures = [picture(seed, width, height) for seed, (width, height) in enumerate([(24, 16), (56, 40), (64, 64)])]
    images = pictures if family != "qwen3" else []
    return joined([make_pack([talk(1, 40, images), talk(2, 90), talk(3, 25, images[:1])])], tiny_recipe(family))
