"""The command `idefics`, also as `python -m idefics`."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the CLI with the process's arguments and ends the process with its exit code.

    Ctrl-C during the imports exits with 130.
    """
    try:
        from idefics.cli.process import QuickExit, paused_garbage_collection

        quick_exit = QuickExit()
        with paused_garbage_collection():
            from idefics.cli.main import run
    except KeyboardInterrupt:
        os._exit(130)  # as `run` does, but without cleanup: some modules are only partly imported
    quick_exit.exit_code = run(sys.argv[1:])
    sys.exit(quick_exit.exit_code)


if __name__ == "__main__":
    main()
