//! Which machine this is, by what it is made of.
//!
//! A server's id is given when it joins and lies on its disk beside its certificate, so both can be copied. What cannot be
//! copied with them are facts of the hardware. None of them is trusted alone: firmware repeats the vendor's example UUID or
//! zeros, boards and network cards are replaced, and a cloned disk brings its machine-id along. So facts are compared
//! one by one, those that one side does not know left out, and the majority decides; a tie counts as another machine, since two
//! machines that act as one destroy data, and an operator who changed hardware can say so.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};
use uuid::{Uuid, uuid};

use crate::id::MacAddr;

/// Most network cards that are taken down: more than any machine has soldered in.
pub const MACS_MAX: usize = 32;

/// UUIDs that vendors left in many machines.
const NOT_UNIQUE: [Uuid; 7] = [
    uuid!("03000200-0400-0500-0006-000700080009"),
    uuid!("00020003-0004-0005-0006-000700080009"),
    uuid!("4c4c4544-0000-2010-8020-80c04f202020"),
    uuid!("12345678-1234-5678-90ab-cddeefaabbcc"),
    uuid!("01234567-8910-1112-1314-151617181920"),
    uuid!("49434d53-0200-9033-2500-339033259033"),
    uuid!("fefefefe-fefe-fefe-fefe-fefefefefefe"),
];

/// Facts that tell a machine from others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineIdentity {
    /// The firmware's UUID, when it is worth something: see [`credible`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Uuid>,
    /// Addresses burnt into its network cards.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub macs: BTreeSet<MacAddr>,
    /// The operating system's id of this installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<Uuid>,
}

/// What comparing two identities says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// No fact is known of both.
    Unknown,
    /// The facts say one machine, at least two of them.
    Same,
    /// One fact agrees and no other is known of both.
    Likely,
    /// As many facts or more say two machines.
    Other,
}

impl MachineIdentity {
    /// Compares fact by fact.
    pub fn likeness(&self, other: &Self) -> Likeness {
        let (mut agree, mut differ) = (0, 0);
        for fact in self.facts(other).into_iter().flatten() {
            match fact {
                true => agree += 1,
                false => differ += 1,
            }
        }
        match (agree, differ) {
            (0, 0) => Likeness::Unknown,
            (agree, differ) if differ >= agree => Likeness::Other,
            (1, 0) => Likeness::Likely,
            _ => Likeness::Same,
        }
    }

    /// Which facts differ, in words.
    pub fn differences(&self, other: &Self) -> String {
        let names = ["firmware UUID", "network cards", "machine-id"];
        let differ = self.facts(other).into_iter().zip(names).filter(|(fact, _)| *fact == Some(false));
        differ.map(|(_, name)| name).collect::<Vec<_>>().join(", ")
    }

    fn facts(&self, other: &Self) -> [Option<bool>; 3] {
        let both = |one: Option<Uuid>, other: Option<Uuid>| Some(one? == other?);
        let macs = (!self.macs.is_empty() && !other.macs.is_empty()).then(|| !self.macs.is_disjoint(&other.macs));
        [both(self.firmware, other.firmware), macs, both(self.installation, other.installation)]
    }
}

impl fmt::Display for MachineIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |id: Option<Uuid>| id.map_or_else(|| "unknown".to_owned(), |id| id.to_string());
        let macs: Vec<String> = self.macs.iter().map(MacAddr::to_string).collect();
        let macs = if macs.is_empty() { "none".to_owned() } else { macs.join(" ") };
        write!(f, "firmware {}, network cards {macs}, machine-id {}", word(self.firmware), word(self.installation))
    }
}

/// A firmware's UUID, unless it is one that many machines have: a vendor's example, all bits equal, or one byte repeated.
pub fn credible(text: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(text.trim()).ok()?;
    let [first, rest @ ..] = uuid.as_bytes();
    let repeated = rest.iter().all(|byte| byte == first);
    (!repeated && !NOT_UNIQUE.contains(&uuid)).then_some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(firmware: u128, mac: u32, installation: u128) -> MachineIdentity {
        let known = |number: u128| (number > 0).then(|| Uuid::from_u128(number));
        let macs = if mac == 0 { BTreeSet::new() } else { [MacAddr::from_suffix(mac)].into() };
        MachineIdentity { firmware: known(firmware), macs, installation: known(installation) }
    }

    #[test]
    fn the_majority_decides_and_a_tie_is_another_machine() {
        let machine = identity(1, 1, 1);
        let cases = [
            ("itself", identity(1, 1, 1), Likeness::Same),
            ("another card", identity(1, 2, 1), Likeness::Same),
            ("reinstalled", identity(1, 1, 2), Likeness::Same),
            ("its disk in another machine", identity(2, 2, 1), Likeness::Other),
            ("its certificate elsewhere", identity(2, 2, 2), Likeness::Other),
            ("repeated firmware", identity(1, 2, 2), Likeness::Other),
            ("worthless firmware, another card", identity(0, 2, 1), Likeness::Other),
            ("only one fact", identity(0, 0, 1), Likeness::Likely),
            ("nothing known", identity(0, 0, 0), Likeness::Unknown),
        ];
        for (what, other, expected) in cases {
            assert_eq!(machine.likeness(&other), expected, "{what}");
            assert_eq!(other.likeness(&machine), expected, "{what}, turned round");
        }
        assert_eq!(machine.differences(&identity(2, 1, 3)), "firmware UUID, machine-id");
    }

    #[test]
    fn worthless_firmware_uuids_are_left_out() {
        for worthless in [
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "Not Settable",
            "",
            "03000200-0400-0500-0006-000700080009\n",
        ] {
            assert_eq!(credible(worthless), None, "{worthless}");
        }
        assert!(credible("4C4C4544-0051-3510-8052-B4C04F564433\n").is_some());
    }
}
