"""Digests that identify settings, files and weights by content."""

import hashlib
import json
from pathlib import Path

import torch


def digest(content) -> str:
    """Return a short digest of anything that can be written as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def digest_file(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """Return a short digest of named tensors: their names, types, shapes and values."""
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()[:16]
