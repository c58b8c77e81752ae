//! Questions about placement, and the client's verbs for them.

use model::placement::{Explanation, explain::Unplaced};
use serde::{Deserialize, Serialize};

use crate::{Client, Error};

/// Would so many of these fit, and where? Nothing is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementQuestion {
    /// Whose they would be, by id or login; nobody's when absent, so that affinity and spread see no neighbours.
    #[serde(default)]
    pub account: Option<String>,
    /// Package by id or name.
    pub package: String,
    /// Networks by id or name.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Rules of affinity.
    #[serde(default)]
    pub affinity: Vec<String>,
    /// How many; one when absent.
    #[serde(default)]
    pub count: Option<u32>,
}

impl Client {
    /// Takes a decision apart, machine by machine.
    pub async fn explain_placement(&self, question: &PlacementQuestion) -> Result<Explanation, Error> {
        self.post("/v1/placement/explain", question).await
    }

    /// The last requests that found no machine, the newest first.
    pub async fn unplaced(&self) -> Result<Vec<Unplaced>, Error> {
        self.get("/v1/placement/unplaced").await
    }
}
