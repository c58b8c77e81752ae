//! What can be said of images without Debian's archive at hand.

use std::{collections::BTreeMap, fs::File, io::Read};

use super::{guest, *};

fn order<'a>(output: &'a Path, name: &'a str) -> Order<'a> {
    Order {
        name,
        version: "20260102",
        published_at: "2026-01-02T03:04:05Z",
        mdata: b"\x7fELF stands in",
        output,
        progress: &|_| (),
    }
}

/// Path, mode and link target or length of every member.
fn members(path: &Path) -> BTreeMap<String, (u32, String)> {
    let file = flate2::read::GzDecoder::new(File::open(path).expect("the file is there"));
    let mut archive = tar::Archive::new(file);
    let entries = archive.entries().expect("it is an archive");
    entries
        .map(|entry| {
            let mut entry = entry.expect("a member");
            let name = entry.path().expect("a path").to_string_lossy().trim_end_matches('/').to_owned();
            let mode = entry.header().mode().expect("a mode");
            let link = entry.link_name().expect("a link or none").map(|link| link.to_string_lossy().into_owned());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("it can be read");
            (name, (mode, link.unwrap_or_else(|| content.len().to_string())))
        })
        .collect()
}

#[test]
fn the_minimal_image_is_whole_and_its_manifest_tells_the_truth() {
    let directory = tempfile::tempdir().expect("a directory");
    let manifest_path = match build(&order(directory.path(), "minimal")) {
        Ok(path) => path,
        Err(error) if !Path::new("/bin/busybox").exists() => {
            println!("skipped: no busybox-static here and none to be fetched: {error}");
            return;
        }
        Err(error) => panic!("cannot build: {error}"),
    };
    let text = std::fs::read(&manifest_path).expect("a manifest");
    let manifest = model::image::manifest::parse(&text).expect("our own reader takes it");
    assert_eq!((manifest.name.as_str(), manifest.version.as_str(), manifest.public), ("minimal", "20260102", true));
    let file = directory.path().join("minimal-20260102.tar.gz");
    assert_eq!(manifest.file.size, Some(std::fs::metadata(&file).expect("the file").len()));

    let members = members(&file);
    assert_eq!(members["sbin/init"].1, "/bin/busybox");
    assert_eq!(members["usr/sbin/mdata-get"].1, "/usr/lib/neso/mdata");
    assert_eq!(members["sbin/reboot"].0, 0o755, "our own reboot, not busybox's");
    assert_eq!(members["tmp"].0, 0o1777);
    assert_eq!(members["etc/shadow"].0, 0o600);
    assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 2, "nothing else is left behind");
}

#[test]
fn the_same_content_has_the_same_id_and_another_another() {
    let packed =
        |sha256: &str| pack::Packed { path: PathBuf::new(), size: 1, sha1: "0".repeat(40), sha256: sha256.repeat(64) };
    let directory = Path::new("/nowhere");
    let id = |sha256| {
        let text = manifest(&order(directory, "minimal"), &minimal::ABOUT, &packed(sha256));
        model::image::manifest::parse(&text).expect("our own reader takes it").id
    };
    assert_eq!(id("a"), id("a"));
    assert_ne!(id("a"), id("b"));
}

#[test]
fn every_guest_script_says_what_runs_it() {
    for file in guest::COMMON.iter().chain(&guest::MINIMAL).chain(&guest::DEBIAN) {
        assert_eq!(file.mode & 0o111 != 0, file.content.starts_with("#!/bin/sh\n"), "{}", file.path);
        assert!(!file.path.starts_with('/') && !file.content.contains('\r'), "{}", file.path);
    }
}

#[test]
fn an_unknown_recipe_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let error = build(&order(directory.path(), "plan9")).expect_err("there is no such recipe");
    assert!(error.to_string().contains("plan9"), "{error}");
}
