"""An NFS server on a nested host, and mounts of it."""

from __future__ import annotations

from vmferry.lab.nested import NestedHost

#: What the server's hosts need beside what is installed here.
PACKAGES = ("nfs-kernel-server",)
EXPORTED = "/srv/exported"
#: Seconds; a QEMU that starts at once must meet a third of it, also on a slow host. The server's default is 90.
LEASE_S = 20

#: The packages' scripts, which make these users, have not run.
_RPC = """
mkdir -p /run/rpcbind
echo '_rpc:x:993:65534::/run/rpcbind:/usr/sbin/nologin' >> /etc/passwd
echo 'statd:x:992:65534::/var/lib/nfs:/usr/sbin/nologin' >> /etc/passwd
chown -R statd /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/state
modprobe -a nfs nfsv3 nfsv4
rpcbind -w
rpc.statd --no-notify
"""
_SERVE = f"""
modprobe nfsd
mkdir -p {EXPORTED}
mount -t tmpfs exported {EXPORTED}
mount -t nfsd nfsd /proc/fs/nfsd
echo {LEASE_S} > /proc/fs/nfsd/nfsv4leasetime
echo {LEASE_S} > /proc/fs/nfsd/nfsv4gracetime
touch /etc/exports
exportfs -o rw,no_root_squash,fsid=0,insecure,no_subtree_check '*:{EXPORTED}'
rpc.mountd
rpc.nfsd -V 3 -V 4 4
# There was no earlier server whose clients could have locks to reclaim: no need to wait for them.
echo Y > /proc/fs/nfsd/v4_end_grace
echo Y > /proc/fs/lockd/nlm_end_grace
"""


async def prepare(host: NestedHost) -> None:
    """Start what an NFS client needs for locks."""
    await host.shell(_RPC)


async def serve(host: NestedHost) -> None:
    """Export an empty folder by NFS 3 and 4."""
    await host.shell(_SERVE)


async def mount(host: NestedHost, server: NestedHost, place: str, options: str = "vers=4.2") -> None:
    """Mount what a host exports; the server mounts itself like any other."""
    what = EXPORTED if "vers=3" in options else "/"
    await host.shell(f"mkdir -p {place}; mount -t nfs -o {options} {server.plan.ip}:{what} {place}")


async def unmount(host: NestedHost, place: str) -> None:
    """Take the mount away, if there is one."""
    await host.shell(f"! mountpoint -q {place} || umount -f {place}")
