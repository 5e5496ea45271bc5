//! The client library: connect to a site, publish to its topics, read them, and administer them.
//!
//! ```
//! use dunlin::client::{Client, Event, Position, Record, TopicRequest};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let broker = dunlin::cli::own_broker::BrokerHere::start().await;
//! # let profile = broker.profile();
//! // let profile = Profile::discover(None)?;
//! let client = Client::connect(&profile).await?;
//! let topic = "plant/line3".parse()?;
//! client.topics().create(&topic, TopicRequest::default()).await?;
//!
//! let publisher = client.publisher(&topic).open().await?;
//! let delivery = publisher.publish(Record::new("21.5").with_key("temp")).await?;
//! println!("stored at offset {} of partition {}", delivery.offset, delivery.partition);
//!
//! let mut subscriber = client.subscribe(&topic).from(Position::Earliest).open().await?;
//! while let Some(event) = subscriber.next_event().await {
//!     match event? {
//!         Event::Record(received) => assert_eq!(received.record.value, "21.5"),
//!         Event::CaughtUp => break,
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] holds one QUIC connection, which it makes again by itself whenever it is lost. Publishers send again what
//! has no ack, under the same producer sequence, so that it is stored once; subscribers go on at the offset behind the
//! last record that they gave out.
//!
//! A profile need not say where its site is: nodes announce themselves on their network, and a client whose addresses are
//! silent listens there. Who answers must prove to be of the site, whatever was announced.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

mod backoff;
mod cluster;
mod dial;
mod discover;
mod error;
mod link;
mod mover;
mod outbox;
pub mod profile;
mod publisher;
mod search;
mod stream;
mod subscriber;
mod topics;
mod turns;

use tokio::sync::mpsc;

use self::{dial::Dialer, link::Link, search::Search};
use crate::{
    limits::CLIENT_KEEP_ALIVE,
    net::{Address, ConnectionLimits, endpoint, tls},
};

pub use self::{
    cluster::Cluster,
    discover::{DiscoverError, FoundNode, Trust, discover},
    error::{ConnectError, Obstacle, PublishError, RequestError, SubscribeError},
    profile::{Profile, ProfileError},
    publisher::{AckFuture, Delivery, Publisher, PublisherBuilder},
    subscriber::{Event, ReceivedRecord, Subscriber, SubscriberBuilder},
    topics::{TopicList, Topics},
};
pub use crate::{
    types::{
        AckLevel, Acks, InviteToken, NodeId, NodeRole, Offset, Position, Retention, Timestamp,
        TopicName,
    },
    wire::{
        Change, ClusterStatus, Code, Compression, Culprit, Fault, Invited, NodeStatus,
        PartitionStatus, Record, RetentionChange, TopicRequest, TopicStatus, Welcome,
    },
};

/// A connection to a site. Cheap to clone: clones share the connection.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = dunlin::cli::own_broker::BrokerHere::start().await;
/// # let profile = broker.profile();
/// use std::time::Duration;
///
/// use dunlin::client::Client;
///
/// let builder = Client::builder(&profile).connect_timeout(Duration::from_secs(2));
/// let client = builder.connect().await?;
/// println!("{} of site {}", client.welcome().await?.node, client.welcome().await?.site);
/// println!("up for {} ms", client.node_status().await?.uptime_ms);
/// client.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    link: Arc<Link>,
}

impl Client {
    /// Connects as the profile says, and waits until a node has answered.
    ///
    /// # Errors
    /// [`ConnectError`], which says whether the profile, the node or the way between is to blame.
    pub async fn connect(profile: &Profile) -> Result<Self, ConnectError> {
        Self::builder(profile).connect().await
    }

    /// Begins a connection that differs from what the profile says.
    #[must_use]
    pub fn builder(profile: &Profile) -> ClientBuilder<'_> {
        ClientBuilder {
            profile,
            servers: Vec::new(),
            connect_timeout: CONNECT_TIMEOUT,
            request_timeout: REQUEST_TIMEOUT,
        }
    }

    /// What the node said of itself when it let us in.
    ///
    /// # Errors
    /// If the connection is lost and cannot be made again.
    pub async fn welcome(&self) -> Result<Welcome, ConnectError> {
        Ok(self.link.session().await?.welcome.clone())
    }

    /// Begins a publisher.
    #[must_use]
    pub fn publisher(&self, topic: &TopicName) -> PublisherBuilder {
        PublisherBuilder::new(Arc::clone(&self.link), topic.clone())
    }

    /// Begins a subscription.
    #[must_use]
    pub fn subscribe(&self, topic: &TopicName) -> SubscriberBuilder {
        SubscriberBuilder::new(Arc::clone(&self.link), topic.clone())
    }

    /// Administers topics.
    #[must_use]
    pub fn topics(&self) -> Topics<'_> {
        Topics::new(&self.link)
    }

    /// Administers the site's nodes.
    #[must_use]
    pub fn cluster(&self) -> Cluster<'_> {
        Cluster::new(&self.link)
    }

    /// Asks the node how it is.
    ///
    /// # Errors
    /// [`RequestError`] if no answer is to be had.
    pub async fn node_status(&self) -> Result<NodeStatus, RequestError> {
        topics::node_status(&self.link).await
    }

    /// Ends the connection now, for all clones. Close publishers first: what they have not sent is lost.
    pub async fn close(&self) {
        self.link.close().await;
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// What can be decided about a connection.
#[derive(Clone, Debug)]
pub struct ClientBuilder<'a> {
    profile: &'a Profile,
    servers: Vec<Address>,
    connect_timeout: Duration,
    request_timeout: Duration,
}

impl ClientBuilder<'_> {
    /// Goes to this node instead of those in the profile. May be called for several.
    #[must_use]
    pub fn server(mut self, address: Address) -> Self {
        self.servers.push(address);
        self
    }

    /// How long one round of all addresses may take: 5 s unless set.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a request may take with all its tries: 10 s unless set.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Connects, and waits until a node has answered.
    ///
    /// # Errors
    /// [`ConnectError`], which says whether the profile, the node or the way between is to blame.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let endpoint = profile_endpoint(self.profile)?;
        let fixed = !self.servers.is_empty();
        let addresses = if fixed { self.servers } else { self.profile.addresses.clone() };
        let (timeout, told) = (self.connect_timeout, Mutex::default());
        let search = if fixed { None } else { Search::of(self.profile) };
        let site = self.profile.site.clone();
        // One is enough: a node asks again later.
        let (asks, asked) = mpsc::channel(1);
        let dialer = Dialer { endpoint, site, addresses, timeout, fixed, told, search, asks };
        let link = Link::start(dialer, self.request_timeout, asked);
        link.session().await?;
        Ok(Client { link })
    }
}

/// An endpoint that dials as the client of this profile.
fn profile_endpoint(profile: &Profile) -> Result<quinn::Endpoint, ConnectError> {
    let tls = tls::client_config(&profile.credentials(), &[tls::ALPN_CLIENT])
        .map_err(|error| ConnectError::Tls(Arc::new(error)))?;
    let limits = ConnectionLimits {
        // Nodes open no streams.
        streams_max: 0,
        // Each stream has its own window. A sum over all would let one reader that pauses stop the others.
        receive_window: u32::MAX,
        keep_alive: Some(CLIENT_KEEP_ALIVE),
        ..ConnectionLimits::default()
    };
    endpoint::client(Arc::new(tls), &limits)
        .map_err(|error| ConnectError::Endpoint(Arc::new(error)))
}

fn is_loopback(address: &Address) -> bool {
    let ip = address.host().parse::<std::net::IpAddr>();
    address.host() == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
