//! Packages: the sizes operators offer.

use std::{collections::BTreeMap, sync::Arc};

use model::{
    id::PackageId,
    instance::Brand,
    package::Package,
    rules,
    server::Trait,
    target::Limits,
    unit::{CpuCap, CpuShares, Mib},
};
use store::{Entry, Snapshot, Transaction};

use crate::{
    Control, Error, Result,
    error::Faults,
    tables::{CLAIMS, Claim, PACKAGES},
};

/// What a new package is made of; see [`Package`] for the fields.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct NewPackage {
    /// Chosen here when it is `None`; operators keep ids when they move packages between datacenters.
    pub id: Option<PackageId>,
    pub name: String,
    pub version: String,
    pub group: Option<String>,
    pub description: Option<String>,
    pub memory: Mib,
    /// Twice the memory unless given.
    pub swap: Option<Mib>,
    pub disk: Mib,
    pub max_processes: u32,
    pub vcpus: u32,
    pub cpu_cap: Option<CpuCap>,
    pub cpu_shares: CpuShares,
    /// See [`Package::traits`].
    pub traits: BTreeMap<String, Trait>,
    pub brand: Option<Brand>,
}

/// Which packages to list; `None` is any. Names may have `*`.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct PackageFilter {
    pub name: Option<String>,
    pub memory: Option<u64>,
    pub disk: Option<u64>,
    pub swap: Option<u64>,
    pub max_processes: Option<u32>,
    pub vcpus: Option<u32>,
    pub version: Option<String>,
    pub group: Option<String>,
    /// Inactive ones too.
    pub inactive: bool,
}

/// Makes a package.
pub async fn create(control: &Control, new: NewPackage) -> Result<Arc<Entry<Package>>> {
    check(&new)?;
    let id = new.id.unwrap_or_else(|| PackageId::from_random(base::random::wide_bits()));
    let package = Package {
        id,
        name: new.name,
        version: new.version,
        group: new.group,
        description: new.description,
        memory: new.memory,
        swap: new.swap.unwrap_or(Mib(new.memory.0 * 2)),
        disk: new.disk,
        max_processes: new.max_processes,
        vcpus: new.vcpus,
        cpu_cap: new.cpu_cap,
        cpu_shares: new.cpu_shares,
        traits: new.traits,
        brand: new.brand,
        active: true,
        created_at: control.now(),
    };
    control
        .store
        .update(|snapshot| {
            let claim = Claim { name: Claim::package(&package.name), holder: id.to_string() };
            if snapshot.get(&CLAIMS, &claim.name).is_some() {
                return Err(Error::AlreadyExists { what: "package", name: package.name.clone() });
            }
            if snapshot.get(&PACKAGES, &id.to_string()).is_some() {
                return Err(Error::AlreadyExists { what: "package", name: id.to_string() });
            }
            Ok((Transaction::new().create(&CLAIMS, claim).create(&PACKAGES, package.clone()), ()))
        })
        .await?;
    get(control, &id.to_string())
}

/// The package with an id, or the active one with a name.
pub fn get(control: &Control, id_or_name: &str) -> Result<Arc<Entry<Package>>> {
    look_up(&control.snapshot(), id_or_name).ok_or_else(|| Error::not_found("package", id_or_name))
}

/// Packages that pass `filter`, by name.
pub fn list(control: &Control, filter: &PackageFilter) -> Vec<Arc<Entry<Package>>> {
    let mut packages: Vec<_> = control.snapshot().scan(&PACKAGES).filter(|package| passes(package, filter)).collect();
    packages.sort_by(|one, other| one.name.cmp(&other.name));
    packages
}

