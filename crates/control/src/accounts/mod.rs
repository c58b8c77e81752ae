//! Accounts: tenants and operators.

pub mod keys;

use std::sync::Arc;

use model::{
    account::{Account, Profile},
    id::{AccountId, NetworkId},
    rules,
};
use store::{Entry, Transaction};

use crate::{
    Control, Error, Result, Scope,
    error::Faults,
    fabrics, networks,
    tables::{ACCOUNTS, CLAIMS, Claim},
};

/// Bytes of one text of a profile.
const PROFILE_TEXT_MAX_BYTES: usize = 1_024;

/// What a new account is made of.
#[derive(Debug, Clone, Default)]
pub struct NewAccount {
    /// The id it had in another datacenter whose instances are known again here; drawn when absent.
    pub id: Option<AccountId>,
    /// See [`Account::login`].
    pub login: String,
    /// See [`Account::profile`].
    pub profile: Profile,
    /// See [`Account::operator`].
    pub operator: bool,
}

/// What changes in a profile; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the profile")]
pub struct ProfileChange {
    pub email: Option<String>,
    pub company_name: Option<String>,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub address: Option<String>,
    pub postal_code: Option<String>,
    pub city: Option<String>,
    pub state: Option<String>,
    pub country: Option<String>,
    pub phone: Option<String>,
    pub names_enabled: Option<bool>,
}

/// Makes an account.
pub async fn create(control: &Control, new: NewAccount) -> Result<Arc<Entry<Account>>> {
    let mut faults = Faults::default();
    faults.check("login", rules::check_login(&new.login));
    check_profile(&mut faults, &new.profile);
    faults.finish()?;
    let (id, now) = (new.id.unwrap_or_else(|| AccountId::from_random(base::random::wide_bits())), control.now());
    let account = Account {
        id,
        login: new.login.clone(),
        profile: new.profile,
        operator: new.operator,
        disabled: false,
        names_enabled: control.config.names.new_accounts,
        default_network: None,
        created_at: now,
        updated_at: now,
    };
    control
        .store
        .update(|snapshot| {
            let claim = Claim { name: Claim::login(&new.login), holder: id.to_string() };
            if snapshot.get(&CLAIMS, &claim.name).is_some() {
                return Err(Error::AlreadyExists { what: "account", name: new.login.clone() });
            }
            if snapshot.get(&ACCOUNTS, &id.to_string()).is_some() {
                return Err(Error::AlreadyExists { what: "account", name: id.to_string() });
            }
            let mut account = account.clone();
            let first = match new.id {
                // Its networks come with its instances.
                Some(_) => Transaction::new(),
                None => fabrics::first(&control.config.fabric, snapshot, &mut account, now)?,
            };
            Ok((first.create(&CLAIMS, claim).create(&ACCOUNTS, account), ()))
        })
        .await?;
    get(control, id)
}

/// The account with an id.
pub fn get(control: &Control, id: AccountId) -> Result<Arc<Entry<Account>>> {
    control.snapshot().get(&ACCOUNTS, &id.to_string()).ok_or_else(|| Error::not_found("account", id))
}

/// The account with a login.
pub fn by_login(control: &Control, login: &str) -> Result<Arc<Entry<Account>>> {
    let snapshot = control.snapshot();
    snapshot
        .get(&CLAIMS, &Claim::login(login))
        .and_then(|claim| snapshot.get(&ACCOUNTS, &claim.holder))
        .ok_or_else(|| Error::not_found("account", login))
}

/// All accounts, by login.
pub fn list(control: &Control) -> Vec<Arc<Entry<Account>>> {
    let mut accounts: Vec<_> = control.snapshot().scan(&ACCOUNTS).collect();
    accounts.sort_by(|one, other| one.login.cmp(&other.login));
    accounts
}

/// Changes the profile.
pub async fn update(control: &Control, id: AccountId, change: ProfileChange) -> Result<Arc<Entry<Account>>> {
    modify(control, id, |account| {
        let profile = &mut account.profile;
        if let Some(email) = &change.email {
            profile.email.clone_from(email);
        }
        let texts = [
            (&change.company_name, &mut profile.company_name),
            (&change.first_name, &mut profile.first_name),
            (&change.last_name, &mut profile.last_name),
            (&change.address, &mut profile.address),
            (&change.postal_code, &mut profile.postal_code),
            (&change.city, &mut profile.city),
            (&change.state, &mut profile.state),
            (&change.country, &mut profile.country),
            (&change.phone, &mut profile.phone),
        ];
        for (new, field) in texts {
            if new.is_some() {
                field.clone_from(new);
            }
        }
        account.names_enabled = change.names_enabled.unwrap_or(account.names_enabled);
        let mut faults = Faults::default();
        check_profile(&mut faults, &account.profile);
        faults.finish()
    })
    .await
}

/// Disables or enables an account: its requests are refused, its instances keep running.
pub async fn set_disabled(control: &Control, id: AccountId, disabled: bool) -> Result<Arc<Entry<Account>>> {
    modify(control, id, |account| {
        account.disabled = disabled;
        Ok(())
    })
    .await
}

/// Chooses the network new instances get; `None` goes back to the datacenter's defaults.
pub async fn set_config(
    control: &Control,
    id: AccountId,
    default_network: Option<NetworkId>,
) -> Result<Arc<Entry<Account>>> {
    if let Some(network) = default_network {
        networks::get(control, Scope::Account(id), network)
            .map_err(|_| Error::invalid("default_network", format!("network {network} does not exist")))?;
    }
    modify(control, id, |account| {
        account.default_network = default_network;
        Ok(())
    })
    .await
}

async fn modify(
    control: &Control,
    id: AccountId,
    change: impl Fn(&mut Account) -> Result<()>,
) -> Result<Arc<Entry<Account>>> {
    let now = control.now();
    control
        .update(|snapshot| {
            let entry = snapshot.get(&ACCOUNTS, &id.to_string()).ok_or_else(|| Error::not_found("account", id))?;
            let mut account = entry.value.clone();
            change(&mut account)?;
            account.updated_at = now;
            Ok::<_, Error>((Transaction::new().replace(&ACCOUNTS, &entry, account), ()))
        })
        .await?;
    get(control, id)
}

fn check_profile(faults: &mut Faults, profile: &Profile) {
    let texts = [
        ("email", Some(&profile.email)),
        ("companyName", profile.company_name.as_ref()),
        ("firstName", profile.first_name.as_ref()),
        ("lastName", profile.last_name.as_ref()),
        ("address", profile.address.as_ref()),
        ("postalCode", profile.postal_code.as_ref()),
        ("city", profile.city.as_ref()),
        ("state", profile.state.as_ref()),
        ("country", profile.country.as_ref()),
        ("phone", profile.phone.as_ref()),
    ];
    for (field, text) in texts {
        if text.is_some_and(|text| text.len() > PROFILE_TEXT_MAX_BYTES) {
            faults.check(field, Err(format!("is longer than {PROFILE_TEXT_MAX_BYTES} bytes")));
        }
    }
    // An empty address is an account that never said one: operators make such accounts.
    if !profile.email.is_empty() && !profile.email.contains('@') {
        faults.check("email", Err(format!("\"{}\" is no mail address", profile.email)));
    }
}
