//! Reading back from nftables what we loaded: whether somebody else changed it.
//!
//! The kernel counts the changes to all rule sets together; as long as that number stays, nothing needs to be looked at.
//! When it moved, our rules and set elements are dumped and compared. Rules and the sets that no NIC changes are compared with
//! what the kernel showed right after loading, byte for byte, so that this file needs to know nothing of what they mean.

use std::collections::BTreeSet;

use super::{
    filter_rules::FIXED_SETS,
    netlink::{Answer, Message, Refusal, Socket, attrs, flag},
    nft_wire::{
        DATA_VALUE, ELEM_LIST_ELEMENTS, ELEM_LIST_SET, ELEM_LIST_TABLE, LIST_ELEM, NFPROTO_BRIDGE, NFPROTO_INET,
        SET_ELEM_KEY, SUBSYSTEM,
    },
};
use crate::error::Result;

const GETRULE: u16 = (SUBSYSTEM << 8) | 7;
const GETSETELEM: u16 = (SUBSYSTEM << 8) | 13;
const GETGEN: u16 = (SUBSYSTEM << 8) | 16;
const GEN_ID: u16 = 1;
const RULE_TABLE: u16 = 1;

/// The kernel's count of changes to the rule sets of this network namespace.
pub(super) fn generation(socket: &mut Socket) -> Result<u32> {
    let answer = socket.request(Message::new(GETGEN, 0, &[0; 4]));
    let answer = answer.map_err(|refusal| refusal.doing("ask for the generation of nftables"))?;
    let attributes = answer.first().and_then(|payload| payload.get(4..)).unwrap_or_default();
    let id = attrs(attributes).find(|(kind, _)| *kind == GEN_ID).and_then(|(_, id)| id.try_into().ok());
    Ok(id.map_or(0, u32::from_be_bytes))
}

/// What no NIC changes: our rules in order, then the elements of the sets about bridges. Empty where our tables are not.
pub(super) fn fixed(socket: &mut Socket, table: &str) -> Result<Vec<Vec<u8>>> {
    let mut all = rules(socket, table)?;
    for set in FIXED_SETS {
        all.extend(keys(socket, table, NFPROTO_INET, set)?);
    }
    Ok(all)
}

/// The rules of both tables of a name, in order.
pub(super) fn rules(socket: &mut Socket, table: &str) -> Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for family in [NFPROTO_BRIDGE, NFPROTO_INET] {
        let message = Message::new(GETRULE, flag::DUMP, &[family, 0, 0, 0]).text(RULE_TABLE, table);
        // The header in front of each names the generation, which moves.
        all.extend(present(socket.request(message), "list rules of nftables")?.iter().map(|rule| rule[4..].to_vec()));
    }
    Ok(all)
}

/// Keys of the elements of a set; none where the set is not.
pub(super) fn keys(socket: &mut Socket, table: &str, family: u8, set: &str) -> Result<BTreeSet<Vec<u8>>> {
    let message =
        Message::new(GETSETELEM, flag::DUMP, &[family, 0, 0, 0]).text(ELEM_LIST_TABLE, table).text(ELEM_LIST_SET, set);
    let answer = present(socket.request(message), "list elements of an nftables set")?;
    let mut keys = BTreeSet::new();
    for payload in &answer {
        let lists = attrs(&payload[4..]).filter(|(kind, _)| *kind == ELEM_LIST_ELEMENTS);
        let elements = lists.flat_map(|(_, list)| attrs(list)).filter(|(kind, _)| *kind == LIST_ELEM);
        for (_, element) in elements {
            let key = attrs(element).find(|(kind, _)| *kind == SET_ELEM_KEY);
            let value = key.and_then(|(_, key)| attrs(key).find(|(kind, _)| *kind == DATA_VALUE));
            keys.extend(value.map(|(_, value)| value.to_vec()));
        }
    }
    Ok(keys)
}

/// What was listed, each longer than its header; nothing where there is no such table or set.
fn present(answer: Answer, doing: &str) -> Result<Vec<Vec<u8>>> {
    match answer {
        Err(Refusal { errno: nix::errno::Errno::ENOENT, .. }) => Ok(Vec::new()),
        other => {
            let mut listed = other.map_err(|refusal| refusal.doing(doing))?;
            listed.retain(|payload| payload.len() >= 4);
            Ok(listed)
        }
    }
}
