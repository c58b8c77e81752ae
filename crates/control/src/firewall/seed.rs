//! The global rules a datacenter begins with: everybody may be pinged.
//!
//! They are made once. An operator who changes or deletes them has decided, and no restart brings them back; a claim remembers.

use model::{
    firewall::{FirewallRule, Language, Rule},
    id::FirewallRuleId,
};
use store::Transaction;

use crate::{
    Control, Error, Result,
    tables::{CLAIMS, Claim, FIREWALL_RULES},
};

/// Their texts: echo requests of both families.
const RULES: [&str; 2] =
    ["FROM any TO all vms ALLOW icmp TYPE 8 CODE 0", "FROM any TO all vms ALLOW icmp6 TYPE 128 CODE 0"];
/// The claim that says they were made.
const CLAIM: &str = "seeded/firewall";

/// Makes the first global rules, unless that was done before.
pub async fn seed(control: &Control) -> Result<()> {
    let now = control.now();
    let seeds: Vec<FirewallRule> = RULES
        .iter()
        .filter_map(|text| Rule::parse_as(text, Language::CURRENT).ok())
        .map(|rule| FirewallRule {
            id: FirewallRuleId::from_random(base::random::wide_bits()),
            owner: None,
            rule,
            enabled: true,
            log: false,
            description: Some("Everybody may ping instances".to_owned()),
            created_by: Some("neso".to_owned()),
            version: 1,
            created_at: now,
            updated_at: now,
        })
        .collect();
    control
        .store
        .update(|snapshot| {
            if snapshot.get(&CLAIMS, CLAIM).is_some() {
                return Ok((Transaction::new(), ()));
            }
            let claim = Claim { name: CLAIM.to_owned(), holder: "firewall".to_owned() };
            let transaction = Transaction::new().create(&CLAIMS, claim);
            let transaction =
                seeds.iter().fold(transaction, |transaction, rule| transaction.create(&FIREWALL_RULES, rule.clone()));
            Ok::<_, Error>((transaction, ()))
        })
        .await?;
    Ok(())
}
