//! `neso account|key|image|package|network`: what a tenant has or may use besides instances, over CloudAPI.
//!
//! One small enum of verbs per noun; each verb is one request and one table.

use std::path::PathBuf;

use cloudapi::types::{AccountUpdate, CreateKey, ImageUpdate};

use super::{Tenant, pair, show};
use crate::{
    adm::Output,
    failure::{Failure, Outcome},
    image,
};

/// A tenant's noun with its verbs.
#[derive(Debug, clap::Args)]
pub(crate) struct Noun<V: clap::Subcommand> {
    /// Profile; by default the environment (TRITON_URL …), then triton's current one.
    #[arg(short, long, global = true, env = "TRITON_PROFILE")]
    profile: Option<String>,
    /// Print JSON.
    #[arg(short, long, global = true)]
    json: bool,
    #[command(subcommand)]
    pub(crate) verb: V,
}

impl<V: clap::Subcommand> Noun<V> {
    async fn open(&self) -> Outcome<(Tenant, Output)> {
        Ok((Tenant::of_profile(self.profile.as_deref()).await?, Output { json: self.json }))
    }
}

/// What to do with the account.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Account {
    /// Show the account.
    Get,
    /// Change the account.
    Update {
        /// `field=value`: email, companyName, firstName, lastName, address, postalCode, city, state, country, phone,
        /// triton_cns_enabled.
        #[arg(required = true)]
        changes: Vec<String>,
    },
}

/// Runs it.
pub(crate) async fn account(noun: Noun<Account>) -> Outcome {
    let (tenant, output) = noun.open().await?;
    match noun.verb {
        Account::Get => show::account(output, &tenant.client.account().await?),
        Account::Update { changes } => {
            show::account(output, &tenant.client.account_update(&account_update(&changes)?).await?)
        }
    }
}

fn account_update(changes: &[String]) -> Outcome<AccountUpdate> {
    let mut update = AccountUpdate::default();
    for change in changes {
        let (field, value) = pair(change)?;
        let target = match field.as_str() {
            "email" => &mut update.email,
            "companyName" => &mut update.company_name,
            "firstName" => &mut update.first_name,
            "lastName" => &mut update.last_name,
            "address" => &mut update.address,
            "postalCode" => &mut update.postal_code,
            "city" => &mut update.city,
            "state" => &mut update.state,
            "country" => &mut update.country,
            "phone" => &mut update.phone,
            "triton_cns_enabled" => {
                let flag = value
                    .parse()
                    .map_err(|_| Failure::new(format!("triton_cns_enabled must be true or false, not \"{value}\"")))?;
                update.triton_cns_enabled = Some(flag);
                continue;
            }
            other => {
                return Err(Failure::new(format!("an account has no field \"{other}\""))
                    .mend("`neso account update --help` lists the fields"));
            }
        };
        *target = Some(value);
    }
    Ok(update)
}

/// What to do with keys.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Key {
    /// List the account's keys.
    #[command(visible_alias = "ls")]
    List,
    /// Show one key.
    Get {
        /// Name or fingerprint.
        key: String,
    },
    /// Add an SSH public key.
    Add {
        /// Public key file (one OpenSSH line).
        file: PathBuf,
        /// What to call it; the fingerprint when absent.
        #[arg(long, short)]
        name: Option<String>,
    },
    /// Remove a key.
    #[command(visible_alias = "rm")]
    Delete {
        /// Name or fingerprint.
        key: String,
    },
}

/// Runs it.
pub(crate) async fn key(noun: Noun<Key>) -> Outcome {
    let (tenant, output) = noun.open().await?;
    match noun.verb {
        Key::List => show::keys(output, &tenant.client.keys().await?),
        Key::Get { key } => show::key(output, &tenant.client.key(&key).await?),
        Key::Add { file, name } => {
            let new = CreateKey { name, key: crate::adm::accounts::read_key(&file)? };
            show::key(output, &tenant.client.key_create(&new).await?)
        }
        Key::Delete { key } => {
            tenant.client.key_delete(&key).await?;
            output.say(format!("Removed key {key}."))
        }
    }
}

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Image {
    /// List images that can be used.
    #[command(visible_alias = "ls")]
    List {
        /// Filters as in CloudAPI, e.g. `name=debian*`, `state=all`.
        filters: Vec<String>,
    },
    /// Show one image.
    Get {
        /// Id, short id, name, or name@version.
        image: String,
    },
    /// Change what is said of an image of one's own.
    Update {
        /// Id, short id, name, or name@version.
        image: String,
        /// `field=value`: name, version, description, homepage, eula.
        #[arg(required = true)]
        changes: Vec<String>,
    },
    /// Delete an image of one's own that no instance uses.
    #[command(visible_alias = "rm")]
    Delete {
        /// Id, short id, name, or name@version.
        image: String,
    },
    #[command(flatten)]
    Build(image::Command),
}

