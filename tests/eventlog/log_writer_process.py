"""A process that forks writers to be killed; arguments: FOLDER SEAL_ROWS [KEEP_AGE], or FOLDER SEAL_ROWS erasing.

On stdin: the number of the first batch to send. On stdout: `pid N`, then a line `NUMBER ACCEPTED DUPLICATES` after
each acknowledgement, then `dead` when the writer has ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from log_checks import batch_of, open_tiny, turn_of


def say(text: str) -> None:
    os.write(1, (text + "\n").encode())


def write(folder: Path, number: int, seal_rows: int, keep_age: str | None) -> None:
    log = open_tiny(folder, seal_rows, seal_rows, keep_age)
    follower = log.follow("reader")
    while True:
        done = log.append(batch_of(number))
        say(f"{number} {done.accepted} {done.duplicates}")
        if number % 5 == 0:
            log.note("reader", done.position if number % 2 else follower)
        number += 1


def write_and_erase(folder: Path, number: int, seal_rows: int) -> None:
    """Every turn a new user comes, and the one of three turns before is erased."""
    log = open_tiny(folder, seal_rows, seal_rows)
    while True:
        done = log.append(turn_of(number))
        say(f"{number} {done.accepted} {done.duplicates}")
        log.note("reader", done.position)
        number += 1


def main() -> None:
    folder, seal_rows, keep_age = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if sys.argv[3:] else None
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            say(f"pid {os.getpid()}")
            try:
                if keep_age == "erasing":
                    write_and_erase(folder, int(line), seal_rows)
                write(folder, int(line), seal_rows, keep_age)
            finally:
                os._exit(1)
        os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    main()
