//! What must never be seen in a log: the secret of an invite, and the token that holds it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a joiner must show: 128 random bits, so that nobody can guess them before the invite ends.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InviteSecret(u128);

impl InviteSecret {
    /// A secret of these random bits.
    #[must_use]
    pub const fn new(random: u128) -> Self {
        Self(random)
    }

    /// Its bytes, for hashing.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Debug for InviteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InviteSecret")
    }
}

/// An invite as text: whoever has it may make one machine a node of the site.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InviteToken(String);

impl InviteToken {
    /// Wraps the text of a token.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text: for the one who is to have it, and nobody else.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for InviteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InviteToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show_themselves() {
        let secret = InviteSecret::new(0xdead_beef);
        let token = InviteToken::new("dunlin-invite-1.deadbeef");
        let seen = format!("{secret:?} {token:?}");
        assert!(!seen.contains("beef") && !seen.contains("3735928559"), "{seen}");
    }
}
