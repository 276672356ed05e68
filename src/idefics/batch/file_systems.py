"""Which file system a path is on, from Linux's table of mounts."""

from __future__ import annotations

from pathlib import Path

MOUNTS_FILE = Path("/proc/self/mounts")
# File systems without the memory that all processes share, which SQLite's write-ahead log needs
# (https://sqlite.org/wal.html), or whose locks are not reliable.
NETWORK_FILE_SYSTEMS = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "afs",
        "ceph",
        "lustre",
        "glusterfs",
        "fuse.sshfs",
        "fuse.glusterfs",
    )
)


def network_file_system(path: Path) -> str:
    """The kind of network file system that a path is on, such as "nfs4"; "" if it is local or this is not Linux."""
    if not MOUNTS_FILE.exists():
        return ""
    kind, longest = "", -1
    folder = path.absolute().parent.resolve()
    for line in MOUNTS_FILE.read_text(errors="surrogateescape").splitlines():
        _, mount_point, file_system, *_ = line.split(" ")
        mount = Path(mount_point.encode().decode("unicode_escape"))  # blanks are written as \040
        if folder.is_relative_to(mount) and len(mount.parts) >= longest:
            kind, longest = file_system, len(mount.parts)
    return kind if kind in NETWORK_FILE_SYSTEMS else ""
