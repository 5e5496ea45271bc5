//! Every bound of the product, one constant each, with its reason and what happens when it is reached.
//!
//! What an operator can decide is a configuration key instead; its default and its range are here too.

use std::time::Duration;

// ---- names ----

/// Longest name of a node, client or site, in bytes: it must fit one DNS label with room for a suffix.
pub const NAME_LEN_MAX: usize = 63;
/// Longest topic name, in bytes: as much as Kafka and NATS users know.
pub const TOPIC_NAME_LEN_MAX: usize = 249;

// ---- topics ----

/// Most partitions of one topic. More are refused with `LimitReached`.
pub const PARTITIONS_PER_TOPIC_MAX: u32 = 256;
/// Most partitions of a site: each costs every data node about 1 KiB of memory. More are refused with `LimitReached`.
pub const PARTITIONS_MAX: u32 = 20_000;
/// Most topics of a site. More are refused with `LimitReached`.
pub const TOPICS_MAX: usize = 10_000;

// ---- frames ----

/// Largest control frame (CBOR), in bytes. A larger one closes the stream with `FrameTooLarge`.
pub const CONTROL_FRAME_LEN_MAX: usize = 256 * 1024;
/// Largest record batch with its header, in bytes. A larger one is refused with `RecordTooLarge`.
///
/// One MiB is eight times what MQTT devices send; a larger object belongs in a store, its name in a record.
pub const BATCH_LEN_MAX: usize = 1024 * 1024;
/// Largest data frame: a batch and the few bytes of its envelope.
pub const DATA_FRAME_LEN_MAX: usize = BATCH_LEN_MAX + 64;
/// Largest body of a batch once decompressed, in bytes: bounds what a small malicious batch can make a reader allocate.
pub const BATCH_BODY_LEN_MAX: usize = 4 * 1024 * 1024;
/// Most records of one batch.
pub const BATCH_RECORDS_MAX: u32 = 65_536;
/// Most headers of one record.
pub const RECORD_HEADERS_MAX: usize = 64;
/// Longest name of a record header, in bytes.
pub const HEADER_NAME_LEN_MAX: usize = 255;
/// Longest key of a record, in bytes.
pub const KEY_LEN_MAX: usize = 4 * 1024;
/// Largest record (key, value and headers), in bytes: it must fit a batch by itself.
pub const RECORD_LEN_MAX: usize = BATCH_LEN_MAX - 1024;

// ---- log ----

/// Most bytes of one commit: about what a commit of 5 ms takes on a small flash disk. What waits beyond it is in the next commit.
pub const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes that may wait for the commit thread, all shards together. Publish streams stop reading when it is full,
/// and QUIC flow control slows the producers.
pub const COMMIT_QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Length of the journal, in which small commits become durable before they move into the log in bulk: one half is
/// written while what the other holds moves.
pub const JOURNAL_LEN: usize = 8 * 1024 * 1024;
/// Row size of the packed log: redb rounds a row up to a power of two of its 4 KiB pages, with 64 bytes for its own use.
pub const ROW_LEN_MAX: usize = 64 * 1024 - 64;
/// Producers remembered in one partition. The one that wrote longest ago is forgotten by a logged `ProducerExpire`.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 1_000;
/// A producer that wrote nothing for this long is forgotten, by a logged `ProducerExpire`.
pub const PRODUCER_IDLE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// No producer is forgotten before its primary has itself seen it silent for this long, whatever wall clocks say: one that
/// jumped must not forget a producer whose batch is still on its way. Longer than anybody sends a batch again.
pub const PRODUCER_SILENCE_MIN: Duration = Duration::from_secs(24 * 60 * 60);
/// Batches of one producer in one partition that can be recognised when sent again; also the most it may have in flight there.
pub const PRODUCER_BATCHES_REMEMBERED: usize = 64;

