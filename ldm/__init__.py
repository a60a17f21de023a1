"""Latent diffusion: the model, the samplers, training, and what turns requests into pictures."""

import os

# torch's allocator looks at it once, at its first tensor. Where the kernel gives huge pages only to who asks (`madvise`
# in /sys/kernel/mm/transparent_hugepage/enabled), a model's memory comes in a million pieces of 4 KiB otherwise. The
# first call of SD v1's U-Net in bfloat16, which packs its weights, took a third longer so; later calls did not.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
