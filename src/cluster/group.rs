//! The group that orders the site's commands.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::{Config, Raft, RaftMetrics, ServerState, SnapshotPolicy};
use tokio::{
    runtime::Handle,
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    command::{MetaCommand, MetaOutcome},
    raft::{
        BoxFuture, Disk, GroupAnswer, GroupRequest, Links, LogStore, MemberChange, MetaTransport,
        SiteView, StateMachine, TypeConfig, Unreachable, decode, encode,
    },
    reject::MetaReject,
    site::SiteState,
};
use crate::{
    limits::{
        META_ELECTION_MAX, META_ELECTION_MIN, META_HEARTBEAT, META_LOG_KEPT, META_LOG_LEN_MAX,
        META_PROPOSE_MAX, META_PROPOSE_RETRY, META_REQUEST_ENTRIES_MAX, META_SNAPSHOT_CHUNK,
        META_SNAPSHOT_TIMEOUT, RECOVERY_MAX,
    },
    storage::{MetaStore, StoreError},
    types::{NodeId, SiteName},
};

mod answer;

/// The metadata group, as this node takes part in it.
pub struct MetaGroup {
    me: NodeId,
    raft: Raft<TypeConfig>,
    view: Arc<SiteView>,
    disk: Disk,
    transport: Arc<dyn MetaTransport>,
    leader: watch::Receiver<Option<NodeId>>,
    failure: watch::Receiver<Option<String>>,
    propose_max: Duration,
    runtime: Handle,
    /// Held while this node, leading, changes the membership: one change at a time.
    changing: Mutex<()>,
    /// Ends with the group.
    _watcher: JoinSet<()>,
}

/// The group's clocks.
#[derive(Clone, Copy, Debug)]
pub struct MetaTiming {
    /// How often the leader is heard.
    pub heartbeat: Duration,
    /// Least that a member draws for its election timeout.
    pub election_min: Duration,
    /// Most that it draws; also how long a leader's lease lasts.
    pub election_max: Duration,
    /// How long a proposal looks for a leader.
    pub propose_max: Duration,
}

impl Default for MetaTiming {
    fn default() -> Self {
        Self {
            heartbeat: META_HEARTBEAT,
            election_min: META_ELECTION_MIN,
            election_max: META_ELECTION_MAX,
            propose_max: META_PROPOSE_MAX,
        }
    }
}

/// How the group is, as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Its term.
    pub term: u64,
    /// Its leader.
    pub leader: Option<NodeId>,
    /// Whether this node is it.
    pub leads: bool,
    /// The last entry of this node's log.
    pub last_log_index: u64,
    /// The last entry that this node has applied.
    pub applied: u64,
    /// Who has a vote.
    pub voters: Vec<NodeId>,
    /// Who gets the log without a vote.
    pub learners: Vec<NodeId>,
    /// Up to where each other member has the log, if this node leads.
    pub matched: BTreeMap<NodeId, u64>,
}

/// Why a proposal did not go through.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// It was applied, and changed nothing.
    #[error(transparent)]
    Rejected(#[from] MetaReject),
    /// The disk failed; the node must stop.
    #[error("metadata: {0}")]
    Store(#[from] StoreError),
    /// What the disk holds cannot be used.
    #[error("metadata cannot be read: {0}")]
    Unreadable(String),
    /// The metadata is another node's.
    #[error("the metadata on this disk is of node {have}, this is node {me}")]
    OtherNode {
        /// Whose it is.
        have: NodeId,
        /// Who asks.
        me: NodeId,
    },
    /// A write failed before: nothing is accepted until the node is started again.
    #[error("metadata cannot be written: {0}; restart the node")]
    Broken(String),
    /// Nothing was done. Asking again later is right.
    #[error("no majority of the site's voters answers")]
    NoLeader,
    /// It may be done, or may be done later.
    #[error("the leader of the metadata group was lost; whether the change was made is unknown")]
    Unknown,
    /// Nothing was done: the membership does not allow it.
    #[error("membership: {0}")]
    Membership(String),
}

impl GroupError {
    /// Whether the node can change no metadata any more, and must be stopped.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Store(_) | Self::Unreadable(_) | Self::OtherNode { .. } | Self::Broken(_) => true,
            Self::Rejected(_) | Self::NoLeader | Self::Unknown | Self::Membership(_) => false,
        }
    }
}

impl fmt::Debug for MetaGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetaGroup").field("me", &self.me).finish_non_exhaustive()
    }
}

/// Named value of the store: whose it is.
const NODE: &str = "node";

