//! Errors of a configuration that say where: file, line, column and key.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file says something that is not allowed.
    Bad {
        /// The file.
        path: PathBuf,
        /// Line and column, from 1, where they are known.
        place: Option<(usize, usize)>,
        /// The key with its tables, where it is known.
        key: Option<String>,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

impl ConfigError {
    pub(super) fn from_toml(error: &toml::de::Error, text: &str, path: &Path) -> Self {
        let at = error.span().map(|span| span.start);
        // A file that is no TOML has no keys to tell of.
        let key = at.and_then(|at| key_at(DeTable::parse(text).ok()?.get_ref(), at));
        Self::Bad {
            path: path.into(),
            place: at.map(|at| place_of(text, at)),
            key,
            problem: in_our_words(error.message()),
        }
    }

    pub(super) fn of_key(key: &str, problem: String, text: &str, path: &Path) -> Self {
        let at = DeTable::parse(text).ok().and_then(|table| start_of(table.get_ref(), key));
        let place = at.map(|at| place_of(text, at));
        Self::Bad { path: path.into(), place, key: Some(key.into()), problem }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            Self::Bad { path, place, key, problem } => {
                write!(f, "{}:", path.display())?;
                if let Some((line, column)) = place {
                    write!(f, "{line}:{column}:")?;
                }
                if let Some(key) = key {
                    write!(f, " key '{key}':")?;
                }
                write!(f, " {problem}")
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Bad { .. } => None,
        }
    }
}

/// The messages of serde speak of fields and variants, which an operator has not got.
fn in_our_words(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    match message.strip_prefix("unknown field ").and_then(|rest| rest.split_once(", ")) {
        Some((_, allowed)) => {
            let allowed = allowed.trim_start_matches("expected ").trim_start_matches("one of ");
            format!("no such key, allowed are {}", allowed.replace('`', ""))
        }
        None => message.replace("unknown variant", "unknown value").replace('`', "'"),
    }
}

/// The dotted key whose name or value stands at a byte of the text.
fn key_at(table: &DeTable<'_>, at: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name = key.get_ref();
        if let DeValue::Table(inner) = value.get_ref()
            && let Some(rest) = key_at(inner, at)
        {
            return Some(format!("{name}.{rest}"));
        }
        (key.span().contains(&at) || value.span().contains(&at)).then(|| name.to_string())
    })
}

/// Where the name of a dotted key stands in the text.
fn start_of(table: &DeTable<'_>, dotted: &str) -> Option<usize> {
    let (first, rest) = match dotted.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (dotted, None),
    };
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    match (rest, value.get_ref()) {
        (None, _) => Some(key.span().start),
        (Some(rest), DeValue::Table(inner)) => start_of(inner, rest),
        (Some(_), _) => None,
    }
}

/// Line and column of a byte of the text, both from 1.
fn place_of(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
