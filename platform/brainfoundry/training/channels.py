"""The input channels of a network by name, and which scan of a shard set each is shown."""

from __future__ import annotations

from collections.abc import Sequence

from brainfoundry.core.errors import ConfigError
from brainfoundry.store.reader import ShardSet


def channels_of(
    modalities: Sequence[str], feed: Sequence[str], shards: ShardSet
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the input channels, and the modality that each shows.

    Args:
        modalities: channels by name; empty: the shard set's own.
        feed: CHANNEL=MODALITY for channels that show another modality than their own.

    Raises:
        ConfigError: a modality that is not there, a channel named twice, a feed that is none.
    """
    there = tuple(shards.meta.modalities)
    names = tuple(modalities) or there
    if len(set(names)) != len(names):
        raise ConfigError(
            f"a modality is named twice in {', '.join(names)}",
            fix="name each channel once; --data.feed CHANNEL=MODALITY shows one scan in two channels",
        )
    feeds = {}
    for text in feed:
        channel, equals, modality = text.partition("=")
        if not equals or channel not in names:
            raise ConfigError(
                f"--data.feed {text!r} names no channel and modality",
                fix=f"write CHANNEL=MODALITY, with a channel of {', '.join(names)}",
            )
        feeds[channel] = modality
    fed_by = tuple(feeds.get(name, name) for name in names)
    for name in fed_by:
        if name not in there:
            raise ConfigError(
                f"modality {name!r} is not in the shard set, which has {', '.join(there)}",
                file=shards.uri,
                fix="choose --data.modalities from these, feed the channel with one of them "
                f"(--data.feed {name}={there[0]}), or prepare a shard set with it",
            )
    return names, fed_by
