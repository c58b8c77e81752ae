//! Asking for an instance: one decision, one commit.
//!
//! What does not depend on who else is asking is checked first (names, sizes, rules). Then one decision on the newest
//! snapshot, on which the store lets decisions take turns, chooses machine, addresses and Ethernet addresses and puts instance, reservation, names and the flow that
//! waits for it into one transaction. When this returns the instance is recorded, and nothing can lose it any more.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use model::{
    account::Account,
    id::{AccountId, InstanceId, NetworkId},
    image::{Image, ImageState},
    instance::{Brand, Caller, Instance, Intent, TagValue, Wanted},
    network::Nic,
    package::Package,
    placement::{Demand, Rule},
    rules,
    server::Server,
    target::Phase,
    time::Timestamp,
};
use store::{Entry, Snapshot, Transaction};

use super::{InstanceView, wanted_nics::WantedNics};
use crate::{
    Control, Error, FieldCode, Result, Scope,
    error::{Faults, FieldError},
    flows::{self, Provision},
    images,
    networks::allocate::{self, Holder},
    packages, placement,
    tables::{ACCOUNTS, CLAIMS, Claim, INSTANCES, SERVERS},
};

/// NICs of one instance at most: what is made and given back in one commit, which the smallest store limits to 128
/// checks and writes. A NIC may be six of them: an Ethernet address and one address of each family, checked and written.
pub(super) const NICS_MAX: usize = 18;
/// IPv6 addresses of one NIC at most.
pub(super) const IPS6_MAX: usize = 8;
/// Addresses and Ethernet addresses of one instance at most, for the same reason.
pub(super) const HELD_MAX: usize = 3 * NICS_MAX;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct CreateInstance {
    /// Name; `{{shortId}}` in it becomes the first eight digits of the id, which are also the name when there is none.
    pub alias: Option<String>,
    /// Package by id or name.
    pub package: String,
    /// Image by id.
    pub image: String,
    /// Networks in the order of the interfaces; empty for the defaults.
    pub networks: Vec<NetworkChoice>,
    /// See [`Instance::metadata`].
    pub metadata: BTreeMap<String, String>,
    /// See [`Instance::internal_metadata`].
    pub internal_metadata: BTreeMap<String, String>,
    /// See [`Instance::tags`].
    pub tags: BTreeMap<String, TagValue>,
    /// See [`Instance::deletion_protection`].
    pub deletion_protection: bool,
    /// See [`Instance::firewall_enabled`].
    pub firewall_enabled: bool,
    /// Must agree with package and image when it is given.
    pub brand: Option<Brand>,
    /// Rules of affinity: see [`model::placement::affinity`].
    pub affinity: Vec<String>,
}

/// One NIC that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkChoice {
    /// On which network, or on any of which pool: the ids of both may stand here.
    pub network: NetworkId,
    /// A certain address; `None` for any.
    pub ip: Option<Ipv4Addr>,
    /// Certain IPv6 addresses, at most 8; none for any one, if the network has any.
    pub ips6: Vec<Ipv6Addr>,
    /// The default route goes here. The first NIC's when none says so.
    pub primary: bool,
}

impl NetworkChoice {
    /// Any address of `network`.
    pub const fn any(network: NetworkId) -> Self {
        Self { network, ip: None, ips6: Vec::new(), primary: false }
    }

    pub(crate) fn names_an_address(&self) -> bool {
        self.ip.is_some() || !self.ips6.is_empty()
    }

    pub(crate) fn wanted(&self) -> allocate::Wanted<'_> {
        allocate::Wanted { ip: self.ip, ips6: &self.ips6 }
    }

    /// What is wrong with the addresses it names, before any network is looked at.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_ips6(&self.ips6)
    }
}

/// What is wrong with a list of IPv6 addresses of one NIC, before any network is looked at.
pub(super) fn check_ips6(ips6: &[Ipv6Addr]) -> Result<(), String> {
    if ips6.len() > IPS6_MAX {
        return Err(format!("has more than {IPS6_MAX} IPv6 addresses for one NIC"));
    }
    match (1..ips6.len()).find(|at| ips6[..*at].contains(&ips6[*at])) {
        Some(at) => Err(format!("names {} twice", ips6[at])),
        None => Ok(()),
    }
}

