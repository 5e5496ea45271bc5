//! An invite: what a machine must know to find a site, to know it when it sees it, and to be let in once.

use std::str::FromStr;

use bytes::BytesMut;
use data_encoding::{BASE64URL_NOPAD, DecodeKind};
use ring::digest;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::authority::Fingerprint;
use crate::{
    limits::{INVITE_LEN_MAX, JOIN_ADDRESSES_MAX},
    types::{Address, InviteSecret, InviteToken, NodeRole, SiteName, Timestamp},
    wire::{Octets, cbor},
};

/// An invite to become a node of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// The site.
    pub site: SiteName,
    /// Its authority: no node is believed that this one did not sign.
    pub ca: Fingerprint,
    /// Where nodes listen that can let the joiner in.
    pub addresses: Vec<Address>,
    /// Its number.
    pub id: u64,
    /// What the joiner must show.
    pub secret: InviteSecret,
    /// What the new node is for.
    pub role: NodeRole,
    /// When it ends, by the clock of the site.
    pub expires: Timestamp,
}

/// The token's body. Its version is in the token's prefix.
#[derive(Serialize, Deserialize)]
struct Body {
    site: SiteName,
    ca: Octets,
    addresses: Vec<Address>,
    id: u64,
    secret: InviteSecret,
    role: NodeRole,
    expires: Timestamp,
}

impl Invite {
    /// The invite as a line of text.
    #[must_use]
    pub fn to_token(&self) -> InviteToken {
        let body = Body {
            site: self.site.clone(),
            ca: Octets(self.ca.as_bytes().to_vec()),
            addresses: self.addresses.clone(),
            id: self.id,
            secret: self.secret,
            role: self.role,
            expires: self.expires,
        };
        let mut bytes = BytesMut::new();
        cbor::put(&body, &mut bytes);
        InviteToken::new(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes)))
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires
    }
}

impl FromStr for Invite {
    type Err = BadInvite;

    /// Reads a token. Line breaks and spaces that a terminal or a mail has put into it do no harm.
    fn from_str(text: &str) -> Result<Self, BadInvite> {
        if text.len() > INVITE_LEN_MAX {
            return Err(BadInvite::Other);
        }
        let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(not_ours(&text));
        };
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|error| match error.kind {
            DecodeKind::Length | DecodeKind::Trailing => BadInvite::CutShort,
            DecodeKind::Symbol | DecodeKind::Padding => BadInvite::Damaged {
                why: format!(
                    "character {} is none of an invite",
                    PREFIX.len() + error.position + 1
                ),
            },
        })?;
        let body: Body = cbor::get(&bytes).map_err(|error| match error.is_truncated() {
            true => BadInvite::CutShort,
            false => BadInvite::Damaged { why: error.to_string() },
        })?;
        let damaged = |why: &str| BadInvite::Damaged { why: why.into() };
        let ca = body.ca.0.try_into().map_err(|_| damaged("its fingerprint has no 32 bytes"))?;
        if body.addresses.is_empty() || body.addresses.len() > JOIN_ADDRESSES_MAX {
            return Err(damaged("an invite has 1 to 8 addresses"));
        }
        Ok(Self {
            site: body.site,
            ca: Fingerprint::from_bytes(ca),
            addresses: body.addresses,
            id: body.id,
            secret: body.secret,
            role: body.role,
            expires: body.expires,
        })
    }
}

/// What the site remembers of a secret.
#[must_use]
pub fn secret_hash(secret: InviteSecret) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, &secret.to_bytes()).as_ref());
    hash
}

/// Whether this is the secret that the site remembers. Takes as long for one that is nearly right.
#[must_use]
pub fn proves(secret: InviteSecret, hash: &[u8; 32]) -> bool {
    secret_hash(secret).ct_eq(hash).into()
}

fn not_ours(text: &str) -> BadInvite {
    if !text.is_empty() && PREFIX.starts_with(text) {
        return BadInvite::CutShort;
    }
    let version = text.strip_prefix(FAMILY).and_then(|rest| rest.split_once('.'));
    match version {
        Some((version, _)) if version.parse::<u32>().is_ok() => {
            BadInvite::OtherVersion { found: version.into() }
        }
        _ => BadInvite::Other,
    }
}

