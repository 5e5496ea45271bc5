//! Updates of a zone (RFC 2136), signed with a key (RFC 8945), over one TCP connection to the zone's primary server.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record as Rr, RecordType, TSigner,
        rdata::{
            A, AAAA, PTR, SRV, TXT,
            tsig::{TsigAlgorithm, TsigError},
        },
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{Dns, DnsError};
use crate::{
    discovery::{
        candidates::NodeKey,
        registration::{self, Change, Instance, Wanted},
        trouble::Trouble,
        tsig_key::{Algorithm, TsigKey},
        zone::{self, Data, Labels, Record, Target, ZONE_TTL},
    },
    limits::{
        CANDIDATES_PER_SOURCE_MAX, DNS_ANSWER_MAX, DNS_ATTEMPT_MAX, DNS_SERVER_ADDRESSES_MAX,
    },
    types::{Address, NodeId},
};

/// Where a node registers, and as whom.
#[derive(Clone, Debug)]
pub struct Registry<'a> {
    /// The domain of the site.
    pub domain: &'a str,
    /// The zone's primary server; none if the zone says it.
    pub server: Option<&'a Address>,
    /// The key.
    pub key: &'a TsigKey,
    /// Seconds since 1970: what signatures are compared by.
    pub now_s: u64,
}

/// The zone says what was wanted.
#[derive(Clone, Copy, Debug)]
pub struct Registered {
    /// The server that keeps the zone.
    pub server: SocketAddr,
    /// It has shown that it has the key.
    pub proven: bool,
}

impl Registry<'_> {
    /// Has the zone say this of a node, and takes out what removed nodes have left. `prove` has the server answer with the
    /// key even if nothing is to change.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn register(&self, wanted: &Wanted, prove: bool) -> Result<Registered, Trouble> {
        let mut primary = Primary::reach(self).await?;
        let instance = Instance::of(&wanted.said);
        let records = wanted.records();
        let held = primary.held(&instance, &records).await?;
        let stays = !wanted.serves && registration::leads_there(self.domain, &records, &held);
        let change =
            registration::change(&instance, self.domain, &records, &held, &wanted.removed)?;
        let proof = || registration::proof(&instance, &records, &held);
        let change = change.or_else(|| prove.then(proof)).filter(|_| !stays);
        if let Some(change) = &change {
            primary.change(change).await?;
        }
        primary.take_out_the_removed(&instance, &wanted.removed).await?;
        Ok(Registered { server: primary.server, proven: change.is_some() })
    }

    /// Takes the records of a node out.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn unregister(&self, instance: &Instance) -> Result<(), Trouble> {
        Primary::reach(self).await?.take_out(instance, &BTreeSet::new()).await
    }

    /// Where the zone's primary server listens.
    async fn servers(&self) -> Result<Vec<SocketAddr>, Trouble> {
        let unknown = |why: String| Trouble::NoServer { domain: self.domain.to_owned(), why };
        let found: Vec<SocketAddr> = match self.server {
            Some(server) => {
                let found = timeout(DNS_ANSWER_MAX, lookup_host((server.host(), server.port())));
                let found = found.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                let bad = |error: io::Error| unknown(format!("{}: {error}", server.host()));
                found.map_err(bad)?.collect()
            }
            None => {
                let dns = Dns::of(self.domain).map_err(|error| unknown(error.to_string()))?;
                let asked = timeout(DNS_ANSWER_MAX, primary_of(&dns, self.domain)).await;
                asked.unwrap_or_else(|_| Err(DnsError::Slow.to_string())).map_err(unknown)?
            }
        };
        if found.is_empty() {
            return Err(unknown("its name has no address".into()));
        }
        Ok(found.into_iter().take(DNS_SERVER_ADDRESSES_MAX).collect())
    }
}

/// What the zone's SOA record names.
async fn primary_of(dns: &Dns, domain: &str) -> Result<Vec<SocketAddr>, String> {
    let soa = match dns.resolver.lookup(name_of(domain)?, RecordType::SOA).await {
        Ok(found) => found.answers().iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.mname.clone()),
            _ => None,
        }),
        // Of a name within a zone: an answer that has none says whose zone it is.
        Err(error) => {
            let why = error.to_string();
            Some(error.into_soa().ok_or(why)?.data.mname.clone())
        }
    };
    let server = soa.ok_or("the answer names no zone")?;
    let ips = dns.resolver.lookup_ip(server.clone()).await;
    let ips = ips.map_err(|error| format!("its primary server is {server}: {error}"))?;
    Ok(ips.iter().map(|ip| SocketAddr::new(ip, DNS_PORT)).collect())
}

