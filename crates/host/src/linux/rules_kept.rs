//! nftables tables that are loaded when they differ from what is wanted, and left alone otherwise.
//!
//! Loading costs a process and starts the table's counters and counts of connections from nothing, so what is there is compared first:
//! the text that was loaded, the kernel's number of the table, and, when the kernel's count of changes moved, rules and sets
//! as it showed them right after loading. Nothing here needs to know what they mean.

use super::{
    command,
    filter::handle_of,
    filter_watch as watch,
    netlink::Socket,
    nft_wire::{NFPROTO_INET, open},
};
use crate::error::Result;

/// A table of the `inet` family.
pub(super) struct Table<'a> {
    pub(super) name: &'a str,
    /// Its sets that have elements.
    pub(super) sets: &'a [&'a str],
    /// What makes it, for `nft`; begins with the removal of what was there.
    pub(super) text: String,
}

/// A table as it was loaded by this process.
#[derive(Debug)]
pub(super) struct Loaded {
    text: String,
    handle: Option<Vec<u8>>,
    content: Vec<Vec<u8>>,
    /// The kernel's count of changes when it was last found whole.
    whole_at: u32,
}

/// Text that removes a table whether or not it is there.
pub(super) fn removal(name: &str) -> String {
    format!("add table inet {name}\ndelete table inet {name}\n")
}

impl Table<'_> {
    /// Makes the table of this thread's network namespace what the text says; `held` is what was loaded there before.
    pub(super) fn keep(&self, held: &mut Option<Loaded>) -> Result<()> {
        let mut socket = open()?;
        if let Some(loaded) = held.as_mut()
            && self.is_whole(loaded, &mut socket)?
        {
            return Ok(());
        }
        // What is in the kernel is not known until this succeeds.
        *held = None;
        command::run("nft", &["-f", "-"], &self.text)?;
        let whole_at = watch::generation(&mut socket)?;
        let handle = handle_of(&mut socket, NFPROTO_INET, self.name)?;
        let content = self.content(&mut socket)?;
        *held = Some(Loaded { text: self.text.clone(), handle, content, whole_at });
        Ok(())
    }

    fn is_whole(&self, loaded: &mut Loaded, socket: &mut Socket) -> Result<bool> {
        // Taken first: a change during the look is then seen the next time.
        let now = watch::generation(socket)?;
        let handle = handle_of(socket, NFPROTO_INET, self.name)?;
        if loaded.text != self.text || handle.is_none() || handle != loaded.handle {
            return Ok(false);
        }
        if loaded.whole_at != now {
            if self.content(socket)? != loaded.content {
                return Ok(false);
            }
            loaded.whole_at = now;
        }
        Ok(true)
    }

    /// Rules in order, then the elements of the sets.
    fn content(&self, socket: &mut Socket) -> Result<Vec<Vec<u8>>> {
        let mut all = watch::rules(socket, self.name)?;
        for set in self.sets {
            all.extend(watch::keys(socket, self.name, NFPROTO_INET, set)?);
        }
        Ok(all)
    }
}

/// Removes a table of this thread's network namespace if it is there.
pub(super) fn remove(name: &str, held: &mut Option<Loaded>) -> Result<()> {
    *held = None;
    match handle_of(&mut open()?, NFPROTO_INET, name)? {
        Some(_) => command::run("nft", &["-f", "-"], &removal(name)).map(drop),
        None => Ok(()),
    }
}