/// Asks for an instance of `owner`. It is recorded when this returns, in state `provisioning`.
pub async fn create(
    control: &Control,
    caller: &Caller,
    owner: AccountId,
    request: CreateInstance,
) -> Result<InstanceView> {
    let asked_at = control.now();
    let id = InstanceId::from_random(base::random::wide_bits());
    let alias = alias(&request, id);
    let mut faults = check(control, &request, &alias);
    let rules = faults.take(placement::parse_rules(&request.affinity))?;
    if !faults.is_empty() {
        return Err(Error::Invalid(faults.and(look(control, owner, &request, &alias)?)));
    }
    let mut tried = Vec::new();
    let (_, id) = control
        .update(|snapshot| {
            let begun_at = control.now();
            allocate::step_aside(control, snapshot, &tried);
            let plan = Plan::make(control, snapshot, owner, &request, &alias, &rules)?;
            let birth = Birth { id, asked_at, begun_at };
            let (nics, transaction) = plan.decide(control, snapshot, caller, birth, &request)?;
            tried = nics;
            Ok::<_, Error>((transaction, id))
        })
        .await?;
    let snapshot = control.snapshot();
    let instance = super::recorded(&snapshot, Scope::Account(owner), id)?;
    Ok(InstanceView::of(control, &snapshot, instance))
}

/// What is wrong with a request, as far as that can be said now: every field, and nothing when all is well.
pub fn faults(control: &Control, owner: AccountId, request: &CreateInstance) -> Result<Vec<FieldError>> {
    let alias = alias(request, InstanceId::random());
    let mut faults = check(control, request, &alias);
    faults.take(placement::parse_rules(&request.affinity))?;
    Ok(faults.and(look(control, owner, request, &alias)?))
}

/// What is wrong with the things it refers to.
fn look(control: &Control, owner: AccountId, request: &CreateInstance, alias: &str) -> Result<Vec<FieldError>> {
    match Plan::make(control, &control.snapshot(), owner, request, alias, &[]) {
        Ok(_) => Ok(Vec::new()),
        Err(Error::Invalid(fields)) => Ok(fields),
        Err(other) => Err(other),
    }
}

/// When and as what an instance comes to be.
#[derive(Debug, Clone, Copy)]
struct Birth {
    id: InstanceId,
    asked_at: Timestamp,
    begun_at: Timestamp,
}

/// Everything the request refers to, looked up and found to fit together.
struct Plan {
    owner: Arc<Entry<Account>>,
    package: Arc<Entry<Package>>,
    image: Arc<Entry<Image>>,
    nics: WantedNics,
    brand: Brand,
    alias: String,
    rules: Vec<Rule>,
}

impl Plan {
    fn make(
        control: &Control,
        snapshot: &Snapshot,
        owner: AccountId,
        request: &CreateInstance,
        alias: &str,
        rules: &[Rule],
    ) -> Result<Self> {
        let scope = Scope::Account(owner);
        let account = snapshot.get(&ACCOUNTS, &owner.to_string()).ok_or_else(|| Error::not_found("account", owner))?;
        let mut faults = Faults::default();
        faults.check("name", super::check_label(&account, alias));
        if snapshot.get(&CLAIMS, &Claim::alias(owner, alias)).is_some() {
            faults.add("name", FieldCode::Conflict, format!("\"{alias}\" is the name of another instance of yours"));
        }
        let package = packages::look_up(snapshot, &request.package).filter(|package| package.active);
        if package.is_none() {
            faults.check("package", Err(format!("there is no package \"{}\"", request.package)));
        }
        let image = request.image.parse().ok().and_then(|image| images::visible(snapshot, scope, image));
        match &image {
            None => faults.check("image", Err(format!("there is no image \"{}\"", request.image))),
            Some(image) if image.state != ImageState::Active => {
                faults.check("image", Err(format!("image {} is not active", image.id)));
            }
            Some(_) => {}
        }
        let brand = match (&package, &image) {
            (Some(package), Some(image)) => faults.take(agree(package, image, request.brand).map(Some))?,
            _ => None,
        };
        let nics = faults.take(WantedNics::look_up(control, snapshot, &account, &request.networks))?;
        faults.finish()?;
        let (Some(package), Some(image), Some(brand)) = (package, image, brand) else {
            unreachable!("a missing one was a fault");
        };
        Ok(Self { owner: account, package, image, nics, brand, alias: alias.to_owned(), rules: rules.to_vec() })
    }

