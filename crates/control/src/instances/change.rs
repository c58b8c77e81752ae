//! Changing what an instance should be.

use model::{
    id::InstanceId,
    instance::{Caller, Instance, Wanted},
    placement::{Demand, NoRoom, fits},
    rules,
    server::Server,
    state::PublicState,
};
use store::{Snapshot, Transaction};

use super::{Decision, InstanceView, create::fits_image, decide, edited};
use crate::{
    Control, Error, FieldCode, Result, Scope,
    flows::{self, Before, Reboot, Resize, Start, Stop, Work},
    packages, placement,
    tables::{ACCOUNTS, CLAIMS, Claim, IMAGES, SERVERS},
};

/// Starts a stopped instance. One that is on its way up already is left alone.
pub async fn start(control: &Control, caller: &Caller, scope: Scope, id: InstanceId) -> Result<InstanceView> {
    decide(control, scope, id, |snapshot, entry| {
        let state = InstanceView::of(control, snapshot, entry.clone()).state;
        usable("start", entry, state)?;
        if state == PublicState::Running && entry.intent.wanted == Wanted::Running {
            return Err(Error::InvalidState { verb: "start", state, hint: "it runs already" });
        }
        let mut instance = entry.value.clone();
        if instance.intent.wanted == Wanted::Running && in_progress(&instance) {
            return Ok(None);
        }
        instance.intent.wanted = Wanted::Running;
        instance.intent.starts += 1;
        Ok(Some(with_flow::<Start>(control, instance, caller, "start")))
    })
    .await
}

/// Stops an instance; one that is stopped, or stopping, is an error as in Triton. Works while the store is full: what can
/// then not be started again cannot be stopped again either, so this ends.
pub async fn stop(control: &Control, caller: &Caller, scope: Scope, id: InstanceId) -> Result<InstanceView> {
    decide(control, scope, id, |snapshot, entry| {
        let state = InstanceView::of(control, snapshot, entry.clone()).state;
        usable("stop", entry, state)?;
        if state == PublicState::Stopped && !in_progress(entry) {
            return Err(Error::InvalidState { verb: "stop", state, hint: "it is off already" });
        }
        if entry.intent.wanted == Wanted::Stopped {
            return Ok(None);
        }
        let mut instance = entry.value.clone();
        instance.intent.wanted = Wanted::Stopped;
        let mut decision = with_flow::<Stop>(control, instance, caller, "stop");
        decision.transaction = decision.transaction.may_use_reserve();
        Ok(Some(decision))
    })
    .await
}

/// Reboots a running instance.
pub async fn reboot(control: &Control, caller: &Caller, scope: Scope, id: InstanceId) -> Result<InstanceView> {
    decide(control, scope, id, |snapshot, entry| {
        let state = InstanceView::of(control, snapshot, entry.clone()).state;
        usable("reboot", entry, state)?;
        if state != PublicState::Running || entry.intent.wanted != Wanted::Running {
            return Err(Error::InvalidState { verb: "reboot", state, hint: "start it first" });
        }
        let mut instance = entry.value.clone();
        instance.intent.reboots += 1;
        Ok(Some(with_flow::<Reboot>(control, instance, caller, "reboot")))
    })
    .await
}

/// Gives an instance another package, while it runs.
pub async fn resize(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    package: &str,
) -> Result<InstanceView> {
    decide(control, scope, id, |snapshot, entry| {
        let state = InstanceView::of(control, snapshot, entry.clone()).state;
        usable("resize", entry, state)?;
        let Some(wanted) = packages::look_up(snapshot, package).filter(|package| package.active) else {
            return Err(Error::invalid("package", format!("there is no package \"{package}\"")));
        };
        if wanted.brand.is_some_and(|brand| brand != entry.brand) {
            let why = format!("package \"{}\" is for another brand than {}", wanted.name, entry.brand.as_str());
            return Err(Error::field("package", FieldCode::Conflict, why));
        }
        if let Some(image) = snapshot.get(&IMAGES, &entry.image.to_string()) {
            fits_image(&wanted, &image)?;
        }
        if wanted.id == entry.package && packages::limits(&wanted) == entry.limits {
            return Ok(None);
        }
        let mut instance = entry.value.clone();
        let before = Before {
            package: instance.package,
            package_name: instance.package_name.clone(),
            limits: instance.limits.clone(),
        };
        instance.package = wanted.id;
        instance.package_name.clone_from(&wanted.name);
        instance.limits = packages::limits(&wanted);
        let transaction = move_reservation(control, snapshot, &instance, Demand::held_by(entry))?;
        let now = control.now();
        let begun = flows::begin::<Resize>(&mut instance, caller, "resize", Some(before), now);
        instance.updated_at = now;
        Ok(Some(Decision { instance, transaction: transaction.and(begun) }))
    })
    .await
}

