//! Changes of an nftables table as netlink messages: sets, elements, chains and rules, sent as one transaction.
//!
//! Only changes. A table is made as a whole by `nft`, from text that people can read; but `nft` lists every set of a table before it
//! changes one, which is what made a change dear where there are many. A [`Batch`] asks the kernel for nothing, and the kernel
//! carries out all of it or none. The messages are those `nft` would send, so that what it lists afterwards is the same: a test
//! in `tests/it/net` compares the two.

use nix::{errno::Errno, sys::socket::SockProtocol};

use super::{
    netlink::{Message, Refusal, Socket, flag},
    nft_step::{Compare, Step},
};
use crate::error::{Error, Result};

pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_BRIDGE: u8 = 7;
/// Of one packet; not a family of tables.
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// Family unspecified, version 0, and the subsystem in network order.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, SUBSYSTEM as u8];

const NEWCHAIN: u16 = (SUBSYSTEM << 8) | 3;
const DELCHAIN: u16 = (SUBSYSTEM << 8) | 5;
const NEWRULE: u16 = (SUBSYSTEM << 8) | 6;
const DELRULE: u16 = (SUBSYSTEM << 8) | 8;
const NEWSET: u16 = (SUBSYSTEM << 8) | 9;
const DELSET: u16 = (SUBSYSTEM << 8) | 11;
const NEWSETELEM: u16 = (SUBSYSTEM << 8) | 12;
const DELSETELEM: u16 = (SUBSYSTEM << 8) | 14;

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DESC: u16 = 9;
const SET_ID: u16 = 10;
const SET_USERDATA: u16 = 13;
const SET_DESC_SIZE: u16 = 1;
pub(super) const ELEM_LIST_TABLE: u16 = 1;
pub(super) const ELEM_LIST_SET: u16 = 2;
pub(super) const ELEM_LIST_ELEMENTS: u16 = 3;
const ELEM_LIST_SET_ID: u16 = 4;
pub(super) const LIST_ELEM: u16 = 1;
pub(super) const SET_ELEM_KEY: u16 = 1;
const SET_ELEM_DATA: u16 = 2;
const SET_ELEM_FLAGS: u16 = 3;
const SET_ELEM_USERDATA: u16 = 6;
const ELEM_INTERVAL_END: u32 = 1;
pub(super) const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// Set flags: without a name, and never changed.
const ANONYMOUS: u32 = 3;
const INTERVAL: u32 = 4;
/// What the kernel makes a name of.
pub(super) const ANONYMOUS_NAME: &str = "__set%d";
/// `nft`'s notes in a set and in its elements: the key is in network order; the last range has no end.
const NETWORK_ORDER: [u8; 6] = [0, 4, 2, 0, 0, 0];
const OPEN_ENDED: [u8; 6] = [1, 4, 1, 0, 0, 0];

/// Elements in one message, each at most 110 bytes: an attribute holds 64 KiB.
const ELEMENTS_MAX: usize = 400;

/// Bytes of one transaction. Larger ones are a table made anew, which is a matter for `nft`.
pub(super) const BATCH_BYTES_MAX: usize = 8 << 20;

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Ipv4,
    Ipv6,
    Port,
}

impl Key {
    /// `nft`'s number of the type, and its length in bytes.
    const fn numbers(self) -> (u32, usize) {
        match self {
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
            Self::Port => (13, 2),
        }
    }
}

/// Adding or deleting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Delete,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
}

/// An element of a set, or of a map to verdicts.
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) verdict: Option<Verdict>,
}

impl From<Vec<u8>> for Element {
    fn from(key: Vec<u8>) -> Self {
        Self { key, verdict: None }
    }
}

/// A transaction on one name of tables.
pub(super) struct Batch {
    table: String,
    messages: Vec<Message>,
    anonymous: u32,
}

impl Batch {
    pub(super) fn new(table: &str) -> Self {
        let begin = Message::new(BATCH_BEGIN, 0, &BATCH_HEADER).unanswered();
        Self { table: table.to_owned(), messages: vec![begin], anonymous: 0 }
    }