/// How often topics are trimmed by their retention.
pub const RETENTION_INTERVAL: Duration = Duration::from_secs(5);
/// How often free space is measured: a disk at the low mark must not fill up in between.
pub const DISK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Silent producers forgotten in one round of a shard; the others wait for the next.
pub const EXPIRIES_PER_ROUND_MAX: usize = 1_000;
/// How long a starting node waits for its disk to take the first commit.
pub const RECOVERY_MAX: Duration = Duration::from_secs(60);

// ---- metadata group ----

/// Entries in the metadata log before it is replaced by a snapshot.
pub const META_LOG_LEN_MAX: u64 = 500;
/// Entries behind a snapshot that stay: a member that was away for a moment needs no snapshot.
pub const META_LOG_KEPT: u64 = 100;
/// How often the leader of the metadata group is heard when there is nothing else to say.
pub const META_HEARTBEAT: Duration = Duration::from_millis(150);
/// Least and most that a member draws for its election timeout. It waits the most for the leader's lease to end and what
/// it has drawn on top of that: 900 to 1,200 ms without a word, in which six heartbeats were lost.
pub const META_ELECTION_MIN: Duration = Duration::from_millis(300);
/// See [`META_ELECTION_MIN`].
pub const META_ELECTION_MAX: Duration = Duration::from_millis(600);
/// Time for one piece of a snapshot, its flush at the other end too.
pub const META_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a snapshot that travel at once: with its envelope it fits a control frame.
pub const META_SNAPSHOT_CHUNK: usize = 128 * 1024;
/// Largest snapshot: ten times a site that is full. A larger one is refused before memory is taken.
pub const META_SNAPSHOT_LEN_MAX: u64 = 64 * 1024 * 1024;
/// Largest request of the group: entries beyond it travel in several. One entry is never larger than a control frame.
pub const META_REQUEST_LEN_MAX: usize = CONTROL_FRAME_LEN_MAX - 1024;
/// Entries of one request.
pub const META_REQUEST_ENTRIES_MAX: u64 = 64;
/// How long a proposal looks for a leader with a majority: a few elections. Then it fails with `NoLeader`.
pub const META_PROPOSE_MAX: Duration = Duration::from_secs(5);
/// How soon a proposal that found no leader asks again, if nothing is heard of a new one.
pub const META_PROPOSE_RETRY: Duration = Duration::from_millis(100);
/// A learner that is at most so many entries behind may become a voter.
pub const META_PROMOTE_LAG_MAX: u64 = 50;
/// Addresses of one node. More are refused.
pub const NODE_ADDRESSES_MAX: usize = 16;
/// Longest address of a node: a DNS name of 253 bytes and a port.
pub const NODE_ADDRESS_LEN_MAX: usize = 260;
/// Longest name of a node's software.
pub const SOFTWARE_LEN_MAX: usize = 64;
/// Greatest weight of a node.
pub const NODE_WEIGHT_MAX: u32 = 1_000;
/// Weight of a node that nobody has given another.
pub const NODE_WEIGHT_DEFAULT: u32 = 100;
/// Most nodes of a site. A site has one to five; but each disk that was replaced is a node more until it is removed.
pub const NODES_MAX: usize = 256;
/// Most invites that wait to be used. More are refused until one is used or ends.
pub const INVITES_MAX: usize = 16;
/// Nodes that have left whose disks are known: the first of more is forgotten.
pub const REMOVED_NODES_REMEMBERED: usize = 1_000;
/// Most copies of a shard that are placed without being asked for.
pub const REPLICATION_FACTOR: usize = 3;

// ---- replication ----

