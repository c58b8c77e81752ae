//! Archives that try to leave the root: each is refused, leaves no image, and touches nothing outside.

use host::{Error, dataset::Datasets};
use model::{id::ImageId, image::Compression};
use tar::EntryType;

use super::{Pack, Site};

#[test]
fn archives_that_try_to_leave_the_root_are_refused() {
    let site = Site::new();
    let datasets = site.open();
    let outside = site.outside.path().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    std::fs::write(outside.join("victim"), "untouched").expect("a file");
    let away = outside.to_str().expect("plain text");
    let victim = format!("{away}/victim");

    let file = EntryType::Regular;
    let mut cases: Vec<(&str, Pack)> = Vec::new();
    let mut case = |name, build: &dyn Fn(&mut Pack)| {
        let mut pack = Pack::small();
        build(&mut pack);
        cases.push((name, pack));
    };
    case("absolute", &|p| _ = p.file(&victim, b"x"));
    case("climbing", &|p| _ = p.file("../../outside/victim", b"x"));
    case("climbing inside", &|p| _ = p.file("etc/../../../outside/victim", b"x"));
    case("through a link", &|p| _ = p.symlink("out", away).file("out/victim", b"x"));
    case("through a relative link", &|p| _ = p.symlink("out", "../../../outside").file("out/victim", b"x"));
    case("through two links", &|p| _ = p.symlink("a", "b").symlink("b", away).file("a/victim", b"x"));
    case("directory through a link", &|p| {
        p.symlink("out", away).add("out/new/", EntryType::Directory, 0o755, (0, 0), "", b"");
    });
    case("hard link out", &|p| _ = p.add("h", EntryType::Link, 0o644, (0, 0), &victim, b""));
    case("hard link climbing", &|p| _ = p.add("h", EntryType::Link, 0o644, (0, 0), "../../outside/victim", b""));
    case("hard link through a link", &|p| {
        p.symlink("out", away).add("h", EntryType::Link, 0o644, (0, 0), "out/victim", b"");
    });
    case("hard link to nothing", &|p| _ = p.add("h", EntryType::Link, 0o644, (0, 0), "nothing", b""));
    case("PAX path", &|p| _ = p.pax(&[("path", b"../../outside/victim")]).file("harmless", b"x"));
    case("PAX link", &|p| {
        p.pax(&[("linkpath", victim.as_bytes())]).add("h", EntryType::Link, 0o644, (0, 0), "etc/passwd", b"");
    });
    case("long name", &|p| {
        p.add("././@LongLink", EntryType::GNULongName, 0o644, (0, 0), "", b"../../outside/victim\0").file("a", b"x");
    });
    case("owner outside", &|p| _ = p.add("o", file, 0o644, (70_000, 0), "", b"x"));
    case("file over a directory", &|p| _ = p.file("etc", b"x"));
    case("file below a file", &|p| _ = p.file("etc/passwd/below", b"x"));
    case("root as a link", &|p| _ = p.symlink("./", away));
    case("sparse", &|p| _ = p.pax(&[("GNU.sparse.major", b"1")]).file("s", b"x"));

    for (name, pack) in cases {
        let answer = datasets.import(ImageId::random(), &pack.tar_sha(), Compression::None, &mut pack.tar().as_slice());
        assert!(matches!(answer, Err(Error::Refused { .. })), "{name}: {answer:?}");
        assert_eq!(datasets.images().expect("a list"), [], "{name} left an image");
    }
    let left: Vec<_> = std::fs::read_dir(site.config.dir.join("images")).expect("a directory").collect();
    assert!(left.is_empty(), "something is left of what was refused: {left:?}");
    assert_eq!(std::fs::read_to_string(outside.join("victim")).expect("it is there"), "untouched");
    assert_eq!(std::fs::read_dir(&outside).expect("a directory").count(), 1, "something was made outside");
}

#[test]
fn a_link_that_is_replaced_is_not_followed() {
    let site = Site::new();
    let datasets = site.open();
    let victim = site.outside.path().join("victim");
    std::fs::write(&victim, "untouched").expect("a file");
    let mut pack = Pack::small();
    pack.symlink("same", victim.to_str().expect("plain text")).file("same", b"inside");
    let (_, root) = site.root_of(&datasets, &pack, model::unit::Mib(64));
    assert_eq!(std::fs::read_to_string(root.join("same")).expect("a file"), "inside");
    assert!(!root.join("same").is_symlink());
    assert_eq!(std::fs::read_to_string(victim).expect("it is there"), "untouched");
}
