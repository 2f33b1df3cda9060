"""Others' recipes compute the trainer's loss and gradients on the same packs and the same weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmms.configs.contract.manifest import open_dataset
from lmms.train.batch.batch import make_batch
from lmms.train.batch.recipe import Recipe as BatchRecipe
from lmms.train.batch.recipe import make_recipe
from lmms.train.data.shards import Place
from lmms.train.model.build import build_model, init_random, materialize
from lmms.train.model.forward import TrainModel
from tests.kit.model.liger import plain_functions
from tools.gpu.pieces.losses import loss_by
from tools.gpu.pieces.models import FIRST, MINI, SECOND, model_config
from tools.gpu.pieces.packs import make_packs, pack_file
from tools.gpu.processes import NotHereError
from tools.gpu.rivals.batches import PADDED, packed_batches, padded_batches
from tools.gpu.rivals.comparator import COMPARATORS, RECIPE, Comparator, build_comparator

CPU = torch.device("cpu")
ON_CPU = [name for name in COMPARATORS if "flash-attn-2" not in name]
SMALL = replace(MINI, seq_len=128, packs=1, conversation=(16, 30, 50), image=(4, 12))

pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
# transformers 5.17, which is still allowed, has no other name for it.


@pytest.fixture(scope="module", params=(FIRST, SECOND))
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, TrainModel]:
    """A model with the gradients of its packs, and where the packs are."""
    folder = make_packs(request.param, SMALL, tmp_path_factory.mktemp("packs"))
    model = build_model(model_config(request.param, thin=True), "none")
    materialize(model, CPU)
    init_random(model, 0)
    return request.param, folder, model


def recipe_of(model: str, folder: Path, packs: str) -> BatchRecipe:
    return make_recipe([open_dataset(folder / packs).manifest], model_config(model, thin=True), "stop")


def trained(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def plain_loss(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Liger's fused loss by its meaning: its own runs on a GPU alone."""
    return F.cross_entropy(hidden @ weight.T, labels, reduction="sum", ignore_index=-100)


def test_liger_is_not_tried_without_a_gpu(ours: tuple[str, Path, TrainModel]) -> None:
    with pytest.raises(NotHereError, match="runs on a GPU"):
        build_comparator(model_config(ours[0], thin=True), COMPARATORS[RECIPE[0]], CPU)


@pytest.mark.parametrize("packs", ["text", "vision"])
@pytest.mark.parametrize("name", ON_CPU)
def test_a_recipe_has_the_trainers_loss_and_gradients(
    ours: tuple[str, Path, TrainModel], packs: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    monkeypatch.setattr("tools.gpu.rivals.comparator.liger_functions", lambda: plain_functions(calls))
    monkeypatch.setattr(
        "tools.gpu.rivals.comparator.loss_by",
        lambda name, device: plain_loss if name == "liger" else loss_by(name, device),
    )
    model, folder, train_model = ours
    recipe, shown = recipe_of(model, folder, packs), pack_file(folder, packs)
    batch = make_batch(shown, recipe, [Place(0, 0, 0, 0, 0, 0)])
    expected, _ = train_model(batch, bool(batch.images))
    gradients = trained(train_model, expected)
    comparator = build_comparator(model_config(model, thin=True), COMPARATORS[name], CPU)
    materialize(comparator, CPU)
    init_random(comparator, 0)
    batches = list((packed_batches if COMPARATORS[name].packed else padded_batches)(shown, recipe))
    total = torch.zeros(())
    summed: dict[str, Tensor] = {}
    for plain in batches:
        loss, _ = comparator(plain, "pixel_values" in plain.inputs)
        total = total + loss.detach()
        for parameter, grad in trained(comparator, loss).items():
            summed[parameter] = summed.get(parameter, torch.zeros_like(grad)) + grad
    assert bool(calls) == COMPARATORS[name].liger
    torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=0)
    assert sum(plain.weight for plain in batches) == batch.weight
    assert summed.keys() == gradients.keys()
    for parameter, grad in gradients.items():
        difference = float((summed[parameter] - grad).norm())
        assert difference <= 1e-4 * max(float(grad.norm()), 1e-2), f"{parameter} differs by {difference}"


def test_patches_as_a_product_are_transformers_convolution(ours: tuple[str, Path, TrainModel]) -> None:
    assert all(COMPARATORS[name].linear_patches for name in RECIPE)
    convolutions = []
    for linear in (False, True):
        recipe = replace(COMPARATORS["packed, varlen"], linear_patches=linear)
        comparator = build_comparator(model_config(ours[0], thin=True), recipe, CPU)
        patch_embed = comparator.hf.model.visual.patch_embed
        materialize(comparator, CPU)
        init_random(comparator, 0)
        called = []
        patch_embed.proj.register_forward_hook(lambda *_, called=called: called.append(1))
        convolutions.append((patch_embed(torch.ones(4, patch_embed.proj.weight[0].numel())), len(called)))
    (theirs, once), (product, never) = convolutions
    assert (once, never) == (1, 0)
    torch.testing.assert_close(product, theirs)


def test_padding_fills_two_conversations_up_to_the_longer(ours: tuple[str, Path, TrainModel]) -> None:
    model, folder, _ = ours
    (pack,) = pack_file(folder, "text")
    batches = list(padded_batches([pack], recipe_of(model, folder, "text")))
    assert len(batches) == -(-len(pack.lengths) // PADDED)
    first = batches[0].inputs
    assert first["input_ids"].shape == (PADDED, int(pack.lengths[:PADDED].max()))
    assert first["attention_mask"].sum(1).tolist() == pack.lengths[:PADDED].tolist()
    assert (batches[0].labels[first["attention_mask"] == 0] == -100).all()


def test_a_comparator_keeps_no_more_than_the_inputs_of_blocks(ours: tuple[str, Path, TrainModel]) -> None:
    model = build_comparator(model_config(ours[0], thin=True), COMPARATORS["padded, sdpa"], CPU)
    assert isinstance(model, Comparator)
    blocks = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    assert len(blocks) >= 4
    assert all(block.gradient_checkpointing for block in blocks)