/// How often replicas hear of each other when there is nothing else to say, and nodes of each other unless configured.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// A node that was not heard for this long is down: seven heartbeats, so that neither a lossy link nor a machine that is
/// busy for half a second deposes a primary.
pub const FENCE_AFTER: Duration = Duration::from_millis(700);
/// How long a node that asked for the lead of the metadata group waits before it asks again: the members' own drawn times
/// come first.
pub const STAND_AGAIN: Duration = Duration::from_secs(3);
/// A node whose own heartbeat comes so late has stood still, and judges nobody by the time in between.
pub const STOOD_STILL_AFTER: Duration = Duration::from_millis(300);
/// A node that has not heard a majority of the voters for this long takes no publishes: longer than others need to replace
/// it as a primary.
pub const ISOLATED_AFTER: Duration = Duration::from_millis(1_500);
/// A node that has not heard one that it needs for this long, though others hear it, gives its clients away: it can pass on or
/// commit nothing of theirs, and may not even hear who leads by now. Longer than others need to replace a primary.
pub const CUT_OFF_AFTER: Duration = Duration::from_millis(1_500);
/// How often such a node sends those away who have come since.
pub const CUT_OFF_AGAIN: Duration = Duration::from_secs(5);
/// A member of a commit set that has not what the primary had this long ago is removed, if enough stay.
pub const LAG_MAX: Duration = Duration::from_millis(700);
/// After a start of the whole site the controller waits this long for the other members of a set, to choose the best.
pub const BOOT_WAIT: Duration = Duration::from_secs(10);
/// A question to a replica, or a proposal, is asked again after this time without an answer.
pub const REPLICA_RETRY: Duration = Duration::from_millis(300);
/// A replica that lacks entries before those that came gets the rest of the window again, no oftener than this: many messages
/// that overtook each other say the same.
pub const GAP_RETRY: Duration = Duration::from_millis(30);
/// Entries of one shard that may be on their way to one replica; it reads no faster than it acks.
pub const APPEND_WINDOW_ENTRIES: u64 = 1_024;
/// How long a primary that hands over takes no publishes. Then it goes on as before.
pub const HAND_OVER_MAX: Duration = Duration::from_millis(500);
/// How often the site is told how far a shard is committed, if that changed.
pub const FLOOR_INTERVAL: Duration = Duration::from_secs(5);
/// The same while only one replica has the newest entries.
pub const FLOOR_INTERVAL_ALONE: Duration = Duration::from_millis(200);
/// A replica that has left its set by itself is not asked back for so long: longer than a node takes to stop. One that
/// lives on comes back.
pub const LEFT_WAIT: Duration = Duration::from_secs(10);
/// A replica that was removed must have kept pace for [`LAG_MAX`] before it is added again, twice as long each time, at
/// most so many times.
pub const REJOIN_DOUBLINGS_MAX: u32 = 3;
/// Epochs of a log whose starts are remembered: 16 KiB in a message. A replica that shares none is installed anew.
pub const EPOCHS_REMEMBERED: usize = 1_024;
/// Newest entries of a shard that are kept in memory for its replicas, in bytes: what a fast publisher writes while a
/// replica answers. One that is further behind is served from the disk.
pub const RECENT_LOG_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Proposals of shards that may wait for the metadata group. When it is full, shards ask again.
pub const PROPOSALS_WAITING_MAX: usize = 1_024;
/// Bytes of one chunk of an install, about: what a small node takes in a moment, and few enough questions for a large log.
pub const INSTALL_CHUNK_BYTES: usize = 1024 * 1024;
/// Chunks of one install.
pub const INSTALL_CHUNKS_MAX: u32 = 1 << 20;

