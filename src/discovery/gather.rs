//! One look round: listens for a time and gives what was heard.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{
    announcement::CaPrefix,
    candidates::{Candidates, Source},
    mdns::{Mdns, MdnsError, MdnsEvent, Reach},
};
use crate::limits::DISCOVER_GATHER;

/// When a look round is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After this time.
    Time(Duration),
    /// A moment after the first node was heard, at the latest after this time.
    Found(Duration),
}

/// Listens to the networks of this machine, for nodes of one site or of all.
///
/// # Errors
/// If there is no multicast to be had.
pub async fn gather(site: Option<CaPrefix>, until: Until) -> Result<Candidates, MdnsError> {
    let mdns = Mdns::start(Reach::All)?;
    let mut browse = mdns.browse()?;
    let mut table = Candidates::of_site(site);
    let begun = Instant::now();
    let (Until::Time(most) | Until::Found(most)) = until;
    let mut end = begun + most;
    loop {
        let event = tokio::select! {
            event = browse.next() => event,
            () = sleep_until(end) => None,
        };
        match event {
            None => return Ok(table),
            Some(MdnsEvent::Seen(sighting)) => {
                if table.see(*sighting, begun.elapsed()) && matches!(until, Until::Found(_)) {
                    end = end.min(Instant::now() + DISCOVER_GATHER);
                }
            }
            Some(MdnsEvent::Gone(instance)) => drop(table.gone(Source::Multicast, &instance)),
            Some(MdnsEvent::Strange(what)) => tracing::debug!(what, "announcement not understood"),
        }
    }
}
