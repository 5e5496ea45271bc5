//! Lets machines become nodes: one connection, one question with an invite's secret, one answer.
//!
//! Invariant: nothing is signed and nothing proposed before the secret has been compared. Every outcome is logged.

use std::{net::SocketAddr, sync::Arc};

use quinn::{Connection, SendStream};
use tokio::time::{error::Elapsed, timeout};

use super::{
    connection::{Shared, close},
    site_admin::{group_fault, node_infos},
    streams::{self, StreamError},
};
use crate::{
    cluster::{FOUNDER, InviteId, InviteRecord, MetaCommand, MetaOutcome, SiteState},
    limits::{JOIN_ADDRESSES_MAX, JOIN_SERVE_MAX, META_PROPOSE_MAX, SOFTWARE_LEN_MAX},
    net::{
        SiteAuthority,
        authority::{AuthorityError, CA_KEY_FILE, Validity},
        frames::FrameReader,
        invite,
    },
    types::{Address, NodeId, Timestamp},
    wire::{
        CloseCode, Code, Detail, Fault, FrameType, JoinAnswer, JoinRequest, JoinWelcome,
        PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, cbor,
    },
};

/// Serves the one request of a joiner, and ends the connection.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection) {
    let address = connection.remote_address();
    let Ok(_permit) = shared.joins.try_acquire() else {
        tracing::warn!(%address, "join refused, others are under way");
        return close(&connection, CloseCode::Busy, "other machines are joining: try again");
    };
    let served = timeout(JOIN_SERVE_MAX, exchange(&shared, &connection));
    let served = tokio::select! {
        served = served => served,
        () = shared.stopping.cancelled() => {
            let code = CloseCode::Stopping;
            return close(&connection, code, &code.to_string());
        }
    };
    match served {
        Ok(Ok(())) => close(&connection, CloseCode::Done, ""),
        Ok(Err(error)) => {
            tracing::warn!(%address, %error, "join ended without an answer");
            close(&connection, CloseCode::Protocol, &error.to_string());
        }
        Err(Elapsed { .. }) => {
            tracing::warn!(%address, "join took too long");
            close(&connection, CloseCode::HelloTimeout, "the join took too long");
        }
    }
}

async fn exchange(shared: &Arc<Shared>, connection: &Connection) -> Result<(), StreamError> {
    let (mut output, input) =
        connection.accept_bi().await.map_err(|error| lost(&error.to_string()))?;
    let frame = FrameReader::new(input).next().await?;
    let request: JoinRequest = match frame {
        Some(frame) if frame.kind == FrameType::JoinRequest => {
            cbor::get(&frame.body).map_err(|error| streams::malformed(&error))?
        }
        Some(frame) => return Err(streams::unexpected(frame.kind).into()),
        None => return Err(lost("the stream ended before the question").into()),
    };
    let answer = match answer(shared, connection.remote_address(), request).await {
        Ok(welcome) => JoinAnswer::Welcome(welcome),
        Err(fault) => JoinAnswer::Fault(fault),
    };
    tell(&mut output, &answer).await
}

async fn tell(output: &mut SendStream, answer: &JoinAnswer) -> Result<(), StreamError> {
    streams::send(output, FrameType::JoinAnswer, answer).await?;
    streams::finish(output)?;
    // The close must not overtake the answer. A joiner that is gone asks again.
    let _ = output.stopped().await;
    Ok(())
}

async fn answer(
    shared: &Arc<Shared>,
    address: SocketAddr,
    request: JoinRequest,
) -> Result<JoinWelcome, Fault> {
    let (name, invite) = (request.name.clone(), InviteId(request.invite));
    let software: String = request.software.chars().take(SOFTWARE_LEN_MAX).collect();
    let decided = decide(shared, request).await;
    match &decided {
        Ok(welcome) => tracing::info!(
            %address, node = %name, id = %welcome.node, %invite, role = %welcome.role, software,
            "machine joined the site"
        ),
        Err(fault) => tracing::warn!(
            %address, node = %name, %invite, software, code = %fault.code, reason = %fault, "join refused"
        ),
    }
    decided
}

async fn decide(shared: &Arc<Shared>, request: JoinRequest) -> Result<JoinWelcome, Fault> {
    check_form(&request)?;
    // An invite that was made on another node a moment ago must be known here, one that was used must be known to be.
    let current = shared.engine.group.ensure_current(META_PROPOSE_MAX).await;
    current.map_err(|error| group_fault(&error))?;
    let shared = Arc::clone(shared);
    // Reads the authority's key, and waits for the metadata.
    let work = move || admit(&shared, &request);
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Fault::new(Code::Internal, "the join did not end")))
}

