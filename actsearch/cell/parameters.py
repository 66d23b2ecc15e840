"""OpParameters: what the operations of a cell are trained in, by the scope of each: network, site or channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from actsearch.errors import SettingsError
from actsearch.ops.spec import OpParameter, Value, registry
from actsearch.seeds import mix_seed
from actsearch.space import SearchSpace


class OpParameters(nn.ParameterDict):
    """The parameters of all candidates of a cell, by `slot/op/name`.

    Of network scope it holds one value, of shape () or, of a vector, (n,); of site scope one a site, (S,) or (S, n).
    Of channel scope there is an entry for each site, `slot/op/name/SITE`, with a value for each channel, (C,) or
    (n, C), whose number is that of the site's first input.

    Args:
        space: of the cell.
        starts: of those of network scope.
        seed: what the others' starts are drawn from, with the site.
        channel_axis: the axis of the inputs that holds the channels: 1 for images, -1 for tokens.

    Raises SettingsError if an operation needs the axis and it is not given.

    Attributes:
        by_channel: whether there are parameters of channel scope.
    """

    def __init__(self, space: SearchSpace, starts: Mapping[str, Tensor], seed: int, channel_axis: int | None) -> None:
        super().__init__()
        self.specs: dict[str, OpParameter] = {
            f"{slot.name}/{op}/{p.name}": p
            for slot in space.slots
            for op in slot.candidates
            for p in registry[op].parameters
        }
        self.channel_axis = channel_axis
        self.by_channel = any(p.scope == "channel" for p in self.specs.values())
        self.n_sites = 0
        self._seed = seed
        for key, p in self.specs.items():
            if p.scope == "network":
                self[key] = nn.Parameter(starts[key])
            elif p.scope == "channel" and channel_axis is None:
                op = key.split("/")[1]
                raise SettingsError(
                    f"operation {op!r} has parameters by channel: give channel_axis, 1 for images and -1 for tokens"
                )
        self._add_site(0)
        self.register_load_state_dict_pre_hook(_make_room)

    def add_site(self) -> None:
        """Parameters of one more site."""
        if self.n_sites:
            self._add_site(self.n_sites)
        self.n_sites += 1

    def _add_site(self, site: int) -> None:
        generator = torch.Generator().manual_seed(mix_seed(self._seed, -1, site))
        for key, p in self.specs.items():
            if p.scope == "site":
                new = drawn(p, generator)[None]
                self[key] = nn.Parameter(torch.cat([self[key].detach(), new.to(self[key].device)]) if site else new)
            elif p.scope == "channel":
                self[f"{key}/{site}"] = UninitializedParameter()

    def spec_of(self, entry: str) -> OpParameter:
        """What is known of the parameter of an entry, `slot/op/name` or `slot/op/name/SITE`."""
        return self.specs["/".join(entry.split("/")[:3])]

    # -- channels --------------------------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Whether every site's number of channels is known."""
        return not any(isinstance(p, UninitializedParameter) for p in self.values())

    def meet(self, x: Tensor, site: int) -> None:
        """Take the number of channels of `site` from its input `x`, if that is not known."""
        if not self.by_channel:
            return
        assert self.channel_axis is not None
        if not -x.ndim <= self.channel_axis < x.ndim:
            raise SettingsError(f"channel_axis is {self.channel_axis}, and a site's input has {x.ndim} dimensions")
        for key, p in self.specs.items():
            if p.scope == "channel" and isinstance(self[f"{key}/{site}"], UninitializedParameter):
                self._materialise(key, site, x.shape[self.channel_axis], x.device)

    def _materialise(self, key: str, site: int, channels: int, device: torch.device) -> None:
        p, entry = self.specs[key], self[f"{key}/{site}"]
        start = torch.tensor(p.mean)[..., None].expand(*p.shape, channels)
        generator = torch.Generator().manual_seed(mix_seed(self._seed, -2, site))
        noise = torch.randn(start.shape, generator=generator)
        with torch.no_grad():
            entry.materialize(start.shape, device=device, dtype=torch.float32)
            entry.copy_(start + p.std * noise)

    # -- views -----------------------------------------------------------------------------------------------------

    def at_site(self, site: int, ndim: int) -> dict[str, Tensor]:
        """Those of a site by `slot/op/name`, in shapes that broadcast with an input of `ndim` dimensions."""
        found: dict[str, Tensor] = {}
        for key, p in self.specs.items():
            if p.scope == "network":
                found[key] = self[key]
            elif p.scope == "site":
                found[key] = self[key][site]
            else:
                assert self.channel_axis is not None
                shape = [1] * ndim
                shape[self.channel_axis] = -1
                found[key] = self[f"{key}/{site}"].view(*p.shape, *shape)
        return found

    def of_sites(self) -> dict[str, Tensor]:
        """Those of all sites, in shapes that broadcast with (S, P); none by channel."""
        found: dict[str, Tensor] = {}
        for key, p in self.specs.items():
            if p.scope == "site":
                found[key] = self[key].movedim(0, -1).unsqueeze(-1)
            else:
                assert p.scope == "network"
                found[key] = self[key]
        return found

    def mean(self, key: str) -> Tensor:
        """The value of `slot/op/name`, detached: (), or (n,); by sites or channels, their mean (in float64)."""
        p = self.specs[key]
        if p.scope == "network":
            return self[key].detach()
        if p.scope == "site":
            return self[key].detach().double().mean(0)
        known = [e.detach().double().flatten(len(p.shape)) for e in self._entries(key)]
        return torch.cat(known, -1).mean(-1) if known else torch.tensor(p.mean, dtype=torch.float64)

    def means(self) -> dict[str, Tensor]:
        """All of them by `slot/op/name`, as `mean` gives them."""
        return {key: self.mean(key) for key in self.specs}

    def slope_means(self, key: str) -> Tensor:
        """Of slopes, one number a layer: (1,) for the network, else (S,); by channel the mean of a site's channels."""
        p = self.specs[key]
        if p.scope == "channel":
            return torch.stack([entry.mean() for entry in self._entries(key)])
        return self[key].reshape(-1)

    def _entries(self, key: str) -> Iterator[Tensor]:
        for site in range(max(self.n_sites, 1)):
            entry = self[f"{key}/{site}"]
            if not isinstance(entry, UninitializedParameter):
                yield entry

    def value(self, key: str) -> Value:
        """`mean` as plain numbers."""
        return _plain(self.mean(key))

    def values_at(self, key: str, site: int) -> Value:
        """Those of a site as plain numbers; by channel, those of the first entry of a vector come first."""
        p = self.specs[key]
        if p.scope == "site":
            return _plain(self[key][site].detach())
        found = self[f"{key}/{site}"]
        return p.mean if isinstance(found, UninitializedParameter) else _plain(found.detach().flatten())


def _plain(tensor: Tensor) -> Value:
    return tuple(tensor.tolist()) if tensor.ndim else float(tensor)


def drawn(p: OpParameter, generator: torch.Generator) -> Tensor:
    """A start, of shape () or, of a vector, (n,)."""
    return torch.tensor(p.mean) + p.std * torch.randn(p.shape, generator=generator)


def _make_room(module: Any, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before a state is loaded: channels are as many as in it."""
    for name, entry in module.items():
        if isinstance(entry, UninitializedParameter) and prefix + name in state:
            key, _, site = name.rpartition("/")
            module._materialise(key, int(site), state[prefix + name].shape[-1], entry.device)
