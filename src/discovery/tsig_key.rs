//! The key under which a name server takes updates (RFC 8945), read from the files that `tsig-keygen` and `keymgr -t` write.
//!
//! ```text
//! key "edge" {                    key:
//!     algorithm hmac-sha256;        - id: edge
//!     secret "c2VjcmV0...";           algorithm: hmac-sha256
//! };                                  secret: c2VjcmV0...
//! ```

use std::{fmt, path::Path, str::Chars};

use data_encoding::BASE64;

use crate::limits::{TSIG_NAME_LEN_MAX, TSIG_SECRET_LEN_MAX, TSIG_SECRET_LEN_MIN};

/// A key that a name server knows, too.
#[derive(Clone, PartialEq, Eq)]
pub struct TsigKey {
    name: String,
    algorithm: Algorithm,
    secret: Vec<u8>,
}

/// How messages are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// `hmac-sha256`
    HmacSha256,
    /// `hmac-sha384`
    HmacSha384,
    /// `hmac-sha512`
    HmacSha512,
}

impl TsigKey {
    /// A key of these parts.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn new(name: &str, algorithm: Algorithm, secret: Vec<u8>) -> Result<Self, String> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let is_label = |label: &str| {
            let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            (1..=63).contains(&label.len()) && label.chars().all(sound)
        };
        if name.len() > TSIG_NAME_LEN_MAX || !name.split('.').all(is_label) {
            return Err("the name of a key is a domain name: letters, digits, '-', '_', '.'".into());
        }
        let len = secret.len();
        if !(TSIG_SECRET_LEN_MIN..=TSIG_SECRET_LEN_MAX).contains(&len) {
            return Err(format!(
                "the secret has {len} bytes, allowed are {TSIG_SECRET_LEN_MIN} to {TSIG_SECRET_LEN_MAX}"
            ));
        }
        Ok(Self { name, algorithm, secret })
    }

    /// Reads the text of a key file that holds one key.
    ///
    /// # Errors
    /// What is wrong, and where. No part of the secret is in it.
    pub fn parse(text: &str) -> Result<Self, BadTsigKey> {
        let mut words = Words { rest: text.chars(), line: 1, is_yaml: false };
        let first = words.must("a key")?;
        let key = match first.text.as_str() {
            "key" => in_braces(&mut words),
            "key:" => in_yaml(&mut words),
            _ => Err(first.bad("a key file begins with 'key NAME {' or with 'key:'")),
        }?;
        match words.next()? {
            None => Ok(key),
            Some(more) => Err(more.bad("only one key may stand in the file")),
        }
    }

    /// Its name, which is no secret: whoever sees an update reads it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it signs.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What only the two ends know.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl fmt::Debug for TsigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TsigKey({} {})", self.name, self.algorithm.as_str())
    }
}

impl Algorithm {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha384 => "hmac-sha384",
            Self::HmacSha512 => "hmac-sha512",
        }
    }

    fn of(word: &str) -> Option<Self> {
        let word = word.trim_end_matches('.').to_ascii_lowercase();
        let all = [Self::HmacSha256, Self::HmacSha384, Self::HmacSha512];
        all.into_iter().find(|one| one.as_str() == word)
    }
}

/// A text that holds no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadTsigKey {
    /// From 1.
    pub line: usize,
    /// What is wrong and what is allowed.
    pub problem: String,
}

impl BadTsigKey {
    /// As errors of the configuration are written.
    #[must_use]
    pub fn in_file(&self, path: &Path) -> String {
        format!("{}:{}: {}", path.display(), self.line, self.problem)
    }
}

/// A word, one of `{`, `}` and `;`, or what stood in quotes.
#[derive(Debug)]
struct Word {
    text: String,
    line: usize,
}

impl Word {
    fn bad(&self, problem: impl Into<String>) -> BadTsigKey {
        BadTsigKey { line: self.line, problem: problem.into() }
    }
}

struct Words<'a> {
    rest: Chars<'a>,
    line: usize,
    is_yaml: bool,
}

