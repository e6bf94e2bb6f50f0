"""The small shard set of the training tests serves the jobs too."""

from tests.training.conftest import small_shards

__all__ = ["small_shards"]