/// What can be said without knowing the site.
fn check_form(request: &JoinRequest) -> Result<(), Fault> {
    let (min, max) = (request.version_min, request.version_max);
    if min > PROTOCOL_VERSION || max < PROTOCOL_VERSION_MIN {
        let message = format!(
            "the joiner speaks versions {min} to {max}, this node {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}"
        );
        return Err(Fault::new(Code::VersionUnsupported, message)
            .with_hint("install the same release of dunlin on both machines"));
    }
    let addresses = &request.addresses;
    if addresses.len() > JOIN_ADDRESSES_MAX {
        let (have, max) = (addresses.len(), JOIN_ADDRESSES_MAX);
        return Err(Fault::new(Code::Invalid, format!("{have} addresses, limit is {max}")));
    }
    match addresses.iter().find_map(|address| address.parse::<Address>().err()) {
        Some(bad) => Err(Fault::new(Code::Invalid, bad.to_string())),
        None => Ok(()),
    }
}

/// Compares, signs and proposes, in this order: an invite is not used up by a request that cannot be signed.
fn admit(shared: &Shared, request: &JoinRequest) -> Result<JoinWelcome, Fault> {
    let (group, now) = (&shared.engine.group, shared.engine.clock.wall());
    let invite = group.read(|site| may_join(site, request, now))?;
    let authority = authority(shared)?;
    let validity = Validity::as_long_as_the_authority(shared.engine.clock.system());
    let certificate_pem = authority
        .sign_node_request(&request.csr.0, &request.name, validity)
        .map_err(|error| refusal_to_sign(&error))?;
    let add = MetaCommand::AddNode {
        name: request.name.clone(),
        disk_id: request.disk_id,
        role: invite.role,
        invite: Some(InviteId(request.invite)),
        now,
    };
    let node = match group.propose_blocking(add) {
        Ok(MetaOutcome::NodeAdded(node)) => node,
        Ok(_) => return Err(Fault::new(Code::Internal, "the metadata answered something else")),
        // Another machine may have been quicker with the same invite.
        Err(error) => return Err(group_fault(&error)),
    };
    let (shards, nodes) = group.read(|site| (site.shards.len(), node_infos(site, Some(node))));
    Ok(JoinWelcome {
        node,
        site: shared.site.clone(),
        role: invite.role,
        certificate_pem,
        ca_pem: authority.certificate_pem().to_owned(),
        shards: u16::try_from(shards).unwrap_or(u16::MAX),
        nodes,
    })
}

/// Whether the secret opens the site for this machine. Only who has it is told more than that it does not.
fn may_join(
    site: &SiteState,
    request: &JoinRequest,
    now: Timestamp,
) -> Result<InviteRecord, Fault> {
    let id = InviteId(request.invite);
    let refused = |message: String| Fault::new(Code::Forbidden, message).with_hint(HINT_NEW);
    let known = site.invites.get(&id);
    let Some(invite) = known.filter(|known| invite::proves(request.secret, &known.secret_hash))
    else {
        return Err(refused(format!(
            "invite {id} is not one of this site with this secret; it may have ended long ago"
        )));
    };
    if invite.expires <= now {
        let since = now.since(invite.expires).as_secs();
        return Err(refused(format!("invite {id} expired {since} s ago, by this node's clock")));
    }
    let Some(used_by) = invite.used_by else { return Ok(invite.clone()) };
    // The same machine again: the answer to it was lost.
    let is_same = |id: NodeId| {
        let node = site.nodes.get(&id)?;
        Some(node.name == request.name && node.disk_id == request.disk_id)
    };
    match is_same(used_by) {
        Some(true) => Ok(invite.clone()),
        Some(false) | None => {
            let node = site.nodes.get(&used_by).map(|node| node.name.to_string());
            let node = node.unwrap_or_else(|| used_by.to_string());
            Err(refused(format!("invite {id} was used by node '{node}'")))
        }
    }
}

/// The site's authority, if its key is on this node.
fn authority(shared: &Shared) -> Result<SiteAuthority, Fault> {
    let error = match SiteAuthority::load(&shared.pki_dir) {
        Ok(authority) => return Ok(authority),
        Err(error) => error,
    };
    match &error {
        AuthorityError::File(file) if file.is_not_found() => Err(no_key(shared)),
        _ => {
            tracing::error!(%error, "the site's authority cannot be used");
            Err(Fault::new(Code::Internal, format!("node '{}' cannot sign", shared.node))
                .with_hint("see its log"))
        }
    }
}

/// Says who may have the key: the node that made the site.
fn no_key(shared: &Shared) -> Fault {
    let founder = shared.engine.group.read(|site| {
        let node = site.nodes.get(&FOUNDER)?;
        Some((node.name.to_string(), node.info.addresses.join(" or ")))
    });
    let message = format!("node '{}' has no {CA_KEY_FILE} and cannot sign", shared.node);
    let fault = Fault::new(Code::Forbidden, message);
    match founder {
        Some((name, addresses)) if shared.engine.me.node != FOUNDER => {
            let at = if addresses.is_empty() { String::new() } else { format!(" at {addresses}") };
            let detail = Detail { node: Some(name.clone()), ..Detail::default() };
            fault
                .with_hint(format!("ask node '{name}'{at}: run dunlin invite there"))
                .with_detail(detail)
        }
        _ => fault.with_hint(format!("put {CA_KEY_FILE} of the site back into its pki directory")),
    }
}