    /// Adds or deletes elements of a set.
    pub(super) fn elements(
        &mut self,
        verb: Verb,
        family: u8,
        set: &str,
        elements: impl IntoIterator<Item = impl Into<Element>>,
    ) {
        let (kind, flags) = match verb {
            Verb::Add => (NEWSETELEM, flag::CREATE),
            Verb::Delete => (DELSETELEM, 0),
        };
        let mut elements = elements.into_iter().map(Into::into).peekable();
        while elements.peek().is_some() {
            let message = message(kind, flags, family).text(ELEM_LIST_TABLE, &self.table).text(ELEM_LIST_SET, set);
            let some = elements.by_ref().take(ELEMENTS_MAX);
            self.messages.push(
                message.nest(ELEM_LIST_ELEMENTS, &[], |list| some.fold(list, |list, element| element.write(list))),
            );
        }
    }

    /// Makes an empty set of single values in the `inet` table.
    pub(super) fn add_set(&mut self, name: &str, key: Key) {
        let id = self.next_id();
        let (kind, length) = key.numbers();
        let message = message(NEWSET, flag::CREATE, NFPROTO_INET)
            .text(SET_TABLE, &self.table)
            .text(SET_NAME, name)
            .attr(SET_FLAGS, &0_u32.to_be_bytes())
            .attr(SET_KEY_TYPE, &kind.to_be_bytes())
            .attr(SET_KEY_LEN, &(length as u32).to_be_bytes())
            .attr(SET_ID, &id.to_be_bytes())
            .attr(SET_USERDATA, &NETWORK_ORDER);
        self.messages.push(message);
    }

    /// Deletes a set of the `inet` table.
    pub(super) fn delete_set(&mut self, name: &str) {
        let message = message(DELSET, 0, NFPROTO_INET).text(SET_TABLE, &self.table).text(SET_NAME, name);
        self.messages.push(message);
    }

    /// Makes a chain of the `inet` table, or leaves the one that is there as it is.
    pub(super) fn add_chain(&mut self, name: &str) {
        let message = message(NEWCHAIN, flag::CREATE, NFPROTO_INET);
        self.messages.push(message.text(CHAIN_TABLE, &self.table).text(CHAIN_NAME, name));
    }

    /// Deletes the rules of a chain.
    pub(super) fn flush_chain(&mut self, name: &str) {
        let message = message(DELRULE, 0, NFPROTO_INET);
        self.messages.push(message.text(RULE_TABLE, &self.table).text(RULE_CHAIN, name));
    }

    /// Deletes a chain and its rules.
    pub(super) fn delete_chain(&mut self, name: &str) {
        self.flush_chain(name);
        let message = message(DELCHAIN, 0, NFPROTO_INET);
        self.messages.push(message.text(CHAIN_TABLE, &self.table).text(CHAIN_NAME, name));
    }

    /// Adds a rule at the end of a chain.
    pub(super) fn add_rule(&mut self, chain: &str, steps: &[Step]) {
        let message = message(NEWRULE, flag::CREATE | flag::APPEND, NFPROTO_INET);
        let message = message.text(RULE_TABLE, &self.table).text(RULE_CHAIN, chain);
        self.messages
            .push(message.nest(RULE_EXPRESSIONS, &[], |list| steps.iter().fold(list, |list, step| step.write(list))));
    }

    /// What goes on if the register holds a value in one of these ranges, which are in order and do not touch. Both ends belong to
    /// a range, and are in network order. Makes a set where one comparison does not do.
    pub(super) fn one_of(&mut self, key: Key, ranges: &[(Vec<u8>, Vec<u8>)]) -> Vec<Step> {
        match ranges {
            [(first, last)] if first == last => vec![Step::Compare(Compare::Equal, first.clone())],
            [(first, last)] => {
                let (least, most) = (first.clone(), last.clone());
                vec![Step::Compare(Compare::AtLeast, least), Step::Compare(Compare::AtMost, most)]
            }
            _ => vec![Step::LookupAnonymous(self.anonymous_set(key, ranges))],
        }
    }

