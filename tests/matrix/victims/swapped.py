"""Victim: a model whose weights the kernel has swapped out, as it does to a server that waits.

The pages stay in memory until another process needs it: the swap cache. Without a swap device nothing happens to them.
"""
import ctypes

import torch
from torch import nn

from truth import tell, wait

PAGE_BYTES = 4096
# madvise(2): "reclaim", since Linux 5.4.
MADV_PAGEOUT = 21

torch.manual_seed(23)
model = nn.Sequential(nn.Linear(150, 200), nn.ReLU(), nn.Linear(200, 150), nn.LayerNorm(150)).eval()
for parameter in model.parameters():
    parameter.requires_grad_(False)
tell("swapped", model)

libc = ctypes.CDLL(None)
for parameter in model.parameters():
    start = parameter.data_ptr()
    end = start + parameter.numel() * parameter.element_size()
    first, after = -(-start // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
    if first < after:
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(after - first), MADV_PAGEOUT)
wait()
