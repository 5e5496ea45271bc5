//! What a node counts, by the conventions of Prometheus: base units, `_total` for counters.

use std::sync::Arc;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::{connection::Shared, engine::Engine};

/// The counters of one node. Each node has a recorder of its own, so that several can run in one process.
#[derive(Clone)]
pub(super) struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    published_records: Counter,
    published_bytes: Counter,
    delivered_records: Counter,
    delivered_bytes: Counter,
    relayed_records: Counter,
    connections: Gauge,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            gauge!("dunlin_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
        });
        let of = |name: &'static str| metrics::with_local_recorder(&recorder, || counter!(name));
        let published_records = of("dunlin_publish_records_total");
        let published_bytes = of("dunlin_publish_bytes_total");
        let delivered_records = of("dunlin_deliver_records_total");
        let delivered_bytes = of("dunlin_deliver_bytes_total");
        let relayed_records = of("dunlin_relay_records_total");
        let connections = metrics::with_local_recorder(&recorder, || gauge!("dunlin_connections"));
        Self {
            recorder: Arc::new(recorder),
            handle,
            published_records,
            published_bytes,
            delivered_records,
            delivered_bytes,
            relayed_records,
            connections,
        }
    }

    pub(super) fn published(&self, records: u32, bytes: usize) {
        self.published_records.increment(u64::from(records));
        self.published_bytes.increment(bytes as u64);
    }

    pub(super) fn delivered(&self, records: u64, bytes: usize) {
        self.delivered_records.increment(records);
        self.delivered_bytes.increment(bytes as u64);
    }

    pub(super) fn connected(&self, by: i32) {
        self.connections.increment(f64::from(by));
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.record(|| {
            counter!("dunlin_connections_refused_total", "reason" => reason).increment(1)
        });
    }

    pub(super) fn publish_refused(&self, code: &'static str) {
        self.record(|| counter!("dunlin_publish_refused_total", "code" => code).increment(1));
    }

    pub(super) fn relayed(&self, records: u32) {
        self.relayed_records.increment(u64::from(records));
    }

    /// Bytes of the log were read to look for damage.
    pub(super) fn scrubbed(&self, bytes: u64) {
        self.record(|| counter!("dunlin_scrub_bytes_total").increment(bytes));
    }

    /// The copy of a shard here is damaged.
    pub(super) fn damage_found(&self) {
        self.record(|| counter!("dunlin_damage_found_total").increment(1));
    }

    /// A damaged copy was made anew.
    pub(super) fn damage_repaired(&self) {
        self.record(|| counter!("dunlin_damage_repaired_total").increment(1));
    }

    /// Something happened that only a human can mend.
    pub(super) fn alarm(&self) {
        self.record(|| counter!("dunlin_replication_alarms_total").increment(1));
    }

    /// The page that Prometheus reads.
    pub(super) fn page(&self, shared: &Shared) -> String {
        self.record(|| snapshot(&shared.engine, &shared.data_dir));
        self.handle.run_upkeep();
        self.handle.render()
    }

    fn record(&self, act: impl FnOnce()) {
        metrics::with_local_recorder(&*self.recorder, act);
    }
}