/// Proposals of shards that are under way at once: enough to share commits of the metadata group.
pub const PROPOSALS_AT_ONCE_MAX: usize = 64;
/// Heartbeats of other nodes that may wait to be heard; one that is lost is followed by the next.
pub const HEARTBEATS_WAITING_MAX: usize = 256;
/// How often the leader of the metadata group looks whether its members and the places of shards are as they should be.
pub const MEMBERS_INTERVAL: Duration = Duration::from_secs(1);
/// Members of the metadata group that vote: more would only make each change slower.
pub const META_VOTERS_MAX: usize = 5;
/// How soon a starting node that could not register tries again.
pub const REGISTER_RETRY: Duration = Duration::from_millis(250);
/// How long the start of a node on a site of several waits for every partition to have a leader.
pub const READY_MAX: Duration = Duration::from_secs(15);
/// How long a node that stops tries to hand its shards over; what is left fails over.
pub const GIVE_AWAY_MAX: Duration = Duration::from_secs(2);
/// How long it waits to be let out of commit sets.
pub const LEAVE_MAX: Duration = Duration::from_millis(500);
/// How often it looks whether that is done.
pub const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// How long a replica must have kept pace before the shard that it should lead is handed to it.
pub const PREFERRED_AFTER: Duration = Duration::from_secs(10);
/// How long a batch waits for a connection to the node that leads its partition. A client asks again after it.
pub const RELAY_DIAL_MAX: Duration = Duration::from_secs(1);
/// A connection over which batches are passed on, and that hears nothing for so long, is dead.
pub const RELAY_IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// How soon a client may send again a batch for a partition that nobody leads right now.
pub const RELAY_RETRY: Duration = Duration::from_millis(20);

/// How often it is looked what can be done about a damaged copy.
pub const DAMAGE_LOOK: Duration = Duration::from_millis(200);
/// How often the same step of a repair is tried again: a hand-over that fails holds up publishes for [`HAND_OVER_MAX`].
pub const DAMAGE_RETRY: Duration = Duration::from_secs(2);
/// Signs of damage that may wait to be looked at. When it is full they are dropped: damage shows itself again.
pub const SUSPECTS_WAITING_MAX: usize = 64;
/// Bytes that are read at a time to look for damage: some rows of the log.
pub const SCRUB_STEP_BYTES: usize = 256 * 1024;
/// Pause between two of these reads: 1 MiB/s at most, what a memory card spares.
pub const SCRUB_PAUSE: Duration = Duration::from_millis(250);
/// The same when an operator waits: 50 MiB/s at most.
pub const SCRUB_PAUSE_ASKED: Duration = Duration::from_millis(5);
/// A node that has started has other things to do first.
pub const SCRUB_FIRST_AFTER: Duration = Duration::from_secs(10 * 60);
/// How often all of the log is read: bits rot over months.
pub const SCRUB_PERIOD: Duration = Duration::from_secs(3 * 24 * 60 * 60);
/// Least rest between two such passes.
pub const SCRUB_REST: Duration = Duration::from_secs(60 * 60);

// ---- connections ----

