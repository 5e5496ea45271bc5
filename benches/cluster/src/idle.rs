//! What a site costs that has topics and nothing to do.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    Common,
    failure::Result,
    site::{Shape, Site},
    table::{Wanted, heading, line},
};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Idle {
    /// Topics of the site
    #[arg(long, value_name = "N", default_value_t = 100)]
    topics: u32,
    /// Partitions of each topic
    #[arg(long, value_name = "N", default_value_t = 10)]
    partitions: u32,
    /// Seconds that are looked at, after some to come to rest
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    seconds: u64,
}

impl Idle {
    pub(crate) async fn run(&self, common: &Common) -> Result<()> {
        let all = self.topics * self.partitions;
        heading(&format!("idle for {} s: {} topics, {all} partitions", self.seconds, self.topics));
        for (data, witnesses) in [(3, 0), (2, 1)] {
            let shape = Shape { data, witnesses, settings: String::new() };
            self.site(common, shape).await?;
        }
        Ok(())
    }

    async fn site(&self, common: &Common, shape: Shape) -> Result<()> {
        let Shape { data, witnesses, .. } = shape;
        let site = Site::start(&common.dunlin, &common.dir(), shape).await?;
        site.make_topics(self.topics, self.partitions).await?;
        sleep(REST).await;
        let lasting = Duration::from_secs(self.seconds);
        let before = site.usage()?;
        sleep(lasting).await;
        for (node, (after, before)) in site.usage()?.iter().zip(&before).enumerate() {
            let core = after.cpu_since(before).as_secs_f64() / lasting.as_secs_f64();
            let memory = after.resident as f64 / 1e6;
            let kind = if node < data { "node" } else { "witness" };
            let of = if witnesses == 0 { "three" } else { "two and a witness" };
            let name = format!("{kind} {} of {of}: % of a core", node + 1);
            let figures = format!("{memory:.1} MB of memory");
            line(&name, Wanted::AtMost(CORE_PERCENT_MAX), core * 100.0, &figures);
            if node >= data {
                line("  its memory, MB", Wanted::AtMost(WITNESS_MB_MAX), memory, "");
            }
        }
        Ok(())
    }
}

const CORE_PERCENT_MAX: f64 = 2.0;
const WITNESS_MB_MAX: f64 = 20.0;
/// What was begun with the topics is over by then.
const REST: Duration = Duration::from_secs(10);
