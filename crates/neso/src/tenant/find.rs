//! From what a person types (an id, the beginning of one, a name) to the one thing it means.

use cloudapi::{
    client::MachineFilter,
    types::{Image, Machine, Network, NetworkChoice, Package},
};
use model::id::InstanceId;

use super::Tenant;
use crate::failure::{Failure, Outcome};

impl Tenant {
    pub(super) async fn find_id(&self, instance: &str) -> Outcome<InstanceId> {
        match instance.parse() {
            Ok(id) => Ok(id),
            Err(_) => Ok(self.find_one(instance).await?.id),
        }
    }

    /// An instance by id, name or short id.
    pub(super) async fn find_one(&self, instance: &str) -> Outcome<Machine<'static>> {
        if let Ok(id) = instance.parse() {
            return Ok(self.client.machine(id).await?);
        }
        let by_name = self.client.machines(&MachineFilter::default().with("name", instance)).await?;
        if let Some(machine) = by_name.into_iter().next() {
            return Ok(machine);
        }
        let all = self.client.machines(&MachineFilter::default()).await?;
        only("instance", instance, all, |machine| (machine.id.to_string(), machine.name.to_string()))
    }

    /// An image by id, short id, name@version, or name (the newest).
    pub(super) async fn find_image(&self, image: &str) -> Outcome<Image<'static>> {
        if let Ok(id) = image.parse() {
            return Ok(self.client.image(id).await?);
        }
        let (name, version) = match image.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (image, None),
        };
        let images = self.client.images(&[("state", "active")]).await?;
        let named =
            images.iter().filter(|found| found.name == name && version.is_none_or(|wanted| found.version == wanted));
        let newest =
            named.max_by(|one, other| (one.published_at, &one.version).cmp(&(other.published_at, &other.version)));
        match newest {
            Some(newest) => Ok(newest.clone()),
            None => only("image", image, images, |found| {
                (found.id.to_string(), format!("{}@{}", found.name, found.version))
            }),
        }
    }

    /// A package by id, short id or name.
    pub(super) async fn find_package(&self, package: &str) -> Outcome<Package<'static>> {
        let mut packages = self.client.packages(&[]).await?;
        match packages.iter().position(|found| found.name == package) {
            Some(at) => Ok(packages.swap_remove(at)),
            None => only("package", package, packages, |found| (found.id.to_string(), found.name.to_string())),
        }
    }

    /// A network by id, short id or name.
    pub(super) async fn find_network(&self, network: &str) -> Outcome<Network<'static>> {
        let mut networks = self.client.networks().await?;
        match networks.iter().position(|found| found.name == network) {
            Some(at) => Ok(networks.swap_remove(at)),
            None => only("network", network, networks, |found| (found.id.to_string(), found.name.to_string())),
        }
    }

    /// The id of an image, see [`Self::find_image`].
    pub(super) async fn image(&self, image: &str) -> Outcome<String> {
        Ok(self.find_image(image).await?.id.to_string())
    }

    /// The id of a package, see [`Self::find_package`].
    pub(super) async fn package(&self, package: &str) -> Outcome<String> {
        Ok(self.find_package(package).await?.id.to_string())
    }

    /// The network of `NETWORK[=IP,…]`, and what to ask for on it.
    pub(super) async fn choice(&self, asked: &str) -> Outcome<(model::id::NetworkId, NetworkChoice)> {
        let (network, ipv4_ips, ipv6_ips) = super::wishes::wish(asked)?;
        let id = self.find_network(network).await?.id;
        let choice = match ipv4_ips.is_empty() && ipv6_ips.is_empty() {
            true => NetworkChoice::Id(id),
            false => NetworkChoice::Object { ipv4_uuid: id, ipv4_ips, ipv6_ips, primary: None },
        };
        Ok((id, choice))
    }
}

/// Most candidates that are named when several things fit.
const NAMED_MAX: usize = 8;

/// The one thing whose id begins with `wanted`, or why there is none. `named` gives id and name.
fn only<T>(what: &str, wanted: &str, all: Vec<T>, named: impl Fn(&T) -> (String, String)) -> Outcome<T> {
    let mut fitting: Vec<T> = match wanted {
        "" => Vec::new(),
        wanted => all.into_iter().filter(|one| named(one).0.starts_with(wanted)).collect(),
    };
    match fitting.len() {
        0 => Err(Failure::new(format!("there is no {what} \"{wanted}\""))
            .mend(format!("`neso {what} list` shows what there is; a name, an id or the beginning of an id will do"))),
        1 => Ok(fitting.swap_remove(0)),
        many => {
            let words = |one: &T| {
                let (id, name) = named(one);
                format!("{id} ({name})")
            };
            let mut list: Vec<String> = fitting.iter().take(NAMED_MAX).map(words).collect();
            if many > NAMED_MAX {
                list.push("…".to_owned());
            }
            Err(Failure::new(format!("{many} {what}s fit \"{wanted}\""))
                .mend(format!("say which: {}", list.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_twice_or_never_is_refused() {
        let named = |one: &&str| ((*one).to_owned(), "name".to_owned());
        assert_eq!(only("image", "ab", vec!["abc", "cd"], named).unwrap(), "abc");
        let twice = only("image", "a", vec!["ab", "ac"], named).unwrap_err();
        assert!(twice.message.contains("2 images fit \"a\""));
        assert_eq!(twice.remedy.unwrap(), "say which: ab (name), ac (name)");
        for (wanted, all) in [("a", vec![]), ("", vec!["ab"])] {
            let never = only("image", wanted, all, named).unwrap_err();
            assert!(never.message.contains("no image") && never.remedy.unwrap().contains("`neso image list`"));
        }
    }
}
