//! A sick machine does not lead the store: its member hands over to one that is better off.
//!
//! A member that is dead, frozen or cut off loses the lead by itself. One that is alive and slow does not, and everybody's commits wait for it. So each
//! headnode looks at its own measurements, as they are now, and asks its own member to let go. Nobody else may: who sees only slow commits cannot tell whose
//! fault they are. The lead does not come back when the machine is well again; there is no reason to.

use std::{sync::Arc, time::Duration};

use control::{
    Control,
    headnodes::{self, Measure, members::MembersError},
};
use flow::loops::Loop;
use futures_util::future::join_all;
use model::headnode::{Sickness, successor};
use store::BoxFuture;

use crate::members::keep::{Keeper, failed, status};

/// How often this headnode looks whether it is sick: as often as it beats.
const PERIOD: Duration = Duration::from_secs(1);

/// The loop.
pub struct HandOver<M> {
    keeper: Arc<Keeper>,
    control: Control,
    measure: M,
}

impl<M: Measure> HandOver<M> {
    /// For this headnode.
    pub fn new(keeper: Arc<Keeper>, control: Control, measure: M) -> Self {
        Self { keeper, control, measure }
    }

    async fn hand_over(&self) -> Result<String, MembersError> {
        let Some(sickness) = headnodes::sickness(&self.control, &self.measure) else { return Ok(String::new()) };
        if self.keeper.in_members()?.is_none() {
            return Ok(String::new());
        }
        match self.to_whom(&sickness).await? {
            Some((name, endpoint, id)) => {
                let (admin, _) = self.keeper.admin()?;
                tracing::warn!(why = sickness.why, to = name, "this machine is sick; its member hands over the lead");
                admin.move_leader(&endpoint, id).await.map_err(failed("hand over the lead"))?;
                Ok(format!("this machine is sick, and {name} leads the store now: {}", sickness.why))
            }
            None => Ok(String::new()),
        }
    }

    /// Where our member leads and somebody is better off: that one's name, where ours is asked to let go, and that one's number.
    async fn to_whom(&self, sickness: &Sickness) -> Result<Option<(String, String, u64)>, MembersError> {
        let (admin, _) = self.keeper.admin()?;
        let known = admin.members_as_known().await.map_err(failed("list the store's members"))?;
        let own = self.keeper.server().to_string();
        let Some(own) = known.iter().find(|member| member.name == own) else { return Ok(None) };
        let leads = status(&admin, own).await.is_ok_and(|status| status.leader == status.id);
        let Some(endpoint) = own.clients.first().filter(|_| leads) else { return Ok(None) };
        // Whoever has no vote, or does not answer, cannot lead.
        let voting: Vec<_> = known.iter().filter(|member| !member.learner && member.id != own.id).collect();
        let said = join_all(voting.iter().map(|member| status(&admin, member))).await;
        let answers: Vec<_> =
            voting.iter().zip(said).filter(|(_, said)| said.is_ok()).map(|(member, _)| member).collect();
        let mut others = headnodes::successors(&self.control);
        others.retain(|one| answers.iter().any(|member| member.name == one.id.to_string()));
        let to = successor(sickness, &others).map(|id| id.to_string());
        let to = to.and_then(|name| answers.iter().find(|member| member.name == name));
        Ok(to.map(|to| (to.name.clone(), endpoint.clone(), to.id)))
    }
}

impl<M: Measure> Loop for HandOver<M> {
    fn name(&self) -> &'static str {
        "hand over the store's lead"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async { Ok(self.hand_over().await?) })
    }
}
