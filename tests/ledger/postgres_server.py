# SPDX-License-Identifier: Apache-2.0
"""Runs a command beside a throw-away PostgreSQL server on loopback, named in EXPUNGE_TEST_POSTGRES, and stops it.

    python tests/ledger/postgres_server.py COMMAND...

As root, the server runs as an unprivileged user, which it insists on.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ABSENT = """PostgreSQL is not installed here: initdb and pg_ctl are neither on the path nor below /usr/lib/postgresql.
Install one, which need not be started:  apt-get install --no-install-recommends postgresql
Or name a server of yours, whose tables events and salts will be dropped:
  EXPUNGE_TEST_POSTGRES=postgresql://user:password@127.0.0.1/database python -m pytest tests/ledger
"""
USERS = ("postgres", "nobody")


def program(name: str) -> str | None:
    """Return where a program of the server is, the newest version first."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    return shutil.which(name) or next((str(f / name) for f in folders if (f / name).exists()), None)


def unprivileged() -> tuple[list[str], int | None]:
    """Return what to put before a command so that it does not run as root, and the user id that it runs as."""
    if os.geteuid() != 0:
        return [], None
    user = next(pwd.getpwnam(name) for name in USERS if name in {entry.pw_name for entry in pwd.getpwall()})
    if shutil.which("setpriv"):
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"], user.pw_uid
    return ["runuser", "-u", user.pw_name, "--"], user.pw_uid


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main(command: list[str]) -> int:
    initdb, control = program("initdb"), program("pg_ctl")
    if initdb is None or control is None:
        print(ABSENT, file=sys.stderr)
        return 5
    before, user = unprivileged()
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:
        folder, password, port = Path(name), secrets.token_hex(16), free_port()
        (folder / "password").write_text(password)
        if user is not None:
            for path in (folder, folder / "password"):
                os.chown(path, user, -1)
        data = str(folder / "data")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c max_connections=300"
        new = ["--auth=scram-sha-256", "--username=expunge", f"--pwfile={folder}/password", "--locale=C", "-E", "UTF8"]
        subprocess.run([*before, initdb, "-D", data, *new], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        start = [*before, control, "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start"]
        try:
            subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd=folder)
            url = f"postgresql://expunge:{password}@127.0.0.1:{port}/postgres"
            return subprocess.run(command, env={**os.environ, "EXPUNGE_TEST_POSTGRES": url}, check=False).returncode
        finally:
            stop = [*before, control, "-D", data, "-m", "immediate", "-w", "stop"]
            subprocess.run(stop, check=False, stdout=subprocess.DEVNULL, cwd=folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