/// Offers a package, or hides it; instances that have it keep it.
pub async fn set_active(control: &Control, id_or_name: &str, active: bool) -> Result<Arc<Entry<Package>>> {
    let (_, id) = control
        .store
        .update(|snapshot| {
            let entry = look_up(snapshot, id_or_name).ok_or_else(|| Error::not_found("package", id_or_name))?;
            let name = Claim::package(&entry.name);
            let claimed = snapshot.get(&CLAIMS, &name);
            let mut transaction = Transaction::new();
            match (active, claimed) {
                (true, Some(claim)) if claim.holder != entry.id.to_string() => {
                    return Err(Error::AlreadyExists { what: "package", name: entry.name.clone() });
                }
                (true, None) => {
                    transaction = transaction.create(&CLAIMS, Claim { name, holder: entry.id.to_string() });
                }
                (false, Some(claim)) if claim.holder == entry.id.to_string() => {
                    transaction = transaction.delete(&CLAIMS, &claim);
                }
                _ => {}
            }
            let package = Package { active, ..entry.value.clone() };
            Ok((transaction.replace(&PACKAGES, &entry, package), entry.id))
        })
        .await?;
    get(control, &id.to_string())
}

/// The package with an id, or the active one with a name.
pub(crate) fn look_up(snapshot: &Snapshot, id_or_name: &str) -> Option<Arc<Entry<Package>>> {
    if let Ok(id) = id_or_name.parse::<PackageId>() {
        return snapshot.get(&PACKAGES, &id.to_string());
    }
    let claim = snapshot.get(&CLAIMS, &Claim::package(id_or_name))?;
    snapshot.get(&PACKAGES, &claim.holder)
}

/// What the kernel enforces for instances of `package`.
pub(crate) fn limits(package: &Package) -> Limits {
    Limits {
        memory: package.memory,
        swap: package.swap,
        disk: package.disk,
        max_processes: package.max_processes,
        cpu_cap: package.cpu_cap,
        cpu_shares: package.cpu_shares,
    }
}

fn check(new: &NewPackage) -> Result<()> {
    let mut faults = Faults::default();
    faults.check("name", rules::check_name(&new.name));
    if new.name.parse::<PackageId>().is_ok() {
        faults.check("name", Err("looks like an id; give a name".to_owned()));
    }
    faults.check("version", rules::check_name(&new.version));
    if new.memory.0 < 16 {
        faults.check("memory", Err("must be at least 16 MiB".to_owned()));
    }
    if new.swap.is_some_and(|swap| swap < new.memory) {
        faults.check("swap", Err(format!("counts memory and swap together, so it is at least {}", new.memory)));
    }
    if new.disk.0 < 16 {
        faults.check("disk", Err("must be at least 16 MiB".to_owned()));
    }
    if new.max_processes < 16 {
        faults.check("lwps", Err("must be at least 16".to_owned()));
    }
    if new.cpu_cap.is_some_and(|cap| cap.0 == 0) {
        faults.check("cpu_cap", Err("must be at least 1 percent; leave it out for no cap".to_owned()));
    }
    if !(1..=10_000).contains(&new.cpu_shares.0) {
        faults.check("cpu_shares", Err("must be between 1 and 10,000; 100 is ordinary".to_owned()));
    }
    faults.finish()
}

fn passes(package: &Package, filter: &PackageFilter) -> bool {
    (package.active || filter.inactive)
        && filter.name.as_ref().is_none_or(|pattern| matches_pattern(pattern, &package.name))
        && filter.memory.is_none_or(|memory| package.memory == Mib(memory))
        && filter.disk.is_none_or(|disk| package.disk == Mib(disk))
        && filter.swap.is_none_or(|swap| package.swap == Mib(swap))
        && filter.max_processes.is_none_or(|most| package.max_processes == most)
        && filter.vcpus.is_none_or(|vcpus| package.vcpus == vcpus)
        && filter.version.as_ref().is_none_or(|version| package.version == *version)
        && filter.group.as_ref().is_none_or(|group| package.group.as_ref() == Some(group))
}

/// Whether `text` matches `pattern`, in which `*` stands for any run of characters. Linear in both lengths per star.
pub(crate) fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::matches_pattern;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("g1-small", "g1-small", true),
            ("g1-small", "g1-smaller", false),
            ("*", "", true),
            ("g1-*", "g1-small", true),
            ("*small", "g1-small", true),
            ("g*s*l", "g1-small", true),
            ("g*x*l", "g1-small", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches_pattern(pattern, text), expected, "{pattern} on {text}");
        }
    }
}
