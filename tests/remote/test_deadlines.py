"""Law of deadlines over TLS: a server that sends a byte now and then is given up there too."""

import socket
import ssl
import threading
import time

import httpx
import pytest

from odesteer_tl.backends.nnsight import deadlines
from odesteer_tl.backends.nnsight.deadlines import Deadline, TooSlow

CIPHERS = "AECDH-AES128-SHA:@SECLEVEL=0"
"""Encrypted without certificates, so that the test needs no key: both ends are here."""


def context(side):
    made = ssl.SSLContext(side)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.maximum_version = ssl.TLSVersion.TLSv1_2  # later versions know no such ciphers
    made.set_ciphers(CIPHERS)
    return made


@pytest.fixture
def dripping():
    """The address of a server that drips its reply's first line for ten seconds at most."""
    ended = threading.Event()

    def serve(listening):
        connection, _ = listening.accept()
        with context(ssl.PROTOCOL_TLS_SERVER).wrap_socket(connection, server_side=True) as reply:
            reply.recv(4096)
            try:
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 180:
                    reply.send(bytes([byte]))
                    if ended.wait(0.05):
                        return
            except OSError:  # the client is gone
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}"
        ended.set()
        thread.join(20)
        assert not thread.is_alive()


def test_a_server_that_drips_over_tls_is_given_up(dripping, monkeypatch):
    monkeypatch.setattr(deadlines, "LONGEST", 0.5)
    start = time.monotonic()
    with httpx.Client(verify=context(ssl.PROTOCOL_TLS_CLIENT), timeout=5) as client:
        with pytest.raises(TooSlow, match=r"0\.5"), Deadline(0) as deadline:
            client.get(dripping, extensions={"trace": deadline.opened})
    assert time.monotonic() - start < 8  # it drips for ten
