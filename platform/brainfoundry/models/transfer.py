"""Weights from one network onto another, channels by the modality's name, with a table of what went where.

    torch.manual_seed(0)
    network = build_segmenter(EncoderSpec(size="small", in_channels=4), 3)
    table = transfer(network, state, source_modalities=["T1w", "FLAIR"],
                     target_modalities=["FLAIR", "T1ce", "T1w", "T2w"])
    print(table.text())

The released code loads without asking what was loaded: its first convolution is never carried over, and two
of its paths load nothing at all and report success. Here every tensor of either side is accounted for.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from brainfoundry.core.errors import CheckpointError, ConfigError

Mode = Literal["paper", "reference", "mean", "repeat"]
"""What a channel of the first convolution gets that the source does not have.

- paper: Kaiming-normal weights (fan_out, relu), as the paper means it; shared modalities are copied.
- reference: the whole first convolution stays fresh, bias included, as the released code really did.
- mean: the mean of the source's channels; shared modalities are copied.
- repeat: channel i gets source channel i mod n, whatever their names.
"""
Part = Literal["encoder", "heads", "decoder"]
"""encoder: `swinViT.*`; heads: those of `SSLNetwork`; decoder: all else of a SwinUNETR."""
Action = Literal["copied", "adapted", "initialised", "dropped"]

MODES: tuple[Mode, ...] = get_args(Mode)
PARTS: tuple[Part, ...] = get_args(Part)
ACTIONS: tuple[Action, ...] = get_args(Action)

STEM = "swinViT.patch_embed.proj.weight"
"""The first convolution, (features, channels, 2, 2, 2)."""
STEM_BIAS = "swinViT.patch_embed.proj.bias"
_HEADS = ("rotation_head.", "contrastive_head.", "conv.")
_CHANNEL_AXIS = {
    STEM: 1,
    "encoder1.layer.conv1.conv.weight": 1,  # SwinUNETR's outermost skip connection reads the scan itself
    "encoder1.layer.conv3.conv.weight": 1,
    "conv.20.weight": 0,  # the last convolution of the reconstruction head writes one
    "conv.20.bias": 0,
}
"""Axis of the modalities, in tensors that have one."""
_GROUP = re.compile(r"swinViT\.patch_embed\.proj\.\w+|swinViT\.layers\d\.0\.(?:blocks\.\d+|\w+)|[^.]+")


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """What became of one tensor."""

    name: str
    action: Action
    """copied (unchanged), adapted (some of it), initialised (the target's own, fresh), dropped (the source's,
    not used)."""
    shape: tuple[int, ...]
    """In the target; of a dropped tensor, in the source."""
    parameters: int
    """Numbers that are learned; 0 for a table of indices."""
    note: str = ""
    """Why, or for which channels; several remarks are set apart by "; "."""


@dataclass(frozen=True, kw_only=True)
class TransferTable:
    """One row for every tensor of the target, then one for every tensor of the source that went nowhere."""

    rows: tuple[TransferRow, ...]
    mode: Mode
    source: str
    """Where the weights came from."""

    def counts(self) -> dict[str, int]:
        """Tensors by action."""
        return {action: sum(row.action == action for row in self.rows) for action in ACTIONS}

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by action; those of an adapted tensor count whole."""
        return {a: sum(row.parameters for row in self.rows if row.action == a) for a in ACTIONS}

    def text(self) -> str:
        """The table for a terminal: a line a block, the first convolution channel by channel, totals last."""
        groups: dict[tuple[str, str, str], list[TransferRow]] = {}
        for row in self.rows:
            block = _GROUP.match(row.name)
            groups.setdefault((block[0] if block else "", row.action, row.note), []).append(row)
        labels = [_label([row.name for row in rows]) for rows in groups.values()]
        width = max(map(len, labels))
        lines = [f"weights from {self.source or 'memory'}, mode {self.mode}"]
        for label, ((_, action, note), rows) in zip(labels, groups.items(), strict=True):
            parameters = sum(row.parameters for row in rows)
            remarks = note.split("; ") if note else []
            line = f"{label:<{width}}  {_tensors(len(rows)):>11}  {action:<11}  {parameters:>11,}"
            if len(remarks) == 1 and not remarks[0].startswith("channel"):
                line += f"  {remarks.pop()}"
            lines += [line, *(f"    {remark}" for remark in remarks)]
        parameters_by = self.parameter_counts()
        totals = (f"{n:,} {a} ({parameters_by[a]:,} parameters)" for a, n in self.counts().items())
        return "\n".join([*lines, f"tensors: {', '.join(totals)}"])

    def to_csv(self) -> str:
        """Every row, as CSV with a header."""
        sink = io.StringIO()
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow(("name", "action", "shape", "parameters", "note"))
        for row in self.rows:
            writer.writerow((row.name, row.action, _shape(row.shape), row.parameters, row.note))
        return sink.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: mode, source, counts and all rows."""
        rows = [{**asdict(row), "shape": list(row.shape)} for row in self.rows]
        return {
            "mode": self.mode,
            "source": self.source,
            "counts": self.counts(),
            "parameter_counts": self.parameter_counts(),
            "rows": rows,
        }


def transfer(
    target: nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    source_modalities: Sequence[str],
    target_modalities: Sequence[str],
    mode: Mode = "paper",
    parts: Sequence[str] = ("encoder",),
    source: str = "",
) -> TransferTable:
    """Put the weights of `state` into `target`, in place; what is not transferred stays as it is.

    Besides the first convolution, which `mode` rules, tensors with an axis of modalities are mapped by name,
    and channels without a source stay fresh. Whether both networks merge patches alike, the weights cannot
    tell: that is for the caller to compare. Kaiming weights come from torch's global generator.

    Args:
        target: a freshly initialised `SSLNetwork` or SwinUNETR, not wrapped.
        state: state dict of either.
        source_modalities: the source's input channels by name, in order.
        target_modalities: the target's.
        mode: what new channels of the first convolution get, see `Mode`.
        parts: what to transfer, of `PARTS`.
        source: where the weights came from, for the table and for messages.

    Raises:
        ConfigError: an unknown mode or part, or a channel named twice.
        CheckpointError: no parameter of a part could be transferred, or the source has another number of
            channels than modalities. The target is unchanged.
    """
    _check_request(mode, parts, source_modalities, target_modalities)
    own = target.state_dict()
    buffers = {name for name, _ in target.named_buffers()}
    channels = _Channels(mode, tuple(source_modalities), tuple(target_modalities), source)
    matches: dict[str, _Match] = {}
    for name, tensor in own.items():
        given = state.get(name)
        if _part_of(name) not in parts:
            matches[name] = _Match("initialised", f"part {_part_of(name)} not asked for")
        elif given is None:
            matches[name] = _Match("initialised", "not in the source")
        elif name in buffers and not torch.equal(tensor.cpu(), given.cpu()):
            matches[name] = _Match("initialised", "another table in source and target")
        elif name in _CHANNEL_AXIS and _fits(tensor, given, _CHANNEL_AXIS[name]):
            matches[name] = channels.match(name, tensor, given)
        elif name == STEM_BIAS and mode == "reference":
            matches[name] = _Match("initialised", "not carried over, as in the released code")
        elif tensor.shape != given.shape:
            shapes = f"{_shape(given.shape)} in the source, {_shape(tensor.shape)} in the target"
            matches[name] = _Match("initialised", shapes)
        else:
            matches[name] = _Match("copied", value=given)
    rows = [_row(name, match.action, own[name], match.note) for name, match in matches.items()]
    _refuse_nothing(parts, rows, own, state, source)
    used = {row.name for row in rows if row.action != "initialised"}
    for name, given in state.items():
        if name not in used:
            note = "not in the target" if name not in matches else matches[name].dropped
            rows.append(_row(name, "dropped", given, note))
    target.load_state_dict(own | {n: match.value for n, match in matches.items() if match.value is not None})
    return TransferTable(rows=tuple(rows), mode=mode, source=source)


@dataclass(frozen=True)
class _Match:
    """What a tensor of the target gets; no value: it stays as it is."""

    action: Action
    note: str = ""
    value: torch.Tensor | None = None

    @property
    def dropped(self) -> str:
        """The note for the source's tensor, where nothing of it is used."""
        return "none of its channels is used" if self.note.startswith("channel") else self.note


