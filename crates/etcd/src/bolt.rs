//! A member's file, read and never written, also while the member has it open.
//!
//! etcd keeps its keyspace in one file of `bbolt`'s format: pages that form B+ trees, one per *bucket*, below one of two *meta* pages. A writer never touches
//! a page that the newest meta page reaches; it writes new ones, and then a meta page with a greater number. So whoever reads without the writer's
//! knowledge looks at the meta pages before and after: if the newest is the same one, all that was read belongs together; if not, it reads again.
//!
//! Page numbers, counts and lengths in a file are a stranger's words: each is checked against the file's length, and depth is bounded.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use bytes::{Buf as _, Bytes};

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
const PAGE_HEAD: usize = 16;
const ELEMENT: usize = 16;
/// Of a meta page, after its head; its checksum is over all before.
const META_BYTES: usize = 64;
const META_CHECKED: usize = 56;
/// A bucket's root and counter.
const BUCKET_HEAD: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
/// The value of an element is a bucket.
const IS_BUCKET: u32 = 0x01;
/// Pages have 4 KiB on every machine of ours; larger ones are read as well.
const PAGE_MIN: usize = 512;
const PAGE_MAX: usize = 64 << 10;
/// A node of a tree: etcd's values have 1.5 MiB at most.
const NODE_MAX: usize = 64 << 20;
/// Deeper than any tree of a file that fits on a disk.
const DEPTH_MAX: usize = 24;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("read `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no file of a member's, or a damaged one.
    #[error("`{path}` is not what a member of etcd writes: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A member writes all the time.
    #[error("`{0}` changes faster than it can be read")]
    Busy(PathBuf),
}

/// Takes key and value, or says what is wrong with them.
pub(crate) type ShowRecord<'a> = dyn FnMut(&[u8], Bytes) -> Result<(), String> + 'a;
/// The same, with an element's flags first.
type ShowElement<'a> = dyn FnMut(u32, &[u8], Bytes) -> Result<(), String> + 'a;

/// A file, at one moment.
pub(crate) struct Bolt {
    path: PathBuf,
    file: File,
    page_bytes: usize,
    length: u64,
    meta: Meta,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meta {
    page_bytes: usize,
    root: u64,
    number: u64,
}

impl Bolt {
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let io = |source| FileError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let meta = newest_meta(&file, length).map_err(io)?;
        let why = || FileError::Damaged { path: path.to_owned(), why: "it has no whole meta page".to_owned() };
        let meta = meta.ok_or_else(why)?;
        Ok(Self { path: path.to_owned(), file, page_bytes: meta.page_bytes, length, meta })
    }

    /// Whether nothing was written since it was opened.
    pub(crate) fn is_as_it_was(&self) -> Result<bool, FileError> {
        let io = |source| FileError::Io { path: self.path.clone(), source };
        let length = self.file.metadata().map_err(io)?.len();
        Ok(newest_meta(&self.file, length).map_err(io)? == Some(self.meta))
    }

    /// Shows each key and value of a bucket, in the order of keys. A bucket that is not there is empty.
    pub(crate) fn each(&self, bucket: &str, show: &mut ShowRecord<'_>) -> Result<(), FileError> {
        let mut found = None;
        self.walk(&self.node(self.meta.root)?, 0, &mut |flags, key, value| {
            if flags & IS_BUCKET != 0 && key == bucket.as_bytes() {
                found = Some(value);
            }
            Ok(())
        })?;
        let Some(mut head) = found else { return Ok(()) };
        if head.len() < BUCKET_HEAD {
            return Err(self.damaged("a bucket is cut"));
        }
        let inline = head.split_off(BUCKET_HEAD);
        let root = head.get_u64_le();
        // A small bucket lies in its own element.
        let node = if root == 0 { inline } else { self.node(root)? };
        self.walk(&node, 0, &mut |flags, key, value| if flags & IS_BUCKET == 0 { show(key, value) } else { Ok(()) })
    }

    fn walk(&self, node: &Bytes, depth: usize, show: &mut ShowElement<'_>) -> Result<(), FileError> {
        if depth > DEPTH_MAX {
            return Err(self.damaged("its tree has no end"));
        }
        let head = node.get(..PAGE_HEAD).ok_or_else(|| self.damaged("a page is cut"))?;
        let (flags, count) = ((&head[8..]).get_u16_le(), (&head[10..]).get_u16_le());
        for at in 0..usize::from(count) {
            let begin = PAGE_HEAD + at * ELEMENT;
            let element = node.get(begin..begin + ELEMENT).ok_or_else(|| self.damaged("an element is cut"))?;
            let word = |at: usize| (&element[at..]).get_u32_le();
            let place = |offset: u32, length: u32| {
                let from = begin.checked_add(usize::try_from(offset).ok()?)?;
                let to = from.checked_add(usize::try_from(length).ok()?)?;
                (to <= node.len()).then_some((from, to))
            };
            let cut = || self.damaged("an element points out of its page");
            match flags {
                BRANCH => self.walk(&self.node((&element[8..]).get_u64_le())?, depth + 1, show)?,
                LEAF => {
                    let (from, to) = place(word(4), word(8)).ok_or_else(cut)?;
                    let end = usize::try_from(word(12)).ok().and_then(|length| to.checked_add(length));
                    let end = end.filter(|end| *end <= node.len()).ok_or_else(cut)?;
                    show(word(0), &node[from..to], node.slice(to..end)).map_err(|why| self.damaged(&why))?;
                }
                _ => return Err(self.damaged("a page of a tree is of another kind")),
            }
        }
        Ok(())
    }

