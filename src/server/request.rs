//! Requests: one question, one answer.

use std::sync::Arc;

use super::{
    balance,
    connection::{ANONYMOUS, Shared},
    engine::Engine,
    recover, site_admin,
    streams::{self, group_fault},
    subscribe::find_offset,
    topics::Topic,
};
use crate::{
    limits::LIST_PAGE_MAX,
    types::{ShardId, TopicSettings},
    wire::{Answer, Code, Fault, NodeStatus, PartitionStatus, Request, TopicRequest, TopicStatus},
};

/// Answers one request.
pub(super) async fn answer(shared: &Arc<Shared>, who: &str, request: Request) -> Answer {
    let answered = match request {
        Request::FindOffset { topic, partition: index, position } => {
            find(&shared.engine, &topic, index, position).await
        }
        // These may wait for the disk.
        request => {
            let (shared, who) = (Arc::clone(shared), who.to_owned());
            let work = move || decide(&shared, &who, request);
            tokio::task::spawn_blocking(work)
                .await
                .unwrap_or_else(|_| Err(Fault::new(Code::Internal, "the request did not end")))
        }
    };
    answered.unwrap_or_else(Answer::Fault)
}

fn decide(shared: &Shared, who: &str, request: Request) -> Result<Answer, Fault> {
    let engine = &shared.engine;
    match request {
        Request::CreateTopic { name, settings } => {
            let settings = with_defaults(shared, &settings);
            let topic = engine.create_topic(&name, settings).map_err(|e| group_fault(&e))?;
            tracing::info!(topic = %name, partitions = topic.settings.partitions, "topic created");
            Ok(Answer::Topic(status(engine, &topic, true)))
        }
        Request::ListTopics { after, limit } => {
            let most = limit.clamp(1, LIST_PAGE_MAX);
            let (page, more) = engine.topics.page(after.as_ref(), most as usize);
            let topics = page.iter().map(|topic| status(engine, topic, false)).collect();
            Ok(Answer::Topics { topics, more })
        }
        Request::ShowTopic { name } => {
            Ok(Answer::Topic(status(engine, &*streams::topic(engine, &name)?, true)))
        }
        Request::SetTopic { name, change } => {
            let topic = engine.set_topic(&name, change).map_err(|e| group_fault(&e))?;
            tracing::info!(topic = %name, "topic settings changed");
            Ok(Answer::Topic(status(engine, &topic, true)))
        }
        Request::DeleteTopic { name } => {
            engine.delete_topic(&name).map_err(|e| group_fault(&e))?;
            tracing::info!(topic = %name, "topic deleted");
            Ok(Answer::Done)
        }
        Request::FindOffset { .. } => Err(Fault::new(Code::Internal, "answered elsewhere")),
        Request::NodeStatus => Ok(Answer::Node(node_status(shared))),
        Request::ClusterStatus => Ok(Answer::Cluster(site_admin::status(shared))),
        Request::RecoveryPlan => Ok(Answer::RecoveryPlan(recover::plan(shared))),
        Request::BalancePlan => Ok(Answer::BalancePlan(balance::plan(shared))),
        Request::Balance
        | Request::Invite { .. }
        | Request::SetNode { .. }
        | Request::RemoveNode { .. }
        | Request::ReplaceNode { .. }
        | Request::Recover { .. }
        | Request::Scrub { .. } => change_nodes(shared, who, request),
    }
}

/// Who may change the nodes may read and write all that they hold: that needs a name.
fn change_nodes(shared: &Shared, who: &str, request: Request) -> Result<Answer, Fault> {
    if who == ANONYMOUS {
        let message = "the site's nodes are changed only by somebody with a certificate";
        return Err(Fault::new(Code::Forbidden, message)
            .with_hint("have a profile made on a node of the site: dunlin cert issue NAME"));
    }
    match request {
        Request::Invite { role, lifetime_ms, addresses } => {
            site_admin::invite(shared, who, role, lifetime_ms, &addresses)
        }
        Request::SetNode { node, weight, draining } => {
            site_admin::set_node(shared, who, node, weight, draining)
        }
        Request::Recover { shard, version, node } => {
            recover::recover(shared, who, ShardId(shard), version, node)
        }
        Request::ReplaceNode { old, new } => site_admin::replace_node(shared, who, old, new),
        Request::Balance => site_admin::balance(shared, who),
        Request::Scrub { node } => site_admin::scrub(shared, who, node),
        Request::RemoveNode { node } => site_admin::remove_node(shared, who, node),
        _ => Err(Fault::new(Code::Internal, "answered elsewhere")),
    }
}

async fn find(
    engine: &Engine,
    name: &crate::types::TopicName,
    index: u32,
    position: crate::types::Position,
) -> Result<Answer, Fault> {
    let topic = streams::topic(engine, name)?;
    let offset = find_offset(&engine.store, streams::partition(&topic, index)?, position).await?;
    Ok(Answer::Offset(offset))
}

fn with_defaults(shared: &Shared, request: &TopicRequest) -> TopicSettings {
    let defaults = &shared.topic_defaults;
    TopicSettings {
        partitions: request.partitions.unwrap_or(defaults.partitions),
        retention: request.retention.apply(&defaults.retention),
    }
}

fn status(engine: &Engine, topic: &Topic, with_partitions: bool) -> TopicStatus {
    let mut partitions = Vec::new();
    if with_partitions {
        partitions.extend(topic.partitions.iter().map(|p| PartitionStatus {
            partition: p.id.index,
            start: p.start(),
            end: p.end(),
            bytes: engine.store.bounds(p.id).map_or(0, |bounds| bounds.bytes),
        }));
    }
    TopicStatus {
        name: topic.name.clone(),
        id: topic.id,
        settings: topic.settings.clone(),
        created: topic.created,
        partitions,
    }
}

fn node_status(shared: &Shared) -> NodeStatus {
    let engine = &shared.engine;
    NodeStatus {
        name: shared.node.to_string(),
        id: engine.me.node,
        software: crate::SOFTWARE.to_owned(),
        uptime_ms: u64::try_from(engine.clock.uptime().as_millis()).unwrap_or(u64::MAX),
        connections: u32::try_from(shared.connections.len()).unwrap_or(u32::MAX),
        topics: u32::try_from(engine.topics.len()).unwrap_or(u32::MAX),
        disk_free: crate::storage::free_bytes(&shared.data_dir).unwrap_or(0),
        disk_low: engine.is_disk_low(),
    }
}