    fn anonymous_set(&mut self, key: Key, ranges: &[(Vec<u8>, Vec<u8>)]) -> u32 {
        let id = self.next_id();
        let has_ranges = ranges.iter().any(|(first, last)| first != last);
        let elements = match has_ranges {
            true => intervals(ranges),
            false => ranges.iter().map(|(only, _)| (only.clone(), Bound::Start)).collect(),
        };
        let (kind, length) = key.numbers();
        let flags = if has_ranges { ANONYMOUS | INTERVAL } else { ANONYMOUS };
        let set = message(NEWSET, flag::CREATE, NFPROTO_INET)
            .text(SET_TABLE, &self.table)
            .text(SET_NAME, ANONYMOUS_NAME)
            .attr(SET_FLAGS, &flags.to_be_bytes())
            .attr(SET_KEY_TYPE, &kind.to_be_bytes())
            .attr(SET_KEY_LEN, &(length as u32).to_be_bytes())
            .attr(SET_ID, &id.to_be_bytes())
            .nest(SET_DESC, &[], |desc| desc.attr(SET_DESC_SIZE, &(elements.len() as u32).to_be_bytes()))
            .attr(SET_USERDATA, &NETWORK_ORDER);
        self.messages.push(set);
        for some in elements.chunks(ELEMENTS_MAX) {
            let message = message(NEWSETELEM, flag::CREATE, NFPROTO_INET)
                .text(ELEM_LIST_TABLE, &self.table)
                .text(ELEM_LIST_SET, ANONYMOUS_NAME)
                .attr(ELEM_LIST_SET_ID, &id.to_be_bytes());
            self.messages.push(message.nest(ELEM_LIST_ELEMENTS, &[], |list| {
                some.iter().fold(list, |list, (key, bound)| {
                    list.nest(LIST_ELEM, &[], |element| {
                        let element = element.nest(SET_ELEM_KEY, &[], |data| data.attr(DATA_VALUE, key));
                        match bound {
                            Bound::Start => element,
                            Bound::OpenStart => element.attr(SET_ELEM_USERDATA, &OPEN_ENDED),
                            Bound::End => element.attr(SET_ELEM_FLAGS, &ELEM_INTERVAL_END.to_be_bytes()),
                        }
                    })
                })
            }));
        }
        id
    }

    fn next_id(&mut self) -> u32 {
        self.anonymous += 1;
        self.anonymous
    }

    /// Carries out all of it, or none.
    pub(super) fn send(mut self, socket: &mut Socket) -> std::result::Result<(), Refusal> {
        if self.messages.iter().map(Message::len).sum::<usize>() > BATCH_BYTES_MAX {
            return Err(Errno::EMSGSIZE.into());
        }
        self.messages.push(Message::new(BATCH_END, 0, &BATCH_HEADER).unanswered());
        socket.transaction(self.messages)
    }
}

/// A socket to nftables.
pub(super) fn open() -> Result<Socket> {
    Socket::open(SockProtocol::NetlinkNetFilter).map_err(|source| Error::os("open an nftables socket", source))
}

/// An interface's name as the kernel keeps it in a set.
pub(super) fn interface(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(16, 0);
    key
}

fn message(kind: u16, flags: u16, family: u8) -> Message {
    Message::new(kind, flags, &[family, 0, 0, 0])
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Start,
    /// Of a range that goes on to the last value there is.
    OpenStart,
    End,
}

/// Ranges as the kernel keeps them: where each begins, and the first value behind it. What is in front of all is an end too.
fn intervals(ranges: &[(Vec<u8>, Vec<u8>)]) -> Vec<(Vec<u8>, Bound)> {
    let mut all = Vec::new();
    if let Some((first, _)) = ranges.first()
        && first.iter().any(|byte| *byte != 0)
    {
        all.push((vec![0; first.len()], Bound::End));
    }
    for (first, last) in ranges {
        match following(last) {
            Some(behind) => all.extend([(first.clone(), Bound::Start), (behind, Bound::End)]),
            None => all.push((first.clone(), Bound::OpenStart)),
        }
    }
    all
}

