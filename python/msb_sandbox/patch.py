"""The operations of msb-patch, as data."""

from __future__ import annotations

import base64
import os
from typing import Any, Dict, Mapping, Optional, Union

Path = Union[str, "os.PathLike[str]"]

#: An operation of msb-ops(5), as JSON.
PatchConfig = Dict[str, Any]


class Patch:
    """Operations that change the root before the VM boots, for ``Sandbox.create(patches=[...])``.

    They are applied in order, in a layer on top of the image, all or none. A path that exists in the image is an error unless ``replace``
    is true. A mode is that of chmod(2); without one it is 0o644, or 0o755 of a directory. Paths on the host are relative to the working
    directory.

    >>> Patch.mkdir("/app", mode=0o755)
    {'op': 'mkdir', 'path': '/app', 'mode': '0755'}
    """

    @staticmethod
    def text(path: Path, content: str, *, mode: Optional[int] = None, replace: bool = False) -> PatchConfig:
        """Writes a text file.

        >>> Patch.text("/etc/motd", "Custom message of the day.\\n", replace=True)
        {'op': 'text', 'path': '/etc/motd', 'content': 'Custom message of the day.\\n', 'replace': True}
        """
        return _op("text", {"path": path, "content": content}, mode, replace)

    @staticmethod
    def file(path: Path, content: bytes, *, mode: Optional[int] = None, replace: bool = False) -> PatchConfig:
        """Writes a file of any bytes.

        >>> Patch.file("/etc/key", bytes([0, 1, 2]), mode=0o600)
        {'op': 'file', 'path': '/etc/key', 'content_base64': 'AAEC', 'mode': '0600'}
        """
        return _op("file", {"path": path, "content_base64": base64.b64encode(content).decode()}, mode, replace)

    @staticmethod
    def mkdir(path: Path, *, mode: Optional[int] = None) -> PatchConfig:
        """Makes a directory and its parents. An existing one is no error.

        >>> Patch.mkdir("/app/data")
        {'op': 'mkdir', 'path': '/app/data'}
        """
        return _op("mkdir", {"path": path}, mode)

    @staticmethod
    def append(path: Path, content: str) -> PatchConfig:
        """Appends to an existing file.

        >>> Patch.append("/etc/hosts", "127.0.0.1 myapp.local\\n")
        {'op': 'append', 'path': '/etc/hosts', 'content': '127.0.0.1 myapp.local\\n'}
        """
        return _op("append", {"path": path, "content": content})

    @staticmethod
    def copy_file(src: Path, dst: Path, *, mode: Optional[int] = None, replace: bool = False) -> PatchConfig:
        """Copies a file of the host. Without a mode it keeps its permissions.

        >>> Patch.copy_file("./cert.pem", "/etc/ssl/cert.pem")
        {'op': 'copy_file', 'src': './cert.pem', 'dst': '/etc/ssl/cert.pem'}
        """
        return _op("copy_file", {"src": src, "dst": dst}, mode, replace)

    @staticmethod
    def copy_dir(src: Path, dst: Path, *, replace: bool = False) -> PatchConfig:
        """Copies the content of a directory of the host into a directory of the guest, which is made if it is missing.

        >>> Patch.copy_dir("./site", "/srv/www")
        {'op': 'copy_dir', 'src': './site', 'dst': '/srv/www'}
        """
        return _op("copy_dir", {"src": src, "dst": dst}, replace=replace)

    @staticmethod
    def symlink(target: Path, link: Path, *, replace: bool = False) -> PatchConfig:
        """Makes a symlink at ``link`` that points to ``target``, which need not exist.

        >>> Patch.symlink("/usr/share/zoneinfo/UTC", "/etc/localtime", replace=True)
        {'op': 'symlink', 'target': '/usr/share/zoneinfo/UTC', 'link': '/etc/localtime', 'replace': True}
        """
        return _op("symlink", {"target": target, "link": link}, replace=replace)

    @staticmethod
    def remove(path: Path) -> PatchConfig:
        """Removes a file, or a directory with all below it. A missing one is no error.

        >>> Patch.remove("/var/cache/apk")
        {'op': 'remove', 'path': '/var/cache/apk'}
        """
        return _op("remove", {"path": path})

    @staticmethod
    def op(name: str, **members: Any) -> PatchConfig:
        """Any operation of msb-ops(5), such as edit, chown or rename.

        >>> Patch.op("chown", path="/app", uid=1000, recursive=True)
        {'op': 'chown', 'path': '/app', 'uid': 1000, 'recursive': True}
        """
        return {"op": name, **members}


def script(name: str, content: str) -> PatchConfig:
    """A script for ``/.msb/scripts``."""
    return _op("script", {"name": name, "content": content})


def _op(name: str, members: Mapping[str, Path], mode: Optional[int] = None, replace: bool = False) -> PatchConfig:
    op: PatchConfig = {"op": name}
    for member, value in members.items():
        text = os.fspath(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            # A path that is not UTF-8 has surrogates in Python, and a member of its own in an operation.
            op[f"{member}_base64"] = base64.b64encode(os.fsencode(text)).decode()
        else:
            op[member] = text
    if mode is not None:
        op["mode"] = f"{mode:04o}"
    if replace:
        op["replace"] = True
    return op
