//! Keeping a cluster: who its members are, how they are, and what is done to them now and then.
//!
//! Verbs that change the membership may be repeated: a member that is there is not added again, one that is gone is gone, one that votes has its
//! vote. So an answer that was lost is got by asking again, of another member if need be. What concerns one member alone (its state, its file) is asked
//! of that one.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    ANSWER_MAX, Endpoint, PATIENCE_MAX, Tls,
    call::{CallError, Channel, Code},
    cluster::Cluster,
    deadline,
    messages::{
        AlarmMessage, AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse, DefragmentRequest,
        DefragmentResponse, HashKvRequest, HashKvResponse, MemberAddRequest, MemberAddResponse, MemberIdRequest,
        MemberListRequest, MemberMessage, MemberUpdateRequest, MembersResponse, MoveLeaderRequest, MoveLeaderResponse,
        RangeRequest, RangeResponse, StatusRequest, StatusResponse, path,
    },
};

/// How long a member may take to write its file anew: it does nothing else meanwhile.
const DEFRAGMENT_MAX: Duration = Duration::from_secs(120);
/// The alarm etcd raises when its file has reached its quota.
const ALARM_SPACE: i32 = 1;
/// The alarm of a member whose data differ from the others'.
const ALARM_DAMAGE: i32 = 2;

/// A cluster, for those who keep it.
pub struct Admin {
    cluster: Cluster,
    tls: Option<Tls>,
}

/// A member, as the others know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub id: u64,
    /// Its name; empty until it was started once.
    pub name: String,
    /// URLs for members.
    pub peers: Vec<String>,
    /// URLs for clients; none until it was started once.
    pub clients: Vec<String>,
    /// It gets everything, and has no vote.
    pub learner: bool,
}

/// What a member says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Its number.
    pub id: u64,
    /// Of etcd.
    pub version: String,
    /// Revision of its keyspace.
    pub revision: u64,
    /// Number of the leader it sees; 0: none.
    pub leader: u64,
    /// Its file, bytes.
    pub size_bytes: u64,
    /// Of these in use, bytes.
    pub used_bytes: u64,
    /// Newest entry of its log.
    pub logged: u64,
    /// Newest entry of its log that it has applied.
    pub applied: u64,
    /// What it complains about.
    pub errors: Vec<String>,
}

/// What a member has raised an alarm about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// Its file has reached its quota: nothing can be written any more.
    Space,
    /// Its data differ from the others'.
    Damage,
    /// Something newer.
    Other(i32),
}

/// Whether a learner got its vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vote {
    /// It has it.
    Given,
    /// It is too far behind for that.
    TooFarBehind,
}

/// Why a cluster could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// An address.
    #[error("{0}")]
    Endpoint(String),
    /// Somebody refused, or nobody answered.
    #[error("{doing}")]
    Ask {
        /// What was being done.
        doing: &'static str,
        /// Why it did not work.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is not a member.
    #[error("etcd has no member with the number {0:x}")]
    Unknown(u64),
}

impl Admin {
    /// The cluster that is reached by `endpoints`.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn new(endpoints: &[String], tls: Option<Tls>) -> Result<Self, AdminError> {
        let endpoints = endpoints.iter().map(|text| Endpoint::parse(text)).collect::<Result<Vec<_>, _>>();
        let endpoints = endpoints.map_err(AdminError::Endpoint)?;
        if endpoints.is_empty() {
            return Err(AdminError::Endpoint("no endpoint of etcd is given".to_owned()));
        }
        Ok(Self { cluster: Cluster::new(endpoints, tls.clone()), tls })
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// All members.
    ///
    /// # Errors
    /// When none answers.
    pub async fn members(&self) -> Result<Vec<Listed>, AdminError> {
        // What a member knows of the membership is as old as what it has applied; a read that a majority agrees to comes first.
        let look = RangeRequest { key: Bytes::from_static(b"\0"), ..RangeRequest::default() };
        let caught_up = self.cluster.ask_any::<_, RangeResponse>(path::RANGE, &look, ANSWER_MAX, deadline()).await;
        caught_up.map_err(asking("read from etcd"))?;
        self.members_as_known().await
    }

    /// All members as one of them knows them; also without a majority.
    ///
    /// # Errors
    /// When none answers.
    pub async fn members_as_known(&self) -> Result<Vec<Listed>, AdminError> {
        let answer: MembersResponse = self
            .cluster
            .ask_any(path::MEMBER_LIST, &MemberListRequest {}, ANSWER_MAX, deadline())
            .await
            .map_err(asking("list etcd's members"))?;
        Ok(answer.members.into_iter().map(Listed::from).collect())
    }

