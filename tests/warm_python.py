"""A Python that has imported torch, transformers and nnsight, and forks for each script: importing them takes 5 s.

    script = WarmPython(environment).start([path, *arguments], environment, folder, stdin, stdout, stderr)
    code = script.wait(60)

starts what `subprocess.Popen([sys.executable, path, *arguments], …)` starts, except that those libraries, and nothing
of this package or of its tests, have been imported, in the environment of the WarmPython.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType

IMPORTED = ["torch", "transformers", "nnsight", "zstandard", "websocket", "sklearn.linear_model"]
# and what loading a model imports
IMPORTED += ["nnsight.modeling.transformers", "transformers.models.llama.modeling_llama"]
IMPORTED += ["transformers.models.gpt2.modeling_gpt2"]


class Script:
    """A script that runs in a process of its own; `returncode` is None until `wait` or `poll` has seen its end."""

    def __init__(self, pid: int, ended: int):
        self.pid, self.returncode = pid, None
        self._ended = ended

    def wait(self, timeout: float) -> int:
        """Its exit status, negative for a signal. TimeoutExpired says that it runs on."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a script", timeout)
            self.returncode = int(os.read(self._ended, 20) or -signal.SIGKILL)
            os.close(self._ended)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class WarmPython:
    """One process, which ends with the one that made it."""

    def __init__(self, environment: dict[str, str]):
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            nothing, inherited = subprocess.DEVNULL, [theirs.fileno()]
            self._process = subprocess.Popen(command, env=environment, stdin=nothing, pass_fds=inherited)

    def start(self, command: list[str], environment: dict[str, str], folder: str | Path, *streams: int) -> Script:
        """`streams` are file descriptors of standard input, output and error."""
        reading, writing = os.pipe()
        asked = json.dumps({"command": command, "environment": environment, "folder": str(folder)}).encode()
        socket.send_fds(self._socket, [len(asked).to_bytes(4, "big")], [*streams, writing])
        self._socket.sendall(asked)
        os.close(writing)
        return Script(int.from_bytes(_exactly(self._socket, 4), "big"), reading)

    def close(self) -> None:
        """Waits, so that the time that scripts took is counted as this process's children's."""
        self._socket.close()
        self._process.wait()


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        if not (more := connection.recv(count - len(found))):
            raise ConnectionError("The warm Python has ended.")
        found += more
    return found


def _run(command: list[str], environment: dict[str, str], folder: str) -> int:
    """A script as Python runs it, in this process; its exit status."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    added = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [os.path.dirname(os.path.abspath(command[0])), *filter(None, added)]
    sys.argv = command
    sys.modules["__main__"] = main = ModuleType("__main__")
    main.__file__ = command[0]
    code = 0
    try:
        with open(command[0], encoding="utf-8") as file:
            exec(compile(file.read(), command[0], "exec"), main.__dict__)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _serve(connection: socket.socket) -> None:
    """Forks a script for each that is asked for, and a process beside it that tells of its end."""
    while True:
        size, streams, _, _ = socket.recv_fds(connection, 4, 4)
        if not size:
            break
        asked = json.loads(_exactly(connection, int.from_bytes(size, "big")))
        reading, writing = os.pipe()
        if not os.fork():
            if pid := os.fork():
                os.write(writing, pid.to_bytes(4, "big"))
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.write(streams[3], str(status).encode())
                os._exit(0)
            for number, stream in enumerate(streams[:3]):
                os.dup2(stream, number)
            os.closerange(3, 1 + max(*streams, reading, writing, connection.fileno()))
            os._exit(_run(**asked))
        os.close(writing)
        connection.sendall(os.read(reading, 4))
        for each in (*streams, reading):
            os.close(each)

    while True:  # so that the time they took is known as this process's
        try:
            os.wait()
        except ChildProcessError:
            break


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    for each in IMPORTED:
        __import__(each)
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
