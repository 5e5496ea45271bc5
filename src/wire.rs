//! Bytes and values: frames, control messages, record batches, log entries.
//!
//! Layer 1. Nothing here reads a clock or a socket. Every length is checked against `limits` before memory is taken.

pub mod batch;
pub mod cbor;
mod close;
mod cluster;
mod compression;
mod control;
mod data;
pub mod entry;
mod fault;
mod frame;
mod join;
mod octets;
mod record;
mod varint;

pub use batch::{BadBatch, Batch, BatchBuilder, BatchHeader, Pushed, stamp};
pub use close::CloseCode;
pub use cluster::{
    BalanceNode, BalancePlan, ClientMove, ClusterNode, ClusterShard, ClusterStatus, Invited, Lag,
    Liveness, PrimaryMove, RecoveryPlan, StuckShard, Survivor,
};
pub use compression::{BadCompression, Compression};
pub use control::{
    Ack, Answer, CaughtUp, Change, Deliver, GoAway, Hello, Leave, Nack, NodeInfo, NodeStatus,
    PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, PartitionStatus, Publish, PublishOk, PublishOpen,
    ReadStart, Request, RetentionChange, SubscribeOk, SubscribeOpen, TopicRequest, TopicStatus,
    Welcome, WireLimits,
};
pub use data::BadData;
pub use entry::{BadEntry, Entry, EntryHeader, EntryKind};
pub use fault::{Code, Culprit, Detail, Fault, Retry};
pub use frame::{BadFrame, Frame, FrameDecoder, FrameType, put_control, put_frame_head};
pub use join::{JoinAnswer, JoinRequest, JoinWelcome};
pub use octets::Octets;
pub use record::{BadRecord, Record, Records};
pub use varint::{Truncated, VARINT_MAX, get_varint, put_varint, varint_len};