@dataclass(frozen=True)
class _Channels:
    """The modalities of both sides, and what they mean for a tensor that has an axis of them."""

    mode: Mode
    given: tuple[str, ...]
    wanted: tuple[str, ...]
    source: str

    def match(self, name: str, fresh: torch.Tensor, given: torch.Tensor) -> _Match:
        axis = _CHANNEL_AXIS[name]
        if given.shape[axis] != len(self.given):
            raise CheckpointError(
                f"tensor {name} has {given.shape[axis]} channel(s), but the source's modalities are "
                f"{', '.join(self.given) or 'none'}",
                file=self.source or None,
                fix="name the modality of each channel, in order",
            )
        value = fresh.detach().cpu().clone()
        given = given.detach().to("cpu", value.dtype)
        feeds = [self.given.index(n) if n in self.given else None for n in self.wanted]
        filling = "fresh"
        if name == STEM:
            feeds = self._stem_feeds(feeds)
            filling = self._fill(value, given)
        for i, j in enumerate(feeds):
            if j is not None:
                value.select(axis, i).copy_(given.select(axis, j))
        from_source = filling.startswith("mean") or any(j is not None for j in feeds)
        action: Action = "adapted" if from_source else "initialised"
        if value.shape == given.shape and torch.equal(value, given):
            action = "copied"
        return _Match(action, self._note(feeds, filling), value)

    def _stem_feeds(self, by_name: list[int | None]) -> list[int | None]:
        """Source channel of each channel of the first convolution; None = a new one."""
        if self.mode == "repeat":
            return [i % len(self.given) for i in range(len(self.wanted))]
        return [None] * len(self.wanted) if self.mode == "reference" else by_name

    def _fill(self, value: torch.Tensor, given: torch.Tensor) -> str:
        """Give every channel of the first convolution the weights of a new one, in place; says which."""
        if self.mode == "paper":
            # The fan of the whole weight; all is drawn, so that a channel's draw depends on the target alone.
            nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu")
            return "Kaiming"
        if self.mode == "mean":
            # Sorted by value, because a sum in floating point depends on the order of its terms.
            value.copy_(given.sort(dim=1).values.mean(dim=1, keepdim=True).expand_as(value))
            return "mean of the source"
        return "fresh"

    def _note(self, feeds: Sequence[int | None], filling: str) -> str:
        remarks = [
            f"channel {i} {name}" + (f": {filling}" if j is None else f" <- source {j} {self.given[j]}")
            for i, (name, j) in enumerate(zip(self.wanted, feeds, strict=True))
        ]
        fate = "in the mean alone" if filling.startswith("mean") and None in feeds else "dropped"
        remarks += [f"source {j} {name}: {fate}" for j, name in enumerate(self.given) if j not in feeds]
        return "; ".join(remarks)


