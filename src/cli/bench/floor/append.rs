//! One file that all uploads of the bare server are appended to: what a broker must do before it may ack, and nothing more.

use std::{
    fs::File,
    io::{self, IoSlice, Write as _},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::sync::mpsc;

/// What came on one stream, and who waits for it.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) chunks: Vec<Bytes>,
    /// Frames that are whole with it.
    pub(super) frames: usize,
    /// Takes those frames when they are on the disk.
    pub(super) stored: mpsc::Sender<usize>,
}

/// Where files are made: one for all streams that are there at a time.
#[derive(Debug)]
pub(super) struct Appends {
    dir: PathBuf,
    file: Mutex<Option<mpsc::WeakSender<Upload>>>,
}

impl Appends {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, file: Mutex::default() }
    }

    /// The way to the file, which is gone with the last one who has it.
    pub(super) fn open(&self) -> io::Result<mpsc::Sender<Upload>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uploads) = file.as_ref().and_then(mpsc::WeakSender::upgrade) {
            return Ok(uploads);
        }
        let to = tempfile::tempfile_in(&self.dir)?;
        let (uploads, waiting) = mpsc::channel(UPLOADS_WAITING_MAX);
        *file = Some(uploads.downgrade());
        // Ends with the channel. A disk that fails ends all its streams, and so the run.
        drop(tokio::task::spawn_blocking(move || append(to, waiting)));
        Ok(uploads)
    }
}

/// Appends all that waits, flushes it, and tells those who wait, again and again.
fn append(mut file: File, mut waiting: mpsc::Receiver<Upload>) -> io::Result<()> {
    let mut taken = Vec::new();
    while waiting.blocking_recv_many(&mut taken, UPLOADS_WAITING_MAX) > 0 {
        let slices = taken.iter().flat_map(|upload: &Upload| &upload.chunks);
        let mut slices: Vec<_> = slices.map(|chunk| IoSlice::new(chunk)).collect();
        write_all(&mut file, &mut slices)?;
        file.sync_data()?;
        for Upload { frames, stored, .. } in taken.drain(..) {
            // Its stream may be over.
            let _ = stored.blocking_send(frames);
        }
    }
    Ok(())
}

fn write_all(file: &mut File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut slices, written),
        }
    }
    Ok(())
}

/// Uploads that wait for the disk; who comes later waits, too.
const UPLOADS_WAITING_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn frames_are_told_once_they_are_written_and_the_file_goes_with_its_last_stream() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let appends = Appends::new(dir.path().into());
        let (uploads, other) = (appends.open().expect("a file"), appends.open().expect("the same"));
        assert!(uploads.same_channel(&other));
        let (stored, mut told) = mpsc::channel(8);
        for frames in [2, 3] {
            let chunks = vec![Bytes::from(vec![7; 1_500]); 700];
            let upload = Upload { chunks, frames, stored: stored.clone() };
            uploads.send(upload).await.expect("taken");
        }
        let soon = Duration::from_secs(10);
        for frames in [2, 3] {
            assert_eq!(timeout(soon, told.recv()).await.expect("soon"), Some(frames));
        }
        drop((uploads, other));
        let next = appends.open().expect("a new file");
        assert!(appends.open().expect("the same").same_channel(&next));
    }

    #[test]
    fn more_pieces_than_a_call_takes_are_written_whole_and_in_order() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        let pieces: Vec<Vec<u8>> = (0..3_000_u32).map(|n| n.to_be_bytes().to_vec()).collect();
        let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        write_all(&mut File::create(&path).expect("made"), &mut slices).expect("written");
        assert_eq!(std::fs::read(&path).expect("there"), pieces.concat());
    }
}
