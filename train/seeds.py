"""Random numbers of a step. Each step seeds its own, so no state of a generator has to be saved or come back."""

import random

import numpy as np
import torch

from lmms.configs.hashing import key64


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every global generator of this process: Python's, numpy's old one, torch's on the CPU and on each GPU."""
    key = key64("step", seed, step, rank)
    random.seed(key)
    np.random.seed([key % 2**32, key >> 32])
    torch.manual_seed(key)