impl Words<'_> {
    fn take(&mut self) -> Option<char> {
        let taken = self.rest.next();
        self.line += usize::from(taken == Some('\n'));
        taken
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn bad(&self, problem: impl Into<String>) -> BadTsigKey {
        BadTsigKey { line: self.line, problem: problem.into() }
    }

    /// Passes over blanks and comments: `# ..`, and in BIND's form `// ..` and `/* .. */`, which in the other one may begin a
    /// secret.
    fn skip(&mut self) -> Result<(), BadTsigKey> {
        loop {
            let rest = self.rest.as_str();
            if rest.starts_with('#') || (rest.starts_with("//") && !self.is_yaml) {
                while self.peek().is_some_and(|c| c != '\n') {
                    self.take();
                }
            } else if let Some(comment) = rest.strip_prefix("/*").filter(|_| !self.is_yaml) {
                let begun = self.line;
                let Some(end) = comment.find("*/") else {
                    return Err(BadTsigKey {
                        line: begun,
                        problem: "the comment has no end".into(),
                    });
                };
                for _ in rest[..end + 4].chars() {
                    self.take();
                }
            } else if self.peek().is_some_and(char::is_whitespace) {
                self.take();
            } else {
                return Ok(());
            }
        }
    }

    fn next(&mut self) -> Result<Option<Word>, BadTsigKey> {
        self.skip()?;
        let line = self.line;
        let mut text = String::new();
        match self.take() {
            None => return Ok(None),
            Some('"') => loop {
                match self.take() {
                    Some('"') => break,
                    None | Some('\n') => {
                        return Err(BadTsigKey { line, problem: "a '\"' is missing".into() });
                    }
                    Some(c) => text.push(c),
                }
            },
            Some(c @ ('{' | '}' | ';')) => text.push(c),
            Some(c) => {
                text.push(c);
                let is_part = |c: char| !c.is_whitespace() && !matches!(c, '{' | '}' | ';' | '"');
                while let Some(c) = self.peek().filter(|c| is_part(*c)) {
                    text.push(c);
                    self.take();
                }
            }
        }
        Ok(Some(Word { text, line }))
    }

    fn must(&mut self, what: &str) -> Result<Word, BadTsigKey> {
        self.next()?.ok_or_else(|| self.bad(format!("{what} is missing")))
    }

    fn expect(&mut self, wanted: &str) -> Result<(), BadTsigKey> {
        let what = format!("'{wanted}'");
        let word = self.must(&what)?;
        if word.text == wanted { Ok(()) } else { Err(word.bad(format!("{what} is missing"))) }
    }
}

/// What was read of a key so far.
#[derive(Default)]
struct Parts {
    name: Option<Word>,
    algorithm: Option<Algorithm>,
    secret: Option<Vec<u8>>,
}

impl Parts {
    fn algorithm(&mut self, word: &Word) -> Result<(), BadTsigKey> {
        let known = Algorithm::of(&word.text).ok_or_else(|| {
            word.bad("no such algorithm, allowed are hmac-sha256, hmac-sha384, hmac-sha512")
        })?;
        match self.algorithm.replace(known) {
            None => Ok(()),
            Some(_) => Err(word.bad("the algorithm stands twice")),
        }
    }

    fn secret(&mut self, word: &Word) -> Result<(), BadTsigKey> {
        // The decoder's own words would quote what is there.
        let secret = BASE64.decode(word.text.as_bytes());
        let secret = secret.map_err(|_| word.bad("the secret is no base64"))?;
        match self.secret.replace(secret) {
            None => Ok(()),
            Some(_) => Err(word.bad("the secret stands twice")),
        }
    }

    fn finish(self, words: &Words<'_>) -> Result<TsigKey, BadTsigKey> {
        let missing = |what: &str| words.bad(format!("the key has no {what}"));
        let name = self.name.ok_or_else(|| missing("name"))?;
        let algorithm = self.algorithm.ok_or_else(|| missing("algorithm"))?;
        let secret = self.secret.ok_or_else(|| missing("secret"))?;
        TsigKey::new(&name.text, algorithm, secret).map_err(|problem| name.bad(problem))
    }
}

/// `NAME { algorithm WORD; secret WORD; };`, as BIND has it.
fn in_braces(words: &mut Words<'_>) -> Result<TsigKey, BadTsigKey> {
    let mut parts = Parts { name: Some(words.must("the name of the key")?), ..Parts::default() };
    words.expect("{")?;
    loop {
        let field = words.must("'}'")?;
        match field.text.as_str() {
            "algorithm" => parts.algorithm(&words.must("the algorithm")?)?,
            "secret" => parts.secret(&words.must("the secret")?)?,
            "}" => break,
            _ => return Err(field.bad("a key has 'algorithm', 'secret' and nothing else")),
        }
        words.expect(";")?;
    }
    let key = parts.finish(words)?;
    words.expect(";")?;
    Ok(key)
}

/// `- id: NAME`, `algorithm: WORD`, `secret: WORD`, as Knot DNS has it.
fn in_yaml(words: &mut Words<'_>) -> Result<TsigKey, BadTsigKey> {
    let mut parts = Parts::default();
    words.is_yaml = true;
    words.expect("-")?;
    while let Some(field) = words.next()? {
        match field.text.as_str() {
            "id:" if parts.name.is_none() => parts.name = Some(words.must("the name of the key")?),
            "algorithm:" => parts.algorithm(&words.must("the algorithm")?)?,
            "secret:" => parts.secret(&words.must("the secret")?)?,
            "-" => return Err(field.bad("only one key may stand in the file")),
            _ => {
                return Err(field.bad("a key has 'id:', 'algorithm:', 'secret:', and each once"));
            }
        }
    }
    parts.finish(words)
}

#[cfg(test)]
mod tests;
