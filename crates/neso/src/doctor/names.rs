//! Check of the name server on this headnode.

use opsapi::{Client, names::NameServerView};

use super::Finding;
use crate::failure::Outcome;

/// Whether names are answered for, everywhere they should be.
pub(super) async fn check(client: &Client) -> Outcome<Finding> {
    Ok(finding(&client.name_server().await?))
}

fn finding(view: &NameServerView) -> Finding {
    if !view.enabled {
        return Finding::ok("names", "switched off in the settings".to_owned());
    }
    let taken: Vec<String> =
        view.refused.iter().map(|refused| format!("{} ({})", refused.address, refused.why)).collect();
    let remedy = "free the port, or say others as `names.listen` in the settings; then `neso down --keep-instances` and `neso up`";
    match (&view.error, taken.as_slice()) {
        (None, []) if view.addresses.is_empty() => {
            Finding::warning("names", "the name server is still starting", "look again")
        }
        (None, []) => {
            let addresses: Vec<String> = view.addresses.iter().map(ToString::to_string).collect();
            Finding::ok("names", format!("answered at {}", addresses.join(", ")))
        }
        (None, taken) => Finding::warning("names", format!("not answered at {}", taken.join(", ")), remedy),
        (Some(error), []) => {
            Finding::warning("names", format!("not answered: {error}"), "look at `[names]` in the settings")
        }
        (Some(error), taken) => {
            Finding::warning("names", format!("not answered: {error}: {}", taken.join(", ")), remedy)
        }
    }
}
