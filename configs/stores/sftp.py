"""An sftp server as fsspec's file system, with two differences.

fsspec takes any key from an unknown host; here a host must be known, as for ssh itself. And fsspec asks for 32 kB
after 32 kB, a round trip each; here all parts of a range are asked for at once.
"""

import logging
import os
from typing import Any

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem

logging.getLogger("paramiko").setLevel(
    logging.CRITICAL
)  # paramiko logs each failure with its stack, and raises the failure too


class Sftp(SFTPFileSystem):  # type: ignore[misc]
    """COMPOSER_SFTP_KNOWN_HOSTS_FILE and COMPOSER_SFTP_KEY_FILE take the place of the user's known hosts and keys."""

    def _connect(self) -> None:
        self.client = paramiko.SSHClient()
        self.client.load_system_host_keys(os.environ.get("COMPOSER_SFTP_KNOWN_HOSTS_FILE"))
        self.client.connect(
            self.host,
            key_filename=os.environ.get("COMPOSER_SFTP_KEY_FILE"),
            **self.ssh_kwargs,
        )
        self.ftp = self.client.open_sftp()
        self.ftp.get_channel().settimeout(self.ssh_kwargs["timeout"])

    def cat_file(self, path: str, start: int = 0, end: int | None = None, **ignored: Any) -> bytes:
        with self.ftp.open(path) as file:
            size = file.stat().st_size
            end = min(size if end is None else end, size)  # a part past the end would look like a lost connection
            return b"".join(file.readv([(start, end - start)])) if start < end else b""
