#!/bin/busybox sh
# First program of a nested host: its root is the machine's own, over 9p, with layers of files above and a tmpfs on top.
# vmferry_layers, vmferry_python and vmferry_control come from the kernel's command line.
B=/bin/busybox
set -e
trap '$B echo "no root for a nested host"; $B poweroff -f' EXIT
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev
for module in $($B cat /lib/modules/order); do $B insmod /lib/modules/$module; done
mount_share() { $B mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=1048576,cache=loose "$1" "$2"; }
mount_share machine /machine
$B mount -t tmpfs scratch /scratch
$B mkdir /scratch/upper /scratch/work
lower=/machine
layer=0
while [ $layer -lt "$vmferry_layers" ]; do
    $B mkdir /layers/$layer
    mount_share layer$layer /layers/$layer
    lower=/layers/$layer:$lower
    layer=$((layer + 1))
done
$B mount -t overlay -o "lowerdir=$lower,upperdir=/scratch/upper,workdir=/scratch/work" root /newroot
for folder in proc sys dev; do $B mount --move /$folder /newroot/$folder; done
$B mount -t tmpfs run /newroot/run
$B mkdir -p /newroot/dev/pts /newroot/dev/shm
$B mount -t devpts devpts /newroot/dev/pts
$B mount -t tmpfs shm /newroot/dev/shm
# What udev makes on a host: QEMU opens files by it.
$B ln -s /proc/self/fd /newroot/dev/fd
$B hostname "$vmferry_name"
$B ip link set lo up
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
# When the lab has gone, so has the channel, and with it the host.
exec $B switch_root /newroot /bin/sh -c '"$vmferry_python" "$vmferry_control"; poweroff -f'
