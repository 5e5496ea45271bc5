//! What a member answers, and what the leader does.

use bytes::Bytes;
use openraft::{
    ChangeMembers, EmptyNode, ServerState,
    error::{ChangeMembershipError, ClientWriteError, RaftError},
    raft::{AppendEntriesRequest, InstallSnapshotRequest},
};
use tokio::time::{Instant, timeout_at};

use super::MetaGroup;
use crate::{
    cluster::raft::{GroupAnswer, GroupRequest, MemberChange, decode, encode},
    limits::{META_PROMOTE_LAG_MAX, META_SNAPSHOT_LEN_MAX},
    types::NodeId,
};

type WriteError = RaftError<NodeId, ClientWriteError<NodeId, EmptyNode>>;

impl MetaGroup {
    /// Answers another member's request. `from` is who it is proven to be.
    pub async fn answer(&self, from: NodeId, request: Bytes) -> Bytes {
        let answer = match decode(&request) {
            Ok(request) => self.take(from, request).await,
            Err(error) => GroupAnswer::Refused(error.to_string()),
        };
        encode(&answer)
    }

    async fn take(&self, from: NodeId, request: GroupRequest) -> GroupAnswer {
        let gone =
            self.read(|site| site.removed.contains_key(&from) && !site.voters.contains(&from));
        if gone {
            return GroupAnswer::Refused(format!("node {from} was removed from the site"));
        }
        let speaker = match &request {
            GroupRequest::Append { vote, .. } | GroupRequest::Snapshot { vote, .. } => Some(*vote),
            GroupRequest::Vote(request) => Some(request.vote),
            GroupRequest::Propose(_) | GroupRequest::Change(_) | GroupRequest::Current => None,
        };
        if speaker.is_some_and(|vote| vote.leader_id().voted_for() != Some(from)) {
            return GroupAnswer::Refused(format!("node {from} speaks for another"));
        }
        match request {
            GroupRequest::Append { vote, previous, entries, committed } => {
                let entries = entries.iter().map(|entry| decode(&entry.0)).collect();
                let entries = match entries {
                    Ok(entries) => entries,
                    Err(error) => return GroupAnswer::Refused(error.to_string()),
                };
                let request = AppendEntriesRequest {
                    vote,
                    prev_log_id: previous,
                    entries,
                    leader_commit: committed,
                };
                match self.raft.append_entries(request).await {
                    Ok(answer) => GroupAnswer::Append(answer),
                    Err(error) => GroupAnswer::Refused(error.to_string()),
                }
            }
            GroupRequest::Vote(request) => match self.raft.vote(request).await {
                Ok(answer) => GroupAnswer::Vote(answer),
                Err(error) => GroupAnswer::Refused(error.to_string()),
            },
            GroupRequest::Snapshot { vote, meta, offset, data, done } => {
                if offset.saturating_add(data.0.len() as u64) > META_SNAPSHOT_LEN_MAX {
                    let text = format!("a snapshot has at most {META_SNAPSHOT_LEN_MAX} bytes");
                    return GroupAnswer::Refused(text);
                }
                let request = InstallSnapshotRequest { vote, meta, offset, data: data.0, done };
                match self.raft.install_snapshot(request).await {
                    Ok(answer) => GroupAnswer::Snapshot(Ok(answer)),
                    Err(RaftError::APIError(error)) => GroupAnswer::Snapshot(Err(error)),
                    Err(RaftError::Fatal(error)) => GroupAnswer::Refused(error.to_string()),
                }
            }
            question @ (GroupRequest::Propose(_)
            | GroupRequest::Change(_)
            | GroupRequest::Current) => {
                self.lead(question, Instant::now() + self.propose_max).await
            }
        }
    }

    /// Does what only the leader can do. A leader that has lost its majority finds that out before it writes anything.
    pub(super) async fn lead(&self, request: GroupRequest, deadline: Instant) -> GroupAnswer {
        let (state, leader) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.state, metrics.current_leader)
        };
        if state != ServerState::Leader {
            return GroupAnswer::NotLeader(leader.filter(|leader| *leader != self.me));
        }
        let Ok(Ok((current, _))) = timeout_at(deadline, self.raft.get_read_log_id()).await else {
            return GroupAnswer::NotLeader(None);
        };
        let doing = async {
            match request {
                GroupRequest::Propose(command) => match self.raft.client_write(command).await {
                    Ok(done) => {
                        GroupAnswer::Proposed { index: done.log_id.index, answer: done.data }
                    }
                    // It led a moment ago: the entry may lie in its log, and become the group's.
                    Err(_) => GroupAnswer::Unknown,
                },
                GroupRequest::Change(change) => self.change_membership(change).await,
                _ => GroupAnswer::Current { index: current.map_or(0, |id| id.index) },
            }
        };
        timeout_at(deadline, doing).await.unwrap_or(GroupAnswer::Unknown)
    }

    async fn change_membership(&self, change: MemberChange) -> GroupAnswer {
        let _one = self.changing.lock().await;
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let is_voter = |node: &NodeId| membership.voter_ids().any(|voter| voter == *node);
        // A joint membership is a change that was left half done: asked for again, it is finished.
        let settled = membership.get_joint_config().len() == 1;
        let index = metrics.membership_config.log_id().map_or(0, |id| id.index);
        let there = GroupAnswer::Changed { index };
        let done = match change {
            MemberChange::AddLearner(node) => {
                if membership.get_node(&node).is_some() {
                    return there;
                }
                self.raft.add_learner(node, EmptyNode {}, false).await
            }
            MemberChange::Promote(node) => {
                if settled && is_voter(&node) {
                    return there;
                }
                if membership.get_node(&node).is_none() {
                    return GroupAnswer::Refused(format!("node {node} is no learner yet"));
                }
                let matched = metrics.replication.as_ref().and_then(|all| *all.get(&node)?);
                let matched = matched.map_or(0, |id| id.index);
                let last = metrics.last_log_index.unwrap_or(0);
                if !is_voter(&node) && matched + META_PROMOTE_LAG_MAX < last {
                    let text = format!("node {node} has {matched} of {last} metadata entries");
                    return GroupAnswer::NotYet(text);
                }
                let voters = ChangeMembers::AddVoterIds([node].into());
                self.raft.change_membership(voters, false).await
            }
            MemberChange::Remove(node) if settled && !is_voter(&node) => {
                if membership.get_node(&node).is_none() {
                    return there;
                }
                let nodes = ChangeMembers::RemoveNodes([node].into());
                self.raft.change_membership(nodes, false).await
            }
            MemberChange::Remove(node) => {
                if membership.voter_ids().all(|voter| voter == node) {
                    return GroupAnswer::Refused(format!("node {node} is the last voter"));
                }
                let voters = ChangeMembers::RemoveVoters([node].into());
                self.raft.change_membership(voters, false).await
            }
        };
        match done {
            Ok(done) => GroupAnswer::Changed { index: done.log_id.index },
            Err(error) => undone(&error),
        }
    }
}

fn undone(error: &WriteError) -> GroupAnswer {
    match error {
        RaftError::APIError(ClientWriteError::ChangeMembershipError(reason)) => match reason {
            ChangeMembershipError::InProgress(_) => GroupAnswer::NotYet(reason.to_string()),
            ChangeMembershipError::EmptyMembership(_)
            | ChangeMembershipError::LearnerNotFound(_) => GroupAnswer::Refused(reason.to_string()),
        },
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) | RaftError::Fatal(_) => {
            GroupAnswer::Unknown
        }
    }
}
