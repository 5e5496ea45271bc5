//! Announcements of nodes that nobody runs, as packets: no responder that keeps to the rules would send so many.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use dunlin::{
    client::NodeId,
    discovery::{Announcement, SERVICE_TYPE},
};
use hickory_resolver::proto::{
    op::{Message, MessageType, OpCode},
    rr::{
        Name, RData, Record,
        rdata::{A, PTR, SRV, TXT},
    },
};
use socket2::{Domain, Protocol, Socket, Type};

/// Someone on the clients' host who says what he likes.
pub(crate) struct Liar {
    socket: UdpSocket,
}

impl Liar {
    pub(crate) fn new(here: Ipv4Addr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        // Beside whoever else speaks and hears here: answers must come from this port.
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, MDNS.port()).into()).unwrap();
        socket.set_multicast_if_v4(&here).unwrap();
        socket.set_multicast_ttl_v4(255).unwrap();
        Self { socket: socket.into() }
    }

    /// Says once that these are there.
    pub(crate) fn say(&self, packets: &[Vec<u8>]) {
        for packet in packets {
            // A full queue of the interface loses some, as a network would.
            let _ = self.socket.send_to(packet, MDNS);
        }
    }
}

/// Says it again and again until it is dropped, from where its thread was begun.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    pub(crate) fn of(liar: Liar, packets: Vec<Vec<u8>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(SeqCst) {
                liar.say(&packets);
                thread::sleep(SAY_EVERY);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        self.thread.take().map(JoinHandle::join);
    }
}

/// The same node under other names and numbers, so many.
pub(crate) fn fakes(like: &Announcement, count: u64) -> Vec<Announcement> {
    let fake = |nth: u64| Announcement {
        node: format!("fake-{nth}").parse().unwrap(),
        id: NodeId(1_000_000 + nth),
        ..like.clone()
    };
    (0..count).map(fake).collect()
}

/// Packets in which these announce that they listen there.
pub(crate) fn packets(all: &[Announcement], at: SocketAddrV4) -> Vec<Vec<u8>> {
    let packet = |some: &[Announcement]| {
        let mut packet = Message::new(0, MessageType::Response, OpCode::Query);
        packet.metadata.authoritative = true;
        packet.add_answers(some.iter().flat_map(|node| records(node, at)));
        packet.to_vec().unwrap()
    };
    all.chunks(NODES_A_PACKET).map(packet).collect()
}

fn records(node: &Announcement, at: SocketAddrV4) -> [Record; 4] {
    let name = |text: String| Name::from_ascii(text).unwrap();
    let service = name(format!("{SERVICE_TYPE}.local."));
    let instance = name(format!("{}.{SERVICE_TYPE}.local.", node.node));
    let host = name(format!("liar-{}.local.", node.id));
    let keys = node.to_txt().into_iter().map(|(key, value)| format!("{key}={value}"));
    let record = |of: &Name, data| Record::from_rdata(of.clone(), 120, data);
    [
        record(&service, RData::PTR(PTR(instance.clone()))),
        record(&instance, RData::SRV(SRV::new(0, 0, at.port(), host.clone()))),
        record(&instance, RData::TXT(TXT::new(keys.collect()))),
        record(&host, RData::A(A(*at.ip()))),
    ]
}

const MDNS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), 5353);
/// Of some 250 bytes each, in a packet of an Ethernet.
const NODES_A_PACKET: usize = 5;
const SAY_EVERY: Duration = Duration::from_millis(200);
