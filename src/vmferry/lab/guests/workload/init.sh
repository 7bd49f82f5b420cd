#!/bin/busybox sh
# Mounts what the workload needs, loads the drivers, brings the NICs up, starts the workload, offers a shell.
B=/bin/busybox
M=/lib/modules
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs devtmpfs /dev
while read -r module; do $B insmod $M/$module; done < $M/order
# e1000 is loaded now only if no virtio NIC is there: it costs 80 ms of a slow guest's start
[ -e /sys/class/net/eth0 ] || $B insmod $M/e1000
# a panic that QEMU is to notice must find its driver loaded
[ -e /sys/bus/acpi/devices/QEMU0001:00 ] && for module in pvpanic pvpanic_mmio; do $B insmod $M/$module; done
$B ip link set lo up
read -r cmdline < /proc/cmdline
for word in $cmdline; do
  case $word in
    ip=*) $B ip addr add "${word#ip=}" dev eth0 ;;
    throttle=on) throttled="/bin/vmferry-throttle --" ;;
  esac
done
for nic in /sys/class/net/eth*; do [ -e "$nic" ] && $B ip link set "${nic##*/}" up; done
$throttled /bin/workload &
$B renice 19 -p $$ > /dev/null
while read -r module; do
  [ -e "/sys/module/$module" ] || $B insmod $M/$module
done < $M/order-late
$B renice 0 -p $$ > /dev/null
while :; do $B setsid $B cttyhack $B sh; done
