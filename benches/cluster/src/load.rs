//! One producer that keeps so many records without ack.

use std::{
    collections::VecDeque,
    future::{IntoFuture as _, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use dunlin::client::{AckFuture, Publisher, Record};
use tokio::time::{Instant, timeout};

use crate::{
    failure::{Failure, Result, While as _},
    nats,
    table::Latencies,
};

/// Who a producer is to the broker that it publishes to.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(crate) enum Producer {
    Dunlin(Publisher),
    Nats(async_nats::jetstream::Context),
}

/// What tells that a record is stored.
enum Ack {
    Dunlin(AckFuture),
    Nats(NatsAck),
}

type NatsAck = <async_nats::jetstream::context::PublishAckFuture as IntoFuture>::IntoFuture;

impl Producer {
    async fn send(&self, payload: Bytes) -> Result<Ack> {
        match self {
            Self::Dunlin(publisher) => Ok(Ack::Dunlin(publisher.send(Record::new(payload)).await?)),
            Self::Nats(context) => {
                let ack = context.publish(nats::SUBJECT, payload).await?;
                Ok(Ack::Nats(ack.into_future()))
            }
        }
    }
}

impl Future for Ack {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Dunlin(ack) => Pin::new(ack).poll(cx).map(|ack| Ok(ack.map(drop)?)),
            Self::Nats(ack) => ack.as_mut().poll(cx).map(|ack| Ok(ack.map(drop)?)),
        }
    }
}

/// What a run has shown.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Records that were acked in the measured time, a second.
    pub(crate) rate: f64,
    /// Of those.
    pub(crate) latencies: Latencies,
    /// Records that were sent and acked in all, also before.
    pub(crate) all: u64,
}

/// Publishes for so long, after a time to warm up that counts for nothing.
pub(crate) async fn run(
    producer: &Producer,
    (in_flight, size): (usize, usize),
    warm: Duration,
    lasting: Duration,
) -> Result<Measured> {
    let payload = Bytes::from_iter((0..size).map(|_| rand::random::<u8>()));
    let from = Instant::now() + warm;
    let to = from + lasting;
    let (mut latencies, mut all) = (Latencies::new(), 0);
    let mut waiting = VecDeque::with_capacity(in_flight);
    while Instant::now() < to || !waiting.is_empty() {
        while waiting.len() < in_flight {
            let now = Instant::now();
            if now >= to {
                break;
            }
            waiting.push_back((now, producer.send(payload.clone()).await?));
        }
        let settled = timeout(
            ACK_MAX,
            settle(&mut waiting, |sent| {
                let now = Instant::now();
                all += 1;
                if from <= now && now < to {
                    latencies.add(now - sent);
                }
            }),
        );
        settled.await.map_err(|_| Failure(format!("no ack within {ACK_MAX:?}")))??;
    }
    let rate = latencies.count() as f64 / lasting.as_secs_f64();
    Ok(Measured { rate, latencies, all })
}

/// Waits for the ack of the oldest, and takes all behind it that have come too.
async fn settle(
    waiting: &mut VecDeque<(Instant, Ack)>,
    mut acked: impl FnMut(Instant),
) -> Result<()> {
    poll_fn(|cx| {
        let mut none = true;
        while let Some((sent, ack)) = waiting.front_mut() {
            match Pin::new(ack).poll(cx) {
                Poll::Ready(Ok(())) => acked(*sent),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if none => return Poll::Pending,
                Poll::Pending => break,
            }
            none = false;
            waiting.pop_front();
        }
        Poll::Ready(Ok(()))
    })
    .await
    .while_("a record was not stored")
}

/// Past every deadline of a client that goes on.
const ACK_MAX: Duration = Duration::from_secs(90);
