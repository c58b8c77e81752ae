//! What a rule of nftables is made of: steps, each an expression of the kernel's.
//!
//! All of them work with one register, as those `nft` makes of our conditions do.

use super::{
    netlink::Message,
    nft_wire::{ANONYMOUS_NAME, DATA_VALUE, LIST_ELEM, Verdict},
};

/// Where a header begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Network = 1,
    Transport = 2,
}

/// How the register is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Equal = 0,
    AtMost = 3,
    AtLeast = 5,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Loads the family of the packet.
    Family,
    /// Loads the number of the transport protocol.
    Protocol,
    /// Loads the mark of the connection.
    LoadMark,
    /// Makes the register the mark of the connection.
    StoreMark,
    /// Loads a constant.
    Constant(Vec<u8>),
    /// Loads bytes of a header.
    Payload(Base, u32, usize),
    /// Keeps bits.
    Mask(Vec<u8>),
    /// Goes on if it compares so.
    Compare(Compare, Vec<u8>),
    /// Goes on if it is in a set.
    Lookup(String),
    /// The same of a set without a name, by its number in the batch.
    LookupAnonymous(u32),
    /// Goes on so many times a second, and so many at once.
    Limit(u64, u32),
    /// Writes to the log of a group, or else the kernel's, beginning with this.
    Log(String, Option<u16>),
    Verdict(Verdict),
}

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
// Attributes of expressions, by what they are of.
const META_DREG: u16 = 1;
const META_KEY: u16 = 2;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const CT_SREG: u16 = 4;
const CT_MARK: u32 = 3;
const IMMEDIATE_DREG: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const PAYLOAD_DREG: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const BITWISE_SREG: u16 = 1;
const BITWISE_DREG: u16 = 2;
const BITWISE_LEN: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const LOOKUP_SET: u16 = 1;
const LOOKUP_SREG: u16 = 2;
const LOOKUP_SET_ID: u16 = 4;
const LIMIT_RATE: u16 = 1;
const LIMIT_UNIT: u16 = 2;
const LIMIT_BURST: u16 = 3;
const LIMIT_TYPE: u16 = 4;
const LIMIT_FLAGS: u16 = 5;
const LOG_GROUP: u16 = 1;
const LOG_PREFIX: u16 = 2;

/// The register of verdicts, and the one we work with.
const VERDICT: [u8; 4] = [0, 0, 0, 0];
const REGISTER: [u8; 4] = [0, 0, 0, 1];

impl Step {
    /// Adds it to the list of a rule's.
    pub(super) fn write(&self, list: Message) -> Message {
        let value = |kind: u16, bytes: &[u8], data: Message| data.nest(kind, &[], |data| data.attr(DATA_VALUE, bytes));
        let meta = |key: u32| move |data: Message| data.attr(META_KEY, &key.to_be_bytes()).attr(META_DREG, &REGISTER);
        match self {
            Self::Family => expression(list, "meta", meta(META_NFPROTO)),
            Self::Protocol => expression(list, "meta", meta(META_L4PROTO)),
            Self::LoadMark => {
                expression(list, "ct", |data| data.attr(CT_KEY, &CT_MARK.to_be_bytes()).attr(CT_DREG, &REGISTER))
            }
            Self::StoreMark => {
                expression(list, "ct", |data| data.attr(CT_KEY, &CT_MARK.to_be_bytes()).attr(CT_SREG, &REGISTER))
            }
            Self::Constant(bytes) => {
                expression(list, "immediate", |data| value(IMMEDIATE_DATA, bytes, data.attr(IMMEDIATE_DREG, &REGISTER)))
            }
            Self::Payload(base, offset, length) => expression(list, "payload", |data| {
                data.attr(PAYLOAD_DREG, &REGISTER)
                    .attr(PAYLOAD_BASE, &(*base as u32).to_be_bytes())
                    .attr(PAYLOAD_OFFSET, &offset.to_be_bytes())
                    .attr(PAYLOAD_LEN, &(*length as u32).to_be_bytes())
            }),
            Self::Mask(mask) => expression(list, "bitwise", |data| {
                let data = data
                    .attr(BITWISE_SREG, &REGISTER)
                    .attr(BITWISE_DREG, &REGISTER)
                    .attr(BITWISE_LEN, &(mask.len() as u32).to_be_bytes());
                value(BITWISE_XOR, &vec![0; mask.len()], value(BITWISE_MASK, mask, data))
            }),
            Self::Compare(how, bytes) => expression(list, "cmp", |data| {
                let data = data.attr(CMP_SREG, &REGISTER).attr(CMP_OP, &(*how as u32).to_be_bytes());
                value(CMP_DATA, bytes, data)
            }),
            Self::Lookup(set) => {
                expression(list, "lookup", |data| data.text(LOOKUP_SET, set).attr(LOOKUP_SREG, &REGISTER))
            }
            Self::LookupAnonymous(id) => expression(list, "lookup", |data| {
                let data = data.text(LOOKUP_SET, ANONYMOUS_NAME).attr(LOOKUP_SREG, &REGISTER);
                data.attr(LOOKUP_SET_ID, &id.to_be_bytes())
            }),
            Self::Limit(rate, burst) => expression(list, "limit", |data| {
                data.attr(LIMIT_RATE, &rate.to_be_bytes())
                    .attr(LIMIT_UNIT, &1_u64.to_be_bytes())
                    .attr(LIMIT_BURST, &burst.to_be_bytes())
                    .attr(LIMIT_TYPE, &0_u32.to_be_bytes())
                    .attr(LIMIT_FLAGS, &0_u32.to_be_bytes())
            }),
            Self::Log(prefix, group) => expression(list, "log", |data| {
                let data = data.text(LOG_PREFIX, prefix);
                match group {
                    Some(group) => data.attr(LOG_GROUP, &group.to_be_bytes()),
                    None => data,
                }
            }),
            Self::Verdict(verdict) => expression(list, "immediate", |data| {
                data.attr(IMMEDIATE_DREG, &VERDICT).nest(IMMEDIATE_DATA, &[], |data| verdict.write(data))
            }),
        }
    }
}

fn expression(list: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    list.nest(LIST_ELEM, &[], |one| one.text(EXPR_NAME, name).nest(EXPR_DATA, &[], data))
}
