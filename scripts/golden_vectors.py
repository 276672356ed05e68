"""Writes what the tiny checkpoints make of their prompts to tests/golden/vectors: `python scripts/golden_vectors.py`.

The tests hold every version of the package and of its dependencies to these numbers. Write them again only where a
number was wrong, and say in the commit which and why. Names of checkpoints as arguments write those alone.
"""

from __future__ import annotations

import argparse

from vectors.cases import PROMPTS, load, margin, measure

LEAST_MARGIN = 1e-3  # an answer nearer to another one might differ between machines


def main() -> None:
    """Reads the command line, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(PROMPTS), help="of checkpoints; all unless told")
    for name in parser.parse_args().names:
        vlm = load(name)
        vectors = measure(vlm, name)
        if (least := margin(vlm, name, vectors)) < LEAST_MARGIN:
            raise SystemExit(f"{name}: two tokens of its answer are {least:.0e} apart; ask it something else")
        vectors.write(name)
        count = sum(tensor.nbytes for tensor in vectors.tensors.values())
        print(f"{name}: {len(vectors.facts['ids'])} tokens, {count / 1000:.0f} kB, margin {least:.3f}")


if __name__ == "__main__":
    main()
