//! `dunlin cluster recover`: go on without data that is lost for good.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use super::{
    Global,
    cluster::{name, names, or_dash},
    exit::Failure,
    output::Table,
};
use crate::{
    client::Client,
    wire::{ClusterStatus, RecoveryPlan, StuckShard},
};

/// `dunlin cluster recover`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --accept-data-loss nothing is changed: it is shown which shards cannot go on, and what\n\
    each node that is up has of them. First try to bring the nodes back that have more.\n\n\
    With it, each of these shards goes on with the best copy that is left. What only others had is lost\n\
    for ever, also if they come back: they take over the copy that was chosen. Offsets that readers have\n\
    stored may not exist any more, or be of other records.\n\n\
    Examples:\n  \
    dunlin cluster recover\n  \
    dunlin cluster recover --accept-data-loss"
)]
pub(super) struct Recover {
    /// Lose what no node that is up has
    #[arg(long)]
    accept_data_loss: bool,
    /// Do not ask
    #[arg(long, requires = "accept_data_loss")]
    yes: bool,
}

impl Recover {
    pub(super) async fn run(
        self,
        status: &ClusterStatus,
        client: &Client,
        global: &Global,
    ) -> Result<(), Failure> {
        let plan = client.cluster().recovery_plan().await?;
        if !self.accept_data_loss || plan.shards.is_empty() {
            return global.output().show(&plan, |plan| in_words(status, plan));
        }
        let gone = plan.shards.iter().find(|stuck| stuck.survivors.is_empty());
        if let Some(stuck) = gone {
            let message = format!("no node that is up could take shard {}", stuck.shard);
            return Err(Failure::runtime(message).hint("let a machine join first: dunlin invite"));
        }
        if !self.yes {
            ask(status, &plan)?;
        }
        for stuck in &plan.shards {
            let Some(best) = stuck.survivors.first() else { continue };
            client.cluster().recover(stuck.shard, stuck.version, best.node).await?;
        }
        global.output().show(&plan, |plan| {
            let shards: Vec<String> = plan.shards.iter().map(|s| s.shard.to_string()).collect();
            format!(
                "shards {} go on with what was left: dunlin cluster status shows how\n",
                shards.join(", ")
            )
        })
    }
}

fn ask(status: &ClusterStatus, plan: &RecoveryPlan) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("nobody is there to be asked").hint("say so with --yes"));
    }
    let mut err = io::stderr().lock();
    let text = in_words(status, plan);
    let asked = write!(err, "{text}\nThis cannot be undone. Type the site's name to go on: ");
    let mut answer = String::new();
    let read =
        asked.and_then(|()| err.flush()).and_then(|()| io::stdin().lock().read_line(&mut answer));
    match read {
        Ok(_) if answer.trim() == plan.site => Ok(()),
        Ok(_) => Err(Failure::runtime("nothing was changed")),
        Err(error) => Err(Failure::runtime(format!("cannot ask: {error}"))),
    }
}

fn in_words(status: &ClusterStatus, plan: &RecoveryPlan) -> String {
    if plan.shards.is_empty() {
        return "every shard can go on by itself, nothing has to be lost\n".into();
    }
    let mut table = Table::new(&["shard", "partitions", "had by", "committed", "left", "lost"]);
    for stuck in &plan.shards {
        let left = stuck.survivors.iter().map(|survivor| {
            let end = survivor.end.map_or_else(|| "nothing".to_owned(), |end| format!("to {end}"));
            format!("{} {end}", name(status, survivor.node))
        });
        table.row([
            stuck.shard.to_string(),
            stuck.partitions.to_string(),
            or_dash(names(status, &stuck.members)),
            stuck.floor.map_or_else(|| "-".to_owned(), |floor| format!("at least {floor}")),
            or_dash(left.collect::<Vec<_>>().join(", ")),
            lost(stuck),
        ]);
    }
    let mut text = table.to_text();
    for stuck in &plan.shards {
        text.push_str(&format!("\nshard {}: {}", stuck.shard, stuck.why));
    }
    text.push_str(
        "\n\nBring back the nodes that had these shards if you can. If not, let the shards go on with the \
         first copy of each: dunlin cluster recover --accept-data-loss\n",
    );
    text
}

/// What is lost if the shard goes on with its best copy, as far as known.
fn lost(stuck: &StuckShard) -> String {
    let best = stuck.survivors.first().and_then(|survivor| survivor.end);
    match (best, stuck.floor) {
        (None, _) => "everything".into(),
        (Some(best), Some(floor)) if best < floor => {
            format!("at least {} log entries", floor.0 - best.0)
        }
        (Some(best), _) => format!("what came behind {best}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        types::{Epoch, Lsn, NodeId},
        wire::Survivor,
    };

    #[test]
    fn a_person_sees_what_is_left_and_what_is_lost() {
        let survivor = |node, end: u64, epoch| Survivor {
            node: NodeId(node),
            end: (end > 0).then_some(Lsn(end)),
            epoch: Epoch(epoch),
        };
        let stuck = |floor, survivors: Vec<Survivor>| StuckShard {
            shard: 3,
            version: 9,
            why: "no member of its set is up".into(),
            members: vec![NodeId(1)],
            partitions: 2,
            floor: Some(Lsn(floor)),
            survivors,
        };
        assert_eq!(lost(&stuck(50, vec![survivor(2, 20, 4)])), "at least 30 log entries");
        assert_eq!(lost(&stuck(50, vec![survivor(2, 60, 4)])), "what came behind 60");
        assert_eq!(lost(&stuck(50, vec![survivor(2, 0, 0)])), "everything");
        let status = ClusterStatus {
            site: "plant".into(),
            node: NodeId(2),
            leader: None,
            level: 1,
            nodes: vec![],
            shards: vec![],
            invites: 0,
        };
        let plan = RecoveryPlan {
            site: "plant".into(),
            shards: vec![stuck(50, vec![survivor(2, 20, 4)])],
        };
        let text = in_words(&status, &plan);
        for part in ["at least 50", "2 to 20", "no member of its set is up", "--accept-data-loss"] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
}
