//! A member's log, read and never written, also while the member writes it.
//!
//! What a member acknowledges is in its log at once and in its file a little later: it writes that in batches. The log is a row of *segments*, files named
//! `SEQUENCE-FIRST.wal` of up to 64 MiB, which are given their length before they are written: zeros are its end. Records follow each other, each with
//! a checksum over the data of all before; a segment begins with the one the segment before ended with. A later entry with a number there was already takes
//! its place and that of all behind: a leader of then was not followed.
//!
//! The end may be torn by the cut that ended the member: what was never flushed was never acknowledged. It is told from damage as etcd tells it: a
//! sector of a torn record was never written.

use std::{fs, path::Path};

use bytes::{Buf as _, Bytes};
use prost::Message as _;

/// Numbers and lengths in the name of a segment.
const NAME_DIGITS: usize = 16;
/// Longer than any segment: etcd ends one after 64 MiB and a record.
const SEGMENT_MAX: u64 = 256 << 20;
/// Of entries that are not in the file: etcd has ten thousand requests in a batch at most, and most are small.
const ENTRIES_BYTES_MAX: usize = 1 << 30;
/// A disk writes these whole or not at all.
const SECTOR: usize = 512;
/// Length of a record, and how much it is filled up with.
const FRAME_HEAD: usize = 8;

const ENTRY: i64 = 2;
const STATE: i64 = 3;
const CHECKSUM: i64 = 4;

/// What is behind the file.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// In their order, without a gap.
    pub(crate) entries: Vec<Entry>,
    /// Newest entry of which the log says that a majority has it; there may be later ones.
    pub(crate) agreed: u64,
    /// Why it was not read to its end, where it was not.
    pub(crate) damage: Option<String>,
}

/// One entry of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    /// 0: a request; others change who is a member.
    #[prost(int32, tag = "1")]
    pub(crate) kind: i32,
    #[prost(uint64, tag = "3")]
    pub(crate) index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(uint32, tag = "2")]
    checksum: u32,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(uint64, tag = "3")]
    agreed: u64,
}

/// Whether there is more to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Of this segment.
    Segment,
    /// Of the log.
    Log,
}

impl Log {
    /// Entries behind `after` of the log below a member's data directory. As much as can be read; [`Self::damage`] says why not more.
    pub(crate) fn read(data: &Path, after: u64) -> Self {
        let mut reader = Reader { after, checksum: 0, bytes: 0, log: Self::default() };
        let damage = reader.directory(&data.join("member").join("wal")).err();
        Self { damage, ..reader.log }
    }
}

/// A segment's place in the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Segment {
    sequence: u64,
    first: u64,
    name: String,
}

impl Segment {
    fn parse(name: &str) -> Option<Self> {
        let (sequence, first) = name.strip_suffix(".wal")?.split_once('-')?;
        let number = |text: &str| {
            let is_plain = text.len() == NAME_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_plain.then(|| u64::from_str_radix(text, 16).ok())?
        };
        Some(Self { sequence: number(sequence)?, first: number(first)?, name: name.to_owned() })
    }
}

struct Reader {
    after: u64,
    checksum: u32,
    /// Of the entries that are kept.
    bytes: usize,
    log: Log,
}

