"""A GPU whose memory is short."""

import torch

CUDA_ERROR = "CUDA out of memory. Tried to allocate 20.00 MiB."


def shortage() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError(CUDA_ERROR)
