"""How much memory a block of code takes at most."""

import threading
import time
from pathlib import Path

PAGE = 4096


def resident() -> float:
    """Resident memory of this process now, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


class Peak:
    """The largest resident memory while a block runs, above that at its start, in MB."""

    def __enter__(self) -> "Peak":
        self.start = self.most = resident()
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()

    def _watch(self) -> None:
        while self.running:
            self.most = max(self.most, resident())
            time.sleep(0.002)

    @property
    def above(self) -> float:
        return self.most - self.start