/// Default UDP port.
pub const PORT_DEFAULT: u16 = 7440;
/// Default port of the loopback HTTP listener for metrics and health.
pub const HTTP_PORT_DEFAULT: u16 = 7441;
/// Batches of one publish stream that may wait for their ack. The node reads no further until one is acked.
pub const PUBLISH_WINDOW_BATCHES: u32 = 4_096;
/// Bytes of one connection that may wait for their ack, over all its publish streams.
pub const PUBLISH_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Bytes that the frames of one connection may take that have begun and not ended, over all its streams. More wait, and
/// are refused with `Timeout` after `REQUEST_TIMEOUT`: waiting alone could stop the frames that others wait for.
pub const UNFINISHED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A connection without any packet for this long is dead.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a side that hears nothing asks: a third of the idle timeout, so that two lost packets do not kill.
pub const KEEP_ALIVE: Duration = Duration::from_millis(3_333);
/// How often a client asks: so that one that only listens learns within about a second that its node is gone. A node that
/// was restarted answers with a reset.
pub const CLIENT_KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Time for a client from handshake to `Hello`. A silent one is closed with `HelloTimeout`.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one request frame to arrive whole. A slower one is answered with `Timeout`.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stopping node waits for acks in flight before it closes connections anyway.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Requests of one connection that may be under way; more wait in QUIC.
pub const REQUESTS_PER_CONNECTION_MAX: u32 = 64;
/// Streams of one connection (publish, subscribe, request); more wait in QUIC, which tells the client.
pub const STREAMS_PER_CONNECTION_DEFAULT: u32 = 256;
/// Addresses of an invite, and of a node that joins: a machine has few that others can reach. More are refused.
pub const JOIN_ADDRESSES_MAX: usize = 8;
/// Largest request to join: a signing request of some 300 bytes, and addresses. A larger one is refused.
pub const JOIN_FRAME_LEN_MAX: usize = 8 * 1024;
/// Longest invite as text: one with all the addresses that it may have.
pub const INVITE_LEN_MAX: usize = 4 * 1024;
/// How long an invite can be used, unless its maker says otherwise: long enough to walk to the other machine.
pub const INVITE_LIFETIME_DEFAULT: Duration = Duration::from_secs(60 * 60);
/// Longest life of an invite: one that is forgotten must not open the site for ever. More is refused.
pub const INVITE_LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Time for a whole join on the node: the request, a change of the metadata, a signature.
pub const JOIN_SERVE_MAX: Duration = Duration::from_secs(15);
/// Joins that a node works on at once: each may cost a change of the metadata. More are told to come again.
pub const JOINS_MAX: usize = 4;
/// How long a joiner tries one address.
pub const JOIN_DIAL_MAX: Duration = Duration::from_secs(5);
/// Rounds of all addresses that a joiner tries: in the second one the answer that was lost in the first comes again.
pub const JOIN_ROUNDS_MAX: usize = 2;
/// Connections of a node. More are refused in the handshake.
pub const CONNECTIONS_DEFAULT: u32 = 4_096;
/// Handshakes of one address in a second. More are refused in the handshake.
pub const HANDSHAKES_PER_ADDRESS_DEFAULT: u32 = 50;
/// Addresses whose handshakes are counted; when full, the one seen longest ago is forgotten.
pub const HANDSHAKE_ADDRESSES_MAX: usize = 4_096;
/// Newest batches kept in memory for readers that are at the end of their partition; older ones are read from the disk.
pub const TAIL_CACHE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Topics of one page of a list: each takes at most 600 bytes, so that a page fits a control frame.
pub const LIST_PAGE_MAX: u32 = 200;
/// Bytes read from the log for one reader at a time: enough to keep a link busy, little enough for 1,000 readers.
pub const READ_BYTES_MAX: usize = 256 * 1024;

// ---- balancing ----

/// How often a node looks whether it has more clients than its share: a round.
pub const BALANCE_ROUND: Duration = Duration::from_secs(1);
/// A node is given clients once it was up for so long: one that falls over again soon must not take them down with it.
pub const BALANCE_SETTLED: Duration = Duration::from_secs(5);
/// Clients must have been spread unevenly for so long before any is asked to move: those that have just lost their node
/// are still on their way, and reports of those that have arrived, too.
pub const BALANCE_HOLD: Duration = Duration::from_secs(5);
/// The most clients that the site had within this time is what shares are made of: what others report is late, and who is on
/// the way is with nobody. Longer than a report takes.
pub const BALANCE_WINDOW: Duration = Duration::from_secs(3);
/// Clients that a node may be off its share before anything moves, in percent of the share.
pub const BALANCE_BAND_PERCENT: u64 = 5;
/// The same as a number, for small shares.
pub const BALANCE_BAND_MIN: u64 = 3;
/// Clients that a node may ask in one round, and have on their way at once: a few.
pub const BALANCE_STEP: u64 = 4;
/// The same for a node that gives all up.
pub const BALANCE_STEP_EMPTY: u64 = 16;
/// Far from its share a node asks more at once: this part of what it has too many.
pub const BALANCE_PART: u64 = 8;
/// Nodes that a client is named when it is asked to move. It takes the first that answers.
pub const BALANCE_CANDIDATES_MAX: usize = 4;
/// A client that has just come is not asked: it is still opening its streams.
pub const BALANCE_NEW: Duration = Duration::from_secs(2);
/// A client that came because it was asked to is not asked again for so long, however the numbers change.
pub const BALANCE_STAY: Duration = Duration::from_secs(60);
/// A client that was asked counts as gone for so long. If it is still here then, another is asked in its place.
pub const BALANCE_PATIENCE: Duration = Duration::from_secs(10);
/// A client that was asked and stayed is not asked again for so long.
pub const BALANCE_ASK_AGAIN: Duration = Duration::from_secs(10 * 60);
/// Clients that are still with a node so long after it began to drain are told to go.
pub const BALANCE_DRAIN_MAX: Duration = Duration::from_secs(30);
/// Least time between two hand-overs that bring primaries where they should be: publishes of a shard wait for one.
pub const BALANCE_HAND_OVER_EVERY: Duration = Duration::from_secs(1);
/// If nothing came of a hand-over for so long, the next one that is due has its turn.
pub const BALANCE_HAND_OVER_TURN: Duration = Duration::from_secs(5);
/// How long an operator's "now" does away with waiting.
pub const BALANCE_NOW: Duration = Duration::from_secs(60);
/// How long a client takes one of the nodes that it was named to be silent.
pub const MOVE_DIAL_MAX: Duration = Duration::from_secs(2);
/// How long a publisher that moves waits for the acks of what it has sent over the old connection. What has none then is
/// sent again over the new one, under the same sequence.
pub const MOVE_ACKS_MAX: Duration = Duration::from_millis(500);
/// The same for a publisher whose batches the node cannot recognise: sent again, they would be stored twice.
pub const MOVE_ACKS_BLIND_MAX: Duration = Duration::from_secs(10);
/// How soon a stream that could not be opened over the new connection is tried again; the old one goes on meanwhile.
pub const MOVE_RETRY: Duration = Duration::from_millis(250);
/// How long the old connection is kept for streams that have not moved: a reader whose owner does not read.
pub const MOVE_LINGER: Duration = Duration::from_secs(30);