/// The next number in network order; `None` behind the last.
fn following(value: &[u8]) -> Option<Vec<u8>> {
    let mut next = value.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

impl Element {
    fn write(self, list: Message) -> Message {
        list.nest(LIST_ELEM, &[], |element| {
            let element = element.nest(SET_ELEM_KEY, &[], |data| data.attr(DATA_VALUE, &self.key));
            match &self.verdict {
                Some(verdict) => element.nest(SET_ELEM_DATA, &[], |data| verdict.write(data)),
                None => element,
            }
        })
    }
}

impl Verdict {
    pub(super) fn write(&self, data: Message) -> Message {
        let (code, chain): (i32, _) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        data.nest(DATA_VERDICT, &[], |verdict| {
            let verdict = verdict.attr(VERDICT_CODE, &code.to_be_bytes());
            match chain {
                Some(chain) => verdict.text(VERDICT_CHAIN, chain),
                None => verdict,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};
    use proptest::prelude::*;

    use super::*;
    use crate::linux::command;

    fn ports(ranges: &[(u16, u16)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        ranges.iter().map(|(first, last)| (first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec())).collect()
    }

    /// Whether a value is in, as the kernel decides: by the last bound not behind it.
    fn holds(bounds: &[(Vec<u8>, Bound)], value: u16) -> bool {
        let value = value.to_be_bytes().to_vec();
        bounds.iter().rev().find(|(at, _)| *at <= value).is_some_and(|(_, bound)| *bound != Bound::End)
    }

    #[test]
    fn a_range_to_the_last_value_has_no_end() {
        let bounds = intervals(&ports(&[(0, 10), (65530, 65535)]));
        assert_eq!(
            bounds.iter().map(|(_, bound)| *bound).collect::<Vec<_>>(),
            [Bound::Start, Bound::End, Bound::OpenStart]
        );
        assert_eq!(following(&[0xff, 0xff]), None);
        assert_eq!(following(&[0, 0xff]), Some(vec![1, 0]));
    }

    #[test]
    fn a_refused_batch_leaves_nothing_and_says_why() {
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root, who may make a network namespace");
            let made = "table inet t {\nset s { type ipv4_addr; elements = { 10.0.0.1 }; }\nchain c { accept; }\n}\n";
            command::run("nft", &["-f", "-"], made).expect("a table");
            let listed = || {
                let listed = command::run("nft", &["list", "table", "inet", "t"], "").expect("a list");
                String::from_utf8(listed).expect("text")
            };
            let before = listed();
            let mut socket = open().expect("a socket");
            let begun = || {
                let mut batch = Batch::new("t");
                batch.elements(Verb::Add, NFPROTO_INET, "s", [vec![10, 0, 0, 2]]);
                batch.add_set("more", Key::Ipv6);
                batch.flush_chain("c");
                batch
            };
            let mut of_a_missing_element = begun();
            of_a_missing_element.elements(Verb::Delete, NFPROTO_INET, "s", [vec![10, 0, 0, 9]]);
            of_a_missing_element.add_chain("behind");
            let refused = of_a_missing_element.send(&mut socket).map_err(|refusal| refusal.errno);
            assert_eq!((refused, listed()), (Err(Errno::ENOENT), before.clone()));
            let mut to_a_missing_chain = begun();
            to_a_missing_chain.add_rule("c", &[Step::Verdict(Verdict::Jump("nowhere".to_owned()))]);
            let refused = to_a_missing_chain.send(&mut socket).map_err(|refusal| refusal.errno);
            assert_eq!((refused, listed()), (Err(Errno::ENOENT), before.clone()));
            // The same socket, after complaints that nobody read.
            begun().send(&mut socket).expect("a whole one");
            let after = listed();
            assert!(after.contains("10.0.0.2") && after.contains("set more") && !after.contains("accept"), "{after}");
        };
        std::thread::spawn(inside).join().expect("the thread in the namespace");
    }

    #[test]
    fn many_messages_are_one_transaction() {
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root, who may make a network namespace");
            command::run("nft", &["-f", "-"], "table inet t {\nset s { type ipv4_addr; }\n}\n").expect("a table");
            let mut batch = Batch::new("t");
            // More than the kernel takes without being told, and than an attribute holds.
            batch.elements(Verb::Add, NFPROTO_INET, "s", (0..20_000_u32).map(|number| number.to_be_bytes().to_vec()));
            for number in 0..500 {
                batch.add_chain(&format!("chain_{number}"));
            }
            batch.send(&mut open().expect("a socket")).expect("all of it");
            let listed = command::run("nft", &["list", "table", "inet", "t"], "").expect("a list");
            let listed = String::from_utf8(listed).expect("text");
            assert!(listed.contains("chain_499") && listed.contains("0.0.78.31"), "the last of both");
        };
        std::thread::spawn(inside).join().expect("the thread in the namespace");
    }

    proptest! {
        #[test]
        fn bounds_hold_what_is_in_a_range(cuts in proptest::collection::btree_set(0_u16..400, 1..12), value in 0_u16..420) {
            let cuts: Vec<u16> = cuts.into_iter().collect();
            // Pairs that do not touch, as the caller merges those that do.
            let ranges: Vec<(u16, u16)> = cuts.chunks_exact(2).map(|pair| (pair[0] * 2, pair[1] * 2 - 1)).collect();
            let bounds = intervals(&ports(&ranges));
            prop_assert!(bounds.is_sorted_by(|one, next| one.0 < next.0), "each value bounds once, in order: {:?}", bounds);
            let is_in = ranges.iter().any(|(first, last)| (*first..=*last).contains(&value));
            prop_assert_eq!(holds(&bounds, value), is_in);
        }
    }
}