    /// The page `id` with what overflows it.
    fn node(&self, id: u64) -> Result<Bytes, FileError> {
        let page = u64::try_from(self.page_bytes).unwrap_or(u64::MAX);
        let offset = id.checked_mul(page).filter(|offset| offset.saturating_add(page) <= self.length);
        let offset = offset.ok_or_else(|| self.damaged("a page lies behind its end"))?;
        let mut bytes = vec![0; self.page_bytes];
        self.read(&mut bytes, offset)?;
        let (found, overflow) = ((&bytes[..]).get_u64_le(), (&bytes[12..]).get_u32_le());
        if found != id {
            return Err(self.damaged("a page says that it is another one"));
        }
        if overflow > 0 {
            let whole = usize::try_from(overflow).ok().and_then(|more| (more + 1).checked_mul(self.page_bytes));
            let whole = whole.filter(|whole| *whole <= NODE_MAX).ok_or_else(|| self.damaged("a page is too large"))?;
            bytes.resize(whole, 0);
            self.read(&mut bytes, offset)?;
        }
        Ok(bytes.into())
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), FileError> {
        self.file.read_exact_at(bytes, offset).map_err(|source| FileError::Io { path: self.path.clone(), source })
    }

    pub(crate) fn damaged(&self, why: &str) -> FileError {
        FileError::Damaged { path: self.path.clone(), why: why.to_owned() }
    }
}

/// The meta page with the greatest number of the two, if one is whole.
fn newest_meta(file: &File, length: u64) -> io::Result<Option<Meta>> {
    let mut newest: Option<Meta> = None;
    let mut second = None;
    // Where the second is, the first says; when that is torn, pages have the usual size.
    for at in [0, 1] {
        let offset = if at == 0 { 0 } else { second.unwrap_or(4096) };
        let mut bytes = [0; PAGE_HEAD + META_BYTES];
        if offset + bytes.len() as u64 > length {
            break;
        }
        file.read_exact_at(&mut bytes, offset)?;
        let Some(meta) = read_meta(&bytes) else { continue };
        if at == 0 {
            second = u64::try_from(meta.page_bytes).ok();
        }
        if newest.is_none_or(|newest| newest.number < meta.number) {
            newest = Some(meta);
        }
    }
    Ok(newest)
}

fn read_meta(bytes: &[u8; PAGE_HEAD + META_BYTES]) -> Option<Meta> {
    let flags = (&bytes[8..]).get_u16_le();
    let meta = &bytes[PAGE_HEAD..];
    let (word, long) = (|at: usize| (&meta[at..]).get_u32_le(), |at: usize| (&meta[at..]).get_u64_le());
    let page_bytes = usize::try_from(word(8)).ok()?;
    let is_whole = flags & META != 0
        && word(0) == MAGIC
        && word(4) == VERSION
        && (PAGE_MIN..=PAGE_MAX).contains(&page_bytes)
        && long(META_CHECKED) == fnv(&meta[..META_CHECKED]);
    is_whole.then(|| Meta { page_bytes, root: long(16), number: long(48) })
}

