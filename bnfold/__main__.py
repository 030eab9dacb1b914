"""`python -m bnfold`: the same as the `bnfold` command."""

from __future__ import annotations

from bnfold.cli import main

if __name__ == "__main__":
    main()