def _check_request(mode: str, parts: Sequence[str], *channels: Sequence[str]) -> None:
    if mode not in MODES:
        raise ConfigError(f"transfer mode '{mode}' does not exist", fix=f"choose one of {', '.join(MODES)}")
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ConfigError(
            f"part '{unknown[0]}' does not exist" if unknown else "no part of the network to transfer",
            fix=f"choose from {', '.join(PARTS)}",
        )
    for names in channels:
        if len(set(names)) != len(names):
            raise ConfigError(f"a channel is named twice in {', '.join(names)}", fix="name each channel once")


def _part_of(name: str) -> Part:
    if name.startswith("swinViT."):
        return "encoder"
    return "heads" if name.startswith(_HEADS) else "decoder"


def _fits(tensor: torch.Tensor, given: torch.Tensor, axis: int) -> bool:
    """Equal shapes, but for the number of channels."""
    if tensor.dim() != given.dim():
        return False
    return all(a == b for i, (a, b) in enumerate(zip(tensor.shape, given.shape, strict=True)) if i != axis)


def _refuse_nothing(
    parts: Sequence[str],
    rows: Sequence[TransferRow],
    own: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    source: str,
) -> None:
    for part in parts:
        used = [row for row in rows if _part_of(row.name) == part and row.action != "initialised"]
        if not any(row.parameters for row in used):
            wanted = {name: tensor for name, tensor in own.items() if _part_of(name) == part}
            raise CheckpointError(
                f"not one parameter of part '{part}' could be transferred: the network wants {_few(wanted)}; "
                f"the source has {_few(state)}",
                file=source or None,
                fix="use a checkpoint of the same size that has this part, or leave the part out",
            )


def _row(name: str, action: Action, tensor: torch.Tensor, note: str) -> TransferRow:
    parameters = tensor.numel() if tensor.is_floating_point() else 0
    return TransferRow(name=name, action=action, shape=tuple(tensor.shape), parameters=parameters, note=note)


def _label(names: Sequence[str]) -> str:
    """One name, or what several have in common."""
    if len(names) == 1:
        return names[0]
    levels = zip(*(name.split(".") for name in names), strict=False)
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
    return ".".join([level[0] for level in shared] + ["*"])


def _tensors(n: int) -> str:
    return f"{n} tensor" + ("s" if n != 1 else " ")


def _few(tensors: Mapping[str, torch.Tensor]) -> str:
    shown = [f"{name} {_shape(tensor.shape)}" for name, tensor in list(tensors.items())[:3]]
    more = ", ..." if len(tensors) > len(shown) else ""
    return f"{len(tensors)} tensors" + (f" ({', '.join(shown)}{more})" if shown else "")


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
