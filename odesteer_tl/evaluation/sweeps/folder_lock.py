"""The lock of a folder that one process at a time may write. The system gives it up where the process ends, killed too.

`fcntl.flock` on POSIX, `msvcrt.locking` on Windows, on a file that stays in the folder and is empty.
"""

import errno
import os
import warnings
from pathlib import Path
from typing import IO

LOCK = "lock"
BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)


def locked(folder: Path) -> IO[bytes]:
    """The lock, held until the file is closed. Raises ValueError where another process or call holds it; warns where
    the file system has no locks."""
    stream = (folder / LOCK).open("ab")
    try:
        if os.name == "nt":
            import msvcrt

            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            stream.close()
            raise ValueError(
                f"Another sweep is writing {folder}: wait until it ends, or name another folder, out=."
            ) from error
        warnings.warn(f"{folder} cannot be locked ({error.strerror}): run one sweep at a time there.", stacklevel=2)
    return stream
