"""`python -m benchmarks gpu` is `benchmarks.gpu.program`; with other names it is `benchmarks.program`.

A machine with a GPU need not have what servers and peers want, so only one of them is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["gpu"]:
        from benchmarks.gpu.program import main as run

        run(given[1:])
    else:
        from benchmarks.program import main as run

        run(given)


if __name__ == "__main__":
    main()
