"""Agreement: whether all processes of a search hold the same, bit for bit, by one small message."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from actsearch.errors import RankError
from actsearch.ranks import rank_and_world

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """A checksum of the bits of real tensors and of their order, 0-d int64 on `device`, computed there."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in tensors:
        bits = tensor.detach().contiguous().flatten().view(_BITS[tensor.element_size()]).to(torch.int64)
        # The place counts too, so that two values that change places are seen; int64 wraps around.
        total = total * 1_000_003 + (bits * torch.arange(1, 2 * bits.numel(), 2, device=bits.device)).sum()
    return total


def check_agreement(
    tensors: Mapping[str, Iterable[Tensor]], texts: Mapping[str, str], device: torch.device, step: int
) -> None:
    """Raise RankError, in all processes alike, if one holds other tensors, or other texts, than the first.

    8 bytes for each name go from every process to every other one, and the host waits for them.

    Args:
        tensors, texts: by what they are in words.
        device: that of the tensors, and of the message.
        step: that is told.
    """
    _, world = rank_and_world()
    if world == 1:
        return
    names = [*tensors, *texts]
    own = [fingerprint(values, device) for values in tensors.values()]
    own += [torch.tensor(zlib.crc32(text.encode()), dtype=torch.int64, device=device) for text in texts.values()]
    mine = torch.stack(own)
    gathered = [torch.empty_like(mine) for _ in range(world)]
    torch.distributed.all_gather(gathered, mine)
    first, *others = torch.stack(gathered).tolist()
    other = [k for k, found in enumerate(others, 1) if found != first]
    if other:
        what = [name for i, name in enumerate(names) if any(others[k - 1][i] != first[i] for k in other)]
        listed = ", ".join(map(str, other[:8])) + (", …" if len(other) > 8 else "")
        raise RankError(
            f"step {step}: {' and '.join(what)} of rank {listed} differ from those of rank 0: all must compute the "
            "same from the same gradients; look for what depends on the rank in the task, or for a faulty device"
        )