impl MetaGroup {
    /// Takes up what `store` holds: its snapshot, and the log behind it. A group of this node alone has applied all of it
    /// when this returns. Tasks run on the runtime that this is called on.
    ///
    /// # Errors
    /// [`GroupError`] when it cannot be read whole, or is of another node.
    pub async fn open(
        store: MetaStore,
        me: NodeId,
        transport: Arc<dyn MetaTransport>,
        timing: MetaTiming,
    ) -> Result<Self, GroupError> {
        let disk = Disk::new(store);
        let opened = Self::open_disk(&disk, me, transport, timing).await;
        if opened.is_err() {
            disk.close();
        }
        opened
    }

    async fn open_disk(
        disk: &Disk,
        me: NodeId,
        transport: Arc<dyn MetaTransport>,
        timing: MetaTiming,
    ) -> Result<Self, GroupError> {
        let here = disk.clone();
        let reading = tokio::task::spawn_blocking(move || take_up(me, &here));
        let machine = reading.await.map_err(|e| GroupError::Unreadable(e.to_string()))??;
        let view = machine.view();
        let links = Links::new(Arc::clone(&transport), timing.heartbeat);
        let log = LogStore::new(me, disk.clone());
        let raft = Raft::new(me, Arc::new(config(timing)?), links, log, machine).await;
        let raft = raft.map_err(|error| GroupError::Unreadable(error.to_string()))?;
        let (mut watcher, leader) = (JoinSet::new(), watch::Sender::new(None));
        let heard = leader.subscribe();
        watcher.spawn(follow(raft.metrics(), leader));
        let group = Self {
            me,
            raft,
            view,
            disk: disk.clone(),
            transport,
            leader: heard,
            failure: disk.failure(),
            propose_max: timing.propose_max,
            runtime: Handle::current(),
            changing: Mutex::new(()),
            _watcher: watcher,
        };
        let voters = group.raft.with_raft_state(|state| {
            state.membership_state.effective().membership().voter_ids().collect::<Vec<_>>()
        });
        if voters.await.map_err(|error| group.broken(&error))? == [me] {
            group.lead_alone().await?;
        }
        Ok(group)
    }

    /// Makes the first member of a site, or finds that it was made.
    ///
    /// # Errors
    /// [`GroupError::Rejected`] when the state belongs to another site.
    pub async fn found(&self, site: SiteName, shards: u16) -> Result<MetaOutcome, GroupError> {
        let known = self.raft.is_initialized().await.map_err(|error| self.broken(&error))?;
        if !known {
            let members = BTreeMap::from([(self.me, openraft::EmptyNode {})]);
            let begun = self.raft.initialize(members).await;
            begun.map_err(|error| self.broken(&error))?;
            self.lead_alone().await?;
        }
        self.propose(MetaCommand::Found { site, shards }).await
    }

    /// Has a command ordered, made durable by a majority, and applied here.
    ///
    /// # Errors
    /// [`GroupError::Rejected`] when it changed nothing; [`GroupError::Unknown`] when its answer was lost and it must not
    /// be repeated ([`MetaCommand::is_repeatable`]); the others.
    pub async fn propose(&self, command: MetaCommand) -> Result<MetaOutcome, GroupError> {
        let repeatable = command.is_repeatable();
        let deadline = Instant::now() + self.propose_max;
        match self.ask(GroupRequest::Propose(command), repeatable, deadline).await? {
            GroupAnswer::Proposed { index, answer } => {
                // What was done must be seen by who asked for it.
                self.wait_applied(index, deadline).await.map_err(|_| GroupError::Unknown)?;
                Ok(answer.0?)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// [`MetaGroup::propose`], on a thread that may wait.
    ///
    /// # Errors
    /// The same.
    pub fn propose_blocking(&self, command: MetaCommand) -> Result<MetaOutcome, GroupError> {
        self.runtime.block_on(self.propose(command))
    }

    /// This node's number.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Looks at the state as far as this node has applied it.
    pub fn read<T>(&self, look: impl FnOnce(&SiteState) -> T) -> T {
        look(&self.view.read())
    }

    /// The last entry that this node has applied; moves after the state does.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.view.applied()
    }

    /// Who leads the group, as this node knows.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.leader.clone()
    }

    /// Whether this node leads the group, as it knows: a leader that has lost its majority does not know it.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.raft.metrics().borrow().state == ServerState::Leader
    }