fn refusal_to_sign(error: &AuthorityError) -> Fault {
    match error {
        AuthorityError::Request { .. } => Fault::new(Code::Invalid, error.to_string())
            .with_hint("use the same release of dunlin on both machines"),
        error => {
            tracing::error!(%error, "the site's authority cannot sign");
            Fault::new(Code::Internal, error.to_string())
        }
    }
}

fn lost(why: &str) -> Fault {
    Fault::new(Code::Timeout, why)
}

const HINT_NEW: &str = "make a new one on a node of the site: dunlin invite";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{BootClaim, NodeInfo},
        types::{InviteSecret, NodeRole},
        wire::Octets,
    };

    const NOW: Timestamp = Timestamp(1_000);
    const SECRET: InviteSecret = InviteSecret::new(7);

    /// A site of one node with one invite, number 5, that holds until 2,000.
    fn site() -> SiteState {
        let mut site = SiteState::default();
        let found = MetaCommand::Found { site: "plant".parse().expect("name"), shards: 1 };
        let register = MetaCommand::Register {
            name: "n-1".parse().expect("name"),
            disk_id: 1,
            claim: BootClaim { boot: 1, nonce: 1, ..BootClaim::default() },
            info: NodeInfo::default(),
        };
        let invite = MetaCommand::Invite {
            id: InviteId(5),
            secret_hash: invite::secret_hash(SECRET),
            role: NodeRole::Data,
            expires: Timestamp(2_000),
            now: NOW,
        };
        for (index, command) in (1..).zip([found, register, invite]) {
            site.apply(index, command).expect("allowed");
        }
        site
    }

    fn add(site: &mut SiteState, request: &JoinRequest) -> Result<MetaOutcome, Fault> {
        let add = MetaCommand::AddNode {
            name: request.name.clone(),
            disk_id: request.disk_id,
            role: NodeRole::Data,
            invite: Some(InviteId(request.invite)),
            now: NOW,
        };
        site.apply(site.applied + 1, add).map_err(|reject| reject.fault())
    }

    fn request(name: &str, disk_id: u128) -> JoinRequest {
        JoinRequest {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            invite: 5,
            secret: SECRET,
            name: name.parse().expect("name"),
            disk_id,
            csr: Octets(Vec::new()),
            addresses: vec![],
            software: String::new(),
        }
    }

    #[track_caller]
    fn refused(site: &SiteState, request: &JoinRequest, now: Timestamp, says: &str) {
        let fault = may_join(site, request, now).expect_err("refused");
        assert_eq!(fault.code, Code::Forbidden);
        assert!(fault.message.contains(says), "{fault}");
        assert!(fault.hint.is_some_and(|hint| hint.contains("dunlin invite")));
    }

    #[test]
    fn only_the_secret_opens_and_only_in_its_time() {
        let site = site();
        let good = request("n-2", 2);
        assert_eq!(may_join(&site, &good, NOW).map(|invite| invite.role), Ok(NodeRole::Data));
        let wrong = JoinRequest { secret: InviteSecret::new(8), ..good.clone() };
        refused(&site, &wrong, NOW, "not one of this site");
        refused(&site, &JoinRequest { invite: 6, ..good.clone() }, NOW, "not one of this site");
        refused(&site, &good, Timestamp(2_000), "expired");
        // Who has not the secret is not told that the invite is there.
        refused(&site, &wrong, Timestamp(2_000), "not one of this site");
    }

    #[test]
    fn an_invite_is_for_one_machine_which_may_ask_again() {
        let mut site = site();
        let first = request("n-2", 2);
        let node = add(&mut site, &first).expect("added");
        assert!(may_join(&site, &first, NOW).is_ok(), "its answer was lost");
        assert_eq!(add(&mut site, &first), Ok(node));
        refused(&site, &request("n-3", 3), NOW, "used by node 'n-2'");
        refused(&site, &request("n-2", 3), NOW, "used by node 'n-2'");
        assert!(add(&mut site, &request("n-3", 3)).is_err(), "the state says so, too");
    }

    #[test]
    fn versions_and_addresses_are_looked_at_first() {
        let good = request("n-2", 2);
        assert!(check_form(&good).is_ok());
        let newer = JoinRequest { version_min: 99, version_max: 99, ..good.clone() };
        let fault = check_form(&newer).expect_err("refused");
        assert_eq!(fault.code, Code::VersionUnsupported);
        for addresses in [vec!["no port:x".to_owned()], vec!["a:1".to_owned(); 9]] {
            let fault = check_form(&JoinRequest { addresses, ..good.clone() }).expect_err("bad");
            assert_eq!(fault.code, Code::Invalid);
        }
    }
}
