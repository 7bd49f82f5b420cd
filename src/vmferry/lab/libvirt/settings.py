"""The configuration files of a lab's libvirt daemons: data.

Source: libvirtd.conf and qemu.conf as libvirt 9.0 documents them.
"""

#: No TLS and no password: the namespace is the fence.
LIBVIRTD_CONF = """\
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
auth_unix_rw = "none"
host_uuid = "{host_uuid}"
"""

#: No virtlogd, no cgroups and no mount namespace per guest: the guest's sockets lie where the lab sees them.
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""

#: libvirt 11 does not start without nft or iptables unless it is told to do without; 9.0 does not read this.
NETWORK_CONF = 'firewall_backend = "none"\n'

#: Debian's libvirt looks its user up before it reads qemu.conf. The package that would make it also sets services up
#: on the machine, so the daemons get account files of their own instead.
ACCOUNT = "libvirt-qemu"
ACCOUNTS = {
    "passwd": f"{ACCOUNT}:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n",
    "group": f"{ACCOUNT}:x:64055:\nkvm:x:64056:\n",
}
