"""Verification of cohorts and shard sets: what is wrong with which scan, before a GPU is touched."""
