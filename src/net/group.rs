//! Work on the streams of one connection, done by one task.
//!
//! A stream that has a task of its own wakes its connection for each frame that it writes, and a runtime may run the
//! connection at once: 64 streams that each have an answer then make 64 packets. In a group all that is ready is written
//! before the connection has its turn, and shares packets, encryption and system calls. The price is that streams of one
//! connection share one core, as the connection itself does.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use tokio::task::JoinSet;

/// Futures that one task works on. The task lives as long as there are some; dropping the group drops them.
///
/// Bounded by what its owner adds: the streams of a connection.
#[derive(Debug, Default)]
pub struct Group {
    shared: Arc<Mutex<Shared>>,
    task: Mutex<JoinSet<()>>,
}

/// One future of a group. Dropped, it ends the future.
#[derive(Debug)]
pub struct Member(AbortHandle);

#[derive(Default)]
struct Shared {
    added: Vec<Work>,
    /// Of the task, if there is one.
    task: Option<Waker>,
    running: bool,
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("added", &self.added.len()).finish_non_exhaustive()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Group {
    /// Has the group's task work on a future to its end, from within a runtime. A panic ends that future alone.
    pub fn add(&self, work: impl Future<Output = ()> + Send + 'static) {
        // What panicked has said so; nobody waits for the outcome.
        let work = Box::pin(AssertUnwindSafe(work).catch_unwind().map(drop));
        let mut shared = lock(&self.shared);
        shared.added.push(work);
        if let Some(task) = shared.task.take() {
            task.wake();
        }
        if !std::mem::replace(&mut shared.running, true) {
            drop(shared);
            let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            // The one before has ended.
            while task.try_join_next().is_some() {}
            task.spawn(Working {
                shared: Arc::clone(&self.shared),
                all: FuturesUnordered::new(),
                waited: false,
                over: false,
            });
        }
    }

    /// The same, until the [`Member`] is dropped.
    #[must_use = "dropped, it ends the future"]
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> Member {
        let (handle, registration) = AbortHandle::new_pair();
        self.add(Abortable::new(work, registration).map(drop));
        Member(handle)
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The group's task.
struct Working {
    shared: Arc<Mutex<Shared>>,
    all: FuturesUnordered<Work>,
    /// Others that were ready have had their turn since the task was woken.
    waited: bool,
    over: bool,
}

impl Drop for Working {
    fn drop(&mut self) {
        if !self.over {
            // Its runtime has gone: another may carry on.
            let mut shared = lock(&self.shared);
            shared.task = None;
            shared.running = false;
        }
    }
}

impl Future for Working {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // What woke this is about to wake more: a connection that has read a packet, callers whose records are acked.
        if !std::mem::replace(&mut self.waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.waited = false;
        let mut shared = lock(&self.shared);
        shared.task = Some(cx.waker().clone());
        let added = std::mem::take(&mut shared.added);
        drop(shared);
        self.all.extend(added);
        while let Poll::Ready(Some(())) = self.all.poll_next_unpin(cx) {}
        if !self.all.is_empty() {
            return Poll::Pending;
        }
        let mut shared = lock(&self.shared);
        if shared.added.is_empty() {
            shared.task = None;
            shared.running = false;
            drop(shared);
            self.over = true;
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        time::Duration,
    };

    use tokio::{
        sync::{Notify, oneshot},
        time::timeout,
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// Tells when it is dropped.
    struct Tells(Option<oneshot::Sender<()>>);

    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.take().map(|tell| tell.send(()));
        }
    }

    fn tells() -> (Tells, oneshot::Receiver<()>) {
        let (tell, told) = oneshot::channel();
        (Tells(Some(tell)), told)
    }

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        timeout(DEADLINE, what).await.expect("it comes")
    }

    #[tokio::test]
    async fn all_that_is_ready_runs_before_who_was_woken_by_it() {
        let group = Group::default();
        let go = Arc::new(Notify::new());
        let ran = Arc::new(AtomicUsize::new(0));
        let ready = Arc::new(Notify::new());
        let mut done = Vec::new();
        for _ in 0..64 {
            let (ended, wait) = oneshot::channel();
            let (go, ran, ready) = (Arc::clone(&go), Arc::clone(&ran), Arc::clone(&ready));
            let work = async move {
                go.notified().await;
                ran.fetch_add(1, SeqCst);
                ready.notify_one();
                let _ = ended.send(());
            };
            group.add(work);
            done.push(wait);
        }
        let seen = Arc::clone(&ran);
        let mut connection = JoinSet::new();
        connection.spawn(async move {
            ready.notified().await;
            seen.load(SeqCst)
        });
        tokio::task::yield_now().await;
        while ran.load(SeqCst) == 0 {
            go.notify_waiters();
            tokio::task::yield_now().await;
        }
        assert_eq!(soon(connection.join_next()).await.unwrap().unwrap(), 64);
        for wait in done {
            soon(wait).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_group_that_was_empty_works_again() {
        let group = Group::default();
        for _ in 0..1_000 {
            let (ended, wait) = oneshot::channel();
            group.add(async move {
                let _ = ended.send(());
            });
            soon(wait).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_panic_ends_that_future_alone() {
        let group = Group::default();
        let (ended, wait) = oneshot::channel();
        let (tell, told) = tells();
        group.add(async move {
            let _tell = tell;
            panic!("as it should");
        });
        group.add(async move {
            told.await.unwrap();
            let _ = ended.send(());
        });
        soon(wait).await.unwrap();
    }

    #[tokio::test]
    async fn a_future_ends_with_its_member_and_all_with_the_group() {
        let group = Group::default();
        let (one, one_gone) = tells();
        let (other, mut other_gone) = tells();
        let member = group.spawn(async move {
            let _one = one;
            std::future::pending::<()>().await;
        });
        group.add(async move {
            let _other = other;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        drop(member);
        soon(one_gone).await.unwrap();
        assert!(other_gone.try_recv().is_err(), "it goes on");
        drop(group);
        soon(other_gone).await.unwrap();
    }

    #[test]
    fn a_group_works_on_in_another_runtime_when_its_own_has_gone() {
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let group = Group::default();
        let first = runtime();
        first.block_on(async {
            group.add(std::future::pending());
            tokio::task::yield_now().await;
        });
        drop(first);
        runtime().block_on(async {
            let (ended, wait) = oneshot::channel();
            group.add(async move {
                let _ = ended.send(());
            });
            soon(wait).await.unwrap();
        });
    }
}
