//! Both ends of bare quinn: our TLS and our limits, and nothing else of our own.
//!
//! A stream begins with a byte that says what it is for and 8 bytes that say how long a frame is. On an upload each frame
//! is answered by an ack, acks together as many as are due after a read; on a stored one after it has been appended to a
//! file and flushed, together with what came on other streams meanwhile. A download is frames until nobody reads.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::{io::AsyncReadExt as _, sync::mpsc, task::JoinSet};

use super::{
    ADDRESS_FILE,
    append::{Appends, Upload},
};
use crate::{
    cli::{exit::Failure, now},
    limits::READ_BYTES_MAX,
    net::{
        ConnectionLimits, Credentials,
        authority::NODE_SERVER_NAME,
        endpoint,
        tls::{self, ALPN_CLIENT, ClientAuth},
    },
};

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Upload = 0,
    Download = 1,
    StoredUpload = 2,
}

/// Serves until standard input ends: its owner is gone. What is stored goes to files in `files` that have no name.
pub(in crate::cli::bench) async fn serve(dir: &Path, files: PathBuf) -> Result<(), Failure> {
    let credentials = Credentials::of_node(&dir.join("data/pki")).map_err(Failure::config)?;
    let tls = tls::server_config(&credentials, ClientAuth::Required, &[ALPN_CLIENT], now())
        .map_err(Failure::config)?;
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let limits = ConnectionLimits::default();
    let secret = credentials.reset_secret().map_err(Failure::config)?;
    let endpoint = endpoint::server(address, Arc::new(tls), &limits, &secret);
    let endpoint = endpoint.map_err(Failure::runtime)?;
    let address = endpoint.local_addr().map_err(Failure::runtime)?;
    fs::write(dir.join(ADDRESS_FILE), format!("{address}\n")).map_err(Failure::runtime)?;
    let appends = Arc::new(Appends::new(files));
    let mut connections = JoinSet::new();
    let owner = async {
        let mut byte = [0];
        while tokio::io::stdin().read(&mut byte).await.is_ok_and(|read| read > 0) {}
    };
    tokio::pin!(owner);
    loop {
        tokio::select! {
            Some(incoming) = endpoint.accept() => {
                let appends = Arc::clone(&appends);
                drop(connections.spawn(async move {
                    // A connection that ends is the end of its run.
                    let _ = async { answer(incoming.await?, &appends).await }.await;
                }));
            }
            () = &mut owner => return Ok(()),
        }
    }
}

/// Opens a connection that has an endpoint of its own, as a client has.
pub(super) async fn connect(
    credentials: &Credentials,
    address: SocketAddr,
) -> Result<(Endpoint, Connection), Failure> {
    let tls = tls::client_config(credentials, &[ALPN_CLIENT]).map_err(Failure::runtime)?;
    let limits = ConnectionLimits {
        streams_max: 0,
        receive_window: u32::MAX,
        ..ConnectionLimits::default()
    };
    let endpoint = endpoint::client(Arc::new(tls), &limits).map_err(Failure::runtime)?;
    let connecting = endpoint.connect(address, NODE_SERVER_NAME).map_err(Failure::runtime)?;
    let connection = connecting.await.map_err(Failure::runtime)?;
    Ok((endpoint, connection))
}

/// Opens a stream for frames of that length.
pub(super) async fn open(
    connection: &Connection,
    what: Use,
    frame_len: usize,
) -> io::Result<(SendStream, RecvStream)> {
    let (mut output, input) = connection.open_bi().await?;
    let mut head = BytesMut::new();
    head.put_u8(what as u8);
    head.put_u64(frame_len as u64);
    output.write_all(&head).await?;
    Ok((output, input))
}

async fn answer(connection: Connection, appends: &Appends) -> io::Result<()> {
    let (output, mut input) = connection.accept_bi().await?;
    let mut head = [0; 9];
    input.read_exact(&mut head).await.map_err(io::Error::other)?;
    let [what, frame_len @ ..] = head;
    let frame_len = u64::from_be_bytes(frame_len).max(1);
    if what == Use::Download as u8 {
        return send(frame_len, output).await;
    }
    let uploads = (what == Use::StoredUpload as u8).then(|| appends.open()).transpose()?;
    acknowledge(frame_len, uploads, input, output).await
}

async fn acknowledge(
    frame_len: u64,
    uploads: Option<mpsc::Sender<Upload>>,
    mut input: RecvStream,
    mut output: SendStream,
) -> io::Result<()> {
    let (stored, mut due) = mpsc::channel(ACKS_AT_ONCE);
    let reading = async move {
        let mut bytes = 0;
        loop {
            let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
            let Some(count) = input.read_chunks(&mut chunks).await? else { return Ok(()) };
            bytes += chunks[..count].iter().map(|chunk| chunk.len() as u64).sum::<u64>();
            let frames = usize::try_from(bytes / frame_len).unwrap_or(usize::MAX);
            bytes %= frame_len;
            let over = match &uploads {
                None => stored.send(frames).await.is_err(),
                Some(uploads) => {
                    let chunks = chunks.into_iter().take(count).collect();
                    uploads.send(Upload { chunks, frames, stored: stored.clone() }).await.is_err()
                }
            };
            if over {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    };
    let writing = async {
        let acks = Bytes::from(vec![0; ACK_LEN * ACKS_AT_ONCE]);
        while let Some(mut frames) = due.recv().await {
            while let Ok(more) = due.try_recv() {
                frames += more;
            }
            while frames > 0 {
                let now = frames.min(ACKS_AT_ONCE);
                output.write_chunk(acks.slice(..now * ACK_LEN)).await?;
                frames -= now;
            }
        }
        Ok(())
    };
    tokio::try_join!(reading, writing).map(|((), ())| ())
}

/// Sends frames until nobody reads, as many at once as a node gives to one reader.
async fn send(frame_len: u64, mut output: SendStream) -> io::Result<()> {
    let frame_len = usize::try_from(frame_len).unwrap_or(READ_BYTES_MAX).min(READ_BYTES_MAX);
    let frame = Bytes::from(vec![b'x'; frame_len]);
    loop {
        let mut pieces = vec![frame.clone(); READ_BYTES_MAX / frame_len];
        output.write_all_chunks(&mut pieces).await?;
    }
}

/// Bytes of an ack with its head.
pub(super) const ACK_LEN: usize = 24;
/// Packets taken from a stream at once.
pub(super) const CHUNKS: usize = 64;
const ACKS_AT_ONCE: usize = 1_024;
