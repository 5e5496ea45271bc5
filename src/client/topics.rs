//! Questions to a node: its topics, and itself.

use std::collections::VecDeque;

use super::{error::RequestError, link::Link};
use crate::{
    types::{Offset, Position, TopicName},
    wire::{Answer, NodeStatus, Request, RetentionChange, TopicRequest, TopicStatus},
};

/// Administers the topics of a site.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = dunlin::cli::own_broker::BrokerHere::start().await;
/// # let client = dunlin::client::Client::connect(broker.profile()).await?;
/// use dunlin::client::{Change, Offset, Position, RetentionChange, TopicRequest};
///
/// let name = "plant/line3".parse()?;
/// let settings = TopicRequest { partitions: Some(4), ..TopicRequest::default() };
/// let status = client.topics().create(&name, settings).await?;
/// assert_eq!(status.settings.partitions, 4);
///
/// let week_ms = Change::Set(7 * 24 * 60 * 60 * 1_000);
/// let change = RetentionChange { age_ms: week_ms, ..RetentionChange::default() };
/// client.topics().set_retention(&name, change).await?;
///
/// let mut list = client.topics().list();
/// while let Some(topic) = list.next().await? {
///     println!("{}", topic.name);
/// }
/// let end = client.topics().find_offset(&name, 0, Position::Latest).await?;
/// assert_eq!(end, Offset(0));
/// client.topics().delete(&name).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Topics<'a> {
    link: &'a Link,
}

impl<'a> Topics<'a> {
    pub(super) fn new(link: &'a Link) -> Self {
        Self { link }
    }

    /// Makes a topic. One that exists already with the same settings is success.
    ///
    /// # Errors
    /// [`RequestError`]; `TopicExists` if there is one with other settings.
    pub async fn create(
        &self,
        name: &TopicName,
        settings: TopicRequest,
    ) -> Result<TopicStatus, RequestError> {
        self.topic(&Request::CreateTopic { name: name.clone(), settings }).await
    }

    /// One topic with its partitions.
    ///
    /// # Errors
    /// [`RequestError`]; `UnknownTopic` if there is none.
    pub async fn show(&self, name: &TopicName) -> Result<TopicStatus, RequestError> {
        self.topic(&Request::ShowTopic { name: name.clone() }).await
    }

    /// Changes how long records are kept.
    ///
    /// # Errors
    /// [`RequestError`]; `UnknownTopic` if there is none.
    pub async fn set_retention(
        &self,
        name: &TopicName,
        change: RetentionChange,
    ) -> Result<TopicStatus, RequestError> {
        self.topic(&Request::SetTopic { name: name.clone(), change }).await
    }

    /// Deletes a topic with all that is in it.
    ///
    /// # Errors
    /// [`RequestError`]; `UnknownTopic` if there is none.
    pub async fn delete(&self, name: &TopicName) -> Result<(), RequestError> {
        match self.link.request(&Request::DeleteTopic { name: name.clone() }).await? {
            Answer::Done => Ok(()),
            other => Err(out_of_place(&other)),
        }
    }

    /// All topics in order of their names, a page at a time and without their partitions.
    #[must_use]
    pub fn list(&self) -> TopicList<'a> {
        TopicList { link: self.link, page: VecDeque::new(), after: None, more: true }
    }

    /// The offset that a position stands for in one partition now.
    ///
    /// # Errors
    /// [`RequestError`]; `OutOfRange` if the position is an offset that is not kept.
    pub async fn find_offset(
        &self,
        topic: &TopicName,
        partition: u32,
        position: Position,
    ) -> Result<Offset, RequestError> {
        let request = Request::FindOffset { topic: topic.clone(), partition, position };
        match self.link.request(&request).await? {
            Answer::Offset(offset) => Ok(offset),
            other => Err(out_of_place(&other)),
        }
    }

    async fn topic(&self, request: &Request) -> Result<TopicStatus, RequestError> {
        match self.link.request(request).await? {
            Answer::Topic(status) => Ok(status),
            other => Err(out_of_place(&other)),
        }
    }
}

/// The topics of a site, read as they are asked for.
#[derive(Debug)]
pub struct TopicList<'a> {
    link: &'a Link,
    page: VecDeque<TopicStatus>,
    after: Option<TopicName>,
    more: bool,
}

impl TopicList<'_> {
    /// The next topic; none behind the last.
    ///
    /// # Errors
    /// [`RequestError`] if a page cannot be had; the next call asks for it again.
    pub async fn next(&mut self) -> Result<Option<TopicStatus>, RequestError> {
        while self.page.is_empty() && self.more {
            let request = Request::ListTopics { after: self.after.clone(), limit: PAGE };
            match self.link.request(&request).await? {
                Answer::Topics { topics, more } => {
                    // A page of nothing that promises more would be asked for for ever.
                    self.more = more && !topics.is_empty();
                    self.after = topics.last().map(|topic| topic.name.clone());
                    self.page = topics.into();
                }
                other => return Err(out_of_place(&other)),
            }
        }
        Ok(self.page.pop_front())
    }
}

pub(super) async fn node_status(link: &Link) -> Result<NodeStatus, RequestError> {
    match link.request(&Request::NodeStatus).await? {
        Answer::Node(status) => Ok(status),
        other => Err(out_of_place(&other)),
    }
}

pub(super) fn out_of_place(answer: &Answer) -> RequestError {
    let what = match answer {
        Answer::Done => "Done",
        Answer::Topic(_) => "Topic",
        Answer::Topics { .. } => "Topics",
        Answer::Offset(_) => "Offset",
        Answer::Node(_) => "Node",
        Answer::Fault(_) => "Fault",
        Answer::Invited(_) => "Invited",
        Answer::Cluster(_) => "Cluster",
        Answer::RecoveryPlan(_) => "RecoveryPlan",
        Answer::BalancePlan(_) => "BalancePlan",
    };
    RequestError::Protocol(format!("answer {what} does not fit the request"))
}

/// Topics of a page: with the longest names well below the largest control frame.
const PAGE: u32 = 200;