/// A connection to the server of a zone.
struct Primary {
    stream: TcpStream,
    server: SocketAddr,
    domain_text: String,
    domain: Name,
    zone: Name,
    signer: TSigner,
    key: String,
    now_s: u64,
}

impl Primary {
    async fn reach(registry: &Registry<'_>) -> Result<Self, Trouble> {
        let servers = registry.servers().await?;
        let (server, stream) = connect(&servers).await?;
        let odd = |what: String| Trouble::Odd { server, what };
        let domain = name_of(registry.domain).map_err(odd)?;
        let mut primary = Self {
            stream,
            server,
            domain_text: registry.domain.to_owned(),
            zone: domain.clone(),
            domain,
            signer: signer(registry.key).map_err(odd)?,
            key: registry.key.name().to_owned(),
            now_s: registry.now_s,
        };
        primary.zone = primary.find_zone().await?;
        Ok(primary)
    }

    /// The zone that holds the domain, if this server keeps it.
    async fn find_zone(&mut self) -> Result<Name, Trouble> {
        let answer = self.ask(self.domain.clone(), RecordType::SOA).await;
        let not_here =
            || Trouble::NotPrimary { server: self.server, domain: self.domain_text.clone() };
        let answer = match answer {
            Err(Trouble::Refused { .. }) => return Err(not_here()),
            answer => answer?,
        };
        let all = answer.answers.iter().chain(&answer.authorities);
        let zones = all.filter(|record| record.record_type() == RecordType::SOA);
        let zone = zones.map(|record| record.name.clone()).find(|zone| zone.zone_of(&self.domain));
        zone.filter(|_| answer.metadata.authoritative).ok_or_else(not_here)
    }

    /// What the zone says of an instance, and of the machines that it is wanted to name.
    async fn held(
        &mut self,
        instance: &Instance,
        wanted: &BTreeSet<Record>,
    ) -> Result<BTreeSet<Record>, Trouble> {
        let lists = [zone::service(), zone::of_site(instance.of.ca)];
        let mut held = BTreeSet::new();
        for list in &lists {
            held.extend(self.records(list, RecordType::PTR).await?);
        }
        for kind in [RecordType::TXT, RecordType::SRV] {
            held.extend(self.records(&instance.name, kind).await?);
        }
        let mut hosts = registration::hosts(&self.domain_text, wanted);
        hosts.extend(registration::hosts(&self.domain_text, &held));
        for host in hosts.iter().take(HOSTS_MAX) {
            for kind in [RecordType::A, RecordType::AAAA] {
                held.extend(self.records(host, kind).await?);
            }
        }
        Ok(held)
    }

    async fn take_out(
        &mut self,
        instance: &Instance,
        removed: &BTreeSet<NodeId>,
    ) -> Result<(), Trouble> {
        let held = self.held(instance, &BTreeSet::new()).await?;
        let (domain, nothing) = (&self.domain_text, BTreeSet::new());
        match registration::change(instance, domain, &nothing, &held, removed)? {
            Some(change) => self.change(&change).await,
            None => Ok(()),
        }
    }

    async fn take_out_the_removed(
        &mut self,
        own: &Instance,
        removed: &BTreeSet<NodeId>,
    ) -> Result<(), Trouble> {
        if removed.is_empty() {
            return Ok(());
        }
        let listed = self.records(&zone::of_site(own.of.ca), RecordType::PTR).await?;
        for record in listed.iter().take(CANDIDATES_PER_SOURCE_MAX) {
            let Data::Ptr(name) = &record.data else { continue };
            let txt = self.records(name, RecordType::TXT).await?.into_iter().collect();
            let site = NodeKey { ca: own.of.ca, id: own.of.id };
            let Some(left) = registration::left_by(name, site, &txt, removed) else { continue };
            match self.take_out(&left, removed).await {
                // Another node of the site was quicker.
                Err(Trouble::Overtaken) => {}
                done => {
                    done?;
                    tracing::info!(node = %left.of.id, "a removed node was taken out of DNS");
                }
            }
        }
        Ok(())
    }

    /// The records of a name, below the domain.
    async fn records(&mut self, name: &Labels, kind: RecordType) -> Result<Vec<Record>, Trouble> {
        let whole = self.below(name)?;
        let answer = self.ask(whole.clone(), kind).await?;
        let of_name = answer.answers.iter().filter(|record| record.name == whole);
        let data = of_name.filter_map(|record| data_of(&record.data, &self.domain));
        Ok(data.map(|data| Record { name: name.clone(), data }).collect())
    }

