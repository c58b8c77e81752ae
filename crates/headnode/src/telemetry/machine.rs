//! What this machine says: the process, its certificates, its backups, its name server.

use std::{fs, sync::atomic::AtomicU64};

use control::tables::ACCOUNTS;
use dns::Outcome;
use model::{
    metrics::{Exposition, Labels, Value},
    time::Timestamp,
};

use super::{
    Sources,
    families::{
        BACKUP_AGE, BACKUP_MISSING, BACKUP_OVERDUE, BACKUP_PERIOD, BUILD, CERTIFICATE, CPU, DNS_ANSWERS, DNS_NOTIFIES,
        DNS_QUERIES, DNS_TRANSFERS, DNS_UNANSWERED, DNS_UP, MAX_FILES, OPEN_FILES, RESIDENT, STARTED, STORE_FREE,
        THREADS,
    },
    flag, put, seconds_of_ms, seconds_of_signed_ms,
};
use crate::{
    backup::{self, Standing},
    names::NameServer,
    pki::{Identity, StorePki},
};

/// Of this process.
pub(super) fn process(sources: &Sources, text: &mut Exposition) {
    text.family(&BUILD, [(&Labels::none().with("release", base::release::name()), Value::Count(1))]);
    text.one(&STARTED, seconds_of_signed_ms(sources.started_at.0));
    // What cannot be read is not told.
    let own = base::own::usage();
    if let Some(seconds) = own.cpu_s {
        text.one(&CPU, seconds);
    }
    if let Some(threads) = own.threads {
        text.one(&THREADS, threads);
    }
    if let Some(bytes) = own.resident_bytes {
        text.one(&RESIDENT, bytes);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The directory itself is open while it is read.
        text.one(&OPEN_FILES, (open.count() as u64).saturating_sub(1));
    }
    if let Ok((most, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        text.one(&MAX_FILES, most);
    }
}

/// Of files: room, certificates, backups.
pub(super) fn files(sources: &Sources, text: &mut Exposition) {
    let (settings, now) = (&sources.settings, sources.control.now());
    if let Ok(space) = nix::sys::statvfs::statvfs(&settings.headnode_dir()) {
        text.one(&STORE_FREE, space.blocks_available().saturating_mul(space.fragment_size()));
    }
    put(&CERTIFICATE, &certificates(sources, now), text);
    backups(sources, now, text);
}

fn certificates(sources: &Sources, now: Timestamp) -> Vec<(Labels, Value)> {
    let (directory, operator) = (sources.settings.pki_dir(), &sources.settings.paths.operator);
    let store = StorePki::of(&sources.settings);
    let store_authority = Identity { certificate: store.authority, key: store.authority_key };
    let all = [
        ("authority", Identity::named(&directory, "ca")),
        ("headnode", Identity::named(&directory, "server")),
        ("node", Identity::named(&directory, "node")),
        ("operator", Identity::named(operator, "operator")),
        ("store authority", store_authority),
        ("store member", store.member),
        ("store client", store.client),
    ];
    let left = |(name, identity): (&str, Identity)| {
        let ends_at = identity.expires_at().ok()?;
        Some((Labels::none().with("certificate", name), seconds_of_signed_ms(ends_at.0.saturating_sub(now.0))))
    };
    all.into_iter().filter_map(left).collect()
}

fn backups(sources: &Sources, now: Timestamp, text: &mut Exposition) {
    let (settings, control) = (&sources.settings, &sources.control);
    let every_hours = settings.backup.every_hours;
    text.one(&BACKUP_PERIOD, u64::from(every_hours) * 3_600);
    let newest = backup::list(&settings.backup_dir()).ok().and_then(|all| Some(all.last()?.taken_at));
    if let Some(at) = newest {
        text.one(&BACKUP_AGE, seconds_of_ms(now.millis_since(at)));
    }
    let standing = Standing::look(settings, &sources.offers.others(control, newest));
    let is_used = control.snapshot().count(&ACCOUNTS) > 0;
    // A directory that cannot be read holds none that would be found.
    let is_overdue =
        standing.as_ref().map_or(true, |found| found.is_overdue(now, sources.started_at, is_used, every_hours));
    text.one(&BACKUP_OVERDUE, flag(is_overdue));
    if let Ok(found) = standing {
        text.one(&BACKUP_MISSING, found.missing.len() as u64);
    }
}

/// Of the name server.
pub(super) fn names(server: &NameServer, text: &mut Exposition) {
    let status = server.status();
    let Some(counters) = status.counters else {
        if status.error.is_some() {
            text.one(&DNS_UP, flag(false));
        }
        return;
    };
    text.one(&DNS_UP, flag(status.error.is_none() && status.refused.is_empty()));
    let read = |counter: &AtomicU64| Value::Count(counter.load(std::sync::atomic::Ordering::Relaxed));
    let labelled = |label: &str, counters: &[(&str, &AtomicU64)]| -> Vec<(Labels, Value)> {
        counters.iter().map(|(name, counter)| (Labels::none().with(label, name), read(counter))).collect()
    };
    put(&DNS_QUERIES, &labelled("transport", &[("udp", &counters.udp), ("tcp", &counters.tcp)]), text);
    let outcomes: Vec<_> =
        Outcome::ALL.iter().zip(&counters.outcomes).map(|(outcome, counter)| (outcome.name(), counter)).collect();
    put(&DNS_ANSWERS, &labelled("code", &outcomes), text);
    let unanswered = [
        ("truncated", &counters.truncated),
        ("limited", &counters.limited),
        ("no question", &counters.dropped),
        ("connection refused", &counters.connections_refused),
    ];
    put(&DNS_UNANSWERED, &labelled("why", &unanswered), text);
    let transfers = [
        ("whole", &counters.transfers_whole),
        ("differences", &counters.transfers_differences),
        ("refused", &counters.transfers_refused),
        ("failed", &counters.transfers_failed),
    ];
    put(&DNS_TRANSFERS, &labelled("outcome", &transfers), text);
    let notifies = [
        ("sent", &counters.notify_sent),
        ("answered", &counters.notify_answered),
        ("failed", &counters.notify_failed),
        ("received", &counters.notify_received),
    ];
    put(&DNS_NOTIFIES, &labelled("outcome", &notifies), text);
}
