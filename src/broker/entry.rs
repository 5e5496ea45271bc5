//! An entry of the log as replication sees it.

use crate::{
    replication::{LogEnd, LogEntry},
    wire::Entry,
};

impl LogEntry for Entry {
    fn end(&self) -> LogEnd {
        let header = &self.header;
        LogEnd { lsn: header.lsn.next(), epoch: header.epoch, chain: header.chain }
    }

    fn follows(&self, prev: LogEnd) -> bool {
        let header = &self.header;
        header.lsn == prev.lsn
            && header.epoch >= prev.epoch
            && header.chain == header.chain_after(prev.chain)
    }
}
