//! All zones a server answers for. One value, replaced as a whole.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    hash::NameHash,
    name::{self, Name},
    zone::Zone,
};

/// Who may see a zone. To everybody else it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// Whoever asks.
    Everybody,
    /// Who asks from one of these networks.
    Networks(Arc<[IpNet]>),
}

/// Zones by their apex. A question belongs to the zone with the longest apex its name ends in, among those the client may see.
#[derive(Debug, Default)]
pub struct Zones {
    by_apex: HashMap<Name, Vec<(View, Zone)>, NameHash>,
    /// One bit for each number of labels that an apex has: other lengths need no look.
    label_counts: u128,
}

impl View {
    /// Whether a client at this address may see it.
    pub fn shows(&self, client: IpAddr) -> bool {
        match self {
            Self::Everybody => true,
            Self::Networks(networks) => networks.iter().any(|network| network.contains(&client)),
        }
    }
}

impl Zones {
    /// Zones, each with who may see it. Of several with one apex a client gets the first that it may see.
    pub fn new(zones: impl IntoIterator<Item = (View, Zone)>) -> Self {
        let mut all = Self::default();
        for (view, zone) in zones {
            all.label_counts |= 1_u128 << zone.apex().label_count().min(127);
            all.by_apex.entry(zone.apex().clone()).or_default().push((view, zone));
        }
        all
    }

    /// The zone of exactly this apex that a client may see.
    pub fn get(&self, apex: &Name, client: IpAddr) -> Option<&Zone> {
        self.seen(apex.as_wire(), client)
    }

    /// All zones with their views, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &(View, Zone)> {
        self.by_apex.values().flatten()
    }

    /// The zone that a name, given as bytes in lower case, belongs to.
    pub(crate) fn find(&self, wire: &[u8], client: IpAddr) -> Option<&Zone> {
        let mut count = name::label_count(wire);
        let mut rest = wire;
        loop {
            if self.label_counts & 1_u128 << count.min(127) != 0
                && let Some(zone) = self.seen(rest, client)
            {
                return Some(zone);
            }
            rest = name::parent(rest)?;
            count -= 1;
        }
    }

    fn seen(&self, apex: &[u8], client: IpAddr) -> Option<&Zone> {
        let zones = self.by_apex.get(apex)?;
        zones.iter().find(|(view, _)| view.shows(client)).map(|(_, zone)| zone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rrset::{Data, Rrset, Soa};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn zone(apex: &str, serial: u32) -> Zone {
        let (primary, mailbox) = (name("ns"), name("root"));
        let soa = Soa { primary, mailbox, refresh_s: 1, retry_s: 1, expire_s: 100, negative_s: 30, ttl_s: 30 };
        let servers = Rrset::new(30, &[Data::Ns(name("ns"))]).unwrap();
        Zone::load(name(apex), soa, serial, [(name(apex), vec![servers])], []).unwrap()
    }

    #[test]
    fn the_longest_apex_that_the_client_sees_answers() {
        let inside = View::Networks(Arc::from(["10.0.0.0/8".parse().unwrap()].as_slice()));
        let zones = Zones::new([
            (View::Everybody, zone("example", 1)),
            (inside.clone(), zone("in.example", 2)),
            (inside, zone("split.example", 3)),
            (View::Everybody, zone("split.example", 4)),
        ]);
        let (near, far): (IpAddr, IpAddr) = ([10, 1, 2, 3].into(), [192, 0, 2, 1].into());
        let found = |text: &str, client| zones.find(name(text).as_wire(), client).map(Zone::serial);
        assert_eq!((found("a.in.example", near), found("a.in.example", far)), (Some(2), Some(1)));
        assert_eq!((found("split.example", near), found("split.example", far)), (Some(3), Some(4)));
        assert_eq!((found("example", far), found("b.a.example", far)), (Some(1), Some(1)));
        assert_eq!((found("other", near), found(".", near)), (None, None));
        assert_eq!(zones.get(&name("in.example"), far).map(Zone::serial), None);
    }
}