// ---- links between nodes ----

/// Largest message between replicas, in bytes: the largest entry twice. A larger one closes the connection with
/// `FrameTooLarge`. Each data stream of a peer holds at most one of them here.
pub const PEER_MESSAGE_LEN_MAX: usize = 2 * BATCH_LEN_MAX;
/// About how many bytes of entries the sender puts into one message: one batch more than this at most. A longer run of
/// entries goes in several, so that another shard's message waits for no more than this.
pub const APPEND_BYTES: usize = 256 * 1024;
/// Rows of derived state in one chunk of an install: a row takes 20 times its smallest encoding in memory.
pub const CHUNK_ROWS_MAX: usize = 16 * 1024;
/// Messages of one shard that may wait for one peer. The next is dropped: the core asks again.
pub const PEER_QUEUE_LEN: usize = 256;
/// Bytes of the messages of one shard that may wait for one peer. Entries that are read from the log when their turn
/// comes take none.
pub const PEER_QUEUE_BYTES_MAX: usize = 2 * PEER_MESSAGE_LEN_MAX;
/// Largest request or answer of a call between nodes, in bytes: a snapshot of the metadata of a full site.
pub const CALL_LEN_MAX: usize = 4 * 1024 * 1024;
/// Calls to one peer that may be under way, each way: more wait. Each may hold a request or an answer in memory.
pub const CALLS_PER_PEER_MAX: u32 = 16;
/// Addresses of one peer that are dialled: what it says of itself, where it came from, what was announced. More are not
/// looked at.
pub const PEER_ADDRESSES_MAX: usize = 16;
/// Largest datagram between nodes: what fits the smallest packet that QUIC allows, with room for its own fields.
pub const PEER_DATAGRAM_LEN_MAX: usize = 1_100;
/// Most nodes that a heartbeat names as heard: they must leave room for digests in the datagram. A node that hears more names
/// none at all: a list that lacks some would accuse them.
pub const HEARTBEAT_HEARS_MAX: usize = 32;
/// A link between nodes without any packet for this long is dead. Long enough for a lossy link, short enough that what
/// was queued for it is given up before it is worthless.
pub const PEER_IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a link that is otherwise silent asks.
pub const PEER_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Packets of a link that the other side acknowledges together: answers of replicas come by a link of their own, so that an
/// acknowledgement is a packet of its own. Below ten, which are as many as may be under way at first.
pub const PEER_ACKNOWLEDGE_AFTER: u32 = 8;
/// Time for dialling one peer, to its welcome. Then it is dialled anew: a node that has just started has not heard what
/// was sent before.
pub const PEER_DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait before a peer is dialled again the first time; it doubles with each failure.
pub const PEER_REDIAL_FIRST: Duration = Duration::from_millis(50);
/// Longest wait before a peer is dialled again: a node restarts in about a second.
pub const PEER_REDIAL_LAST: Duration = Duration::from_secs(1);
/// Most that may be configured between two heartbeats of a node.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(1);
/// Heartbeats that may at least be lost in a row before a node is down, whatever is configured.
pub const BEATS_MISSED_MIN: u32 = 6;
/// Least value of `FENCE_AFTER` that may be configured: [`BEATS_MISSED_MIN`] heartbeats.
pub const FENCE_AFTER_MIN: Duration = Duration::from_millis(600);
/// Largest value of `FENCE_AFTER` that may be configured: a site that waits longer for a failover is better told by hand.
pub const FENCE_AFTER_MAX: Duration = Duration::from_secs(10);
/// However bad a link is, a silence of this length means down, unless more is configured.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Connections of other nodes that may be in their handshake while clients take all places: they are told apart by it.
pub const PEER_HANDSHAKES_SPARE: usize = 16;
/// Connections of other nodes that are served. Each node of a site has two, and for some seconds those of its former
/// boot. More are closed with `Busy`.
pub const PEER_CONNECTIONS_MAX: usize = 64;