/// Renames an instance.
pub async fn rename(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    name: &str,
) -> Result<InstanceView> {
    rules::check_alias(name, control.config.alias_max).map_err(|why| Error::invalid("name", why))?;
    decide(control, scope, id, |snapshot, entry| {
        if entry.alias == name {
            return Ok(None);
        }
        if let Some(owner) = snapshot.get(&ACCOUNTS, &entry.owner.to_string()) {
            super::check_label(&owner, name).map_err(|why| Error::invalid("name", why))?;
        }
        let (old, new) = (Claim::alias(entry.owner, &entry.alias), Claim::alias(entry.owner, name));
        if snapshot.get(&CLAIMS, &new).is_some() {
            let why = format!("\"{name}\" is the name of another instance of yours");
            return Err(Error::field("name", FieldCode::Conflict, why));
        }
        let mut transaction = Transaction::new().create(&CLAIMS, Claim { name: new, holder: id.to_string() });
        if let Some(claim) = snapshot.get(&CLAIMS, &old) {
            transaction = transaction.delete(&CLAIMS, &claim);
        }
        let instance = edited(entry, "rename", caller, control.now(), |instance| instance.alias = name.to_owned());
        Ok(Some(Decision { instance, transaction }))
    })
    .await
}

/// Protects an instance from deletion, or ends that. Doing it again changes nothing.
pub async fn set_deletion_protection(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    protected: bool,
) -> Result<InstanceView> {
    decide(control, scope, id, |_, entry| {
        let action = if protected { "enable_deletion_protection" } else { "disable_deletion_protection" };
        let edit = |instance: &mut Instance| instance.deletion_protection = protected;
        Ok((entry.deletion_protection != protected).then(|| Decision {
            instance: edited(entry, action, caller, control.now(), edit),
            transaction: Transaction::new(),
        }))
    })
    .await
}

/// Whether the distributed firewall applies to an instance. Doing it again changes nothing.
pub async fn set_firewall(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    enabled: bool,
) -> Result<InstanceView> {
    decide(control, scope, id, |_, entry| {
        let action = if enabled { "enable_firewall" } else { "disable_firewall" };
        let edit = |instance: &mut Instance| instance.firewall_enabled = enabled;
        Ok((entry.firewall_enabled != enabled).then(|| Decision {
            instance: edited(entry, action, caller, control.now(), edit),
            transaction: Transaction::new(),
        }))
    })
    .await
}

/// Refuses verbs on what is failed, on its way to deletion, or not yet there.
pub(super) fn usable(verb: &'static str, instance: &Instance, state: PublicState) -> Result<()> {
    if instance.failure.is_some() {
        return Err(Error::InvalidState { verb, state, hint: "delete it and create another" });
    }
    if instance.intent.wanted == Wanted::Absent {
        return Err(Error::InvalidState { verb, state, hint: "it is being deleted" });
    }
    if state == PublicState::Provisioning {
        return Err(Error::InvalidState { verb, state, hint: "wait until it runs" });
    }
    Ok(())
}

/// The instance with a flow that waits for the change on the caller's behalf.
pub(super) fn with_flow<W: Work>(control: &Control, mut instance: Instance, caller: &Caller, action: &str) -> Decision {
    let now = control.now();
    let transaction = flows::begin::<W>(&mut instance, caller, action, None, now);
    instance.updated_at = now;
    Decision { instance, transaction }
}

/// Moves what the instance's machine holds for it from `had` to what it is to hold now.
pub(crate) fn move_reservation(
    control: &Control,
    snapshot: &Snapshot,
    instance: &Instance,
    had: Demand,
) -> Result<Transaction> {
    let server = snapshot
        .get(&SERVERS, &instance.server.to_string())
        .ok_or_else(|| Error::not_found("server", instance.server))?;
    let demand = Demand::held_by(instance);
    if demand == had {
        return Ok(Transaction::new());
    }
    fits(demand, had, &control.config.placement, &server)
        .map_err(|refusal| NoRoom { refusals: vec![(server.id, refusal)], unmet: Vec::new() })?;
    let reserved = server.reserved.minus(had).plus(demand);
    let promised = placement::with_room(control, Server { reserved, ..server.value.clone() });
    Ok(Transaction::new().replace(&SERVERS, &server, promised))
}

/// A start or reboot that was asked for is not carried out yet.
fn in_progress(instance: &Instance) -> bool {
    instance
        .fact
        .as_ref()
        .is_none_or(|fact| fact.starts_done < instance.intent.starts || fact.reboots_done < instance.intent.reboots)
}