    async fn ask(&mut self, name: Name, kind: RecordType) -> Result<Message, Trouble> {
        let mut question = Message::query();
        question.metadata.recursion_desired = false;
        question.add_query(Query::query(name, kind));
        let bytes = self.exchange(&question).await?;
        let answer = self.read(&question, &bytes)?;
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
            code => Err(self.refusal(code, &answer)),
        }
    }

    async fn change(&mut self, change: &Change) -> Result<(), Trouble> {
        let mut update = self.update(change)?;
        let odd = |server, error: &dyn ToString| Trouble::Odd { server, what: error.to_string() };
        let signed = update.finalize(&self.signer, self.now_s);
        let verifier = signed.map_err(|error| odd(self.server, &error))?;
        let bytes = self.exchange(&update).await?;
        let answer = self.read(&update, &bytes)?;
        let code = answer.metadata.response_code;
        if code != ResponseCode::NoError {
            return Err(self.refusal(code, &answer));
        }
        match verifier.map(|mut verifier| verifier.verify(&bytes)) {
            Some(Ok(_)) => Ok(()),
            _ => Err(Trouble::Unsigned { server: self.server, key: self.key.clone() }),
        }
    }

    /// A change as RFC 2136 section 2 has it: zone, what must be so, what changes.
    fn update(&self, change: &Change) -> Result<Message, Trouble> {
        let mut message = Message::query();
        message.metadata.op_code = OpCode::Update;
        message.metadata.recursion_desired = false;
        message.add_query(Query::query(self.zone.clone(), RecordType::SOA));
        let instance = self.below(&change.instance)?;
        if change.only_if.is_empty() {
            let mut none = Rr::update0(instance, 0, RecordType::TXT).into_record_of_rdata();
            none.dns_class = DNSClass::NONE;
            message.add_answer(none);
        } else {
            for txt in &change.only_if {
                message.add_answer(Rr::from_rdata(instance.clone(), 0, self.rdata(txt)?));
            }
        }
        for record in &change.out {
            let mut out = Rr::from_rdata(self.below(&record.name)?, 0, self.rdata(&record.data)?);
            out.dns_class = DNSClass::NONE;
            message.add_authority(out);
        }
        for record in &change.put {
            let (name, data) = (self.below(&record.name)?, self.rdata(&record.data)?);
            message.add_authority(Rr::from_rdata(name, ZONE_TTL, data));
        }
        Ok(message)
    }

    /// Sends a message and waits for the next one.
    async fn exchange(&mut self, message: &Message) -> Result<Vec<u8>, Trouble> {
        let bytes = message.to_vec().map_err(|error| self.odd(&error))?;
        let len = u16::try_from(bytes.len()).map_err(|error| self.odd(&error))?;
        let stream = &mut self.stream;
        let exchange = async {
            let mut framed = len.to_be_bytes().to_vec();
            framed.extend(&bytes);
            stream.write_all(&framed).await?;
            let mut answer = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        let done = timeout(DNS_ANSWER_MAX, exchange).await;
        done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| Trouble::Silent { server: self.server, why: error.to_string() })
    }

    fn read(&self, question: &Message, bytes: &[u8]) -> Result<Message, Trouble> {
        let answer = Message::from_vec(bytes).map_err(|error| self.odd(&error))?;
        if answer.metadata.id != question.metadata.id {
            return Err(self.odd(&"something that was not asked"));
        }
        Ok(answer)
    }

    /// What a code other than success means. It may be unsigned: it counts as a failure, whoever says so.
    fn refusal(&self, code: ResponseCode, answer: &Message) -> Trouble {
        let (server, key) = (self.server, self.key.clone());
        let tsig = answer.signature().map(|record| &record.data);
        if let Some(error) = tsig.and_then(|tsig| tsig.error) {
            match error {
                TsigError::BadKey => return Trouble::UnknownKey { server, key },
                TsigError::BadSig | TsigError::BadTrunc => {
                    return Trouble::BadSecret { server, key };
                }
                TsigError::BadTime => {
                    let ahead_s = tsig.and_then(|tsig| self.ahead_s(&tsig.other));
                    return Trouble::BadTime { server, ahead_s };
                }
                TsigError::Unknown(_) => {}
            }
        }
        match code {
            ResponseCode::YXDomain | ResponseCode::YXRRSet | ResponseCode::NXRRSet => {
                Trouble::Overtaken
            }
            // Knot DNS says NOTAUTH for a key without an acl; that it keeps the zone is known by now.
            ResponseCode::Refused | ResponseCode::NotAuth => {
                Trouble::Refused { server, key, zone: self.zone.to_string() }
            }
            ResponseCode::NotZone => {
                Trouble::NotPrimary { server, domain: self.domain_text.clone() }
            }
            code => self.odd(&code),
        }
    }

    /// By how much the server's clock is ahead: it says its time in 48 bits (RFC 8945 section 5.2.3).
    fn ahead_s(&self, other: &[u8]) -> Option<i64> {
        let time: [u8; 6] = other.try_into().ok()?;
        let theirs = time.iter().fold(0_i64, |time, byte| time << 8 | i64::from(*byte));
        Some(theirs - i64::try_from(self.now_s).ok()?)
    }

    fn odd(&self, what: &dyn ToString) -> Trouble {
        Trouble::Odd { server: self.server, what: what.to_string() }
    }

    fn below(&self, labels: &Labels) -> Result<Name, Trouble> {
        below(labels, &self.domain).map_err(|why| self.odd(&why))
    }

    fn rdata(&self, data: &Data) -> Result<RData, Trouble> {
        rdata_of(data, &self.domain).map_err(|why| self.odd(&why))
    }
}

