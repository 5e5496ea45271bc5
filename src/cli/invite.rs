//! `dunlin invite`: lets one more machine become a node.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use super::{
    Global,
    cert::is_loopback,
    exit::Failure,
    output,
    remote::block_on,
    units::{self, rfc3339},
};
use crate::{net::Address, types::NodeRole, wire::Invited};

/// `dunlin invite`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The invite goes to standard output, what to do with it to standard error. It is a\n\
    secret: whoever has it can be a node of the site, once.\n\n\
    Examples:\n  \
    dunlin invite\n  \
    dunlin invite --role witness --expires 10m\n  \
    dunlin invite --address edge-1.plant.example | ssh root@edge-2 dunlin join -"
)]
pub struct Invite {
    /// What the new node is for: data holds records, witness only votes
    #[arg(long, value_name = "ROLE", default_value = "data")]
    role: NodeRole,
    /// How long it can be used, such as 10m or 1d [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    expires: Option<Duration>,
    /// Where the new machine finds this node; give it again for more [default: as the node advertises]
    #[arg(long = "address", value_name = "HOST:PORT")]
    addresses: Vec<Address>,
}

impl Invite {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        block_on(async {
            let client = global.connect().await?;
            let invited = client.cluster().invite(self.role, self.expires, &self.addresses).await;
            client.close().await;
            let invited = invited?;
            if global.json {
                return global.output().show(&invited, |_| String::new());
            }
            output::print(format!("{}\n", invited.token.as_str()).as_bytes())?;
            // With standard error gone the invite is still good.
            let _ = io::stderr().lock().write_all(what_to_do(&invited).as_bytes());
            Ok(())
        })
    }
}

fn what_to_do(invited: &Invited) -> String {
    let mut text = format!(
        "\nOn the new machine, as root:  dunlin join TOKEN\n\
         It becomes a {} node, and looks for the site at {}.\n\
         The invite works once, until {}.\n",
        invited.role,
        invited.addresses.join(", "),
        rfc3339(invited.expires),
    );
    let addresses: Vec<Address> =
        invited.addresses.iter().filter_map(|address| address.parse().ok()).collect();
    if addresses.iter().all(is_loopback) {
        text.push_str("Only this machine can reach that: for others give --address HOST:PORT.\n");
    }
    text
}
