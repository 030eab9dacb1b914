"""Every BatchNorm that stays, by reason: the default fold of every real model and every skeleton.

    python benchmarks/reasons.py [--files GLOB] [--kept auto]

Prints a markdown table: reason, how many, in which files, and the sentence of the first. Exit code 1 if a file fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter

from harness import files, ready, say, table


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", help="glob of the files (default: every real model and every skeleton)")
    parser.add_argument("--kept", default="auto", help="as bnfold fold has it")
    arguments = parser.parse_args()
    import bnfold

    where: dict[str, Counter[str]] = {}
    first: dict[str, str] = {}
    counts, failed = Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        for path in files(arguments.files):
            with ready(path, folder) as model:
                try:
                    result = bnfold.fold(str(model), verify=False, kept=arguments.kept)
                except bnfold.BnfoldError as error:
                    failed.append(f"{path.name}: {error}")
                    continue
            counts["files"] += 1
            counts["before"] += result.report.before.batch_norms
            counts["after"] += result.report.after.batch_norms
            for entry in result.kept:
                where.setdefault(entry.reason, Counter())[path.name] += 1
                first.setdefault(entry.reason, entry.sentence)
            say(f"{path.name}: {len(result.kept)}")
    ordered = sorted(where.items(), key=lambda item: -item[1].total())
    rows = [[code, str(names.total()), ", ".join(f"{name} {count}" for name, count in names.items()), first[code]]
            for code, names in ordered]  # fmt: skip
    print(table(["reason", "BN", "files", "the first"], rows))
    print(f"\n{counts['files']} files: BN {counts['before']} -> {counts['after']}")
    print("\n".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
