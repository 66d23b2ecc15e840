"""A PostgreSQL server of our own for a test, that can be stopped and started again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

USER, PASSWORD = "tuner", "hunter2"
INSTALL = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "postgresql")


class Server:
    """An empty server, which is running; `close` removes it.

    Args:
        programs: the folder of initdb and pg_ctl.
        password: whether it asks for PASSWORD.
    """

    def __init__(self, programs: Path, password: bool = False) -> None:
        is_root = os.geteuid() == 0  # as which the server refuses to run
        self._as_user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if is_root else {}
        self._folder = Path(tempfile.mkdtemp(prefix="actsearch-pg-"))
        self._programs, self._running = programs, False
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        try:
            secret = self._folder / "secret"
            secret.write_text(PASSWORD)
            if is_root:
                shutil.chown(self._folder, "postgres", "postgres")
                shutil.chown(secret, "postgres", "postgres")
            asks = ["-A", "scram-sha-256", f"--pwfile={secret}"] if password else ["-A", "trust"]
            self._run("initdb", "-D", str(self._folder / "data"), "-U", USER, *asks, "-N")
            self.start()
        except BaseException:
            self.close()
            raise

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        subprocess.run(command, cwd=self._folder, check=True, stdout=subprocess.DEVNULL, **self._as_user)

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-w", "-l", str(self._folder / "log"), *arguments)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._control("-o", f"{options} -c fsync=off", "start")
        self._running = True

    def stop(self, mode: str = "fast") -> None:
        """End it: fast, or immediate, which is as good as a kill."""
        self._running = False
        self._control("-m", mode, "stop")

    def url(self, password: str = "") -> str:
        """Of its only database."""
        return f"postgresql://{USER}{password and ':'}{password}@127.0.0.1:{self.port}/postgres"

    def close(self) -> None:
        try:
            if self._running:
                self.stop("immediate")
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def programs() -> Path | None:
    """Where initdb and pg_ctl are; in CI they are installed from the distribution's packages if they are missing."""
    found = _installed()
    if found is None and os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(INSTALL, check=False, env=environment, capture_output=True, timeout=240)
        if done.returncode:  # a fresh image has no lists of packages
            subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True, timeout=120)
            subprocess.run(INSTALL, check=False, env=environment, capture_output=True, timeout=240)
        found = _installed()
    return found


def _installed() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    folders += [Path(on_path).parent] if on_path else []
    return next((f for f in folders if (f / "initdb").is_file() and (f / "pg_ctl").is_file()), None)
