"""The one seam through which an implementation of window attention enters an encoder.

MONAI's own attention stores every score; a faster one that computes the same numbers joins here as another
name, without touching the encoder, the heads, the checkpoint format or the engine.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.segment_attention import install_segments


def _keep(encoder: nn.Module) -> None:
    """MONAI's encoder comes with MONAI's attention: nothing to install."""


IMPLEMENTATIONS: dict[str, Callable[[nn.Module], None]] = {
    "monai": _keep,
    "segments": install_segments,
}
"""What each name does, in place, to a freshly built encoder; parameters and their names stay as they are."""


def install_attention(encoder: nn.Module, name: str) -> None:
    """Make `encoder` compute its window attention with the implementation called `name`.

    Raises:
        ConfigError: there is no such implementation.
    """
    if name not in IMPLEMENTATIONS:
        raise ConfigError(
            f"attention '{name}' does not exist", fix=f"choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    IMPLEMENTATIONS[name](encoder)
