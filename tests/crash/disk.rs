//! A disk in memory: it can fail on demand, and what was done to it can be replayed up to a power cut at any I/O.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dunlin::storage::Backend;

use super::rng::Rng;

/// What lies on the disk: the database, and the journal beside it.
pub(crate) type Image = [Vec<u8>; 2];

const DATA: usize = 0;
const JOURNAL: usize = 1;

/// What happened to a file of the disk.
#[derive(Clone, Debug)]
pub(crate) enum Io {
    Write(usize, u64, Arc<[u8]>),
    SetLen(usize, u64),
    Sync(usize),
}

/// Which operation fails, and how. Later ones succeed again: it is on the store to refuse them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Sync(usize),
    Write(usize, io::ErrorKind),
}

#[derive(Debug, Default)]
struct State {
    view: Image,
    trace: Vec<Io>,
    syncs: usize,
    writes: usize,
    fault: Option<Fault>,
    fired: bool,
}

/// A handle to the database's file; the store has another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    shared: Arc<Mutex<State>>,
    file: usize,
}

impl Disk {
    pub(crate) fn holding(image: Image) -> Self {
        let state = State { view: image, ..State::default() };
        Self { shared: Arc::new(Mutex::new(state)), file: DATA }
    }

    /// A handle to the journal.
    pub(crate) fn journal(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), file: JOURNAL }
    }

    pub(crate) fn failing(image: Image, fault: Fault) -> Self {
        let disk = Self::holding(image);
        disk.state().fault = Some(fault);
        disk
    }

    pub(crate) fn image(&self) -> Image {
        self.state().view.clone()
    }

    /// Number of I/Os so far: writes, changes of length, flushes.
    pub(crate) fn ios(&self) -> usize {
        self.state().trace.len()
    }

    pub(crate) fn trace(&self) -> Vec<Io> {
        self.state().trace.clone()
    }

    /// What was done since the last call.
    pub(crate) fn drain(&self) -> Vec<Io> {
        std::mem::take(&mut self.state().trace)
    }

    /// Tells whether the fault has happened.
    pub(crate) fn fired(&self) -> bool {
        self.state().fired
    }

    /// Number of flushes and of writes so far.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.state();
        (state.syncs, state.writes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().view[self.file].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes =
            state.view[self.file].get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        resize(&mut state.view[self.file], len);
        state.trace.push(Io::SetLen(self.file, len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.syncs += 1;
        if let Some(Fault::Sync(at)) = state.fault
            && state.syncs == at + 1
        {
            state.fired = true;
            return Err(io::Error::from_raw_os_error(5));
        }
        state.trace.push(Io::Sync(self.file));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.writes += 1;
        if let Some(Fault::Write(at, kind)) = state.fault
            && state.writes == at + 1
        {
            state.fired = true;
            return Err(kind.into());
        }
        put(&mut state.view[self.file], offset, data);
        state.trace.push(Io::Write(self.file, offset, data.into()));
        Ok(())
    }
}

/// Whether the disk does what a flush asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Honesty {
    Honest,
    /// No flush does anything.
    Lies,
    /// Every n-th flush does nothing.
    Skips(usize),
}

/// What of the writes that were not flushed is on the platter after a power cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survival {
    None,
    All,
    /// Any sectors of any writes.
    Sectors(u64),
    /// The first writes in order.
    Prefix(u64),
    /// All but the end of the last write.
    Torn(u64),
}

const SECTOR: usize = 512;

/// The platter while the trace is replayed.
pub(crate) struct Platter {
    durable: Image,
    loose: Vec<Io>,
    honesty: Honesty,
    syncs: usize,
}

impl Platter {
    pub(crate) fn new(base: Image, honesty: Honesty) -> Self {
        Self { durable: base, loose: Vec::new(), honesty, syncs: 0 }
    }

    /// An I/O happens to its end.
    pub(crate) fn step(&mut self, io: &Io) {
        let Io::Sync(file) = *io else {
            self.loose.push(io.clone());
            return;
        };
        self.syncs += 1;
        let done = match self.honesty {
            Honesty::Honest => true,
            Honesty::Lies => false,
            Honesty::Skips(every) => !self.syncs.is_multiple_of(every),
        };
        if done {
            for io in self.loose.extract_if(.., |io| io.file() == file) {
                apply(&mut self.durable, &io);
            }
        }
    }

    /// The power goes while `io` is under way: what a new start finds.
    pub(crate) fn cut(&self, io: Option<&Io>, survival: Survival) -> Image {
        let mut image = self.durable.clone();
        let under_way = io.filter(|io| !matches!(io, Io::Sync(_)));
        let loose: Vec<&Io> = self.loose.iter().chain(under_way).collect();
        match survival {
            Survival::None => {}
            Survival::All => loose.iter().for_each(|io| apply(&mut image, io)),
            Survival::Prefix(seed) => {
                let mut rng = Rng(seed);
                let count = rng.below(loose.len() + 1);
                loose[..count].iter().for_each(|io| apply(&mut image, io));
            }
            Survival::Torn(seed) => {
                for (at, io) in loose.iter().enumerate() {
                    match io {
                        Io::Write(file, offset, data) if at + 1 == loose.len() => {
                            let sectors = Rng(seed).below(data.len() / SECTOR + 1);
                            put(&mut image[*file], *offset, &data[..sectors * SECTOR]);
                        }
                        io => apply(&mut image, io),
                    }
                }
            }
            Survival::Sectors(seed) => {
                let mut rng = Rng(seed);
                for io in loose {
                    match io {
                        Io::Write(file, offset, data) => {
                            for (at, sector) in (0..).step_by(SECTOR).zip(data.chunks(SECTOR)) {
                                if rng.flip() {
                                    put(&mut image[*file], offset + at, sector);
                                }
                            }
                        }
                        Io::SetLen(..) if rng.flip() => apply(&mut image, io),
                        _ => {}
                    }
                }
            }
        }
        image
    }
}

impl Io {
    fn file(&self) -> usize {
        let (Self::Write(file, ..) | Self::SetLen(file, _) | Self::Sync(file)) = self;
        *file
    }
}

fn apply(image: &mut Image, io: &Io) {
    match io {
        Io::Write(file, offset, data) => put(&mut image[*file], *offset, data),
        Io::SetLen(file, len) => resize(&mut image[*file], *len),
        Io::Sync(_) => {}
    }
}

fn put(image: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let at = usize::try_from(offset).expect("small disk");
    let end = at + data.len();
    if end > image.len() {
        image.resize(end, 0);
    }
    image[at..end].copy_from_slice(data);
}

fn resize(image: &mut Vec<u8>, len: u64) {
    image.resize(usize::try_from(len).expect("small disk"), 0);
}
