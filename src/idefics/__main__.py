"""The command `idefics`, also as `python -m idefics`."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the CLI with the process's arguments and exits with its code; Ctrl-C during the imports exits with 130."""
    try:
        from idefics.cli.main import run
    except KeyboardInterrupt:
        os._exit(130)  # as `run` does, but without cleanup: some modules are only partly imported
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
