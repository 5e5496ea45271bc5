//! `dunlin topic`: makes, shows, changes and deletes topics.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::Subcommand;

use super::{
    Global,
    exit::Failure,
    output::Table,
    remote::block_on,
    units::{self, print_ms, print_size},
};
use crate::{
    client::Client,
    limits::PARTITIONS_PER_TOPIC_MAX,
    types::TopicName,
    wire::{Change, RetentionChange, TopicRequest, TopicStatus},
};

/// `dunlin topic`
#[derive(Debug, clap::Args)]
pub struct Topic {
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(Debug, Subcommand)]
enum TopicCommand {
    /// Make a topic; one that exists with the same settings is fine
    Create {
        /// Its name, in levels parted by slashes
        name: TopicName,
        /// How many partitions, for good [default: as the node is configured]
        #[arg(long, value_name = "N",
            value_parser = clap::value_parser!(u32).range(1..=i64::from(PARTITIONS_PER_TOPIC_MAX)))]
        partitions: Option<u32>,
        #[command(flatten)]
        retention: RetentionArgs,
    },
    /// List all topics
    List,
    /// Show a topic with its partitions
    Show {
        /// Its name
        name: TopicName,
    },
    /// Change how long a topic keeps records
    Set {
        /// Its name
        name: TopicName,
        #[command(flatten)]
        retention: RetentionArgs,
    },
    /// Delete a topic with all that is in it
    Delete {
        /// Its name
        name: TopicName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct RetentionArgs {
    /// How old records may get, such as 12h or 7d, or 'forever'
    #[arg(long, value_name = "AGE", value_parser = age)]
    retention_age: Option<Change<u64>>,
    /// How many bytes a partition may hold, such as 1GiB, or 'unlimited'
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    retention_bytes: Option<Change<u64>>,
    /// How many records a partition may hold, or 'unlimited'
    #[arg(long, value_name = "N", value_parser = records)]
    retention_records: Option<Change<u64>>,
}

impl Topic {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        block_on(async {
            if let TopicCommand::Delete { name, yes } = &self.command {
                confirm(name, *yes)?;
            }
            if let TopicCommand::Set { retention, .. } = &self.command
                && retention.change() == RetentionChange::default()
            {
                return Err(Failure::usage("nothing to change: give a --retention option"));
            }
            let client = global.connect().await?;
            let result = self.command.run(&client, global).await;
            client.close().await;
            result
        })
    }
}

impl TopicCommand {
    async fn run(self, client: &Client, global: &Global) -> Result<(), Failure> {
        let topics = client.topics();
        let status = match self {
            Self::Create { name, partitions, retention } => {
                let settings = TopicRequest { partitions, retention: retention.change() };
                topics.create(&name, settings).await?
            }
            Self::Show { name } => topics.show(&name).await?,
            Self::Set { name, retention } => {
                topics.set_retention(&name, retention.change()).await?
            }
            Self::List => {
                let mut list = topics.list();
                let mut all = Vec::new();
                while let Some(topic) = list.next().await? {
                    all.push(topic);
                }
                return global.output().show(&all, |all| table(all));
            }
            Self::Delete { name, .. } => {
                topics.delete(&name).await?;
                let deleted = serde_json::json!({ "deleted": name });
                return global.output().show(&deleted, |_| format!("deleted topic {name}\n"));
            }
        };
        global.output().show(&status, facts)
    }
}

impl RetentionArgs {
    fn change(&self) -> RetentionChange {
        RetentionChange {
            age_ms: self.retention_age.unwrap_or_default(),
            bytes: self.retention_bytes.unwrap_or_default(),
            records: self.retention_records.unwrap_or_default(),
        }
    }
}

fn age(text: &str) -> Result<Change<u64>, String> {
    if text == "forever" {
        return Ok(Change::Clear);
    }
    let age: Duration =
        units::duration(text).map_err(|error| format!("{error}, or the word 'forever'"))?;
    Ok(Change::Set(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
}

fn bytes(text: &str) -> Result<Change<u64>, String> {
    if text == "unlimited" {
        return Ok(Change::Clear);
    }
    let size = units::size(text).map_err(|error| format!("{error}, or the word 'unlimited'"))?;
    Ok(Change::Set(size))
}

fn records(text: &str) -> Result<Change<u64>, String> {
    if text == "unlimited" {
        return Ok(Change::Clear);
    }
    text.parse().map(Change::Set).map_err(|_| "a number, or the word 'unlimited'".to_owned())
}

fn confirm(name: &TopicName, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("nobody is there to be asked").hint("say so with --yes"));
    }
    let mut err = io::stderr().lock();
    let asked = write!(err, "Delete topic {name} with all that is in it? [y/N] ");
    let mut answer = String::new();
    let read =
        asked.and_then(|()| err.flush()).and_then(|()| io::stdin().lock().read_line(&mut answer));
    match read {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        Ok(_) => Err(Failure::runtime("nothing was deleted")),
        Err(error) => Err(Failure::runtime(format!("cannot ask: {error}"))),
    }
}

fn table(topics: &[TopicStatus]) -> String {
    if topics.is_empty() {
        return "no topics yet: dunlin topic create NAME\n".into();
    }
    let mut table = Table::new(&["topic", "partitions", "keep age", "keep bytes", "keep records"]);
    for topic in topics {
        let [age, bytes, records] = kept(topic);
        table.row([
            topic.name.to_string(),
            topic.settings.partitions.to_string(),
            age,
            bytes,
            records,
        ]);
    }
    table.to_text()
}

fn facts(topic: &TopicStatus) -> String {
    let [age, bytes, records] = kept(topic);
    let mut facts = Table::of_facts();
    facts.row(["topic", topic.name.as_str()]).row(["id", &topic.id.to_string()]);
    facts.row(["created", &units::rfc3339(topic.created)]);
    facts.row(["keep age", &age]).row(["keep bytes", &bytes]).row(["keep records", &records]);
    let mut partitions = Table::new(&["partition", "start", "end", "records", "bytes"]);
    for p in &topic.partitions {
        let records = p.end.0.saturating_sub(p.start.0);
        partitions.row([
            p.partition.to_string(),
            p.start.to_string(),
            p.end.to_string(),
            records.to_string(),
            print_size(p.bytes),
        ]);
    }
    format!("{}\n{}", facts.to_text(), partitions.to_text())
}

/// Age, bytes and records that a topic keeps, in words.
fn kept(topic: &TopicStatus) -> [String; 3] {
    let retention = &topic.settings.retention;
    let unlimited = || "unlimited".to_owned();
    [
        retention.age_ms.map_or_else(|| "forever".to_owned(), print_ms),
        retention.bytes.map_or_else(unlimited, print_size),
        retention.records.map_or_else(unlimited, |records| records.to_string()),
    ]
}