impl Reader {
    fn directory(&mut self, directory: &Path) -> Result<(), String> {
        let failed = |error| format!("read `{}`: {error}", directory.display());
        let mut all = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            all.extend(entry.map_err(failed)?.file_name().to_str().and_then(Segment::parse));
        }
        all.sort();
        // What is in the file lies before this one.
        let begin = all.iter().rposition(|segment| segment.first <= self.after.saturating_add(1)).unwrap_or(0);
        let all = all.get(begin..).unwrap_or_default();
        let Some(first) = all.first() else { return Err("it has no segment".to_owned()) };
        for (segment, sequence) in all.iter().zip(first.sequence..) {
            if segment.sequence != sequence {
                return Err(format!("segment {sequence} is missing"));
            }
            let path = directory.join(&segment.name);
            let failed = |error| format!("read `{}`: {error}", path.display());
            if fs::metadata(&path).map_err(failed)?.len() > SEGMENT_MAX {
                return Err(format!("`{}` is longer than any segment", segment.name));
            }
            let bytes = Bytes::from(fs::read(&path).map_err(failed)?);
            let is_last = all.last() == Some(segment);
            let end = self.segment(&bytes, is_last).map_err(|why| format!("`{}`: {why}", segment.name))?;
            if end == End::Log {
                break;
            }
        }
        Ok(())
    }

    fn segment(&mut self, bytes: &Bytes, is_last: bool) -> Result<End, String> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = bytes.slice(at..);
            let cut = |why: &str| if is_last { Ok(End::Log) } else { Err(format!("{why} at byte {at}")) };
            if rest.len() < FRAME_HEAD {
                return cut("a record is cut");
            }
            let head = (&rest[..]).get_u64_le();
            if head == 0 {
                return Ok(End::Segment);
            }
            let padding = if head >> 63 == 1 { (head >> 56) & 0x7 } else { 0 };
            let length = usize::try_from(head & !(0xff << 56)).ok();
            let whole = length.and_then(|length| length.checked_add(usize::try_from(padding).ok()?));
            let framed = whole.and_then(|whole| rest.get(FRAME_HEAD..whole.checked_add(FRAME_HEAD)?));
            let (Some(length), Some(framed)) = (length, framed) else { return cut("a record is cut") };
            if let Err(why) = self.record(rest.slice(FRAME_HEAD..FRAME_HEAD + length)) {
                return match is_last && is_torn(framed, at + FRAME_HEAD) {
                    true => Ok(End::Log),
                    false => Err(format!("{why} at byte {at}")),
                };
            }
            at += FRAME_HEAD + framed.len();
        }
        Ok(End::Segment)
    }

    fn record(&mut self, bytes: Bytes) -> Result<(), String> {
        let Record { kind, checksum, data } = Record::decode(bytes).map_err(|_| "a record cannot be read")?;
        let wrong = || "a record is not the one that was written".to_owned();
        if kind == CHECKSUM {
            // What went before where reading began is not known.
            if self.checksum != 0 && self.checksum != checksum {
                return Err(wrong());
            }
            self.checksum = checksum;
            return Ok(());
        }
        let sum = crc32c(self.checksum, &data);
        if sum != checksum {
            return Err(wrong());
        }
        self.checksum = sum;
        match kind {
            ENTRY => self.entry(Entry::decode(data).map_err(|_| "an entry cannot be read")?),
            STATE => {
                self.log.agreed = State::decode(data).map_err(|_| "what was agreed cannot be read")?.agreed;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<(), String> {
        let entries = &mut self.log.entries;
        let Some(place) = entry.index.checked_sub(self.after + 1) else {
            // In the file already, and agreed therefore: what stood behind it was not.
            entries.clear();
            self.bytes = 0;
            return Ok(());
        };
        let place = usize::try_from(place).ok().filter(|place| *place <= entries.len());
        let Some(place) = place else {
            let last = self.after + entries.len() as u64;
            return Err(format!("entry {} follows entry {last}", entry.index));
        };
        self.bytes -= entries.drain(place..).map(|gone| gone.data.len()).sum::<usize>();
        self.bytes += entry.data.len();
        if self.bytes > ENTRIES_BYTES_MAX {
            return Err(format!("more than {ENTRIES_BYTES_MAX} bytes are not in the file"));
        }
        entries.push(entry);
        Ok(())
    }
}

/// Whether a sector of what lies at `at` of a file was never written.
fn is_torn(framed: &[u8], at: usize) -> bool {
    let first = (SECTOR - at % SECTOR).min(framed.len());
    let (first, rest) = framed.split_at(first);
    std::iter::once(first).chain(rest.chunks(SECTOR)).any(|sector| sector.iter().all(|byte| *byte == 0))
}

/// CRC-32 with Castagnoli's polynomial, going on from `before`.
fn crc32c(before: u32, bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!before, |sum, byte| CRC32C[usize::from((sum as u8) ^ byte)] ^ (sum >> 8))
}

static CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut sum = at as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
            bit += 1;
        }
        table[at] = sum;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;

    use super::*;

    /// Segments as etcd writes them.
    #[derive(Default)]
    struct Writer {
        checksum: u32,
        bytes: Vec<u8>,
    }

    impl Writer {
        fn after(checksum: u32) -> Self {
            let mut writer = Self { checksum, bytes: Vec::new() };
            writer.frame(&Record { kind: CHECKSUM, checksum, data: Bytes::new() });
            writer
        }

        fn frame(&mut self, record: &Record) {
            let record = record.encode_to_vec();
            let padding = (8 - record.len() % 8) % 8;
            let flag = if padding > 0 { (0x80 | padding as u64) << 56 } else { 0 };
            self.bytes.put_u64_le(record.len() as u64 | flag);
            self.bytes.extend(&record);
            self.bytes.put_bytes(0, padding);
        }

        fn record(&mut self, kind: i64, data: Vec<u8>) {
            self.checksum = crc32c(self.checksum, &data);
            self.frame(&Record { kind, checksum: self.checksum, data: data.into() });
        }

        fn entry(&mut self, index: u64, data: &str) {
            let entry = Entry { kind: 0, index, data: Bytes::copy_from_slice(data.as_bytes()) };
            self.record(ENTRY, entry.encode_to_vec());
        }

        fn agreed(&mut self, agreed: u64) {
            self.record(STATE, State { agreed }.encode_to_vec());
        }
    }

    /// Entries 1 to 9 in two segments, of which the last word is 7.
    fn sound() -> [Vec<u8>; 2] {
        let mut first = Writer::after(0);
        first.record(1, b"who it is".to_vec());
        (1..5).for_each(|index| first.entry(index, &format!("e{index}")));
        first.agreed(3);
        let mut second = Writer::after(first.checksum);
        (5..8).for_each(|index| second.entry(index, &format!("e{index}")));
        second.agreed(7);
        (8..10).for_each(|index| second.entry(index, &format!("e{index}")));
        second.bytes.extend([0; 4_000]);
        [first.bytes, second.bytes]
    }

    fn read(segments: &[Vec<u8>], after: u64) -> (Vec<String>, u64, Option<String>) {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("member/wal");
        fs::create_dir_all(&log).unwrap();
        for (number, bytes) in segments.iter().enumerate() {
            fs::write(log.join(format!("{number:016x}-{:016x}.wal", number * 5)), bytes).unwrap();
        }
        fs::write(log.join("0.tmp"), [0; 4_000]).unwrap();
        let Log { entries, agreed, damage } = Log::read(directory.path(), after);
        let text = |entry: &Entry| String::from_utf8(entry.data.to_vec()).unwrap();
        assert!(entries.iter().zip(after + 1..).all(|(entry, index)| entry.index == index));
        (entries.iter().map(text).collect(), agreed, damage)
    }

    #[test]
    fn what_is_behind_the_file_is_read_to_the_end() {
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), 0xe306_9283);
        for after in 0..9 {
            let (entries, agreed, damage) = read(&sound(), after);
            assert_eq!((entries.len() as u64, agreed, damage), (9 - after, 7, None), "{after}");
        }
        assert_eq!(read(&sound(), 6).0, ["e7", "e8", "e9"]);
        assert!(read(&sound(), 9).0.is_empty() && read(&sound(), 99).0.is_empty());
    }

    #[test]
    fn what_was_not_followed_gives_way() {
        let mut log = Writer::after(0);
        (1..6).for_each(|index| log.entry(index, "old"));
        log.entry(4, "new");
        assert_eq!(read(&[log.bytes.clone()], 2).0, ["old", "new"]);
        log.entry(2, "newer");
        assert!(read(&[log.bytes.clone()], 2).0.is_empty());
        log.entry(3, "newest");
        assert_eq!(read(&[log.bytes], 2).0, ["newest"]);
    }

    #[test]
    fn a_torn_end_is_an_end_and_anything_else_is_damage() {
        let [first, second] = sound();
        let end = second.len() - 4_000;
        // As a disk leaves it that wrote some sectors of the last record and was never told to flush the others.
        let mut log = Writer::after(0);
        (1..9).for_each(|index| log.entry(index, "short"));
        let begin = log.bytes.len();
        log.entry(9, &"long".repeat(500));
        for sector in (begin.next_multiple_of(SECTOR)..log.bytes.len()).step_by(SECTOR) {
            let mut torn = log.bytes.clone();
            torn[sector..].fill(0);
            torn.extend([0; 4_000]);
            let (entries, _, damage) = read(&[torn], 0);
            assert_eq!((entries.len(), damage), (8, None), "{sector}");
        }
        assert_eq!(read(&[first.clone(), second[..end - 3].to_vec()], 0).0.len(), 8);
        // A record that was there and is another one.
        let mut changed = second.clone();
        changed[end - 12] ^= 1;
        let (entries, _, damage) = read(&[first.clone(), changed], 0);
        assert_eq!(entries.len(), 8);
        assert!(damage.unwrap().contains("at byte"));
        // In a segment that another one follows there is no torn end.
        let (entries, _, damage) = read(&[first[..first.len() - 30].to_vec(), second.clone()], 0);
        assert!(entries.len() < 5 && damage.is_some());
        // One that is gone, in the middle and at the beginning.
        let whole = [first.clone(), Writer::after(0).bytes, second.clone()];
        assert!(read(&whole, 0).2.is_some(), "the sum goes on from another one");
        let (entries, _, damage) = read(&[second], 1);
        assert!(entries.is_empty() && damage.unwrap().contains("entry 5 follows entry 1"));
        assert_eq!(read(&[], 0).2.as_deref(), Some("it has no segment"));
    }

    #[test]
    fn no_byte_of_a_log_makes_it_panic() {
        let [first, second] = sound();
        for at in 0..first.len().max(second.len() - 3_990) {
            for value in [0x00, 0x01, 0x7f, 0xff] {
                let mut segments = [first.clone(), second.clone()];
                for segment in &mut segments {
                    if let Some(byte) = segment.get_mut(at) {
                        *byte = value;
                    }
                }
                // Read or refused, and that is all.
                let _ = read(&segments, 2);
            }
        }
    }
}
