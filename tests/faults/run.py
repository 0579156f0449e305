"""Kill generation and training at random, continue them, and compare with undisturbed runs.

    python -m tests.faults.run --kills 200 --seed 1                     # a quarter as many kills of training
    python -m tests.faults.run --kills 50 --seed 1 --only training

The delays before the kills depend on the seed, but not what the programs do meanwhile. The exit status is 1 if
something was lost, damaged or different.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.kills import Subject, kill_at_random
from tests.faults.subjects import Generation, Training, use_one_thread
from tests.toy_datasets import panoptic_dataset

_FAULTS = ("failed", "damaged", "lost", "other result")
_COLUMNS = ("kills", "finished", *_FAULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="of generation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("generation", "training"))
    arguments = parser.parse_args()
    use_one_thread()
    print(f"| {'killed':28} | {' | '.join(_COLUMNS)} |\n| --- | {' | '.join('---:' for _ in _COLUMNS)} |", flush=True)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root, subjects(Path(root)) as table:
        for name, (subject, share) in table.items():
            if not arguments.only or name.startswith(arguments.only):
                kills = arguments.kills if arguments.only else arguments.kills * share // 100
                counts = kill_at_random(subject, Path(root) / name, kills, arguments.seed)
                print(f"| {name:28} | {' | '.join(str(counts[column]) for column in _COLUMNS)} |", flush=True)
                total += counts
    sys.exit(1 if any(total[fault] for fault in _FAULTS) else 0)


@contextmanager
def subjects(root: Path) -> Iterator[dict[str, tuple[Subject, int]]]:
    """Yield the programs by name, each with its share of the kills in percent."""
    with panoptic_dataset(root / "toy", "toy_faults", count=4) as dataset:
        table: dict[str, tuple[Subject, int]] = {
            "generation": (Generation(root / "data"), 100),
            "training": (Training(dataset, root / "toy" / "patches", workers=0), 20),
            "training, 2 loader workers": (Training(dataset, root / "toy" / "patches", workers=2), 5),
        }
        for name in table:
            (root / name).mkdir()
        yield table


if __name__ == "__main__":
    main()