/// FNV-1a of 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;

    use super::*;

    const PAGE: usize = 4096;

    fn page(id: u64, flags: u16, elements: &[(u32, &[u8], Vec<u8>)]) -> Vec<u8> {
        let mut head = Vec::new();
        head.put_u64_le(id);
        head.put_u16_le(flags);
        head.put_u16_le(u16::try_from(elements.len()).unwrap());
        head.put_u32_le(0);
        let mut data = Vec::new();
        for (at, (flags, key, value)) in elements.iter().enumerate() {
            let place = u32::try_from((elements.len() - at) * ELEMENT + data.len()).unwrap();
            for word in [*flags, place, u32::try_from(key.len()).unwrap(), u32::try_from(value.len()).unwrap()] {
                head.put_u32_le(word);
            }
            data.extend_from_slice(key);
            data.extend_from_slice(value);
        }
        head.extend(data);
        head
    }

    fn meta(id: u64, number: u64) -> Vec<u8> {
        let mut meta = Vec::new();
        for word in [MAGIC, VERSION, u32::try_from(PAGE).unwrap(), 0] {
            meta.put_u32_le(word);
        }
        for long in [2, 0, u64::MAX, 4, number] {
            meta.put_u64_le(long);
        }
        meta.put_u64_le(fnv(&meta));
        let mut whole = page(id, META, &[]);
        whole.extend(meta);
        whole
    }

    /// A file with one bucket, whose tree is page 3.
    fn file(pages: [Vec<u8>; 4]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let whole: Vec<u8> = pages
            .into_iter()
            .flat_map(|mut page| {
                page.resize(PAGE, 0);
                page
            })
            .collect();
        std::fs::write(file.path(), whole).unwrap();
        file
    }

    fn bucket(root: u64) -> Vec<u8> {
        let mut bucket = Vec::new();
        bucket.put_u64_le(root);
        bucket.put_u64_le(0);
        bucket
    }

    fn sound() -> [Vec<u8>; 4] {
        [
            meta(0, 8),
            meta(1, 7),
            page(
                2,
                LEAF,
                &[
                    (IS_BUCKET, b"key", bucket(3)),
                    (IS_BUCKET, b"small", {
                        let mut small = bucket(0);
                        small.extend(page(0, LEAF, &[(0, b"in", b"line".to_vec())]));
                        small
                    }),
                ],
            ),
            page(3, LEAF, &[(0, b"a", b"1".to_vec()), (0, b"b", b"22".to_vec())]),
        ]
    }

    fn all(file: &tempfile::NamedTempFile, bucket: &str) -> Result<Vec<(Vec<u8>, Bytes)>, FileError> {
        let mut found = Vec::new();
        let bolt = Bolt::open(file.path())?;
        bolt.each(bucket, &mut |key, value| {
            found.push((key.to_vec(), value));
            Ok(())
        })?;
        assert!(bolt.is_as_it_was()?);
        Ok(found)
    }

    #[test]
    fn a_file_is_read_from_its_newest_whole_meta_page() {
        let found = all(&file(sound()), "key").unwrap();
        assert_eq!(found, [(b"a".to_vec(), Bytes::from("1")), (b"b".to_vec(), Bytes::from("22"))]);
        assert_eq!(all(&file(sound()), "small").unwrap(), [(b"in".to_vec(), Bytes::from("line"))]);
        assert!(all(&file(sound()), "none").unwrap().is_empty());
        // A torn one is as if it were not there, and a change of the newest is seen.
        let mut torn = sound();
        torn[0][70] ^= 1;
        assert_eq!(all(&file(torn), "key").unwrap().len(), 2);
        let written = file(sound());
        let bolt = Bolt::open(written.path()).unwrap();
        let mut later = sound();
        later[1] = meta(1, 9);
        std::fs::copy(file(later).path(), written.path()).unwrap();
        assert!(!bolt.is_as_it_was().unwrap());
    }

    #[test]
    fn damage_is_said_and_never_followed() {
        let damaged = |change: fn(&mut [Vec<u8>; 4])| {
            let mut pages = sound();
            change(&mut pages);
            all(&file(pages), "key").unwrap_err().to_string()
        };
        assert!(damaged(|pages| (pages[0][70], pages[1][70]) = (9, 9)).contains("no whole meta page"));
        assert!(damaged(|pages| pages[3] = page(4, LEAF, &[])).contains("another one"));
        assert!(
            damaged(|pages| pages[2] = page(2, LEAF, &[(IS_BUCKET, b"key", bucket(9))])).contains("behind its end")
        );
        assert!(damaged(|pages| pages[2] = page(2, LEAF, &[(IS_BUCKET, b"key", vec![1])])).contains("bucket is cut"));
        // A branch that leads to itself.
        assert!(
            damaged(|pages| {
                pages[3] = page(3, BRANCH, &[(0, b"", Vec::new())]);
                pages[3][PAGE_HEAD + 8] = 3;
            })
            .contains("no end")
        );
        assert!(all(&file([vec![], vec![], vec![], vec![]]), "key").is_err());
    }

    #[test]
    fn no_byte_of_a_file_makes_it_panic() {
        let whole: Vec<u8> = std::fs::read(file(sound()).path()).unwrap();
        let target = tempfile::NamedTempFile::new().unwrap();
        // Each byte of what is used, to the extremes.
        for at in (0..80).chain(2 * PAGE..2 * PAGE + 120).chain(3 * PAGE..3 * PAGE + 60) {
            for value in [0x00, 0x01, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                std::fs::write(target.path(), &bytes).unwrap();
                // Read or refused, and that is all.
                let _ = all(&target, "key");
                let _ = all(&target, "small");
            }
        }
        std::fs::write(target.path(), &whole[..3 * PAGE - 7]).unwrap();
        assert!(all(&target, "key").is_err());
    }
}
