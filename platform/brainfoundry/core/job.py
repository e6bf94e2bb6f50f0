"""What every job script has in common: options in, one clear line out when something is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from brainfoundry.core.config import argv_of_process, parse
from brainfoundry.core.errors import BrainFoundryError, ConfigError

C = TypeVar("C")


def run_job(
    kind: type[C],
    main: Callable[[C], int | None],
    *,
    description: str | None,
    default: C | None = None,
    presets: Mapping[str, C] | None = None,
    default_preset: str | None = None,
    aliases: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Parse the options, run `main`, and exit.

    Exit status: 0 done; what `main` returned; 2 wrong options; 1 any other problem a user can mend,
    told in one line on stderr (`BRAINFOUNDRY_DEBUG=1` adds the traceback); 130 after Ctrl-C.
    """
    try:
        config = parse(
            kind,
            argv if argv is not None else argv_of_process(),
            default=default,
            presets=presets,
            default_preset=default_preset,
            aliases=aliases,
            description=description,
            prog=Path(sys.argv[0]).name,
        )
        code = main(config) or 0
    except BrainFoundryError as error:
        if os.environ.get("BRAINFOUNDRY_DEBUG"):
            raise
        print(f"error: {error.line()}", file=sys.stderr, flush=True)
        code = 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("stopped by the user", file=sys.stderr, flush=True)
        code = 130
    sys.stdout.flush()
    sys.exit(code)