    /// The NICs it gets, and the transaction.
    fn decide(
        &self,
        control: &Control,
        snapshot: &Snapshot,
        caller: &Caller,
        birth: Birth,
        request: &CreateInstance,
    ) -> Result<(Vec<Nic>, Transaction)> {
        let Birth { id, asked_at, begun_at } = birth;
        let limits = packages::limits(&self.package);
        let asked = placement::Asked {
            owner: self.owner.id,
            alias: &self.alias,
            package: &self.package,
            networks: self.nics.fixed().collect(),
            choices: self.nics.choices(),
            rules: &self.rules,
            now: begun_at,
        };
        let server = placement::choose(control, snapshot, &asked)?;
        let holder = Holder { instance: id, owner: self.owner.id, now: asked_at };
        let (nics, transaction) = self.nics.wire(control, snapshot, &server, holder, Transaction::new())?;
        let transaction = placement::take_turn(snapshot, &asked, transaction);
        let decided_at = control.now();
        let phase = |name: &str, at: Timestamp, until: Timestamp| Phase {
            name: name.to_owned(),
            at,
            ms: until.millis_since(at),
        };
        let mut instance = Instance {
            id,
            owner: self.owner.id,
            alias: self.alias.clone(),
            brand: self.brand,
            image: self.image.id,
            package: self.package.id,
            package_name: self.package.name.clone(),
            limits,
            affinity: request.affinity.clone(),
            server: server.id,
            nics: nics.clone(),
            metadata: request.metadata.clone().into(),
            internal_metadata: request.internal_metadata.clone().into(),
            tags: request.tags.clone().into(),
            firewall_enabled: request.firewall_enabled,
            deletion_protection: request.deletion_protection,
            intent: Intent { wanted: Wanted::Running, starts: 1, reboots: 0 },
            fact: None,
            released: false,
            lost_at: None,
            failure: None,
            flow: None,
            timeline: vec![phase("queued", asked_at, begun_at), phase("placed", begun_at, decided_at)],
            guest_metadata_seen: 0,
            metadata_edits: 0,
            metadata_edits_served: 0,
            history: Vec::new(),
            created_at: asked_at,
            updated_at: asked_at,
            delete_asked_at: None,
            deleted_at: None,
        };
        let reserved = server.reserved.plus(Demand::of(&instance.limits));
        let promised = placement::with_room(control, Server { reserved, ..server.value.clone() });
        let begun = flows::begin::<Provision>(&mut instance, caller, "provision", None, decided_at);
        let claim = Claim { name: Claim::alias(self.owner.id, &self.alias), holder: id.to_string() };
        let made = transaction.create(&CLAIMS, claim).replace(&SERVERS, &server, promised);
        // Names, addresses and the machine are checked; what else it refers to was looked at.
        Ok((nics, made.create(&INSTANCES, instance).and(begun).rests_on_checks()))
    }
}

/// The brand on which package, image and request agree, with the image's demands on memory met.
fn agree(package: &Package, image: &Image, asked: Option<Brand>) -> Result<Brand> {
    let brand = match image.kind {
        model::image::ImageKind::LxDataset => Brand::Lx,
    };
    if let Some(other) = asked.filter(|asked| *asked != brand) {
        let why = format!("image {} makes instances of brand {}, not {}", image.id, brand.as_str(), other.as_str());
        return Err(Error::field("brand", FieldCode::Conflict, why));
    }
    if let Some(other) = package.brand.filter(|only| *only != brand) {
        let why =
            format!("package \"{}\" is for brand {}, the image for {}", package.name, other.as_str(), brand.as_str());
        return Err(Error::field("package", FieldCode::Conflict, why));
    }
    fits_image(package, image)?;
    Ok(brand)
}

/// Whether a package meets an image's demands on memory.
pub(super) fn fits_image(package: &Package, image: &Image) -> Result<()> {
    let needs = &image.requirements;
    if let Some(least) = needs.min_memory.filter(|least| package.memory < *least) {
        let why =
            format!("image \"{}\" needs at least {least} of memory, the package has {}", image.name, package.memory);
        return Err(Error::field("package", FieldCode::Conflict, why));
    }
    if let Some(most) = needs.max_memory.filter(|most| package.memory > *most) {
        let why =
            format!("image \"{}\" takes at most {most} of memory, the package has {}", image.name, package.memory);
        return Err(Error::field("package", FieldCode::Conflict, why));
    }
    Ok(())
}

/// The name with `{{shortId}}` filled in.
fn alias(request: &CreateInstance, id: InstanceId) -> String {
    let asked = request.alias.as_deref().filter(|alias| !alias.is_empty()).unwrap_or("{{shortId}}");
    asked.replace("{{shortId}}", &id.short())
}

/// What can be judged without looking at anything else.
fn check(control: &Control, request: &CreateInstance, alias: &str) -> Faults {
    let mut faults = Faults::default();
    faults.check("name", rules::check_alias(alias, control.config.alias_max));
    for (field, text) in [("package", &request.package), ("image", &request.image)] {
        if text.is_empty() {
            faults.add(field, FieldCode::Missing, "has to be given");
        }
    }
    if request.networks.len() > NICS_MAX {
        faults.check("networks", Err(format!("has more than {NICS_MAX} entries")));
    }
    for choice in &request.networks {
        faults.check("networks", choice.check());
    }
    for outcome in [
        rules::check_tags(&request.tags),
        rules::check_metadata(&request.metadata),
        rules::check_metadata(&request.internal_metadata),
    ] {
        if let Err((field, why)) = outcome {
            faults.add(field, FieldCode::Invalid, why);
        }
    }
    faults
}
