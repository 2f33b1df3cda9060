"""What a training step costs, in floating-point operations of the model alone: strict, so that MFU is never too high.

A multiply-add is two operations. Counted: the products of linear layers, forward and backward; the LM head on rows that
are targets alone; attention within each conversation, image, window or chunk of a sound by its real length, causal
attention at half; the convolutions over sounds, as if every position were of two frames.
Not counted: lookups, norms, rotations, recomputation, the dummies of a rank without media. A frozen part costs its
forward and the gradients that must pass through it: none do before the first trained layer. A layer with LoRA costs
the same and LoRA's two products, forward and twice backward.

Source: PaLM (arXiv 2204.02311) appendix B.
"""

from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn

from lmms.configs.contract.costs import ModelCost
from lmms.configs.settings.lora import DEFAULT_LORA, LoraConfig
from lmms.configs.settings.train import EVERYTHING, How
from lmms.train.families import family_of
from lmms.train.families.family import FIRST, NEVER, Family, ModelPart, Point
from lmms.train.model.forward import TrainModel
from lmms.train.model.lora import lora_layers, trained_names
from lmms.train.model.names import is_lora, own_parameters, parameter_name

_Layer = nn.Linear | nn.Conv1d | nn.Conv3d
"""A layer with a product: one convolution embeds patches, and its kernel covers one patch; others run over sounds."""

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
        passes_back, weights = first[part] < part.point(name), layer.weight.numel() * _rows(layer)
        group = "head" if name == _HEAD else part.modules[0]
        linear[group] += _linear(first_names[f"{name}.weight"] in trained, passes_back) * weights
        if name in with_lora:
            outputs, inputs = layer.weight.shape
            linear[group] += lora.rank * (_linear(True, passes_back) * inputs + _linear(True, True) * outputs)
    attention = {part.name: _attentions(part, layers, first[part]) for part in family.parts if part.attention}
    # Products of a tower, and of what joins its output to tokens.
    of_towers = {part.name: (linear[part.modules[0]], linear[part.feeds or ""]) for part in family.parts if part.feeds}
    images, (embedding, merging) = attention.get("vision", {}), of_towers.get("vision", (0, 0))
    hearing, projection = of_towers.get("audio", (0, 0))
    tower = family.images.tower(model.hf.config) if family.images else None
    in_windows = sum(cost for block, cost in images.items() if tower and block in tower.windowed)
    return ModelCost(
        token=linear[family.parts[-1].modules[0]],
        target=linear["head"],
        squared_length=sum(attention["llm"].values()) / 2,
        patch=embedding + merging / (tower.merge_size**2 if tower else 1),
        squared_image=sum(images.values()) - in_windows,
        squared_window=in_windows,
        window=tower.window_size // tower.patch_size if tower else 0,
        sound_position=hearing + projection / 2,
        squared_sound=sum(attention.get("audio", {}).values()),
    )


def _rows(layer: _Layer) -> int:
    """How often a layer is applied to a row of its part: the first convolution runs over both frames of a position."""
    return 2 if isinstance(layer, nn.Conv1d) and layer.stride == (1,) else 1


def _first_trained(family: Family, names: Collection[str]) -> dict[ModelPart, Point]:
    """Part -> its first place after which gradients pass through every layer."""
    trained: dict[ModelPart, list[Point]] = {part: [] for part in family.parts}
    for name in names:
        part = family.part_of(name)
        trained[part].append(part.point(name))
    first: dict[ModelPart, Point] = {}
    for part in family.parts:
        fed = any(first[before] != NEVER for before in family.parts if before.feeds == part.modules[0])
        first[part] = FIRST if fed else min(trained[part], default=NEVER)
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