/// Figures that are read when somebody asks.
fn snapshot(engine: &Engine, data_dir: &std::path::Path) {
    let stats = engine.store.stats();
    counter!("dunlin_log_commits_total").absolute(stats.commits);
    counter!("dunlin_log_checkpoints_total").absolute(stats.checkpoints);
    counter!("dunlin_log_entries_total").absolute(stats.entries);
    counter!("dunlin_log_entry_bytes_total").absolute(stats.entry_bytes);
    counter!("dunlin_log_written_bytes_total").absolute(stats.written_bytes);
    counter!("dunlin_log_syncs_total").absolute(stats.syncs);
    counter!("dunlin_log_collected_bytes_total").absolute(stats.collected_bytes);
    gauge!("dunlin_log_commit_seconds_sum").set(seconds(stats.commit_nanos_sum));
    gauge!("dunlin_log_commit_seconds_max").set(seconds(stats.commit_nanos_max));
    gauge!("dunlin_log_commit_seconds_last").set(seconds(stats.commit_nanos_last));
    gauge!("dunlin_log_file_bytes").set(float(stats.file_bytes));
    gauge!("dunlin_log_live_bytes").set(float(stats.live_bytes));
    gauge!("dunlin_log_dead_bytes").set(float(stats.dead_bytes));
    gauge!("dunlin_log_rows").set(float(stats.rows));
    gauge!("dunlin_topics").set(float(engine.topics.len() as u64));
    gauge!("dunlin_publish_waiting").set(float(engine.waiting() as u64));
    gauge!("dunlin_disk_low").set(if engine.is_disk_low() { 1.0 } else { 0.0 });
    if let Ok(free) = crate::storage::free_bytes(data_dir) {
        gauge!("dunlin_disk_free_bytes").set(float(free));
    }
    gauge!("dunlin_damaged_shards").set(float(engine.damage.len() as u64));
    gauge!("dunlin_uptime_seconds").set(engine.clock.uptime().as_secs_f64());
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn float(n: u64) -> f64 {
    n as f64
}

fn seconds(nanos: u64) -> f64 {
    float(nanos) / 1e9
}

fn describe() {
    for (name, text) in [
        ("dunlin_publish_records_total", "Records taken from clients."),
        ("dunlin_publish_bytes_total", "Bytes of batches taken from clients."),
        ("dunlin_publish_refused_total", "Batches refused, by code."),
        ("dunlin_deliver_records_total", "Records sent to readers."),
        ("dunlin_deliver_bytes_total", "Bytes of batches sent to readers."),
        ("dunlin_relay_records_total", "Records passed on to the node that leads their partition."),
        (
            "dunlin_replication_alarms_total",
            "Contradictions between replicas that a human must look at.",
        ),
        ("dunlin_scrub_bytes_total", "Bytes of the log that were read to look for damage."),
        ("dunlin_damage_found_total", "Copies of shards that were found to be damaged."),
        ("dunlin_damage_repaired_total", "Damaged copies that were made anew from another node."),
        ("dunlin_connections_refused_total", "Connections refused, by reason."),
        ("dunlin_log_commits_total", "Commits of the log since start."),
        ("dunlin_log_checkpoints_total", "Checkpoints of the log since start."),
        ("dunlin_log_entries_total", "Entries committed since start."),
        ("dunlin_log_entry_bytes_total", "Bytes of entries committed since start."),
        ("dunlin_log_written_bytes_total", "Bytes written to the log's file since start."),
        ("dunlin_log_syncs_total", "Flushes of the log's file since start."),
        ("dunlin_log_collected_bytes_total", "Bytes of rows freed since start."),
    ] {
        describe_counter!(name, text);
    }
    for (name, text) in [
        ("dunlin_build_info", "Always 1; the version is a label."),
        ("dunlin_connections", "Open connections."),
        ("dunlin_log_commit_seconds_sum", "Time of all commits since start."),
        ("dunlin_log_commit_seconds_max", "Time of the slowest commit since start."),
        ("dunlin_log_commit_seconds_last", "Time of the last commit."),
        ("dunlin_log_file_bytes", "Length of the log's file, which is sparse."),
        ("dunlin_log_live_bytes", "Bytes of entries that must be kept."),
        ("dunlin_log_dead_bytes", "Bytes of entries that wait to be freed."),
        ("dunlin_log_rows", "Rows of the log."),
        ("dunlin_topics", "Topics of the site."),
        ("dunlin_publish_waiting", "Batches that wait for their ack."),
        ("dunlin_disk_low", "1 while publishes are refused because the disk is low."),
        ("dunlin_disk_free_bytes", "Free bytes of the data directory's disk."),
        ("dunlin_damaged_shards", "Copies of shards here that are damaged and not made anew yet."),
        ("dunlin_uptime_seconds", "Time since the node started."),
    ] {
        describe_gauge!(name, text);
    }
}
