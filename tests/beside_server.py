"""Run a command beside a loopback server, {url} being its address: python tests/beside_server.py COMMAND … {url} …"""

import subprocess
import sys

from server_clients import serving

if __name__ == "__main__":
    with serving(warm=False) as server:
        raise SystemExit(subprocess.run([part.format(url=server.url) for part in sys.argv[1:]]).returncode)
