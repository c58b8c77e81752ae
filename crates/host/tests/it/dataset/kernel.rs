//! What only a kernel can show of datasets: quotas, sharing, nesting, a full pool, remounting.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use host::{
    Error,
    dataset::Datasets,
    linux::{dataset::LinuxDatasets, pool},
};
use model::{
    id::{ImageId, InstanceId},
    image::Compression,
    unit::Mib,
};
use xattr::FileExt;

use super::{Pack, Site};

const MIB: u64 = 1 << 20;

/// Writes `mib` MiB that do not compress into a file, and says what the kernel said.
fn write(path: &Path, mib: u64) -> io::Result<()> {
    let block: Vec<u8> = (0..MIB).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut file = File::create(path)?;
    for _ in 0..mib {
        file.write_all(&block)?;
    }
    file.sync_all()
}

#[expect(clippy::disallowed_types, reason = "a test plays a person at the machine")]
fn btrfs(arguments: &[&str]) {
    let done = Command::new("btrfs").args(arguments).output().expect("btrfs-progs is installed");
    assert!(done.status.success(), "btrfs {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_root_is_what_was_packed() {
    let site = Site::new();
    let datasets = site.open();
    let mut pack = Pack::small();
    pack.pax(&[("SCHILY.xattr.user.colour", b"blue"), ("SCHILY.xattr.trusted.no", b"x"), ("path", b"etc/tagged")])
        .file("short", b"x");
    let (_, root) = site.root_of(&datasets, &pack, Mib(64));
    let stat = |path: &str| fs::symlink_metadata(root.join(path)).expect(path);

    assert_eq!(stat("etc/shadow").mode() & 0o7777, 0o640);
    assert_eq!((stat("etc/shadow").uid(), stat("etc/shadow").gid()), (0, 42));
    assert_eq!((stat("home/one/notes").uid(), stat("home/one/notes").gid()), (1000, 1000));
    assert_eq!(stat("usr/bin/su").mode() & 0o7777, 0o4755, "set-id bits survive the change of owner");
    assert_eq!(stat("usr/bin/su").ino(), stat("usr/bin/also-su").ino());
    assert_eq!(stat("usr/bin/su").mtime(), 1_700_000_000);
    assert_eq!(stat("etc").mtime(), 1_700_000_000, "a directory's time is set last");
    assert_eq!(fs::read_link(root.join("bin")).expect("a link").to_str(), Some("usr/bin"));
    assert!(stat("run/pipe").file_type().is_fifo());
    assert_eq!(stat("usr").permissions().mode() & 0o7777, 0o755, "a directory that no member described");
    assert!(!root.join("dev/null").exists(), "devices are skipped");
    let tagged = File::open(root.join("etc/tagged")).expect("the long name counts");
    assert_eq!(tagged.get_xattr("user.colour").expect("readable"), Some(b"blue".to_vec()));
    assert_eq!(tagged.get_xattr("trusted.no").expect("readable"), None);
    assert_eq!(fs::metadata(&site.config.dir).expect("a directory").mode() & 0o777, 0o700);
}

#[test]
fn a_quota_stops_writing_and_can_grow() {
    let site = Site::new();
    let datasets = site.open();
    let mut pack = Pack::small();
    pack.file("big", &vec![7; 6 << 20]);
    let (instance, root) = site.root_of(&datasets, &pack, Mib(8));
    assert!(datasets.used_bytes(instance).expect("its use") < MIB, "the image's bytes are not the instance's");

    write(&root.join("a"), 6).expect("six of eight MiB fit, whatever the image holds");
    let over = write(&root.join("b"), 6).expect_err("six more do not");
    assert_eq!(over.kind(), io::ErrorKind::QuotaExceeded, "{over}");
    fs::remove_file(root.join("b")).expect("a full root can be cleared");

    datasets.set_quota(instance, Mib(32)).expect("a new quota");
    write(&root.join("c"), 12).expect("now they do");
    datasets.set_quota(instance, Mib(32)).expect("again; what was written counts from then on");
    let used = datasets.used_bytes(instance).expect("its use");
    assert!((18 * MIB..24 * MIB).contains(&used), "{used} bytes");

    write(&root.join("d"), 4).expect("not even on the disk yet");
    let refused = datasets.set_quota(instance, Mib(20)).expect_err("22 MiB are held").to_string();
    assert!(refused.contains("a disk quota of 20 MiB") && refused.contains("remove files inside"), "{refused}");
    write(&root.join("e"), 4).expect("the old quota holds");
}

#[test]
fn subvolumes_made_inside_count_and_go() {
    let site = Site::new();
    let datasets = site.open();
    let (instance, root) = site.root_of(&datasets, &Pack::small(), Mib(8));
    let text = |path: &Path| path.to_str().expect("plain text").to_owned();
    let (outer, inner) = (root.join("home/outer"), root.join("home/outer/dir/inner"));
    btrfs(&["subvolume", "create", &text(&outer)]);
    fs::create_dir(outer.join("dir")).expect("a directory");
    btrfs(&["subvolume", "create", &text(&inner)]);

    write(&inner.join("a"), 5).expect("five of eight MiB fit");
    assert!(write(&outer.join("b"), 5).is_err(), "nesting must not be a way around the quota");

    btrfs(&["property", "set", &text(&inner), "ro", "true"]);
    btrfs(&["property", "set", &text(&outer), "ro", "true"]);
    datasets.remove_root(instance).expect("a removal, nested and read-only or not");
    assert!(!root.exists());
    assert_eq!(datasets.roots().expect("a list"), []);
}

#[test]
fn an_image_stays_as_it_is() {
    let site = Site::new();
    let datasets = site.open();
    let (_, root) = site.root_of(&datasets, &Pack::small(), Mib(64));
    fs::write(root.join("etc/passwd"), "changed").expect("a root is writable");
    let image = datasets.images().expect("a list")[0];
    let kept = site.config.dir.join("images").join(image.to_string());
    assert!(fs::read_to_string(kept.join("etc/passwd")).expect("a file").starts_with("root:"));
    let refused = fs::write(kept.join("etc/passwd"), "changed").expect_err("an image is read-only");
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_full_pool_says_so_and_can_be_cleared() {
    let site = Site::new();
    let datasets = site.open();
    let (instance, root) = site.root_of(&datasets, &Pack::small(), Mib(100_000));
    let full = write(&root.join("fill"), 4096).expect_err("the pool is smaller");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");

    let mut pack = Pack::small();
    pack.file("big", &vec![7; 32 << 20]);
    let answer = datasets.import(ImageId::random(), &pack.gzip_sha(), Compression::Gzip, &mut pack.gzip().as_slice());
    assert!(matches!(answer, Err(Error::NoSpace { .. })), "{answer:?}");
    assert_eq!(datasets.images().expect("reads work").len(), 1, "nothing is left of the image that did not fit");

    datasets.remove_root(instance).expect("a removal needs no room");
    assert_eq!(datasets.roots().expect("a list"), []);
}

#[test]
fn a_pool_outlives_its_mount_and_sweeps_what_was_cut_off() {
    let site = Site::new();
    let first = site.open();
    let (instance, _) = site.root_of(&first, &Pack::small(), Mib(64));
    let image = first.images().expect("a list")[0];
    let cut_off = site.config.dir.join("images").join(format!(".importing-{image}-7"));
    btrfs(&["subvolume", "create", cut_off.to_str().expect("plain text")]);
    fs::write(cut_off.join("half"), "x").expect("a file");
    pool::ensure(&site.config).expect("a mounted pool is left alone");
    drop(first);
    pool::release(&site.config).expect("an idle pool is unmounted");
    pool::release(&site.config).expect("again");
    assert!(!cut_off.exists());

    let second = site.open();
    assert_eq!(second.images().expect("a list"), [image]);
    assert_eq!(second.roots().expect("a list"), [instance]);
    assert!(!cut_off.exists(), "what an import left is swept");
    second.remove_root(instance).expect("a removal");
}

#[test]
fn a_pool_that_cannot_be_is_refused_in_words() {
    let site = Site::new();
    let mut config = site.config.clone();
    config.backing = pool::Backing::File { path: site.outside.path().join("tiny.img"), size: Mib(16) };
    assert!(matches!(LinuxDatasets::open(&config), Err(Error::Refused { .. })));
    config.backing = pool::Backing::Directory;
    match LinuxDatasets::open(&config) {
        Err(Error::Lacking { what, .. }) => assert!(what.contains("btrfs"), "{what}"),
        Ok(_) => {} // The temporary directory is on btrfs here, which is what this backing wants.
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn clones_at_once_are_all_there() {
    let site = Site::new();
    let datasets = site.open();
    site.root_of(&datasets, &Pack::small(), Mib(64));
    let image = datasets.images().expect("a list")[0];
    let instances: Vec<InstanceId> = (0..16).map(|_| InstanceId::random()).collect();
    std::thread::scope(|scope| {
        for pair in instances.chunks(2) {
            let datasets = &datasets;
            scope.spawn(move || {
                for instance in pair {
                    datasets.clone_image(image, *instance, Mib(8)).expect("a clone");
                }
            });
        }
    });
    let roots = datasets.roots().expect("a list");
    assert!(instances.iter().all(|instance| roots.contains(instance)));
    for instance in instances {
        datasets.remove_root(instance).expect("a removal");
    }
    assert_eq!(datasets.roots().expect("a list").len(), 1);
}
