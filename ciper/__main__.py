"""``python -m ciper``: the same command line as the script ``ciper``."""

from __future__ import annotations

from ciper.cli import main

if __name__ == "__main__":
    main()
