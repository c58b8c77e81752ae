//! `neso adm account …`.

use std::path::PathBuf;

use model::account::{Account, AccountKey};
use opsapi::{Client, NewAccount, NewKey};

use super::{Output, details, table};
use crate::failure::{Failure, Outcome};

/// What to do with accounts.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List accounts.
    #[command(visible_alias = "ls")]
    List,
    /// Show one account.
    Get {
        /// Login or id.
        account: String,
    },
    /// Make an account.
    Create {
        /// 3 to 32 letters, digits, `_`, `.`, `@`, `-`; starts with a letter.
        login: String,
        /// Contact.
        #[arg(long)]
        email: String,
        /// May act on every account.
        #[arg(long)]
        operator: bool,
        /// The id it had in another datacenter, whose instances `neso adm rebuild` shows.
        #[arg(long)]
        id: Option<model::id::AccountId>,
        /// Public key file to add at once.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Refuse the account's requests from now on; its instances keep running.
    Disable {
        /// Login or id.
        account: String,
    },
    /// Take the account's requests again.
    Enable {
        /// Login or id.
        account: String,
    },
    /// Give an account's instances names in DNS.
    EnableNames {
        /// Login or id.
        account: String,
    },
    /// Take an account's instances' names in DNS away.
    DisableNames {
        /// Login or id.
        account: String,
    },
    /// List an account's keys.
    Keys {
        /// Login or id.
        account: String,
    },
    /// Add an SSH public key.
    AddKey {
        /// Login or id.
        account: String,
        /// Public key file (one OpenSSH line).
        file: PathBuf,
        /// What to call it; the fingerprint when absent.
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove a key.
    RemoveKey {
        /// Login or id.
        account: String,
        /// Name or fingerprint.
        key: String,
    },
}

/// Runs it.
pub(crate) async fn run(client: &Client, output: Output, command: Command) -> Outcome {
    match command {
        Command::List => output.show(&client.accounts().await?, |accounts| listing(accounts)),
        Command::Get { account } => output.show(&client.account(&account).await?, one),
        Command::Create { login, email, operator, id, key } => {
            let text = key.as_deref().map(read_key).transpose()?;
            let account = client.create_account(&NewAccount { login, id, email, operator }).await?;
            if let Some(key) = text {
                client.add_key(&account.login, &NewKey { name: None, key }).await?;
            }
            output.show(&account, one)
        }
        Command::Disable { account } => output.show(&client.set_account_disabled(&account, true).await?, one),
        Command::Enable { account } => output.show(&client.set_account_disabled(&account, false).await?, one),
        Command::EnableNames { account } => output.show(&client.set_account_names(&account, true).await?, one),
        Command::DisableNames { account } => output.show(&client.set_account_names(&account, false).await?, one),
        Command::Keys { account } => output.show(&client.keys(&account).await?, |keys| key_listing(keys)),
        Command::AddKey { account, file, name } => {
            let key = client.add_key(&account, &NewKey { name, key: read_key(&file)? }).await?;
            output.show(&vec![key], |keys| key_listing(keys))
        }
        Command::RemoveKey { account, key } => {
            client.remove_key(&account, &key).await?;
            output.say(format!("Removed key {key} of {account}."))
        }
    }
}

/// The public key in a file; a private one is refused.
pub(crate) fn read_key(file: &std::path::Path) -> Outcome<String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::new(format!("failed to read public key `{}`: {error}", file.display())))?;
    if text.contains("PRIVATE KEY") {
        return Err(
            Failure::new(format!("`{}` is a private key", file.display())).mend("name the `.pub` file beside it")
        );
    }
    Ok(text.trim().to_owned())
}

fn listing(accounts: &[Account]) -> comfy_table::Table {
    table(
        &["login", "id", "email", "operator", "state", "created"],
        accounts.iter().map(|account| {
            vec![
                account.login.clone(),
                account.id.to_string(),
                account.profile.email.clone(),
                if account.operator { "yes" } else { "no" }.to_owned(),
                state(account).to_owned(),
                account.created_at.to_string(),
            ]
        }),
    )
}

fn state(account: &Account) -> &'static str {
    match account.disabled {
        true => "disabled",
        false => "enabled",
    }
}

fn one(account: &Account) -> comfy_table::Table {
    details(&[
        ("login", account.login.clone()),
        ("id", account.id.to_string()),
        ("email", account.profile.email.clone()),
        ("operator", account.operator.to_string()),
        ("state", state(account).to_owned()),
        ("created", account.created_at.to_string()),
        ("updated", account.updated_at.to_string()),
    ])
}

fn key_listing(keys: &[AccountKey]) -> comfy_table::Table {
    table(
        &["name", "md5", "sha256", "added"],
        keys.iter().map(|key| {
            vec![
                key.name.clone(),
                key.fingerprint_md5.clone(),
                key.fingerprint_sha256.clone(),
                key.created_at.to_string(),
            ]
        }),
    )
}