// ---- discovery ----

/// Nodes that are known by their announcements: a site has one to five, and others may be on the same network. Beyond it
/// one that no dial has reached makes room, or the new one is dropped.
pub const CANDIDATES_MAX: usize = 64;
/// Nodes that one source alone may name: a flood of multicast leaves room for what DNS says.
pub const CANDIDATES_PER_SOURCE_MAX: usize = 48;
/// Nodes that a node knows by their announcements when it takes no more that its own site does not have: less than a source may name,
/// so that there is room for those that it has.
pub const STRANGERS_MAX: usize = 24;
/// Announcements of one node: each source once, and a former name. More are dropped.
pub const SIGHTINGS_PER_CANDIDATE_MAX: usize = 4;
/// Addresses of one announcement. More are not looked at.
pub const SIGHTING_ADDRESSES_MAX: usize = 8;
/// Addresses of one announced node that are dialled beside those that its site knows.
pub const DISCOVERED_ADDRESSES_MAX: usize = 4;
/// Addresses whose failed dials are remembered; the one that may be tried again first is forgotten.
pub const DIAL_FAILURES_REMEMBERED: usize = 256;
/// How long an address that failed is tried after all others; it doubles with each failure in a row.
pub const DIAL_FAILURE_FIRST: Duration = Duration::from_secs(1);
/// Longest time for that: a machine that comes back is found again within it.
pub const DIAL_FAILURE_LAST: Duration = Duration::from_secs(60);
/// Longest value of a TXT key that is read. A name has 63 bytes, all others are shorter.
pub const TXT_VALUE_LEN_MAX: usize = 64;
/// TXT keys of one announcement that are looked at.
pub const TXT_KEYS_MAX: usize = 32;
/// Records that mDNS may hold in memory, some eight for a node. With more it forgets all and asks anew.
pub const MDNS_RECORDS_MAX: i64 = 2_000;
/// How often that is counted.
pub const MDNS_COUNT_INTERVAL: Duration = Duration::from_secs(15);
/// How often a node that is down, and still announced, is asked whether it is there.
pub const MDNS_ASK_AGAIN: Duration = Duration::from_secs(15);
/// How soon mDNS is begun anew when it has ended.
pub const MDNS_RETRY: Duration = Duration::from_secs(10);
/// A load is announced again when it has moved by so many of 100.
pub const LOAD_STEP: u8 = 10;
/// How often it is looked whether an announcement still says what is so. Multicast wakes every machine of a network.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);
/// After so long without a word of any other node by multicast, while the site has others, the log says so.
pub const MULTICAST_SILENCE: Duration = Duration::from_secs(30);
/// How long a stopping node waits until its goodbye has been sent.
pub const GOODBYE_MAX: Duration = Duration::from_millis(500);
/// How long the addresses of a profile or an invite may be silent before a client looks round for others.
pub const DISCOVER_AFTER: Duration = Duration::from_millis(700);
/// How long a client whose addresses have all refused it looks round, before it says so.
pub const DISCOVER_INSTEAD: Duration = Duration::from_secs(1);
/// How long announcements are gathered behind the first before one is chosen: whoever hears a question answers it after 10 to
/// 120 ms (RFC 6762 section 6). Who is late is only not chosen first.
pub const DISCOVER_GATHER: Duration = Duration::from_millis(150);
/// How long a client remembers a node that was announced: as long as multicast's own records of addresses live.
pub const CANDIDATE_LIFE: Duration = Duration::from_secs(120);
/// A dial of an announced address that had no answer for so long counts as failed when the round ends.
pub const DIAL_SILENT: Duration = Duration::from_secs(1);
/// How long a node that announces itself may take to prove that it is there, when somebody looks who is.
pub const DISCOVER_PROBE: Duration = Duration::from_secs(2);
/// How long one question to a name server waits.
pub const DNS_ATTEMPT_MAX: Duration = Duration::from_millis(1_500);
/// How long name servers may take for a question of discovery with all tries.
pub const DNS_ANSWER_MAX: Duration = Duration::from_secs(3);
/// Least and longest time that a node's records count: a zone may say 0, and may be forgotten.
pub const DNS_LIFE_MIN: Duration = Duration::from_secs(10);
/// See [`DNS_LIFE_MIN`].
pub const DNS_LIFE_MAX: Duration = Duration::from_secs(60 * 60);
/// How often a node asks the domain of its site.
pub const DNS_INTERVAL: Duration = Duration::from_secs(60);
/// The same after a failure, or while it hears nothing of a node.
pub const DNS_RETRY: Duration = Duration::from_secs(5);
/// How long a machine that joins looks for its site.
pub const DISCOVER_JOIN: Duration = Duration::from_secs(3);
/// Longest name of a TSIG key: that of a domain.
pub const TSIG_NAME_LEN_MAX: usize = 253;
/// Least length of a TSIG secret, in bytes: half of what the shortest algorithm gives (RFC 8945 section 5.2.2.1). A shorter
/// one could be guessed.
pub const TSIG_SECRET_LEN_MIN: usize = 16;
/// Longest TSIG secret: more adds nothing to any algorithm.
pub const TSIG_SECRET_LEN_MAX: usize = 512;
/// How often a registered node looks whether its records are still in the zone: half of their TTL, so that what somebody
/// has taken out, or an older copy of the zone lacks, is back before all others have forgotten it.
pub const REGISTER_EVERY: Duration = Duration::from_secs(60);
/// A load alone is not told more often than this: others remember the former one for as long.
pub const REGISTER_LOAD_EVERY: Duration = Duration::from_secs(120);
/// How soon registering is tried again when it failed; it doubles with each failure in a row.
pub const REGISTER_RETRY_FIRST: Duration = Duration::from_secs(2);
/// Longest time for that: a name server that comes back is told within it.
pub const REGISTER_RETRY_LAST: Duration = Duration::from_secs(60);
/// How long one try may take with all its questions. Then the name server counts as silent.
pub const REGISTER_MAX: Duration = Duration::from_secs(10);
/// How long a stopping node waits until its records are taken out. What is left leads to a failed dial.
pub const UNREGISTER_MAX: Duration = Duration::from_secs(2);
/// Addresses of a name server that are tried.
pub const DNS_SERVER_ADDRESSES_MAX: usize = 4;
