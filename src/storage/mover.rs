//! Moves rows from the journal into the database, beside the thread that commits.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use redb::WriteTransaction;

use super::{
    error::{StoreError, guarded},
    open::{begin, write_next_frame},
    read::Store,
    schema::ROWS,
};

/// Rows on their way into the database.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) store: Store,
    /// Number and parts of each.
    pub(super) rows: Vec<(u64, Arc<Vec<Bytes>>)>,
    /// The first frame whose entries are not among them.
    pub(super) next_frame: u64,
}

/// One move at a time: by a thread of its own, or without one by the caller, when it waits for the end of the move.
#[derive(Debug, Default)]
pub(super) struct Mover {
    thread: Option<Thread>,
    /// The row behind the last one of the move under way.
    under_way: Option<u64>,
    /// That move, when there is no thread.
    held: Option<Move>,
}

#[derive(Debug)]
struct Thread {
    /// Taken when the thread is to end.
    moves: Option<SyncSender<Move>>,
    done: Receiver<Result<(), StoreError>>,
    handle: Option<JoinHandle<()>>,
}

impl Mover {
    /// Moves by a thread of its own from now on.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn spawn(&mut self) -> std::io::Result<()> {
        let (moves, todo) = sync_channel::<Move>(1);
        let (say, done) = sync_channel(1);
        let work = move || {
            for todo in todo {
                let moved = guarded(|| todo.run());
                // The database is let go before anybody hears that it is free.
                drop(todo);
                if say.send(moved).is_err() {
                    break;
                }
            }
        };
        let handle = thread::Builder::new().name("move".into()).spawn(work)?;
        self.thread = Some(Thread { moves: Some(moves), done, handle: Some(handle) });
        Ok(())
    }

    /// Tells whether a move is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    /// Begins a move; the one before must be over.
    pub(super) fn begin(&mut self, rows: Move) {
        assert!(!self.is_busy(), "one move at a time");
        let Some((last, _)) = rows.rows.last() else { return };
        self.under_way = Some(last + 1);
        match self.thread.as_ref().and_then(|thread| thread.moves.as_ref()) {
            // When the thread has ended, that is found out by whoever waits for it.
            Some(moves) => drop(moves.send(rows)),
            None => self.held = Some(rows),
        }
    }

    /// The row before which everything is in the database, when a move is over: waits for it if `wait`.
    ///
    /// # Errors
    /// [`StoreError`] with which the move failed.
    pub(super) fn finish(&mut self, wait: bool) -> Result<Option<u64>, StoreError> {
        let Some(behind) = self.under_way else { return Ok(None) };
        let Some(thread) = &self.thread else {
            let Some(held) = self.held.take_if(|_| wait) else { return Ok(None) };
            self.under_way = None;
            return held.run().map(|()| Some(behind));
        };
        let moved = match if wait {
            thread.done.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            thread.done.try_recv()
        } {
            Ok(moved) => moved,
            Err(TryRecvError::Empty) => return Ok(None),
            Err(TryRecvError::Disconnected) => {
                Err(StoreError::Io(std::io::Error::other("the thread that moves rows has ended")))
            }
        };
        self.under_way = None;
        moved.map(|()| Some(behind))
    }
}

impl Drop for Mover {
    /// Waits for the move under way: the database may be opened again once its owner is gone.
    fn drop(&mut self) {
        if let Some(thread) = &mut self.thread {
            thread.moves = None;
            thread.handle.take().into_iter().for_each(|handle| drop(handle.join()));
        }
    }
}

impl Move {
    fn run(&self) -> Result<(), StoreError> {
        let txn = begin(&self.store.inner.db)?;
        write_rows(&txn, &self.rows, self.next_frame)?;
        Ok(txn.commit()?)
    }
}

/// Writes rows that were in the frames before `next_frame`.
pub(super) fn write_rows(
    txn: &WriteTransaction,
    rows: &[(u64, Arc<Vec<Bytes>>)],
    next_frame: u64,
) -> Result<(), StoreError> {
    let mut table = txn.open_table(ROWS)?;
    let mut buffer = Vec::new();
    for (row, parts) in rows {
        if let [part] = &parts[..] {
            table.insert(row, &part[..])?;
            continue;
        }
        buffer.clear();
        parts.iter().for_each(|part| buffer.extend_from_slice(part));
        table.insert(row, &buffer[..])?;
    }
    drop(table);
    write_next_frame(txn, next_frame)
}
