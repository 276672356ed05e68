"""`python -m idefics` is the command `idefics`."""

from idefics.cli.main import main

if __name__ == "__main__":
    main()
