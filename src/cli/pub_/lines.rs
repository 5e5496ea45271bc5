//! Lines as records: byte for byte, read by a thread of its own so that a slow input stops nothing else.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal as _, Read},
    path::Path,
    thread,
};

use tokio::sync::mpsc;

use crate::{cli::exit::Failure, limits::RECORD_LEN_MAX};

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1.
    pub(super) number: u64,
    /// Its bytes without the newline.
    pub(super) value: Vec<u8>,
    /// The input ended without one.
    pub(super) no_newline: bool,
}

/// Lines that were there together.
type Group = Vec<Result<Line, Failure>>;

/// The lines of an input.
pub(super) struct Lines {
    groups: mpsc::Receiver<Group>,
    bytes_total: Option<u64>,
    interactive: bool,
}

impl Lines {
    pub(super) fn of_values(values: Vec<Vec<u8>>) -> Self {
        let (sender, groups) = mpsc::channel(1);
        let lines = (1..).zip(values);
        let group = lines.map(|(number, value)| Ok(Line { number, value, no_newline: false }));
        // There is room for one.
        let _ = sender.try_send(group.collect());
        Self { groups, bytes_total: None, interactive: true }
    }

    pub(super) fn of_file(path: &Path) -> Result<Self, Failure> {
        let cannot = |error| Failure::runtime(format!("cannot read {}: {error}", path.display()));
        let file = File::open(path).map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        let bytes_total = metadata.is_file().then_some(metadata.len());
        let name = path.display().to_string();
        Ok(Self { bytes_total, ..Self::read(file, name) })
    }

    pub(super) fn of_stdin() -> Self {
        let interactive = io::stdin().is_terminal();
        Self { interactive, ..Self::read(io::stdin(), "standard input".into()) }
    }

    fn read(input: impl Read + Send + 'static, name: String) -> Self {
        let (sender, groups) = mpsc::channel(GROUPS_MAX);
        thread::spawn(move || {
            let mut reader = LineReader::new(BufReader::with_capacity(READ_LEN, input), name);
            while let Some(group) = reader.next_group() {
                if sender.blocking_send(group).is_err() {
                    return;
                }
            }
        });
        Self { groups, bytes_total: None, interactive: false }
    }

    /// The next lines; none at the end.
    pub(super) async fn next(&mut self) -> Option<Group> {
        self.groups.recv().await
    }

    pub(super) fn bytes_total(&self) -> Option<u64> {
        self.bytes_total
    }

    pub(super) fn is_interactive(&self) -> bool {
        self.interactive
    }
}

struct LineReader<R> {
    input: BufReader<R>,
    name: String,
    number: u64,
    ended: bool,
}

impl<R: Read> LineReader<R> {
    fn new(input: BufReader<R>, name: String) -> Self {
        Self { input, name, number: 0, ended: false }
    }

    /// Waits for a line, and takes those behind it that are here already. An error is the last.
    fn next_group(&mut self) -> Option<Group> {
        let mut group = Vec::new();
        while !self.ended {
            let Some(line) = self.next_line().transpose() else { break };
            self.ended |= line.is_err();
            group.push(line);
            if group.len() == GROUP_LINES_MAX || !self.input.buffer().contains(&b'\n') {
                break;
            }
        }
        (!group.is_empty()).then_some(group)
    }

    fn next_line(&mut self) -> Result<Option<Line>, Failure> {
        let mut value = Vec::new();
        let number = self.number + 1;
        loop {
            let cannot = |error| Failure::runtime(format!("cannot read {}: {error}", self.name));
            let chunk = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(cannot)?,
            };
            let newline = chunk.iter().position(|byte| *byte == b'\n');
            let taken = newline.unwrap_or(chunk.len());
            value.extend_from_slice(&chunk[..taken]);
            let at_end = chunk.is_empty();
            self.input.consume(taken + usize::from(newline.is_some()));
            if value.len() > RECORD_LEN_MAX {
                return Err(Failure::runtime(format!(
                    "line {number} of {} is longer than a record may be: {RECORD_LEN_MAX} bytes",
                    self.name
                )));
            }
            if newline.is_none() && !at_end {
                continue;
            }
            if at_end && value.is_empty() {
                return Ok(None);
            }
            self.number = number;
            return Ok(Some(Line { number, value, no_newline: at_end }));
        }
    }
}

const READ_LEN: usize = 256 * 1024;
const GROUP_LINES_MAX: usize = 1_024;
/// Groups read ahead: the thread reads while those before are sent.
const GROUPS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Vec<Result<Line, Failure>> {
        // A small buffer, so that lines lie across its end.
        let mut reader = LineReader::new(BufReader::with_capacity(7, input), "it".into());
        std::iter::from_fn(|| reader.next_group()).flatten().collect()
    }

    fn written(input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in read(input) {
            let line = line.expect("readable");
            out.extend_from_slice(&line.value);
            if !line.no_newline {
                out.push(b'\n');
            }
        }
        out
    }

    #[test]
    fn lines_written_out_again_are_the_same_bytes() {
        for input in [
            &b""[..],
            b"\n",
            b"\n\n",
            b"a",
            b"a\n",
            b"a\nb",
            b"a\r\nb\r\n",
            b"\n\na\n\n",
            b"\xff\xfe\0\x80\nno text\n\r",
            b"longer than the buffer of seven bytes\nand again longer than that\n",
        ] {
            assert_eq!(written(input), input, "{input:?}");
        }
    }

    #[test]
    fn a_line_over_the_limit_is_named() {
        let mut input = b"a\n".to_vec();
        input.extend(std::iter::repeat_n(b'x', RECORD_LEN_MAX + 1));
        input.extend(b"\nb\n");
        let lines = read(&input);
        assert_eq!(lines.len(), 2);
        let Err(Failure::Told { message, .. }) = &lines[1] else { panic!("{:?}", lines[1]) };
        assert!(message.starts_with("line 2 of it is longer"), "{message}");
    }
}
