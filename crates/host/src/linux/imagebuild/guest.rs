//! Our own files in the images: where each goes, with which mode. The texts lie in the repository's `images/`.

/// A file of an image.
pub(super) struct GuestFile {
    /// Where, from the root, without a leading slash.
    pub(super) path: &'static str,
    /// Permission bits.
    pub(super) mode: u32,
    /// What is in it.
    pub(super) content: &'static str,
}

macro_rules! file {
    ($path:literal, $mode:literal, $from:literal) => {
        GuestFile { path: $path, mode: $mode, content: include_str!(concat!("../../../../../images/", $from)) }
    };
}

/// Where the metadata client lies.
pub(super) const MDATA: &str = "usr/lib/neso/mdata";

/// The names it is called by, each a link to [`MDATA`].
pub(super) const MDATA_NAMES: [&str; 4] =
    ["usr/sbin/mdata-get", "usr/sbin/mdata-put", "usr/sbin/mdata-delete", "usr/sbin/mdata-list"];

/// Files both images have.
pub(super) const COMMON: [GuestFile; 2] = [
    file!("usr/lib/neso/user-script", 0o755, "common/user-script"),
    file!("usr/lib/neso/end-processes", 0o644, "common/end-processes"),
];

/// Files of the minimal image.
pub(super) const MINIMAL: [GuestFile; 9] = [
    file!("etc/inittab", 0o644, "minimal/inittab"),
    file!("etc/init.d/rcS", 0o755, "minimal/rcS"),
    file!("etc/init.d/rcK", 0o755, "minimal/rcK"),
    file!("etc/profile", 0o644, "minimal/profile"),
    file!("etc/passwd", 0o644, "minimal/passwd"),
    file!("etc/group", 0o644, "minimal/group"),
    file!("etc/shadow", 0o600, "minimal/shadow"),
    file!("etc/os-release", 0o644, "minimal/os-release"),
    file!("sbin/reboot", 0o755, "minimal/reboot"),
];

/// Files of the Debian image.
pub(super) const DEBIAN: [GuestFile; 6] = [
    file!("etc/inittab", 0o644, "debian-12/inittab"),
    file!("etc/ssh/sshd_config.d/neso.conf", 0o644, "debian-12/sshd.conf"),
    file!("etc/apt/sources.list", 0o644, "debian-12/sources.list"),
    file!("usr/lib/neso/boot", 0o755, "debian-12/boot"),
    file!("usr/lib/neso/shutdown", 0o755, "debian-12/shutdown"),
    file!("usr/lib/neso/authorized-keys", 0o755, "debian-12/authorized-keys"),
];
