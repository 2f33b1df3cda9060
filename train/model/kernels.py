"""The kernels of a run: chosen at the start from the settings and from what this machine has, told, and stored."""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch.nn.attention import activate_flash_attention_impl
from transformers import PreTrainedModel

from lmms.configs.errors import ConfigError
from lmms.configs.files import write_whole
from lmms.configs.settings.kernels import Attention, KernelsConfig
from lmms.train.model.attention import ATTENDS, ATTENTION_NAMES, Attend
from lmms.train.model.liger import liger_functions, use_liger

KERNELS_NAME = "kernels.json"

_PACKAGES: Mapping[Attention, str] = {
    "flash-attn-2": "flash_attn_2_cuda",
    "flash-attn-3": "flash_attn_interface",
    "flash-attn-4": "flash_attn.cute",
}
"""The module that tells whether a package is installed: flash-attn 2 and 4 share the name flash_attn."""

_CAPABILITIES: Mapping[Attention, tuple[int, ...]] = {"flash-attn-3": (9,), "flash-attn-4": (9, 10)}
"""Major compute capabilities that torch lets these run on; the others run from 8 on."""

_IMPLEMENTATIONS: Mapping[Attention, str] = {"flash-attn-3": "FA3", "flash-attn-4": "FA4"}
"""Names under which torch's variable-length attention passes on to a package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What the choice depends on besides the settings."""

    device: str
    """cuda or cpu"""
    capability: tuple[int, int] | None
    """Compute capability of the GPU."""
    dtype: torch.dtype
    """Type of activations."""
    modules: frozenset[str]
    """The modules that kernels need and that can be imported: see this_machine."""
    compiler: bool
    """Whether a C++ compiler is found, which torch.compile calls on every device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """The kernels that a run uses."""

    attention: Attention
    liger: bool
    compile: bool

    def __str__(self) -> str:
        norms = "liger" if self.liger else "compiled" if self.compile else "torch"
        return f"attention {self.attention}; norms, MLPs and rotations {norms}"


def choose_kernels(setting: KernelsConfig, machine: Machine) -> Kernels:
    """The kernels that a setting means on a machine. ConfigError for what was asked for and cannot be used."""
    attention: Attention = "sdpa"
    if setting.attention != "auto":
        attention = setting.attention
        if obstacle := _attention_obstacle(attention, machine):
            raise ConfigError(f"kernels.attention is {attention}, but {obstacle}; set kernels.attention: auto")
    elif not _attention_obstacle("varlen", machine):
        attention = "varlen"
    if setting.compile and (obstacle := _compile_obstacle(machine)):
        raise ConfigError(f"kernels.compile is true, but {obstacle}; install it or set kernels.compile: false")
    obstacle = "blocks are compiled" if setting.compile else _liger_obstacle(machine)
    if setting.liger == "on" and obstacle:
        raise ConfigError(f"kernels.liger is on, but {obstacle}; set kernels.liger: auto")
    return Kernels(attention=attention, liger=setting.liger != "off" and not obstacle, compile=setting.compile)


def this_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """The machine of this process; nothing is imported that the run may not use."""
    compilers = (os.environ.get("CXX", ""), "g++", "c++", "clang++")
    return Machine(
        device=device.type,
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        dtype=dtype,
        modules=frozenset(name for name in (*_PACKAGES.values(), "liger_kernel", "triton") if _is_installed(name)),
        compiler=any(shutil.which(name) for name in compilers if name),
    )


def use_kernels(model: nn.Module, kernels: Kernels, *, keeps_products: bool = False) -> None:
    """Let a model that was just built run on these kernels. Compiling comes later, see compile_blocks.

    keeps_products: see use_liger.
    """
    use_attention(kernels.attention)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation = ATTENTION_NAMES[kernels.attention]
    if kernels.liger:
        use_liger(model, liger_functions(), keeps_products=keeps_products)


def use_attention(attention: Attention) -> Attend:
    """The function that calls a kernel. flash-attn-3 and -4 replace torch's kernel for the rest of the process."""
    if attention in _IMPLEMENTATIONS:
        activate_flash_attention_impl(_IMPLEMENTATIONS[attention])
    return ATTENDS[attention]


def write_kernels(folder: Path, kernels: Kernels, machine: Machine) -> None:
    """Write kernels.json into a run's output folder: the kernels and the machine that the run used last."""
    text = {**asdict(kernels), **asdict(machine), "dtype": str(machine.dtype), "modules": sorted(machine.modules)}
    write_whole(folder / KERNELS_NAME, json.dumps({**text, "torch": torch.__version__}, indent=2) + "\n")


def _attention_obstacle(attention: Attention, machine: Machine) -> str:
    """Why this attention cannot be used here; empty if it can."""
    if attention == "sdpa":
        return ""
    if machine.device != "cuda" or machine.capability is None:
        return f"it runs on a GPU, and this run is on {machine.device}"
    if machine.dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in half precision, and model.precision is {str(machine.dtype).removeprefix('torch.')}"
    major, minor = machine.capability
    majors = _CAPABILITIES.get(attention)
    if major < 8 or (majors and major not in majors):
        expected = " or ".join(f"{number}.x" for number in majors) if majors else "8.0 or higher"
        return f"it needs compute capability {expected}, and this GPU has {major}.{minor}"
    return _missing(_PACKAGES.get(attention), machine)


def _compile_obstacle(machine: Machine) -> str:
    if not machine.compiler:
        return "there is no C++ compiler (CXX, g++, c++, clang++)"
    return _missing("triton" if machine.device == "cuda" else None, machine)


def _liger_obstacle(machine: Machine) -> str:
    if machine.device != "cuda":
        return f"it runs on a GPU, and this run is on {machine.device}"
    return _missing("liger_kernel", machine)


def _missing(module: str | None, machine: Machine) -> str:
    return "" if module is None or module in machine.modules else f"the module {module} is not installed"


def _is_installed(module: str) -> bool:
    package, _, inner = module.partition(".")
    spec = find_spec(package)
    if not inner:
        return spec is not None
    # find_spec with the whole name would import the package around the module.
    return any((Path(place) / inner).is_dir() for place in (spec and spec.submodule_search_locations) or ())


_MOST_SHAPES = 64
"""The most shapes of one kind of block that are compiled; torch gives up after 8."""


def compile_blocks(blocks: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Compile the forward of each block, in place, before sharding. A part that cannot be compiled raises."""
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    # torch warns of operations in place within what is recomputed; the blocks have none.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    modules: list[Any] = list(blocks)
    for block in modules:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend)
