"""Writes tests/golden/vectors, the golden vectors of the tiny checkpoints: `python demo-model/golden_vectors.py`.

Tests compare every version of the package and its dependencies with these numbers. Rewrite them only where a number was
wrong, and say in the commit which and why.
"""

from __future__ import annotations

import argparse

from vectors.cases import PROMPT_BY_CHECKPOINT, compute_vectors, load_tiny_checkpoint, min_logit_margin

MIN_MARGIN = 1e-3  # where two tokens are closer, the answer may differ between machines


def main() -> None:
    """Reads the command line, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=list(PROMPT_BY_CHECKPOINT), help="of checkpoints; all unless told"
    )
    for name in parser.parse_args().names:
        vlm = load_tiny_checkpoint(name)
        vectors = compute_vectors(vlm, name)
        if (smallest_margin := min_logit_margin(vlm, name, vectors)) < MIN_MARGIN:
            raise SystemExit(
                f"{name}: two tokens of its answer are {smallest_margin:.0e} apart; ask it something else"
            )
        vectors.write(name)
        num_bytes = sum(tensor.nbytes for tensor in vectors.tensors.values())
        print(
            f"{name}: {len(vectors.facts['ids'])} tokens, {num_bytes / 1000:.0f} kB, margin {smallest_margin:.3f}"
        )


if __name__ == "__main__":
    main()
