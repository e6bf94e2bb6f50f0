"""The small shard sets of the training tests serve studies too."""

from tests.training.conftest import labelled_shards, small_shards

__all__ = ["labelled_shards", "small_shards"]
