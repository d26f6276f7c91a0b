"""`basis-search tune` as a part of ./scripts/gpu: python -m basis_search.bench.tune_part FILE --out DIR --seconds N"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from basis_search.bench.timed_parts import PartFile
from basis_search.bench.tune import tune
from basis_search.config import TuneConfig


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the tuning file, which tune goes on with")
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args(arguments)
    file = PartFile(options.file)
    done = tune(TuneConfig(seconds=options.seconds, out=str(options.out)))
    print(done)
    file.add("tune", done)
    file.summarise(done.partition(": ")[2], unfinished="stopped after" in done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