    /// Becomes the reason once the metadata can be written no more: the node must stop.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failure.clone()
    }

    /// Waits until this node has applied all that was acknowledged to anybody before this call.
    ///
    /// # Errors
    /// [`GroupError::NoLeader`] when no majority answers in time.
    pub async fn ensure_current(&self, wait_max: Duration) -> Result<(), GroupError> {
        let deadline = Instant::now() + wait_max;
        match self.ask(GroupRequest::Current, true, deadline).await? {
            GroupAnswer::Current { index } => self.wait_applied(index, deadline).await,
            other => Err(unexpected(&other)),
        }
    }

    /// Gives the log to a node, which has no vote.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn add_learner(&self, node: NodeId) -> Result<(), GroupError> {
        self.change(MemberChange::AddLearner(node)).await
    }

    /// Gives a vote to a learner that has caught up.
    ///
    /// # Errors
    /// [`GroupError`]; [`GroupError::Membership`] while the learner is behind.
    pub async fn promote(&self, node: NodeId) -> Result<(), GroupError> {
        self.change(MemberChange::Promote(node)).await
    }

    /// Takes a node out of the group.
    ///
    /// # Errors
    /// [`GroupError`]; the last voter cannot leave.
    pub async fn remove(&self, node: NodeId) -> Result<(), GroupError> {
        self.change(MemberChange::Remove(node)).await
    }

    async fn change(&self, change: MemberChange) -> Result<(), GroupError> {
        let deadline = Instant::now() + self.propose_max;
        match self.ask(GroupRequest::Change(change), true, deadline).await? {
            GroupAnswer::Changed { index } => {
                // Who was removed hears of it no more; for it, and for a new learner, the answer is all there is.
                let _ = self.wait_applied(index.min(self.status().last_log_index), deadline).await;
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The voters and the learners, as this node knows.
    #[must_use]
    pub fn members(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let status = self.status();
        (status.voters, status.learners)
    }

    /// How the group is, as this node knows.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let index = |id: &Option<openraft::LogId<NodeId>>| id.map_or(0, |id| id.index);
        let followers = metrics.replication.iter().flatten();
        GroupStatus {
            term: metrics.current_term,
            leader: metrics.current_leader,
            leads: metrics.state == ServerState::Leader,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            applied: *self.view.applied().borrow(),
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            matched: followers
                .filter(|(node, _)| **node != self.me)
                .map(|(node, matched)| (*node, index(matched)))
                .collect(),
        }
    }

    /// Leaves the group alone and closes the store. What was acknowledged is on the disk.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "metadata group ended in disorder");
        }
        let disk = self.disk.clone();
        // It ends by itself: a close waits for no more than one write.
        let _ = tokio::task::spawn_blocking(move || disk.close()).await;
    }

    /// Asks for votes now. Members that hear a leader refuse; when the leader is known to be gone, this is sooner than
    /// their drawn times, and no two stand at once if only one of them is told to.
    ///
    /// # Errors
    /// [`GroupError`] when the group has ended.
    pub async fn stand(&self) -> Result<(), GroupError> {
        self.raft.trigger().elect().await.map_err(|error| self.broken(&error))
    }

    /// The only voter asks nobody and waits for no timeout: it leads once it has written that it does.
    async fn lead_alone(&self) -> Result<(), GroupError> {
        self.raft.trigger().elect().await.map_err(|error| self.broken(&error))?;
        let deadline = Instant::now() + RECOVERY_MAX;
        let mut metrics = self.raft.metrics();
        let leads = metrics.wait_for(|m| {
            let applied = m.last_applied.map(|id| id.index);
            let leads = m.state == ServerState::Leader && applied.is_some();
            m.running_state.is_err() || (leads && applied == m.last_log_index)
        });
        let state = match timeout_at(deadline, leads).await {
            Ok(Ok(metrics)) => metrics.running_state.clone(),
            Ok(Err(_)) => return Err(self.broken(&"it has ended")),
            Err(_) => {
                return Err(self.broken(&format!("the disk took longer than {RECOVERY_MAX:?}")));
            }
        };
        state.map_err(|error| self.broken(&error))
    }

    /// Asks the leader, whoever it is, until there is one.
    async fn ask(
        &self,
        request: GroupRequest,
        repeatable: bool,
        deadline: Instant,
    ) -> Result<GroupAnswer, GroupError> {
        let mut leader = self.leader.clone();
        let mut failed = GroupError::NoLeader;
        let bytes = encode(&request);
        loop {
            if let Some(reason) = &*self.failure.borrow() {
                return Err(GroupError::Broken(reason.clone()));
            }
            let leads = *leader.borrow_and_update();
            let answer = match leads {
                None => GroupAnswer::NotLeader(None),
                Some(node) if node == self.me => self.lead(request.clone(), deadline).await,
                Some(node) => self.forward(node, bytes.clone(), deadline).await,
            };
            match answer {
                GroupAnswer::NotLeader(_) => {}
                GroupAnswer::NotYet(reason) => failed = GroupError::Membership(reason),
                GroupAnswer::Unknown if !repeatable => return Err(self.lost()),
                GroupAnswer::Unknown => failed = self.lost(),
                GroupAnswer::Refused(reason) => return Err(GroupError::Membership(reason)),
                done => return Ok(done),
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(failed);
            }
            // Whether the leader has changed or the time is over, what follows is the same.
            let _ = timeout_at(deadline.min(now + META_PROPOSE_RETRY), leader.changed()).await;
        }
    }

    async fn forward(&self, to: NodeId, request: Bytes, deadline: Instant) -> GroupAnswer {
        let remaining = deadline.saturating_duration_since(Instant::now());
        match self.transport.call(to, request, remaining).await {
            Ok(bytes) => decode(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%to, %error, "the leader's answer is unreadable");
                GroupAnswer::Unknown
            }),
            Err(Unreachable::NotSent(_)) => GroupAnswer::NotLeader(None),
            Err(Unreachable::NoAnswer(_)) => GroupAnswer::Unknown,
        }
    }

    async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<(), GroupError> {
        let mut applied = self.view.applied();
        match timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(GroupError::NoLeader),
        }
    }

    /// What is told when the answer to something is lost: a disk that has failed explains it better.
    fn lost(&self) -> GroupError {
        match &*self.failure.borrow() {
            Some(reason) => GroupError::Broken(reason.clone()),
            None => GroupError::Unknown,
        }
    }

    fn broken(&self, error: &impl ToString) -> GroupError {
        let reason = self.failure.borrow().clone();
        GroupError::Broken(reason.unwrap_or_else(|| error.to_string()))
    }
}

