"""Trains the checkerboard in FOLDER; with `die`, kills itself without warning once the second epoch has begun."""

import os
import signal
import sys
from pathlib import Path

import torch
from checkerboard import Source, purchases, trainer


def main(folder: Path, die: bool) -> None:
    torch.set_num_threads(1)

    def progress(stage: str, done: int, total: int) -> None:
        if die and stage == "towers" and done > total // 3 + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    print(trainer(folder).run(Source(purchases()), progress).version)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "die")