    /// Makes room for a member at `peer`, without a vote.
    ///
    /// # Errors
    /// When the cluster refuses: it takes one learner at a time, and none while a majority is not well.
    pub async fn add_learner(&self, peer: &str) -> Result<Listed, AdminError> {
        let question = MemberAddRequest { peers: vec![peer.to_owned()], learner: true };
        let asked = self.cluster.ask_any(path::MEMBER_ADD, &question, PATIENCE_MAX, deadline()).await;
        match asked {
            Ok(MemberAddResponse { member: Some(member) }) => Ok(member.into()),
            // Our own first attempt, as a rule.
            Err(error) if says(&error, "already exist") => {
                let members = self.members().await?;
                let there = members.into_iter().find(|member| member.peers.iter().any(|known| known == peer));
                there.ok_or_else(|| asking("add a member to etcd")(error))
            }
            Ok(MemberAddResponse { member: None }) => {
                Err(AdminError::Ask { doing: "add a member to etcd", source: "its answer lacks the member".into() })
            }
            Err(error) => Err(asking("add a member to etcd")(error)),
        }
    }

    /// Gives a learner its vote.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn promote(&self, id: u64) -> Result<Vote, AdminError> {
        let asked = self
            .cluster
            .ask_any::<_, MembersResponse>(path::MEMBER_PROMOTE, &MemberIdRequest { id }, PATIENCE_MAX, deadline())
            .await;
        match asked {
            Ok(_) => Ok(Vote::Given),
            Err(error) if says(&error, "in sync with leader") => Ok(Vote::TooFarBehind),
            Err(error) if says(&error, "can only promote a learner member") => Ok(Vote::Given),
            Err(CallError::Refused { code: Code::NotFound, .. }) => Err(AdminError::Unknown(id)),
            Err(error) => Err(asking("give an etcd member its vote")(error)),
        }
    }

    /// Takes a member out. What is left of it, on its machine, is of no use to anybody.
    ///
    /// # Errors
    /// When the cluster refuses: the rest would be no majority.
    pub async fn remove(&self, id: u64) -> Result<(), AdminError> {
        let asked = self
            .cluster
            .ask_any::<_, MembersResponse>(path::MEMBER_REMOVE, &MemberIdRequest { id }, PATIENCE_MAX, deadline())
            .await;
        match asked {
            Ok(_) | Err(CallError::Refused { code: Code::NotFound, .. }) => Ok(()),
            Err(error) => Err(asking("take a member out of etcd")(error)),
        }
    }

    /// Says where a member is now, for other members.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn update(&self, id: u64, peer: &str) -> Result<(), AdminError> {
        let question = MemberUpdateRequest { id, peers: vec![peer.to_owned()] };
        let asked =
            self.cluster.ask_any::<_, MembersResponse>(path::MEMBER_UPDATE, &question, PATIENCE_MAX, deadline()).await;
        match asked {
            Ok(_) => Ok(()),
            Err(CallError::Refused { code: Code::NotFound, .. }) => Err(AdminError::Unknown(id)),
            Err(error) => Err(asking("change an etcd member's address")(error)),
        }
    }

    /// Alarms that stand, by member.
    ///
    /// # Errors
    /// When none answers.
    pub async fn alarms(&self) -> Result<Vec<(u64, Alarm)>, AdminError> {
        let question = AlarmRequest { action: 0, member: 0, alarm: 0 };
        let answer: AlarmResponse = self
            .cluster
            .ask_any(path::ALARM, &question, ANSWER_MAX, deadline())
            .await
            .map_err(asking("read etcd's alarms"))?;
        Ok(answer.alarms.iter().map(|AlarmMessage { member, alarm }| (*member, Alarm::of(*alarm))).collect())
    }

    /// Ends an alarm. etcd raises it again when its reason stands.
    ///
    /// # Errors
    /// When none answers.
    pub async fn disarm(&self, member: u64, alarm: Alarm) -> Result<(), AdminError> {
        let question = AlarmRequest { action: 2, member, alarm: alarm.number() };
        let asked = self.cluster.ask_any::<_, AlarmResponse>(path::ALARM, &question, PATIENCE_MAX, deadline()).await;
        asked.map(|_| ()).map_err(asking("end an alarm of etcd"))
    }

    /// Forgets all history before `revision`, which is etcd's own.
    ///
    /// # Errors
    /// When none does it.
    pub async fn compact(&self, revision: u64) -> Result<(), AdminError> {
        let question = CompactionRequest { revision: i64::try_from(revision).unwrap_or(i64::MAX), physical: true };
        let asked =
            self.cluster.ask_any::<_, CompactionResponse>(path::COMPACT, &question, PATIENCE_MAX, deadline()).await;
        match asked {
            Ok(_) => Ok(()),
            Err(error) if says(&error, "compacted") => Ok(()),
            Err(error) => Err(asking("compact etcd's history")(error)),
        }
    }

    /// What the member at `endpoint` says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self, endpoint: &str) -> Result<Status, AdminError> {
        let answer: StatusResponse =
            self.ask_one(endpoint, path::STATUS, &StatusRequest {}, ANSWER_MAX, "ask an etcd member how it is").await?;
        let header = answer.header.unwrap_or_default();
        Ok(Status {
            id: header.member_id,
            version: answer.version,
            revision: u64::try_from(header.revision).unwrap_or(0),
            leader: answer.leader,
            size_bytes: u64::try_from(answer.size).unwrap_or(0),
            used_bytes: u64::try_from(answer.used).unwrap_or(0),
            logged: answer.logged,
            applied: answer.applied,
            errors: answer.errors,
        })
    }

    /// Makes the member at `endpoint` write its file anew, without the room that is free in it. It answers nobody meanwhile.
    ///
    /// # Errors
    /// When it does not say that it did.
    pub async fn defragment(&self, endpoint: &str) -> Result<(), AdminError> {
        let doing = "make an etcd member's file smaller";
        let asked: Result<DefragmentResponse, _> =
            self.ask_one(endpoint, path::DEFRAGMENT, &DefragmentRequest {}, DEFRAGMENT_MAX, doing).await;
        asked.map(|_| ())
    }

    /// A number that members with the same keys, values and history up to `revision` (etcd's own) share; with the revision their history begins at.
    ///
    /// # Errors
    /// When it does not answer, or has not come so far.
    pub async fn hash(&self, endpoint: &str, revision: u64) -> Result<(u32, u64), AdminError> {
        let question = HashKvRequest { revision: i64::try_from(revision).unwrap_or(i64::MAX) };
        let answer: HashKvResponse =
            self.ask_one(endpoint, path::HASH_KV, &question, PATIENCE_MAX, "ask an etcd member for its hash").await?;
        Ok((answer.hash, u64::try_from(answer.compacted).unwrap_or(0)))
    }

    /// Makes `to` the leader; asked of the one that leads now.
    ///
    /// # Errors
    /// When it does not lead, or nothing comes of it in time.
    pub async fn move_leader(&self, leader: &str, to: u64) -> Result<(), AdminError> {
        let question = MoveLeaderRequest { target: to };
        let asked: Result<MoveLeaderResponse, _> =
            self.ask_one(leader, path::MOVE_LEADER, &question, PATIENCE_MAX, "hand over etcd's leadership").await;
        asked.map(|_| ())
    }

    async fn ask_one<Q: prost::Message, A: prost::Message + Default>(
        &self,
        endpoint: &str,
        path: &str,
        question: &Q,
        within: Duration,
        doing: &'static str,
    ) -> Result<A, AdminError> {
        let endpoint = Endpoint::parse(endpoint).map_err(AdminError::Endpoint)?;
        // Also when the member's kernel takes connections and the member is frozen.
        let until = Instant::now() + within;
        let channel = Channel::dial(&endpoint, self.tls.as_ref()).await.map_err(asking(doing))?;
        let left = until.saturating_duration_since(Instant::now());
        channel.unary(path, question, left).await.map_err(asking(doing))
    }
}

impl From<MemberMessage> for Listed {
    fn from(message: MemberMessage) -> Self {
        let MemberMessage { id, name, peers, clients, learner } = message;
        Self { id, name, peers, clients, learner }
    }
}

impl Alarm {
    fn of(number: i32) -> Self {
        match number {
            ALARM_SPACE => Self::Space,
            ALARM_DAMAGE => Self::Damage,
            other => Self::Other(other),
        }
    }

    fn number(self) -> i32 {
        match self {
            Self::Space => ALARM_SPACE,
            Self::Damage => ALARM_DAMAGE,
            Self::Other(other) => other,
        }
    }
}

fn says(error: &CallError, words: &str) -> bool {
    matches!(error, CallError::Refused { message, .. } if message.contains(words))
}

fn asking(doing: &'static str) -> impl FnOnce(CallError) -> AdminError {
    move |error| AdminError::Ask { doing, source: Box::new(error) }
}