impl Drop for MetaGroup {
    fn drop(&mut self) {
        // Whoever opens the file next must find it free, though openraft's tasks end a moment later.
        self.disk.close();
    }
}

/// Stands for links where there are none: a site of one node.
#[derive(Debug)]
pub struct NoLinks;

impl MetaTransport for NoLinks {
    fn call(&self, to: NodeId, _: Bytes, _: Duration) -> BoxFuture<'_, Result<Bytes, Unreachable>> {
        Box::pin(async move { Err(Unreachable::NotSent(format!("no way to node {to}"))) })
    }
}

/// Checks whose the store is, and reads its snapshot. Waits for the disk.
fn take_up(me: NodeId, disk: &Disk) -> Result<StateMachine, GroupError> {
    let unreadable = |error: &dyn fmt::Display| GroupError::Unreadable(error.to_string());
    let kept = disk.run_here(|store| match store.get(NODE)? {
        Some(bytes) => Ok(Some(decode::<NodeId>(&bytes)?)),
        None => Ok(None),
    });
    match kept.map_err(|error| unreadable(&error))? {
        Some(have) if have != me => return Err(GroupError::OtherNode { have, me }),
        Some(_) => {}
        None => {
            let put = disk.run_here(|store| Ok(store.put(NODE, &encode(&me))?));
            put.map_err(|error| GroupError::Broken(error.to_string()))?;
        }
    }
    StateMachine::open(me, disk.clone()).map_err(|error| unreadable(&error))
}

fn config(timing: MetaTiming) -> Result<Config, GroupError> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "site".to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        install_snapshot_timeout: ms(META_SNAPSHOT_TIMEOUT),
        max_payload_entries: META_REQUEST_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(META_LOG_LEN_MAX),
        // A member that is further behind than the log reaches gets the snapshot; one within it gets the log.
        replication_lag_threshold: META_LOG_LEN_MAX * 2,
        snapshot_max_chunk_size: META_SNAPSHOT_CHUNK as u64,
        max_in_snapshot_log_to_keep: META_LOG_KEPT,
        ..Config::default()
    };
    config.validate().map_err(|error| GroupError::Membership(error.to_string()))
}

/// Tells who leads. Runs for as long as the group is there, also when Raft has ended because a write failed: those who listen take
/// the end of this for news that never stops.
async fn follow(
    mut metrics: watch::Receiver<RaftMetrics<NodeId, openraft::EmptyNode>>,
    leader: watch::Sender<Option<NodeId>>,
) {
    loop {
        let now = metrics.borrow_and_update().current_leader;
        leader.send_if_modified(|leader| std::mem::replace(leader, now) != now);
        if metrics.changed().await.is_err() {
            leader.send_if_modified(|leader| leader.take().is_some());
            return std::future::pending().await;
        }
    }
}

fn unexpected(answer: &GroupAnswer) -> GroupError {
    tracing::warn!(?answer, "an answer to another question");
    GroupError::Unknown
}

#[cfg(test)]
mod tests;
