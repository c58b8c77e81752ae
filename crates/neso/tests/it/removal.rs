//! `neso clean-data` removes what is ours, and nothing that only shows through a mount.

use std::{fs, process::Command};

use crate::datacenter::small_settings;

/// A build that was killed leaves mounts of the machine's own directories; an operator keeps backups on another disk. Neither is emptied.
#[test]
fn what_is_mounted_below_is_not_emptied() {
    if !base::daemon::is_root() {
        println!("skipped: mounts below a datacenter, because it needs root");
        return;
    }
    let root = tempfile::Builder::new().prefix("neso-it-").tempdir().expect("a root");
    let settings_file = root.path().join(headnode::settings::DEFAULT_FILE);
    fs::create_dir_all(settings_file.parent().expect("a file in a directory")).expect("a directory");
    fs::write(&settings_file, small_settings(root.path())).expect("settings");
    let data = headnode::Settings::load(&settings_file).expect("settings").paths.data;
    let clean = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_neso"));
        command
            .arg("--root")
            .arg(root.path())
            .args(["clean-data", "--yes"])
            .output()
            .expect("the binary under test runs")
    };
    let places = [data.join("images-built/debian-12/.build-x/root/dev/shm"), data.join("backups")];
    let others: Vec<_> = places
        .iter()
        .map(|place| {
            let other = tempfile::Builder::new().prefix("neso-it-other-").tempdir().expect("a directory");
            fs::write(other.path().join("kept"), "").expect("a file");
            fs::create_dir_all(place).expect("a directory");
            let mounted = Command::new("mount").arg("--bind").arg(other.path()).arg(place).status();
            assert!(mounted.is_ok_and(|status| status.success()), "a directory can be shown at another place");
            other
        })
        .collect();
    let refused = clean();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let unmounted = Command::new("umount").arg(&places[1]).status();
    assert!(!refused.status.success() && said.contains(&places[1].display().to_string()), "{said}");
    assert!(unmounted.is_ok_and(|status| status.success()), "the backups are still mounted");
    let done = clean();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(!data.exists());
    assert!(others.iter().all(|other| other.path().join("kept").exists()), "what only showed through is still there");
}
