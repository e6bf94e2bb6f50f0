"""Joining the Ray cluster a job was sent to, or starting a private one on this machine."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Any

from brainfoundry.core.errors import ClusterError

if "RAY_ADDRESS" not in os.environ and "ray" not in sys.modules:
    # Ray reads this when it is imported, so it cannot wait for `connect`. Despite its name it decides, on
    # every system, whether listeners are bound to all interfaces; 0 keeps a private session on loopback.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def connect(*, num_cpus: int | None = None, **options: Any) -> str:
    """Connect this process to Ray and say in words to what.

    Inside `ray job submit`, or with `RAY_ADDRESS` set, that cluster is joined. Otherwise a private one
    is started on loopback, with a token of its own that is never written to disk: Ray's default would
    write `~/.ray/auth_token`, and every later `ray start` on the machine would then demand it.

    Args:
        num_cpus: logical CPUs of the private cluster; the machine's cores if None. Ignored when joining.
        options: passed on to `ray.init`.

    Raises:
        ClusterError: the cluster named by `RAY_ADDRESS` does not answer.
    """
    import ray

    if ray.is_initialized():
        return "the Ray session of this process"
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, **options)
        except Exception as error:
            raise ClusterError(
                f"the Ray cluster at RAY_ADDRESS={address} does not answer: {error}",
                fix="start it (make cluster), or unset RAY_ADDRESS to run on this machine alone",
            ) from error
        return f"the Ray cluster at {address}"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray turns token authentication on here by itself; given a token, it writes none to disk.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    options.setdefault("include_dashboard", False)
    ray.init(address="local", num_cpus=num_cpus, **options)
    return "a private Ray session on this machine"