async fn connect(servers: &[SocketAddr]) -> Result<(SocketAddr, TcpStream), Trouble> {
    let mut last = None;
    for server in servers {
        let connected = timeout(DNS_ATTEMPT_MAX, TcpStream::connect(server)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok((*server, stream)),
            Err(error) => last = Some(Trouble::Silent { server: *server, why: error.to_string() }),
        }
    }
    let nobody = SocketAddr::new(IpAddr::from([0; 4]), DNS_PORT);
    Err(last.unwrap_or(Trouble::Silent { server: nobody, why: "no address".into() }))
}

fn signer(key: &TsigKey) -> Result<TSigner, String> {
    let algorithm = match key.algorithm() {
        Algorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
        Algorithm::HmacSha384 => TsigAlgorithm::HmacSha384,
        Algorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
    };
    let name = Name::from_ascii(key.name()).map_err(|error| error.to_string())?;
    let signer = TSigner::new(key.secret().to_vec(), algorithm, name, FUDGE_S);
    signer.map_err(|error| error.to_string())
}

fn name_of(domain: &str) -> Result<Name, String> {
    Name::from_ascii(format!("{}.", domain.trim_matches('.'))).map_err(|error| error.to_string())
}

fn below(labels: &Labels, domain: &Name) -> Result<Name, String> {
    let name = Name::from_labels(labels.iter().map(|label| label.as_bytes()));
    let whole = name.and_then(|name| name.append_domain(domain));
    whole.map_err(|error| error.to_string())
}

fn rdata_of(data: &Data, domain: &Name) -> Result<RData, String> {
    Ok(match data {
        Data::Ptr(to) => RData::PTR(PTR(below(to, domain)?)),
        Data::Srv { priority, weight, port, target } => {
            let target = match target {
                Target::Ours(host) => below(host, domain)?,
                Target::Named(name) => name_of(name)?,
            };
            RData::SRV(SRV::new(*priority, *weight, *port, target))
        }
        Data::Txt(keys) => RData::TXT(TXT::new(keys.clone())),
        Data::A(ip) => RData::A(A(*ip)),
        Data::Aaaa(ip) => RData::AAAA(AAAA(*ip)),
    })
}

/// None of what no node says.
fn data_of(data: &RData, domain: &Name) -> Option<Data> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(match data {
        RData::PTR(to) if domain.zone_of(&to.0) => {
            let own = usize::from(to.0.num_labels()).checked_sub(domain.num_labels().into())?;
            Data::Ptr(to.0.iter().take(own).map(text).collect())
        }
        RData::SRV(srv) => Data::Srv {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: Target::Named(srv.target.to_ascii()),
        },
        RData::TXT(txt) => Data::Txt(txt.txt_data.iter().map(|key| text(key)).collect()),
        RData::A(ip) => Data::A(ip.0),
        RData::AAAA(ip) => Data::Aaaa(ip.0),
        _ => return None,
    })
}

const DNS_PORT: u16 = 53;
/// By how many seconds clocks may differ (RFC 8945 section 10).
const FUDGE_S: u16 = 300;
/// Machines of one node that are looked at.
const HOSTS_MAX: usize = 8;

#[cfg(test)]
mod tests;
