//! One look round: listens for a time and gives what was heard.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    announcement::CaPrefix,
    candidates::{Candidates, Source},
    dns::{Dns, DnsError},
    mdns::{Browse, Mdns, MdnsError, MdnsEvent, Reach},
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

/// Why nobody can be looked for.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// This machine has no multicast, and no domain was given.
    #[error(transparent)]
    Mdns(#[from] MdnsError),
    /// The domain cannot be asked.
    #[error(transparent)]
    Dns(#[from] DnsError),
}

/// Listens to the networks of this machine, and asks a domain if one is given, for nodes of one site or of all.
///
/// # Errors
/// If nobody was found, and multicast or the domain is not to be had.
pub async fn gather(
    site: Option<CaPrefix>,
    domain: Option<&str>,
    until: Until,
) -> Result<Candidates, GatherError> {
    let begun = Instant::now();
    let mut named = pin!(async {
        match domain {
            Some(domain) => Dns::of(domain)?.browse(Duration::ZERO).await,
            None => Ok(vec![]),
        }
    });
    let (mut heard, mut failed) = match begin() {
        Ok(heard) => (Some(heard), None),
        Err(error) => (None, Some(GatherError::Mdns(error))),
    };
    let mut table = Candidates::of_site(site);
    let (Until::Time(most) | Until::Found(most)) = until;
    let mut end = begun + most;
    let mut asked = domain.is_none();
    loop {
        let mut new = false;
        tokio::select! {
            event = next(&mut heard) => match event {
                MdnsEvent::Seen(sighting) => new = table.see(*sighting, begun.elapsed()),
                MdnsEvent::Gone(instance) => drop(table.gone(Source::Multicast, &instance)),
                MdnsEvent::Strange(what) => tracing::debug!(what, "announcement not understood"),
            },
            answer = &mut named, if !asked => {
                asked = true;
                match answer {
                    Ok(found) => {
                        for sighting in found {
                            new |= table.see(sighting, begun.elapsed());
                        }
                    }
                    Err(error) => failed = Some(error.into()),
                }
            }
            () = sleep_until(end) => break,
        }
        if new && matches!(until, Until::Found(_)) {
            end = end.min(Instant::now() + DISCOVER_GATHER);
        }
    }
    let nobody = table.nodes().next().is_none();
    failed.filter(|_| nobody).map_or(Ok(table), Err)
}

fn begin() -> Result<(Mdns, Browse), MdnsError> {
    let mdns = Mdns::start(Reach::All)?;
    let browse = mdns.browse()?;
    Ok((mdns, browse))
}

/// Waits for ever once multicast has ended.
async fn next(heard: &mut Option<(Mdns, Browse)>) -> MdnsEvent {
    if let Some((_, browse)) = heard
        && let Some(event) = browse.next().await
    {
        return event;
    }
    *heard = None;
    std::future::pending().await
}
