"""Names of settings in other frameworks, for the error about an unknown key.

Only the last part of a name counts: optim.learning_rate and learning_rate are the same here. The answer is one of our
keys, or a sentence if no key does the same. Names of earlier versions of lmms are here too.
"""

from collections.abc import Mapping
from types import MappingProxyType

from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.train import TrainConfig

_SEQ_LEN = "how long a pack is was decided when the shards were built: lmms prep build-shards --seq-len"
_PIXELS = "how large images are was decided when the shards were built: lmms prep build-shards --max-pixels"
_BATCH = "data.global_packs is the number of packs in a step over all ranks, and accumulation follows from it"
_FREEZE = "say it by part, such as train.vision=frozen"
_SHARDED = "FSDP2 shards every run; see the section parallel"
_PRECISION = "master weights are fp32 always; model.precision is the compute type"

_TRAIN: Mapping[str, str] = MappingProxyType(
    {
        "model_name_or_path": "model.path",
        "model_path": "model.path",
        "output_dir": "output",
        "save_dir": "output",
        "resume_from_checkpoint": "resume",
        "learning_rate": "optim.lr",
        "vision_lr": "optim.lr.vision",
        "vit_lr": "optim.lr.vision",
        "lr_scheduler_type": "optim.schedule",
        "lr_decay_style": "optim.schedule",
        "optimizer": "optim.name",
        "adam_beta1": "optim.betas",
        "adam_beta2": "optim.betas",
        "adam_epsilon": "optim.eps",
        "max_norm": "optim.max_grad_norm",
        "grad_clip": "optim.max_grad_norm",
        "min_lr": "optim.min_lr_ratio is its share of the peak",
        "num_train_epochs": "max_epochs",
        "num_epochs": "max_epochs",
        "epochs": "max_epochs",
        "train_steps": "max_steps",
        "dataset": "data.shards",
        "dataset_path": "data.shards",
        "train_path": "data.shards",
        "per_device_train_batch_size": "data.micro_packs",
        "micro_batch_size": "data.micro_packs",
        "global_batch_size": "data.global_packs",
        "train_batch_size": "data.global_packs",
        "batch_size": "data.global_packs",
        "gradient_accumulation_steps": _BATCH,
        "dataloader_num_workers": "data.workers",
        "num_workers": "data.workers",
        "max_length": _SEQ_LEN,
        "max_seq_length": _SEQ_LEN,
        "max_seq_len": _SEQ_LEN,
        "seq_len": _SEQ_LEN,
        "cutoff_len": _SEQ_LEN,
        "model_max_length": _SEQ_LEN,
        "packing": "shards are packed by lmms prep build-shards, always",
        "max_pixels": _PIXELS,
        "min_pixels": _PIXELS,
        "gradient_checkpointing": "memory.recompute",
        # model.recompute: the name of earlier versions
        "recompute": "memory.recompute",
        "attn_implementation": "kernels.attention",
        "attn_impl": "kernels.attention",
        "use_liger_kernel": "kernels.liger",
        "torch_compile": "kernels.compile",
        "bf16": _PRECISION,
        "fp16": _PRECISION,
        "torch_dtype": _PRECISION,
        "deepspeed": _SHARDED,
        "fsdp": _SHARDED,
        "ulysses_parallel_size": "parallel.sequence",
        "sequence_parallel_size": "parallel.sequence",
        "freeze_vision_tower": _FREEZE,
        "freeze_vit": _FREEZE,
        "freeze_aligner": _FREEZE,
        "freeze_llm": _FREEZE,
        "lora_rank": "lora.rank",
        "lora_r": "lora.rank",
        "r": "lora.rank",
        "lora_alpha": "lora.alpha",
        "lora_dropout": "lora.dropout",
        "lora_target": "lora.targets",
        "target_modules": "lora.targets",
        "logging_steps": "log_steps",
        "eval_steps": "eval.every_steps",
        "eval_dataset": "eval.shards",
        "report_to": "log.wandb names a project there, log.tensorboard is true or false",
        "wandb_project": "log.wandb",
        "run_name": "log.wandb_name",
        "full_determinism": "deterministic",
    }
)

_PREP: Mapping[str, str] = MappingProxyType(
    {
        "model_name_or_path": "model",
        "tokenizer": "model",
        "processor": "model",
        "max_length": "seq_len",
        "max_seq_length": "seq_len",
        "max_seq_len": "seq_len",
        "cutoff_len": "seq_len",
        "packing_length": "seq_len",
        "output": "out",
        "output_dir": "out",
        "dataset": "sources",
        "data": "sources",
        "input": "sources",
        "image_folder": "media_root",
        "media_dir": "media_root",
        "data_folder": "media_root",
        "formatting": "form",
        "columns": "fields",
        "text_keys": "fields",
        "image_max_pixels": "max_pixels",
        "max_samples": "max_records",
        "val_size": "eval_share",
        "split_dataset_ratio": "eval_share",
        "sample_ratio": "it is the key repeat of a source, such as sources: [{path: a.jsonl, repeat: 0.3}]",
        "default_system": "system",
        "system_prompt": "system",
        "images_per_user_turn": "it is a transform: transforms: [{name: join, images: 2}]",
        "num_proc": "workers",
        "preprocessing_num_workers": "workers",
    }
)

OTHER_NAMES: Mapping[type, Mapping[str, str]] = MappingProxyType({TrainConfig: _TRAIN, PrepConfig: _PREP})
"""Config -> name -> our key, or a sentence."""