/// Runs it.
pub(crate) async fn image(noun: Noun<Image>) -> Outcome {
    // Building needs no datacenter.
    if let Image::Build(command) = noun.verb {
        return image::run(command);
    }
    let (tenant, output) = noun.open().await?;
    match noun.verb {
        Image::List { filters } => {
            let filters = known(&filters, "images", &["name", "os", "version", "public", "state", "owner", "type"])?;
            show::images(output, &tenant.client.images(&borrowed(&filters)).await?)
        }
        Image::Get { image } => show::image(output, &tenant.find_image(&image).await?),
        Image::Update { image, changes } => {
            let change = image_update(&changes)?;
            let id = tenant.find_image(&image).await?.id;
            show::image(output, &tenant.client.image_update(id, &change).await?)
        }
        Image::Delete { image } => {
            let found = tenant.find_image(&image).await?;
            tenant.client.image_delete(found.id).await?;
            output.say(format!("Deleted image {}@{} ({}).", found.name, found.version, found.id))
        }
        Image::Build(_) => Ok(()),
    }
}

fn image_update(changes: &[String]) -> Outcome<ImageUpdate> {
    let mut update = ImageUpdate::default();
    for change in changes {
        let (field, value) = pair(change)?;
        let target = match field.as_str() {
            "name" => &mut update.name,
            "version" => &mut update.version,
            "description" => &mut update.description,
            "homepage" => &mut update.homepage,
            "eula" => &mut update.eula,
            other => {
                return Err(Failure::new(format!("\"{other}\" of an image cannot be changed"))
                    .mend("`neso image update --help` lists what can"));
            }
        };
        *target = Some(value);
    }
    Ok(update)
}

/// What to do with packages.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Package {
    /// List packages that can be used.
    #[command(visible_alias = "ls")]
    List {
        /// Filters as in CloudAPI, e.g. `name=g1-*`, `memory=256`.
        filters: Vec<String>,
    },
    /// Show one package.
    Get {
        /// Id, short id or name.
        package: String,
    },
}

/// Runs it.
pub(crate) async fn package(noun: Noun<Package>) -> Outcome {
    let (tenant, output) = noun.open().await?;
    match noun.verb {
        Package::List { filters } => {
            let fields = ["name", "memory", "disk", "swap", "lwps", "vcpus", "version", "group", "flexible_disk"];
            let filters = known(&filters, "packages", &fields)?;
            show::packages(output, &tenant.client.packages(&borrowed(&filters)).await?)
        }
        Package::Get { package } => show::package(output, &tenant.find_package(&package).await?),
    }
}

/// What to do with networks.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Network {
    /// List networks that can be used.
    #[command(visible_alias = "ls")]
    List,
    /// Show one network.
    Get {
        /// Id, short id or name.
        network: String,
    },
    /// List addresses of a private network that are in use or reserved.
    Ips {
        /// Id, short id or name.
        network: String,
    },
}

/// Runs it.
pub(crate) async fn network(noun: Noun<Network>) -> Outcome {
    let (tenant, output) = noun.open().await?;
    match noun.verb {
        Network::List => show::networks(output, &tenant.client.networks().await?),
        Network::Get { network } => show::network(output, &tenant.find_network(&network).await?),
        Network::Ips { network } => {
            let id = tenant.find_network(&network).await?.id;
            show::addresses(output, &tenant.client.network_ips(id).await?)
        }
    }
}

/// Filters of the contract; a wrong one would otherwise just not filter.
fn known(filters: &[String], what: &str, fields: &[&str]) -> Outcome<Vec<(String, String)>> {
    let read = |text: &String| {
        let (key, value) = pair(text)?;
        match fields.contains(&key.as_str()) {
            true => Ok((key, value)),
            false => Err(Failure::new(format!("{what} cannot be filtered by \"{key}\""))
                .mend(format!("use one of {}", fields.join(", ")))),
        }
    };
    filters.iter().map(read).collect()
}

fn borrowed(filters: &[(String, String)]) -> Vec<(&str, &str)> {
    filters.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_filters_are_known_ones() {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let update = account_update(&list(&["email=a@b", "triton_cns_enabled=true"])).unwrap();
        assert_eq!((update.email.as_deref(), update.triton_cns_enabled), (Some("a@b"), Some(true)));
        assert!(account_update(&list(&["login=x"])).unwrap_err().message.contains("\"login\""));
        assert!(account_update(&list(&["triton_cns_enabled=maybe"])).is_err());
        assert!(image_update(&list(&["os=x"])).unwrap_err().message.contains("\"os\""));
        assert!(known(&list(&["foo=bar"]), "images", &["name"]).unwrap_err().remedy.unwrap().contains("name"));
    }
}
