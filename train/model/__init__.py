"""The transformers model as it is trained: forward, loss, kernels, recomputation, LoRA."""
