//! What idle connections cost: a node's memory with and without them, beside a bare QUIC server's.

use std::{path::PathBuf, sync::Arc};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    Own,
    floor::BareQuinn,
    node::Memory,
    progress,
    stats::{median, rounded},
    unless_interrupted,
};
use crate::{
    cli::{Global, exit::Failure, output::Table},
    client::Client,
    limits::CONNECTIONS_DEFAULT,
};

/// `dunlin bench idle`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A broker of its own and a bare QUIC server with the same TLS and limits, each run with fresh ones. Memory is \
    resident memory, once it does not change any more."
)]
pub(super) struct Idle {
    /// Connections that do nothing
    #[arg(long, value_name = "N", default_value = "1000",
        value_parser = clap::value_parser!(u32).range(1..i64::from(CONNECTIONS_DEFAULT)))]
    connections: u32,
    /// Where the broker puts its files [default: the system's place for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Runs, of which the median is shown
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=100))]
    repeat: u16,
}

/// Medians. Memory is in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Report {
    software: &'static str,
    runs: u16,
    connections: u32,
    node: Side,
    quinn: Side,
    /// Bytes a connection of the node over those of bare quinn.
    of_quinn: f64,
}

/// A server with a single connection, and what each further one costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Side {
    with_one: f64,
    per_connection: f64,
}

impl Idle {
    pub(super) async fn run(&self, global: &Global) -> Result<(), Failure> {
        let own = Own::new(self.dir.as_deref())?;
        let report = unless_interrupted(self.measure(&own)).await?;
        global.output().show(&report, Report::in_words)
    }

    async fn measure(&self, own: &Own) -> Result<Report, Failure> {
        allow_sockets(self.connections)?;
        let progress = progress(u64::from(self.repeat) * 2);
        let (mut nodes, mut quinns) = (Vec::new(), Vec::new());
        for _ in 0..self.repeat {
            progress.set_message("bare quinn");
            quinns.push(self.quinn(own).await?);
            progress.inc(1);
            progress.set_message("a broker");
            nodes.push(self.node(own).await?);
            progress.inc(1);
        }
        progress.finish_and_clear();
        let (node, quinn) = (Side::median(&nodes), Side::median(&quinns));
        Ok(Report {
            software: crate::SOFTWARE,
            runs: self.repeat,
            connections: self.connections,
            node,
            quinn,
            of_quinn: rounded(node.per_connection / quinn.per_connection.max(1e-9)),
        })
    }

    async fn node(&self, own: &Own) -> Result<Side, Failure> {
        let broker = own.broker().await?;
        let mut clients = vec![Client::connect(broker.profile()).await?];
        let before = Memory::settled(broker.process_id()).await?;
        let profile = Arc::new(broker.profile().clone());
        let connect = || {
            let profile = Arc::clone(&profile);
            async move { Ok::<_, Failure>(Client::connect(&profile).await?) }
        };
        clients.extend(self.many(connect).await?);
        let after = Memory::settled(broker.process_id()).await?;
        Ok(self.side(before, after))
    }

    async fn quinn(&self, own: &Own) -> Result<Side, Failure> {
        let server = Arc::new(BareQuinn::start(&own.program, &own.dir).await?);
        let mut clients = vec![server.connect().await?];
        let before = Memory::settled(server.process_id()).await?;
        let connect = || {
            let server = Arc::clone(&server);
            async move { server.connect().await }
        };
        clients.extend(self.many(connect).await?);
        let after = Memory::settled(server.process_id()).await?;
        Ok(self.side(before, after))
    }

    /// Opens them, a few at a time: both servers have the same rush to bear.
    async fn many<T, F>(&self, connect: impl Fn() -> F) -> Result<Vec<T>, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let (mut connecting, mut connected) = (JoinSet::new(), Vec::new());
        for number in 0..self.connections {
            if number >= AT_ONCE
                && let Some(one) = connecting.join_next().await
            {
                connected.push(one.map_err(Failure::runtime)??);
            }
            connecting.spawn(connect());
        }
        while let Some(one) = connecting.join_next().await {
            connected.push(one.map_err(Failure::runtime)??);
        }
        Ok(connected)
    }

    fn side(&self, before: Memory, after: Memory) -> Side {
        let more = after.now.saturating_sub(before.now) as f64;
        Side {
            with_one: before.now as f64,
            per_connection: rounded(more / f64::from(self.connections)),
        }
    }
}

impl Side {
    fn median(runs: &[Self]) -> Self {
        Self {
            with_one: median(runs.iter().map(|run| run.with_one)),
            per_connection: median(runs.iter().map(|run| run.per_connection)),
        }
    }
}

impl Report {
    fn in_words(&self) -> String {
        let mut table = Table::new(&["server", "with one", "each of the others"]);
        for (name, side) in [("node", self.node), ("bare quinn", self.quinn)] {
            let with_one = format!("{:.1} MB", side.with_one / 1e6);
            table.row([name.into(), with_one, format!("{:.1} KiB", side.per_connection / 1_024.0)]);
        }
        table.row(["node/quinn".to_owned(), String::new(), format!("{:.2}", self.of_quinn)]);
        let (idle, runs) = (self.connections, self.runs);
        format!("{idle} idle connections; median of {runs} runs\n\n{}", table.to_text())
    }
}

/// Each client has a socket, and many systems allow a process 1,024 unless it asks for more.
fn allow_sockets(connections: u32) -> Result<(), Failure> {
    let wanted = u64::from(connections) + OTHER_FILES;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    limit.current = Some(wanted);
    setrlimit(Resource::Nofile, limit).map_err(|_| {
        Failure::runtime(format!("{wanted} files, the system allows fewer"))
            .hint("ask for fewer --connections")
    })
}

const AT_ONCE: u32 = 16;
const OTHER_FILES: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_both_sides_and_their_ratio() {
        let side = |kib: f64| Side { with_one: 12e6, per_connection: kib * 1_024.0 };
        let report = Report {
            software: "dunlin",
            runs: 3,
            connections: 1_000,
            node: Side::median(&[side(100.0), side(150.0), side(120.0)]),
            quinn: side(100.0),
            of_quinn: 1.2,
        };
        let text = report.in_words();
        for part in ["1000 idle", "12.0 MB", "120.0 KiB", "100.0 KiB", "1.20"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