/// Text that is no invite, or not a whole one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadInvite {
    /// Something else.
    #[error("this is no invite: one begins with '{PREFIX}'")]
    Other,
    /// A part of one.
    #[error("the invite is cut short: copy all of it")]
    CutShort,
    /// Made by a release that writes invites differently.
    #[error(
        "the invite is of version {found}, this program reads version 1: use the same release on both machines"
    )]
    OtherVersion {
        /// Its version.
        found: String,
    },
    /// Changed on its way.
    #[error("the invite was changed on its way ({why}): copy it again, or make a new one")]
    Damaged {
        /// What is wrong with it.
        why: String,
    },
}

const FAMILY: &str = "dunlin-invite-";
const PREFIX: &str = "dunlin-invite-1.";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn invite() -> Invite {
        Invite {
            site: "plant".parse().expect("name"),
            ca: Fingerprint::from_bytes([0xa5; 32]),
            addresses: vec!["10.0.0.7:7440".parse().expect("address")],
            id: 77,
            secret: InviteSecret::new(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            role: NodeRole::Data,
            expires: Timestamp(1_700_000_000_000),
        }
    }

    fn token() -> String {
        invite().to_token().as_str().to_owned()
    }

    #[test]
    fn an_invite_survives_its_token_and_what_a_mail_does_to_it() {
        let token = token();
        assert!(token.starts_with("dunlin-invite-1."), "{token}");
        assert_eq!(token.parse(), Ok(invite()));
        let folded: String = token
            .as_bytes()
            .chunks(40)
            .map(|part| String::from_utf8_lossy(part) + "\r\n")
            .collect();
        assert_eq!(folded.parse(), Ok(invite()));
    }

    #[test]
    fn every_cut_is_called_one() {
        let token = token();
        for cut in 1..token.len() {
            assert_eq!(token[..cut].parse::<Invite>(), Err(BadInvite::CutShort), "{cut}");
        }
    }

    #[test]
    fn other_text_says_what_it_is_not() {
        for text in ["", "hello", "dunlin-invite-", "dunlin-invite-x.AAAA"] {
            let error = text.parse::<Invite>().expect_err(text);
            let want = if text == FAMILY { BadInvite::CutShort } else { BadInvite::Other };
            assert_eq!(error, want, "{text}");
        }
        let newer = token().replace("invite-1.", "invite-2.").parse::<Invite>();
        assert_eq!(newer, Err(BadInvite::OtherVersion { found: "2".into() }));
        let error = token().replacen(".", ".*", 1).parse::<Invite>().expect_err("damaged");
        assert!(error.to_string().contains("character 17"), "{error}");
        assert_eq!("A".repeat(INVITE_LEN_MAX + 1).parse::<Invite>(), Err(BadInvite::Other));
    }

    #[test]
    fn nothing_that_is_printed_shows_the_secret() {
        let seen = format!("{:?}", invite());
        assert!(!seen.contains("123456789") && !seen.contains("1512366075"), "{seen}");
    }

    #[test]
    fn only_the_secret_itself_proves() {
        let hash = secret_hash(invite().secret);
        assert!(proves(invite().secret, &hash));
        assert!(!proves(InviteSecret::new(0), &hash));
    }

    #[test]
    fn an_invite_ends_at_its_end() {
        let invite = invite();
        assert!(!invite.is_expired(Timestamp(invite.expires.0 - 1)));
        assert!(invite.is_expired(invite.expires));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(body in "[A-Za-z0-9_-]{0,200}", text in "\\PC{0,60}") {
            let _ = text.parse::<Invite>();
            let _ = format!("{PREFIX}{body}").parse::<Invite>();
        }

        #[test]
        fn a_changed_character_is_no_panic(at in any::<proptest::sample::Index>(), to in "[A-Za-z0-9]") {
            let mut text = token();
            let at = at.index(text.len());
            text.replace_range(at..=at, &to);
            let _ = text.parse::<Invite>();
        }
    }
}
