# Becomes a machine: its own systemd over a copy-on-write view of this machine's files. Nothing that happens in it is left.
# $1: an empty folder.  $2: a name for its control groups.
set -eu
home=$1 name=$2
for tree in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
  if [ -e "$tree/cgroup.procs" ]; then
    mkdir -p "$tree/$name"
    echo $$ >"$tree/$name/cgroup.procs"
  fi
done
cat >"$home/init" <<'INIT'
set -eu
home=$1
mount --make-rprivate /
mkdir "$home/tree"
mount -t tmpfs -o mode=755 none "$home/tree"
mkdir "$home/tree/upper" "$home/tree/work" "$home/tree/root"
root=$home/tree/root
mount -t overlay -o "lowerdir=/,upperdir=$home/tree/upper,workdir=$home/tree/work" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
  mount -t tmpfs -o mode=755 none "$root/sys/fs/cgroup"
  mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
  mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified" || true
fi
for folder in run tmp dev; do mount -t tmpfs -o mode=755 none "$root/$folder"; done
chmod 1777 "$root/tmp"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
for link in ptmx:pts/ptmx fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
  ln -s "${link#*:}" "$root/dev/${link%%:*}"
done
ip link set lo up
# What belongs to the whole machine stays as it is, and none of its services starts.
rm -rf "$root"/etc/systemd/system/*.wants
for unit in systemd-sysctl systemd-modules-load systemd-remount-fs systemd-update-utmp systemd-udevd systemd-udev-trigger \
  systemd-random-seed systemd-firstboot; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done
for unit in dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount sys-kernel-debug.mount \
  sys-kernel-tracing.mount sys-kernel-config.mount proc-sys-fs-binfmt_misc.automount systemd-tmpfiles-clean.timer; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
mkdir -p "$root/old"
cd "$root"
pivot_root . old
umount -l /old
exec env -i container=passerelle PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=no </dev/null
INIT
exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup bash "$home/init" "$home"
