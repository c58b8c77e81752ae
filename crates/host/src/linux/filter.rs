//! Filters in nftables.
//!
//! The first application, and any that changes a bridge, loads the whole rule set with `nft` in one transaction. What
//! happens all the time, a NIC more or a NIC less, is a batch of set elements over netlink: no process, and the same cost
//! with three NICs as with three thousand. Should the kernel refuse the batch, or our tables not be the ones we loaded
//! (somebody flushed the rule set), everything is loaded again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use base::channel::Receiver;
use nix::errno::Errno;

use super::{
    command,
    filter_rules::{self as rules, NIC_SETS, Sender},
    filter_watch as watch,
    firewall::{self, Enforced},
    firewall_rules::{Scope, number_of_name},
    forwarding,
    link::{set_sysctl, sysctl_is},
    netlink::{Message, Refusal, Socket, attrs},
    nflog::{self, Owners},
    nft_wire::{Batch, NFPROTO_BRIDGE, NFPROTO_INET, SUBSYSTEM, Verb, open},
};
use crate::{
    error::{Error, Result},
    filter::{FilterSet, Filters, Firewall, LogNews},
    link::LinkNames,
};

const GETTABLE: u16 = (SUBSYSTEM << 8) | 1;
const TABLE_NAME: u16 = 1;
const TABLE_HANDLE: u16 = 4;

/// Filters in the network namespace of the calling thread.
pub struct LinuxFilters {
    table: String,
    names: LinkNames,
    applied: Mutex<Option<Applied>>,
    enforced: Mutex<Option<Enforced>>,
    /// Whether rules log to our group: once somebody reads it.
    is_read: AtomicBool,
    owners: Owners,
}

/// What was loaded, and what the kernel made of it.
struct Applied {
    set: FilterSet,
    /// The kernel's numbers of the two tables it went to.
    handles: (Vec<u8>, Vec<u8>),
    /// Rules and sets that no NIC changes, as the kernel showed them after loading.
    fixed: Vec<Vec<u8>>,
    /// The kernel's count of changes to any rule set when ours was last found whole.
    whole_at: Option<u32>,
}

impl LinuxFilters {
    /// Filters in tables named `table`, for interfaces with `names`. Nothing is changed before the first application.
    pub fn new(table: &str, names: LinkNames) -> Self {
        let (applied, enforced) = (Mutex::new(None), Mutex::new(None));
        let (is_read, owners) = (AtomicBool::new(false), Owners::default());
        Self { table: table.to_owned(), names, applied, enforced, is_read, owners }
    }

    fn load(&self, wanted: &FilterSet) -> Result<Applied> {
        let script = rules::script(&self.table, &self.names, wanted)?;
        command::run("nft", &["-f", "-"], &script)?;
        let mut socket = open()?;
        let handles = self.handles(&mut socket)?;
        let handles = handles.ok_or_else(|| Error::Missing(format!("nftables table `{}`", self.table)))?;
        let fixed = watch::fixed(&mut socket, &self.table)?;
        Ok(Applied { set: wanted.clone(), handles, fixed, whole_at: None })
    }

