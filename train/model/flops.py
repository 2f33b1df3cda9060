"""What a training step costs, in floating-point operations of the model alone: strict, so that MFU is never too high.

A multiply-add is two operations. Counted: the products of linear layers, forward and backward; the LM head on rows that
are targets alone; attention within each conversation, image or window by its real length, causal attention at half.
Not counted: lookups, norms, rotations, recomputation, the dummy image of a rank without images. A frozen part costs its
forward and the gradients that must pass through it: none do before the first trained layer. A layer with LoRA costs
the same and LoRA's two products, forward and twice backward.

Source: PaLM (arXiv 2204.02311) appendix B.
"""

from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn

from lmms.configs.by_part import Part
from lmms.configs.contract.costs import ModelCost
from lmms.configs.settings.lora import DEFAULT_LORA, LoraConfig
from lmms.configs.settings.train import EVERYTHING, How
from lmms.train.families import family_of
from lmms.train.families.family import FIRST, NEVER, Family, ModelPart, Point
from lmms.train.model.forward import TrainModel
from lmms.train.model.lora import lora_layers, trained_names
from lmms.train.model.names import is_lora, own_parameters, parameter_name

_Layer = nn.Linear | nn.Conv3d
"""A layer with a product: the convolution embeds patches, and its kernel covers one patch."""

_HEAD = "lm_head"


def model_cost(model: TrainModel, train: Mapping[str, How] = EVERYTHING, lora: LoraConfig = DEFAULT_LORA) -> ModelCost:
    """The cost of a model that is trained so, computed from its layers; on any device, before the model is sharded.

    LoRA may stand around layers already, or not yet.
    """
    family = family_of(model.hf.config.model_type)
    modules = {parameter_name(name): m for name, m in model.named_modules() if not is_lora(name)}
    layers = {name: m for name, m in modules.items() if isinstance(m, _Layer)}
    trained, with_lora = trained_names(model, train, lora), set(lora_layers(model, train, lora))
    first_names = own_parameters(model)
    first = _first_trained(family, trained | {f"{name}.weight" for name in with_lora})
    linear: Counter[str] = Counter()
    for name, layer in layers.items():
        part = family.part_of(name)
        passes_back, weights = first[part.name] < part.point(name), layer.weight.numel()
        group = "head" if name == _HEAD else part.name
        linear[group] += _linear(first_names[f"{name}.weight"] in trained, passes_back) * weights
        if name in with_lora:
            outputs, inputs = layer.weight.shape
            linear[group] += lora.rank * (_linear(True, passes_back) * inputs + _linear(True, True) * outputs)
    attention = {part.name: _attentions(part, layers, first[part.name]) for part in family.parts if part.attention}
    images = attention.get("vision", {})
    tower = family.images.tower(model.hf.config) if family.images else None
    in_windows = sum(cost for block, cost in images.items() if tower and block in tower.windowed)
    return ModelCost(
        token=linear["llm"],
        target=linear["head"],
        squared_length=sum(attention["llm"].values()) / 2,
        patch=linear["vision"] + linear["aligner"] / (tower.merge_size**2 if tower else 1),
        squared_image=sum(images.values()) - in_windows,
        squared_window=in_windows,
        window=tower.window_size // tower.patch_size if tower else 0,
    )


def _first_trained(family: Family, names: Collection[str]) -> dict[Part, Point]:
    """Part -> its first place after which gradients pass through every layer."""
    trained: dict[Part, list[Point]] = {part.name: [] for part in family.parts}
    for name in names:
        part = family.part_of(name)
        trained[part.name].append(part.point(name))
    first: dict[Part, Point] = {}
    for part in family.parts:
        fed = any(first[before.name] != NEVER for before in family.parts if before.feeds == part.name)
        first[part.name] = FIRST if fed else min(trained[part.name], default=NEVER)
    return first


def _attentions(part: ModelPart, layers: Mapping[str, _Layer], first: Point) -> dict[int, int]:
    """Block -> operations of its attention for a pair of positions.

    The two products of an attention have no weights; they are as wide as the input of its output layer.
    """
    costs = {}
    for name, layer in layers.items():
        if name.endswith(part.attention):
            block, stage = part.point(name)
            costs[block] = _attention(first < (block, stage)) * layer.weight.shape[1]
    return costs


def _linear(trained: bool, passes_back: bool) -> int:
    """Operations for a weight and a row: forward, the weight's gradient, the input's gradient."""
    return 2 + 2 * trained + 2 * passes_back


def _attention(passes_back: bool) -> int:
    """Operations for a pair of positions and a feature: two products forward, two backward for each."""
    return 4 + 8 * passes_back
