"""Programs of peers that make the same records ready for training, for tools/bench/prep.py.

Each takes MODEL SOURCE OUT, and runs under the Python of an environment with the packages datasets and trl:

    uv venv peers && uv pip install --python peers/bin/python torch transformers datasets trl
"""

MAP = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer
model, source, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
def ids(batch):
    tools = batch.get("tools") or [None] * len(batch["messages"])
    texts = [tokenizer.apply_chat_template(m, tools=t, tokenize=False) for m, t in zip(batch["messages"], tools)]
    return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}
rows = load_dataset("json", data_files=source, split="train")
rows.map(ids, batched=True, remove_columns=rows.column_names).save_to_disk(out)
"""
"""The recipe of most scripts: template and tokenizer in `datasets.map`; neither packed nor masked."""

TRL = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template
model, source, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
rows = load_dataset("json", data_files=source, split="train")
config = SFTConfig(
    output_dir=out, max_length=16384, packing=True, assistant_only_loss=True, bf16=False, use_cpu=True, report_to="none"
)
trainer = SFTTrainer.__new__(SFTTrainer)  # without a model, which the trainer would load
trainer.__dict__.update(
    args=config, chat_template=get_training_chat_template(tokenizer), completion_only_loss=False, _tokenizer=tokenizer,
    _is_vision_dataset=False, _is_vlm=False,
)
trainer._prepare_dataset(rows, tokenizer, config, True, None, "train").save_to_disk(out)
"""
"""What SFTTrainer does with a data set before it trains: template, tokenizer, mask of assistant turns, packing."""

PEERS = {"map": MAP, "TRL": TRL}