    /// The numbers of our two tables; `None` when one is missing.
    fn handles(&self, socket: &mut Socket) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let ask = |family| Message::new(GETTABLE, 0, &[family, 0, 0, 0]).text(TABLE_NAME, &self.table);
        let doing = || format!("look at nftables table `{}`", self.table);
        let mut handles = Vec::new();
        for answer in
            socket.batch(vec![ask(NFPROTO_BRIDGE), ask(NFPROTO_INET)]).map_err(|refusal| refusal.doing(doing()))?
        {
            let payloads = match answer {
                Err(Refusal { errno: Errno::ENOENT, .. }) => return Ok(None),
                other => other.map_err(|refusal| refusal.doing(doing()))?,
            };
            let attributes = payloads.first().and_then(|payload| payload.get(4..)).unwrap_or_default();
            let handle = attrs(attributes).find(|(kind, _)| *kind == TABLE_HANDLE);
            handles.push(handle.map(|(_, handle)| handle.to_vec()).unwrap_or_default());
        }
        Ok(handles.pop().zip(handles.pop()).map(|(inet, bridge)| (bridge, inet)))
    }

    /// Changes set elements in one transaction; false when that cannot be and all must be loaded again.
    fn change(&self, socket: &mut Socket, gone: &[Sender], new: &[Sender]) -> Result<bool> {
        let mut batch = Batch::new(&self.table);
        for (verb, senders) in [(Verb::Delete, gone), (Verb::Add, new)] {
            for set in NIC_SETS {
                batch.elements(verb, NFPROTO_BRIDGE, set, senders.iter().filter_map(|sender| sender.key(set)));
            }
        }
        match batch.send(socket) {
            Ok(()) => Ok(true),
            Err(Refusal { errno: Errno::ETIMEDOUT, words }) => {
                Err(Refusal { errno: Errno::ETIMEDOUT, words }.doing("change nftables sets"))
            }
            Err(refusal) => {
                tracing::warn!(?refusal, table = self.table, "set elements were refused; loading all filters again");
                Ok(false)
            }
        }
    }

    /// Whether `held` is what the kernel has.
    fn whole(&self, socket: &mut Socket, held: &Applied) -> Result<bool> {
        if self.handles(socket)?.as_ref() != Some(&held.handles) || watch::fixed(socket, &self.table)? != held.fixed {
            return Ok(false);
        }
        let senders = rules::senders(&held.set, &self.names);
        for set in NIC_SETS {
            let wanted: BTreeSet<Vec<u8>> = senders.iter().filter_map(|sender| sender.key(set)).collect();
            if watch::keys(socket, &self.table, NFPROTO_BRIDGE, set)? != wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where the firewall is written, in the table of that name.
    fn scope<'a>(&'a self, table: &'a str) -> Scope<'a> {
        let log_group = self.is_read.load(Ordering::Acquire).then(|| number_of_name(table));
        Scope { table, names: &self.names, log_group }
    }

    /// Name of the firewall's own tables.
    fn firewall_table(&self) -> String {
        format!("{}_fw", self.table)
    }
}

/// Whether the machine routes at all.
const FORWARDING: &str = "net/ipv4/ip_forward";

/// Whether the machine is to route IPv6 for any segment.
fn forwards6(set: &FilterSet) -> bool {
    set.bridges.values().any(|bridge| !bridge.outside6.is_none())
}

// === impl Filters ===

impl Filters for LinuxFilters {
    fn apply(&self, wanted: &FilterSet) -> Result<()> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        // Never turned off again: others on this machine may have come to need it.
        if wanted.bridges.values().any(|bridge| bridge.nat) {
            set_sysctl(FORWARDING, "1")?;
        }
        if forwards6(wanted) {
            forwarding::enable6()?;
        }
        if let Some(held) = applied.as_mut()
            && held.set.bridges == wanted.bridges
        {
            let mut socket = open()?;
            let (gone, new) = rules::difference(&held.set, wanted, &self.names);
            let ours = self.handles(&mut socket)?.is_some_and(|handles| handles == held.handles);
            if ours && (gone.is_empty() && new.is_empty() || self.change(&mut socket, &gone, &new)?) {
                held.set = wanted.clone();
                return Ok(());
            }
        }
        // What is in the kernel is not known until this succeeds.
        *applied = None;
        *applied = Some(self.load(wanted)?);
        Ok(())
    }

    fn apply_firewall(&self, wanted: &Firewall) -> Result<()> {
        let mut enforced = self.enforced.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.firewall_table();
        let scope = self.scope(&table);
        let log_group = scope.log_group;
        firewall::apply(&scope, &mut enforced, wanted, &mut open()?)?;
        let logs = log_group.is_some() && wanted.target.rules.values().any(|rule| rule.log);
        self.owners.set(if logs { wanted.places.clone() } else { BTreeMap::new() });
        Ok(())
    }

    fn logged(&self) -> Result<Receiver<LogNews>> {
        let receiver = nflog::listen(number_of_name(&self.firewall_table()), self.owners.clone())?;
        self.is_read.store(true, Ordering::Release);
        Ok(receiver)
    }

    fn intact(&self) -> Result<bool> {
        let mut enforced = self.enforced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = enforced.as_mut() {
            let mut socket = open()?;
            let now = watch::generation(&mut socket)?;
            if !firewall::intact(&self.scope(&self.firewall_table()), held, now, &mut socket)? {
                // The next application writes everything.
                *enforced = None;
                return Ok(false);
            }
        }
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = applied.as_mut() else { return Ok(false) };
        if held.set.bridges.values().any(|bridge| bridge.nat) && !sysctl_is(FORWARDING, "1")? {
            return Ok(false);
        }
        if forwards6(&held.set) && !sysctl_is(forwarding::FORWARDING6, "1")? {
            return Ok(false);
        }
        let mut socket = open()?;
        // Taken first: a change during the look is then seen the next time.
        let now = watch::generation(&mut socket)?;
        if held.whole_at == Some(now) {
            return Ok(true);
        }
        let whole = self.whole(&mut socket, held)?;
        match whole {
            true => held.whole_at = Some(now),
            // The next application loads everything.
            false => *applied = None,
        }
        Ok(whole)
    }

    fn clear(&self) -> Result<()> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let table = &self.table;
        let mut script = String::new();
        for family in ["bridge", "inet"] {
            script.push_str(&format!("add table {family} {table}\ndelete table {family} {table}\n"));
        }
        command::run("nft", &["-f", "-"], &script)?;
        *applied = None;
        firewall::clear(&self.firewall_table(), &mut self.enforced.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The kernel's number of a table; `None` when it is missing.
pub(super) fn handle_of(socket: &mut Socket, family: u8, table: &str) -> Result<Option<Vec<u8>>> {
    let message = Message::new(GETTABLE, 0, &[family, 0, 0, 0]).text(TABLE_NAME, table);
    let answer = match socket.request(message) {
        Err(Refusal { errno: Errno::ENOENT, .. }) => return Ok(None),
        other => other.map_err(|refusal| refusal.doing(format!("look at nftables table `{table}`")))?,
    };
    let attributes = answer.first().and_then(|payload| payload.get(4..)).unwrap_or_default();
    Ok(attrs(attributes).find(|(kind, _)| *kind == TABLE_HANDLE).map(|(_, handle)| handle.to_vec()))
}
