//! DNS-SD in ordinary DNS (RFC 6763): who is named in a domain, where no multicast passes.

pub mod update;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{
        ProtoError,
        rr::{Name, RData, RecordType, rdata::SRV},
    },
};
use tokio::{
    task::JoinSet,
    time::{error::Elapsed, timeout},
};

use super::{
    SERVICE_TYPE,
    announcement::Announcement,
    candidates::{Sighting, Source},
};
use crate::limits::{
    CANDIDATES_PER_SOURCE_MAX, DNS_ANSWER_MAX, DNS_ATTEMPT_MAX, DNS_LIFE_MAX, DNS_LIFE_MIN,
    SIGHTING_ADDRESSES_MAX, SIGHTINGS_PER_CANDIDATE_MAX,
};

/// Asks one domain.
#[derive(Clone, Debug)]
pub struct Dns {
    resolver: TokioResolver,
    service: Name,
}

/// Why nobody is found by DNS.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The domain is no name.
    #[error("'{domain}' is no domain: {source}")]
    Domain {
        /// What was given.
        domain: String,
        /// What is wrong with it.
        source: ProtoError,
    },
    /// The name servers of this machine are not known.
    #[error("no name server is known: {0}")]
    NoServer(NetError),
    /// They do not answer, or do not know the service.
    #[error("{name}: {source}")]
    Lookup {
        /// What was asked.
        name: String,
        /// Why there is no answer.
        source: NetError,
    },
    /// It took too long.
    #[error("the name servers took longer than {} s", DNS_ANSWER_MAX.as_secs())]
    Slow,
}

impl From<Elapsed> for DnsError {
    fn from(_: Elapsed) -> Self {
        Self::Slow
    }
}

impl Dns {
    /// Of this domain, by the name servers of this machine.
    ///
    /// # Errors
    /// If the domain is none, or no name server is known.
    pub fn of(domain: &str) -> Result<Self, DnsError> {
        let builder = Resolver::builder_tokio().map_err(DnsError::NoServer)?;
        Self::with(domain, builder)
    }

    /// Of this domain, by one name server.
    ///
    /// # Errors
    /// If the domain is none.
    pub fn at(domain: &str, server: SocketAddr) -> Result<Self, DnsError> {
        let mut config = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut config.connections {
            let connection: &mut ConnectionConfig = connection;
            connection.port = server.port();
        }
        let config = ResolverConfig::from_parts(None, vec![], vec![config]);
        Self::with(domain, Resolver::builder_with_config(config, TokioRuntimeProvider::default()))
    }

    fn with(
        domain: &str,
        mut builder: hickory_resolver::ResolverBuilder<TokioRuntimeProvider>,
    ) -> Result<Self, DnsError> {
        let bad = |source| DnsError::Domain { domain: domain.to_owned(), source };
        let whole = format!("{SERVICE_TYPE}.{}.", domain.trim_matches('.'));
        let service = Name::from_ascii(whole).map_err(bad)?;
        let options = builder.options_mut();
        options.timeout = DNS_ATTEMPT_MAX;
        options.attempts = 1;
        let resolver = builder.build().map_err(DnsError::NoServer)?;
        Ok(Self { resolver, service })
    }

    /// Who is named there now. An instance that cannot be read is left out.
    ///
    /// # Errors
    /// [`DnsError`].
    pub async fn browse(&self, now: Duration) -> Result<Vec<Sighting>, DnsError> {
        let answer =
            timeout(DNS_ANSWER_MAX, self.resolver.lookup(self.service.clone(), RecordType::PTR));
        let answer = answer
            .await?
            .map_err(|source| DnsError::Lookup { name: self.service.to_string(), source })?;
        let mut asking = JoinSet::new();
        for record in answer.answers().iter().take(CANDIDATES_PER_SOURCE_MAX) {
            let RData::PTR(instance) = &record.data else { continue };
            let (dns, instance) = (self.clone(), instance.0.clone());
            asking.spawn(async move {
                let asked = timeout(DNS_ANSWER_MAX, dns.resolve(&instance, now)).await;
                (instance, asked)
            });
        }
        let mut found = Vec::new();
        while let Some(asked) = asking.join_next().await {
            match asked {
                Ok((_, Ok(Ok(sightings)))) => found.extend(sightings),
                Ok((instance, Ok(Err(why)))) => tracing::debug!(%instance, why, "not understood"),
                Ok((instance, Err(Elapsed { .. }))) => tracing::debug!(%instance, "no answer"),
                Err(error) => tracing::debug!(%error, "lookup ended"),
            }
        }
        Ok(found)
    }

    async fn resolve(&self, instance: &Name, now: Duration) -> Result<Vec<Sighting>, String> {
        let ask = |kind| self.resolver.lookup(instance.clone(), kind);
        let (srv, txt) = tokio::join!(ask(RecordType::SRV), ask(RecordType::TXT));
        let (srv, txt) = (srv.map_err(|e| e.to_string())?, txt.map_err(|e| e.to_string())?);
        let keys: Vec<String> = txt
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::TXT(text) => Some(text.txt_data.iter()),
                _ => None,
            })
            .flatten()
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .collect();
        let label = instance.iter().next().unwrap_or_default();
        let pairs = keys.iter().filter_map(|key| key.split_once('='));
        let said = Announcement::from_txt(&String::from_utf8_lossy(label), pairs);
        let said = said.map_err(|error| error.to_string())?;
        let life = srv.valid_until().saturating_duration_since(now_here());
        let until = Some(now + life.clamp(DNS_LIFE_MIN, DNS_LIFE_MAX));
        let mut sightings = Vec::new();
        for record in srv.answers().iter().take(SIGHTINGS_PER_CANDIDATE_MAX) {
            let RData::SRV(srv) = &record.data else { continue };
            let addresses = self.addresses(srv).await;
            if addresses.is_empty() {
                continue;
            }
            let mut announcement = said.clone();
            // RFC 6763 has 0 where an instance is one machine: then what it says of itself counts.
            if srv.weight > 0 {
                announcement.weight = srv.weight.into();
            }
            sightings.push(Sighting {
                source: Source::Dns,
                instance: format!("{instance} {}:{}", srv.target, srv.port),
                announcement,
                addresses,
                priority: srv.priority,
                until,
            });
        }
        Ok(sightings)
    }

    async fn addresses(&self, srv: &SRV) -> Vec<SocketAddr> {
        // "." says that the service is not there (RFC 2782).
        if srv.target.is_root() || srv.port == 0 {
            return Vec::new();
        }
        match self.resolver.lookup_ip(srv.target.clone()).await {
            Ok(found) => {
                let ips = found.iter().take(SIGHTING_ADDRESSES_MAX);
                ips.map(|ip| SocketAddr::new(ip, srv.port)).collect()
            }
            Err(error) => {
                tracing::debug!(target = %srv.target, %error, "no address");
                Vec::new()
            }
        }
    }
}

/// The resolver counts by the system's clock.
#[expect(clippy::disallowed_methods, reason = "compared with a time of that clock")]
fn now_here() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
