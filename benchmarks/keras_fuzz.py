"""Tests the importer with damaged and hostile files: mutates real files, imports each, and counts the outcomes.

    python benchmarks/keras_fuzz.py FOLDER --files 10000 --seed 0

Bytes are flipped, removed, doubled and overwritten, in the whole file and in the members of a `.keras` file's zip; its
JSON gets other numbers, types and classes. Every import must end within a minute in a network or a refusal of one line,
and leave no files behind. Any other outcome is a fault, and its file is kept.
"""

import argparse
import collections
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch
from fuzz_mutations import mutate_keras

from mnist_cnn.errors import UserError
from mnist_cnn.inference.checkpoint import KERAS_SUFFIXES
from mnist_cnn.keras.importer import import_model

SECONDS = 60


def main() -> int:
    """Mutate and import; exit status 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("keras_fuzz_faults"), help="where such files go")
    options = parser.parse_args()
    options.folder, options.keep = options.folder.absolute(), options.keep.absolute()
    torch.set_num_threads(1)
    sources = [path for path in sorted(options.folder.iterdir()) if path.suffix in KERAS_SUFFIXES]
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, faults, start = 0.0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number in range(options.files):
            rng = random.Random(f"{options.seed} {number}")
            source = rng.choice(sources)
            path = Path(folder) / f"mutated{source.suffix}"
            path.write_bytes(mutate_keras(source.read_bytes(), rng))
            began = time.monotonic()
            try:
                import_model(path, None, "1/255")
                outcome = "imported"
            except UserError as error:
                outcome = "refused"
                if "\n" in str(error) or len(str(error)) > 1000:
                    outcome = "fault: more than a line"
                elif "makes the HDF5 library fail" in str(error):
                    outcome = "refused: the HDF5 library crashed or hung, in its own process"
            except Exception as error:
                outcome = f"fault: {type(error).__name__}: {str(error)[:100]}"
            seconds = time.monotonic() - began
            slowest = max(slowest, seconds)
            if seconds > SECONDS:
                outcome = "fault: too slow"
            if {item.name for item in Path(folder).iterdir()} != {path.name}:
                outcome = "fault: something is left behind"
            outcomes[outcome] += 1
            if outcome.startswith("fault"):
                faults += 1
                options.keep.mkdir(exist_ok=True, parents=True)
                shutil.copy(path, options.keep / f"{number}-{source.name}")
            path.unlink()
    for outcome, count in outcomes.most_common():
        print(f"{count:>7,}  {outcome}")
    print(f"{options.files:,} files, {time.monotonic() - start:.0f} s, the slowest {slowest:.1f} s; {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
