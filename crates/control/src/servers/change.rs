//! What operators decide about a machine.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    id::{InstanceId, ServerId},
    instance::{AuditEntry, Caller, Wanted},
    server::{Drain, Ratios, Server, Trait},
};
use store::Transaction;

use super::{COMMENTS_MAX_BYTES, ServerView, modify};
use crate::{
    Control, Error, Result,
    instances::release,
    tables::{BY_SERVER, INSTANCES, SERVERS},
};

/// Traits of one machine.
const TRAITS_MAX: usize = 64;
/// Characters of a trait's name or value, and of a rack's name.
const WORD_MAX: usize = 64;
/// Instances given up in one call: they go in one commit.
const GIVEN_UP_MAX: usize = 200;

/// What is to be changed; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct ServerChange {
    /// See [`Server::comments`].
    pub comments: Option<String>,
    /// See [`Server::rack`]; empty takes it out of its rack.
    pub rack: Option<String>,
    /// Traits to set.
    pub traits: BTreeMap<String, Trait>,
    /// Traits to take away, before others are set.
    pub no_traits: BTreeSet<String>,
    /// Ratios to set; see [`Ratios`].
    pub ratios: Option<Ratios>,
    /// Whatever machine reports next is the one from then on: its hardware was replaced.
    pub new_hardware: bool,
}

/// Changes what operators say of a machine.
pub async fn change(control: &Control, id: ServerId, change: ServerChange) -> Result<ServerView> {
    if change.comments.as_ref().is_some_and(|comments| comments.len() > COMMENTS_MAX_BYTES) {
        return Err(Error::invalid("comments", format!("is longer than {COMMENTS_MAX_BYTES} bytes")));
    }
    check_rack(change.rack.as_deref().filter(|rack| !rack.is_empty()))?;
    check_traits(&change.traits)?;
    modify(control, id, |server| {
        if let Some(comments) = &change.comments {
            comments.clone_into(&mut server.comments);
        }
        if let Some(rack) = &change.rack {
            server.rack = (!rack.is_empty()).then(|| rack.clone());
        }
        server.traits.retain(|name, _| !change.no_traits.contains(name));
        server.traits.extend(change.traits.clone());
        if let Some(ratios) = &change.ratios {
            server.ratios = ratios.clone();
        }
        if change.new_hardware {
            server.identity = None;
        }
    })
    .await
}

/// Begins to empty a machine: it takes nothing new. What it has stays until somebody moves or deletes it.
pub async fn drain(control: &Control, id: ServerId, reason: &str) -> Result<ServerView> {
    if reason.len() > COMMENTS_MAX_BYTES {
        return Err(Error::invalid("reason", format!("is longer than {COMMENTS_MAX_BYTES} bytes")));
    }
    let now = control.now();
    modify(control, id, |server| {
        server.accepts_instances = false;
        let since = server.drain.as_ref().map_or(now, |drain| drain.since);
        server.drain = Some(Drain { since, reason: reason.to_owned() });
    })
    .await
}

/// Forgets a machine; from then on it is locked out. Instances it has must be given up by name, all of them: they count as deleted,
/// and whatever of them is left on the machine's disk is nobody's any more.
pub async fn forget(control: &Control, id: ServerId, given_up: &BTreeSet<InstanceId>, caller: &Caller) -> Result<()> {
    if given_up.len() > GIVEN_UP_MAX {
        return Err(Error::invalid("give_up", format!("has more than {GIVEN_UP_MAX} instances; delete some first")));
    }
    let now = control.now();
    control
        .store
        .update(|snapshot| {
            let server = snapshot.get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
            if server.headnode {
                return Err(Error::InUse(format!(
                    "server {} runs a headnode: `neso adm ha remove {}` first; `neso adm server cordon` keeps instances away from it",
                    server.hostname, server.hostname
                )));
            }
            let instances: Vec<_> = snapshot.find(&INSTANCES, BY_SERVER, &id.to_string()).collect();
            let kept: Vec<String> = instances
                .iter()
                .filter(|instance| !given_up.contains(&instance.id))
                .map(|instance| format!("{} ({})", instance.id, instance.alias))
                .collect();
            if !kept.is_empty() {
                let shown = kept.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
                let more = if kept.len() > 5 { format!(" and {} more", kept.len() - 5) } else { String::new() };
                return Err(Error::InUse(format!(
                    "server {} has {shown}{more}; delete them first, or if the machine is lost, give each up with \
                     `--give-up ID`",
                    server.hostname
                )));
            }
            let mut transaction = Transaction::new();
            for entry in instances {
                let mut instance = entry.value.clone();
                instance.intent.wanted = Wanted::Absent;
                instance.delete_asked_at.get_or_insert(now);
                instance.record(AuditEntry {
                    action: "destroy".to_owned(),
                    success: true,
                    time: now,
                    caller: caller.clone(),
                    error: Some(format!("its server {} was lost and forgotten", server.hostname)),
                    timeline: Vec::new(),
                });
                transaction = release::release(snapshot, &mut instance, now, transaction);
                transaction = transaction.replace(&INSTANCES, &entry, instance);
            }
            Ok((transaction.delete(&SERVERS, &server), ()))
        })
        .await?;
    control.nodes.forget(id);
    control.reports.forget(id);
    Ok(())
}

/// Whether a rack may be called so.
pub(super) fn check_rack(rack: Option<&str>) -> Result<()> {
    match rack {
        Some(rack) if !is_word(rack) => {
            Err(Error::invalid("rack", format!("must be 1 to {WORD_MAX} printable characters without spaces")))
        }
        _ => Ok(()),
    }
}

/// Whether traits may be so.
pub(super) fn check_traits(traits: &BTreeMap<String, Trait>) -> Result<()> {
    if traits.len() > TRAITS_MAX {
        return Err(Error::invalid("traits", format!("has more than {TRAITS_MAX} entries")));
    }
    for (name, value) in traits {
        let values = match value {
            Trait::Flag(_) => Vec::new(),
            Trait::Text(one) => vec![one.clone()],
            Trait::List(several) => several.clone(),
        };
        // `=` and `/` part names from values where machines are listed by trait.
        if !is_word(name)
            || name.contains(['=', '/'])
            || values.len() > TRAITS_MAX
            || !values.iter().all(|v| is_word(v))
        {
            let rule = format!("1 to {WORD_MAX} printable characters without spaces, names also without `=` and `/`");
            return Err(Error::invalid("traits", format!("\"{name}\": names and values must be {rule}")));
        }
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    (1..=WORD_MAX).contains(&text.len()) && text.chars().all(|c| !c.is_whitespace() && !c.is_control())
}

/// The record of a machine of which nothing is known yet.
pub(super) fn fresh(id: ServerId, new: &super::NewServer, now: model::time::Timestamp) -> Server {
    Server { headnode: new.headnode, comments: new.comments.clone(), ..Server::new(id, new.hostname.clone(), now) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_traits_are_words() {
        let one = |name: &str, value: Trait| check_traits(&[(name.to_owned(), value)].into());
        assert!(one("ssd", Trait::Flag(true)).is_ok());
        assert!(one("gpu", Trait::List(vec!["a100".into(), "h100".into()])).is_ok());
        for (name, value) in [("", Trait::Flag(true)), ("a=b", Trait::Flag(true)), ("a", Trait::Text(" ".into()))] {
            assert!(one(name, value).is_err(), "{name}");
        }
        assert!(check_rack(Some("r 1")).is_err());
    }
}
