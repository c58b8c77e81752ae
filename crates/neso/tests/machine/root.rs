//! The machine's root file system: Debian 12 as mmdebstrap lays it out from this machine's sources, its own kernel and
//! systemd, and one service that runs what the test asks for.
//!
//! It is kept in the user's cache, under a name made of its recipe, so that it is built once per recipe. Nothing of ours is in
//! it: the program under test comes on a disk of its own at every boot. The kernel is started without a boot loader, with a
//! small initial file system that loads the disk's drivers and leaves everything else to systemd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What an operator's machine has: the kernel for virtual machines, systemd, and what `make up` installs. mmdebstrap is left
/// out: the small image does without.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,linux-image-cloud-amd64,btrfs-progs,busybox-static,\
                        ca-certificates,iproute2,nftables,openssh-client,procps";

/// Units that only cost time where every instruction is emulated.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@ttyS0.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-pstore.service",
];

/// Runs one command after another: a line of base64 in, its status and output as a line out.
const DRIVER: &str = r#"#!/bin/sh
exec 3<>/dev/virtio-ports/neso.0
while :; do
    if IFS= read -r line <&3; then
        printf '%s' "$line" | base64 -d >/run/driver.sh
        sh /run/driver.sh >/run/driver.out 2>&1 </dev/null
        status=$?
        printf '%s %s\n' "$status" "$(base64 -w0 </run/driver.out)" >&3
    else
        sleep 0.2
    fi
done
"#;

const DRIVER_UNIT: &str = r"[Unit]
Description=Runs what the test that booted this machine asks for
BindsTo=dev-virtio\x2dports-neso.0.device
After=dev-virtio\x2dports-neso.0.device

[Service]
Environment=HOME=/root
ExecStart=/usr/local/sbin/driver
Restart=always

[Install]
WantedBy=multi-user.target
";

/// Drivers of the disk, in the order they need each other.
const DRIVERS: &[&str] = &[
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];

const INIT: &str = r"#!/busybox sh
/busybox mount -t devtmpfs dev /dev
for driver in $(/busybox cat /drivers); do /busybox insmod /$driver; done
until [ -b /dev/vda ]; do /busybox sleep 0.1; done
/busybox mount -t ext4 /dev/vda /root
/busybox mount --move /dev /root/dev
exec /busybox switch_root /root /sbin/init
";

/// Size of the disk; the file is sparse.
const DISK: &str = "6G";

/// What a boot needs, in the cache.
pub(crate) struct Root {
    directory: PathBuf,
}

impl Root {
    /// The one of this recipe, built if it is not there.
    pub(crate) fn ensure() -> Self {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
        let kept = cache.unwrap_or_else(home).join("neso").join("machine");
        let recipe = format!("{PACKAGES}{MASKED:?}{DRIVER}{DRIVER_UNIT}{DRIVERS:?}{INIT}{DISK}");
        let directory = kept.join(format!("{:016x}", fnv(recipe.as_bytes())));
        if !directory.exists() {
            // Older recipes' roots are of no use to anybody.
            let _ = fs::remove_dir_all(&kept);
            let making = kept.join(format!("making-{}", std::process::id()));
            build(&making);
            fs::rename(&making, &directory).expect("the finished root gets its name");
        }
        Self { directory }
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    pub(crate) fn initrd(&self) -> PathBuf {
        self.directory.join("initrd")
    }

    /// A machine's own copy of the disk.
    pub(crate) fn copy_disk(&self, to: &Path) {
        good(
            Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(self.directory.join("disk.img")).arg(to),
        );
    }
}

fn build(directory: &Path) {
    let tree = directory.join("tree");
    fs::create_dir_all(directory).expect("a directory in the cache");
    let mut debian = Command::new("mmdebstrap");
    debian.args(["--variant=minbase", "--format=directory", "--dpkgopt=force-unsafe-io"]);
    debian.args(["--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/doc/*"]);
    debian.args(["--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*"]);
    debian.arg(format!("--include={PACKAGES}")).arg("bookworm").arg(&tree);
    good(&mut debian);

    let write = |path: &str, text: &str| fs::write(tree.join(path), text).expect("a file of the root");
    write("etc/hostname", "machine\n");
    write("etc/hosts", "127.0.0.1 localhost machine\n");
    write("etc/fstab", "/dev/vda / ext4 defaults 0 1\n");
    write("etc/machine-id", "");
    write("usr/local/sbin/driver", DRIVER);
    write("etc/systemd/system/driver.service", DRIVER_UNIT);
    good(Command::new("chmod").arg("755").arg(tree.join("usr/local/sbin/driver")));
    let link = |target: &str, path: String| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory of the root");
        std::os::unix::fs::symlink(target, path).expect("a link of the root");
    };
    link("../driver.service", "etc/systemd/system/multi-user.target.wants/driver.service".to_owned());
    for unit in MASKED {
        link("/dev/null", format!("etc/systemd/system/{unit}"));
    }

    fs::copy(tree.join("vmlinuz"), directory.join("vmlinuz")).expect("Debian's kernel");
    let small = directory.join("small");
    for name in ["dev", "proc", "root"] {
        fs::create_dir_all(small.join(name)).expect("a directory of the initial file system");
    }
    let modules = only_entry(&tree.join("usr/lib/modules")).join("kernel/drivers");
    let mut names = String::new();
    for driver in DRIVERS {
        let name = format!("{}.ko", driver.rsplit('/').next().unwrap_or(driver));
        fs::copy(modules.join(format!("{driver}.ko")), small.join(&name)).expect("a driver of Debian's kernel");
        names.push_str(&format!("{name}\n"));
    }
    fs::write(small.join("drivers"), names).expect("the list of drivers");
    fs::write(small.join("init"), INIT).expect("the first program");
    fs::copy(tree.join("usr/bin/busybox"), small.join("busybox")).expect("busybox");
    good(Command::new("chmod").arg("755").arg(small.join("init")));
    let pack = "find . | /bin/busybox cpio -o -H newc | gzip -1 >../initrd";
    good(Command::new("sh").args(["-c", pack]).current_dir(&small));
    good(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(directory.join("disk.img")).arg(DISK));
    for rest in [tree, small] {
        fs::remove_dir_all(rest).expect("what was packed can go");
    }
}

fn only_entry(directory: &Path) -> PathBuf {
    let mut entries = fs::read_dir(directory).expect("a directory");
    entries.next().expect("it holds something").expect("it can be read").path()
}

/// Runs a command that must succeed.
pub(crate) fn good(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?} failed\n{}", String::from_utf8_lossy(&output.stderr));
}

/// A short name for a text: FNV-1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
